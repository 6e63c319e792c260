//! Texts around pictures as tokens, in the tokenizer's own chat format.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::chat::{ChatTemplate, Message, PictureTokens, RenderOptions};
use wels_data::tokenizer::Tokenizer;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::patches;
use wels_model::janus::picture::Rgb;
use wels_train::example::Example;
use wels_train::janus::JanusExample;

use super::data::pixels;
use crate::refusal::refuse;

/// Makes examples.
pub(super) struct Prompts<'a> {
    tokenizer: &'a Tokenizer,
    template: ChatTemplate,
    pub around: PictureTokens,
    /// Stands for pictures.
    place: u32,
    /// Ends an answer.
    end: Option<u32>,
}

impl<'a> Prompts<'a> {
    pub fn new(tokenizer: &'a Tokenizer, config: &JanusConfig) -> Result<Prompts<'a>> {
        let around = PictureTokens::of(tokenizer);
        let hint = "train one with tokenizer.chat_template = \"janus\", or name a Janus model's with tokenizer.path";
        let none = || refuse("the tokenizer has no tokens of pictures", hint);
        let around = around.ok_or_else(none)?;
        let template =
            ChatTemplate::of(tokenizer)?.ok_or_else(|| refuse("the tokenizer has no chat template", hint))?;
        let end = tokenizer.special().eos;
        Ok(Prompts { tokenizer, template, around, place: config.image_token_id, end })
    }

    /// What a picture of this caption is drawn after.
    pub fn draw(&self, caption: &str) -> Result<Vec<u32>> {
        Ok(self.around.draw_prompt(self.tokenizer, Some(&self.template), caption)?)
    }

    /// A picture with a question about it, and the answer to be learnt.
    pub fn see(&self, config: &JanusConfig, picture: &Rgb, question: &str, answer: &str) -> Result<JanusExample> {
        let content = json!([{"type": "image"}, {"type": "text", "text": question}]);
        let prompt = self.rendered(content, true)?;
        let at = prompt.iter().position(|token| *token == self.place);
        let at =
            at.with_context(|| format!("the chat template has no place for pictures, the token {}", self.place))?;
        let (mut before, mut question) = (prompt[..at].to_vec(), vec![self.around.end]);
        before.push(self.around.begin);
        question.extend(&prompt[at + 1..]);
        let vision = &config.vision;
        Ok(JanusExample::See {
            before,
            seen: patches(vision, &pixels(picture, vision.image_size)),
            rows: vision.tokens(),
            question,
            answer: self.answer(answer)?,
        })
    }

    /// An answer behind the prompt for one.
    fn answer(&self, answer: &str) -> Result<Vec<u32>> {
        let mut tokens = self.tokenizer.encode(&format!(" {answer}"))?;
        tokens.extend(self.end);
        Ok(tokens)
    }

    /// A caption as text, of which every token is to be learnt.
    pub fn text(&self, caption: &str) -> Result<JanusExample> {
        let tokens = self.rendered(json!([{"type": "text", "text": caption}]), false)?;
        Ok(JanusExample::Text(Example { learn: vec![true; tokens.len()], tokens }))
    }

    /// A user's message.
    fn rendered(&self, content: Value, add_generation_prompt: bool) -> Result<Vec<u32>> {
        let message = Message { content, ..Message::new("user", "") };
        let options = RenderOptions { add_generation_prompt, ..RenderOptions::default() };
        let mut tokens = self.tokenizer.encode(&self.template.render(&[message], &options)?)?;
        let bos = self.tokenizer.special().bos.filter(|bos| self.tokenizer.adds_bos() && tokens.first() != Some(bos));
        tokens.splice(0..0, bos);
        Ok(tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_data::chat::JANUS;
    use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
    use wels_model::janus::presets;
    use wels_runs::recipe::JANUS_PLACE;

    #[test]
    fn a_question_stands_behind_its_picture_and_before_its_answer() {
        let mut trainer = BpeTrainer::new(320, SpecialTokens::of_janus()).unwrap();
        trainer.feed(&["is there a red circle yes"; 8]);
        let mut tokenizer = trainer.train().unwrap();
        tokenizer.set_chat_template(Some(JANUS.into()));
        assert_eq!(tokenizer.id("<image_placeholder>"), Some(JANUS_PLACE), "what recipes write into config.json");
        let mut config = presets::preset("janus-pro-1b").unwrap();
        config.image_token_id = JANUS_PLACE;
        (config.vision.image_size, config.vision.patch_size) = (8, 4);
        let prompts = Prompts::new(&tokenizer, &config).unwrap();
        let picture = Rgb { width: 8, height: 8, bytes: vec![9; 3 * 64] };
        let example = prompts.see(&config, &picture, "is there a red circle", "yes").unwrap();
        let JanusExample::See { before, seen, rows, question, answer } = example else { panic!("{example:?}") };
        let text = |ids: &[u32]| tokenizer.decode(ids).unwrap();
        assert_eq!((rows, seen.len()), (4, 4 * 48));
        assert_eq!((before.last(), question.first()), (Some(&prompts.around.begin), Some(&prompts.around.end)));
        assert!(text(&before).ends_with("<|User|>: <begin_of_image>"), "{}", text(&before));
        assert!(text(&question).ends_with("\nis there a red circle\n\n<|Assistant|>:"), "{}", text(&question));
        assert_eq!(answer.last(), tokenizer.special().eos.as_ref());
        assert_eq!(text(&answer[..answer.len() - 1]), " yes");
    }
}

//! Texts around pictures as tokens, in the tokenizer's own chat format.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::chat::{ChatTemplate, Message, PictureTokens, RenderOptions, encode_segments};
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

    /// A picture with questions about it, one after the other, and their answers, which are to be learnt.
    pub fn see(&self, config: &JanusConfig, picture: &Rgb, turns: &[(String, String)]) -> Result<JanusExample> {
        let mut messages = Vec::new();
        for (question, answer) in turns {
            let content = if messages.is_empty() { about_a_picture(question) } else { json!(question) };
            messages.push(Message { content, ..Message::new("user", "") });
            messages.push(Message::new("assistant", answer));
        }
        let segments = self.template.segments(&messages, &RenderOptions::default())?;
        let (tokens, mut learn) = encode_segments(self.tokenizer, &segments)?;
        // A template may end an answer with what stands before the next question.
        tokens.iter().zip(&mut learn).for_each(|(token, learn)| *learn |= self.ends(*token));
        self.behind(config, picture, Example { tokens, learn })
    }

    /// A picture with a question about it, and of its answer nothing but the end.
    pub fn ask(&self, config: &JanusConfig, picture: &Rgb, question: &str) -> Result<JanusExample> {
        let tokens = self.rendered(about_a_picture(question), true)?;
        self.behind(config, picture, Example { learn: vec![false; tokens.len()], tokens })
    }

    /// A conversation with a picture in its place, and the end of the last answer.
    fn behind(&self, config: &JanusConfig, picture: &Rgb, mut talk: Example) -> Result<JanusExample> {
        let at = talk.tokens.iter().position(|token| *token == self.place);
        let at =
            at.with_context(|| format!("the chat template has no place for pictures, the token {}", self.place))?;
        let mut before = self.begun(talk.tokens.drain(..at).collect());
        talk.learn.drain(..at);
        before.push(self.around.begin);
        talk.tokens[0] = self.around.end;
        talk.tokens.extend(self.end);
        talk.learn.resize(talk.tokens.len(), true);
        let vision = &config.vision;
        let seen = patches(vision, &pixels(picture, vision.image_size));
        Ok(JanusExample::See { before, seen, rows: vision.tokens(), talk })
    }

    /// Whether a token ends an answer.
    pub fn ends(&self, token: u32) -> bool {
        self.end == Some(token)
    }

    /// The words of an answer's tokens.
    pub fn words(&self, tokens: &[u32]) -> Result<String> {
        Ok(self.tokenizer.decode(tokens)?)
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
        Ok(self.begun(self.tokenizer.encode(&self.template.render(&[message], &options)?)?))
    }

    /// With the token that texts begin with, if the tokenizer has one.
    fn begun(&self, mut tokens: Vec<u32>) -> Vec<u32> {
        let bos = self.tokenizer.special().bos.filter(|bos| self.tokenizer.adds_bos() && tokens.first() != Some(bos));
        tokens.splice(0..0, bos);
        tokens
    }
}

/// A user's message.
fn about_a_picture(question: &str) -> Value {
    json!([{"type": "image"}, {"type": "text", "text": question}])
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
        let turns = [("is there a red circle", "yes"), ("is there a", "circle")];
        let turns = turns.map(|(question, answer)| (question.to_owned(), answer.to_owned()));
        let example = prompts.see(&config, &picture, &turns).unwrap();
        let JanusExample::See { before, seen, rows, talk } = &example else { panic!("{example:?}") };
        let text = |ids: &[u32]| tokenizer.decode(ids).unwrap();
        assert_eq!((*rows, seen.len()), (4, 4 * 48));
        assert_eq!((before.last(), talk.tokens.first()), (Some(&prompts.around.begin), Some(&prompts.around.end)));
        assert!(text(before).ends_with("<|User|>: <begin_of_image>"), "{}", text(before));
        let learnt = |learnt: bool| -> Vec<u32> {
            talk.tokens.iter().zip(&talk.learn).filter(|(_, it)| **it == learnt).map(|(token, _)| *token).collect()
        };
        let asked = "<end_of_image>\nis there a red circle\n\n<|Assistant|>:<|User|>: is there a\n\n<|Assistant|>:";
        assert_eq!(text(&learnt(false)), asked);
        let eos = tokenizer.special().eos.unwrap();
        assert_eq!(learnt(true).iter().filter(|token| **token == eos).count(), 2);
        assert_eq!(text(&learnt(true)).replace(&text(&[eos]), "|"), " yes| circle|");
        // What is asked is what a single question of these is learnt behind.
        let (one, mut asked) = (
            prompts.see(&config, &picture, &turns[..1]).unwrap(),
            prompts.ask(&config, &picture, &turns[0].0).unwrap(),
        );
        tokenizer.encode(" yes").unwrap().into_iter().for_each(|token| asked.say(token));
        let tokens = |example: &JanusExample| match example {
            JanusExample::See { before, talk, .. } => [before.clone(), talk.tokens.clone()].concat(),
            _ => panic!("{example:?}"),
        };
        assert_eq!(tokens(&asked), tokens(&one));
    }
}

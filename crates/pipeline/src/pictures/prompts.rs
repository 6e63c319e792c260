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

//! Between text and tokens: questions, answers, and what an environment says between turns.

use thiserror::Error;
use wels_data::chat::{ChatError, ChatTemplate, Message, RenderOptions};
use wels_data::tokenizer::{Tokenizer, TokenizerError};
use wels_tasks::{Observation, Prompt};

/// Stands for a model's turn while a template is asked what comes behind one.
const TURN: &str = "wels-turn-of-the-model";

/// Why something cannot be put to a model, or read of it.
#[derive(Debug, Error)]
pub enum PromptError {
    /// The chat template refuses or fails.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// Tokens that cannot be text, or the other way round.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

/// Turns questions into tokens and answers into text.
pub struct Prompter<'a> {
    /// The model's.
    pub tokenizer: &'a Tokenizer,
    /// What stands around a question; without one a question is text behind BOS, and messages are refused.
    pub template: Option<&'a ChatTemplate>,
}

impl Prompter<'_> {
    /// The tokens that an answer to `prompt` continues.
    ///
    /// # Errors
    /// [`PromptError`] if the template refuses the prompt, or there is none for messages.
    pub fn tokens(&self, prompt: &Prompt) -> Result<Vec<u32>, PromptError> {
        let bos = self.tokenizer.special().bos;
        match (prompt, self.template) {
            (Prompt::Text(text), None) => Ok(bos.into_iter().chain(self.tokenizer.encode_ordinary(text)?).collect()),
            (Prompt::Text(text), Some(template)) => self.rendered(template, &[Message::new("user", text)]),
            (Prompt::Messages(messages), Some(template)) => self.rendered(template, messages),
            (Prompt::Messages(_), None) => Err(no_template("the task asks in messages")),
        }
    }

    fn rendered(&self, template: &ChatTemplate, messages: &[Message]) -> Result<Vec<u32>, PromptError> {
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        Ok(self.tokenizer.encode(&template.render(messages, &options)?)?)
    }

    /// The tokens of what an environment says behind a turn, which the model has ended by a token of its own or not. A
    /// text cannot be anything but text; a message is what the template puts behind any turn of an assistant.
    ///
    /// # Errors
    /// [`PromptError`] if the template refuses the message, or there is none.
    pub fn observation(&self, said: &Observation, ended: bool) -> Result<Vec<u32>, PromptError> {
        let (role, text) = match said {
            Observation::Text(text) => return Ok(self.tokenizer.encode_ordinary(text)?),
            Observation::Message { role, text } => (role, text),
        };
        let template = self.template.ok_or_else(|| no_template("the environment speaks in messages"))?;
        let messages = [Message::new("user", "."), Message::new("assistant", TURN), Message::new(role, text)];
        let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
        let whole = template.render(&messages, &options)?;
        let (_, behind) = whole.split_once(TURN).ok_or_else(|| {
            let reason = "the chat template does not show earlier turns of the assistant".into();
            PromptError::Chat(ChatError::Failed { reason })
        })?;
        let behind = if ended { behind.strip_prefix(template.eos()).unwrap_or(behind) } else { behind };
        Ok(self.tokenizer.encode(behind)?)
    }

    /// The text of an answer's tokens, without the one that ended it. Ids that the model has and the tokenizer has not
    /// (vocabularies are often padded) read as U+FFFD.
    ///
    /// # Errors
    /// The tokenizer's.
    pub fn text(&self, answer: &[u32], stop_tokens: &[u32]) -> Result<String, PromptError> {
        let tokens = match answer.split_last() {
            Some((last, before)) if stop_tokens.contains(last) => before,
            _ => answer,
        };
        let known = |id: &u32| (*id as usize) < self.tokenizer.vocab_size();
        let pieces = tokens.split(|id| !known(id)).map(|piece| self.tokenizer.decode(piece));
        Ok(pieces.collect::<Result<Vec<_>, _>>()?.join("\u{fffd}"))
    }
}

fn no_template(who: &str) -> PromptError {
    let reason = format!("{who}, and the model has no chat template");
    PromptError::Chat(ChatError::Failed { reason })
}

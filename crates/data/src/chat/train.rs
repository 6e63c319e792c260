//! What to train on: the assistant's tokens, and only those.

use super::{ChatError, ChatTemplate, Message, RenderOptions};
use crate::tokenizer::{Tokenizer, TokenizerError};

/// A part of a training text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    pub text: String,
    /// Whether the model is to learn it: what an assistant says, with the token that ends its turn.
    pub train: bool,
}

impl ChatTemplate {
    /// The conversation in segments whose texts joined are the rendered conversation; trained on is what each assistant
    /// message adds behind the prompt that asks for it.
    ///
    /// # Errors
    /// [`ChatError::RewritesHistory`] for templates that show past turns differently from how the model wrote them, as
    /// R1's does: train on one answer at a time there, with [`completion`].
    pub fn segments(&self, messages: &[Message], options: &RenderOptions) -> Result<Vec<Segment>, ChatError> {
        let render = |count: usize, add_generation_prompt| {
            self.render(&messages[..count], &RenderOptions { add_generation_prompt, ..options.clone() })
        };
        let mut segments = Vec::new();
        let mut done = String::new();
        let extend = |segments: &mut Vec<Segment>, done: &mut String, text: String, train, message| {
            let Some(new) = text.strip_prefix(done.as_str()) else {
                return Err(ChatError::RewritesHistory { message });
            };
            if !new.is_empty() {
                segments.push(Segment { text: new.to_owned(), train });
            }
            *done = text;
            Ok(())
        };
        for (index, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            extend(&mut segments, &mut done, render(index, true)?, false, index)?;
            extend(&mut segments, &mut done, render(index + 1, false)?, true, index)?;
        }
        extend(&mut segments, &mut done, render(messages.len(), false)?, false, messages.len())?;
        Ok(segments)
    }
}

/// A prompt that is not trained on and its answer, which is, ended by `eos`. What the prompt already begins (R1's
/// `<think>` and line end) is not repeated when the answer begins with it.
pub fn completion(prompt: &str, answer: &str, eos: &str) -> [Segment; 2] {
    let marks = ["<think>\n", "<think>"];
    let begun = marks.iter().any(|mark| prompt.ends_with(mark));
    let repeated = marks.iter().find_map(|mark| answer.strip_prefix(mark)).filter(|_| begun);
    let answer = repeated.unwrap_or(answer);
    [Segment { text: prompt.to_owned(), train: false }, Segment { text: format!("{answer}{eos}"), train: true }]
}

/// The ids of all segments and, for each, whether to train on it. Segments are encoded one by one: a model that is
/// asked with a prompt sees the prompt's own ids, and its answer starts a new token.
pub fn encode_segments(tokenizer: &Tokenizer, segments: &[Segment]) -> Result<(Vec<u32>, Vec<bool>), TokenizerError> {
    let (mut ids, mut train) = (Vec::new(), Vec::new());
    for segment in segments {
        ids.extend(tokenizer.encode(&segment.text)?);
        train.resize(ids.len(), segment.train);
    }
    Ok((ids, train))
}

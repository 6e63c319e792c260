//! From the text of a model to what a client sees: thinking apart from the answer, calls of tools apart from both.

mod argument;

mod block;

mod call;

mod calls;

mod grammar;

mod known;

mod marked;

mod think;

pub use argument::JsonStringArgument;
pub use calls::ToolFormat;
pub use grammar::{Held, grammar};
pub use known::KnownTools;

use crate::wire::{CallDelta, ChatDelta};
use calls::CallParser;
use think::{Part, ThinkSplitter};

/// Where an answer begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// The model does not think, or its thinking is not told apart.
    Plain,
    /// It may begin with `<think>`.
    Open,
    /// The prompt ended with `<think>`.
    Thinking,
}

/// One answer as it grows. However its text is cut into pieces, the concatenation of what comes out is the same.
pub struct Answer {
    think: Option<ThinkSplitter>,
    calls: Option<CallParser>,
}

impl Answer {
    /// An answer that may call `tools`, if there are any; `held_to` a form of calls, if the model is.
    pub fn new(start: Start, tools: Option<KnownTools>, held_to: Option<ToolFormat>) -> Answer {
        let think = (start != Start::Plain).then(|| ThinkSplitter::new(start == Start::Thinking));
        Answer { think, calls: tools.map(|tools| CallParser::new(tools, held_to)) }
    }

    /// Whether it is thinking.
    pub fn is_thinking(&self) -> bool {
        self.think.as_ref().is_some_and(ThinkSplitter::is_thinking)
    }

    pub fn complete_calls(&self) -> usize {
        self.calls.as_ref().map_or(0, CallParser::complete)
    }

    /// Whether there are calls, complete or not.
    pub fn has_calls(&self) -> bool {
        self.calls.as_ref().is_some_and(CallParser::has_begun)
    }

    /// What a piece of text adds.
    pub fn push(&mut self, text: &str) -> Vec<ChatDelta> {
        let parts = match &mut self.think {
            Some(think) => think.push(text),
            None => vec![Part::Content(text.to_owned())],
        };
        self.read(parts)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> Vec<ChatDelta> {
        let parts = self.think.as_mut().map(ThinkSplitter::finish).unwrap_or_default();
        let mut deltas = self.read(parts);
        if let Some(calls) = &mut self.calls {
            calls.finish(&mut deltas);
        }
        deltas
    }

    fn read(&mut self, parts: Vec<Part>) -> Vec<ChatDelta> {
        let mut deltas = Vec::new();
        for part in parts {
            match (part, &mut self.calls) {
                (Part::Reasoning(text), _) => append(&mut deltas, ChatDelta::Reasoning(text)),
                (Part::Content(text), None) => append(&mut deltas, ChatDelta::Content(text)),
                (Part::Content(text), Some(calls)) => calls.push(&text, &mut deltas),
            }
        }
        deltas
    }
}

/// Appends a delta, to the last one if that is of its kind; empty ones are left out.
fn append(deltas: &mut Vec<ChatDelta>, delta: ChatDelta) {
    use ChatDelta::{Call, Content, Reasoning};
    match (deltas.last_mut(), delta) {
        (_, Reasoning(text) | Content(text) | Call(CallDelta::Arguments { text, .. })) if text.is_empty() => {}
        (Some(Reasoning(last)), Reasoning(text)) | (Some(Content(last)), Content(text)) => last.push_str(&text),
        (
            Some(Call(CallDelta::Arguments { index: last, text: before })),
            Call(CallDelta::Arguments { index, text }),
        ) if *last == index => before.push_str(&text),
        (_, delta) => deltas.push(delta),
    }
}

/// Bytes at the end of `text` that are a proper beginning of `marker`, the most that are.
fn undecided(text: &str, marker: &str) -> usize {
    let begins = |len: &usize| marker.is_char_boundary(*len) && text.ends_with(&marker[..*len]);
    (1..marker.len()).rev().find(begins).unwrap_or(0)
}

#[cfg(test)]
mod tests;

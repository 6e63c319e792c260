//! From the text of a model to what a client sees: thinking apart from the answer, calls of tools apart from both.

mod argument;

mod block;

mod bounds;

mod call;

mod calls;

mod channels;

mod grammar;

mod known;

mod marked;

mod think;

pub use argument::JsonStringArgument;
pub use calls::ToolFormat;
pub use channels::{ANSWER_BEGIN, FINAL_BEGIN};
pub use grammar::{Held, grammar};
pub use known::KnownTools;

use crate::wire::{CallDelta, ChatDelta};
use calls::CallParser;
use channels::ChannelReader;
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
    /// It begins with a channel, of which some are thinking.
    Channels,
}

/// One answer as it grows. However its text is cut into pieces, the concatenation of what comes out is the same.
pub struct Answer {
    parts: Parts,
    calls: Option<CallParser>,
}

/// What tells thinking from the rest.
enum Parts {
    Plain,
    Think(ThinkSplitter),
    Channels(ChannelReader),
}

impl Answer {
    /// An answer that may call `tools`, if there are any; `held_to` a form of calls, if the model is.
    pub fn new(start: Start, tools: Option<KnownTools>, held_to: Option<ToolFormat>) -> Answer {
        let parts = match start {
            Start::Plain => Parts::Plain,
            Start::Open | Start::Thinking => Parts::Think(ThinkSplitter::new(start == Start::Thinking)),
            Start::Channels => Parts::Channels(ChannelReader::new()),
        };
        Answer { parts, calls: tools.map(|tools| CallParser::new(tools, held_to)) }
    }

    /// Whether it is thinking.
    pub fn is_thinking(&self) -> bool {
        match &self.parts {
            Parts::Plain => false,
            Parts::Think(think) => think.is_thinking(),
            Parts::Channels(channels) => channels.is_thinking(),
        }
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
        let parts = match &mut self.parts {
            Parts::Plain => vec![Part::Content(text.to_owned())],
            Parts::Think(think) => think.push(text),
            Parts::Channels(channels) => channels.push(text),
        };
        self.read(parts)
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> Vec<ChatDelta> {
        let parts = match &mut self.parts {
            Parts::Plain => Vec::new(),
            Parts::Think(think) => think.finish(),
            Parts::Channels(channels) => channels.finish(),
        };
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

//! Replies, whole and as the events of streams, as far as they are the same in all APIs.

use serde_json::Value;

use super::ApiError;
use crate::money::{Nanos, Tokens};

/// What stands at the top of a reply and of each of its events.
#[derive(Clone, Debug)]
pub struct Head {
    /// The request's name.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// As the client named it.
    pub model: String,
    /// Changes when the same seed may give another answer.
    pub fingerprint: String,
}

/// Tokens of a reply, over all its choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UsageCounts {
    /// As charged.
    pub tokens: Tokens,
    /// Of the output, those that thought.
    pub reasoning: u64,
    /// Of the prompt, those that are places of pictures.
    pub images: u64,
    /// What they cost.
    pub cost: Nanos,
}

/// The log-probability of a token that was chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    pub chosen: Candidate,
    /// Likeliest tokens, the likeliest first.
    pub top: Vec<Candidate>,
    /// Whether the token is part of the reasoning.
    pub reasoning: bool,
}

/// A token that could be chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// As text; where it is a part of a character, with U+FFFD.
    pub token: String,
    /// Exactly.
    pub bytes: Vec<u8>,
    /// Natural logarithm.
    pub logprob: f32,
}

/// The log-probabilities of an answer or of a part of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceLogprobs {
    /// In order.
    pub tokens: Vec<TokenLogprob>,
    /// Bytes of the answer's text before the first of them.
    pub offset: usize,
}

/// Why an answer ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The model ended it.
    #[default]
    Stop,
    /// One of the client's strings.
    StopString(String),
    /// It has all the tokens that it may have.
    Length,
    /// It ends with calls of tools.
    ToolCalls,
}

/// What an answer grows by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ChatDelta {
    /// Thinking.
    Reasoning(String),
    /// The answer.
    Content(String),
    /// A call of a tool.
    Call(CallDelta),
}

/// A part of a tool call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallDelta {
    Begin {
        /// From 0.
        index: usize,
        /// Unique.
        id: String,
        name: String,
    },
    /// More of its arguments, JSON as text.
    Arguments {
        /// From 0.
        index: usize,
        /// To be appended.
        text: String,
    },
}

/// One of a reply's answers, put together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// Thinking; `None` if there was none.
    pub reasoning: Option<String>,
    pub content: String,
    /// Id, name and arguments of each call.
    pub calls: Vec<(String, String, String)>,
    pub end: AnswerEnd,
    /// Where they were asked for.
    pub logprobs: Option<ChoiceLogprobs>,
}

impl Choice {
    /// Appends a part.
    pub fn push(&mut self, delta: &ChatDelta) {
        match delta {
            ChatDelta::Reasoning(text) => self.reasoning.get_or_insert_default().push_str(text),
            ChatDelta::Content(text) => self.content.push_str(text),
            ChatDelta::Call(CallDelta::Begin { id, name, .. }) => {
                self.calls.push((id.clone(), name.clone(), String::new()));
            }
            ChatDelta::Call(CallDelta::Arguments { index, text }) => self.calls[*index].2.push_str(text),
        }
    }
}

/// An event of a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    Data(Value),
    /// With its name in a line of its own.
    Named(&'static str, Value),
    /// OpenAI's `[DONE]`.
    Done,
}

/// Writes replies in one API's form: either [`Reply::whole`], or the events of a stream, in the order of the methods.
pub trait Reply: Send + Sync {
    /// What a request's name begins with.
    fn id_prefix(&self) -> &'static str;

    /// All answers and the usage in one piece.
    fn whole(&mut self, head: &Head, choices: &[Choice], usage: &UsageCounts) -> Value;

    /// Before the first token: how many answers there will be, to how many tokens of prompts.
    fn begin(&mut self, head: &Head, answers: usize, prompt_tokens: u64) -> Vec<StreamEvent>;

    /// A part of an answer.
    fn delta(
        &mut self,
        head: &Head,
        index: usize,
        delta: &ChatDelta,
        logprobs: Option<&ChoiceLogprobs>,
    ) -> Vec<StreamEvent>;

    /// The end of an answer; the usage comes with the last one of a reply.
    fn finish(&mut self, head: &Head, index: usize, end: &AnswerEnd, usage: Option<&UsageCounts>) -> Vec<StreamEvent>;

    /// The end of a stream that fails.
    fn error(&mut self, head: &Head, error: &ApiError) -> Vec<StreamEvent>;
}

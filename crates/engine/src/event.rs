//! What a caller is told.

use crate::request::RequestId;

/// Something that happened to a request. Each request gets its tokens in order and then one [`Event::Finished`].
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A token was chosen.
    Token(Token),
    /// The prompt's embedding, `[D]`, of a request that asked for one.
    Embedding { id: RequestId, values: Vec<f32> },
    /// Nothing more will come.
    Finished(Finished),
}

/// A token of an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    pub id: RequestId,
    pub token: u32,
    /// What can be shown of the text since the last event: whole characters, and nothing that may yet turn out to be
    /// the beginning of a stop string. Empty without a tokenizer.
    pub text: String,
    /// Natural logarithm of the token's probability under the model's own distribution: temperature 1, before
    /// constraint, bias, penalties and filters. The bits of `Model::logprobs`. Where the request asked for it.
    pub logprob: Option<f32>,
    /// The likeliest tokens under the same distribution, the likeliest first, of equals the lowest id.
    pub top_logprobs: Vec<(u32, f32)>,
    /// Log-probabilities, under the same distribution, of the tokens that the request has scored, in its order.
    pub scored: Vec<f32>,
}

/// The end of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    pub id: RequestId,
    pub reason: FinishReason,
    pub usage: Usage,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token.
    Stop,
    /// One of the request's stop strings: which.
    StopString(usize),
    /// `max_tokens`, or no more room in context or cache.
    Length,
    /// The constraint is fulfilled and allows nothing more.
    Constraint,
    /// By [`crate::Engine::cancel`].
    Cancelled,
    /// The constraint could not be followed further: a token took more work than it may.
    ConstraintTooHard,
    /// The model's logits were not finite.
    Error,
}

/// What a request took, in tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub prompt: usize,
    /// Of the prompt, those that the prefix cache had when the request began.
    pub cached: usize,
    /// Of the answer, a stop token among them.
    pub generated: usize,
    /// Tokens that speculation proposed.
    pub drafted: usize,
    /// Of these, those that were right.
    pub accepted: usize,
}

/// How busy the engine is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Requests that have begun.
    pub running: usize,
    /// Requests that have not, in the order in which they will.
    pub waiting: Vec<RequestId>,
    /// Pages of the cache.
    pub pages: usize,
    /// Of these, those that hold nothing.
    pub pages_free: usize,
    /// Of these, those that hold a prefix that no running request uses.
    pub pages_cached: usize,
    pub page_tokens: usize,
    /// Since the engine was made.
    pub counters: Counters,
}

/// Sums since the engine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Forward passes.
    pub steps: u64,
    /// Tokens of prompts that began.
    pub prompt_tokens: u64,
    /// Of these, those found in the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of answers.
    pub generated_tokens: u64,
    /// Tokens that speculation proposed.
    pub drafted_tokens: u64,
    /// Of these, those that were right.
    pub accepted_tokens: u64,
    /// Tokens that went through the model: prompts, answers, wrong drafts, and what preemption made it compute again.
    pub computed_tokens: u64,
    /// Times that a request gave up its pages to an older one.
    pub preemptions: u64,
    /// Requests that ended.
    pub finished: u64,
}

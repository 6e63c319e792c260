//! What a caller asks for, and why it may be refused.

use std::sync::Arc;

use wels_model::adapter::Adapter;

use crate::picture::Picture;

/// Names a request as long as the engine lives; later ones are greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// A prompt to be continued.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What comes first; at least one token.
    pub prompt: Vec<u32>,
    /// The most tokens to add, at least 1. The model's context may end it sooner.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Which of several answers to the same request this is: another choice draws other random numbers.
    pub choice: u32,
    /// Tokens that end the answer. They come as an event of their own, without text. None by default: the model's
    /// `eos_ids` are for the caller to give.
    pub stop_tokens: Vec<u32>,
    /// Strings that end the answer; the text ends before the first of them.
    pub stop: Vec<String>,
    /// `Some(n)`: with each token its log-probability and those of the `n` likeliest tokens, at most
    /// [`Request::TOP_LOGPROBS_MAX`].
    pub logprobs: Option<usize>,
    /// Tokens whose log-probabilities come with each chosen token, at most [`Request::SCORED_MAX`]: the choices of a
    /// question.
    pub scored: Vec<u32>,
    /// What the answer must be, behind its thinking.
    pub constraint: Option<Constraint>,
    /// Whether the request goes on without its constraint where that cannot be compiled, or not followed further.
    pub constraint_may_fail: bool,
    /// How the model's thinking is told apart from its answer; `None`: all is answer.
    pub thinking: Option<Thinking>,
    /// What the prompt shows, in the order of their places.
    pub pictures: Vec<Picture>,
    /// `Some`: instead of an answer, a picture; its codes come as tokens.
    pub draw: Option<Draw>,
    /// `Some`: instead of an answer, an embedding of the prompt.
    pub embedding: Option<Pooling>,
    /// The adapter that the model answers with, loaded for this model.
    pub adapter: Option<Arc<Adapter>>,
    /// Greater goes first.
    pub priority: i32,
    /// Whose it is. Of equal priority, owners share what is scarce: each one's first request goes before anybody's
    /// second one, whoever came first. Those of one owner go in the order in which they came.
    pub owner: u64,
}

impl Request {
    /// The most alternatives that a request may ask for.
    pub const TOP_LOGPROBS_MAX: usize = 20;
    /// The most tokens that a request may have scored.
    pub const SCORED_MAX: usize = 256;
    /// The most stop strings.
    pub const STOP_MAX: usize = 16;
    /// The most bytes of a stop string.
    pub const STOP_BYTES_MAX: usize = 1024;

    /// A request with default settings: temperature 1, nothing filtered, no end but `max_tokens`.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Request {
            prompt,
            max_tokens,
            sampling: Sampling::default(),
            choice: 0,
            stop_tokens: Vec::new(),
            stop: Vec::new(),
            logprobs: None,
            scored: Vec::new(),
            constraint: None,
            constraint_may_fail: false,
            thinking: None,
            pictures: Vec::new(),
            draw: None,
            embedding: None,
            adapter: None,
            priority: 0,
            owner: 0,
        }
    }

    /// Everything that can be checked without the model.
    pub(crate) fn check(&self) -> Result<(), RequestError> {
        let parameter = |name, reason: String| Err(RequestError::Parameter { name, reason });
        if self.prompt.is_empty() {
            return Err(RequestError::EmptyPrompt);
        }
        if self.max_tokens == 0 {
            return parameter("max_tokens", "must be at least 1".into());
        }
        if self.stop.len() > Self::STOP_MAX {
            return parameter("stop", format!("{} strings, more than {}", self.stop.len(), Self::STOP_MAX));
        }
        if let Some(stop) = self.stop.iter().find(|stop| stop.is_empty() || stop.len() > Self::STOP_BYTES_MAX) {
            let limit = Self::STOP_BYTES_MAX;
            return parameter("stop", format!("a string of {} bytes, not of 1 to {limit}", stop.len()));
        }
        if self.logprobs.is_some_and(|top| top > Self::TOP_LOGPROBS_MAX) {
            return parameter("top_logprobs", format!("more than {}", Self::TOP_LOGPROBS_MAX));
        }
        if self.scored.len() > Self::SCORED_MAX {
            return parameter("scored", format!("{} tokens, more than {}", self.scored.len(), Self::SCORED_MAX));
        }
        self.sampling.check()
    }
}

/// What a request asks of a picture.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// The prompt without its words.
    pub unconditional: Vec<u32>,
    /// Scale of guidance; 1 for none.
    pub guidance: f32,
}

/// How the states of a prompt's tokens, as the head reads them, become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pooling {
    /// The last token's.
    Last,
    /// The mean of all tokens', added in their order. Nothing of the prompt is taken from the prefix cache.
    Mean,
}

/// The tokens around a model's thinking.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// An answer that begins with it begins by thinking.
    pub begin: Option<u32>,
    /// The answer begins behind it.
    pub end: u32,
    /// Whether the prompt ends within the thinking.
    pub begun: bool,
    /// The most tokens that are thought: the end follows them, whatever the model would have chosen.
    pub budget: Option<usize>,
}

/// How a token is chosen from the logits, in this order: constraint, bias, penalties, temperature, min-p, top-k, top-p.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// Logits are divided by it. 0 (and anything below [`Sampling::TEMPERATURE_LEAST`]) takes the likeliest token, of
    /// equals the one with the lowest id.
    pub temperature: f32,
    /// The `k` likeliest tokens alone; 0 for all.
    pub top_k: usize,
    /// The fewest likeliest tokens that together have this probability, at the temperature and among those left by
    /// `min_p` and `top_k`; 1 for all.
    pub top_p: f32,
    /// Tokens with at least this fraction of the likeliest token's probability, at the temperature; 0 for all. Comes
    /// before `top_k` and `top_p`, as in vLLM; in `transformers` and llama.cpp it comes behind them.
    pub min_p: f32,
    /// Logits of tokens in prompt and answer are divided by it if positive, else multiplied (Keskar et al., "CTRL",
    /// 2019; as `transformers` and llama.cpp do, here over the whole sequence); 1 for none.
    pub repetition_penalty: f32,
    /// Taken from the logit of each token that is in the answer (OpenAI's definition).
    pub presence_penalty: f32,
    /// Taken from the logit of a token for each time that it is in the answer (OpenAI's definition).
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens; −∞ forbids one.
    pub logit_bias: Vec<(u32, f32)>,
    /// Decides, with the position and the request's `choice`.
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        }
    }
}

impl Sampling {
    /// Temperatures below it count as 0.
    pub const TEMPERATURE_LEAST: f32 = 1e-5;
    /// The highest temperature.
    pub const TEMPERATURE_MAX: f32 = 100.0;

    /// The likeliest token each time.
    pub fn greedy() -> Self {
        Sampling { temperature: 0.0, ..Sampling::default() }
    }

    /// Whether no random number is drawn.
    pub fn is_greedy(&self) -> bool {
        self.temperature < Self::TEMPERATURE_LEAST
    }

    fn check(&self) -> Result<(), RequestError> {
        let within = |name, value: f32, least: f32, most: f32| match (least..=most).contains(&value) {
            true => Ok(()),
            false => Err(RequestError::Parameter { name, reason: format!("{value} is not within {least} and {most}") }),
        };
        within("temperature", self.temperature, 0.0, Self::TEMPERATURE_MAX)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repetition_penalty", self.repetition_penalty, 0.01, 100.0)?;
        within("presence_penalty", self.presence_penalty, -100.0, 100.0)?;
        within("frequency_penalty", self.frequency_penalty, -100.0, 100.0)?;
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || *bias == f32::INFINITY) {
            Some((token, bias)) => {
                Err(RequestError::Parameter { name: "logit_bias", reason: format!("{bias} for token {token}") })
            }
            None => Ok(()),
        }
    }
}

/// What an answer must be. Tokens that cannot lead there are never chosen; the answer ends when it is complete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Constraint {
    JsonObject,
    /// JSON that this schema (itself JSON) accepts.
    JsonSchema(String),
    /// What this regular expression matches, whole.
    Regex(String),
    /// What this grammar, in the Lark dialect of `llguidance`, derives.
    Lark(String),
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum RequestError {
    /// There is nothing to continue.
    #[error("the prompt has no token")]
    EmptyPrompt,
    /// No room for a prompt and one token more.
    #[error("the prompt has {tokens} tokens, and at most {limit} fit")]
    PromptTooLong {
        tokens: usize,
        /// By the model's context and the cache's size.
        limit: usize,
    },
    /// A token that the model does not know.
    #[error("token id {token} is not below the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The first one.
        token: u32,
        /// Of the model.
        vocab_size: usize,
    },
    /// A setting that makes no sense.
    #[error("{name}: {reason}")]
    Parameter {
        /// The field, as APIs call it.
        name: &'static str,
        reason: String,
    },
    /// A schema or grammar that is wrong, or too large to be followed.
    #[error("the constraint cannot be used: {reason}")]
    Constraint { reason: String },
    /// Too many requests wait already.
    #[error("{waiting} requests wait, which is the limit")]
    QueueFull {
        /// As many as the options allow, or as many of them as leave room for other owners.
        waiting: usize,
    },
}

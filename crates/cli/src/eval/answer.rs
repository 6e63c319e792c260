//! Who answers.

use std::fmt;
use std::ops::Range;
use std::time::Duration;

use anyhow::Result;
use serde_json::Value;
use wels_engine::Sampling;
use wels_tasks::Prompt;

/// What is asked, by numbers from 0.
pub trait Questions: Sync {
    /// The most examples before a question.
    fn shots(&self) -> usize;

    /// What the model is given, with so many examples.
    fn prompt(&self, number: usize, shots: usize) -> Prompt;

    /// What an answer that is read from likelihoods may go on with; `None` where answers are written.
    fn continuations(&self, number: usize) -> Option<Vec<String>>;

    /// Which of several answers to one question it is.
    fn sample(&self, number: usize) -> u32;

    /// How the answer is drawn.
    fn sampling(&self, number: usize, seed: u64) -> Sampling;

    /// The most tokens of a written answer.
    fn max_tokens(&self) -> usize;

    /// Strings that end a written answer.
    fn stops(&self) -> Vec<String>;
}

/// An answer to one question, not yet judged.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// SHA-256 of the text that was asked, as the model got it.
    pub prompt_sha256: String,
    /// Tokens of it, where they are known.
    pub prompt_tokens: Option<u64>,
    /// Examples in it.
    pub shots: usize,
    /// Whether it ended with an opened `<think>`.
    pub opened: bool,
    /// What was written.
    pub text: String,
    /// Log-probabilities of the choices, where they were asked for.
    pub choices: Vec<Option<f32>>,
    /// Tokens of the answer, where they are known.
    pub generated_tokens: Option<u64>,
    /// Why it ended: `stop`, `length`, …; `prompt too long`.
    pub end: &'static str,
    /// Tokens of the prompt that were computed for others before.
    pub cached_tokens: u64,
    /// From asking to the end of the answer, beside others.
    pub seconds: f64,
}

/// [`Answer::end`] of a question that does not fit, even without examples.
pub const TOO_LONG: &str = "prompt too long";

/// Takes answers, in any order, with their questions' numbers.
pub type AnswerSink<'a> = &'a mut dyn FnMut(usize, Answer) -> Result<()>;

/// A model, here or elsewhere.
pub trait Answerer {
    /// Answers the questions with these numbers; ends early if `stop` says so.
    fn answer(
        &mut self,
        questions: &dyn Questions,
        numbers: Range<usize>,
        stop: &dyn Fn() -> bool,
        hand_over: AnswerSink,
    ) -> Result<()>;

    /// Whether it takes conversations.
    fn can_chat(&self) -> bool;

    /// Whether it tells the likelihood of any continuation.
    fn can_score(&self) -> bool;

    /// What tells it from other models and other ways of holding it.
    fn identity(&self) -> &Value;

    /// What it did.
    fn work(&self, elapsed: Duration) -> Work;
}

/// Sums over all that was asked this time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    pub prompt_tokens: u64,
    /// Of these, those that earlier prompts shared.
    pub cached_tokens: u64,
    /// Of answers.
    pub generated_tokens: u64,
    /// From the first question to the last answer.
    pub seconds: f64,
    /// Answers whose tokens, as an endpoint counts them, cannot be.
    pub implausible: u64,
    /// Requests that were made again: refused for now, or without an answer in time.
    pub repeated: u64,
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Work { prompt_tokens, cached_tokens, generated_tokens, seconds, implausible, repeated } = self;
        let share = *cached_tokens as f64 / (*prompt_tokens).max(1) as f64;
        write!(f, "{seconds:.1} s; {prompt_tokens} tokens of prompts, {:.1}% of them shared", share * 100.0)?;
        write!(f, " and computed once; {generated_tokens} tokens of answers")?;
        if *repeated > 0 {
            write!(f, "; {repeated} requests were made again")?;
        }
        if *implausible > 0 {
            write!(f, "; the endpoint's counts of {implausible} answers cannot be right")?;
        }
        Ok(())
    }
}

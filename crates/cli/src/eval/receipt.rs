//! A receipt: what an evaluation keeps of one answer.

use serde::{Deserialize, Serialize};

/// What is kept of one answer. The same in every run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Its id.
    pub item: String,
    /// Which of several answers to it, from 0.
    pub sample: u32,
    /// As in the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// Of the text that was asked.
    pub prompt_sha256: String,
    /// `None` where they are not known.
    pub prompt_tokens: Option<u64>,
    /// Examples in the prompt; fewer than asked for where they did not fit.
    pub shots: usize,
    /// Log-probabilities of the choices, natural logarithms.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub choices: Vec<Option<f32>>,
    /// What was written, or the letter that is likeliest.
    pub output: String,
    /// The answer found in it.
    pub answer: Option<String>,
    /// The right one, where it can be told in a line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<String>,
    /// The verdict.
    pub correct: bool,
    /// In words.
    pub verdict: String,
    /// `None` where they are not known.
    pub generated_tokens: Option<u64>,
    /// Why the answer ended.
    pub end: String,
}

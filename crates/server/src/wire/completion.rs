//! `completions`: text goes on, or is filled in between a prefix and a suffix.

use serde_json::Value;

use super::fields::{Fields, parse_object, wrong_type};
use super::sampling::{self, sampling_keys};
use super::{ApiError, SamplingFields, StreamMode};

/// Prompts of one request.
const PROMPTS_MAX: usize = 16;

/// A request for what comes after a text.
#[derive(Clone, Debug, PartialEq)]
pub struct CompletionRequest {
    pub model: String,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// What comes after the completion.
    pub suffix: Option<String>,
    /// How tokens are chosen.
    pub sampling: SamplingFields,
    /// How the reply comes.
    pub stream: StreamMode,
    /// With each token, its log-probability and those of so many likeliest ones.
    pub logprobs: Option<usize>,
}

/// What is to be continued.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    Text(String),
    /// Token ids, taken as they are.
    Ids(Vec<u32>),
}

impl CompletionRequest {
    /// Reads a body.
    pub fn parse(body: &[u8]) -> Result<CompletionRequest, ApiError> {
        let mut fields = parse_object(body, sampling_keys!["prompt", "suffix", "logprobs", "echo", "best_of"], &[])?;
        let fields = &mut fields;
        let model = sampling::model(fields)?;
        let prompts = prompts(fields, "prompt", PROMPTS_MAX)?;
        let suffix = fields.string("suffix")?;
        if suffix.is_some() && prompts.iter().any(|prompt| matches!(prompt, Prompt::Ids(_))) {
            return Err(fields.error("suffix", "A suffix goes with a prompt of text."));
        }
        if fields.bool("echo")? == Some(true) {
            return Err(fields.error("echo", "The prompt is not repeated here."));
        }
        let sampling = SamplingFields::take(fields)?;
        if fields.int("best_of", 1, 16)?.is_some_and(|best| best != i64::from(sampling.n)) {
            return Err(
                fields.error("best_of", "Every answer is given: leave `best_of` out, or give `n` the same value.")
            );
        }
        Ok(CompletionRequest {
            model,
            prompts,
            suffix,
            sampling,
            stream: sampling::stream(fields)?,
            logprobs: fields.int("logprobs", 0, 20)?.map(|top| top as usize),
        })
    }
}

/// One text or several, as strings or as token ids; at most `most` of them.
pub(super) fn prompts(fields: &mut Fields, key: &str, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let prompt = fields.take(key);
    let prompt = fields.required(key, prompt)?;
    let name = fields.name(key);
    let items = match prompt {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(wrong_type(name, "a string or an array", &other)),
    };
    if items.first().is_some_and(Value::is_number) {
        return Ok(vec![Prompt::Ids(ids(items, &name)?)]);
    }
    if items.is_empty() || items.len() > most {
        return Err(ApiError::param(name, format!("There have to be 1 to {most}.")));
    }
    items
        .into_iter()
        .map(|item| match item {
            Value::String(text) => Ok(Prompt::Text(text)),
            Value::Array(items) => Ok(Prompt::Ids(ids(items, &name)?)),
            other => Err(wrong_type(name.clone(), "made of strings or of arrays of token ids", &other)),
        })
        .collect()
}

fn ids(items: Vec<Value>, name: &str) -> Result<Vec<u32>, ApiError> {
    items
        .iter()
        .map(|item| item.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect::<Option<Vec<u32>>>()
        .ok_or_else(|| ApiError::param(name, "A token id is an integer that is not negative."))
}

//! What chat and plain completions have in common.

use serde_json::Value;
use wels_engine::Request;

use super::ApiError;
use super::fields::{Fields, string, wrong_type};

/// Stop strings of one request.
const STOPS_MAX: usize = 16;
/// Answers to one request.
const CHOICES_MAX: i64 = 16;

/// How a reply comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamMode {
    /// In one piece.
    Whole,
    /// As server-sent events.
    Events {
        /// With a last event that has the usage and no choice.
        include_usage: bool,
    },
}

/// What an answer has to be.
#[derive(Clone, Debug, PartialEq)]
pub enum Format {
    /// Anything.
    Text,
    JsonObject,
    JsonSchema(Value),
}

/// How tokens are chosen, how many, and in how many answers.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplingFields {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// 1 for all.
    pub top_p: f32,
    /// 0 for all.
    pub top_k: usize,
    /// 0 for all.
    pub min_p: f32,
    /// OpenAI's.
    pub presence_penalty: f32,
    /// OpenAI's.
    pub frequency_penalty: f32,
    /// 1 for none.
    pub repetition_penalty: f32,
    /// Token and bias.
    pub logit_bias: Vec<(u32, f32)>,
    /// `None`: the server draws one.
    pub seed: Option<u64>,
    /// Strings that end an answer.
    pub stop: Vec<String>,
    /// The most tokens; `None`: the server's default.
    pub max_tokens: Option<usize>,
    /// Answers.
    pub n: u32,
}

impl Default for SamplingFields {
    /// OpenAI's.
    fn default() -> SamplingFields {
        SamplingFields {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: None,
            stop: Vec::new(),
            max_tokens: None,
            n: 1,
        }
    }
}

/// The keys that [`SamplingFields::take`] takes, for both endpoints' lists.
macro_rules! sampling_keys {
    ($($more:literal),* $(,)?) => {
        &[
            "model", "temperature", "top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty",
            "repetition_penalty", "logit_bias", "seed", "stop", "max_tokens", "n", "stream", "stream_options", "user",
            $($more),*
        ]
    };
}
pub(super) use sampling_keys;

impl SamplingFields {
    pub(super) fn take(fields: &mut Fields) -> Result<SamplingFields, ApiError> {
        fields.string("user")?; // a name for the client's own records
        Ok(SamplingFields {
            min_p: fields.number("min_p", 0.0, 1.0)?.unwrap_or(0.0),
            presence_penalty: fields.number("presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: fields.number("frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            repetition_penalty: fields.number("repetition_penalty", 0.01, 10.0)?.unwrap_or(1.0),
            logit_bias: logit_bias(fields)?,
            stop: stops(fields, "stop")?,
            n: fields.int("n", 1, CHOICES_MAX)?.unwrap_or(1) as u32,
            ..SamplingFields::common(fields, "max_tokens")?
        })
    }

    /// What all APIs have; `limit` is the key of the most tokens.
    pub(super) fn common(fields: &mut Fields, limit: &str) -> Result<SamplingFields, ApiError> {
        Ok(SamplingFields {
            temperature: fields.number("temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: fields.number("top_p", 0.0, 1.0)?.unwrap_or(1.0),
            top_k: fields.int("top_k", 0, i64::from(i32::MAX))?.unwrap_or(0) as usize,
            seed: fields.int("seed", i64::MIN, i64::MAX)?.map(|seed| seed as u64),
            max_tokens: fields.int(limit, 1, i64::from(i32::MAX))?.map(|count| count as usize),
            ..SamplingFields::default()
        })
    }
}

/// The model's name, which is required.
pub(super) fn model(fields: &mut Fields) -> Result<String, ApiError> {
    let model = fields.string("model")?;
    fields.required("model", model)
}

pub(super) fn stream(fields: &mut Fields) -> Result<StreamMode, ApiError> {
    let streams = fields.bool("stream")?.unwrap_or(false);
    let Some(options) = fields.take("stream_options") else {
        return Ok(if streams { StreamMode::Events { include_usage: false } } else { StreamMode::Whole });
    };
    if !streams {
        return Err(fields.error("stream_options", "`stream_options` goes with `stream: true` only."));
    }
    let mut options = Fields::of(options, fields.name("stream_options"), &["include_usage", "include_obfuscation"])?;
    options.ignore(&["include_obfuscation"]);
    Ok(StreamMode::Events { include_usage: options.bool("include_usage")?.unwrap_or(false) })
}

/// Strings that end an answer.
pub(super) fn stops(fields: &mut Fields, key: &str) -> Result<Vec<String>, ApiError> {
    let name = fields.name(key);
    let stops = match fields.take(key) {
        None => return Ok(Vec::new()),
        Some(Value::String(stop)) => vec![stop],
        Some(Value::Array(stops)) => {
            stops.into_iter().map(|stop| string(stop, name.clone())).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(wrong_type(name, "a string or an array of strings", &other)),
    };
    if stops.len() > STOPS_MAX {
        return Err(ApiError::param(name, format!("{} stop strings, and {STOPS_MAX} are the most.", stops.len())));
    }
    if stops.iter().any(String::is_empty) {
        return Err(ApiError::param(name, "An empty string would stop everything."));
    }
    if let Some(stop) = stops.iter().find(|stop| stop.len() > Request::STOP_BYTES_MAX) {
        let limit = Request::STOP_BYTES_MAX;
        return Err(ApiError::param(name, format!("A stop string of {} bytes, and {limit} are the most.", stop.len())));
    }
    Ok(stops)
}

fn logit_bias(fields: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let name = fields.name("logit_bias");
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let Value::Object(map) = value else { return Err(wrong_type(name, "an object", &value)) };
    map.into_iter()
        .map(|(token, bias)| {
            let name = format!("{name}.{token}");
            let id = token.parse().map_err(|_| ApiError::param(&name, format!("`{token}` is no token id.")))?;
            match bias.as_f64() {
                Some(bias) if (-100.0..=100.0).contains(&bias) => Ok((id, bias as f32)),
                _ => Err(ApiError::param(name, "A bias is a number between -100 and 100.")),
            }
        })
        .collect()
}

//! `embeddings`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::completion::{Prompt, prompts};
use super::fields::parse_object;
use super::{ApiError, sampling};
use crate::money::Nanos;

/// Texts of one request.
const INPUTS_MAX: usize = 2048;

/// A request for the vectors of texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbeddingRequest {
    pub model: String,
    /// At least one.
    pub inputs: Vec<Prompt>,
    /// Whether numbers come as the base64 of little-endian f32, as OpenAI's clients ask for, or as JSON.
    base64: bool,
}

impl EmbeddingRequest {
    /// Reads a body. `width`: how many numbers the vectors of a model have.
    ///
    /// # Errors
    /// 400, with the parameter that is wrong.
    pub fn parse(body: &[u8], width: impl Fn(&str) -> Result<usize, ApiError>) -> Result<EmbeddingRequest, ApiError> {
        let mut fields = parse_object(body, &["model", "input", "encoding_format", "dimensions"], &["user"])?;
        let fields = &mut fields;
        let model = sampling::model(fields)?;
        let width = width(&model)?;
        let inputs = prompts(fields, "input", INPUTS_MAX)?;
        let empty = |input: &Prompt| match input {
            Prompt::Text(text) => text.is_empty(),
            Prompt::Ids(ids) => ids.is_empty(),
        };
        if inputs.iter().any(empty) {
            return Err(fields.error("input", "An empty text has no vector."));
        }
        if let Some(dimensions) = fields.int("dimensions", 1, i64::MAX)?.filter(|count| *count != width as i64) {
            let message = format!("Vectors of this model have {width} numbers, and cannot be cut to {dimensions}.");
            return Err(fields.error("dimensions", message));
        }
        let base64 = match fields.string("encoding_format")?.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(_) => return Err(fields.error("encoding_format", "Formats are `float` and `base64`.")),
        };
        Ok(EmbeddingRequest { model, inputs, base64 })
    }

    /// The whole reply.
    pub fn reply(&self, vectors: &[Vec<f32>], tokens: u64, cost: Nanos) -> Value {
        let vector = |values: &Vec<f32>| match self.base64 {
            true => STANDARD.encode(values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>()).into(),
            false => json!(values),
        };
        let entry = |(index, values)| json!({"object": "embedding", "index": index, "embedding": vector(values)});
        let data: Vec<Value> = vectors.iter().enumerate().map(entry).collect();
        let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens, "cost": cost.to_f64(),
            "cost_exact": cost.to_string()});
        json!({"object": "list", "data": data, "model": self.model, "usage": usage})
    }
}

//! `images/generations`.

use serde_json::{Value, json};

use super::fields::parse_object;
use super::{ApiError, sampling};

/// Pictures of one request, as OpenAI has it.
const N_MAX: i64 = 10;
/// Characters of a prompt.
const PROMPT_MAX: usize = 32_000;

/// What asks for nothing that a local server could fail to do.
const IGNORED: &[&str] = &["user", "quality", "style", "moderation", "background", "output_compression"];

/// A request for pictures.
#[derive(Clone, Debug, PartialEq)]
pub struct ImageRequest {
    pub model: String,
    pub prompt: String,
    pub n: u32,
    /// Of the first picture; the next one has the next. `None`: any.
    pub seed: Option<u64>,
    /// Scale of guidance.
    pub cfg: f32,
    pub temperature: f32,
}

impl ImageRequest {
    /// Reads a body. `side`: of the pictures of a model, in pixels, or why it draws none.
    ///
    /// # Errors
    /// 400, with the parameter that is wrong.
    pub fn parse(body: &[u8], side: impl Fn(&str) -> Result<usize, ApiError>) -> Result<ImageRequest, ApiError> {
        let known = &[
            "model",
            "prompt",
            "n",
            "size",
            "response_format",
            "output_format",
            "stream",
            "partial_images",
            "seed",
            "cfg",
            "temperature",
        ];
        let mut fields = parse_object(body, known, IGNORED)?;
        let fields = &mut fields;
        fields.ignore(IGNORED);
        fields.refuse("stream", "Pictures are not streamed here.")?;
        fields.int("partial_images", 0, 0)?;
        let model = sampling::model(fields)?;
        let side = side(&model)?;
        let prompt = fields.string("prompt")?;
        let prompt = fields.required("prompt", prompt)?;
        if prompt.trim().is_empty() || prompt.chars().count() > PROMPT_MAX {
            return Err(fields.error("prompt", format!("A prompt has 1 to {PROMPT_MAX} characters.")));
        }
        let own = format!("{side}x{side}");
        if let Some(size) = fields.string("size")?.filter(|size| *size != own && size != "auto") {
            let message = format!("The pictures of this model are {own}, not {size}.");
            return Err(fields.error("size", message));
        }
        if let Some(format) = fields.string("response_format")?.filter(|format| format != "b64_json") {
            let message = format!("Pictures come as `b64_json`; nothing is kept here that a `{format}` could lead to.");
            return Err(fields.error("response_format", message));
        }
        if let Some(format) = fields.string("output_format")?.filter(|format| format != "png") {
            return Err(fields.error("output_format", format!("Pictures are `png` here, not `{format}`.")));
        }
        Ok(ImageRequest {
            model,
            prompt,
            n: fields.int("n", 1, N_MAX)?.unwrap_or(1) as u32,
            seed: fields.int("seed", 0, i64::MAX)?.map(|seed| seed as u64),
            cfg: fields.number("cfg", 0.0, 100.0)?.unwrap_or(5.0),
            temperature: fields.number("temperature", 0.0, 100.0)?.unwrap_or(1.0),
        })
    }
}

/// The whole reply, of pictures in base64 and the seed of each.
pub fn images_reply(created: i64, side: usize, pictures: &[(String, u64)], usage: Value) -> Value {
    let picture = |(b64_json, seed): &(String, u64)| json!({"b64_json": b64_json, "seed": seed});
    let data: Vec<Value> = pictures.iter().map(picture).collect();
    json!({"created": created, "data": data, "output_format": "png", "size": format!("{side}x{side}"), "usage": usage})
}

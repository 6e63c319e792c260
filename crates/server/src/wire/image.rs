//! `images/generations`.

use serde_json::{Value, json};

use super::fields::{Fields, parse_object};
use super::{ApiError, StreamEvent, sampling};

/// Pictures of one request, as OpenAI has it.
const N_MAX: i64 = 10;
/// Characters of a prompt.
const PROMPT_MAX: usize = 32_000;
/// Unfinished states of a picture that a stream may show, as OpenAI has it.
const PARTIAL_MAX: i64 = 3;

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
    /// Whether each picture is sent as soon as it is there.
    pub streams: bool,
    /// How often a picture is sent before it is finished; only in streams.
    pub partial_images: u32,
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
        let (streams, partial_images) = stream(fields)?;
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
            streams,
            partial_images,
        })
    }
}

fn stream(fields: &mut Fields) -> Result<(bool, u32), ApiError> {
    let streams = fields.bool("stream")?.unwrap_or(false);
    let partial_images = fields.int("partial_images", 0, PARTIAL_MAX)?.unwrap_or(0) as u32;
    match !streams && partial_images > 0 {
        true => Err(fields.error("partial_images", "Unfinished pictures come in streams alone: ask with `stream`.")),
        false => Ok((streams, partial_images)),
    }
}

/// What all pictures of a reply have in common.
#[derive(Clone, Copy, Debug)]
pub struct ImageHead {
    /// Seconds since 1970.
    pub created: i64,
    /// Of each picture, in pixels.
    pub side: usize,
}

impl ImageHead {
    fn size(self) -> String {
        format!("{0}x{0}", self.side)
    }

    /// The whole reply, of pictures in base64 and the seed of each.
    pub fn whole(self, pictures: &[(String, u64)], usage: Value) -> Value {
        let picture = |(b64_json, seed): &(String, u64)| json!({"b64_json": b64_json, "seed": seed});
        let data: Vec<Value> = pictures.iter().map(picture).collect();
        json!({"created": self.created, "data": data, "output_format": "png", "size": self.size(), "usage": usage})
    }

    /// Picture `index` of the request, unfinished, for the `number`th time (both from 0): what `codes` of its codes
    /// tell.
    pub fn partial(self, index: usize, seed: u64, number: u32, codes: usize, b64_json: &str) -> StreamEvent {
        let more = json!({"partial_image_index": number, "codes": codes});
        self.event("image_generation.partial_image", index, seed, b64_json, more)
    }

    /// Picture `index` of the request, finished. `usage`: its own, the prompt's with the picture that is sent first.
    pub fn completed(self, index: usize, seed: u64, b64_json: &str, usage: Value) -> StreamEvent {
        self.event("image_generation.completed", index, seed, b64_json, json!({"usage": usage}))
    }

    fn event(self, name: &'static str, index: usize, seed: u64, b64_json: &str, more: Value) -> StreamEvent {
        let mut event = json!({
            "type": name, "created_at": self.created, "b64_json": b64_json, "size": self.size(), "quality": "auto",
            "background": "opaque", "output_format": "png", "index": index, "seed": seed,
        });
        event.as_object_mut().expect("an object").extend(more.as_object().cloned().unwrap_or_default());
        StreamEvent::Named(name, event)
    }
}

/// The end of a stream that failed.
pub fn images_error(error: &ApiError) -> StreamEvent {
    let mut event = error.to_json();
    event["type"] = "error".into();
    StreamEvent::Named("error", event)
}

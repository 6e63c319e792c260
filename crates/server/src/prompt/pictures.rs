//! Pictures that a model sees and draws, in its prompts.

use serde_json::{Value, json};
use wels_data::Message;
use wels_data::chat::PictureTokens;
use wels_engine::{DRAW_PROMPT_MAX, Draw, Picture, Preprocessing, Request, Sampling, image, without_words};

use super::{PromptLimit, ServedModel};
use crate::wire::{ApiError, ImageRequest, PICTURE, PictureFile};

/// What a model that sees and draws makes of pictures.
#[derive(Clone, Debug)]
pub struct ServedPictures {
    /// What a picture stands between.
    pub around: PictureTokens,
    /// The token in whose places a picture's features stand.
    pub place: u32,
    /// How it is spelled.
    pub place_text: String,
    /// Places of a picture that is seen.
    pub places: usize,
    /// How a picture that is seen becomes pixels.
    pub preprocessing: Preprocessing,
    /// Whether the chat template takes contents as parts, and nothing of a string.
    pub takes_parts: bool,
    /// Codes of a picture that is drawn.
    pub codes: usize,
    /// Side of it, in pixels.
    pub side: usize,
}

impl ServedPictures {
    /// A message as the template takes it: pictures as parts of their own, or spelled out in lines of their own.
    pub(super) fn message(&self, message: &Message) -> Message {
        let Some(text) = message.content.as_str() else { return message.clone() };
        let content = if self.takes_parts { parts(text) } else { self.lines(text).into() };
        Message { content, ..message.clone() }
    }

    fn lines(&self, text: &str) -> String {
        pieces(text).map(|piece| piece.unwrap_or(&self.place_text)).collect::<Vec<&str>>().join("\n")
    }

    /// Makes of each picture's one place as many as it takes, with the tokens around them.
    pub(super) fn widen(&self, ids: &mut Vec<u32>) {
        let PictureTokens { begin, end, .. } = self.around;
        let widened = ids.drain(..).flat_map(|id| match id == self.place {
            true => [vec![begin], vec![id; self.places], vec![end]].concat(),
            false => vec![id],
        });
        *ids = widened.collect();
    }

    /// The pictures in their places of a prompt.
    pub(super) fn place(&self, files: &[PictureFile], ids: &[u32]) -> Result<Vec<Picture>, ApiError> {
        let is_first = |at: &usize| ids[*at] == self.place && (*at == 0 || ids[at - 1] != self.place);
        let places: Vec<usize> = (0..ids.len()).filter(is_first).collect();
        let count = ids.iter().filter(|id| **id == self.place).count();
        if places.len() != files.len() || count != files.len() * self.places {
            let message = format!(
                "The conversation has {} pictures, and its text more or fewer places for them: it may spell out `{}` or \
                 the character U+FFFC, which stand for pictures.",
                files.len(),
                self.place_text
            );
            return Err(ApiError::param("messages", message));
        }
        let picture = |(file, at): (&PictureFile, usize)| {
            let decoded = image::decode(file.bytes()?).map_err(|error| refused(file, &error.to_string()))?;
            Ok(Picture::new(at, self.preprocessing.pixels(&decoded)))
        };
        files.iter().zip(places).map(picture).collect()
    }
}

fn refused(file: &PictureFile, error: &str) -> ApiError {
    let mut message = error.to_owned();
    message[..1].make_ascii_uppercase();
    ApiError::param(file.param.clone(), message + ".")
}

/// A text's pieces, `None` for pictures, without the line breaks around these.
fn pieces(text: &str) -> impl Iterator<Item = Option<&str>> {
    let last = text.matches(PICTURE).count();
    text.split(PICTURE).enumerate().flat_map(move |(at, piece)| {
        let piece = if at > 0 { piece.strip_prefix('\n').unwrap_or(piece) } else { piece };
        let piece = if at < last { piece.strip_suffix('\n').unwrap_or(piece) } else { piece };
        let words = (!piece.is_empty() || last == 0).then_some(Some(piece));
        words.into_iter().chain((at < last).then_some(None))
    })
}

fn parts(text: &str) -> Value {
    let part = |piece: Option<&str>| match piece {
        Some(text) => json!({"type": "text", "text": text}),
        None => json!({"type": "image"}),
    };
    pieces(text).map(part).collect()
}

impl ServedModel {
    /// Plans the pictures of a prompt.
    ///
    /// # Errors
    /// 400 for a model that draws none, and for a prompt that is too long; what `prompt_limit` says.
    pub fn plan_draw(&self, request: &ImageRequest, prompt_limit: &PromptLimit) -> Result<Vec<Request>, ApiError> {
        let Some(pictures) = &self.pictures else {
            return Err(ApiError::param("model", "This model draws no pictures."));
        };
        let tokens = pictures.around.draw_prompt(&self.tokenizer, self.template.as_ref(), &request.prompt);
        let tokens = tokens.map_err(|error| ApiError::param("prompt", error.to_string()))?;
        let limit = self.context.saturating_sub(pictures.codes).min(DRAW_PROMPT_MAX);
        if tokens.len() > limit {
            let message = format!("The prompt has {} tokens, and at most {limit} fit beside a picture.", tokens.len());
            return Err(ApiError { param: Some("prompt".to_owned()), ..ApiError::context_length(message) });
        }
        if tokens.len() > prompt_limit.tokens {
            return Err(prompt_limit.beyond("prompt"));
        }
        let seed = match request.seed {
            Some(seed) => seed,
            // Programs whose numbers are f64 can give it back.
            None => getrandom::u64().map_err(|_| ApiError::internal("The system has no random numbers."))? >> 11,
        };
        let draw = Draw { unconditional: without_words(&tokens, pictures.around.pad), guidance: request.cfg };
        let template = Request {
            sampling: Sampling { temperature: request.temperature, seed, ..Sampling::default() },
            draw: Some(draw),
            ..Request::new(tokens, pictures.codes)
        };
        Ok((0..request.n).map(|choice| Request { choice, ..template.clone() }).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_stand_in_lines_or_parts_of_their_own() {
        let of = |text: &str| pieces(text).map(|piece| piece.map(str::to_owned)).collect::<Vec<_>>();
        let words = |text: &str| Some(text.to_owned());
        assert_eq!(of("a\nb"), [words("a\nb")]);
        assert_eq!(of(""), [words("")]);
        assert_eq!(of("\u{fffc}what?"), [None, words("what?")]);
        assert_eq!(of("a\n\u{fffc}\u{fffc}\n\nb\u{fffc}"), [words("a"), None, None, words("\nb"), None]);
        assert_eq!(parts("\u{fffc}x"), json!([{"type": "image"}, {"type": "text", "text": "x"}]));
    }
}

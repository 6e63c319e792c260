//! Pictures in conversations, as the three APIs send them: OpenAI's `image_url` and `input_image` parts, Anthropic's
//! `image` blocks. They are taken out before messages are read, and a character stands in their places.

use base64::Engine as _;
use base64::alphabet::STANDARD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Value, json};
use wels_data::Message;

use super::ApiError;
use super::fields::Fields;

/// Stands in the text of a message in the place of a picture: Unicode's "object replacement character".
pub const PICTURE: char = '\u{fffc}';
/// Pictures of one request.
const PICTURES_MAX: usize = 16;

/// A picture of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureFile {
    /// The parameter that has it.
    pub param: String,
    pub source: PictureSource,
}

/// Where its file is.
#[derive(Clone, PartialEq, Eq)]
pub enum PictureSource {
    /// It was sent.
    Bytes(Vec<u8>),
    /// At an address of `http` or `https`, as it was written.
    Address(String),
}

impl std::fmt::Debug for PictureSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PictureSource::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            PictureSource::Address(_) => f.write_str("an address"),
        }
    }
}

impl PictureFile {
    /// Where it is to be fetched from.
    pub fn address(&self) -> Option<&str> {
        match &self.source {
            PictureSource::Address(address) => Some(address),
            PictureSource::Bytes(_) => None,
        }
    }

    /// Its file.
    ///
    /// # Errors
    /// 400 if there is an address in its place, and it was not fetched.
    pub fn bytes(&self) -> Result<&[u8], ApiError> {
        match &self.source {
            PictureSource::Bytes(bytes) => Ok(bytes),
            PictureSource::Address(_) => Err(ApiError::param(self.param.clone(), NOT_FETCHED)),
        }
    }
}

/// Takes the pictures of users' messages out of the list under a key; a part of text is left in the place of each.
pub(super) fn take(fields: &mut Fields, key: &str) -> Result<Vec<PictureFile>, ApiError> {
    let name = fields.name(key);
    let mut pictures = Vec::new();
    let messages = fields.get_mut(key).and_then(Value::as_array_mut);
    for (at, message) in messages.into_iter().flatten().enumerate() {
        if message["role"] == "user" {
            // Of what is no object nothing is there to be taken.
            let content = message.get_mut("content");
            of_content(content, &format!("{name}[{at}].content"), &mut pictures)?;
        }
    }
    Ok(pictures)
}

/// The pictures of messages in OpenAI's form, whose contents become strings.
///
/// # Errors
/// As for a request.
pub fn take_pictures(messages: &mut [Message]) -> Result<Vec<PictureFile>, ApiError> {
    let mut pictures = Vec::new();
    for (at, message) in messages.iter_mut().enumerate() {
        of_content(Some(&mut message.content), &format!("messages[{at}].content"), &mut pictures)?;
        if let Value::Array(parts) = &message.content {
            let text: String = parts.iter().filter_map(|part| part["text"].as_str()).collect();
            message.content = text.into();
        }
    }
    Ok(pictures)
}

fn of_content(content: Option<&mut Value>, name: &str, pictures: &mut Vec<PictureFile>) -> Result<(), ApiError> {
    let parts = content.and_then(Value::as_array_mut);
    for (at, part) in parts.into_iter().flatten().enumerate() {
        let path = format!("{name}[{at}]");
        let source = match part["type"].as_str() {
            Some("image_url") => image_url(part.take(), &path)?,
            Some("input_image") => input_image(part.take(), &path)?,
            Some("image") => block(part.take(), &path)?,
            _ => continue,
        };
        if pictures.len() == PICTURES_MAX {
            return Err(ApiError::param(path, format!("A request may have {PICTURES_MAX} pictures.")));
        }
        pictures.push(PictureFile { param: path, source });
        *part = json!({"type": "text", "text": PICTURE});
    }
    Ok(())
}

/// `{"type": "image_url", "image_url": {"url": "data:…"}}`.
fn image_url(part: Value, path: &str) -> Result<PictureSource, ApiError> {
    let mut part = Fields::of(part, path.to_owned(), &["type", "image_url", "cache_control"])?;
    let image = part.take("image_url");
    let image = part.required("image_url", image)?;
    if let Value::String(url) = image {
        return source(url, part.name("image_url")); // as some clients write it
    }
    let mut image = Fields::of(image, part.name("image_url"), &["url", "detail"])?;
    let url = image.string("url")?;
    source(image.required("url", url)?, image.name("url"))
}

/// `{"type": "input_image", "image_url": "data:…"}`.
fn input_image(part: Value, path: &str) -> Result<PictureSource, ApiError> {
    let known = &["type", "image_url", "detail", "file_id", "prompt_cache_breakpoint"];
    let mut part = Fields::of(part, path.to_owned(), known)?;
    part.refuse("file_id", "Nothing is stored here: send the picture itself as a data: URL.")?;
    let url = part.string("image_url")?;
    source(part.required("image_url", url)?, part.name("image_url"))
}

/// `{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "…"}}`, or `"type": "url"`.
fn block(part: Value, path: &str) -> Result<PictureSource, ApiError> {
    let mut part = Fields::of(part, path.to_owned(), &["type", "source", "cache_control"])?;
    let source = part.take("source");
    let source = part.required("source", source)?;
    let mut fields = Fields::of(source, part.name("source"), &["type", "media_type", "data", "url", "file_id"])?;
    let kind = fields.string("type")?;
    match fields.required("type", kind)?.as_str() {
        "base64" => {}
        "url" => {
            let url = fields.string("url")?;
            return self::source(fields.required("url", url)?, fields.name("url"));
        }
        other => return Err(fields.error("type", format!("`{other}` is not known here: send `base64`."))),
    }
    fields.string("media_type")?; // the bytes say what they are
    let data = fields.string("data")?;
    decoded(&fields.required("data", data)?, fields.name("data")).map(PictureSource::Bytes)
}

/// What is said of an address where none is fetched.
pub const NOT_FETCHED: &str = "Addresses are not fetched here: send the picture itself, as a data: URL or base64.";

/// What a URL is, or holds.
fn source(url: String, name: String) -> Result<PictureSource, ApiError> {
    let is_scheme = |scheme: &str| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
    match url.split_once("://").is_some_and(|(scheme, _)| is_scheme(scheme)) {
        true => Ok(PictureSource::Address(url)),
        false => data_url(&url, name).map(PictureSource::Bytes),
    }
}

/// The bytes of `data:image/png;base64,…` (RFC 2397). What they are, they say themselves.
fn data_url(url: &str, name: String) -> Result<Vec<u8>, ApiError> {
    let scheme = url.get(..5).filter(|scheme| scheme.eq_ignore_ascii_case("data:"));
    if scheme.is_none() {
        let is_address =
            url.split_once(':').is_some_and(|(scheme, _)| scheme.chars().all(|c| c.is_ascii_alphanumeric()));
        let message = if is_address { NOT_FETCHED } else { "This is no data: URL, as data:image/png;base64,…" };
        return Err(ApiError::param(name, message));
    }
    let Some((kind, data)) = url[5..].split_once(',') else {
        return Err(ApiError::param(name, "The data: URL has no comma, behind which its data begin."));
    };
    match kind.rsplit_once(';') {
        Some((_, encoding)) if encoding.trim().eq_ignore_ascii_case("base64") => decoded(data, name),
        _ => Err(ApiError::param(name, "The data: URL is not in base64: write data:image/png;base64,…")),
    }
}

fn decoded(data: &str, name: String) -> Result<Vec<u8>, ApiError> {
    let config = GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    match GeneralPurpose::new(&STANDARD, config).decode(data) {
        Ok(bytes) if bytes.is_empty() => Err(ApiError::param(name, "The picture has no bytes.")),
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(ApiError::param(name, format!("The picture is not base64: {error}."))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message_of(url: &str) -> String {
        data_url(url, "url".into()).expect_err("an error").message
    }

    #[test]
    fn a_data_url_has_its_bytes() {
        for url in [
            "data:image/png;base64,AAEC",
            "DATA:image/jpeg;charset=utf-8;BASE64,AAEC",
            "data:;base64,AAEC",
            "data:image/png; base64,AAEC",
        ] {
            assert_eq!(data_url(url, String::new()).expect(url), [0, 1, 2], "{url}");
        }
        assert_eq!(data_url("data:;base64,AAE=", String::new()).unwrap(), [0, 1]);
        assert_eq!(data_url("data:;base64,AAE", String::new()).unwrap(), [0, 1]);
    }

    #[test]
    fn what_is_no_data_url_is_refused_in_words() {
        for url in ["file:///etc/passwd", "ftp://a/b", "gopher://a", "httpx://a"] {
            assert_eq!(message_of(url), NOT_FETCHED, "{url}");
        }
        for url in ["https://example.org/a.png", "HTTP://127.0.0.1/"] {
            let found = PictureFile { param: "url".into(), source: source(url.into(), "url".into()).unwrap() };
            assert_eq!((found.address(), found.bytes().unwrap_err().message), (Some(url), NOT_FETCHED.to_owned()));
        }
        for (url, expected) in [
            ("", "This is no data: URL"),
            ("AAEC", "This is no data: URL"),
            ("daté:,", "This is no data: URL"),
            ("data:image/png;base64", "The data: URL has no comma"),
            ("data:image/png,AAEC", "The data: URL is not in base64"),
            ("data:base64,AAEC", "The data: URL is not in base64"),
            ("data:;base64,", "The picture has no bytes."),
            ("data:;base64,A*EC", "The picture is not base64: "),
            ("data:;base64,A", "The picture is not base64: "),
        ] {
            assert!(message_of(url).starts_with(expected), "{url}: {}", message_of(url));
        }
    }

    proptest! {
        #[test]
        fn no_url_makes_the_parser_fail(url in "(data:|)[a-z;,/=A-Z0-9é ]{0,40}") {
            let _ = source(url, String::new());
        }

        #[test]
        fn every_picture_comes_back(bytes in prop::collection::vec(any::<u8>(), 1..200)) {
            let url = format!("data:image/png;base64,{}", base64::engine::general_purpose::STANDARD.encode(&bytes));
            prop_assert_eq!(data_url(&url, String::new()).unwrap(), bytes);
        }
    }

    #[test]
    fn pictures_are_taken_from_all_three_forms() {
        let parts = json!([
            {"type": "text", "text": "What is "},
            {"type": "image_url", "image_url": {"url": "data:;base64,AAEC", "detail": "low"}},
            {"type": "input_image", "image_url": "data:;base64,AwQF", "detail": "auto"},
            {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "BgcI"}},
            {"type": "text", "text": "?"},
        ]);
        let mut messages = [Message { content: parts, ..Message::new("user", "") }];
        let pictures = take_pictures(&mut messages).unwrap();
        assert_eq!(messages[0].content, format!("What is {PICTURE}{PICTURE}{PICTURE}?"));
        let found: Vec<(&str, &[u8])> = pictures.iter().map(|found| (&*found.param, found.bytes().unwrap())).collect();
        let expected: [(&str, &[u8]); 3] = [
            ("messages[0].content[1]", &[0, 1, 2]),
            ("messages[0].content[2]", &[3, 4, 5]),
            ("messages[0].content[3]", &[6, 7, 8]),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn parts_that_are_wrong_are_named() {
        let refused = |part: Value| {
            let mut messages = [Message { content: json!([part]), ..Message::new("user", "") }];
            let error = take_pictures(&mut messages).expect_err("an error");
            (error.param.unwrap_or_default(), error.message)
        };
        for (part, param) in [
            (json!({"type": "image_url"}), "messages[0].content[0].image_url"),
            (json!({"type": "image_url", "image_url": {}}), "messages[0].content[0].image_url.url"),
            (json!({"type": "image_url", "image_url": 7}), "messages[0].content[0].image_url"),
            (json!({"type": "input_image", "file_id": "f"}), "messages[0].content[0].file_id"),
            (json!({"type": "image", "source": {"type": "url"}}), "messages[0].content[0].source.url"),
            (
                json!({"type": "image", "source": {"type": "file", "file_id": "f"}}),
                "messages[0].content[0].source.type",
            ),
        ] {
            assert_eq!(refused(part.clone()).0, param, "{part}");
        }
        let many = vec![json!({"type": "image_url", "image_url": {"url": "data:;base64,AAEC"}}); PICTURES_MAX + 1];
        let mut messages = [Message { content: many.into(), ..Message::new("user", "") }];
        let error = take_pictures(&mut messages).expect_err("an error");
        assert_eq!(error.message, format!("A request may have {PICTURES_MAX} pictures."));
    }
}

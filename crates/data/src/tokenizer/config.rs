//! `tokenizer_config.json`: the roles of special tokens and the chat template.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{JANUS_TOKENS, SpecialIds, SpecialTokens, Tokenizer, TokenizerError};

/// Largest configuration or template that is read; the largest known one, with 818 added tokens, takes 0.2 MB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// What is read of the file; its other keys do not change how text is encoded.
#[derive(Default)]
pub(super) struct TokenizerConfig {
    bos: Option<String>,
    eos: Option<String>,
    pad: Option<String>,
    pub(super) add_bos: Option<bool>,
    pub(super) chat_template: Option<String>,
}

impl TokenizerConfig {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, TokenizerError> {
        let invalid = |reason: &dyn std::fmt::Display| TokenizerError::InvalidConfig { reason: reason.to_string() };
        let value: Map<String, Value> = serde_json::from_slice(bytes).map_err(|e| invalid(&e))?;
        // A token is its string, or an object that has it as `content`.
        let token = |key: &str| match value.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(token)) => Ok(Some(token.clone())),
            Some(other) => match other.get("content").and_then(Value::as_str) {
                Some(token) => Ok(Some(token.to_owned())),
                None => Err(invalid(&format_args!("`{key}` is neither a string nor an object with `content`"))),
            },
        };
        Ok(TokenizerConfig {
            bos: token("bos_token")?,
            eos: token("eos_token")?,
            pad: token("pad_token")?,
            add_bos: value.get("add_bos_token").and_then(Value::as_bool),
            chat_template: value.get("chat_template").and_then(default_template),
        })
    }
}

/// A template, or of a list of named ones the one called `default`.
fn default_template(value: &Value) -> Option<String> {
    match value {
        Value::String(template) => Some(template.clone()),
        Value::Array(named) => named
            .iter()
            .find(|entry| entry["name"] == "default")
            .and_then(|entry| entry["template"].as_str())
            .map(str::to_owned),
        _ => None,
    }
}

/// `None` where there is no such file.
pub(super) fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let io = |source| TokenizerError::Io { path: path.to_owned(), source };
    match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(error)),
        Ok(metadata) if !metadata.is_file() => Err(io(not_regular())),
        Ok(metadata) if metadata.len() > CONFIG_BYTES_MAX => Err(TokenizerError::InvalidConfig {
            reason: format!("{} has {} bytes, more than {CONFIG_BYTES_MAX}", path.display(), metadata.len()),
        }),
        Ok(_) => fs::read(path).map(Some).map_err(io),
    }
}

/// Of a pipe, which would wait for a writer, or a device, which has no end: neither is opened.
pub(super) fn not_regular() -> std::io::Error {
    std::io::Error::new(ErrorKind::InvalidInput, "not a regular file")
}

pub(super) fn utf8(bytes: Vec<u8>) -> Result<String, TokenizerError> {
    String::from_utf8(bytes)
        .map_err(|e| TokenizerError::InvalidConfig { reason: format!("the chat template is not UTF-8: {e}") })
}

/// The ids of the roles: BOS, EOS and padding as the configuration names them, else by the strings of the families that
/// Wels runs; the others by DeepSeek's strings.
pub(super) fn special_ids(inner: &tokenizers::Tokenizer, config: &TokenizerConfig) -> SpecialIds {
    let deepseek = SpecialTokens::default();
    let role = |named: &Option<String>, candidates: &[&str]| match named {
        Some(token) => inner.token_to_id(token),
        None => candidates.iter().find_map(|token| inner.token_to_id(token)),
    };
    let id = |token: &str| inner.token_to_id(token);
    SpecialIds {
        bos: role(&config.bos, &[&deepseek.bos, "<|begin_of_text|>", "<s>", "<|endoftext|>"]),
        eos: role(&config.eos, &[&deepseek.eos, "<|end_of_text|>", "</s>", "<|endoftext|>"]),
        pad: role(&config.pad, &[&deepseek.pad, "<pad>"]),
        think_begin: id(&deepseek.think_begin),
        think_end: id(&deepseek.think_end),
        user: id(&deepseek.user),
        assistant: id(&deepseek.assistant),
        fim_begin: id(&deepseek.fim_begin),
        fim_hole: id(&deepseek.fim_hole),
        fim_end: id(&deepseek.fim_end),
    }
}

impl Tokenizer {
    /// A `tokenizer_config.json` with which `transformers` loads this tokenizer as a `PreTrainedTokenizerFast`.
    pub fn to_config_json(&self, context_length: usize) -> String {
        let mut config = Map::new();
        let ids = self.special();
        for (key, id) in [("bos_token", ids.bos), ("eos_token", ids.eos), ("pad_token", ids.pad)] {
            if let Some(token) = id.and_then(|id| self.token(id)) {
                config.insert(key.to_owned(), Value::String(token));
            }
        }
        config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
        config.insert("model_max_length".to_owned(), json!(context_length));
        config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
        // What `JanusProcessor` asks its tokenizer for.
        let of_pictures =
            [("image_token", JANUS_TOKENS[0]), ("boi_token", JANUS_TOKENS[1]), ("eoi_token", JANUS_TOKENS[2])];
        if of_pictures.iter().all(|(_, token)| self.id(token).is_some()) {
            config.insert("extra_special_tokens".to_owned(), of_pictures.into_iter().collect::<Value>());
        }
        if let Some(template) = self.chat_template() {
            config.insert("chat_template".to_owned(), json!(template));
        }
        let mut text = serde_json::to_string_pretty(&Value::Object(config)).expect("strings and numbers serialise");
        text.push('\n');
        text
    }
}

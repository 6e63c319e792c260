//! `[model]`: a preset, a Hugging Face `config.json`, or the keys of such a file written into the recipe; written keys
//! go over those of a preset or file. TOML has no null, so `"none"` stands for it. What a key means and may be is
//! decided by `wels-model` alone.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use wels_model::config::{ConfigError, Dtype, ModelConfig, Note};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::{is_janus, presets};

use super::TokenizerSection;
use super::named::{Folder, HUB};
use super::reader::{RecipeError, Section};

/// Keys of a `config.json` that describe the file and not the model.
const NOT_THE_MODEL: [&str; 4] = ["architectures", "torch_dtype", "dtype", "transformers_version"];

/// The token in the places of a picture, in a vocabulary that is trained in the run with the chat template "janus".
pub const JANUS_PLACE: u32 = 10;

/// `[model]`, resolved: the configuration, and the same as the keys of its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSection {
    config: ModelConfig,
    /// Of which `config` is the language model.
    janus: Option<Box<JanusConfig>>,
    keys: Map<String, Value>,
}

impl ModelSection {
    /// The model's configuration; of a Janus model, that of its language model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The whole configuration of a Janus model.
    pub fn janus(&self) -> Option<&JanusConfig> {
        self.janus.as_deref()
    }

    pub(super) fn resolve(
        mut section: Section,
        tokenizer: &TokenizerSection,
        sequence_length: usize,
        folder: Folder,
    ) -> Result<ModelSection, RecipeError> {
        let preset: Option<String> = section.get("preset")?;
        let file: Option<String> = section.get("config")?;
        let written = section.rest_as_json();
        let mut keys = match (preset, file) {
            (Some(_), Some(_)) => return Err(section.wrong("preset", "and model.config exclude each other")),
            (Some(name), None) => {
                let unknown = |e: &dyn std::fmt::Display| section.wrong("preset", format!("names no model: {e}"));
                match presets::preset(&name) {
                    Some(config) => janus_keys(&config).map_err(|e| unknown(&e))?,
                    None => hf_keys(&wels_model::presets::preset(&name).map_err(|e| unknown(&e))?),
                }
            }
            (None, Some(path)) => {
                let place = match path.starts_with(HUB) {
                    true => {
                        (folder.config)(&path).map_err(|error| section.wrong("config", format!("is {path}: {error}")))
                    }
                    false => Ok(folder.path.join(path)),
                };
                let path = place?;
                let fail = |message: String| section.wrong("config", format!("is {}: {message}", path.display()));
                let text = std::fs::read_to_string(&path).map_err(|error| fail(error.to_string()))?;
                let read = match is_janus(&text) {
                    true => JanusConfig::from_hf_json(&text).and_then(|(config, _)| janus_keys(&config)),
                    false => ModelConfig::from_hf_json(&text).map(|(config, _)| hf_keys(&config)),
                };
                read.map_err(|error| fail(error.to_string()))?
            }
            (None, None) => Map::new(),
        };
        if keys.get("model_type").or(written.get("model_type")).is_some_and(|family| family == "janus") {
            return Self::of_janus(section, keys, written, tokenizer);
        }
        if let TokenizerSection::Train { vocab_size, .. } = tokenizer {
            // A tokenizer that is trained here numbers its first special tokens so.
            keys.extend([("bos_token_id".into(), 0.into()), ("eos_token_id".into(), 1.into())]);
            keys.insert("vocab_size".into(), (*vocab_size).into());
        }
        keys.extend(written.clone());
        let at = |key: Option<&str>, message| RecipeError::Model { place: section.place_of(key), message };
        let (config, _) = parse(keys).map_err(|error| {
            let message = error.to_string();
            let named = written.keys().find(|key| message.contains(&format!("`{key}`")));
            at(named.map(String::as_str), message)
        })?;
        let positions = config.rope.max_positions;
        if sequence_length > positions {
            let key = "max_position_embeddings";
            return Err(at(
                Some(key),
                format!("has {key} = {positions}, less than data.sequence_length = {sequence_length}"),
            ));
        }
        let keys = hf_keys(&config);
        section.finish(&keys.keys().cloned().collect::<Vec<_>>())?;
        Ok(ModelSection { config, janus: None, keys })
    }

    /// Of a Janus model; keys of its blocks are written in tables of their own.
    fn of_janus(
        section: Section,
        mut keys: Map<String, Value>,
        written: Map<String, Value>,
        tokenizer: &TokenizerSection,
    ) -> Result<ModelSection, RecipeError> {
        for (key, value) in written.clone() {
            match (keys.get_mut(&key), value) {
                (Some(Value::Object(known)), Value::Object(block)) => known.extend(block),
                (_, value) => _ = keys.insert(key, value),
            }
        }
        nulls(&mut keys);
        follow(&mut keys, tokenizer);
        let read = || {
            let (config, _) = JanusConfig::from_hf_json(&Value::Object(keys).to_string())?;
            let keys = janus_keys(&config)?;
            Ok((config, keys))
        };
        let (config, keys) = read().map_err(|error: ConfigError| {
            let message = error.to_string();
            let named = written.keys().find(|key| message.contains(key.as_str()));
            RecipeError::Model { place: section.place_of(named.map(String::as_str)), message }
        })?;
        section.finish(&keys.keys().cloned().collect::<Vec<_>>())?;
        Ok(ModelSection { config: config.text.clone(), janus: Some(Box::new(config)), keys })
    }
}

/// Sizes that have to be another part's, and what a tokenizer that is trained in the run decides, where they are not
/// written.
fn follow(keys: &mut Map<String, Value>, tokenizer: &TokenizerSection) {
    let [mut text, mut vision, mut vq] = ["text_config", "vision_config", "vq_config"].map(|name| {
        let block = keys.remove(name).unwrap_or_default();
        if let Value::Object(block) = block { block } else { Map::new() }
    });
    if let TokenizerSection::Train { vocab_size, .. } = tokenizer {
        for (key, value) in [("vocab_size", *vocab_size), ("bos_token_id", 0), ("eos_token_id", 1), ("pad_token_id", 2)]
        {
            text.insert(key.into(), value.into());
        }
        keys.insert("image_token_id".into(), JANUS_PLACE.into());
    }
    let default = |block: &mut Map<String, Value>, key: &str, value: Value| _ = block.entry(key).or_insert(value);
    if let Some(width) = text.get("hidden_size").cloned() {
        default(&mut vision, "projection_dim", width.clone());
        default(&mut vq, "image_token_embed_dim", width.clone());
        default(&mut vq, "projection_dim", width);
    }
    let side = |key: &str| vision.get(key).and_then(Value::as_u64);
    if let (Some(image), Some(patch @ 1..)) = (side("image_size"), side("patch_size")) {
        default(&mut vision, "num_image_tokens", (image / patch).saturating_pow(2).into());
    }
    keys.extend(
        [("text_config", text), ("vision_config", vision), ("vq_config", vq)]
            .map(|(name, block)| (name.to_owned(), Value::Object(block))),
    );
}

fn janus_keys(config: &JanusConfig) -> Result<Map<String, Value>, ConfigError> {
    let Value::Object(mut keys) = serde_json::from_str(&config.to_hf_json()?)? else {
        panic!("a configuration is written as a JSON object");
    };
    tidied(&mut keys);
    keys.values_mut().filter_map(Value::as_object_mut).for_each(tidied);
    Ok(keys)
}

/// What is no part of the model is left out, and null spelled as TOML has it.
fn tidied(keys: &mut Map<String, Value>) {
    keys.retain(|key, _| !NOT_THE_MODEL.contains(&key.as_str()));
    keys.values_mut().filter(|value| value.is_null()).for_each(|value| *value = NONE.into());
}

fn nulls(keys: &mut Map<String, Value>) {
    for value in keys.values_mut() {
        match value {
            Value::Object(block) => nulls(block),
            value if *value == NONE => *value = Value::Null,
            _ => {}
        }
    }
}

/// JSON's null, in TOML.
const NONE: &str = "none";

/// The configuration as the keys of its `config.json`, in TOML's values.
fn hf_keys(config: &ModelConfig) -> Map<String, Value> {
    let Ok(Value::Object(mut keys)) = serde_json::from_str(&config.to_hf_json(Dtype::F32)) else {
        panic!("a configuration is written as a JSON object");
    };
    tidied(&mut keys);
    keys
}

/// The configuration that such keys mean.
fn parse(mut keys: Map<String, Value>) -> Result<(ModelConfig, Vec<Note>), ConfigError> {
    nulls(&mut keys);
    ModelConfig::from_hf_json(&Value::Object(keys).to_string())
}

impl Serialize for ModelSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.keys.serialize(serializer)
    }
}

//! `[model]`: a preset, a Hugging Face `config.json`, or the keys of such a file written into the recipe; written keys
//! go over those of a preset or file. TOML has no null, so `"none"` stands for it. What a key means and may be is
//! decided by `wels-model` alone.

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use wels_model::config::{ConfigError, Dtype, ModelConfig, Note};

use super::TokenizerSection;
use super::named::{Folder, HUB};
use super::reader::{RecipeError, Section};

/// Keys of a `config.json` that describe the file and not the model.
const NOT_THE_MODEL: [&str; 4] = ["architectures", "torch_dtype", "dtype", "transformers_version"];

/// `[model]`, resolved: the configuration, and the same as the keys of its `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelSection {
    config: ModelConfig,
    keys: Map<String, Value>,
}

impl ModelSection {
    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
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
                let config = wels_model::presets::preset(&name)
                    .map_err(|e| section.wrong("preset", format!("names no model: {e}")))?;
                hf_keys(&config)
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
                let (config, _) = ModelConfig::from_hf_json(&text).map_err(|error| fail(error.to_string()))?;
                hf_keys(&config)
            }
            (None, None) => Map::new(),
        };
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
        Ok(ModelSection { config, keys })
    }
}

/// JSON's null, in TOML.
const NONE: &str = "none";

/// The configuration as the keys of its `config.json`, in TOML's values.
fn hf_keys(config: &ModelConfig) -> Map<String, Value> {
    let Ok(Value::Object(mut keys)) = serde_json::from_str(&config.to_hf_json(Dtype::F32)) else {
        panic!("a configuration is written as a JSON object");
    };
    keys.retain(|key, _| !NOT_THE_MODEL.contains(&key.as_str()));
    keys.values_mut().filter(|value| value.is_null()).for_each(|value| *value = NONE.into());
    keys
}

/// The configuration that such keys mean.
fn parse(mut keys: Map<String, Value>) -> Result<(ModelConfig, Vec<Note>), ConfigError> {
    keys.values_mut().filter(|value| *value == NONE).for_each(|value| *value = Value::Null);
    ModelConfig::from_hf_json(&Value::Object(keys).to_string())
}

impl Serialize for ModelSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.keys.serialize(serializer)
    }
}

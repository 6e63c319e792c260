//! `config.json` of `model_type` `janus` → [`JanusConfig`]: three blocks, of which `text_config` is a `llama`'s and is
//! read as any other.
//!
//! Missing keys take the defaults of `transformers` 5.23 (`configuration_janus.py`). A key that would change the
//! arithmetic and is not supported is an error that names it; one that nobody knows is a [`Note`].

use serde_json::{Map, Value};

use super::config::{JanusConfig, NORM_GROUPS, VisionConfig, VqConfig};
use super::names::vq_tensors;
use crate::config::{ConfigError, ModelConfig, Note};
use crate::config_json::keys::{Keys, abbreviate};

/// `model_type` of a Janus model.
pub const MODEL_TYPE: &str = "janus";
/// That of a VQ tokenizer by itself.
pub const VQ_MODEL_TYPE: &str = "janus_vqgan";

/// Largest width of a layer, side of an image, number of codes and number of layers that are read.
const MAX_WIDTH: usize = 1 << 16;
const MAX_SIDE: usize = 1 << 12;
const MAX_CODES: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 10;
/// More parameters than these are refused, as for text models.
const MAX_PARAMS: u64 = 1 << 46;

/// Whether a `config.json` says that it is a Janus model's.
pub fn is_janus(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok_and(|json| json["model_type"] == MODEL_TYPE)
}

impl JanusConfig {
    /// Reads a Hugging Face `config.json`.
    ///
    /// # Errors
    /// A [`ConfigError`] that names the key: malformed JSON, another `model_type`, a key of a wrong type, out of range,
    /// unsupported, or contradicting another.
    pub fn from_hf_json(text: &str) -> Result<(JanusConfig, Vec<Note>), ConfigError> {
        let json: Value = serde_json::from_str(text)?;
        let map = json.as_object().ok_or(ConfigError::NotAnObject { found: "something else" })?;
        let mut keys = Keys::new(map, "");
        check_model_type(&mut keys, MODEL_TYPE)?;
        let mut notes = Vec::new();
        let text = read_text(&mut keys, &mut notes)?;
        let vision = read_vision(&mut keys, &text, &mut notes)?;
        let vq = read_vq(&mut keys, &text, vision.grid(), &mut notes)?;
        let vocab = text.vocab_size;
        let image_token_id = keys.integer("image_token_id", Some(100_581), 0, vocab - 1)? as u32;
        keys.mark(&["architectures", "dtype", "torch_dtype", "transformers_version"]);
        note_unread(&keys, map, &mut notes);
        let config = JanusConfig { text, vision, vq, image_token_id };
        check_params(super::count::params(&config).total())?;
        Ok((config, notes))
    }
}

impl VqConfig {
    /// Reads the `config.json` of a VQ tokenizer by itself, or the tokenizer's part of a Janus model's.
    ///
    /// # Errors
    /// As [`JanusConfig::from_hf_json`].
    pub fn from_hf_json(text: &str) -> Result<(VqConfig, Vec<Note>), ConfigError> {
        if is_janus(text) {
            return JanusConfig::from_hf_json(text).map(|(config, notes)| (config.vq, notes));
        }
        let json: Value = serde_json::from_str(text)?;
        let map = json.as_object().ok_or(ConfigError::NotAnObject { found: "something else" })?;
        let mut keys = Keys::new(map, "");
        check_model_type(&mut keys, VQ_MODEL_TYPE)?;
        let grid = keys.size("num_patches", Some(32), MAX_SIDE)?;
        let vq = read_vq_block(&mut keys, grid)?;
        keys.mark(&["image_token_embed_dim"]);
        let mut notes = Vec::new();
        note_block(&mut keys, map, &mut notes);
        let params = vq_tensors(&vq).iter().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum();
        check_params(params)?;
        Ok((vq, notes))
    }
}

fn check_params(params: u64) -> Result<(), ConfigError> {
    if params > MAX_PARAMS { Err(ConfigError::TooLarge { params, max: MAX_PARAMS }) } else { Ok(()) }
}

fn check_model_type(keys: &mut Keys, expected: &str) -> Result<(), ConfigError> {
    match keys.word("model_type")? {
        Some(found) if found == expected => Ok(()),
        Some(other) => Err(ConfigError::ModelType { found: other.chars().take(60).collect() }),
        None => Err(ConfigError::Missing { key: "model_type".into() }),
    }
}

fn block<'a>(keys: &mut Keys<'a>, key: &'static str) -> Result<Option<&'a Map<String, Value>>, ConfigError> {
    match keys.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(other) => Err(keys.wrong_type(key, other, "an object")),
    }
}

/// The language model's; whether its head is tied says the outer block, if it says anything.
fn read_text(keys: &mut Keys, notes: &mut Vec<Note>) -> Result<ModelConfig, ConfigError> {
    let Some(map) = block(keys, "text_config")? else {
        return Err(ConfigError::Missing { key: "text_config".into() });
    };
    if map.get("model_type").is_some_and(|family| family != "llama") {
        let value = abbreviate(&map["model_type"]);
        let why = "the language model of Janus is a llama";
        return Err(ConfigError::Unsupported { key: "text_config.model_type".into(), value, why });
    }
    let mut map = map.clone();
    map.insert("model_type".into(), "llama".into());
    let (mut config, text_notes) = ModelConfig::from_hf_json(&Value::Object(map).to_string())?;
    config.tied_head = keys.flag("tie_word_embeddings", config.tied_head)?;
    notes.extend(text_notes.into_iter().map(|Note(note)| Note(format!("text_config: {note}"))));
    Ok(config)
}

fn read_vision(keys: &mut Keys, text: &ModelConfig, notes: &mut Vec<Note>) -> Result<VisionConfig, ConfigError> {
    let empty = Map::new();
    let map = block(keys, "vision_config")?.unwrap_or(&empty);
    let mut keys = Keys::new(map, "vision_config.");
    let hidden_size = keys.size("hidden_size", Some(1024), MAX_WIDTH)?;
    let heads = keys.size("num_attention_heads", Some(16), hidden_size)?;
    let image_size = keys.size("image_size", Some(384), MAX_SIDE)?;
    let patch_size = keys.size("patch_size", Some(16), image_size)?;
    let ratio = keys.real("mlp_ratio", Some(4.0), 1e-3, 64.0)?;
    check_gelu(&mut keys)?;
    if keys.flag("use_qk_norm", false)? {
        return Err(keys.unsupported("use_qk_norm", "norms of queries and keys are not implemented"));
    }
    let vision = VisionConfig {
        layers: keys.size("num_hidden_layers", Some(24), MAX_LAYERS)?,
        channels: keys.size("num_channels", Some(3), 16)?,
        intermediate: ((hidden_size as f64 * ratio) as usize).max(1),
        norm_eps: keys.real("layer_norm_eps", Some(1e-6), 1e-30, 1.0)? as f32,
        qkv_bias: keys.flag("attention_bias", true)?,
        aligner_layers: keys.size("depth", Some(2), MAX_LAYERS)?,
        hidden_size,
        heads,
        image_size,
        patch_size,
    };
    if !hidden_size.is_multiple_of(heads) {
        let why = "each head has as many columns";
        return Err(keys.contradiction("num_attention_heads", heads, "vision_config.hidden_size", hidden_size, why));
    }
    if !image_size.is_multiple_of(patch_size) {
        let why = "a picture is cut into whole patches";
        return Err(keys.contradiction("patch_size", patch_size, "vision_config.image_size", image_size, why));
    }
    equal(&mut keys, "num_image_tokens", 576, "patches of a picture", vision.tokens())?;
    equal(&mut keys, "projection_dim", 2048, "text_config.hidden_size", text.hidden_size)?;
    keys.mark(&["attention_dropout", "hidden_dropout_rate", "projection_dropout"]);
    note_block(&mut keys, map, notes);
    Ok(vision)
}

fn read_vq(keys: &mut Keys, text: &ModelConfig, grid: usize, notes: &mut Vec<Note>) -> Result<VqConfig, ConfigError> {
    let empty = Map::new();
    let map = block(keys, "vq_config")?.unwrap_or(&empty);
    let mut keys = Keys::new(map, "vq_config.");
    // The model's own, like `transformers`, follows from the tower's patches.
    keys.mark(&["num_patches"]);
    let vq = read_vq_block(&mut keys, grid)?;
    equal(&mut keys, "projection_dim", 2048, "text_config.hidden_size", text.hidden_size)?;
    equal(&mut keys, "image_token_embed_dim", 2048, "text_config.hidden_size", text.hidden_size)?;
    note_block(&mut keys, map, notes);
    Ok(vq)
}

fn read_vq_block(keys: &mut Keys, grid: usize) -> Result<VqConfig, ConfigError> {
    if keys.flag("double_latent", false)? {
        return Err(keys.unsupported("double_latent", "a code stands for one latent"));
    }
    check_gelu(keys)?;
    keys.mark(&["dropout", "beta"]);
    let base_channels = keys.size("base_channels", Some(128), MAX_WIDTH)?;
    Ok(VqConfig {
        code_dim: keys.size("embed_dim", Some(8), MAX_WIDTH)?,
        codes: keys.size("num_embeddings", Some(16384), MAX_CODES)?,
        latent_channels: keys.size("latent_channels", Some(256), MAX_WIDTH)?,
        in_channels: keys.size("in_channels", Some(3), 16)?,
        out_channels: keys.size("out_channels", Some(3), 16)?,
        multipliers: read_multipliers(keys, base_channels)?,
        res_blocks: keys.size("num_res_blocks", Some(2), MAX_LAYERS)?,
        aligner_layers: keys.size("num_hidden_layers", Some(2), MAX_LAYERS)?,
        head_width: keys.size("projection_dim", Some(2048), MAX_WIDTH)?,
        base_channels,
        grid,
    })
}

fn read_multipliers(keys: &mut Keys, base: usize) -> Result<Vec<usize>, ConfigError> {
    const KEY: &str = "channel_multiplier";
    let (expected, max) = ("a list of one to eight factors from 1 to 64", 8);
    let factors = match keys.get(KEY) {
        None | Some(Value::Null) => vec![1, 1, 2, 2, 4],
        Some(value) => {
            let factor = |value: &Value| value.as_u64().filter(|factor| (1..=64).contains(factor));
            let list = value.as_array().filter(|list| (1..=max).contains(&list.len()));
            let factors: Option<Vec<u64>> = list.and_then(|list| list.iter().map(factor).collect());
            let factors = factors.ok_or_else(|| keys.wrong_type(KEY, value, expected))?;
            factors.into_iter().map(|factor| factor as usize).collect()
        }
    };
    match factors.iter().all(|factor| (base * factor).is_multiple_of(NORM_GROUPS)) && base.is_multiple_of(NORM_GROUPS) {
        true => Ok(factors),
        false => Err(keys.unsupported("base_channels", "group norms have 32 groups of channels")),
    }
}

fn check_gelu(keys: &mut Keys) -> Result<(), ConfigError> {
    keys.check_word("hidden_act", &["gelu"], "only the exact GELU is implemented")
}

/// Fails unless a size, by default `default`, is what follows from the rest.
fn equal(
    keys: &mut Keys,
    key: &'static str,
    default: usize,
    other: &str,
    other_value: usize,
) -> Result<(), ConfigError> {
    let value = keys.size(key, Some(default), usize::MAX)?;
    if value == other_value {
        return Ok(());
    }
    Err(keys.contradiction(key, value, other, other_value, "the two are one width"))
}

/// Notes keys of a block that nobody knows; those of any configuration say nothing about the forward pass.
fn note_block(keys: &mut Keys, map: &Map<String, Value>, notes: &mut Vec<Note>) {
    const ANY: [&str; 20] = [
        "_name_or_path",
        "architectures",
        "chunk_size_feed_forward",
        "dtype",
        "id2label",
        "initializer_range",
        "is_encoder_decoder",
        "label2id",
        "model_type",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "torch_dtype",
        "transformers_version",
        "tie_word_embeddings",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "use_cache",
    ];
    keys.mark(&ANY);
    note_unread(keys, map, notes);
}

fn note_unread(keys: &Keys, map: &Map<String, Value>, notes: &mut Vec<Note>) {
    for key in keys.unread() {
        let (path, value) = (keys.path(key), abbreviate(&map[key]));
        notes.push(Note(format!("config.json: unknown key `{path}` = {value} is ignored")));
    }
}

//! What a `config.json` of DeepSeek-V4 says of attention, rotation and residual streams.
//!
//! Files of `transformers` 5 name the kind of each layer in `layer_types` and its rate in `compress_rates`; published
//! ones have a rate for each layer in `compress_ratios`, 0 for none. `rope_parameters` has an object `main` for layers
//! that see a window alone and an object `compress` for the others; published files have `rope_theta`,
//! `compress_rope_theta` and a `rope_scaling` that is the latter's.

use serde_json::{Map, Value, json};

use super::keys::Keys;
use super::read::limit;
use super::rope;
use crate::config::{Attention, ConfigError, Entries, Indexer, ModelConfig, Note, RopeConfig, Streams};
use crate::family::Defaults;

const SLIDING: &str = "sliding_attention";
const CHOSEN: &str = "compressed_sparse_attention";
const ALL: &str = "heavily_compressed_attention";

/// The most tokens of an entry.
const MAX_RATE: usize = 1 << 16;
const MAX_STREAMS: usize = 8;

/// What is read together.
pub struct Compressed {
    pub attention: Attention,
    pub rope: RopeConfig,
    pub indexer: Option<Indexer>,
    pub streams: Option<Streams>,
}

/// Attention, rotation, indexer and streams.
///
/// # Errors
/// As [`super::read`].
pub fn read(
    keys: &mut Keys,
    layers: usize,
    max_positions: usize,
    defaults: &Defaults,
) -> Result<Compressed, ConfigError> {
    let heads = keys.size("num_attention_heads", Some(defaults.heads), limit::HEADS)?;
    if keys.size("num_key_value_heads", Some(1), limit::HEADS)? != 1 {
        return Err(keys.unsupported("num_key_value_heads", "one row of numbers is key and value of all heads"));
    }
    if keys.flag("attention_bias", false)? {
        return Err(keys.unsupported("attention_bias", "this family has no biases"));
    }
    let head_dim = keys.size("head_dim", Some(512), limit::HEAD_DIM)?;
    let rope_dim = read_rope_dim(keys, head_dim)?;
    let groups = keys.size("o_groups", Some(8), limit::HEADS)?;
    if !heads.is_multiple_of(groups) {
        let why = "groups have equally many heads";
        return Err(keys.contradiction("o_groups", groups, "num_attention_heads", heads, why));
    }
    let entries = read_entries(keys, layers)?;
    let window = keys.size("sliding_window", Some(128), limit::POSITIONS)?;
    let indexer = Indexer {
        heads: keys.size("index_n_heads", Some(64), limit::HEADS)?,
        dim: keys.size("index_head_dim", Some(128), limit::HEAD_DIM)?,
        top_k: keys.size("index_topk", Some(512), limit::POSITIONS)?,
    };
    if indexer.dim < rope_dim {
        let why = "a part of each index head rotates as a head's does";
        return Err(keys.contradiction("index_head_dim", indexer.dim, "qk_rope_head_dim", rope_dim, why));
    }
    let sliding = entries.iter().map(|entries| *entries == Entries::None).collect();
    let rope = rope::read_compressed(keys, max_positions, sliding)?;
    let streams = Streams {
        count: keys.size("hc_mult", Some(4), MAX_STREAMS)?,
        iterations: keys.size("hc_sinkhorn_iters", Some(20), 1000)?,
        eps: keys.real("hc_eps", Some(1e-6), 0.0, 1.0)? as f32,
    };
    let chosen = entries.iter().any(|entries| matches!(entries, Entries::Chosen { .. }));
    let attention = Attention::Compressed {
        heads,
        q_lora_rank: keys.size("q_lora_rank", Some(1024), limit::HIDDEN)?,
        head_dim,
        rope_dim,
        groups,
        o_lora_rank: keys.size("o_lora_rank", Some(1024), limit::HIDDEN)?,
        window,
        entries,
    };
    read_mtp(keys)?;
    Ok(Compressed { attention, rope, indexer: chosen.then_some(indexer), streams: Some(streams) })
}

/// The width of what rotates, which some files give as a part of a head.
fn read_rope_dim(keys: &mut Keys, head_dim: usize) -> Result<usize, ConfigError> {
    const PARTIAL: &str = "partial_rotary_factor";
    let part = keys.real(PARTIAL, Some(64.0 / 512.0), 0.0, 1.0)?;
    // Rounded towards zero, as `transformers` does.
    let of_part = (head_dim as f64 * part) as usize;
    let rope_dim = keys.size("qk_rope_head_dim", Some(of_part.max(1)), limit::HEAD_DIM)?;
    if keys.has(PARTIAL) && rope_dim != of_part {
        return Err(keys.contradiction(PARTIAL, part, "qk_rope_head_dim", rope_dim, "they say the same thing twice"));
    }
    if rope_dim > head_dim || !rope_dim.is_multiple_of(2) {
        return Err(keys.unsupported("qk_rope_head_dim", "rotary elements come in pairs, and lie in a head"));
    }
    Ok(rope_dim)
}

/// The entries of each layer.
fn read_entries(keys: &mut Keys, layers: usize) -> Result<Vec<Entries>, ConfigError> {
    let (chosen, all) = read_rates(keys)?;
    let (types, ratios) = (keys.get("layer_types"), keys.get("compress_ratios"));
    if let Some(Value::Array(types)) = types {
        let entries = |word: &Value| match word.as_str() {
            Some(SLIDING) => Some(Entries::None),
            Some(CHOSEN) => Some(Entries::Chosen { rate: chosen }),
            Some(ALL) => Some(Entries::All { rate: all }),
            _ => None,
        };
        let entries: Option<Vec<Entries>> = types.iter().map(entries).collect();
        let entries = entries.filter(|entries| entries.len() >= layers);
        let why = "each layer has sliding_attention, compressed_sparse_attention or heavily_compressed_attention";
        return entries.map(|all| all[..layers].to_vec()).ok_or_else(|| keys.unsupported("layer_types", why));
    }
    if let Some(Value::Array(ratios)) = ratios {
        let entries = |ratio: &Value| match ratio.as_u64() {
            Some(0) => Some(Entries::None),
            Some(4) => Some(Entries::Chosen { rate: 4 }),
            Some(128) => Some(Entries::All { rate: 128 }),
            _ => None,
        };
        let entries: Option<Vec<Entries>> = ratios.iter().map(entries).collect();
        let entries = entries.filter(|entries| entries.len() >= layers);
        let why = "each layer has 0, 4 or 128";
        return entries.map(|all| all[..layers].to_vec()).ok_or_else(|| keys.unsupported("compress_ratios", why));
    }
    // As V4-Pro: two layers with all entries, then those and chosen ones in turns.
    let entries = |layer: usize| match layer >= 2 && layer % 2 == 1 {
        true => Entries::Chosen { rate: chosen },
        false => Entries::All { rate: all },
    };
    Ok((0..layers).map(entries).collect())
}

/// The rates of layers whose entries are chosen, and of the others.
fn read_rates(keys: &mut Keys) -> Result<(usize, usize), ConfigError> {
    let (mut chosen, mut all) = (4, 128);
    if let Some(Value::Object(map)) = keys.get("compress_rates") {
        let mut inner = Keys::new(map, "compress_rates.");
        chosen = inner.size(CHOSEN, Some(chosen), MAX_RATE)?;
        all = inner.size(ALL, Some(all), MAX_RATE)?;
    }
    let chosen = keys.size("compress_rate_csa", Some(chosen), MAX_RATE)?;
    let all = keys.size("compress_rate_hca", Some(all), MAX_RATE)?;
    for (key, rate) in [("compress_rate_csa", chosen), ("compress_rate_hca", all)] {
        if !rate.is_power_of_two() {
            let why = "entries of a power of two tokens lie evenly in the pages of a KV cache";
            return Err(ConfigError::Unsupported { key: keys.path(key), value: rate.to_string(), why });
        }
    }
    Ok((chosen, all))
}

/// Which first layers have a table of experts.
///
/// # Errors
/// As [`super::read`].
pub fn read_table_layers(keys: &mut Keys, layers: usize) -> Result<usize, ConfigError> {
    let count = keys.integer("num_hash_layers", Some(3), 0, usize::MAX >> 1)?.min(layers);
    let Some(types) = keys.get("mlp_layer_types").filter(|types| !types.is_null()) else { return Ok(count) };
    let words: Option<Vec<&str>> = types.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
    let words = words.unwrap_or_default();
    let count = words.iter().take_while(|word| **word == "hash_moe").count();
    if words.len() < layers || words[count..].iter().any(|word| *word != "moe") {
        return Err(keys.unsupported("mlp_layer_types", "some first layers have `hash_moe`, all others `moe`"));
    }
    Ok(count.min(layers))
}

/// MTP layers are not read: `transformers` has none of this family either.
fn read_mtp(keys: &mut Keys) -> Result<(), ConfigError> {
    let depth = keys.integer("num_nextn_predict_layers", Some(0), 0, 16)?;
    if depth > 0 {
        let text = format!("config.json: `num_nextn_predict_layers` = {depth}: MTP layers of this family are not read");
        keys.notes.push(Note(text));
    }
    Ok(())
}

/// Writes what [`read`] reads.
pub fn write(config: &ModelConfig, map: &mut Map<String, Value>) {
    let Attention::Compressed { heads, q_lora_rank, head_dim, rope_dim, groups, o_lora_rank, window, ref entries } =
        config.attention
    else {
        return;
    };
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("num_attention_heads", json!(heads));
    put("num_key_value_heads", json!(1));
    put("head_dim", json!(head_dim));
    put("qk_rope_head_dim", json!(rope_dim));
    put("partial_rotary_factor", json!(super::write::part_of(rope_dim, head_dim)));
    put("q_lora_rank", json!(q_lora_rank));
    put("o_groups", json!(groups));
    put("o_lora_rank", json!(o_lora_rank));
    put("sliding_window", json!(window));
    let word = |entries: &Entries| match entries {
        Entries::None => SLIDING,
        Entries::Chosen { .. } => CHOSEN,
        Entries::All { .. } => ALL,
    };
    put("layer_types", entries.iter().map(word).collect());
    let rate = |of: &str| entries.iter().find(|entries| word(entries) == of).map(Entries::rate);
    let (chosen, all) = (rate(CHOSEN).unwrap_or(4), rate(ALL).unwrap_or(128));
    put("compress_rates", json!({ CHOSEN: chosen, ALL: all }));
    if let Some(Streams { count, iterations, eps }) = config.streams {
        put("hc_mult", json!(count));
        put("hc_sinkhorn_iters", json!(iterations));
        put("hc_eps", super::write::decimal(eps));
    }
    put("num_nextn_predict_layers", json!(0));
}

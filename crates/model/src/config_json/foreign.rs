//! Keys of other architectures that change the arithmetic, accepted in every family where they change nothing.
//!
//! A fine-tune may carry such a key under `model_type` `llama` or `qwen2`, and the program it was made with honours it.
//! Ignoring it would give other log-probabilities without a word, so a value other than the neutral one is refused.
//! Names are those of configuration classes in `transformers` 5 and of models that bring their own code.

use serde_json::Value;

use super::keys::Keys;
use crate::config::{ConfigError, ModelConfig};

/// Caps, limits, counts and switches: neutral at `null`, `false`, `[]` or 0 (a cap of 0 would divide by it, a window or
/// group of 0 would hold nothing, so 0 is written for "none").
const OFF: &[&str] = &[
    // Attention: masks, caps, positions, gates, sinks.
    "alibi",
    "attention_logit_cap",
    "attention_logit_softcapping",
    "attention_sinks",
    "attn_logit_softcap",
    "attn_logit_softcapping",
    "attn_output_gate",
    "attn_temperature_tuning",
    "clip_qkv",
    "cross_attention_layers",
    "index_topk",
    "is_prefix_lm",
    "llama_4_scaling",
    "linear_attn_config",
    "max_attn_value",
    "mrope_section",
    "no_rope_layer_interval",
    "no_rope_layers",
    "num_kv_shared_layers",
    "num_sink_tokens",
    "prefix_lm",
    "qk_layernorm",
    "qk_norm",
    "rope_interleaved",
    "rope_local_base_freq",
    "sparse_attention",
    "use_alibi",
    "use_attention_sink",
    "use_attention_sinks",
    "use_bidirectional_attention",
    "use_cla",
    "use_dynamic_ntk",
    "use_gated_attention",
    "use_linear_attention",
    "use_logn_attn",
    "use_mrope",
    "use_qk_norm",
    // The residual stream and norms.
    "add_cross_attention",
    "altup_num_inputs",
    "apply_residual_connection_post_layernorm",
    "hidden_size_per_layer_input",
    "is_encoder_decoder",
    "layernorm_zero_centered",
    "normalize_embedding",
    "parallel_attn",
    "rms_norm_add_unit_offset",
    "sandwich_norm",
    "scale_embedding",
    "scale_embeddings",
    "use_parallel_residual",
    "use_post_norm",
    "use_sandwich_norm",
    // Feed-forward layers and experts.
    "mlp_bias",
    "mlp_only_layers",
    "num_experts",
    "num_local_experts",
    "swiglu_alpha",
    "swiglu_clamp",
    "swiglu_limit",
    "use_bias",
    // The head.
    "final_logit_softcap",
    "final_logit_softcapping",
    "lm_head_bias",
    "logit_softcap",
    "logits_soft_cap",
    "logits_softcap",
    "router_logit_softcapping",
    // Weights.
    "compression_config",
];

/// Factors: neutral at `null` or 1.
const ONE: &[&str] = &[
    "attention_in_multiplier",
    "attention_out_multiplier",
    "attn_output_multiplier",
    "embedding_multiplier",
    "embedding_multiplier_scale",
    "embedding_scale",
    "full_attention_interval",
    "key_multiplier",
    "lm_head_multiplier",
    "logit_scale",
    "logits_scaling",
    "mlp_multipliers",
    "mup_embeddings_multiplier",
    "mup_width_scale",
    "output_multiplier_scale",
    "partial_rotary_factor",
    "residual_multiplier",
    "residual_scale",
    "rope_percent",
    "rope_ratio",
    "rotary_pct",
    "scale_emb",
];

/// What a model here always does: neutral at `null` or `true`.
const ON: &[&str] = &["causal", "causal_mask", "is_causal", "use_causal_mask", "use_rope"];

/// The number of a formula that a configuration has.
type Derived = fn(&ModelConfig) -> f64;

/// Neutral at `null`, or where it is the number that the formula has anyway.
const DERIVED: &[(&str, Derived)] = &[
    // Granite's factor on query·key.
    ("attention_multiplier", |config| f64::from(config.softmax_scale)),
    // MiniCPM: logits are divided by hidden_size / dim_model_base.
    ("dim_model_base", |config| config.hidden_size as f64),
    // Gemma: query·key is divided by its square root.
    ("query_pre_attn_scalar", |config| config.attention.qk_dim() as f64),
    ("rotary_dim", |config| config.attention.rope_dim() as f64),
    // MiniCPM: what a layer adds is multiplied by scale_depth / √layers.
    ("scale_depth", |config| libm::sqrt(config.layers as f64)),
];

/// Windows: neutral at `null`, `false` or 0, and where no position is further away than the window reaches.
const WINDOWS: &[&str] = &["attention_chunk_size", "attention_window", WIDTH_AGAIN, "window_size"];

/// What Gemma 2 of 9B parameters has beside `sliding_window`.
pub const WIDTH_AGAIN: &str = "sliding_window_size";

const WHY: &str = "it belongs to an architecture that is not implemented";

/// Refuses every key whose value changes the arithmetic of `config`.
///
/// # Errors
/// [`ConfigError::Unsupported`] for the first one, in the order of the tables above.
pub fn check(keys: &mut Keys, config: &ModelConfig) -> Result<(), ConfigError> {
    let context = config.rope.max_positions;
    // What the family's reader has asked for is its own.
    let [off, one] =
        [OFF, ONE].map(|names| names.iter().copied().filter(|name| !keys.is_read(name)).collect::<Vec<_>>());
    let windows: Vec<_> = WINDOWS.iter().copied().filter(|name| *name != WIDTH_AGAIN || !keys.is_read(name)).collect();
    neutral_or_refused(keys, &off, is_off)?;
    neutral_or_refused(keys, &one, is_one)?;
    neutral_or_refused(keys, ON, is_on)?;
    neutral_or_refused(keys, &windows, |value| covers(value, context))?;
    for (name, derived) in DERIVED.iter().filter(|(name, _)| !keys.is_read(name)).collect::<Vec<_>>() {
        let is_derived = |value: &Value| value.as_f64().is_some_and(|number| number as f32 == derived(config) as f32);
        if keys.get(name).is_some_and(|value| !value.is_null() && !is_derived(value)) {
            return Err(keys.unsupported(name, WHY));
        }
    }
    Ok(())
}

fn neutral_or_refused(
    keys: &mut Keys,
    names: &[&'static str],
    is_neutral: impl Fn(&Value) -> bool,
) -> Result<(), ConfigError> {
    match names.iter().find(|name| keys.get(name).is_some_and(|value| !is_neutral(value))) {
        Some(name) => Err(keys.unsupported(name, WHY)),
        None => Ok(()),
    }
}

/// Whether a sliding window or a chunk of attention holds the whole context, or is none.
pub fn covers(window: &Value, context: usize) -> bool {
    is_off(window) || window.as_u64().is_some_and(|window| window >= context as u64)
}

fn is_off(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(list) => list.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        _ => false,
    }
}

fn is_one(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.iter().all(|element| element.as_f64() == Some(1.0)),
        _ => value.as_f64() == Some(1.0),
    }
}

fn is_on(value: &Value) -> bool {
    matches!(value, Value::Null | Value::Bool(true))
}

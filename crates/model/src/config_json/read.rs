//! `config.json` → [`ModelConfig`].

use serde_json::Value;

use super::foreign::{self, covers};
use super::keys::{Keys, abbreviate};
use super::rope;
use crate::config::{Attention, ConfigError, Family, ModelConfig, MoeConfig, Note, RopeLayout, Router, SoftmaxMethod};
use crate::names;

/// Limits that keep every product of sizes within 64 bits and every list within memory.
mod limit {
    pub const HIDDEN: usize = 1 << 20;
    pub const INTERMEDIATE: usize = 1 << 22;
    pub const VOCAB: usize = 1 << 24;
    pub const LAYERS: usize = 1 << 10;
    pub const HEADS: usize = 1 << 14;
    pub const HEAD_DIM: usize = 1 << 12;
    /// Heads times their width.
    pub const HEADS_WIDTH: usize = 1 << 22;
    pub const EXPERTS: usize = 1 << 12;
    /// Experts times layers.
    pub const EXPERTS_TOTAL: usize = 1 << 17;
    pub const POSITIONS: usize = 1 << 28;
    pub const PARAMS: u64 = 1 << 46;
}

/// Keys that say nothing about the arithmetic of a causal language model's forward pass.
const IRRELEVANT: &[&str] = &[
    "architectures",
    "_name_or_path",
    "aux_loss_alpha",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "ep_size",
    "head_dim",
    "id2label",
    "is_llama_config",
    "label2id",
    "model_type",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "pretraining_tp",
    "problem_type",
    "return_dict",
    "router_aux_loss_coef",
    "seq_aux",
    "torch_dtype",
    "transformers.js_config",
    "transformers_version",
    "use_cache",
];

/// The configuration, and what was passed over in the file.
pub fn read(text: &str) -> Result<(ModelConfig, Vec<Note>), ConfigError> {
    let json: Value = serde_json::from_str(text)?;
    let Value::Object(map) = &json else {
        return Err(ConfigError::NotAnObject { found: type_name(&json) });
    };
    let mut keys = Keys::new(map, "");
    let config = read_model(&mut keys)?;
    foreign::check(&mut keys, &config)?;
    let params = names::param_specs(&config).iter().fold(0u64, |sum, spec| sum.saturating_add(spec.len() as u64));
    if params > limit::PARAMS {
        return Err(ConfigError::TooLarge { params, max: limit::PARAMS });
    }
    note_dropout(&mut keys)?;
    note_token_ids(&mut keys, &config);
    for key in keys.unread() {
        if !IRRELEVANT.contains(&key) {
            keys.notes.push(Note(format!("config.json: unknown key `{key}` = {} is ignored", abbreviate(&map[key]))));
        }
    }
    Ok((config, keys.notes))
}

fn read_model(keys: &mut Keys) -> Result<ModelConfig, ConfigError> {
    let family = read_family(keys)?;
    let defaults = Defaults::of(family);
    let hidden_size = keys.size("hidden_size", Some(defaults.hidden_size), limit::HIDDEN)?;
    let layers = keys.size("num_hidden_layers", Some(defaults.layers), limit::LAYERS)?;
    let attention =
        if family.is_deepseek() { read_mla(keys, &defaults)? } else { read_gqa(keys, family, hidden_size)? };
    let layout = read_layout(keys, family)?;
    let max_positions = keys.size("max_position_embeddings", Some(defaults.max_positions), limit::POSITIONS)?;
    let rope = rope::read(keys, max_positions, layout)?;
    let moe = if family.is_deepseek() { Some(read_moe(keys, family, layers)?) } else { None };
    for key in ["hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"] {
        keys.check_word(key, &["silu", "swish", "swiglu"], "only SwiGLU with silu is implemented")?;
    }
    keys.check_word("position_embedding_type", &["rope", "rotary"], "only rotary positions are implemented")?;
    keys.check_word("norm_type", &["rms_norm", "rmsnorm", "RMSNorm"], "only RMS norms are implemented")?;
    check_windows(keys, family, layers, max_positions)?;
    check_quantization(keys)?;
    Ok(ModelConfig {
        family,
        hidden_size,
        layers,
        vocab_size: keys.size("vocab_size", Some(defaults.vocab_size), limit::VOCAB)?,
        norm_eps: keys.real("rms_norm_eps", Some(1e-6), 1e-30, 1.0)? as f32,
        softmax_scale: rope::softmax_scale(&attention, &rope.scaling),
        rope,
        attention,
        dense_intermediate: keys.size("intermediate_size", Some(defaults.intermediate), limit::INTERMEDIATE)?,
        moe,
        mtp_depth: read_mtp_depth(keys, family)?,
        tied_head: keys.flag("tie_word_embeddings", false)?,
        bos_id: keys.token_ids("bos_token_id")?.map_or(defaults.bos_id, |ids| ids.first().copied()),
        eos_ids: keys.token_ids("eos_token_id")?.unwrap_or_else(|| defaults.eos_id.into_iter().collect()),
        pad_id: keys.token_ids("pad_token_id")?.and_then(|ids| ids.first().copied()),
        init_std: keys.real("initializer_range", Some(0.02), 0.0, 1.0)? as f32,
    })
}

fn read_family(keys: &mut Keys) -> Result<Family, ConfigError> {
    let found = match keys.get("model_type") {
        None | Some(Value::Null) => return Err(ConfigError::Missing { key: "model_type".into() }),
        Some(Value::String(word)) => word,
        Some(other) => return Err(keys.wrong_type("model_type", other, "a string")),
    };
    let family = Family::ALL.into_iter().find(|family| family.model_type() == found);
    family.ok_or_else(|| ConfigError::ModelType { found: found.chars().take(60).collect() })
}

/// Defaults of the configuration classes in `transformers` 5 where the families differ.
struct Defaults {
    hidden_size: usize,
    layers: usize,
    heads: usize,
    vocab_size: usize,
    intermediate: usize,
    max_positions: usize,
    bos_id: Option<u32>,
    eos_id: Option<u32>,
}

impl Defaults {
    fn of(family: Family) -> Defaults {
        let (hidden_size, layers, heads) = match family {
            Family::DeepseekV3 => (7168, 61, 128),
            Family::DeepseekV2 | Family::Qwen2 | Family::Llama => (4096, 32, 32),
        };
        let (vocab_size, intermediate, max_positions) = match family {
            Family::DeepseekV3 => (129280, 18432, 4096),
            Family::DeepseekV2 => (102400, 11008, 2048),
            Family::Qwen2 => (151936, 22016, 32768),
            Family::Llama => (32000, 11008, 2048),
        };
        let (bos_id, eos_id) = match family {
            Family::DeepseekV3 => (Some(0), Some(1)),
            Family::DeepseekV2 | Family::Llama => (Some(1), Some(2)),
            Family::Qwen2 => (None, None),
        };
        Defaults { hidden_size, layers, heads, vocab_size, intermediate, max_positions, bos_id, eos_id }
    }
}

fn read_mla(keys: &mut Keys, defaults: &Defaults) -> Result<Attention, ConfigError> {
    let heads = keys.size("num_attention_heads", Some(defaults.heads), limit::HEADS)?;
    let kv_heads = keys.size("num_key_value_heads", Some(heads), limit::HEADS)?;
    if kv_heads != heads {
        let why = "in MLA every head has its own keys and values";
        return Err(keys.contradiction("num_key_value_heads", kv_heads, "num_attention_heads", heads, why));
    }
    let q_lora_rank = keys.optional_size("q_lora_rank", Some(1536), limit::HIDDEN)?;
    let kv_lora_rank = keys.size("kv_lora_rank", Some(512), limit::HIDDEN)?;
    let nope_dim = keys.size("qk_nope_head_dim", Some(128), limit::HEAD_DIM)?;
    let rope_dim = keys.size("qk_rope_head_dim", Some(64), limit::HEAD_DIM)?;
    let v_dim = keys.size("v_head_dim", Some(128), limit::HEAD_DIM)?;
    check_even(keys, "qk_rope_head_dim", rope_dim)?;
    let qk_dim = keys.size("qk_head_dim", Some(nope_dim + rope_dim), 2 * limit::HEAD_DIM)?;
    if qk_dim != nope_dim + rope_dim {
        let why = "it is the sum of qk_nope_head_dim and qk_rope_head_dim";
        return Err(keys.contradiction("qk_head_dim", qk_dim, "qk_rope_head_dim", rope_dim, why));
    }
    check_heads_width(keys, heads, qk_dim.max(nope_dim + v_dim))?;
    if keys.flag("attention_bias", false)? {
        return Err(
            keys.unsupported("attention_bias", "MLA is implemented without biases, as all published models are")
        );
    }
    Ok(Attention::Mla { heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim })
}

fn read_gqa(keys: &mut Keys, family: Family, hidden_size: usize) -> Result<Attention, ConfigError> {
    let heads = keys.size("num_attention_heads", Some(32), limit::HEADS)?;
    // Qwen2's class has a default of 32, Llama's has none; both mean "as many as query heads" for a null.
    let kv_default = if family == Family::Qwen2 && !keys.has("num_key_value_heads") { 32 } else { heads };
    let kv_heads = keys.size("num_key_value_heads", Some(kv_default), limit::HEADS)?;
    if !heads.is_multiple_of(kv_heads) {
        let why = "query heads are shared out evenly over key-value heads";
        return Err(keys.contradiction("num_attention_heads", heads, "num_key_value_heads", kv_heads, why));
    }
    let head_dim = match keys.optional_size("head_dim", None, limit::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let why = "without head_dim, the hidden size is divided evenly over the heads";
            return Err(keys.contradiction("hidden_size", hidden_size, "num_attention_heads", heads, why));
        }
    };
    check_even(keys, "head_dim", head_dim)?;
    check_heads_width(keys, heads, head_dim)?;
    let bias = keys.flag("attention_bias", family == Family::Qwen2)?;
    if family == Family::Qwen2 && !bias {
        return Err(keys.unsupported("attention_bias", "qwen2 has biases on query, key and value"));
    }
    Ok(Attention::Gqa { heads, kv_heads, head_dim, qkv_bias: bias, o_bias: bias && family == Family::Llama })
}

fn read_layout(keys: &mut Keys, family: Family) -> Result<RopeLayout, ConfigError> {
    let natural = family.is_deepseek();
    let interleaved = keys.flag("rope_interleave", natural)?;
    if interleaved != natural && family != Family::DeepseekV3 {
        return Err(keys.unsupported("rope_interleave", "only deepseek_v3 has a choice of layouts"));
    }
    Ok(if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit })
}

fn read_moe(keys: &mut Keys, family: Family, layers: usize) -> Result<MoeConfig, ConfigError> {
    let v3 = family == Family::DeepseekV3;
    let experts = keys.size("n_routed_experts", Some(if v3 { 256 } else { 64 }), limit::EXPERTS)?;
    if experts * layers > limit::EXPERTS_TOTAL {
        let why = "more than 131072 experts in all";
        return Err(keys.contradiction("n_routed_experts", experts, "num_hidden_layers", layers, why));
    }
    let shared = if keys.is_null("n_shared_experts") { 0 } else { if v3 { 1 } else { 2 } };
    let shared_experts = keys.integer("n_shared_experts", Some(shared), 0, limit::EXPERTS)?;
    let width = keys.size("moe_intermediate_size", Some(if v3 { 2048 } else { 1407 }), limit::INTERMEDIATE)?;
    if shared_experts * width > limit::INTERMEDIATE {
        let why = "the shared experts together are too wide";
        return Err(keys.contradiction("n_shared_experts", shared_experts, "moe_intermediate_size", width, why));
    }
    let top_k = keys.size("num_experts_per_tok", v3.then_some(8), limit::EXPERTS)?;
    let first_dense = keys.integer("first_k_dense_replace", Some(if v3 { 3 } else { 0 }), 0, limit::LAYERS)?;
    if first_dense > layers {
        let why = "there are not that many layers to keep dense";
        return Err(keys.contradiction("first_k_dense_replace", first_dense, "num_hidden_layers", layers, why));
    }
    if keys.size("moe_layer_freq", Some(1), limit::LAYERS)? != 1 {
        return Err(keys.unsupported("moe_layer_freq", "every layer after the dense ones has experts"));
    }
    let router = if v3 { read_sigmoid(keys, experts, top_k)? } else { read_softmax(keys, experts, top_k)? };
    let expert_intermediate = width;
    Ok(MoeConfig { experts, shared_experts, top_k, expert_intermediate, first_dense_layers: first_dense, router })
}

fn read_sigmoid(keys: &mut Keys, experts: usize, top_k: usize) -> Result<Router, ConfigError> {
    keys.check_word("topk_method", &["noaux_tc"], "deepseek_v3 selects with `noaux_tc`")?;
    keys.check_word("scoring_func", &["sigmoid"], "deepseek_v3 scores with `sigmoid`")?;
    let (groups, top_groups) = read_groups(keys, (8, 4), experts, top_k)?;
    if groups > 1 && experts / groups < 2 {
        let why = "a group is ranked by its two best experts";
        return Err(keys.contradiction("n_group", groups, "n_routed_experts", experts, why));
    }
    let normalize = keys.flag("norm_topk_prob", true)?;
    let scale = keys.real("routed_scaling_factor", Some(2.5), 1e-6, 1e6)? as f32;
    Ok(Router::Sigmoid { groups, top_groups, normalize, scale })
}

fn read_softmax(keys: &mut Keys, experts: usize, top_k: usize) -> Result<Router, ConfigError> {
    keys.check_word("scoring_func", &["softmax"], "deepseek_v2 scores with `softmax`")?;
    if keys.flag("norm_topk_prob", false)? {
        // DeepSeek's own code then normalises and drops the scale; `transformers` ignores the key.
        return Err(keys.unsupported("norm_topk_prob", "published programs disagree about its meaning in deepseek_v2"));
    }
    let word = keys.word("topk_method")?.unwrap_or("greedy");
    let method = match word {
        "greedy" if top_k > experts => {
            let why = "a token cannot use more experts than there are";
            return Err(keys.contradiction("num_experts_per_tok", top_k, "n_routed_experts", experts, why));
        }
        "greedy" => {
            keys.mark(&["n_group", "topk_group"]);
            SoftmaxMethod::Greedy
        }
        "group_limited_greedy" => {
            let (groups, top_groups) = read_groups(keys, (1, 1), experts, top_k)?;
            SoftmaxMethod::GroupLimited { groups, top_groups }
        }
        _ => return Err(keys.unsupported("topk_method", "deepseek_v2 has `greedy` and `group_limited_greedy`")),
    };
    let scale = keys.real("routed_scaling_factor", Some(1.0), 1e-6, 1e6)? as f32;
    Ok(Router::Softmax { method, scale })
}

/// `n_group` and `topk_group`, a null meaning 1.
fn read_groups(
    keys: &mut Keys,
    defaults: (usize, usize),
    experts: usize,
    top_k: usize,
) -> Result<(usize, usize), ConfigError> {
    let groups = keys.optional_size("n_group", Some(defaults.0), limit::EXPERTS)?.unwrap_or(1);
    let top_groups = keys.optional_size("topk_group", Some(defaults.1), limit::EXPERTS)?.unwrap_or(1);
    if !experts.is_multiple_of(groups) {
        let why = "groups have equally many experts";
        return Err(keys.contradiction("n_group", groups, "n_routed_experts", experts, why));
    }
    if top_groups > groups {
        let why = "a token cannot use more groups than there are";
        return Err(keys.contradiction("topk_group", top_groups, "n_group", groups, why));
    }
    if top_k > top_groups * (experts / groups) {
        let why = "the allowed groups hold fewer experts";
        return Err(keys.contradiction("num_experts_per_tok", top_k, "topk_group", top_groups, why));
    }
    Ok((groups, top_groups))
}

fn read_mtp_depth(keys: &mut Keys, family: Family) -> Result<usize, ConfigError> {
    // The class default is 1, but a file that does not mention MTP has no weights for it.
    let depth = keys.integer("num_nextn_predict_layers", Some(0), 0, 16)?;
    let alias = keys.integer("num_mtp_layers", Some(depth), 0, 16)?;
    if keys.has("num_nextn_predict_layers") && alias != depth {
        let why = "they are two names of one number";
        return Err(keys.contradiction("num_mtp_layers", alias, "num_nextn_predict_layers", depth, why));
    }
    if alias > 0 && family != Family::DeepseekV3 {
        return Err(keys.unsupported("num_nextn_predict_layers", "only deepseek_v3 has MTP layers"));
    }
    Ok(alias)
}

/// Sliding windows are accepted where no layer uses one, and where they reach over the whole context.
fn check_windows(keys: &mut Keys, family: Family, layers: usize, max_positions: usize) -> Result<(), ConfigError> {
    const WHY: &str = "attention over a sliding window is not implemented";
    let reaches = |width: Option<&Value>| width.and_then(Value::as_u64).is_some_and(|it| it >= max_positions as u64);
    let window = keys.get("sliding_window");
    let chunk = keys.get("attention_chunk_size");
    let used = keys.flag("use_sliding_window", false)?;
    let first = keys.integer("max_window_layers", Some(28), 0, usize::MAX >> 1)?;
    if let Some(types) = keys.get("layer_types").filter(|types| !types.is_null()) {
        // A type without its width is none that can be judged.
        let full = |word: &Value| match word.as_str() {
            Some("full_attention") => true,
            Some("sliding_attention") => reaches(window),
            Some("chunked_attention") => reaches(chunk),
            _ => false,
        };
        if !types.as_array().is_some_and(|list| list.iter().all(full)) {
            return Err(keys.unsupported("layer_types", "every layer has to have `full_attention`"));
        }
    }
    if window.is_none_or(|window| covers(window, max_positions)) {
        return Ok(());
    }
    if family == Family::Qwen2 && used && first < layers {
        return Err(keys.unsupported("use_sliding_window", WHY));
    }
    if family != Family::Qwen2 && (used || !keys.has("use_sliding_window")) {
        return Err(keys.unsupported("sliding_window", WHY));
    }
    Ok(())
}

fn check_even(keys: &Keys, key: &'static str, width: usize) -> Result<(), ConfigError> {
    if width.is_multiple_of(2) {
        return Ok(());
    }
    Err(ConfigError::Unsupported {
        key: keys.path(key),
        value: width.to_string(),
        why: "rotary elements come in pairs",
    })
}

fn check_heads_width(keys: &Keys, heads: usize, width: usize) -> Result<(), ConfigError> {
    if heads * width <= limit::HEADS_WIDTH {
        return Ok(());
    }
    let why = "the heads together are wider than 4194304";
    Err(keys.contradiction("num_attention_heads", heads, "head width", width, why))
}

/// FP8 with blocks of 128×128 is dequantised when loaded; every other quantisation is refused.
fn check_quantization(keys: &mut Keys) -> Result<(), ConfigError> {
    const WHY: &str = "of quantised files, only fp8 e4m3 with weight blocks of 128x128 is read";
    let quantization = match keys.get("quantization_config") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Object(map)) => map,
        Some(other) => return Err(keys.wrong_type("quantization_config", other, "an object")),
    };
    let mut inner = Keys::new(quantization, "quantization_config.");
    if inner.word("quant_method")?.is_none() {
        return Err(ConfigError::Missing { key: "quantization_config.quant_method".into() });
    }
    inner.check_word("quant_method", &["fp8"], WHY)?;
    inner.check_word("fmt", &["e4m3"], WHY)?;
    let block = inner.get("weight_block_size");
    if block.is_some_and(|block| !block.is_null() && *block != serde_json::json!([128, 128])) {
        return Err(inner.unsupported("weight_block_size", WHY));
    }
    keys.notes
        .push(Note("config.json: fp8 weights are converted when loaded; activations are not quantised".to_owned()));
    Ok(())
}

fn note_dropout(keys: &mut Keys) -> Result<(), ConfigError> {
    for key in ["attention_dropout", "hidden_dropout", "resid_pdrop", "embd_pdrop", "attn_pdrop"] {
        let rate = keys.real(key, Some(0.0), 0.0, 1.0)?;
        if rate > 0.0 {
            keys.notes.push(Note(format!("config.json: `{key}` = {rate} is ignored (training uses no dropout)")));
        }
    }
    Ok(())
}

fn note_token_ids(keys: &mut Keys, config: &ModelConfig) {
    for (key, ids) in [
        ("bos_token_id", config.bos_id.as_slice()),
        ("eos_token_id", &config.eos_ids),
        ("pad_token_id", config.pad_id.as_slice()),
    ] {
        for id in ids.iter().filter(|id| **id as usize >= config.vocab_size) {
            let vocab_size = config.vocab_size;
            keys.notes.push(Note(format!("config.json: `{key}` = {id} is outside the vocabulary of {vocab_size}")));
        }
    }
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

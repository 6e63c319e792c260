//! `config.json` → [`ModelConfig`].

use serde_json::Value;

use super::compressed::{self, Compressed};
use super::foreign;
use super::keys::{Keys, abbreviate};
use super::{rope, window};
use crate::config::{
    Attention, ConfigError, Family, Gating, Indexer, ModelConfig, MoeConfig, Note, RopeLayout, Router, SoftmaxMethod,
};
use crate::family::{AttentionKeys, Biases, CapKeys, Defaults, ExpertKeys, GatingKeys, QkNorm, RouterKeys};
use crate::names;

/// Limits that keep every product of sizes within 64 bits and every list within memory.
pub(super) mod limit {
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
    "_sliding_window_pattern",
    "aux_loss_alpha",
    "auto_map",
    "chunk_size_feed_forward",
    "dtype",
    "ep_size",
    "initial_context_length",
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
    "router_jitter_noise",
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
    let row = family.row();
    let defaults = &row.defaults;
    let hidden_size = keys.size("hidden_size", Some(defaults.hidden_size), limit::HIDDEN)?;
    let layers = keys.size("num_hidden_layers", Some(defaults.layers), limit::LAYERS)?;
    let max_positions = keys.size("max_position_embeddings", Some(defaults.max_positions), limit::POSITIONS)?;
    let Compressed { attention, rope, indexer, streams } = match row.attention {
        AttentionKeys::Compressed => compressed::read(keys, layers, max_positions, defaults)?,
        _ => read_usual(keys, family, (hidden_size, layers), max_positions)?,
    };
    rope::check_divisors(keys, &rope.scaling, attention.rope_dim())?;
    let moe = match &row.experts {
        Some(experts) => Some(read_moe(keys, family, experts, layers)?),
        None => None,
    };
    check_activations(keys, row.gating)?;
    let caps = read_caps(keys, row.caps)?;
    keys.check_word("position_embedding_type", &["rope", "rotary"], "only rotary positions are implemented")?;
    keys.check_word("norm_type", &["rms_norm", "rmsnorm", "RMSNorm"], "only RMS norms are implemented")?;
    let window = window::read(keys, row.windows, layers, max_positions)?;
    check_quantization(keys, family)?;
    Ok(ModelConfig {
        family,
        hidden_size,
        layers,
        vocab_size: keys.size("vocab_size", Some(defaults.vocab_size), limit::VOCAB)?,
        indexer,
        streams,
        norm_eps: keys.real("rms_norm_eps", Some(defaults.norm_eps), 1e-30, 1.0)? as f32,
        window,
        softmax_scale: caps.scale.unwrap_or_else(|| rope::softmax_scale(&attention, &rope.scaling)),
        attention_cap: caps.attention,
        logit_cap: caps.logits,
        rope,
        dense_intermediate: match (&attention, &moe) {
            // Without dense layers the key is another name of the experts' width.
            (Attention::Compressed { .. }, Some(moe)) => {
                keys.mark(&["intermediate_size"]);
                moe.expert_intermediate
            }
            _ => keys.size("intermediate_size", Some(defaults.intermediate), limit::INTERMEDIATE)?,
        },
        attention,
        gating: read_gating(keys, row.gating)?,
        moe,
        mtp_depth: read_mtp_depth(keys, family)?,
        tied_head: keys.flag("tie_word_embeddings", row.tied_head)?,
        bos_id: keys.token_ids("bos_token_id")?.map_or(defaults.bos_id, |ids| ids.first().copied()),
        eos_ids: keys.token_ids("eos_token_id")?.unwrap_or_else(|| defaults.eos_id.into_iter().collect()),
        pad_id: keys.token_ids("pad_token_id")?.and_then(|ids| ids.first().copied()),
        init_std: keys.real("initializer_range", Some(0.02), 0.0, 1.0)? as f32,
    })
}

/// Attention, rotation and indexer of families with keys and values for each token, and one stream.
fn read_usual(
    keys: &mut Keys,
    family: Family,
    (hidden_size, layers): (usize, usize),
    max_positions: usize,
) -> Result<Compressed, ConfigError> {
    let row = family.row();
    let layout = read_layout(keys, family)?;
    let partial = match row.attention {
        AttentionKeys::Mla | AttentionKeys::Compressed => None,
        AttentionKeys::Gqa { partial_rotary, .. } => partial_rotary,
    };
    if family == Family::GptOss && !["rope_theta", "rope_parameters"].into_iter().any(|key| keys.has(key)) {
        return Err(ConfigError::Missing { key: "rope_theta".into() });
    }
    let (mut rope, rotary_part) = rope::read(keys, max_positions, layout, partial, family)?;
    if family == Family::Gemma3 {
        let sliding = window::sliding(keys, row.windows, layers)?;
        rope.local = rope::read_local(keys, sliding)?;
    }
    let attention = match &row.attention {
        AttentionKeys::Mla => read_mla(keys, &row.defaults)?,
        gqa => read_gqa(keys, family, gqa, hidden_size, rotary_part)?,
    };
    let indexer = if family.has_indexer() { Some(read_indexer(keys, &attention)?) } else { None };
    Ok(Compressed { attention, rope, indexer, streams: None })
}

fn read_gating(keys: &mut Keys, described: GatingKeys) -> Result<Gating, ConfigError> {
    match described {
        GatingKeys::Silu => Ok(Gating::Silu),
        GatingKeys::GeluTanh => Ok(Gating::GeluTanh),
        GatingKeys::Clamped => {
            let alpha = keys.real("swiglu_alpha", Some(1.702), 1e-3, 1e3)? as f32;
            let limit = keys.real("swiglu_limit", Some(7.0), 1e-3, 1e6)? as f32;
            Ok(Gating::Clamped { alpha, limit })
        }
        GatingKeys::Limited => Ok(Gating::Limited { limit: keys.real("swiglu_limit", Some(10.0), 1e-3, 1e6)? as f32 }),
    }
}

fn check_activations(keys: &mut Keys, gating: GatingKeys) -> Result<(), ConfigError> {
    if gating == GatingKeys::GeluTanh {
        // The published files of gemma2 have `hidden_act` too, which `transformers` passes over.
        keys.mark(&["hidden_act"]);
        return keys.check_word("hidden_activation", &["gelu_pytorch_tanh"], "the gates are GELU in its tanh form");
    }
    for key in ["hidden_act", "hidden_activation", "activation_function", "mlp_hidden_act"] {
        keys.check_word(key, &["silu", "swish", "swiglu"], "only SwiGLU with silu is implemented")?;
    }
    Ok(())
}

/// Soft caps, and the scale of scores where it is said beside them.
#[derive(Default)]
struct Caps {
    attention: Option<f32>,
    logits: Option<f32>,
    scale: Option<f32>,
}

fn read_caps(keys: &mut Keys, described: Option<CapKeys>) -> Result<Caps, ConfigError> {
    let Some(CapKeys { attention, logits, query_scalar }) = described else { return Ok(Caps::default()) };
    let mut cap = |key, absent: Option<f64>| match keys.has(key) {
        true => keys.real(key, None, 1e-3, 1e6).map(|cap| Some(cap as f32)),
        false if keys.is_null(key) => Ok(None),
        false => Ok(absent.map(|cap| cap as f32)),
    };
    let (attention, logits) = (cap("attn_logit_softcapping", attention)?, cap("final_logit_softcapping", logits)?);
    keys.mark(&["attn_logit_softcapping", "final_logit_softcapping"]);
    let scalar = keys.size("query_pre_attn_scalar", Some(query_scalar), limit::HIDDEN)?;
    Ok(Caps { attention, logits, scale: Some((1.0 / (scalar as f64).sqrt()) as f32) })
}

fn read_family(keys: &mut Keys) -> Result<Family, ConfigError> {
    let found = match keys.get("model_type") {
        None | Some(Value::Null) => return Err(ConfigError::Missing { key: "model_type".into() }),
        Some(Value::String(word)) => word,
        Some(other) => return Err(keys.wrong_type("model_type", other, "a string")),
    };
    Family::of_model_type(found).ok_or_else(|| ConfigError::ModelType { found: found.chars().take(60).collect() })
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

fn read_indexer(keys: &mut Keys, attention: &Attention) -> Result<Indexer, ConfigError> {
    let heads = keys.size("index_n_heads", Some(64), limit::HEADS)?;
    let dim = keys.size("index_head_dim", Some(128), limit::HEAD_DIM)?;
    let top_k = keys.size("index_topk", Some(2048), limit::POSITIONS)?;
    check_heads_width(keys, heads, dim)?;
    if matches!(attention, Attention::Mla { q_lora_rank: None, .. }) {
        return Err(keys.unsupported("q_lora_rank", "an indexer's queries are made from the query latent"));
    }
    if dim < attention.rope_dim() {
        let why = "a part of each index head rotates as a head's does";
        return Err(keys.contradiction("index_head_dim", dim, "qk_rope_head_dim", attention.rope_dim(), why));
    }
    Ok(Indexer { heads, dim, top_k })
}

/// `mlp_layer_types`, which says once more which layers have experts.
fn check_layer_types(keys: &mut Keys, first_dense: usize, layers: usize) -> Result<(), ConfigError> {
    let Some(types) = keys.get("mlp_layer_types").filter(|types| !types.is_null()) else { return Ok(()) };
    let expected = (0..layers).map(|layer| if layer < first_dense { "dense" } else { "sparse" });
    if types.as_array().is_some_and(|types| types.iter().map(Value::as_str).eq(expected.map(Some))) {
        return Ok(());
    }
    Err(keys.unsupported("mlp_layer_types", "the first layers are dense, as many as first_k_dense_replace says"))
}

fn read_gqa(
    keys: &mut Keys,
    family: Family,
    described: &AttentionKeys,
    hidden_size: usize,
    rotary_part: f64,
) -> Result<Attention, ConfigError> {
    let &AttentionKeys::Gqa { biases, qk_norm, head_dim, kv_heads, sinks, .. } = described else {
        unreachable!("{family:?} has grouped-query attention")
    };
    let heads = keys.size("num_attention_heads", Some(family.row().defaults.heads), limit::HEADS)?;
    // A null means "as many as query heads" in every class.
    let kv_default = kv_heads.filter(|_| !keys.is_null("num_key_value_heads")).unwrap_or(heads);
    let kv_heads = keys.size("num_key_value_heads", Some(kv_default), limit::HEADS)?;
    if !heads.is_multiple_of(kv_heads) {
        let why = "query heads are shared out evenly over key-value heads";
        return Err(keys.contradiction("num_attention_heads", heads, "num_key_value_heads", kv_heads, why));
    }
    let head_dim = match keys.optional_size("head_dim", head_dim, limit::HEAD_DIM)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            let why = "without head_dim, the hidden size is divided evenly over the heads";
            return Err(keys.contradiction("hidden_size", hidden_size, "num_attention_heads", heads, why));
        }
    };
    // Rounded towards zero, as `transformers` does.
    let rope_dim = (head_dim as f64 * rotary_part) as usize;
    let rope_key = if rope_dim == head_dim { "head_dim" } else { "partial_rotary_factor" };
    if rope_dim == 0 {
        return Err(keys.unsupported(rope_key, "a part of each head rotates"));
    }
    check_even(keys, rope_key, rope_dim)?;
    check_heads_width(keys, heads, head_dim)?;
    let (qkv_bias, o_bias) = read_biases(keys, biases)?;
    let qk_norm = match qk_norm {
        QkNorm::No => false,
        QkNorm::Always => true,
        QkNorm::Key(key) => keys.flag(key, false)?,
    };
    Ok(Attention::Gqa { heads, kv_heads, head_dim, rope_dim, qkv_bias, o_bias, qk_norm, sinks })
}

/// Whether query, key and value have biases, and whether the output has one.
fn read_biases(keys: &mut Keys, biases: Biases) -> Result<(bool, bool), ConfigError> {
    let absent = matches!(biases, Biases::QueryKeyValue | Biases::Key { absent: true, .. });
    let bias = keys.flag("attention_bias", absent)?;
    match biases {
        Biases::None if bias => Err(keys.unsupported("attention_bias", "this family has no biases")),
        Biases::None => Ok((false, false)),
        Biases::QueryKeyValue if !bias => {
            Err(keys.unsupported("attention_bias", "qwen2 has biases on query, key and value"))
        }
        Biases::QueryKeyValue => Ok((true, false)),
        Biases::Key { output, .. } => Ok((bias, bias && output)),
    }
}

fn read_layout(keys: &mut Keys, family: Family) -> Result<RopeLayout, ConfigError> {
    let natural = family.rotates_neighbours();
    let interleaved = keys.flag("rope_interleave", natural)?;
    if interleaved != natural && family != Family::DeepseekV3 {
        return Err(keys.unsupported("rope_interleave", "only deepseek_v3 has a choice of layouts"));
    }
    Ok(if interleaved { RopeLayout::Interleaved } else { RopeLayout::HalfSplit })
}

fn read_moe(keys: &mut Keys, family: Family, described: &ExpertKeys, layers: usize) -> Result<MoeConfig, ConfigError> {
    let (experts, count_key) = read_expert_count(keys, described)?;
    if experts * layers > limit::EXPERTS_TOTAL {
        let why = "more than 131072 experts in all";
        return Err(keys.contradiction(count_key, experts, "num_hidden_layers", layers, why));
    }
    let shared = if keys.is_null("n_shared_experts") { 0 } else { described.shared };
    let shared_experts = keys.integer("n_shared_experts", Some(shared), 0, limit::EXPERTS)?;
    let width = keys.size(described.width, Some(described.intermediate), limit::INTERMEDIATE)?;
    if shared_experts * width > limit::INTERMEDIATE {
        let why = "the shared experts together are too wide";
        return Err(keys.contradiction("n_shared_experts", shared_experts, "moe_intermediate_size", width, why));
    }
    let top_k = keys.size("num_experts_per_tok", described.top_k, limit::EXPERTS)?;
    let first_dense = keys.integer("first_k_dense_replace", Some(described.first_dense), 0, limit::LAYERS)?;
    if first_dense > layers {
        let why = "there are not that many layers to keep dense";
        return Err(keys.contradiction("first_k_dense_replace", first_dense, "num_hidden_layers", layers, why));
    }
    if family.has_indexer() {
        check_layer_types(keys, first_dense, layers)?;
    }
    for key in ["moe_layer_freq", "decoder_sparse_step"] {
        if keys.size(key, Some(1), limit::LAYERS)? != 1 {
            return Err(keys.unsupported(key, "every layer after the dense ones has experts"));
        }
    }
    let router = match described.router {
        RouterKeys::Sigmoid { groups, scale } => {
            let groups = read_groups(keys, groups, (experts, count_key), top_k)?;
            read_sigmoid(keys, family, groups, (experts, count_key), scale)?
        }
        RouterKeys::SqrtSoftplus => read_sqrt_softplus(keys, (experts, count_key), top_k, layers)?,
        RouterKeys::Softmax => read_softmax(keys, (experts, count_key), top_k)?,
        RouterKeys::SoftmaxNormalized => read_softmax_normalized(keys, (experts, count_key), top_k)?,
        RouterKeys::SoftmaxOfChosen => read_softmax_of_chosen(keys, (experts, count_key), top_k)?,
    };
    if matches!(described.router, RouterKeys::SoftmaxNormalized | RouterKeys::SoftmaxOfChosen) {
        for (key, value) in [("n_shared_experts", shared_experts), ("first_k_dense_replace", first_dense)] {
            if value > 0 {
                return Err(keys.unsupported(key, "this family has routed experts in every layer, and no others"));
            }
        }
    }
    let (expert_intermediate, first_dense_layers, biases) = (width, first_dense, described.biases);
    Ok(MoeConfig { experts, shared_experts, top_k, expert_intermediate, first_dense_layers, biases, router })
}

/// The number of experts, and the key that says it.
fn read_expert_count(keys: &mut Keys, described: &ExpertKeys) -> Result<(usize, &'static str), ConfigError> {
    let mut found = None;
    for key in described.count {
        if !keys.has(key) {
            continue;
        }
        let count = keys.size(key, None, limit::EXPERTS)?;
        if let Some((other, other_key)) = found.filter(|(other, _)| *other != count) {
            return Err(keys.contradiction(key, count, other_key, other, "they are two names of one number"));
        }
        found = Some((count, *key));
    }
    keys.mark(described.count);
    Ok(found.unwrap_or((described.experts, described.count[0])))
}

fn read_sigmoid(
    keys: &mut Keys,
    family: Family,
    (groups, top_groups): (usize, usize),
    (experts, count_key): (usize, &'static str),
    scale: f64,
) -> Result<Router, ConfigError> {
    let (select, score) = match family {
        Family::Glm4Moe => ("glm4_moe selects with `noaux_tc`", "glm4_moe scores with `sigmoid`"),
        _ => ("deepseek_v3 selects with `noaux_tc`", "deepseek_v3 scores with `sigmoid`"),
    };
    keys.check_word("topk_method", &["noaux_tc"], select)?;
    keys.check_word("scoring_func", &["sigmoid"], score)?;
    if groups > 1 && experts / groups < 2 {
        let why = "a group is ranked by its two best experts";
        return Err(keys.contradiction("n_group", groups, count_key, experts, why));
    }
    let normalize = keys.flag("norm_topk_prob", true)?;
    let scale = keys.real("routed_scaling_factor", Some(scale), 1e-6, 1e6)? as f32;
    Ok(Router::Sigmoid { groups, top_groups, normalize, scale })
}

fn read_sqrt_softplus(
    keys: &mut Keys,
    experts: (usize, &'static str),
    top_k: usize,
    layers: usize,
) -> Result<Router, ConfigError> {
    check_top_k(keys, experts, top_k)?;
    keys.check_word("scoring_func", &["sqrtsoftplus"], "deepseek_v4 scores with `sqrtsoftplus`")?;
    keys.check_word("topk_method", &["noaux_tc"], "deepseek_v4 selects with `noaux_tc`")?;
    if !keys.flag("norm_topk_prob", true)? {
        return Err(keys.unsupported("norm_topk_prob", "deepseek_v4 divides the chosen scores by their sum"));
    }
    let scale = keys.real("routed_scaling_factor", Some(1.5), 1e-6, 1e6)? as f32;
    Ok(Router::SqrtSoftplus { scale, table_layers: compressed::read_table_layers(keys, layers)? })
}

fn read_softmax(keys: &mut Keys, experts: (usize, &'static str), top_k: usize) -> Result<Router, ConfigError> {
    keys.check_word("scoring_func", &["softmax"], "deepseek_v2 scores with `softmax`")?;
    if keys.flag("norm_topk_prob", false)? {
        // DeepSeek's own code then normalises and drops the scale; `transformers` ignores the key.
        return Err(keys.unsupported("norm_topk_prob", "published programs disagree about its meaning in deepseek_v2"));
    }
    let word = keys.word("topk_method")?.unwrap_or("greedy");
    let method = match word {
        "greedy" => {
            check_top_k(keys, experts, top_k)?;
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
    Ok(Router::Softmax { method, normalize: false, scale })
}

fn read_softmax_normalized(
    keys: &mut Keys,
    experts: (usize, &'static str),
    top_k: usize,
) -> Result<Router, ConfigError> {
    check_top_k(keys, experts, top_k)?;
    keys.check_word("scoring_func", &["softmax"], "qwen3_moe scores with `softmax`")?;
    keys.check_word("topk_method", &["greedy"], "qwen3_moe takes the best of all experts")?;
    for key in ["routed_scaling_factor", "shared_expert_intermediate_size"] {
        if keys.has(key) {
            return Err(keys.unsupported(key, "qwen3_moe has no such key"));
        }
    }
    if keys.get("mlp_only_layers").is_some_and(|list| !list.is_null() && *list != serde_json::json!([])) {
        return Err(keys.unsupported("mlp_only_layers", "every layer has experts"));
    }
    let normalize = keys.flag("norm_topk_prob", false)?;
    Ok(Router::Softmax { method: SoftmaxMethod::Greedy, normalize, scale: 1.0 })
}

fn read_softmax_of_chosen(
    keys: &mut Keys,
    experts: (usize, &'static str),
    top_k: usize,
) -> Result<Router, ConfigError> {
    check_top_k(keys, experts, top_k)?;
    let alias = keys.size("experts_per_token", Some(top_k), limit::EXPERTS)?;
    if alias != top_k {
        let why = "they are two names of one number";
        return Err(keys.contradiction("experts_per_token", alias, "num_experts_per_tok", top_k, why));
    }
    for key in ["routed_scaling_factor", "shared_expert_intermediate_size", "scoring_func", "topk_method"] {
        if keys.has(key) {
            return Err(keys.unsupported(key, "gpt_oss has no such key"));
        }
    }
    if !keys.flag("norm_topk_prob", true)? {
        return Err(keys.unsupported("norm_topk_prob", "gpt_oss takes the softmax of the chosen logits"));
    }
    Ok(Router::Softmax { method: SoftmaxMethod::Greedy, normalize: true, scale: 1.0 })
}

fn check_top_k(keys: &Keys, (experts, count_key): (usize, &'static str), top_k: usize) -> Result<(), ConfigError> {
    if top_k <= experts {
        return Ok(());
    }
    let why = "a token cannot use more experts than there are";
    Err(keys.contradiction("num_experts_per_tok", top_k, count_key, experts, why))
}

/// `n_group` and `topk_group`, a null meaning 1.
fn read_groups(
    keys: &mut Keys,
    defaults: (usize, usize),
    (experts, count_key): (usize, &'static str),
    top_k: usize,
) -> Result<(usize, usize), ConfigError> {
    let groups = keys.optional_size("n_group", Some(defaults.0), limit::EXPERTS)?.unwrap_or(1);
    let top_groups = keys.optional_size("topk_group", Some(defaults.1), limit::EXPERTS)?.unwrap_or(1);
    if !experts.is_multiple_of(groups) {
        let why = "groups have equally many experts";
        return Err(keys.contradiction("n_group", groups, count_key, experts, why));
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
    if family == Family::DeepseekV4 {
        return Ok(0);
    }
    // The class default is 1, but a file that does not mention MTP has no weights for it.
    let depth = keys.integer("num_nextn_predict_layers", Some(0), 0, 16)?;
    let alias = keys.integer("num_mtp_layers", Some(depth), 0, 16)?;
    if keys.has("num_nextn_predict_layers") && alias != depth {
        let why = "they are two names of one number";
        return Err(keys.contradiction("num_mtp_layers", alias, "num_nextn_predict_layers", depth, why));
    }
    if alias > 0 && !family.row().mtp {
        return Err(
            keys.unsupported("num_nextn_predict_layers", "only deepseek_v3, deepseek_v32 and glm4_moe have MTP layers")
        );
    }
    Ok(alias)
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

/// FP8 with blocks of 128×128 is dequantised when loaded, MXFP4 in gpt_oss kept; every other quantisation is refused.
fn check_quantization(keys: &mut Keys, family: Family) -> Result<(), ConfigError> {
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
    if family == Family::GptOss && inner.word("quant_method")? == Some("mxfp4") {
        return Ok(());
    }
    if family == Family::DeepseekV4 {
        let why = "of this family only files that are not quantised are read";
        return Err(keys.unsupported("quantization_config", why));
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

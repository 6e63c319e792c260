//! [`ModelConfig`] → `config.json`.
//!
//! Rotary numbers are written as `rope_theta` and `rope_scaling`: `transformers` 5 still reads them (checked with
//! 5.23), and programs from before 5 read nothing else. For the number format both `torch_dtype` and its new name
//! `dtype` are written.

use serde_json::{Map, Value, json};

use super::compressed;
use crate::config::{
    Attention, Dtype, Family, Gating, Indexer, ModelConfig, MoeConfig, RopeConfig, RopeLayout, RopeScaling, Router,
    SoftmaxMethod,
};
use crate::family::{AttentionKeys, Biases, QkNorm, RouterKeys, WindowKeys};

/// The `config.json` of a directory whose tensors have `dtype`; it reads back as `config`.
pub fn write(config: &ModelConfig, dtype: Dtype) -> String {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    put("architectures", json!([config.family.architecture()]));
    put("model_type", json!(config.family.model_type()));
    put("hidden_size", json!(config.hidden_size));
    put("num_hidden_layers", json!(config.layers));
    put("vocab_size", json!(config.vocab_size));
    if config.streams.is_none() {
        put("intermediate_size", json!(config.dense_intermediate));
    }
    match config.gating {
        Gating::GeluTanh => put("hidden_activation", json!("gelu_pytorch_tanh")),
        Gating::Silu | Gating::Clamped { .. } | Gating::Limited { .. } => put("hidden_act", json!("silu")),
    };
    put("rms_norm_eps", decimal(config.norm_eps));
    put("initializer_range", decimal(config.init_std));
    put("tie_word_embeddings", json!(config.tied_head));
    put("bos_token_id", json!(config.bos_id));
    put("eos_token_id", token_ids(&config.eos_ids));
    put("pad_token_id", json!(config.pad_id));
    put("attention_dropout", json!(0.0));
    put("use_cache", json!(true));
    if let Gating::Clamped { alpha, limit } = config.gating {
        put("swiglu_alpha", decimal(alpha));
        put("swiglu_limit", decimal(limit));
    }
    if let Gating::Limited { limit } = config.gating {
        put("swiglu_limit", decimal(limit));
    }
    put_attention(&config.attention, config.family, &mut map);
    if let Some(Indexer { heads, dim, top_k }) = config.indexer {
        map.insert("index_n_heads".into(), json!(heads));
        map.insert("index_head_dim".into(), json!(dim));
        map.insert("index_topk".into(), json!(top_k));
    }
    compressed::write(config, &mut map);
    put_caps(config, &mut map);
    put_window(config, &mut map);
    put_rope(&config.rope, config.family, &mut map);
    if let Some(moe) = &config.moe {
        put_moe(moe, config.family, &mut map);
    }
    if config.family.row().mtp {
        map.insert("num_nextn_predict_layers".into(), json!(config.mtp_depth));
    }
    put_dtype(dtype, &mut map);
    let mut text = serde_json::to_string_pretty(&map).expect("a map of plain values is always valid JSON");
    text.push('\n');
    text
}

fn put_attention(attention: &Attention, family: Family, map: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    match *attention {
        Attention::Mla { heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim } => {
            put("num_attention_heads", json!(heads));
            put("num_key_value_heads", json!(heads));
            put("q_lora_rank", json!(q_lora_rank));
            put("kv_lora_rank", json!(kv_lora_rank));
            put("qk_nope_head_dim", json!(nope_dim));
            put("qk_rope_head_dim", json!(rope_dim));
            put("v_head_dim", json!(v_dim));
            put("attention_bias", json!(false));
        }
        Attention::Compressed { .. } => {}
        Attention::Gqa { heads, kv_heads, head_dim, rope_dim, qkv_bias, qk_norm, .. } => {
            put("num_attention_heads", json!(heads));
            put("num_key_value_heads", json!(kv_heads));
            put("head_dim", json!(head_dim));
            let AttentionKeys::Gqa { biases, qk_norm: norm, partial_rotary, .. } = family.row().attention else {
                unreachable!("{family:?} has grouped-query attention")
            };
            if let Biases::Key { .. } = biases {
                put("attention_bias", json!(qkv_bias));
            }
            if let QkNorm::Key(key) = norm {
                put(key, json!(qk_norm));
            }
            if partial_rotary.is_some() {
                put("partial_rotary_factor", json!(part_of(rope_dim, head_dim)));
            }
        }
    }
}

fn put_caps(config: &ModelConfig, map: &mut Map<String, Value>) {
    if config.family.row().caps.is_some() {
        let cap = |cap: Option<f32>| cap.map_or(Value::Null, decimal);
        map.insert("attn_logit_softcapping".into(), cap(config.attention_cap));
        map.insert("final_logit_softcapping".into(), cap(config.logit_cap));
        map.insert("query_pre_attn_scalar".into(), json!(query_scalar(config)));
    }
}

/// The whole number whose inverse root is the scale of scores.
pub fn query_scalar(config: &ModelConfig) -> u64 {
    f64::from(config.softmax_scale).powi(-2).round() as u64
}

fn put_window(config: &ModelConfig, map: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let width = config.window.as_ref().map(|window| window.width);
    match config.family.row().windows {
        WindowKeys::None | WindowKeys::Indexed | WindowKeys::Compressed => {}
        // Layers with a window that holds the whole context still rotate as such.
        WindowKeys::Every { .. } if config.rope.local.is_some() => {
            put("sliding_window", json!(width.unwrap_or(config.rope.max_positions)));
        }
        WindowKeys::All | WindowKeys::AllIfSaid | WindowKeys::Every { .. } => _ = put("sliding_window", json!(width)),
        WindowKeys::SwitchedAll | WindowKeys::Switched => {
            put("use_sliding_window", json!(width.is_some()));
            put("sliding_window", json!(width));
        }
    }
    let word = |slides: &bool| if *slides { "sliding_attention" } else { "full_attention" };
    if let WindowKeys::Every { .. } = config.family.row().windows {
        put("layer_types", config.sliding_layers().iter().map(word).collect());
    }
    if let (WindowKeys::Switched, Some(window)) = (config.family.row().windows, &config.window) {
        // For programs that do not know `layer_types`.
        let full = window.layers.iter().position(|slides| *slides).unwrap_or(window.layers.len());
        put("max_window_layers", json!(full));
        put("layer_types", window.layers.iter().map(word).collect());
    }
}

/// A factor by which `whole` is at least `part` and less than one more.
pub fn part_of(part: usize, whole: usize) -> f64 {
    let factor = part as f64 / whole as f64;
    if (whole as f64 * factor) as usize == part { factor } else { factor.next_up() }
}

fn put_rope(rope: &RopeConfig, family: Family, map: &mut Map<String, Value>) {
    map.insert("max_position_embeddings".into(), json!(rope.max_positions));
    if family == Family::DeepseekV4 {
        map.insert("compress_rope_theta".into(), number(rope.base));
        map.insert("rope_theta".into(), number(rope.local.as_ref().map_or(10_000.0, |local| local.base)));
        map.insert("rope_scaling".into(), rope_scaling(rope));
        return;
    }
    map.insert("rope_theta".into(), number(rope.base));
    if let Some(local) = &rope.local {
        map.insert("rope_local_base_freq".into(), number(local.base));
    }
    // Without one, `transformers` gives gpt_oss the YaRN of the published models.
    if let RopeScaling::Long { original_max_positions, .. } = rope.scaling {
        map.insert("original_max_position_embeddings".into(), json!(original_max_positions));
    }
    let scaling = match rope_scaling(rope) {
        Value::Null if family == Family::GptOss => json!({"rope_type": "default"}),
        scaling => scaling,
    };
    map.insert("rope_scaling".into(), scaling);
    if family == Family::DeepseekV3 {
        map.insert("rope_interleave".into(), json!(rope.layout == RopeLayout::Interleaved));
    }
}

fn rope_scaling(rope: &RopeConfig) -> Value {
    let mut map = Map::new();
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    match rope.scaling {
        RopeScaling::None => return Value::Null,
        RopeScaling::Linear { factor } => {
            put("rope_type", json!("linear"));
            put("factor", json!(factor));
        }
        RopeScaling::Long { ref short, ref long, original_max_positions, table_scale } => {
            put("type", json!("longrope"));
            put("rope_type", json!("longrope"));
            put("short_factor", json!(short));
            put("long_factor", json!(long));
            let factor = rope.max_positions as f64 / original_max_positions as f64;
            if table_scale != super::rope::long_table_scale(factor, original_max_positions) {
                put("attention_factor", json!(table_scale));
            }
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            put("rope_type", json!("llama3"));
            put("factor", json!(factor));
            put("low_freq_factor", json!(low_freq_factor));
            put("high_freq_factor", json!(high_freq_factor));
            put("original_max_position_embeddings", json!(original_max_positions));
        }
        RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            original_max_positions,
            truncate,
            mscale,
            mscale_all_dim,
            table_scale,
        } => {
            // `type` beside `rope_type`: DeepSeek's own modelling code reads the older name.
            put("type", json!("yarn"));
            put("rope_type", json!("yarn"));
            put("factor", json!(factor));
            put("beta_fast", json!(beta_fast));
            put("beta_slow", json!(beta_slow));
            put("original_max_position_embeddings", json!(original_max_positions));
            for (key, value) in [("mscale", mscale), ("mscale_all_dim", mscale_all_dim)] {
                if let Some(value) = value {
                    put(key, json!(value));
                }
            }
            if !truncate {
                put("truncate", json!(false));
            }
            if table_scale != super::rope::yarn_table_scale(factor, mscale, mscale_all_dim) {
                put("attention_factor", json!(table_scale));
            }
        }
    }
    Value::Object(map)
}

fn put_moe(moe: &MoeConfig, family: Family, map: &mut Map<String, Value>) {
    let mut put = |key: &str, value: Value| map.insert(key.to_owned(), value);
    let described = family.row().experts.as_ref().expect("a family with experts");
    put(described.count[0], json!(moe.experts));
    put("num_experts_per_tok", json!(moe.top_k));
    put(described.width, json!(moe.expert_intermediate));
    if described.router == RouterKeys::SoftmaxOfChosen {
        return;
    }
    if let (RouterKeys::SoftmaxNormalized, Router::Softmax { normalize, .. }) = (described.router, &moe.router) {
        put("decoder_sparse_step", json!(1));
        put("mlp_only_layers", json!([]));
        put("norm_topk_prob", json!(normalize));
        return;
    }
    put("n_shared_experts", json!(moe.shared_experts));
    if let Router::SqrtSoftplus { scale, table_layers } = moe.router {
        put("scoring_func", json!("sqrtsoftplus"));
        put("norm_topk_prob", json!(true));
        put("routed_scaling_factor", decimal(scale));
        put("num_hash_layers", json!(table_layers));
        return;
    }
    put("first_k_dense_replace", json!(moe.first_dense_layers));
    put("moe_layer_freq", json!(1));
    match moe.router {
        Router::Sigmoid { groups, top_groups, normalize, scale } => {
            put("scoring_func", json!("sigmoid"));
            put("topk_method", json!("noaux_tc"));
            put("n_group", json!(groups));
            put("topk_group", json!(top_groups));
            put("norm_topk_prob", json!(normalize));
            put("routed_scaling_factor", decimal(scale));
        }
        Router::Softmax { method, scale, .. } => {
            put("scoring_func", json!("softmax"));
            let (word, groups, top_groups) = match method {
                SoftmaxMethod::Greedy => ("greedy", 1, 1),
                SoftmaxMethod::GroupLimited { groups, top_groups } => ("group_limited_greedy", groups, top_groups),
            };
            put("topk_method", json!(word));
            put("n_group", json!(groups));
            put("topk_group", json!(top_groups));
            put("norm_topk_prob", json!(false));
            put("routed_scaling_factor", decimal(scale));
        }
        Router::SqrtSoftplus { .. } => {}
    }
}

fn put_dtype(dtype: Dtype, map: &mut Map<String, Value>) {
    let word = match dtype {
        Dtype::F32 => "float32",
        Dtype::F16 => "float16",
        Dtype::Bf16 | Dtype::Fp8 => "bfloat16",
    };
    map.insert("torch_dtype".into(), json!(word));
    map.insert("dtype".into(), json!(word));
    if dtype == Dtype::Fp8 {
        let config = json!({
            "activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]
        });
        map.insert("quantization_config".into(), config);
    }
}

/// The shortest decimal that reads back as this f32 (not the f64 next to it: 1e-6 and not 9.999999974752427e-07).
pub fn decimal(number: f32) -> Value {
    json!(number.to_string().parse::<f64>().expect("f32 prints as a number"))
}

/// Whole numbers without a decimal point, as files have them.
fn number(number: f64) -> Value {
    if number.fract() == 0.0 && number.abs() < 9e15 { json!(number as i64) } else { json!(number) }
}

/// None, one or a list.
pub fn token_ids(ids: &[u32]) -> Value {
    match ids {
        [] => Value::Null,
        [id] => json!(id),
        ids => json!(ids),
    }
}

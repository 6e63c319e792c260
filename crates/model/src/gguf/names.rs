//! Our parameters under llama.cpp's names.
//!
//! | here | in the file |
//! |---|---|
//! | `model.layers.3.self_attn.q_proj.weight` | `blk.3.attn_q.weight` |
//! | `model.layers.3.mlp.experts.up_proj`, rows stacked | `blk.3.ffn_up_exps.weight`, one dimension more |
//! | `model.layers.3.self_attn.kv_b_proj.weight` | `blk.3.attn_k_b.weight` (transposed by heads) and `attn_v_b`; in
//! older files `attn_kv_b` |

use crate::config::{Attention, Family, ModelConfig};
use crate::names::{ParamKind, ParamSpec, fused_rows};

/// Parts of a layer: here, there.
const LAYER: [(&str, &str); 33] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.qkv_proj", "attn_qkv"),
    ("post_self_attn_layernorm", "post_attention_norm"),
    ("post_mlp_layernorm", "post_ffw_norm"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
    ("self_attn.sinks", "attn_sinks.weight"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("self_attn.q_a_proj", "attn_q_a"),
    ("self_attn.q_a_layernorm", "attn_q_a_norm"),
    ("self_attn.q_b_proj", "attn_q_b"),
    ("self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    ("self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    ("self_attn.kv_b_proj", "attn_kv_b"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("mlp.gate", "ffn_gate_inp"),
    ("mlp.experts.gate_proj", "ffn_gate_exps"),
    ("mlp.experts.up_proj", "ffn_up_exps"),
    ("mlp.experts.down_proj", "ffn_down_exps"),
    ("mlp.experts.gate_proj_bias", "ffn_gate_exps.bias"),
    ("mlp.experts.up_proj_bias", "ffn_up_exps.bias"),
    ("mlp.experts.down_proj_bias", "ffn_down_exps.bias"),
    ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
    ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

/// Rotary factors of Llama 3.1, by which frequencies are divided.
pub(super) const ROPE_FREQS: &str = "rope_freqs.weight";
/// LongRoPE's divisors, of short and of long contexts.
pub(super) const ROPE_FACTORS: [&str; 2] = ["rope_factors_short.weight", "rope_factors_long.weight"];
pub(super) const EMBEDDING: &str = "token_embd.weight";
/// The head; absent if it is the embedding.
pub(super) const HEAD: &str = "output.weight";

/// A tensor of a file: its name, and its dimensions with the fastest-changing first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub name: String,
    pub dims: Vec<u64>,
}

/// Where a parameter is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In one tensor, row by row.
    Whole(Expected),
    /// Rows of a tensor, from this one on.
    Rows(Expected, usize),
    /// The expansion of MLA's latent in two, for the two ends of the absorbed form: keys [heads][rank, nope], values
    /// [heads][v, rank].
    Split { k_b: Expected, v_b: Expected },
}

/// The place of a parameter; `split` says which of the two forms `kv_b_proj` has.
///
/// # Panics
/// If it has no name in GGUF: only those of MTP layers have none.
pub(super) fn place(config: &ModelConfig, spec: &ParamSpec, split: bool) -> Place {
    let name = name(config.family, spec);
    let (rows, cols) = (spec.rows as u64, spec.cols as u64);
    if let Attention::Mla { heads, kv_lora_rank, nope_dim, v_dim, .. } = config.attention
        && split
        && let Some(layer) = name.strip_suffix("attn_kv_b.weight")
    {
        let [heads, rank, nope, v] = [heads, kv_lora_rank, nope_dim, v_dim].map(|n| n as u64);
        return Place::Split {
            k_b: Expected { name: format!("{layer}attn_k_b.weight"), dims: vec![nope, rank, heads] },
            v_b: Expected { name: format!("{layer}attn_v_b.weight"), dims: vec![rank, v, heads] },
        };
    }
    if let Some(fused) = fused_rows(config, spec) {
        // Gate and up are the rows of what is called up.
        let there = fused.name.replace(".mlp.gate_up_proj.", ".mlp.up_proj.");
        let name = self::name(config.family, &ParamSpec { name: there, ..spec.clone() });
        return Place::Rows(Expected { name, dims: vec![cols, fused.all as u64] }, fused.first);
    }
    let dims = match spec.kind {
        ParamKind::Norm | ParamKind::Bias | ParamKind::RouterBias => vec![cols],
        ParamKind::Experts(experts) => vec![cols, rows / experts as u64, experts as u64],
        ParamKind::ExpertBiases(_)
        | ParamKind::Matrix
        | ParamKind::Router
        | ParamKind::Embedding
        | ParamKind::Head
        | ParamKind::PlaceBias
        | ParamKind::Table => vec![cols, rows],
    };
    Place::Whole(Expected { name, dims })
}

fn name(family: Family, spec: &ParamSpec) -> String {
    match spec.kind {
        ParamKind::Embedding => return EMBEDDING.to_owned(),
        ParamKind::Head => return HEAD.to_owned(),
        ParamKind::Norm if spec.name == "model.norm.weight" => return "output_norm.weight".to_owned(),
        _ => {}
    }
    let of_layer = spec.name.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.'));
    let (layer, part) = of_layer.unwrap_or_else(|| panic!("{} is in no layer", spec.name));
    let (part, end) = match spec.kind {
        ParamKind::Experts(_) => (part, "weight"),
        ParamKind::ExpertBiases(_) => return whole_name(layer, part),
        ParamKind::Bias if part == "self_attn.sinks" => return whole_name(layer, part),
        ParamKind::RouterBias => return format!("blk.{layer}.exp_probs_b.bias"),
        _ => part.rsplit_once('.').expect("parameters have dotted names"),
    };
    let gemma = matches!(family, Family::Gemma2 | Family::Gemma3);
    if (gemma || matches!(family, Family::Glm4Moe | Family::GptOss)) && part == "post_attention_layernorm" {
        return format!("blk.{layer}.post_attention_norm.{end}");
    }
    let found = LAYER.iter().find(|(here, _)| *here == part);
    let (_, there) = found.unwrap_or_else(|| panic!("{} has no name in GGUF", spec.name));
    format!("blk.{layer}.{there}.{end}")
}

/// Of a part whose name in the table has its end.
fn whole_name(layer: &str, part: &str) -> String {
    let (_, there) = LAYER.iter().find(|(here, _)| *here == part).expect("a part of the table");
    format!("blk.{layer}.{there}")
}

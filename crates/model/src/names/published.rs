//! Names of DeepSeek-V4's published files, and of what `transformers` writes.

/// Parts of names here, and as they are published.
const PARTS: &[(&str, &str)] = &[
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
    (".compressor.indexer.q_b_proj.", ".indexer.wq_b."),
    (".compressor.indexer.scorer.weights_proj.", ".indexer.weights_proj."),
    (".compressor.indexer.kv_norm.", ".indexer.compressor.norm."),
    (".compressor.indexer.", ".indexer.compressor."),
    (".compressor.kv_norm.", ".compressor.norm."),
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    (".sinks", ".attn_sink"),
    (".position_bias", ".ape"),
    (".q_a_proj.", ".wq_a."),
    (".q_a_norm.", ".q_norm."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".gate.e_score_correction_bias", ".gate.bias"),
    (".gate_proj.weight", ".w1.weight"),
    (".down_proj.weight", ".w2.weight"),
    (".up_proj.weight", ".w3.weight"),
];

/// Whole names.
const WHOLE: &[(&str, &str)] = &[
    ("model.embed_tokens.weight", "embed.weight"),
    ("lm_head.weight", "head.weight"),
    ("model.norm.weight", "norm.weight"),
    ("model.hc_head.hc_fn", "hc_head_fn"),
    ("model.hc_head.hc_base", "hc_head_base"),
    ("model.hc_head.hc_scale", "hc_head_scale"),
];

/// The published name of a tensor.
pub fn published(name: &str) -> String {
    if let Some((_, published)) = WHOLE.iter().find(|(own, _)| *own == name) {
        return (*published).into();
    }
    let name = name.strip_prefix("model.").unwrap_or(name);
    PARTS.iter().fold(name.to_owned(), |name, (own, published)| name.replace(own, published))
}

/// Whether a tensor of this name is in published files or in those of `transformers` alone.
pub fn is_published(name: &str) -> bool {
    name.ends_with(".hc_attn_fn")
}

/// The published name of a tensor in files of `transformers`, which keeps some names of its own.
pub fn of_transformers(name: &str) -> String {
    published(name).replace(".attn.norm.", ".attn.kv_norm.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_published_files() {
        for (own, expected) in [
            (
                "model.layers.3.self_attn.compressor.indexer.kv_proj.weight",
                "layers.3.attn.indexer.compressor.wkv.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.kv_norm.weight",
                "layers.3.attn.indexer.compressor.norm.weight",
            ),
            ("model.layers.3.self_attn.compressor.indexer.position_bias", "layers.3.attn.indexer.compressor.ape"),
            (
                "model.layers.3.self_attn.compressor.indexer.scorer.weights_proj.weight",
                "layers.3.attn.indexer.weights_proj.weight",
            ),
            (
                "model.layers.3.self_attn.compressor.indexer.gate_proj.weight",
                "layers.3.attn.indexer.compressor.wgate.weight",
            ),
            ("model.layers.3.self_attn.compressor.gate_proj.weight", "layers.3.attn.compressor.wgate.weight"),
            ("model.layers.3.self_attn.kv_norm.weight", "layers.3.attn.kv_norm.weight"),
            ("model.layers.3.attn_hc.scale", "layers.3.hc_attn_scale"),
            ("model.layers.3.mlp.experts.7.down_proj.weight", "layers.3.ffn.experts.7.w2.weight"),
            ("model.layers.3.mlp.gate.e_score_correction_bias", "layers.3.ffn.gate.bias"),
            ("model.layers.3.mlp.gate.tid2eid", "layers.3.ffn.gate.tid2eid"),
            ("model.hc_head.hc_fn", "hc_head_fn"),
        ] {
            assert_eq!(published(own), expected);
        }
        assert_eq!(of_transformers("model.layers.0.attn.norm.weight"), "layers.0.attn.kv_norm.weight");
        assert_eq!(of_transformers("layers.0.attn.wkv.weight"), "layers.0.attn.wkv.weight");
    }
}

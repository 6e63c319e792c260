//! The rows of the families: each says what it has otherwise than `llama`.

use super::{
    AttentionKeys, Biases, CapKeys, Defaults, ExpertKeys, Fused, GatingKeys, NormWeights, Norms, QkNorm, RouterKeys,
    Row, WindowKeys,
};

/// As most families have it.
const GQA: AttentionKeys = AttentionKeys::Gqa {
    biases: Biases::Key { output: true, absent: false },
    qk_norm: QkNorm::No,
    partial_rotary: None,
    head_dim: None,
    kv_heads: None,
    sinks: false,
};

const PRE_NORMS: Norms = Norms { before_ffn: "post_attention_layernorm.weight", after: [None, None] };

pub(super) const GPT_OSS: Row = Row {
    model_types: &["gpt_oss"],
    architecture: "GptOssForCausalLM",
    gguf: Some("gpt-oss"),
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: true, absent: true },
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: Some(64),
        kv_heads: Some(8),
        sinks: true,
    },
    windows: WindowKeys::Every { full: 2, width: 128, key: None },
    experts: Some(ExpertKeys {
        count: &["num_local_experts", "num_experts"],
        width: "intermediate_size",
        biases: true,
        router: RouterKeys::SoftmaxOfChosen,
        experts: 128,
        shared: 0,
        top_k: Some(4),
        intermediate: 2880,
        first_dense: 0,
    }),
    gating: GatingKeys::Clamped,
    fused: Fused::Experts,
    defaults: Defaults {
        hidden_size: 2880,
        layers: 36,
        heads: 64,
        vocab_size: 201088,
        intermediate: 2880,
        max_positions: 131072,
        norm_eps: 1e-5,
        bos_id: None,
        eos_id: None,
    },
    ..LLAMA
};

pub(super) const GLM4: Row = Row {
    model_types: &["glm4"],
    architecture: "Glm4ForCausalLM",
    gguf: Some("glm4"),
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: false, absent: true },
        qk_norm: QkNorm::No,
        partial_rotary: Some(0.5),
        head_dim: Some(128),
        kv_heads: Some(2),
        sinks: false,
    },
    fused: Fused::Rows { query_key_value: false },
    norms: Norms {
        before_ffn: "post_attention_layernorm.weight",
        after: [Some("post_self_attn_layernorm.weight"), Some("post_mlp_layernorm.weight")],
    },
    defaults: Defaults {
        layers: 40,
        vocab_size: 151552,
        intermediate: 13696,
        max_positions: 131072,
        norm_eps: 1.5625e-7,
        bos_id: None,
        eos_id: None,
        ..LLAMA.defaults
    },
    ..LLAMA
};

pub(super) const PHI3: Row = Row {
    model_types: &["phi3"],
    architecture: "Phi3ForCausalLM",
    gguf: Some("phi3"),
    attention: AttentionKeys::Gqa {
        biases: Biases::None,
        qk_norm: QkNorm::No,
        partial_rotary: Some(1.0),
        head_dim: None,
        kv_heads: None,
        sinks: false,
    },
    windows: WindowKeys::AllIfSaid,
    fused: Fused::Rows { query_key_value: true },
    defaults: Defaults {
        hidden_size: 3072,
        vocab_size: 32064,
        intermediate: 8192,
        max_positions: 4096,
        norm_eps: 1e-5,
        eos_id: Some(32000),
        ..LLAMA.defaults
    },
    ..LLAMA
};

pub(super) const GEMMA2: Row = Row {
    model_types: &["gemma2"],
    architecture: "Gemma2ForCausalLM",
    gguf: Some("gemma2"),
    attention: AttentionKeys::Gqa {
        biases: Biases::None,
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: Some(256),
        kv_heads: Some(4),
        sinks: false,
    },
    windows: WindowKeys::Every { full: 2, width: 4096, key: None },
    gating: GatingKeys::GeluTanh,
    norms: Norms {
        before_ffn: "pre_feedforward_layernorm.weight",
        after: [Some("post_attention_layernorm.weight"), Some("post_feedforward_layernorm.weight")],
    },
    norm_weights: NormWeights::OneMore,
    scaled_embedding: true,
    caps: Some(CapKeys { attention: Some(50.0), logits: Some(30.0), query_scalar: 256 }),
    tied_head: true,
    defaults: Defaults {
        hidden_size: 2304,
        layers: 26,
        heads: 8,
        vocab_size: 256000,
        intermediate: 9216,
        max_positions: 8192,
        norm_eps: 1e-6,
        bos_id: Some(2),
        eos_id: Some(1),
    },
    ..LLAMA
};

pub(super) const GEMMA3: Row = Row {
    model_types: &["gemma3_text"],
    architecture: "Gemma3ForCausalLM",
    gguf: Some("gemma3"),
    attention: AttentionKeys::Gqa {
        biases: Biases::None,
        qk_norm: QkNorm::Always,
        partial_rotary: None,
        head_dim: Some(256),
        kv_heads: Some(4),
        sinks: false,
    },
    windows: WindowKeys::Every { full: 6, width: 4096, key: Some("sliding_window_pattern") },
    caps: Some(CapKeys { attention: None, logits: None, query_scalar: 256 }),
    defaults: Defaults { vocab_size: 262208, max_positions: 131072, ..GEMMA2.defaults },
    ..GEMMA2
};

pub(super) const LLAMA: Row = Row {
    model_types: &["llama"],
    architecture: "LlamaForCausalLM",
    gguf: Some("llama"),
    attention: GQA,
    windows: WindowKeys::None,
    experts: None,
    mtp: false,
    gating: GatingKeys::Silu,
    fused: Fused::No,
    norms: PRE_NORMS,
    norm_weights: NormWeights::Plain,
    scaled_embedding: false,
    caps: None,
    tied_head: false,
    defaults: Defaults {
        hidden_size: 4096,
        layers: 32,
        heads: 32,
        vocab_size: 32000,
        intermediate: 11008,
        max_positions: 2048,
        norm_eps: 1e-6,
        bos_id: Some(1),
        eos_id: Some(2),
    },
};

pub(super) const MISTRAL: Row = Row {
    model_types: &["mistral"],
    architecture: "MistralForCausalLM",
    attention: AttentionKeys::Gqa {
        biases: Biases::None,
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: None,
        kv_heads: Some(8),
        sinks: false,
    },
    windows: WindowKeys::All,
    defaults: Defaults { intermediate: 14336, max_positions: 4096 * 32, ..LLAMA.defaults },
    ..LLAMA
};

pub(super) const QWEN2: Row = Row {
    model_types: &["qwen2"],
    architecture: "Qwen2ForCausalLM",
    gguf: Some("qwen2"),
    attention: AttentionKeys::Gqa {
        biases: Biases::QueryKeyValue,
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: None,
        kv_heads: Some(32),
        sinks: false,
    },
    windows: WindowKeys::Switched,
    defaults: Defaults {
        vocab_size: 151936,
        intermediate: 22016,
        max_positions: 32768,
        bos_id: None,
        eos_id: None,
        ..LLAMA.defaults
    },
    ..LLAMA
};

pub(super) const QWEN3: Row = Row {
    model_types: &["qwen3"],
    architecture: "Qwen3ForCausalLM",
    gguf: Some("qwen3"),
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: true, absent: false },
        qk_norm: QkNorm::Always,
        partial_rotary: None,
        head_dim: Some(128),
        kv_heads: Some(32),
        sinks: false,
    },
    ..QWEN2
};

pub(super) const QWEN3_MOE: Row = Row {
    model_types: &["qwen3_moe"],
    architecture: "Qwen3MoeForCausalLM",
    gguf: Some("qwen3moe"),
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: true, absent: false },
        qk_norm: QkNorm::Always,
        partial_rotary: None,
        head_dim: None,
        kv_heads: Some(4),
        sinks: false,
    },
    windows: WindowKeys::SwitchedAll,
    experts: Some(ExpertKeys {
        count: &["num_experts", "num_local_experts"],
        width: "moe_intermediate_size",
        biases: false,
        router: RouterKeys::SoftmaxNormalized,
        experts: 128,
        shared: 0,
        top_k: Some(8),
        intermediate: 768,
        first_dense: 0,
    }),
    defaults: Defaults { hidden_size: 2048, layers: 24, intermediate: 6144, ..QWEN2.defaults },
    ..LLAMA
};

pub(super) const GLM4_MOE: Row = Row {
    model_types: &["glm4_moe"],
    architecture: "Glm4MoeForCausalLM",
    gguf: Some("glm4moe"),
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: false, absent: false },
        qk_norm: QkNorm::Key("use_qk_norm"),
        partial_rotary: Some(0.5),
        head_dim: None,
        kv_heads: Some(8),
        sinks: false,
    },
    experts: Some(ExpertKeys {
        count: &["n_routed_experts"],
        width: "moe_intermediate_size",
        biases: false,
        router: RouterKeys::Sigmoid { groups: (1, 1), scale: 1.0 },
        experts: 128,
        shared: 1,
        top_k: Some(8),
        intermediate: 1408,
        first_dense: 1,
    }),
    mtp: true,
    defaults: Defaults {
        hidden_size: 4096,
        layers: 46,
        heads: 96,
        vocab_size: 151552,
        intermediate: 10944,
        max_positions: 131072,
        norm_eps: 1e-5,
        bos_id: None,
        eos_id: None,
    },
    ..LLAMA
};

pub(super) const DEEPSEEK_V2: Row = Row {
    model_types: &["deepseek_v2"],
    architecture: "DeepseekV2ForCausalLM",
    gguf: Some("deepseek2"),
    attention: AttentionKeys::Mla,
    experts: Some(ExpertKeys {
        count: &["n_routed_experts"],
        width: "moe_intermediate_size",
        biases: false,
        router: RouterKeys::Softmax,
        experts: 64,
        shared: 2,
        top_k: None,
        intermediate: 1407,
        first_dense: 0,
    }),
    defaults: Defaults { vocab_size: 102400, ..LLAMA.defaults },
    ..LLAMA
};

pub(super) const DEEPSEEK_V3: Row = Row {
    model_types: &["deepseek_v3", "kimi_k2"],
    architecture: "DeepseekV3ForCausalLM",
    gguf: Some("deepseek2"),
    attention: AttentionKeys::Mla,
    experts: Some(ExpertKeys {
        count: &["n_routed_experts"],
        width: "moe_intermediate_size",
        biases: false,
        router: RouterKeys::Sigmoid { groups: (8, 4), scale: 2.5 },
        experts: 256,
        shared: 1,
        top_k: Some(8),
        intermediate: 2048,
        first_dense: 3,
    }),
    mtp: true,
    defaults: Defaults {
        hidden_size: 7168,
        layers: 61,
        heads: 128,
        vocab_size: 129280,
        intermediate: 18432,
        max_positions: 4096,
        norm_eps: 1e-6,
        bos_id: Some(0),
        eos_id: Some(1),
    },
    ..LLAMA
};

pub(super) const DEEPSEEK_V32: Row = Row {
    model_types: &["deepseek_v32"],
    architecture: "DeepseekV32ForCausalLM",
    gguf: None,
    windows: WindowKeys::Indexed,
    defaults: Defaults { max_positions: 163840, ..DEEPSEEK_V3.defaults },
    ..DEEPSEEK_V3
};

pub(super) const DEEPSEEK_V4: Row = Row {
    model_types: &["deepseek_v4"],
    architecture: "DeepseekV4ForCausalLM",
    gguf: None,
    attention: AttentionKeys::Compressed,
    windows: WindowKeys::Compressed,
    experts: Some(ExpertKeys {
        count: &["n_routed_experts", "num_local_experts"],
        width: "moe_intermediate_size",
        biases: false,
        router: RouterKeys::SqrtSoftplus,
        experts: 256,
        shared: 1,
        top_k: Some(6),
        intermediate: 2048,
        first_dense: 0,
    }),
    mtp: false,
    gating: GatingKeys::Limited,
    fused: Fused::Renamed,
    defaults: Defaults {
        hidden_size: 4096,
        layers: 43,
        heads: 64,
        vocab_size: 129280,
        intermediate: 2048,
        max_positions: 1048576,
        norm_eps: 1e-6,
        bos_id: Some(0),
        eos_id: Some(1),
    },
    ..LLAMA
};

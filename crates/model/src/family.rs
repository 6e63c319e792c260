//! Published architectures, one row each: names, and how a `config.json` says what the architecture has.
//!
//! Everything that differs from family to family while a configuration is read or written stands in its row of
//! [`Family::row`]. What is computed follows from the resolved [`ModelConfig`](crate::config::ModelConfig) alone.
//! Source: configuration and modelling files of `transformers` 5.23; names in GGUF are llama.cpp's.

/// Published architectures, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `deepseek_v3`: MLA, sigmoid router with selection bias, optional MTP. `kimi_k2` is another name of it.
    DeepseekV3,
    /// `deepseek_v2`: MLA, softmax router.
    DeepseekV2,
    /// `qwen3`: grouped-query attention with a norm on each head's query and key.
    Qwen3,
    /// `qwen3_moe`: the same with experts in every layer, softmax router with weights that add up to one.
    Qwen3Moe,
    /// `qwen2`: grouped-query attention with biases on query, key and value.
    Qwen2,
    /// `glm4_moe`: grouped-query attention of which a part of each head rotates, experts as in `deepseek_v3`.
    Glm4Moe,
    /// `gpt_oss`: grouped-query attention with sinks and biases, over a sliding window in every second layer, experts
    /// with biases and limits.
    GptOss,
    /// `glm4`: as `llama`, with norms also behind attention and feed-forward layers, and neighbours of a part of each
    /// head that rotate together.
    Glm4,
    /// `phi3`: as `llama`, with query, key and value in one tensor, and gate and up in one.
    Phi3,
    /// `mistral`: grouped-query attention over a sliding window.
    Mistral,
    /// `llama`: grouped-query attention, normally without biases.
    Llama,
}

/// What is particular to a family.
pub(crate) struct Row {
    /// Values of `model_type`; the first is written.
    pub model_types: &'static [&'static str],
    /// The class that `architectures` names.
    pub architecture: &'static str,
    /// llama.cpp's name.
    pub gguf: &'static str,
    pub attention: AttentionKeys,
    pub windows: WindowKeys,
    pub experts: Option<ExpertKeys>,
    /// Whether there may be layers for multi-token prediction.
    pub mtp: bool,
    pub gating: GatingKeys,
    /// How tensors of a directory hold parameters.
    pub fused: Fused,
    /// Whether what attention and feed-forward layers give is normed before it is added.
    pub post_norms: bool,
    pub defaults: Defaults,
}

/// How attention is described.
pub(crate) enum AttentionKeys {
    /// Multi-head latent attention.
    Mla,
    /// Grouped-query attention.
    Gqa {
        biases: Biases,
        qk_norm: QkNorm,
        /// Part of a head that rotates where `partial_rotary_factor` is absent; `None` where all of it does.
        partial_rotary: Option<f64>,
        /// `head_dim` where it is absent; `None` for `hidden_size` divided by the heads.
        head_dim: Option<usize>,
        /// `num_key_value_heads` where it is absent; `None` for as many as query heads.
        kv_heads: Option<usize>,
        /// Whether each head has a sink.
        sinks: bool,
    },
}

/// The gates of feed-forward layers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatingKeys {
    Silu,
    /// Limited by `swiglu_limit`.
    Clamped,
}

/// Parameters that tensors of a directory hold together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fused {
    /// None; each expert has tensors of its own.
    No,
    /// Gate and up of a layer, one below the other, and if so the query, key and value too; in GGUF as well.
    Rows { query_key_value: bool },
    /// All experts of a layer, transposed, gate and up in turns; in MXFP4 as they are multiplied, in blocks.
    Experts,
}

/// Which linear maps of attention have biases.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Biases {
    None,
    /// Query, key and value, always.
    QueryKeyValue,
    /// Query, key and value if `attention_bias` is true; the output too if `output`.
    Key {
        output: bool,
        /// What an absent key means.
        absent: bool,
    },
}

/// Whether each head's query and key are normed before they rotate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QkNorm {
    No,
    Always,
    /// As this key says.
    Key(&'static str),
}

/// Which layers attend over a sliding window.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum WindowKeys {
    /// None: a window that is shorter than the context is refused.
    None,
    /// All, unless `sliding_window` is null.
    All,
    /// All, where `sliding_window` is there.
    AllIfSaid,
    /// With `use_sliding_window`: those that `layer_types` names, or that come from `max_window_layers` on.
    Switched,
    /// With `use_sliding_window`: all.
    SwitchedAll,
    /// Those that `layer_types` names, or all but every so manieth; `width` keys where the key is absent.
    Every { full: usize, width: usize },
}

/// How experts are described, and what absent keys mean.
pub(crate) struct ExpertKeys {
    /// The key of their number; the first is written.
    pub count: &'static [&'static str],
    /// Which key has the width of one.
    pub width: &'static str,
    /// Whether they and the router have biases.
    pub biases: bool,
    pub router: RouterKeys,
    pub experts: usize,
    pub shared: usize,
    /// `None` where the key has to be there.
    pub top_k: Option<usize>,
    pub intermediate: usize,
    pub first_dense: usize,
}

/// How routers are described.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum RouterKeys {
    /// Sigmoid scores with a bias for the selection; groups and scale where the keys are absent.
    Sigmoid { groups: (usize, usize), scale: f64 },
    /// Softmax scores, groups, a scale, weights as they are (DeepSeek-V2).
    Softmax,
    /// Softmax scores; weights add up to one with `norm_topk_prob` (Qwen3).
    SoftmaxNormalized,
    /// Softmax of the chosen (gpt-oss).
    SoftmaxOfChosen,
}

/// What absent keys mean.
pub(crate) struct Defaults {
    pub hidden_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub vocab_size: usize,
    pub intermediate: usize,
    pub max_positions: usize,
    pub norm_eps: f64,
    pub bos_id: Option<u32>,
    pub eos_id: Option<u32>,
}

/// As most families have it.
const GQA: AttentionKeys = AttentionKeys::Gqa {
    biases: Biases::Key { output: true, absent: false },
    qk_norm: QkNorm::No,
    partial_rotary: None,
    head_dim: None,
    kv_heads: None,
    sinks: false,
};

const GPT_OSS: Row = Row {
    model_types: &["gpt_oss"],
    architecture: "GptOssForCausalLM",
    gguf: "gpt-oss",
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: true, absent: true },
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: Some(64),
        kv_heads: Some(8),
        sinks: true,
    },
    windows: WindowKeys::Every { full: 2, width: 128 },
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
    mtp: false,
    gating: GatingKeys::Clamped,
    fused: Fused::Experts,
    post_norms: false,
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
};

const GLM4: Row = Row {
    model_types: &["glm4"],
    architecture: "Glm4ForCausalLM",
    gguf: "glm4",
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: false, absent: true },
        qk_norm: QkNorm::No,
        partial_rotary: Some(0.5),
        head_dim: Some(128),
        kv_heads: Some(2),
        sinks: false,
    },
    fused: Fused::Rows { query_key_value: false },
    post_norms: true,
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

const PHI3: Row = Row {
    model_types: &["phi3"],
    architecture: "Phi3ForCausalLM",
    gguf: "phi3",
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

const LLAMA: Row = Row {
    model_types: &["llama"],
    architecture: "LlamaForCausalLM",
    gguf: "llama",
    attention: GQA,
    windows: WindowKeys::None,
    experts: None,
    mtp: false,
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
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

const MISTRAL: Row = Row {
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

const QWEN2: Row = Row {
    model_types: &["qwen2"],
    architecture: "Qwen2ForCausalLM",
    gguf: "qwen2",
    attention: AttentionKeys::Gqa {
        biases: Biases::QueryKeyValue,
        qk_norm: QkNorm::No,
        partial_rotary: None,
        head_dim: None,
        kv_heads: Some(32),
        sinks: false,
    },
    windows: WindowKeys::Switched,
    experts: None,
    mtp: false,
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
    defaults: Defaults {
        vocab_size: 151936,
        intermediate: 22016,
        max_positions: 32768,
        bos_id: None,
        eos_id: None,
        ..LLAMA.defaults
    },
};

const QWEN3: Row = Row {
    model_types: &["qwen3"],
    architecture: "Qwen3ForCausalLM",
    gguf: "qwen3",
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

const QWEN3_MOE: Row = Row {
    model_types: &["qwen3_moe"],
    architecture: "Qwen3MoeForCausalLM",
    gguf: "qwen3moe",
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
    mtp: false,
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
    defaults: Defaults { hidden_size: 2048, layers: 24, intermediate: 6144, ..QWEN2.defaults },
};

const GLM4_MOE: Row = Row {
    model_types: &["glm4_moe"],
    architecture: "Glm4MoeForCausalLM",
    gguf: "glm4moe",
    attention: AttentionKeys::Gqa {
        biases: Biases::Key { output: false, absent: false },
        qk_norm: QkNorm::Key("use_qk_norm"),
        partial_rotary: Some(0.5),
        head_dim: None,
        kv_heads: Some(8),
        sinks: false,
    },
    windows: WindowKeys::None,
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
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
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
};

const DEEPSEEK_V2: Row = Row {
    model_types: &["deepseek_v2"],
    architecture: "DeepseekV2ForCausalLM",
    gguf: "deepseek2",
    attention: AttentionKeys::Mla,
    windows: WindowKeys::None,
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
    mtp: false,
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
    defaults: Defaults { vocab_size: 102400, ..LLAMA.defaults },
};

const DEEPSEEK_V3: Row = Row {
    model_types: &["deepseek_v3", "kimi_k2"],
    architecture: "DeepseekV3ForCausalLM",
    gguf: "deepseek2",
    attention: AttentionKeys::Mla,
    windows: WindowKeys::None,
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
    gating: GatingKeys::Silu,
    fused: Fused::No,
    post_norms: false,
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
};

impl Family {
    /// All families, in the order in which messages list them.
    pub const ALL: [Family; 11] = [
        Family::DeepseekV3,
        Family::DeepseekV2,
        Family::Qwen3,
        Family::Qwen3Moe,
        Family::Qwen2,
        Family::Glm4Moe,
        Family::GptOss,
        Family::Glm4,
        Family::Phi3,
        Family::Mistral,
        Family::Llama,
    ];

    pub(crate) fn row(self) -> &'static Row {
        match self {
            Family::DeepseekV3 => &DEEPSEEK_V3,
            Family::DeepseekV2 => &DEEPSEEK_V2,
            Family::Qwen3 => &QWEN3,
            Family::Qwen3Moe => &QWEN3_MOE,
            Family::Qwen2 => &QWEN2,
            Family::Glm4Moe => &GLM4_MOE,
            Family::GptOss => &GPT_OSS,
            Family::Glm4 => &GLM4,
            Family::Phi3 => &PHI3,
            Family::Mistral => &MISTRAL,
            Family::Llama => &LLAMA,
        }
    }

    /// The family with this `model_type`.
    pub fn of_model_type(word: &str) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.row().model_types.contains(&word))
    }

    /// The family with llama.cpp's name `word`; of several the last, which stands for the others until more is known.
    pub(crate) fn of_gguf(word: &str) -> Option<Family> {
        Family::ALL.into_iter().rev().find(|family| family.row().gguf == word)
    }

    /// The value of `model_type`, of several the one that is written.
    pub fn model_type(self) -> &'static str {
        self.row().model_types[0]
    }

    /// All values of `model_type`, for messages.
    pub(crate) fn known() -> String {
        Family::ALL.map(|family| family.row().model_types.join(", ")).join(", ")
    }

    /// llama.cpp's names, for messages.
    pub(crate) fn known_gguf() -> String {
        let mut names = Family::ALL.map(|family| family.row().gguf).to_vec();
        names.dedup();
        names.join(", ")
    }

    /// The class that `architectures` names.
    pub fn architecture(self) -> &'static str {
        self.row().architecture
    }

    /// Whether neighbours rotate together in files that do not say.
    pub(crate) fn rotates_neighbours(self) -> bool {
        self.is_deepseek() || self == Family::Glm4
    }

    /// Whether attention is multi-head latent attention.
    pub fn is_deepseek(self) -> bool {
        matches!(self.row().attention, AttentionKeys::Mla)
    }
}

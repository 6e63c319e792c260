//! Published architectures, one row each: names, and how a `config.json` says what the architecture has.
//!
//! Everything that differs from family to family while a configuration is read or written stands in its row of
//! [`Family::row`]. What is computed follows from the resolved [`ModelConfig`](crate::config::ModelConfig) alone.
//! Source: configuration and modelling files of `transformers` 5.23; names in GGUF are llama.cpp's.

mod rows;

use rows::{
    DEEPSEEK_V2, DEEPSEEK_V3, DEEPSEEK_V4, DEEPSEEK_V32, GEMMA2, GEMMA3, GLM4, GLM4_MOE, GPT_OSS, LLAMA, MISTRAL, PHI3,
    QWEN2, QWEN3, QWEN3_MOE,
};

/// Published architectures, by `model_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `deepseek_v3`: MLA, sigmoid router with selection bias, optional MTP. `kimi_k2` is another name of it.
    DeepseekV3,
    /// `deepseek_v32`: the same, where queries attend to keys that an indexer chooses (DeepSeek Sparse Attention).
    DeepseekV32,
    /// `deepseek_v4`: attention over a window and compressed entries, several residual streams, √softplus router, a
    /// table of experts in the first layers.
    DeepseekV4,
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
    /// `gemma2`: norms around attention and feed-forward layers with weights 1 + w, GELU gates, scaled embeddings, a
    /// window in every second layer, soft caps of scores and logits.
    Gemma2,
    /// `gemma3_text`: the same with a norm on each head's query and key in place of the caps, and with rotary
    /// frequencies of their own in layers with a window.
    Gemma3,
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
    /// llama.cpp's name, where its files are read and written.
    pub gguf: Option<&'static str>,
    pub attention: AttentionKeys,
    pub windows: WindowKeys,
    pub experts: Option<ExpertKeys>,
    /// Whether there may be layers for multi-token prediction.
    pub mtp: bool,
    pub gating: GatingKeys,
    /// How tensors of a directory hold parameters.
    pub fused: Fused,
    pub norms: Norms,
    pub norm_weights: NormWeights,
    /// Whether embeddings are multiplied by the square root of their width.
    pub scaled_embedding: bool,
    /// Of families whose scores and logits may have soft caps, and whose scale of scores `query_pre_attn_scalar` gives.
    pub caps: Option<CapKeys>,
    /// What an absent `tie_word_embeddings` means.
    pub tied_head: bool,
    pub defaults: Defaults,
}

/// How attention is described.
pub(crate) enum AttentionKeys {
    /// Multi-head latent attention.
    Mla,
    /// Over a window and compressed entries.
    Compressed,
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

/// Names of norms of a layer, as directories have them, besides `input_layernorm`.
#[derive(Clone, Copy)]
pub(crate) struct Norms {
    /// Of what feed-forward layers read.
    pub before_ffn: &'static str,
    /// Of what attention and feed-forward layer give before it is added, if that is normed.
    pub after: [Option<&'static str>; 2],
}

/// What a norm's weight w stands for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum NormWeights {
    /// Itself.
    Plain,
    /// 1 + w, which GGUF has summed up.
    OneMore,
}

/// Where keys of soft caps are absent: those of attention's scores and of logits.
#[derive(Clone, Copy)]
pub(crate) struct CapKeys {
    pub attention: Option<f64>,
    pub logits: Option<f64>,
    /// Of `query_pre_attn_scalar`.
    pub query_scalar: usize,
}

/// The gates of feed-forward layers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GatingKeys {
    Silu,
    /// Limited by `swiglu_limit`, as in gpt-oss.
    Clamped,
    /// Limited by `swiglu_limit`, as in DeepSeek-V4.
    Limited,
    /// GELU in its tanh form.
    GeluTanh,
}

/// Parameters that tensors of a directory hold together.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fused {
    /// None; each expert has tensors of its own.
    No,
    /// Gate and up of a layer, one below the other, and if so the query, key and value too; in GGUF as well.
    Rows { query_key_value: bool },
    /// None, under the names of DeepSeek-V4's files.
    Renamed,
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
    /// None: an indexer chooses the keys of every layer.
    Indexed,
    /// All, and entries besides: `config_json::compressed`.
    Compressed,
    /// All, unless `sliding_window` is null.
    All,
    /// All, where `sliding_window` is there.
    AllIfSaid,
    /// With `use_sliding_window`: those that `layer_types` names, or that come from `max_window_layers` on.
    Switched,
    /// With `use_sliding_window`: all.
    SwitchedAll,
    /// Those that `layer_types` names, or all but every so manieth, which `key` may say; `width` keys where their key
    /// is absent.
    Every { full: usize, width: usize, key: Option<&'static str> },
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
    /// √softplus scores with a bias for the selection, a table in the first layers.
    SqrtSoftplus,
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

impl Family {
    /// All families, in the order in which messages list them.
    pub const ALL: [Family; 15] = [
        Family::DeepseekV3,
        Family::DeepseekV32,
        Family::DeepseekV4,
        Family::DeepseekV2,
        Family::Qwen3,
        Family::Qwen3Moe,
        Family::Qwen2,
        Family::Glm4Moe,
        Family::GptOss,
        Family::Glm4,
        Family::Phi3,
        Family::Gemma2,
        Family::Gemma3,
        Family::Mistral,
        Family::Llama,
    ];

    pub(crate) fn row(self) -> &'static Row {
        match self {
            Family::DeepseekV3 => &DEEPSEEK_V3,
            Family::DeepseekV32 => &DEEPSEEK_V32,
            Family::DeepseekV4 => &DEEPSEEK_V4,
            Family::DeepseekV2 => &DEEPSEEK_V2,
            Family::Qwen3 => &QWEN3,
            Family::Qwen3Moe => &QWEN3_MOE,
            Family::Qwen2 => &QWEN2,
            Family::Glm4Moe => &GLM4_MOE,
            Family::GptOss => &GPT_OSS,
            Family::Glm4 => &GLM4,
            Family::Phi3 => &PHI3,
            Family::Gemma2 => &GEMMA2,
            Family::Gemma3 => &GEMMA3,
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
        Family::ALL.into_iter().rev().find(|family| family.row().gguf == Some(word))
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
        let mut names: Vec<&str> = Family::ALL.iter().filter_map(|family| family.row().gguf).collect();
        names.dedup();
        names.join(", ")
    }

    /// The class that `architectures` names.
    pub fn architecture(self) -> &'static str {
        self.row().architecture
    }

    /// Whether neighbours rotate together in files that do not say.
    pub(crate) fn rotates_neighbours(self) -> bool {
        self.is_deepseek() || [Family::Glm4, Family::DeepseekV4].contains(&self)
    }

    /// Whether each layer has an indexer.
    pub(crate) fn has_indexer(self) -> bool {
        self == Family::DeepseekV32
    }

    /// Whether attention is multi-head latent attention.
    pub fn is_deepseek(self) -> bool {
        matches!(self.row().attention, AttentionKeys::Mla)
    }
}

//! Model configurations, complete and consistent: what a `config.json` (`crate::config_json`) or the metadata of a GGUF
//! file (`crate::gguf`) is resolved to. Nothing after it looks at the file again.

pub use crate::family::Family;
pub use wels_device::{Gating, Indexer, Precision};

/// `eps` of the two RMS norms inside MLA (query and key-value latents).
///
/// The published modelling code builds them without passing `rms_norm_eps`, so they keep the class default whatever the
/// configuration says.
pub const LATENT_NORM_EPS: f32 = 1e-6;

/// A complete, consistent description of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// Which published architecture this is: decides names, routing and the rotary layout.
    pub family: Family,
    /// Width of the residual stream, D.
    pub hidden_size: usize,
    /// Decoder layers, without the MTP ones.
    pub layers: usize,
    /// Rows of the embedding and of the output head, V.
    pub vocab_size: usize,
    /// `eps` of the layer norms and of the final norm (the latent norms of MLA use [`LATENT_NORM_EPS`]).
    pub norm_eps: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Attention of every layer.
    pub attention: Attention,
    /// What chooses the keys that queries attend to: in every layer (DeepSeek Sparse Attention, over MLA with a query
    /// latent), or in those with [`Entries::Chosen`]. `None` where they attend to all.
    pub indexer: Option<Indexer>,
    /// Residual streams in place of one, mixed by hyper-connections.
    pub streams: Option<Streams>,
    /// Layers that attend to the nearest tokens only; `None` where every layer sees the whole context.
    pub window: Option<Window>,
    /// Factor on query·key before the softmax, YaRN's correction included.
    pub softmax_scale: f32,
    /// What attention's scores are softly capped at.
    pub attention_cap: Option<f32>,
    /// What logits are softly capped at.
    pub logit_cap: Option<f32>,
    /// Width of the gated unit in layers without experts.
    pub dense_intermediate: usize,
    /// The gates of feed-forward layers and experts.
    pub gating: Gating,
    /// Experts; `None` for a dense model.
    pub moe: Option<MoeConfig>,
    /// Multi-token-prediction layers after the last decoder layer, named `model.layers.{layers + k}`.
    pub mtp_depth: usize,
    /// The output head is the embedding matrix.
    pub tied_head: bool,
    /// Token that begins a text.
    pub bos_id: Option<u32>,
    /// Tokens that end a text; may be empty.
    pub eos_ids: Vec<u32>,
    /// Token that fills unused positions.
    pub pad_id: Option<u32>,
    /// Standard deviation of initial weights.
    pub init_std: f32,
}

/// Rotary position embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// θ: frequency i of a rotary width n is θ^(-2i/n).
    pub base: f64,
    /// Change of the frequencies for contexts longer than the model was first trained on.
    pub scaling: RopeScaling,
    /// Which elements form a pair.
    pub layout: RopeLayout,
    /// Longest position the model is meant for.
    pub max_positions: usize,
    /// Layers that rotate otherwise.
    pub local: Option<LocalRope>,
}

/// Rotation of some layers, unscaled and of a base of its own.
#[derive(Clone, Debug, PartialEq)]
pub struct LocalRope {
    /// θ.
    pub base: f64,
    /// Which decoder layers these are: at least one.
    pub layers: Vec<bool>,
}

/// How rotary frequencies are changed for long contexts.
#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    /// As they are.
    None,
    /// Every frequency divided by `factor`.
    Linear {
        /// Divisor of the frequencies.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071): low frequencies divided by `factor`, high ones kept, a ramp between.
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Rotations over the original context above which a frequency is kept.
        beta_fast: f64,
        /// Rotations over the original context below which a frequency is divided.
        beta_slow: f64,
        /// Context of the first training.
        original_max_positions: usize,
        /// Round the ends of the ramp to whole indices.
        truncate: bool,
        /// Numerator of the correction of cos and sin, as the file states it.
        mscale: Option<f64>,
        /// Denominator of the correction of cos and sin; in MLA also the correction of the softmax scale.
        mscale_all_dim: Option<f64>,
        /// Factor on cos and sin, resolved from the two above or given as `attention_factor`.
        table_scale: f64,
    },
    /// LongRoPE (arXiv 2402.13753): every frequency divided by a number of its own, one list for contexts of up to
    /// `original_max_positions` and one for longer ones. It is the context that a model is opened for that counts, not
    /// the length of a text: see [`Model::new`](crate::model::Model::new).
    Long {
        /// `[rotary width / 2]`: the divisors of short contexts.
        short: Vec<f64>,
        /// Those of long contexts.
        long: Vec<f64>,
        /// Context of the first training.
        original_max_positions: usize,
        /// Factor on cos and sin, in both.
        table_scale: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, linear between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_max_positions / low_freq_factor` are divided.
        low_freq_factor: f64,
        /// Wavelengths below `original_max_positions / high_freq_factor` are kept.
        high_freq_factor: f64,
        /// Context of the first training.
        original_max_positions: usize,
    },
}

/// Which elements of a head rotate together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeLayout {
    /// Elements 2i and 2i+1 (DeepSeek).
    Interleaved,
    /// Elements i and i + n/2 (Qwen2, Llama).
    HalfSplit,
}

/// Residual streams (manifold-constrained hyper-connections, DeepSeek-V4 report, §2.2).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Streams {
    /// n: how many there are.
    pub count: usize,
    /// Steps of Sinkhorn by which streams are mixed.
    pub iterations: usize,
    /// Added to weights and to what they are divided by.
    pub eps: f32,
}

/// The compressed entries that a layer attends to besides a window of the nearest tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entries {
    /// A window alone.
    None,
    /// Those that an indexer chooses, of `rate` tokens each and the `rate` before them.
    Chosen {
        /// From one entry to the next, in tokens.
        rate: usize,
    },
    /// All, of `rate` tokens each.
    All {
        /// Tokens of an entry.
        rate: usize,
    },
}

impl Entries {
    /// Tokens from one entry to the next; 0 where there are none.
    pub fn rate(&self) -> usize {
        match *self {
            Entries::None => 0,
            Entries::Chosen { rate } | Entries::All { rate } => rate,
        }
    }
}

/// Attention of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attention {
    /// Multi-head latent attention (DeepSeek-V2 report, section 2.1).
    Mla {
        /// Query heads; every head has its own keys and values.
        heads: usize,
        /// Width of the query latent; `None` projects queries directly.
        q_lora_rank: Option<usize>,
        /// Width of the key-value latent.
        kv_lora_rank: usize,
        /// Width of the part of a query or key head without position.
        nope_dim: usize,
        /// Width of the rotary part; the rotary key is shared by all heads.
        rope_dim: usize,
        /// Width of a value head.
        v_dim: usize,
    },
    /// Grouped-query attention.
    Gqa {
        /// Query heads.
        heads: usize,
        /// Key and value heads; divides `heads`.
        kv_heads: usize,
        /// Width of a head.
        head_dim: usize,
        /// Width of the part of a query or key head that rotates, its first.
        rope_dim: usize,
        /// Biases on the query, key and value projections.
        qkv_bias: bool,
        /// Bias on the output projection.
        o_bias: bool,
        /// RMS norms of each head's query and key, one weight for all heads of a layer, before they rotate.
        qk_norm: bool,
        /// A learnt score for each head beside those of the keys, whose share of the weights goes to no value.
        sinks: bool,
    },
    /// Over a window of the nearest tokens and over compressed entries of the others (DeepSeek-V4 report, §2.3): one
    /// row of numbers is key and value of all heads, and each head has a sink.
    Compressed {
        /// Query heads.
        heads: usize,
        /// Width of the query latent.
        q_lora_rank: usize,
        /// Width of a head, and of the rows and entries.
        head_dim: usize,
        /// Width of the part that rotates, the last of a head.
        rope_dim: usize,
        /// Groups of heads, each with an output projection of its own to `o_lora_rank` numbers.
        groups: usize,
        /// Width of a group's output latent.
        o_lora_rank: usize,
        /// Tokens that each layer's window has.
        window: usize,
        /// The entries of each layer.
        entries: Vec<Entries>,
    },
}

impl Attention {
    /// Grouped-query attention without biases and norms, in which all of a head rotates.
    pub const fn gqa(heads: usize, kv_heads: usize, head_dim: usize) -> Attention {
        let (qkv_bias, o_bias, qk_norm, sinks) = (false, false, false, false);
        Attention::Gqa { heads, kv_heads, head_dim, rope_dim: head_dim, qkv_bias, o_bias, qk_norm, sinks }
    }

    /// Query heads.
    pub fn heads(&self) -> usize {
        match *self {
            Attention::Mla { heads, .. } | Attention::Gqa { heads, .. } | Attention::Compressed { heads, .. } => heads,
        }
    }

    /// Whether keys and values are made from a latent.
    pub fn is_mla(&self) -> bool {
        matches!(self, Attention::Mla { .. })
    }

    /// Whether it is over a window and compressed entries.
    pub fn is_compressed(&self) -> bool {
        matches!(self, Attention::Compressed { .. })
    }

    /// Width of a query and of an expanded key head.
    pub fn qk_dim(&self) -> usize {
        match *self {
            Attention::Mla { nope_dim, rope_dim, .. } => nope_dim + rope_dim,
            Attention::Gqa { head_dim, .. } | Attention::Compressed { head_dim, .. } => head_dim,
        }
    }

    /// Width of a value head.
    pub fn v_dim(&self) -> usize {
        match *self {
            Attention::Mla { v_dim, .. } => v_dim,
            Attention::Gqa { head_dim, .. } | Attention::Compressed { head_dim, .. } => head_dim,
        }
    }

    /// Width of the part that rotates.
    pub fn rope_dim(&self) -> usize {
        match *self {
            Attention::Mla { rope_dim, .. }
            | Attention::Gqa { rope_dim, .. }
            | Attention::Compressed { rope_dim, .. } => rope_dim,
        }
    }
}

/// Attention over a sliding window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// Keys that a token attends to, its own included; fewer than `max_positions`.
    pub width: usize,
    /// Whether each decoder layer has it; at least one does.
    pub layers: Vec<bool>,
}

/// What a KV cache keeps of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CacheLayout {
    /// Keys and values of every head, as in training. The shared rotary key of MLA is counted once a head.
    Expanded,
    /// In MLA the latent and the rotary key: up-projections are absorbed into queries and outputs (DeepSeek-V2 report,
    /// appendix C), so results differ from the expanded form's by rounding. In grouped-query attention there is no
    /// latent; counts are then those of the expanded form.
    Latent,
}

/// Mixture of experts.
#[derive(Clone, Debug, PartialEq)]
pub struct MoeConfig {
    /// Routed experts a layer, E.
    pub experts: usize,
    /// Shared experts, stored fused as one SwiGLU of width `shared_experts * expert_intermediate`; 0 for none.
    pub shared_experts: usize,
    /// Routed experts a token uses, K.
    pub top_k: usize,
    /// Width of one expert's SwiGLU.
    pub expert_intermediate: usize,
    /// Leading layers without experts.
    pub first_dense_layers: usize,
    /// Whether the router and the linear maps of the routed experts have biases.
    pub biases: bool,
    /// Scores, selection and weights.
    pub router: Router,
}

/// How a token's experts are chosen and weighted.
#[derive(Clone, Debug, PartialEq)]
pub enum Router {
    /// DeepSeek-V3 `noaux_tc`: sigmoid scores, a bias for the selection only, groups ranked by their two best.
    Sigmoid {
        /// Groups of consecutive experts; 1 for none.
        groups: usize,
        /// Groups a token may choose from.
        top_groups: usize,
        /// Divide the chosen scores by their sum (plus 1e-20).
        normalize: bool,
        /// Factor on the weights (`routed_scaling_factor`).
        scale: f32,
    },
    /// DeepSeek-V4: √softplus scores with a bias for the selection only; chosen scores are divided by their sum (plus
    /// 1e-20).
    SqrtSoftplus {
        /// Factor on the weights (`routed_scaling_factor`).
        scale: f32,
        /// First layers of which a table says, for each token id, which experts its tokens go to.
        table_layers: usize,
    },
    /// DeepSeek-V2, Qwen3 and gpt-oss: softmax scores over all experts. Divided by the sum of the chosen, they are the
    /// softmax of the chosen logits.
    Softmax {
        /// Selection.
        method: SoftmaxMethod,
        /// Divide the chosen scores by their sum.
        normalize: bool,
        /// Factor on the weights (`routed_scaling_factor`).
        scale: f32,
    },
}

/// Selection in the softmax router.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SoftmaxMethod {
    /// The best of all experts.
    Greedy,
    /// The best of the experts in the best groups, groups ranked by their best expert.
    GroupLimited {
        /// Groups of consecutive experts.
        groups: usize,
        /// Groups a token may choose from.
        top_groups: usize,
    },
}

/// Number format of weights on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    /// IEEE single.
    F32,
    /// bfloat16.
    Bf16,
    /// IEEE half.
    F16,
    /// E4M3 with one f32 scale for each block of 128×128 for the linear weights, as DeepSeek-V3 is published;
    /// embedding, head, norms, router and `eh_proj` stay bfloat16.
    Fp8,
}

impl ModelConfig {
    /// How many layers have an indexer, MTP layers included.
    pub fn indexers(&self, mtp: bool) -> usize {
        match (&self.attention, self.indexer) {
            (_, None) => 0,
            (Attention::Compressed { entries, .. }, _) => {
                entries.iter().filter(|entries| matches!(entries, Entries::Chosen { .. })).count()
            }
            _ => self.layers + if mtp { self.mtp_depth } else { 0 },
        }
    }

    /// Whether a table says which experts the tokens of decoder layer `layer` go to.
    pub fn has_table(&self, layer: usize) -> bool {
        let router = self.moe.as_ref().map(|moe| &moe.router);
        matches!(router, Some(Router::SqrtSoftplus { table_layers, .. }) if layer < *table_layers)
    }

    /// The compressed entries that decoder layer `layer` attends to.
    pub fn entries(&self, layer: usize) -> Entries {
        match &self.attention {
            Attention::Compressed { entries, .. } => entries[layer],
            _ => Entries::None,
        }
    }

    /// Whether decoder layer `layer` has experts. MTP layers count on from `layers`.
    pub fn is_moe_layer(&self, layer: usize) -> bool {
        self.moe.as_ref().is_some_and(|moe| layer >= moe.first_dense_layers)
    }

    /// Which layers are of the kind that has a window or rotates otherwise.
    pub(crate) fn sliding_layers(&self) -> Vec<bool> {
        let layers = self.window.as_ref().map(|window| &window.layers);
        let layers = layers.or(self.rope.local.as_ref().map(|local| &local.layers));
        layers.cloned().unwrap_or_else(|| vec![false; self.layers])
    }

    /// What embeddings are multiplied with, if they are: √D.
    pub fn embedding_scale(&self) -> Option<f32> {
        self.family.row().scaled_embedding.then(|| (self.hidden_size as f64).sqrt() as f32)
    }

    /// How many keys a token attends to in a layer, if not to all. MTP layers have no window.
    pub fn window(&self, layer: usize) -> Option<usize> {
        let window = self.window.as_ref()?;
        window.layers.get(layer).is_some_and(|slides| *slides).then_some(window.width)
    }
}

/// Something in a file that was not used, for the user to know once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note(pub String);

impl std::fmt::Display for Note {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a `config.json` is not usable.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// Not JSON.
    #[error("config.json is not valid JSON: {0}")]
    Json(#[from] serde_json::Error),
    /// JSON, but not `{…}`.
    #[error("config.json holds {found} where an object was expected")]
    NotAnObject { found: &'static str },
    /// `model_type` is none of [`Family::ALL`].
    #[error("model_type `{found}` is not supported (supported: {})", Family::known())]
    ModelType {
        /// What the file says.
        found: String,
    },
    /// A key without a default is absent.
    #[error("the key `{key}` is missing")]
    Missing { key: String },
    /// A value has the wrong JSON type.
    #[error("`{key}` is {value}, expected {expected}")]
    Type {
        /// The key, with its parents.
        key: String,
        /// The value as written, abbreviated.
        value: String,
        /// What was expected.
        expected: &'static str,
    },
    /// A number lies outside what makes sense.
    #[error("`{key}` is {value}, expected {min} to {max}")]
    Range {
        /// The key, with its parents.
        key: String,
        value: String,
        /// Smallest accepted.
        min: String,
        /// Largest accepted.
        max: String,
    },
    /// A value that would change the arithmetic in a way that is not implemented.
    #[error("`{key}` is {value}, which is not supported: {why}")]
    Unsupported {
        /// The key, with its parents.
        key: String,
        /// The value, abbreviated.
        value: String,
        /// What is supported instead.
        why: &'static str,
    },
    /// Two keys that cannot both hold.
    #[error("`{key}` is {value}, which contradicts `{other}` = {other_value}: {why}")]
    Contradiction {
        key: String,
        value: String,
        other: String,
        other_value: String,
        /// The rule that is broken.
        why: &'static str,
    },
    /// The keys are fine one by one, but the model would be larger than anything could hold.
    #[error("the model would have {params} parameters, more than the {max} supported")]
    TooLarge {
        /// Parameters in total.
        params: u64,
        max: u64,
    },
    /// No preset has this name.
    #[error("there is no preset `{name}` (the nearest is `{nearest}`)")]
    UnknownPreset {
        /// As asked for.
        name: String,
        /// The most similar name.
        nearest: &'static str,
    },
}

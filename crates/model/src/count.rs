//! Exact parameters, floating-point operations and bytes of a configuration, without allocating a model.
//!
//! Everything is summed over [`names::param_specs`], the same list that the model is built from and that files are
//! checked against. Conventions where the literature disagrees:
//!
//! * *Activated* parameters exclude the embedding (a lookup) and include the head: 36.6 of DeepSeek-V3's 671 billion.
//! * A product of `[m, k]` by `[k, n]` is 2·m·k·n operations; norms, softmax and the embedding count nothing; backward
//!   is twice forward.
//! * Causal attention counts the keys that are used, (T+1)/2 a token on average.
//!
//! Sums saturate: a context length that nobody can use gives a number that nobody can use, and no panic.

use std::collections::HashSet;
use std::fmt;

pub use crate::config::CacheLayout;
use crate::config::{Attention, Dtype, Entries, Indexer, ModelConfig};
use crate::entry_pages::page_len;
use crate::names::{self, ParamKind, ParamSpec};
use crate::weights::{Stored, scale_count, tensor_stored_as};

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident, $unit:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl std::ops::Add for $name {
            type Output = $name;
            fn add(self, other: $name) -> $name {
                $name(self.0.saturating_add(other.0))
            }
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                *self = *self + other;
            }
        }

        impl std::ops::Mul<u64> for $name {
            type Output = $name;
            fn mul(self, times: u64) -> $name {
                $name(self.0.saturating_mul(times))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}{}", with_commas(self.0), $unit)
            }
        }
    };
}

quantity!(
    /// A number of parameters.
    Params,
    ""
);
quantity!(
    /// A number of floating-point operations.
    Flops,
    " FLOP"
);
quantity!(Bytes, " B");

fn with_commas(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Parameters of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamCounts {
    /// Everything but the MTP layers; a tied head counts once.
    pub total: Params,
    /// The embedding, [V, D].
    pub embedding: Params,
    /// The head, [V, D]; the embedding itself when tied.
    pub head: Params,
    /// All routed experts of all layers.
    pub routed_experts: Params,
    /// Used by one token, without embedding and head.
    pub activated_body: Params,
    /// Used by one token, with the head: the number to quote.
    pub activated: Params,
    /// Used by one token, with the head and the whole embedding.
    pub activated_with_embedding: Params,
    /// The MTP layers, if there are any.
    pub mtp: Option<MtpCounts>,
}

/// Parameters of all MTP layers together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MtpCounts {
    /// Their own.
    pub unique: Params,
    /// With one embedding and one head a layer, as files store them.
    pub with_embedding_and_head: Params,
    /// Their own, used by one token.
    pub activated_body: Params,
    /// With the head.
    pub activated: Params,
    /// With head and embedding.
    pub activated_with_embedding: Params,
    /// `eh_proj`, which DeepSeek's published 11.5 and 1.5 billion leave out.
    pub projection: Params,
}

/// Counts the parameters.
pub fn params(config: &ModelConfig) -> ParamCounts {
    let (main, mtp) = split_specs(config);
    let embedding = Params((config.vocab_size * config.hidden_size) as u64);
    let total = sum(&main, ParamSpec::len);
    let tables = |spec: &&ParamSpec| matches!(spec.kind, ParamKind::Embedding | ParamKind::Head);
    let body: Vec<_> = main.iter().filter(|spec| !tables(spec)).cloned().collect();
    let activated_body = sum(&body, |spec| activated(spec, config));
    let is_routed = |kind| matches!(kind, ParamKind::Experts(_) | ParamKind::ExpertBiases(_));
    let routed = |spec: &ParamSpec| if is_routed(spec.kind) { spec.len() } else { 0 };
    ParamCounts {
        total,
        embedding,
        head: embedding,
        routed_experts: sum(&main, routed),
        activated_body,
        activated: activated_body + embedding,
        activated_with_embedding: activated_body + embedding * if config.tied_head { 1 } else { 2 },
        mtp: (config.mtp_depth > 0).then(|| mtp_counts(config, &mtp, embedding)),
    }
}

fn mtp_counts(config: &ModelConfig, specs: &[ParamSpec], embedding: Params) -> MtpCounts {
    let depth = config.mtp_depth as u64;
    let unique = sum(specs, ParamSpec::len);
    let activated_body = sum(specs, |spec| activated(spec, config));
    MtpCounts {
        unique,
        with_embedding_and_head: unique + embedding * (2 * depth),
        activated_body,
        activated: activated_body + embedding * depth,
        activated_with_embedding: activated_body + embedding * (2 * depth),
        projection: sum(specs, |spec| if spec.name.ends_with(names::EH_PROJ) { spec.len() } else { 0 }),
    }
}

/// Specs of the model proper and of the MTP layers.
fn split_specs(config: &ModelConfig) -> (Vec<ParamSpec>, Vec<ParamSpec>) {
    let mut specs = names::param_specs(config);
    let main = names::param_specs(&ModelConfig { mtp_depth: 0, ..config.clone() }).len();
    let mtp = specs.split_off(main);
    (specs, mtp)
}

fn sum(specs: &[ParamSpec], count: impl Fn(&ParamSpec) -> usize) -> Params {
    Params(specs.iter().map(|spec| count(spec) as u64).sum())
}

/// Parameters of `spec` that one token uses.
fn activated(spec: &ParamSpec, config: &ModelConfig) -> usize {
    match (spec.kind, &config.moe) {
        (ParamKind::Experts(experts) | ParamKind::ExpertBiases(experts), Some(moe)) => spec.len() / experts * moe.top_k,
        _ => spec.len(),
    }
}

/// What a token attends to: decides the operations of the attention core.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Context {
    /// Training or prefill of sequences of `tokens`, counting used keys only.
    Causal {
        /// Sequence length, T.
        tokens: usize,
    },
    /// The same, counting all T keys for every token, as some publications do.
    NonCausal {
        /// Sequence length, T.
        tokens: usize,
    },
    /// One new token over a cache of `keys`; in MLA with expanded keys and values.
    DecodeExpanded {
        /// Keys, the new one included.
        keys: usize,
    },
    /// One new token over a cache of `keys`; in MLA with absorbed projections over the latent.
    DecodeAbsorbed {
        /// Keys, the new one included.
        keys: usize,
    },
}

/// Operations of one token's forward pass, by component.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ForwardFlops {
    /// Projections of the attention layers.
    pub attention_linear: Flops,
    /// Scores and weighted values; where keys are chosen, the scores that they are chosen by too.
    pub attention_core: Flops,
    /// SwiGLU of layers without experts.
    pub dense_ffn: Flops,
    /// Routed experts, K of them.
    pub routed_experts: Flops,
    pub shared_experts: Flops,
    /// Router scores.
    pub router: Flops,
    /// Output head.
    pub head: Flops,
    /// All of the MTP layers, their heads included; not part of [`total`](ForwardFlops::total).
    pub mtp: Flops,
}

impl ForwardFlops {
    /// The model proper, without MTP.
    pub fn total(&self) -> Flops {
        self.attention_linear
            + self.attention_core
            + self.dense_ffn
            + self.routed_experts
            + self.shared_experts
            + self.router
            + self.head
    }

    /// Forward and backward of one token: three times forward, MTP included.
    pub fn training(&self) -> Flops {
        (self.total() + self.mtp) * 3
    }
}

/// Counts the operations of one token's forward pass (the mean over the sequence for [`Context::Causal`]).
pub fn forward_flops(config: &ModelConfig, context: Context) -> ForwardFlops {
    let (main, mtp) = split_specs(config);
    let chosen = config.indexer.map(|indexer| indexer.top_k);
    let core = attention_core_flops(&config.attention, context, chosen) + index_flops(config, context);
    let attention_core = match &config.window {
        None if config.attention.is_compressed() => {
            (0..config.layers).fold(Flops(0), |sum, layer| sum + compressed_core_flops(config, context, layer))
        }
        None => core * config.layers as u64,
        Some(_) => (0..config.layers)
            .fold(Flops(0), |sum, layer| sum + attention_core_flops(&config.attention, context, config.window(layer))),
    };
    let head = Flops((config.vocab_size * config.hidden_size) as u64) * 2;
    let mut flops = ForwardFlops { head, attention_core, ..ForwardFlops::default() };
    for spec in &main {
        let linear = linear_flops(spec, config);
        match spec.kind {
            ParamKind::Matrix | ParamKind::Router if spec.name.contains(".self_attn.") => {
                flops.attention_linear += linear
            }
            ParamKind::Matrix if spec.name.contains(".shared_experts.") => flops.shared_experts += linear,
            ParamKind::Matrix => flops.dense_ffn += linear,
            ParamKind::Experts(_) => flops.routed_experts += linear,
            ParamKind::Router => flops.router += linear,
            ParamKind::Norm
            | ParamKind::Bias
            | ParamKind::RouterBias
            | ParamKind::ExpertBiases(_)
            | ParamKind::PlaceBias
            | ParamKind::Table
            | ParamKind::Embedding
            | ParamKind::Head => {}
        }
    }
    for spec in &mtp {
        flops.mtp += linear_flops(spec, config);
    }
    flops.mtp += (core + head) * config.mtp_depth as u64;
    flops
}

fn linear_flops(spec: &ParamSpec, config: &ModelConfig) -> Flops {
    match spec.kind {
        ParamKind::Matrix | ParamKind::Experts(_) | ParamKind::Router => Flops(2 * activated(spec, config) as u64),
        ParamKind::Norm
        | ParamKind::Bias
        | ParamKind::RouterBias
        | ParamKind::ExpertBiases(_)
        | ParamKind::PlaceBias
        | ParamKind::Table
        | ParamKind::Embedding
        | ParamKind::Head => Flops(0),
    }
}

/// One layer, one token: 2·(width + 1) operations an index head and key, of all keys.
fn index_flops(config: &ModelConfig, context: Context) -> Flops {
    let Some(Indexer { heads, dim, .. }) = config.indexer else { return Flops(0) };
    let twice_keys = match context {
        Context::Causal { tokens } => twice_mean_keys(tokens, None),
        Context::NonCausal { tokens: keys } | Context::DecodeExpanded { keys } | Context::DecodeAbsorbed { keys } => {
            keys.saturating_mul(2)
        }
    };
    Flops((heads * (dim + 1)) as u64) * twice_keys as u64
}

/// One layer, one token: the window and the entries, and what these are chosen by.
fn compressed_core_flops(config: &ModelConfig, context: Context, layer: usize) -> Flops {
    let Attention::Compressed { window, .. } = config.attention else { return Flops(0) };
    let entries = config.entries(layer);
    let near = attention_core_flops(&config.attention, context, Some(window));
    if entries == Entries::None {
        return near;
    }
    let fewer = |tokens: usize| tokens / entries.rate();
    let context = match context {
        Context::Causal { tokens } => Context::Causal { tokens: fewer(tokens) },
        Context::NonCausal { tokens } => Context::NonCausal { tokens: fewer(tokens) },
        Context::DecodeExpanded { keys } => Context::DecodeExpanded { keys: fewer(keys) },
        Context::DecodeAbsorbed { keys } => Context::DecodeAbsorbed { keys: fewer(keys) },
    };
    match (entries, config.indexer) {
        (Entries::Chosen { .. }, Some(indexer)) => {
            let far = attention_core_flops(&config.attention, context, Some(indexer.top_k));
            near + far + index_flops(config, context)
        }
        _ => near + attention_core_flops(&config.attention, context, None),
    }
}

/// One layer, one token: 2·(key width + value width) operations a head and key. Of a window, or where
/// keys are chosen, so many are used.
fn attention_core_flops(attention: &Attention, context: Context, window: Option<usize>) -> Flops {
    let within = |keys: usize| window.map_or(keys, |window| keys.min(window));
    let context = match context {
        Context::Causal { .. } => context,
        Context::NonCausal { tokens } => Context::NonCausal { tokens: within(tokens) },
        Context::DecodeExpanded { keys } => Context::DecodeExpanded { keys: within(keys) },
        Context::DecodeAbsorbed { keys } => Context::DecodeAbsorbed { keys: within(keys) },
    };
    let (widths, twice_keys) = match (attention, context) {
        (_, Context::Causal { tokens }) => (attention.qk_dim() + attention.v_dim(), twice_mean_keys(tokens, window)),
        (_, Context::NonCausal { tokens: keys } | Context::DecodeExpanded { keys }) => {
            (attention.qk_dim() + attention.v_dim(), keys.saturating_mul(2))
        }
        (&Attention::Mla { kv_lora_rank, rope_dim, .. }, Context::DecodeAbsorbed { keys }) => {
            (2 * kv_lora_rank + rope_dim, keys.saturating_mul(2))
        }
        (
            &Attention::Gqa { head_dim, .. } | &Attention::Compressed { head_dim, .. },
            Context::DecodeAbsorbed { keys },
        ) => (2 * head_dim, keys.saturating_mul(2)),
    };
    Flops((attention.heads() * widths) as u64) * twice_keys as u64
}

/// Twice the mean number of keys that the tokens of a sequence use, rounded down.
fn twice_mean_keys(tokens: usize, window: Option<usize>) -> usize {
    match window {
        // The first `window` tokens see 1, 2, … keys, the others `window`.
        Some(window) if window < tokens => {
            let growing = window as u128 * (window as u128 + 1);
            ((growing + 2 * window as u128 * (tokens - window) as u128) / tokens as u128) as usize
        }
        _ => tokens.saturating_add(1),
    }
}

/// What the files of a model hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// Tensors, FP8 scales included.
    pub tensors: u64,
    /// Elements stored as E4M3.
    pub fp8_elements: u64,
    /// Elements stored as bf16 or f16.
    pub half_elements: u64,
    /// Elements stored as f32, without the scales.
    pub f32_elements: u64,
    /// Whole numbers of tables.
    pub i64_elements: u64,
    /// FP8 scales, stored as f32.
    pub scales: u64,
}

impl Checkpoint {
    /// Size of all tensors, without headers.
    pub fn bytes(&self) -> Bytes {
        Bytes(
            self.fp8_elements + 2 * self.half_elements + 4 * (self.f32_elements + self.scales) + 8 * self.i64_elements,
        )
    }
}

/// Counts what a saved model holds: MTP layers with their copies of embedding and head, as published.
pub fn checkpoint(config: &ModelConfig, dtype: Dtype) -> Checkpoint {
    let specs = names::param_specs(config);
    let mut counts = Checkpoint::default();
    let mut names = HashSet::new();
    for tensor in names::hf_tensors(config) {
        let elements = (tensor.rows * tensor.cols) as u64;
        counts.tensors += u64::from(names.insert(tensor.name.clone()));
        match tensor_stored_as(&tensor, &specs[tensor.param], dtype) {
            Stored::E4m3 => {
                counts.fp8_elements += elements;
                counts.scales += scale_count(tensor.shape[0], tensor.shape[1]) as u64;
                counts.tensors += 1;
            }
            Stored::Bf16 | Stored::F16 => counts.half_elements += elements,
            Stored::F32 => counts.f32_elements += elements,
            Stored::I64 => counts.i64_elements += elements,
        }
    }
    counts
}

/// Memory that training holds besides activations: everything in f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrainingBytes {
    /// Weights, MTP layers included.
    pub weights: Bytes,
    pub gradients: Bytes,
    /// AdamW's two moments.
    pub optimizer: Bytes,
}

/// Numbers of the matrices of the layers, experts' included: what is neither embedding, head, router, norm nor bias.
pub fn layer_matrices(config: &ModelConfig) -> u64 {
    let moved = |spec: &ParamSpec| if spec.kind.is_layer_matrix() { spec.len() } else { 0 };
    sum(&names::param_specs(config), moved).0
}

/// Counts weights, gradients and optimizer state. The router's selection bias has no gradient.
pub fn training_bytes(config: &ModelConfig) -> TrainingBytes {
    let specs = names::param_specs(config);
    let all = sum(&specs, ParamSpec::len).0;
    let trained = sum(&specs, |spec| if spec.kind.is_learnt() { spec.len() } else { 0 }).0;
    TrainingBytes { weights: Bytes(4 * all), gradients: Bytes(4 * trained), optimizer: Bytes(8 * trained) }
}

/// Cache elements of one token in all layers; times the size of an element gives bytes.
pub fn cache_elements_per_token(config: &ModelConfig, layout: CacheLayout) -> u64 {
    let per_layer = match (&config.attention, layout) {
        (&Attention::Mla { kv_lora_rank, rope_dim, .. }, CacheLayout::Latent) => kv_lora_rank + rope_dim,
        (mla @ &Attention::Mla { heads, .. }, CacheLayout::Expanded) => heads * (mla.qk_dim() + mla.v_dim()),
        (&Attention::Gqa { kv_heads, head_dim, .. }, _) => 2 * kv_heads * head_dim,
        // A page's part, of which a token has its share.
        (Attention::Compressed { .. }, _) => {
            let lens = (0..config.layers).map(|layer| page_len(config, layer) as u64);
            return lens.sum::<u64>() / wels_device::PAGE as u64;
        }
    };
    (per_layer + config.indexer.map_or(0, |indexer| indexer.dim)) as u64 * config.layers as u64
}

//! Parameters and their Hugging Face names.
//!
//! A *parameter* is one matrix as the kernels use it; a *tensor* is one entry of a safetensors file. They differ in
//! experts: those of a layer are one parameter with their rows stacked, and one tensor each on disk; and in some
//! families, whose files hold several parameters in one tensor (`disk`). Both lists follow from the configuration
//! alone, and everything that walks over weights (loading, saving, counting, the optimizer) walks over them.

mod disk;
pub(crate) mod published;

pub(crate) use disk::fused_rows;
pub use disk::{HfTensor, Place, Role, hf_tensors};

use crate::config::{Attention, Entries, Indexer, ModelConfig, MoeConfig, Router, Streams};
use crate::family::Norms;

/// Name of the MTP layers' projection, [D, 2D]: stays bf16 in FP8 files.
pub(crate) const EH_PROJ: &str = "eh_proj.weight";

/// One parameter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParamSpec {
    /// Hugging Face name; stacked experts are named without the expert: `model.layers.3.mlp.experts.gate_proj`.
    pub name: String,
    /// Rows (outputs); 1 for vectors.
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    pub kind: ParamKind,
}

impl ParamSpec {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// The layer that it belongs to, MTP layers counting on from the last.
    pub fn layer(&self) -> Option<usize> {
        self.name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
    }

    /// Whether it is latent attention's map from latents to keys and values, of which pages of latents need the halves.
    pub(crate) fn is_up_projection(&self) -> bool {
        self.name.ends_with("kv_b_proj.weight")
    }

    /// Whether it is an indexer's, which learns by a loss of its own alone.
    pub fn is_of_indexer(&self) -> bool {
        self.name.contains(".indexer.")
    }

    /// Whether it has no elements (never true of what [`param_specs`] returns).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What a parameter is: decides its initial values, weight decay, number format on disk and whether it has a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParamKind {
    /// A linear map, [outputs, inputs].
    Matrix,
    /// A linear map that stays in f32 while it is used, and that is not packed: the router's, [experts, D]; an
    /// indexer's for the weights of its heads, [heads, D]; those that mix streams; those of groups of heads.
    Router,
    /// Scale of a norm.
    Norm,
    /// Bias of a linear map, or the sinks of heads.
    Bias,
    /// `e_score_correction_bias`: moved by the balancing rule, has no gradient.
    RouterBias,
    /// Token embedding, [V, D]; also the output head when tied.
    Embedding,
    /// Output head, [V, D].
    Head,
    /// Linear maps of this many experts, stacked by rows.
    Experts(usize),
    /// Their biases, one a row.
    ExpertBiases(usize),
    /// Added to what tokens give at each place of a window, [places, numbers].
    PlaceBias,
    /// Which experts the tokens of each id go to, [V, K]: whole numbers, without a gradient.
    Table,
}

impl ParamKind {
    /// Whether it is a linear map of a layer, or those of experts.
    pub fn is_layer_matrix(self) -> bool {
        matches!(self, ParamKind::Matrix | ParamKind::Experts(_))
    }

    /// Whether it follows gradients.
    pub fn is_learnt(self) -> bool {
        !matches!(self, ParamKind::RouterBias | ParamKind::Table)
    }

    /// Whether products with it may have it packed, and so quantised. Norms, biases and routers stay f32.
    pub fn is_packable(self) -> bool {
        matches!(self, ParamKind::Matrix | ParamKind::Embedding | ParamKind::Head | ParamKind::Experts(_))
    }
}

/// All parameters in canonical order: embedding, decoder layers, final norm, head (unless tied), MTP layers.
pub fn param_specs(config: &ModelConfig) -> Vec<ParamSpec> {
    let mut list = List::default();
    let (d, v) = (config.hidden_size, config.vocab_size);
    list.push("model.embed_tokens.weight", v, d, ParamKind::Embedding);
    for layer in 0..config.layers {
        list.layer(config, layer);
    }
    if let Some(Streams { count: n, .. }) = config.streams {
        list.push("model.hc_head.hc_fn", n, n * d, ParamKind::Router);
        list.push("model.hc_head.hc_base", 1, n, ParamKind::Bias);
        list.push("model.hc_head.hc_scale", 1, 1, ParamKind::Norm);
    }
    list.push("model.norm.weight", 1, d, ParamKind::Norm);
    if !config.tied_head {
        list.push("lm_head.weight", v, d, ParamKind::Head);
    }
    for layer in config.layers..config.layers + config.mtp_depth {
        list.prefix = format!("model.layers.{layer}.");
        list.push("enorm.weight", 1, d, ParamKind::Norm);
        list.push("hnorm.weight", 1, d, ParamKind::Norm);
        list.push(EH_PROJ, d, 2 * d, ParamKind::Matrix);
        list.layer(config, layer);
        list.prefix = format!("model.layers.{layer}.");
        list.push("shared_head.norm.weight", 1, d, ParamKind::Norm);
        list.prefix.clear();
    }
    list.specs
}

#[derive(Default)]
struct List {
    specs: Vec<ParamSpec>,
    prefix: String,
}

impl List {
    fn push(&mut self, name: &str, rows: usize, cols: usize, kind: ParamKind) {
        self.specs.push(ParamSpec { name: format!("{}{name}", self.prefix), rows, cols, kind });
    }

    fn layer(&mut self, config: &ModelConfig, layer: usize) {
        let d = config.hidden_size;
        self.prefix = format!("model.layers.{layer}.");
        if let Some(streams) = config.streams {
            self.mixing("attn_hc", streams, d);
            self.mixing("ffn_hc", streams, d);
        }
        self.push("input_layernorm.weight", 1, d, ParamKind::Norm);
        self.prefix.push_str("self_attn.");
        self.attention(&config.attention, d);
        let entries = config.entries(layer);
        if entries != Entries::None {
            self.compressor("compressor", entries, config.attention.v_dim(), d);
        }
        match (config.indexer, entries) {
            (Some(indexer), Entries::None) if config.attention.is_mla() => self.indexer(indexer, config),
            (Some(indexer), Entries::Chosen { .. }) => self.entry_indexer(indexer, config, layer),
            _ => {}
        }
        self.prefix = format!("model.layers.{layer}.");
        let Norms { before_ffn, after: [after_attention, after_ffn] } = config.family.row().norms;
        for name in after_attention.into_iter().chain([before_ffn]).chain(after_ffn) {
            self.push(name, 1, d, ParamKind::Norm);
        }
        self.prefix.push_str("mlp.");
        match &config.moe {
            Some(moe) if config.is_moe_layer(layer) => self.experts(config, moe, layer),
            _ => self.swiglu("", config.dense_intermediate, d),
        }
        self.prefix.clear();
    }

    fn attention(&mut self, attention: &Attention, d: usize) {
        match *attention {
            Attention::Mla { heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim } => {
                let q_rows = heads * (nope_dim + rope_dim);
                match q_lora_rank {
                    Some(rank) => {
                        self.push("q_a_proj.weight", rank, d, ParamKind::Matrix);
                        self.push("q_a_layernorm.weight", 1, rank, ParamKind::Norm);
                        self.push("q_b_proj.weight", q_rows, rank, ParamKind::Matrix);
                    }
                    None => self.push("q_proj.weight", q_rows, d, ParamKind::Matrix),
                }
                self.push("kv_a_proj_with_mqa.weight", kv_lora_rank + rope_dim, d, ParamKind::Matrix);
                self.push("kv_a_layernorm.weight", 1, kv_lora_rank, ParamKind::Norm);
                self.push("kv_b_proj.weight", heads * (nope_dim + v_dim), kv_lora_rank, ParamKind::Matrix);
                self.push("o_proj.weight", d, heads * v_dim, ParamKind::Matrix);
            }
            Attention::Gqa { heads, kv_heads, head_dim, qkv_bias, o_bias, qk_norm, sinks, .. } => {
                let (q, kv) = (heads * head_dim, kv_heads * head_dim);
                for (name, rows, cols, bias) in [
                    ("q_proj", q, d, qkv_bias),
                    ("k_proj", kv, d, qkv_bias),
                    ("v_proj", kv, d, qkv_bias),
                    ("o_proj", d, q, o_bias),
                ] {
                    self.push(&format!("{name}.weight"), rows, cols, ParamKind::Matrix);
                    if bias {
                        self.push(&format!("{name}.bias"), 1, rows, ParamKind::Bias);
                    }
                }
                if sinks {
                    self.push("sinks", 1, heads, ParamKind::Bias);
                }
                if qk_norm {
                    self.push("q_norm.weight", 1, head_dim, ParamKind::Norm);
                    self.push("k_norm.weight", 1, head_dim, ParamKind::Norm);
                }
            }
            Attention::Compressed { heads, q_lora_rank, head_dim, groups, o_lora_rank, .. } => {
                self.push("q_a_proj.weight", q_lora_rank, d, ParamKind::Matrix);
                self.push("q_a_norm.weight", 1, q_lora_rank, ParamKind::Norm);
                self.push("q_b_proj.weight", heads * head_dim, q_lora_rank, ParamKind::Matrix);
                self.push("kv_proj.weight", head_dim, d, ParamKind::Matrix);
                self.push("kv_norm.weight", 1, head_dim, ParamKind::Norm);
                // A matrix for each group, one below the other.
                self.push("o_a_proj.weight", groups * o_lora_rank, heads * head_dim / groups, ParamKind::Router);
                self.push("o_b_proj.weight", d, groups * o_lora_rank, ParamKind::Matrix);
                self.push("sinks", 1, heads, ParamKind::Bias);
            }
        }
    }

    /// What makes entries of `rate` tokens, `dim` wide.
    fn compressor(&mut self, part: &str, entries: Entries, dim: usize, d: usize) {
        let rate = entries.rate();
        let cols = if matches!(entries, Entries::Chosen { .. }) { 2 * dim } else { dim };
        self.push(&format!("{part}.position_bias"), rate, cols, ParamKind::PlaceBias);
        self.push(&format!("{part}.kv_proj.weight"), cols, d, ParamKind::Matrix);
        self.push(&format!("{part}.gate_proj.weight"), cols, d, ParamKind::Matrix);
        self.push(&format!("{part}.kv_norm.weight"), 1, dim, ParamKind::Norm);
    }

    /// What makes a layer's weights of `streams`, and the numbers that these are made with.
    fn mixing(&mut self, part: &str, Streams { count: n, .. }: Streams, d: usize) {
        let width = (2 + n) * n;
        self.push(&format!("{part}.fn"), width, n * d, ParamKind::Router);
        self.push(&format!("{part}.base"), 1, width, ParamKind::Bias);
        self.push(&format!("{part}.scale"), 1, 3, ParamKind::Norm);
    }

    fn entry_indexer(&mut self, indexer: Indexer, config: &ModelConfig, layer: usize) {
        let Attention::Compressed { q_lora_rank, .. } = config.attention else {
            panic!("entries of {:?}", config.attention)
        };
        let (d, Indexer { heads, dim, .. }) = (config.hidden_size, indexer);
        self.compressor("compressor.indexer", config.entries(layer), dim, d);
        self.push("compressor.indexer.q_b_proj.weight", heads * dim, q_lora_rank, ParamKind::Matrix);
        self.push("compressor.indexer.scorer.weights_proj.weight", heads, d, ParamKind::Router);
    }

    fn indexer(&mut self, Indexer { heads, dim, .. }: Indexer, config: &ModelConfig) {
        let Attention::Mla { q_lora_rank: Some(rank), .. } = config.attention else {
            panic!("an indexer without a query latent: {:?}", config.attention)
        };
        let d = config.hidden_size;
        self.push("indexer.wq_b.weight", heads * dim, rank, ParamKind::Matrix);
        self.push("indexer.wk.weight", dim, d, ParamKind::Matrix);
        self.push("indexer.k_norm.weight", 1, dim, ParamKind::Norm);
        self.push("indexer.k_norm.bias", 1, dim, ParamKind::Bias);
        // As a router's: in f32, and in no file narrower than bf16.
        self.push("indexer.weights_proj.weight", heads, d, ParamKind::Router);
    }

    fn experts(&mut self, config: &ModelConfig, moe: &MoeConfig, layer: usize) {
        let (e, m, d) = (moe.experts, moe.expert_intermediate, config.hidden_size);
        self.push("gate.weight", e, d, ParamKind::Router);
        if moe.biases {
            self.push("gate.bias", 1, e, ParamKind::Bias);
        }
        if config.has_table(layer) {
            self.push("gate.tid2eid", config.vocab_size, moe.top_k, ParamKind::Table);
        } else if matches!(moe.router, Router::Sigmoid { .. } | Router::SqrtSoftplus { .. }) {
            self.push("gate.e_score_correction_bias", 1, e, ParamKind::RouterBias);
        }
        for (name, rows, cols) in [("gate", m, d), ("up", m, d), ("down", d, m)] {
            self.push(&format!("experts.{name}_proj"), e * rows, cols, ParamKind::Experts(e));
            if moe.biases {
                self.push(&format!("experts.{name}_proj_bias"), e, rows, ParamKind::ExpertBiases(e));
            }
        }
        if moe.shared_experts > 0 {
            self.swiglu("shared_experts.", moe.shared_experts * m, d);
        }
    }

    fn swiglu(&mut self, part: &str, width: usize, d: usize) {
        self.push(&format!("{part}gate_proj.weight"), width, d, ParamKind::Matrix);
        self.push(&format!("{part}up_proj.weight"), width, d, ParamKind::Matrix);
        self.push(&format!("{part}down_proj.weight"), d, width, ParamKind::Matrix);
    }
}

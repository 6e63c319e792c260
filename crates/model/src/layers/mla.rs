//! Multi-head latent attention: in its expanded form, and over pages of latents in its absorbed form
//! (`ops::latent_attention`).
//!
//! ```text
//! c_KV, k_R = split(W_DKV h)          k_R = RoPE(k_R), one for all heads
//! k_C, v    = W_UKV norm(c_KV)        interleaved by heads: k_C of head 0, v of head 0, k_C of head 1, …
//! q_C, q_R  = W_UQ norm(W_DQ h)       or W_Q h without a query latent; q_R = RoPE(q_R)
//! u         = W_O attention([q_C; q_R], [k_C; k_R], v)
//! ```
//! With an indexer, attention is to the keys that it chooses. Source: DeepSeek-V3 report, eq. 1–11, with the latent
//! norms of the released code.

use super::indexer::Indexer;
use crate::config::{Attention, LATENT_NORM_EPS, ModelConfig};
use crate::ops::{LatentShape, Part, Parts, attention, latent_attention, linear, linears, rms_norm, rope, split};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{AttentionShape, Rotary, RotaryColumns};

pub(crate) struct Mla {
    query: Query,
    kv_a: Weight,
    kv_a_norm: Weight,
    kv_b: Weight,
    o: Weight,
    indexer: Option<Indexer>,
    shape: AttentionShape,
    rotary: Rotary,
    kv_rank: usize,
    nope_dim: usize,
    rope_dim: usize,
    v_dim: usize,
}

enum Query {
    Direct(Weight),
    Latent { a: Weight, norm: Weight, b: Weight },
}

impl Mla {
    pub fn new(wiring: &mut Wiring, name: &str, config: &ModelConfig, rotary: &Rotary) -> Self {
        let Attention::Mla { heads, q_lora_rank, kv_lora_rank: kv_rank, nope_dim, rope_dim, v_dim } = config.attention
        else {
            panic!("{:?} is not MLA", config.attention)
        };
        let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}.weight"));
        let query = match q_lora_rank {
            None => Query::Direct(weight("q_proj")),
            Some(_) => Query::Latent { a: weight("q_a_proj"), norm: weight("q_a_layernorm"), b: weight("q_b_proj") },
        };
        Mla {
            query,
            kv_a: weight("kv_a_proj_with_mqa"),
            kv_a_norm: weight("kv_a_layernorm"),
            kv_b: weight("kv_b_proj"),
            o: weight("o_proj"),
            indexer: config.indexer.map(|sizes| Indexer::new(wiring, &format!("{name}.indexer"), sizes, rotary)),
            shape: AttentionShape { heads, kv_heads: heads, scale: config.softmax_scale, window: None, cap: None },
            rotary: rotary.clone(),
            kv_rank,
            nope_dim,
            rope_dim,
            v_dim,
        }
    }

    /// The up-projection of the latent, and the widths of its parts of a head.
    pub fn up_projection(&self) -> (Weight, usize, usize) {
        (self.kv_b, self.nope_dim, self.v_dim)
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, h: &Var) -> Var {
        let Mla { nope_dim, rope_dim, v_dim, .. } = *self;
        let (heads, precision) = (self.shape.heads, g.precision());
        let (q_dim, kv_dim) = (nope_dim + rope_dim, nope_dim + v_dim);

        let mut choice = None;
        let [q, c_kv] = match self.query {
            Query::Direct(w) => linears(g, precision, h, [w, self.kv_a]),
            Query::Latent { a, norm, b } => {
                let [c_q, c_kv] = linears(g, precision, h, [a, self.kv_a]);
                let c_q = rms_norm(g, &c_q, norm, LATENT_NORM_EPS);
                choice = self.indexer.as_ref().map(|indexer| indexer.forward(g, h, &c_q));
                [linear(g, precision, &c_q, b), c_kv]
            }
        };
        let q = rope(g, q, &self.rotary, RotaryColumns { offset: nope_dim, head_stride: q_dim, heads });

        let (c_kv, k_r) = split(g, c_kv, self.kv_rank);
        let k_r = rope(g, k_r, &self.rotary, RotaryColumns { offset: 0, head_stride: 0, heads: 1 });
        let c_kv = rms_norm(g, &c_kv, self.kv_a_norm, LATENT_NORM_EPS);
        if g.latent() {
            let shape = LatentShape { heads, scale: self.shape.scale, nope: nope_dim, rope: rope_dim, v: v_dim };
            let out = latent_attention(g, shape, self.kv_b, [&q, &c_kv, &k_r], choice.as_ref());
            return linear(g, precision, &out, self.o);
        }
        let kv = linear(g, precision, &c_kv, self.kv_b);

        let parts = Parts {
            q: Part { of: q, offset: 0, head_stride: q_dim, dim: q_dim },
            k: Part { of: kv.clone(), offset: 0, head_stride: kv_dim, dim: nope_dim },
            k_shared: Some(Part { of: k_r, offset: 0, head_stride: 0, dim: rope_dim }),
            v: Part { of: kv, offset: nope_dim, head_stride: kv_dim, dim: v_dim },
            sinks: None,
            choice,
        };
        let out = attention(g, self.shape, parts);
        linear(g, precision, &out, self.o)
    }
}

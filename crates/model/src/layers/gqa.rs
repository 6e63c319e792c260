//! Grouped-query attention: `u = W_O attention(RoPE(norm(W_Q h)), RoPE(norm(W_K h)), W_V h)`, with biases if the model
//! has them (Qwen2: on query, key and value), and with the norms, which are over each head, if it has those (Qwen3). Of
//! each head the first part rotates, in most models all of it. Each key-value head serves heads / kv_heads query heads.
//! gpt-oss has a sink for each head, Gemma 2 a cap of the scores, Gemma 3 rotates otherwise where it has a window.
//! Source: Ainslie et al. 2023; Qwen3 report (arXiv 2505.09388), §2, for the norms.

use crate::config::{Attention, ModelConfig};
use crate::ops::{Part, Parts, attention, bias, linears, rms_norm_heads, rope};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{AttentionShape, Rotary, RotaryColumns};

pub(crate) struct Gqa {
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
    /// Of each head's query and key.
    norms: Option<[Weight; 2]>,
    sinks: Option<Weight>,
    eps: f32,
    shape: AttentionShape,
    head_dim: usize,
    rotary: Rotary,
}

struct Projection {
    weight: Weight,
    bias: Option<Weight>,
}

impl Projection {
    fn new(wiring: &mut Wiring, name: &str) -> Self {
        let weight = wiring.weight(&format!("{name}.weight"));
        Projection { weight, bias: wiring.optional(&format!("{name}.bias")) }
    }

    /// What it gives of x: products with one x are made together.
    fn forward<const N: usize>(all: [&Projection; N], g: &mut Graph, x: &Var) -> [Var; N] {
        let precision = g.precision();
        let ys = linears(g, precision, x, all.map(|projection| projection.weight));
        let mut all = all.into_iter();
        ys.map(|y| match all.next().and_then(|projection| projection.bias) {
            Some(b) => bias(g, y, b),
            None => y,
        })
    }
}

impl Gqa {
    pub fn new(wiring: &mut Wiring, name: &str, config: &ModelConfig, layer: usize, rotary: &Rotary) -> Self {
        let Attention::Gqa { heads, kv_heads, head_dim, qk_norm, sinks, .. } = config.attention else {
            panic!("{:?} is not GQA", config.attention)
        };
        let norms = qk_norm.then(|| ["q", "k"].map(|part| wiring.weight(&format!("{name}.{part}_norm.weight"))));
        let sinks = sinks.then(|| wiring.weight(&format!("{name}.sinks")));
        let mut projection = |part: &str| Projection::new(wiring, &format!("{name}.{part}_proj"));
        Gqa {
            q: projection("q"),
            k: projection("k"),
            v: projection("v"),
            o: projection("o"),
            norms,
            sinks,
            eps: config.norm_eps,
            shape: AttentionShape {
                heads,
                kv_heads,
                scale: config.softmax_scale,
                window: config.window(layer),
                cap: config.attention_cap,
            },
            head_dim,
            rotary: rotary.clone(),
        }
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, h: &Var) -> Var {
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        let columns = |heads| RotaryColumns { offset: 0, head_stride: self.head_dim, heads };
        let [mut q, mut k, v] = Projection::forward([&self.q, &self.k, &self.v], g, h);
        if let Some([of_q, of_k]) = self.norms {
            q = rms_norm_heads(g, q, heads, of_q, self.eps);
            k = rms_norm_heads(g, k, kv_heads, of_k, self.eps);
        }
        let q = rope(g, q, &self.rotary, columns(heads));
        let k = rope(g, k, &self.rotary, columns(kv_heads));

        let part = |of| Part { of, offset: 0, head_stride: self.head_dim, dim: self.head_dim };
        let (q, k, v) = (part(q), part(k), part(v));
        let out = attention(g, self.shape, Parts { q, k, k_shared: None, v, sinks: self.sinks, choice: None });
        let [u] = Projection::forward([&self.o], g, &out);
        u
    }
}

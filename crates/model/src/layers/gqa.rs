//! Grouped-query attention: `u = W_O attention(RoPE(W_Q h), RoPE(W_K h), W_V h)`, with biases if the model has them
//! (Qwen2: on query, key and value). Each key-value head serves heads / kv_heads query heads. Source: Ainslie et al.
//! 2023.

use crate::config::{Attention, ModelConfig};
use crate::ops::{Part, Parts, attention, bias, linears, rope};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::{AttentionShape, Rotary, RotaryColumns};

pub(crate) struct Gqa {
    q: Projection,
    k: Projection,
    v: Projection,
    o: Projection,
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
    pub fn new(wiring: &mut Wiring, name: &str, config: &ModelConfig, rotary: &Rotary) -> Self {
        let Attention::Gqa { heads, kv_heads, head_dim, .. } = config.attention else {
            panic!("{:?} is not GQA", config.attention)
        };
        let mut projection = |part: &str| Projection::new(wiring, &format!("{name}.{part}_proj"));
        Gqa {
            q: projection("q"),
            k: projection("k"),
            v: projection("v"),
            o: projection("o"),
            shape: AttentionShape { heads, kv_heads, scale: config.softmax_scale },
            head_dim,
            rotary: rotary.clone(),
        }
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, h: &Var) -> Var {
        let AttentionShape { heads, kv_heads, .. } = self.shape;
        let columns = |heads| RotaryColumns { offset: 0, head_stride: self.head_dim, heads };
        let [q, k, v] = Projection::forward([&self.q, &self.k, &self.v], g, h);
        let q = rope(g, q, &self.rotary, columns(heads));
        let k = rope(g, k, &self.rotary, columns(kv_heads));

        let part = |of| Part { of, offset: 0, head_stride: self.head_dim, dim: self.head_dim };
        let out = attention(g, self.shape, Parts { q: part(q), k: part(k), k_shared: None, v: part(v) });
        let [u] = Projection::forward([&self.o], g, &out);
        u
    }
}

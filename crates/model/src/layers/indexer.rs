//! The lightning indexer of DeepSeek Sparse Attention: which keys queries attend to.
//!
//! ```text
//! q^I_h = W_q c_Q        from MLA's query latent; the first part of each head is turned
//! k^I   = LayerNorm(W_k h)        one for all heads, turned likewise
//! w     = W_w h        in f32, whatever the precision of the others
//! I(t, s) = Σ_h w_h · ReLU(q^I_h · k^I_s / √d) / √H        the top_k keys of the greatest score are attended to
//! ```
//! Elements i and i + n/2 of the part of width n are a pair, where MLA's own are neighbours. Nothing that it reads
//! learns by it. The released program rotates query and key by a Hadamard matrix before it rounds them to 8 bits, which
//! changes no product. Source: DeepSeek-V3.2 report (arXiv 2512.02556), §2.1, its `inference/model.py`, and
//! `transformers` 5.23.

use crate::ops::{Affine, Choice, choose, layer_norm, linear, rope};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::host::Layout;
use wels_device::{Indexer as Sizes, Precision, Rotary, RotaryColumns, Tensor};

/// `eps` of the norm of keys: the published code gives it whatever the configuration says.
const NORM_EPS: f32 = 1e-6;

pub(crate) struct Indexer {
    sizes: Sizes,
    query: Weight,
    key: Weight,
    key_norm: Affine,
    weights: Weight,
    rotary: Rotary,
}

impl Indexer {
    pub fn new(wiring: &mut Wiring, name: &str, sizes: Sizes, rotary: &Rotary) -> Self {
        Indexer {
            sizes,
            query: wiring.weight(&format!("{name}.wq_b.weight")),
            key: wiring.weight(&format!("{name}.wk.weight")),
            key_norm: Affine::named(wiring, &format!("{name}.k_norm")),
            weights: wiring.weight(&format!("{name}.weights_proj.weight")),
            rotary: rotary.of_layout(Layout::HalfSplit),
        }
    }

    /// Of the states h `[T, D]` and the query latent c_Q, after its norm.
    pub fn forward(&self, g: &mut Graph, h: &Var, c_q: &Var) -> Choice {
        let Sizes { heads, dim, .. } = self.sizes;
        let [h, c_q] = [h, c_q].map(|x| g.constant(Tensor::clone(x)));
        let precision = g.precision();
        let q = linear(g, precision, &c_q, self.query);
        let q = rope(g, q, &self.rotary, RotaryColumns { offset: 0, head_stride: dim, heads });
        let k = linear(g, precision, &h, self.key);
        let k = layer_norm(g, &k, self.key_norm, NORM_EPS);
        let k = rope(g, k, &self.rotary, RotaryColumns { offset: 0, head_stride: 0, heads: 1 });
        let w = linear(g, Precision::F32, &h, self.weights);
        choose(g, self.sizes, [q, w, k])
    }
}

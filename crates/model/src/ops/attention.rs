//! Causal attention over packed sequences: `out = softmax(scale · q · kᵀ) · v` for each head.
//!
//! Heads are read where the projections left them: q, keys and values are column ranges ([`Part`]) of variables, and
//! keys and values may lie in the same one, as MLA's do. A shared part (MLA's rotary key) belongs to every head's key,
//! after its own. out `[T, H·v]`. Saved: q, k, v, out, and for each token and head the maximum score and 1/Σ.
//! Backward: the weights are computed again block by block (Dao 2023, algorithm 2). Source: DeepSeek-V3 report, eq. 10.
//!
//! With pages (`crate::paged`) keys and values are appended to them and the queries attend over all of them, to the
//! same bits.

use crate::tape::{Graph, Var};
use crate::tensor::Tensor;
use wels_kernels::attention::{self, Heads, HeadsMut, Keys, Shape};
use wels_kernels::par::SharedMut;

/// The heads that lie in the columns `offset + h·head_stride ..+ dim` of a variable.
#[derive(Clone)]
pub struct Part {
    /// Rows of all tokens.
    pub of: Var,
    /// First column of the first head.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// Width of a head.
    pub dim: usize,
}

impl Part {
    fn heads<'a>(&self, data: &'a [f32]) -> Heads<'a> {
        let Part { offset, head_stride, dim, .. } = *self;
        Heads { data, row_stride: self.of.cols(), offset, head_stride, dim }
    }

    fn heads_mut(&self, data: SharedMut<f32>) -> HeadsMut {
        let Part { offset, head_stride, dim, .. } = *self;
        HeadsMut { data, row_stride: self.of.cols(), offset, head_stride, dim }
    }
}

/// Queries, keys and values of one attention.
pub struct Parts {
    /// Queries, as wide as a key with its shared part.
    pub q: Part,
    /// Each head's own part of the keys.
    pub k: Part,
    /// The part that all heads' keys share.
    pub k_shared: Option<Part>,
    /// Values.
    pub v: Part,
}

impl Parts {
    fn keys<'a>(&self, own: &'a [f32], shared: &'a [f32]) -> Keys<'a> {
        Keys { own: self.k.heads(own), shared: self.k_shared.as_ref().map(|part| part.heads(shared)) }
    }

    /// Whether keys and values lie in one variable.
    fn joint(&self) -> bool {
        self.k.of.as_ptr() == self.v.of.as_ptr()
    }
}

/// `out[T, H·v]`.
pub fn attention(g: &mut Graph, shape: Shape, parts: Parts) -> Var {
    let Parts { q, k, k_shared, v } = &parts;
    let mut out = g.tensor(q.of.rows(), shape.heads * v.dim);
    let layer = g.layer();
    let keys = parts.keys(&k.of, k_shared.as_ref().map_or(&[], |part| &part.of));
    if let Some(paging) = g.paging() {
        let (pages, offset, layout, sequences) = paging.expanded(layer);
        pages.append(offset, layout, sequences, keys, v.heads(&v.of));
        pages.attend(offset, layout, shape, sequences, q.heads(&q.of), &mut out);
        g.inspect("attention", &out);
        return g.variable(out);
    }
    let mut stats = g.tensor(q.of.rows(), shape.heads * 2);
    let starts = &g.context.sequences.starts;
    attention::forward(shape, starts, q.heads(&q.of), keys, v.heads(&v.of), &mut out, &mut stats);
    let kept_out = Tensor::clone(&out);
    g.record("attention", out, move |back, d_out| {
        let Parts { q, k, k_shared, v } = &parts;
        let like = |part: &Part| back.tensor(part.of.rows(), part.of.cols());
        let (mut dq, mut dk, mut d_shared) = (like(q), like(k), k_shared.as_ref().map(like));
        let mut dv = (!parts.joint()).then(|| like(v));
        let dk_rows = SharedMut::new(&mut dk);
        let dv_rows = dv.as_mut().map_or(dk_rows, |dv| SharedMut::new(dv));
        let d_shared_heads = k_shared.as_ref().zip(d_shared.as_mut()).map(|(p, d)| p.heads_mut(SharedMut::new(d)));
        attention::backward(
            shape,
            &back.context.sequences.starts,
            q.heads(&q.of),
            parts.keys(&k.of, k_shared.as_ref().map_or(&[], |part| &part.of)),
            v.heads(&v.of),
            &kept_out,
            &stats,
            &d_out,
            q.heads_mut(SharedMut::new(&mut dq)),
            k.heads_mut(dk_rows),
            d_shared_heads,
            v.heads_mut(dv_rows),
        );
        let gradients = [(Some(q), Some(dq)), (Some(k), Some(dk)), (k_shared.as_ref(), d_shared), (Some(v), dv)];
        for (part, gradient) in gradients {
            if let (Some(part), Some(gradient)) = (part, gradient) {
                back.give(part.of.gradient(), gradient);
            }
        }
    })
}

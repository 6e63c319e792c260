//! Multi-head latent attention in its absorbed form, over latents in pages; inference only.
//!
//! ```text
//! q̃_h = W_UK,hᵀ q_C,h        õ_h = attention([q̃_h; q_R,h], [c; k_R], c)        o_h = W_UV,h õ_h
//! ```
//! q `[T, H·(nope + rope)]` with its rotary part turned, c `[T, latent]` after its norm, k_R `[T, rope]` turned, o
//! `[T, H·v]`. Source: DeepSeek-V2 report, appendix C.

use super::product::grouped_products;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use crate::tensor::Tensor;
use wels_kernels::attention::{Heads, HeadsMut};
use wels_kernels::elementwise::{self, Columns};
use wels_kernels::par::SharedMut;

/// Heads and the widths of their parts.
#[derive(Clone, Copy, Debug)]
pub struct LatentShape {
    /// H.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// Width of a query's part without position.
    pub nope: usize,
    /// Width of the rotary part.
    pub rope: usize,
    /// Width of a value.
    pub v: usize,
}

/// `o[T, H·v]`; `kv_b` is the up-projection whose absorbed halves the parameters hold.
///
/// # Panics
/// If the parameters were not prepared, or there are no pages of latents.
pub fn latent_attention(g: &mut Graph, shape: LatentShape, kv_b: Weight, q: &Var, c: &Var, k_r: &Var) -> Var {
    let LatentShape { heads, scale, nope, rope, v } = shape;
    let (tokens, latent, precision, layer) = (q.rows(), c.cols(), g.precision(), g.layer());
    let halves = g.context.params.absorbed(kv_b);
    let offsets: Vec<u32> = (0..=heads).map(|h| (h * tokens) as u32).collect();

    let mut q_own = g.tensor(heads * tokens, nope);
    for h in 0..heads {
        let of_head = Columns { stride: q.cols(), offset: h * (nope + rope) };
        let to = &mut q_own[h * tokens * nope..(h + 1) * tokens * nope];
        elementwise::copy_columns(q, of_head, to, Columns { stride: nope, offset: 0 }, nope, tokens);
    }
    let mut absorbed = g.tensor(heads * tokens, latent);
    grouped_products(precision, &q_own, None, &offsets, &mut [(halves.keys(), &mut absorbed)]);

    let mut sums = g.tensor(heads * tokens, latent);
    let by_heads = Heads { data: &absorbed, row_stride: latent, offset: 0, head_stride: tokens * latent, dim: latent };
    let turned = Heads { data: q, row_stride: q.cols(), offset: nope, head_stride: nope + rope, dim: rope };
    let Heads { row_stride, offset, head_stride, dim, .. } = by_heads;
    let to = HeadsMut { data: SharedMut::new(&mut sums), row_stride, offset, head_stride, dim };
    let (pages, offset, layout, sequences) = g.paging().expect("pages of latents").latent(layer);
    pages.append_latent(offset, layout, sequences, c, k_r);
    pages.attend_latent(offset, layout, heads, scale, sequences, by_heads, turned, to);

    let mut o = g.tensor(heads * tokens, v);
    grouped_products(precision, &sums, None, &offsets, &mut [(halves.values(), &mut o)]);
    let out = beside_each_other(g, &o, heads);
    g.inspect("latent attention", &out);
    g.variable(out)
}

/// `[H·T, v]` to `[T, H·v]`.
fn beside_each_other(g: &Graph, o: &Tensor, heads: usize) -> Tensor {
    let (tokens, v) = (o.rows() / heads, o.cols());
    let mut out = g.tensor(tokens, heads * v);
    for h in 0..heads {
        let of_head = &o[h * tokens * v..(h + 1) * tokens * v];
        let to = Columns { stride: heads * v, offset: h * v };
        elementwise::copy_columns(of_head, Columns { stride: v, offset: 0 }, &mut out, to, v, tokens);
    }
    out
}

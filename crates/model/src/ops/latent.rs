//! Multi-head latent attention in its absorbed form, over latents in pages; inference only.
//!
//! ```text
//! q̃_h = W_UK,hᵀ q_C,h        õ_h = attention([q̃_h; q_R,h], [c; k_R], c)        o_h = W_UV,h õ_h
//! ```
//! q `[T, H·(nope + rope)]` with its rotary part turned, c `[T, latent]` after its norm, k_R `[T, rope]` turned, o
//! `[T, H·v]`. Source: DeepSeek-V2 report, appendix C.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{ColumnHeads, Groups, LatentQuery};

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
    let (tokens, latent, precision, layer, device) = (q.rows(), c.cols(), g.precision(), g.layer(), g.device());
    let halves = g.context.params.absorbed(kv_b);

    let tensor = |rows, cols| g.tensor_of(q.dtype(), rows, cols);
    let mut q_own = tensor(heads * tokens, nope);
    device.split_heads(q, heads, 0, nope + rope, &mut q_own);
    let mut absorbed = tensor(heads * tokens, latent);
    device.grouped(precision, &q_own, Groups::Equal(heads), &mut [(halves.keys(), &mut absorbed)]);

    let mut sums = tensor(heads * tokens, latent);
    let rotary = ColumnHeads { of: q, offset: nope, head_stride: nope + rope, dim: rope };
    let query = LatentQuery { heads, scale, absorbed: &absorbed, rotary };
    let (pages, at, layout) = g.paging().expect("pages of latents").latent(layer);
    device.append_latent(pages, at, layout, c, k_r);
    device.attend_latent(pages, at, layout, query, &mut sums);

    let mut o = g.tensor_of(q.dtype(), heads * tokens, v);
    device.grouped(precision, &sums, Groups::Equal(heads), &mut [(halves.values(), &mut o)]);
    let mut out = g.tensor_of(q.dtype(), tokens, heads * v);
    device.join_heads(&o, heads, &mut out);
    g.inspect("latent attention", &out);
    g.variable(out)
}

//! Multi-head latent attention in its absorbed form, over latents in pages; inference only.
//!
//! ```text
//! q̃_h = W_UK,hᵀ q_C,h        õ_h = attention([q̃_h; q_R,h], [c; k_R], c)        o_h = W_UV,h õ_h
//! ```
//! q `[T, H·(nope + rope)]` with its rotary part turned, c `[T, latent]` after its norm, k_R `[T, rope]` turned, o
//! `[T, H·v]`. Source: DeepSeek-V2 report, appendix C. An adapter of the up-projection adds `s·Aᵀ (B_UK,hᵀ q_C,h)` to
//! q̃_h and `s·B_UV,h (A õ_h)` to o_h.

use super::choose::Choice;
use super::low_rank::{picked, put_back};
use crate::adapter::Halves;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{ColumnHeads, Groups, Ids, LatentQuery, Precision, Start, Tensor, WeightRef};

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
pub fn latent_attention(
    g: &mut Graph,
    shape: LatentShape,
    kv_b: Weight,
    [q, c, k_r]: [&Var; 3],
    choice: Option<&Choice>,
) -> Var {
    let LatentShape { heads, scale, nope, rope, v } = shape;
    let (tokens, latent, precision, layer, device) = (q.rows(), c.cols(), g.precision(), g.layer(), g.device());
    let halves = g.context.params.absorbed(kv_b);

    let tensor = |rows, cols| g.tensor_of(q.dtype(), rows, cols);
    let mut q_own = tensor(heads * tokens, nope);
    device.split_heads(q, heads, 0, nope + rope, &mut q_own);
    let mut absorbed = tensor(heads * tokens, latent);
    device.grouped(precision, &q_own, Groups::Equal(heads), &mut [(halves.keys(), &mut absorbed)]);
    let adapters = Adapters { g, heads, tokens, precision };
    adapters.add(kv_b, &q_own, &mut absorbed, Half::Keys);

    let mut sums = tensor(heads * tokens, latent);
    let rotary = ColumnHeads { of: q, offset: nope, head_stride: nope + rope, dim: rope };
    let chosen = choice.map(|choice| &*choice.chosen);
    let query = LatentQuery { heads, scale, absorbed: &absorbed, rotary, chosen };
    let (pages, at, layout) = g.paging().expect("pages of latents").latent(layer);
    device.append_latent(pages, at, layout, c, k_r);
    device.attend_latent(pages, at, layout, query, &mut sums);

    let mut o = g.tensor_of(q.dtype(), heads * tokens, v);
    device.grouped(precision, &sums, Groups::Equal(heads), &mut [(halves.values(), &mut o)]);
    Adapters { g, heads, tokens, precision }.add(kv_b, &sums, &mut o, Half::Values);
    let mut out = g.tensor_of(q.dtype(), tokens, heads * v);
    device.join_heads(&o, heads, &mut out);
    g.inspect("latent attention", &out);
    g.variable(out)
}

/// What is added to.
#[derive(Clone, Copy)]
enum Half {
    Keys,
    Values,
}

/// What adapters of the up-projection add.
struct Adapters<'g, 'a> {
    g: &'g Graph<'a>,
    heads: usize,
    tokens: usize,
    precision: Precision,
}

impl Adapters<'_, '_> {
    /// Adds to `y[H·T, …]` what the adapters of all rows or of some make of `x[H·T, …]`.
    fn add(&self, kv_b: Weight, x: &Tensor, y: &mut Tensor, half: Half) {
        let context = &self.g.context;
        if let Some(pair) = context.params.low_rank_halves(kv_b) {
            self.add_all(pair, x, y, half);
        }
        for of in context.adapted.iter() {
            let pair = of.adapter.pair(kv_b.param()).and_then(|pair| Some((&pair.a, pair.halves()?)));
            let Some((a, halves)) = pair else { continue };
            let pair = (a, halves, of.adapter.config().scale());
            if of.all {
                self.add_all(pair, x, y, half);
                continue;
            }
            let head = |head: usize| of.rows.iter().map(move |row| (head * self.tokens) as u32 + row);
            let rows: Ids = (0..self.heads).flat_map(head).collect::<Vec<_>>().into();
            let (x, mut own) = (picked(self.g, x, &rows), picked(self.g, y, &rows));
            self.add_all(pair, &x, &mut own, half);
            put_back(self.g, &own, &rows, y);
        }
    }

    fn add_all(&self, (a, halves, scale): (&Tensor, &Halves, f32), x: &Tensor, y: &mut Tensor, half: Half) {
        let (device, groups) = (self.g.device(), Groups::Equal(self.heads));
        let mut low = self.g.tensor_of(x.dtype(), x.rows(), a.rows());
        let mut more = self.g.tensor_of(y.dtype(), y.rows(), y.cols());
        match half {
            Half::Keys => {
                device.grouped(self.precision, x, groups, &mut [(WeightRef::Plain(&halves.keys), &mut low)]);
                device.scale(&mut low, scale);
                device.linear_dx(self.precision, &[(&low, a.into())], (&mut more, Start::Zero));
            }
            Half::Values => {
                device.linear(self.precision, x, &mut [(WeightRef::Plain(a), &mut low)]);
                device.scale(&mut low, scale);
                device.grouped(self.precision, &low, groups, &mut [(WeightRef::Plain(&halves.values), &mut more)]);
            }
        }
        device.add(&more, y);
    }
}

//! Attention of every row of a picture to every row of it: `out = softmax(q·kᵀ/√width)·v` for each head.
//!
//! q, k, v, out `[P·N, H·width]`: P pictures of N rows each. Saved: q, k, v. The weights `p[N, N]` of a picture and a
//! head are computed again in the backward part: all of them are N/width times as large as q.
//! Backward, with `ds = softmax'(do·vᵀ)`: `dv = pᵀ·do`, `dq = ds·k`, `dk = dsᵀ·q`, chains over the rows as in any
//! product. Source: Vaswani et al. 2017, eq. 1.

use crate::ops::pictures;
use crate::tape::{Graph, Var};
use wels_device::{Device, Ids, Pictures, Precision, Start, Tensor, WeightRef};

/// What this attention is between.
pub struct WholeAttention {
    /// Queries, keys and values, of one shape.
    pub qkv: [Var; 3],
    /// H.
    pub heads: usize,
    /// N.
    pub rows: usize,
}

/// `out[P·N, H·width]`.
///
/// # Panics
/// If the device has no operations of images, or the rows are not those of whole pictures.
pub fn whole_attention(g: &mut Graph, of: WholeAttention) -> Var {
    let WholeAttention { qkv, heads, rows } = of;
    let (all, cols) = (qkv[0].rows(), qkv[0].cols());
    assert!(all.is_multiple_of(rows) && cols.is_multiple_of(heads), "{all} rows of {rows}, {cols} columns of {heads}");
    let (device, width) = (g.device(), cols / heads);
    let run = Run { device, pictures: pictures(device), precision: g.precision(), scale: 1.0 / (width as f32).sqrt() };
    let new = |rows, cols| g.tensor(rows, cols);
    let mut out = new(all, cols);
    let qkv_heads = qkv.each_ref().map(|x| split(device, x, heads, new(heads * all, width)));
    let mut out_heads = new(heads * all, width);
    let mut parts = [(); 4].map(|()| new(rows, width));
    let mut weights = new(rows, rows);
    for first in (0..heads * all).step_by(rows) {
        let [q, k, v, one] = &mut parts;
        [&mut *q, k, v].into_iter().zip(&qkv_heads).for_each(|(x, all)| device.copy_rows(all, first, x, 0, rows));
        run.weights(q, k, &mut weights);
        device.linear_dx(run.precision, &[(&weights, WeightRef::Plain(v))], (one, Start::Zero));
        device.copy_rows(one, 0, &mut out_heads, first, rows);
    }
    device.join_heads(&out_heads, heads, &mut out);
    let (precision, scale) = (run.precision, run.scale);
    g.record("whole_attention", out, move |back, d_out| {
        let device = back.device();
        let run = Run { device, pictures: pictures(device), precision, scale };
        let new = |rows, cols| back.tensor(rows, cols);
        let from = [&*qkv[0], &*qkv[1], &*qkv[2], &d_out].map(|x| split(device, x, heads, new(heads * all, width)));
        let mut into = [(); 3].map(|()| new(heads * all, width));
        let mut work = Work {
            from: [(); 4].map(|()| new(rows, width)),
            into: [(); 3].map(|()| new(rows, width)),
            square: [(); 2].map(|()| new(rows, rows)),
        };
        for first in (0..heads * all).step_by(rows) {
            work.from.iter_mut().zip(&from).for_each(|(x, all)| device.copy_rows(all, first, x, 0, rows));
            run.backward(&mut work);
            work.into.iter().zip(&mut into).for_each(|(dx, all)| device.copy_rows(dx, 0, all, first, rows));
        }
        for (x, gradient) in qkv.iter().zip(&into) {
            let mut dx = back.like(x.gradient());
            device.join_heads(gradient, heads, &mut dx);
            back.give(x.gradient(), dx);
        }
    })
}

/// How one head of one picture is computed.
struct Run<'a> {
    device: &'a dyn Device,
    pictures: &'a dyn Pictures,
    precision: Precision,
    scale: f32,
}

/// One head of one picture in the backward part.
struct Work {
    /// q, k, v and the gradient of what is given, `[N, width]`.
    from: [Tensor; 4],
    /// The gradients of q, k and v.
    into: [Tensor; 3],
    /// The weights and their gradients, `[N, N]`.
    square: [Tensor; 2],
}

impl Run<'_> {
    fn weights(&self, q: &Tensor, k: &Tensor, weights: &mut Tensor) {
        self.device.linear(self.precision, q, &mut [(WeightRef::Plain(k), weights)]);
        self.pictures.softmax(self.scale, weights);
    }

    fn backward(&self, work: &mut Work) {
        let Work { from: [q, k, v, d_out], into: [dq, dk, dv], square: [p, ds] } = work;
        let one = Ids::from(vec![0, q.rows() as u32]);
        let Run { device, precision, .. } = *self;
        self.weights(q, k, p);
        device.linear(precision, d_out, &mut [(WeightRef::Plain(v), ds)]);
        device.linear_dw(precision, d_out, &one, &mut [(p, (dv, Start::Zero))]);
        self.pictures.softmax_backward(p, self.scale, ds);
        device.linear_dx(precision, &[(ds, WeightRef::Plain(k))], (dq, Start::Zero));
        device.linear_dw(precision, q, &one, &mut [(ds, (dk, Start::Zero))]);
    }
}

/// The heads of x one below the other.
fn split(device: &dyn Device, x: &Tensor, heads: usize, mut parts: Tensor) -> Tensor {
    device.split_heads(x, heads, 0, parts.cols(), &mut parts);
    parts
}

//! The second half of a SwiGLU block: `y = (silu(gate) ⊙ up) · wᵀ`, or with another gate.
//!
//! gate, up `[T, M]`, w `[N, M]`, y `[T, N]`. Saved: gate and up. Their product `a = silu(gate) ⊙ up` is computed again
//! in the backward part, which is cheaper than keeping a third `[T, M]`.
//! Backward: `da = dy · w`, `dw = dyᵀ · a`, then the gate's and up's parts of `da`. Source: Shazeer 2020, eq. 6.

use super::low_rank::low_rank;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Gating, Precision, Start, Tensor};

/// `y[T, N] = (silu(gate) ⊙ up)[T, M] · w[N, M]ᵀ`.
pub fn swiglu_linear(g: &mut Graph, precision: Precision, gating: Gating, gate: Var, up: Var, w: Weight) -> Var {
    let (m, rows) = (w.cols, gate.rows());
    let dtype = gate.dtype();
    let mut a = g.tensor_of(dtype, rows, m);
    g.device().gated(gating, &gate, &up, &mut a);
    let mut y = g.tensor_of(dtype, rows, w.rows);
    g.device().linear(precision, &a, &mut [(g.stored(w), &mut y)]);
    if g.is_adapted(w) {
        return adapted(g, precision, gating, (gate, up), a, y, w);
    }
    g.record("swiglu_linear", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let mut a = back.like(gate.gradient());
        device.gated(gating, &gate, &up, &mut a);
        back.parameter(w, |dw, start| {
            device.linear_dw(precision, &a, &sequences.starts, &mut [(&dy, (dw, start))]);
        });
        let mut da = a;
        device.linear_dx(precision, &[(&dy, back.context.params.stored(w))], (&mut da, Start::Zero));
        let (mut dgate, mut dup) = (back.like(gate.gradient()), back.like(up.gradient()));
        device.gated_backward(gating, &da, [&gate, &up], [&mut dgate, &mut dup]);
        back.give(gate.gradient(), dgate);
        back.give(up.gradient(), dup);
    })
}

/// The same where an adapter reads `a` too, which is then kept: its gradient is the sum of what both make of dy.
fn adapted(
    g: &mut Graph,
    precision: Precision,
    gating: Gating,
    (gate, up): (Var, Var),
    a: Tensor,
    y: Tensor,
    w: Weight,
) -> Var {
    let a = g.record("gated", a, move |back, da| {
        let (mut dgate, mut dup) = (back.like(gate.gradient()), back.like(up.gradient()));
        back.device().gated_backward(gating, &da, [&gate, &up], [&mut dgate, &mut dup]);
        back.give(gate.gradient(), dgate);
        back.give(up.gradient(), dup);
    });
    let kept = a.clone();
    let y = g.record("swiglu_linear", y, move |back, dy| {
        let (device, sequences, weight) = (back.device(), back.sequences(), back.context.params.stored(w));
        back.parameter(w, |dw, start| {
            device.linear_dw(precision, &kept, &sequences.starts, &mut [(&dy, (dw, start))]);
        });
        back.accumulate(kept.gradient(), |da, start| device.linear_dx(precision, &[(&dy, weight)], (da, start)));
    });
    low_rank(g, precision, &a, y, w)
}

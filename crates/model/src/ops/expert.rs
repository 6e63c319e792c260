//! Products of the routed experts, each over the tokens that go to it (its *slots*, in the tokens' order).
//!
//! `expert_gate_up`: `gate[s] = x[row(s)] · w_gate[e(s)]ᵀ`, `up[s]` likewise. x `[T, D]`, weights `[E·M, D]`, gate and
//! up `[S, M]`. Saved: x. Backward: slot gradients of both (a chain that goes through gate, then up) are added per
//! token in expert order; weight gradients are chains over an expert's tokens.
//!
//! `expert_swiglu_linear`: `y[s] = (silu(gate[s]) ⊙ up[s]) · w[e(s)]ᵀ`. w `[E·D, M]`, y `[S, D]`. Saved: gate and up,
//! see `swiglu_linear`.
//!
//! `expert_bias`: `y[s] = x[s] + b[e(s)]`, in place. x `[S, N]`, b `[E, N]`. Backward: `dx = dy`; db is a chain over an
//! expert's slots. Source: DeepSeekMoE (Dai et al. 2024), eq. 9; no token is dropped.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::{Dispatch, Gating, Groups, Precision, Start};

/// Gate and up projections `[S, M]` of the tokens `x[T, D]` by the experts that they go to.
pub fn expert_gate_up(
    g: &mut Graph,
    precision: Precision,
    x: &Var,
    weights: [Weight; 2],
    dispatch: &Arc<Dispatch>,
) -> (Var, Var) {
    let (slots, d, m) = (dispatch.slots(), x.cols(), weights[0].rows / dispatch.experts);
    let [mut gate, mut up] = [(); 2].map(|()| g.tensor_of(x.dtype(), slots, m));
    let mut both = [(g.stored(weights[0]), &mut gate), (g.stored(weights[1]), &mut up)];
    g.device().grouped(precision, x, Groups::Tokens(dispatch), &mut both);
    let (x, dispatch) = (x.clone(), dispatch.clone());
    let [gate, up] = g.record_all("expert_gate_up", [gate, up], move |back, dys| {
        let (device, sequences) = (back.device(), back.sequences());
        let dys = dys.map(|dy| dy.expect("gate and up are used together"));
        let mut d_slots = back.tensor_of(x.dtype(), slots, d);
        let values = weights.map(|w| back.unpacked(w));
        let terms = [(&dys[0], &values[0]), (&dys[1], &values[1])];
        device.grouped_dx(precision, &dispatch, &terms, (&mut d_slots, Start::Zero));
        back.parameters(&weights, |dws| {
            let mut gradients: Vec<_> = dys.iter().zip(dws).collect();
            device.grouped_dw(precision, &x, Groups::Tokens(&dispatch), &sequences.starts, &mut gradients);
        });
        back.accumulate(x.gradient(), |dx, start| device.gather_slots(&d_slots, &dispatch, (dx, start)));
    });
    (gate, up)
}

/// `y[S, D] = (silu(gate) ⊙ up)[S, M] · w[e]ᵀ`.
pub fn expert_swiglu_linear(
    g: &mut Graph,
    precision: Precision,
    gating: Gating,
    (gate, up): (Var, Var),
    w: Weight,
    dispatch: &Arc<Dispatch>,
) -> Var {
    let (slots, m) = (gate.rows(), w.cols);
    let d = w.rows / dispatch.experts;
    let dtype = gate.dtype();
    let mut a = g.tensor_of(dtype, slots, m);
    g.device().gated(gating, &gate, &up, &mut a);
    let mut y = g.tensor_of(dtype, slots, d);
    g.device().grouped(precision, &a, Groups::Slots(dispatch), &mut [(g.stored(w), &mut y)]);
    let dispatch = dispatch.clone();
    g.record("expert_swiglu_linear", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let mut a = back.like(gate.gradient());
        device.gated(gating, &gate, &up, &mut a);
        back.parameter(w, |dw, start| {
            let gradients = &mut [(&dy, (dw, start))];
            device.grouped_dw(precision, &a, Groups::Slots(&dispatch), &sequences.starts, gradients);
        });
        let mut da = a;
        device.grouped_dx(precision, &dispatch, &[(&dy, &back.unpacked(w))], (&mut da, Start::Zero));
        let (mut dgate, mut dup) = (back.like(gate.gradient()), back.like(up.gradient()));
        device.gated_backward(gating, &da, [&gate, &up], [&mut dgate, &mut dup]);
        back.give(gate.gradient(), dgate);
        back.give(up.gradient(), dup);
    })
}

/// `y[S, N] = x[S, N] + b[e]`.
pub fn expert_bias(g: &mut Graph, x: Var, b: Weight, dispatch: &Arc<Dispatch>) -> Var {
    assert_eq!(x.cols(), b.cols, "expert_bias: x is [{}, {}], b is [{}, {}]", x.rows(), x.cols(), b.rows, b.cols);
    let dx = x.gradient();
    let mut y = x.into_value().into_unshared();
    g.device().add_expert_bias(g.weight(b), dispatch, &mut y);
    let dispatch = dispatch.clone();
    g.record("expert_bias", y, move |back, dy| {
        let device = back.device();
        back.parameter(b, |db, start| device.expert_bias_backward(&dy, &dispatch, (db, start)));
        back.give(dx, dy);
    })
}

//! Products of the routed experts, each over the tokens that go to it (its *slots*, in the tokens' order).
//!
//! `expert_gate_up`: `gate[s] = x[row(s)] · w_gate[e(s)]ᵀ`, `up[s]` likewise. x `[T, D]`, weights `[E·M, D]`, gate and
//! up `[S, M]`. Saved: x. Backward: slot gradients of both (a chain that goes through gate, then up) are added per
//! token in expert order; weight gradients are chains over an expert's tokens.
//!
//! `expert_swiglu_linear`: `y[s] = (silu(gate[s]) ⊙ up[s]) · w[e(s)]ᵀ`. w `[E·D, M]`, y `[S, D]`. Saved: gate and up,
//! see `swiglu_linear`. Source: DeepSeekMoE (Dai et al. 2024), eq. 9; no token is dropped.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::{Dispatch, Groups, Precision, Start};

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
    let up = g.variable(up);
    let (x, dispatch, d_up) = (x.clone(), dispatch.clone(), up.gradient());
    let gate = g.record("expert_gate_up", gate, move |back, d_gate| {
        let (device, sequences) = (back.device(), back.sequences());
        let d_up = back.take(d_up).expect("gate and up are used together");
        let mut d_slots = back.tensor_of(x.dtype(), slots, d);
        for (w, dy, start) in [(weights[0], &d_gate, Start::Zero), (weights[1], &d_up, Start::Continue)] {
            device.grouped_dx(precision, dy, &dispatch, back.weight(w), (&mut d_slots, start));
            back.parameter(w, |dw, start| {
                let groups = Groups::Tokens(&dispatch);
                device.grouped_dw(precision, dy, &x, groups, &sequences.starts, (dw, start));
            });
        }
        back.accumulate(x.gradient(), |dx, start| device.gather_slots(&d_slots, &dispatch, (dx, start)));
    });
    (gate, up)
}

/// `y[S, D] = (silu(gate) ⊙ up)[S, M] · w[e]ᵀ`.
pub fn expert_swiglu_linear(
    g: &mut Graph,
    precision: Precision,
    gate: Var,
    up: Var,
    w: Weight,
    dispatch: &Arc<Dispatch>,
) -> Var {
    let (slots, m) = (gate.rows(), w.cols);
    let d = w.rows / dispatch.experts;
    let dtype = gate.dtype();
    let mut a = g.tensor_of(dtype, slots, m);
    g.device().swiglu(&gate, &up, &mut a);
    let mut y = g.tensor_of(dtype, slots, d);
    g.device().grouped(precision, &a, Groups::Slots(dispatch), &mut [(g.stored(w), &mut y)]);
    let dispatch = dispatch.clone();
    g.record("expert_swiglu_linear", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let mut a = back.like(gate.gradient());
        device.swiglu(&gate, &up, &mut a);
        back.parameter(w, |dw, start| {
            let groups = Groups::Slots(&dispatch);
            device.grouped_dw(precision, &dy, &a, groups, &sequences.starts, (dw, start))
        });
        let mut da = a;
        device.grouped_dx(precision, &dy, &dispatch, back.weight(w), (&mut da, Start::Zero));
        let (mut dgate, mut dup) = (back.like(gate.gradient()), back.like(up.gradient()));
        device.swiglu_backward(&da, &gate, &up, &mut dgate, &mut dup);
        back.give(gate.gradient(), dgate);
        back.give(up.gradient(), dup);
    })
}

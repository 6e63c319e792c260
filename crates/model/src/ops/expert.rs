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
//!
//! Where a rank computes some of the experts for several ranks ([`Slots::of_ranks`]), x is `[S, D]`, weights are those
//! of its E/N experts, and a weight gradient is a chain for each rank, `[E/N, N, …]`.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::{Device, Dispatch, Gating, Groups, Precision, Start};

/// The slots that experts compute.
#[derive(Clone)]
pub struct Slots {
    dispatch: Arc<Dispatch>,
    /// Experts of the layer; the dispatch may be among some of them.
    experts: usize,
    /// Where x has a row a slot: the chains of weight gradients, of which an expert may have several.
    chains: Option<Arc<Dispatch>>,
}

impl From<&Arc<Dispatch>> for Slots {
    fn from(dispatch: &Arc<Dispatch>) -> Self {
        Slots { experts: dispatch.experts, dispatch: dispatch.clone(), chains: None }
    }
}

impl Slots {
    /// Of rows in the order of experts, then ranks: `loads_by_rank[E/N, N]` of each, of a layer with `experts` experts.
    pub fn of_ranks(device: &dyn Device, experts: usize, loads: &[u32], loads_by_rank: &[u32]) -> Self {
        let [dispatch, chains] = [loads, loads_by_rank].map(|loads| Arc::new(device.in_order(loads)));
        Slots { dispatch, experts, chains: Some(chains) }
    }

    /// How x lies.
    fn of_x(&self) -> Groups<'_> {
        if self.chains.is_some() { Groups::Slots(&self.dispatch) } else { Groups::Tokens(&self.dispatch) }
    }

    /// The slots of each weight gradient.
    fn of_gradients(&self) -> &Dispatch {
        self.chains.as_ref().unwrap_or(&self.dispatch)
    }
}

/// Gate and up projections `[S, M]` of the tokens `x[T, D]` by the experts that they go to.
pub fn expert_gate_up(
    g: &mut Graph,
    precision: Precision,
    x: &Var,
    weights: [Weight; 2],
    slots: impl Into<Slots>,
) -> (Var, Var) {
    let slots = slots.into();
    let (count, d, m) = (slots.dispatch.slots(), x.cols(), weights[0].rows / slots.experts);
    let [mut gate, mut up] = [(); 2].map(|()| g.tensor_of(x.dtype(), count, m));
    let mut both = [(g.stored(weights[0]), &mut gate), (g.stored(weights[1]), &mut up)];
    g.device().grouped(precision, x, slots.of_x(), &mut both);
    let x = x.clone();
    let [gate, up] = g.record_all("expert_gate_up", [gate, up], move |back, dys| {
        let (device, sequences, dispatch) = (back.device(), back.sequences(), &slots.dispatch);
        let dys = dys.map(|dy| dy.expect("gate and up are used together"));
        let mut d_slots = back.tensor_of(x.dtype(), count, d);
        let terms =
            [(&dys[0], back.context.params.stored(weights[0])), (&dys[1], back.context.params.stored(weights[1]))];
        device.grouped_dx(precision, dispatch, &terms, (&mut d_slots, Start::Zero));
        back.parameters(&weights, |dws| {
            let mut gradients: Vec<_> = dys.iter().zip(dws).collect();
            let groups = match &slots.chains {
                Some(chains) => Groups::Slots(chains),
                None => Groups::Tokens(dispatch),
            };
            device.grouped_dw(precision, &x, groups, &sequences.starts, &mut gradients);
        });
        match slots.chains {
            Some(_) => back.give(x.gradient(), d_slots),
            None => {
                back.accumulate(x.gradient(), |dx, start| device.gather_slots(&d_slots, dispatch, (dx, start)));
            }
        }
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
    slots: impl Into<Slots>,
) -> Var {
    let slots = slots.into();
    let (count, m) = (gate.rows(), w.cols);
    let d = w.rows / slots.experts;
    let dtype = gate.dtype();
    let mut a = g.tensor_of(dtype, count, m);
    g.device().gated(gating, &gate, &up, &mut a);
    let mut y = g.tensor_of(dtype, count, d);
    g.device().grouped(precision, &a, Groups::Slots(&slots.dispatch), &mut [(g.stored(w), &mut y)]);
    g.record("expert_swiglu_linear", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let mut a = back.like(gate.gradient());
        device.gated(gating, &gate, &up, &mut a);
        back.parameter(w, |dw, start| {
            let gradients = &mut [(&dy, (dw, start))];
            device.grouped_dw(precision, &a, Groups::Slots(slots.of_gradients()), &sequences.starts, gradients);
        });
        let mut da = a;
        device.grouped_dx(precision, &slots.dispatch, &[(&dy, back.context.params.stored(w))], (&mut da, Start::Zero));
        let (mut dgate, mut dup) = (back.like(gate.gradient()), back.like(up.gradient()));
        device.gated_backward(gating, &da, [&gate, &up], [&mut dgate, &mut dup]);
        back.give(gate.gradient(), dgate);
        back.give(up.gradient(), dup);
    })
}

/// `y[S, D]`: the experts' gate, up and down at once, where the pass is not recorded and the device has that; with the
/// bits of the two operations above.
pub fn expert_feed_forward(
    g: &mut Graph,
    gating: Gating,
    x: &Var,
    weights: [Weight; 3],
    dispatch: &Dispatch,
) -> Option<Var> {
    if g.recording().is_some() {
        return None;
    }
    let mut y = g.tensor_of(x.dtype(), dispatch.slots(), x.cols());
    let done = g.device().feed_forward(x, dispatch, gating, weights.map(|w| g.stored(w)), &mut y);
    done.then(|| g.variable(y))
}

/// `y[S, N] = x[S, N] + b[e]`.
pub fn expert_bias(g: &mut Graph, x: Var, b: Weight, slots: impl Into<Slots>) -> Var {
    assert_eq!(x.cols(), b.cols, "expert_bias: x is [{}, {}], b is [{}, {}]", x.rows(), x.cols(), b.rows, b.cols);
    let slots = slots.into();
    let dx = x.gradient();
    let mut y = x.into_value().into_unshared();
    g.device().add_expert_bias(g.weight(b), &slots.dispatch, &mut y);
    g.record("expert_bias", y, move |back, dy| {
        let device = back.device();
        back.parameter(b, |db, start| device.expert_bias_backward(&dy, slots.of_gradients(), (db, start)));
        back.give(dx, dy);
    })
}

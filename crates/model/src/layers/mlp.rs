//! SwiGLU: `y = w_down · (silu(w_gate · x) ⊙ (w_up · x))`, or with another gate. Source: Shazeer 2020, eq. 6.

use crate::ops::{linears, swiglu_linear};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::Gating;

pub(crate) struct Mlp {
    gate: Weight,
    up: Weight,
    down: Weight,
    gating: Gating,
}

impl Mlp {
    pub fn new(wiring: &mut Wiring, name: &str, gating: Gating) -> Self {
        let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}_proj.weight"));
        Mlp { gate: weight("gate"), up: weight("up"), down: weight("down"), gating }
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, x: &Var) -> Var {
        let precision = g.precision();
        let [gate, up] = linears(g, precision, x, [self.gate, self.up]);
        swiglu_linear(g, precision, self.gating, gate, up, self.down)
    }
}

//! SwiGLU: `y = w_down · (silu(w_gate · x) ⊙ (w_up · x))`. Source: Shazeer 2020, eq. 6.

use crate::ops::{linears, swiglu_linear};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};

pub(crate) struct Mlp {
    gate: Weight,
    up: Weight,
    down: Weight,
}

impl Mlp {
    pub fn new(wiring: &mut Wiring, name: &str) -> Self {
        let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}_proj.weight"));
        Mlp { gate: weight("gate"), up: weight("up"), down: weight("down") }
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, x: &Var) -> Var {
        let precision = g.precision();
        let [gate, up] = linears(g, precision, x, [self.gate, self.up]);
        swiglu_linear(g, precision, gate, up, self.down)
    }
}

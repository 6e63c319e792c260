//! Linear map with a bias: `y = x · wᵀ + b`, of rows that need not be those of the batch.
//!
//! x `[R, K]`, w `[N, K]`, b `[N]`, y `[R, N]`. Saved: x.
//! Backward: `dx = dy · w`, a chain over N; `dw = dyᵀ · x` and `db`, chains over the rows.

use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::Ids;

/// A linear map's weight and bias.
#[derive(Clone, Copy, Debug)]
pub struct Map {
    /// `[N, K]`.
    pub w: Weight,
    /// `[1, N]`.
    pub b: Option<Weight>,
}

impl Map {
    /// The parameters `NAME.weight` and `NAME.bias`.
    pub(crate) fn named(wiring: &mut Wiring, name: &str) -> Map {
        Map { w: wiring.weight(&format!("{name}.weight")), b: wiring.optional(&format!("{name}.bias")) }
    }
}

/// `y[R, N]` of `x[R, K]`, of which sequence i has the rows `starts[i]..starts[i + 1]`.
///
/// # Panics
/// If x is not as wide as w.
pub fn dense(g: &mut Graph, x: &Var, map: Map, starts: &Ids) -> Var {
    let (Map { w, b }, precision) = (map, g.precision());
    assert_eq!(x.cols(), w.cols, "dense: x is [{}, {}], w is [{}, {}]", x.rows(), x.cols(), w.rows, w.cols);
    let mut y = g.tensor_of(g.activations(), x.rows(), w.rows);
    g.device().linear(precision, x, &mut [(g.stored(w), &mut y)]);
    if let Some(b) = b {
        g.device().add_bias(g.weight(b), &mut y);
    }
    let (x, starts) = (x.clone(), starts.clone());
    g.record("dense", y, move |back, dy| {
        let device = back.device();
        let weight = back.context.params.stored(w);
        back.accumulate(x.gradient(), |dx, start| device.linear_dx(precision, &[(&dy, weight)], (dx, start)));
        back.parameter(w, |dw, start| device.linear_dw(precision, &x, &starts, &mut [(&dy, (dw, start))]));
        if let Some(b) = b {
            back.parameter(b, |db, start| device.bias_backward(&dy, &starts, db, start));
        }
    })
}

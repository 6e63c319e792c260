//! Linear map: `y = x · wᵀ`.
//!
//! x `[T, K]`, w `[N, K]` as Hugging Face stores it, y `[T, N]`. Saved: x.
//! Backward: `dx = dy · w`, a chain over N; `dw = dyᵀ · x`, a chain over the tokens.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::Precision;

/// `y[T, N] = x[T, K] · w[N, K]ᵀ`.
///
/// # Panics
/// If x is not as wide as w.
pub fn linear(g: &mut Graph, precision: Precision, x: &Var, w: Weight) -> Var {
    let [y] = linears(g, precision, x, [w]);
    y
}

/// [`linear`] with each of some matrices.
pub fn linears<const N: usize>(g: &mut Graph, precision: Precision, x: &Var, weights: [Weight; N]) -> [Var; N] {
    let activations = g.device().activations(precision);
    let mut ys = weights.map(|Weight { rows, cols, .. }| {
        assert_eq!(x.cols(), cols, "linear: x is [{}, {}], w is [{rows}, {cols}]", x.rows(), x.cols());
        g.tensor_of(activations, x.rows(), rows)
    });
    let mut results = ys.iter_mut();
    let mut all = weights.map(|w| (g.stored(w), results.next().expect("one a weight")));
    g.device().linear(precision, x, &mut all);
    let mut weights = weights.into_iter();
    ys.map(|y| {
        let w = weights.next().expect("one a result");
        let x = x.clone();
        g.record("linear", y, move |back, dy| {
            let (device, weight, sequences) = (back.device(), back.weight(w), back.sequences());
            back.accumulate(x.gradient(), |dx, start| device.linear_dx(precision, &dy, weight, (dx, start)));
            back.parameter(w, |dw, start| device.linear_dw(precision, &dy, &x, &sequences.starts, (dw, start)));
        })
    })
}

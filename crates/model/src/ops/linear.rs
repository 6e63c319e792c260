//! Linear map: `y = x · wᵀ`, with what adapters add to it (`low_rank`).
//!
//! x `[T, K]`, w `[N, K]` as Hugging Face stores it, y `[T, N]`. Saved: x.
//! Backward: `dx = dy · w`, a chain over N; `dw = dyᵀ · x`, a chain over the tokens.

use super::low_rank::low_ranks;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Precision, Tensor};

/// `y[T, N] = x[T, K] · w[N, K]ᵀ`.
///
/// # Panics
/// If x is not as wide as w.
pub fn linear(g: &mut Graph, precision: Precision, x: &Var, w: Weight) -> Var {
    let [y] = linears(g, precision, x, [w]);
    y
}

/// [`linear`] with each of some matrices. dx is one chain over the N of the last, then of the one before it.
pub fn linears<const N: usize>(g: &mut Graph, precision: Precision, x: &Var, weights: [Weight; N]) -> [Var; N] {
    let activations = g.device().activations(precision);
    let mut ys = weights.map(|Weight { rows, cols, .. }| {
        assert_eq!(x.cols(), cols, "linear: x is [{}, {}], w is [{rows}, {cols}]", x.rows(), x.cols());
        g.tensor_of(activations, x.rows(), rows)
    });
    let mut results = ys.iter_mut();
    let mut all = weights.map(|w| (g.stored(w), results.next().expect("one a weight")));
    g.device().linear(precision, x, &mut all);
    let kept = x.clone();
    let ys = g.record_all("linear", ys, move |back, dys| {
        let x = kept;
        let (device, sequences) = (back.device(), back.sequences());
        let (weights, dys): (Vec<Weight>, Vec<Tensor>) =
            weights.into_iter().zip(dys).filter_map(|(w, dy)| Some((w, dy?))).unzip();
        let terms: Vec<_> = dys.iter().zip(weights.iter().map(|w| back.context.params.stored(*w))).rev().collect();
        back.accumulate(x.gradient(), |dx, start| device.linear_dx(precision, &terms, (dx, start)));
        back.parameters(&weights, |dws| {
            let mut gradients: Vec<_> = dys.iter().zip(dws).collect();
            device.linear_dw(precision, &x, &sequences.starts, &mut gradients);
        });
    });
    low_ranks(g, precision, x, ys, weights)
}

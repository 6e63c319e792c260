//! Linear map: `y = x · wᵀ`.
//!
//! x `[T, K]`, w `[N, K]` as Hugging Face stores it, y `[T, N]`. Saved: x.
//! Backward: `dx = dy · w`, a chain over N; `dw = dyᵀ · x`, a chain over the tokens.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_kernels::gemm::{self, Precision};

/// `y[T, N] = x[T, K] · w[N, K]ᵀ`.
///
/// # Panics
/// If x is not as wide as w.
pub fn linear(g: &mut Graph, precision: Precision, x: &Var, w: Weight) -> Var {
    let (n, k) = (w.rows, w.cols);
    assert_eq!(x.cols(), k, "linear: x is [{}, {}], w is [{n}, {k}]", x.rows(), x.cols());
    let mut y = g.tensor(x.rows(), n);
    gemm::linear(precision, x, g.weight(w), &mut y, k, n);
    let x = x.clone();
    g.record("linear", y, move |back, dy| {
        let weight = back.weight(w);
        back.accumulate(x.gradient(), |dx, start| gemm::linear_dx(precision, &dy, weight, dx, k, n, start));
        back.parameter(w, |dw, start| gemm::linear_dw(precision, &dy, &x, dw, k, n, start));
    })
}

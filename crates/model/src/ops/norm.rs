//! RMSNorm: `y = w ⊙ x / √(mean(x²) + ε)`.
//!
//! x, y `[T, D]`, w `[D]`. Saved: x and `1/√(mean(x²) + ε)`, one number a token.
//! Backward: see `wels_kernels::norm`; dw is a chain over the tokens. Source: Zhang and Sennrich 2019, eq. 4.

use crate::params::Weight;
use crate::tape::{Graph, Var};

/// `y[T, D] = rms_norm(x[T, D]) ⊙ w[D]`.
pub fn rms_norm(g: &mut Graph, x: &Var, w: Weight, eps: f32) -> Var {
    let d = w.cols;
    assert_eq!(x.cols(), d, "rms_norm: x is [{}, {}], w is [{d}]", x.rows(), x.cols());
    let mut y = g.tensor_of(x.dtype(), x.rows(), d);
    let mut rstd = g.tensor(x.rows(), 1);
    g.device().rms_norm(x, g.weight(w), eps, &mut y, &mut rstd);
    let x = x.clone();
    g.record("rms_norm", y, move |back, dy| {
        let (device, weight, sequences) = (back.device(), back.weight(w), back.sequences());
        let (mut dx, dx_start) = back.begin(x.gradient());
        back.parameter(w, |dw, dw_start| {
            device.rms_norm_backward(&dy, &x, weight, &rstd, &sequences.starts, (&mut dx, dx_start), (dw, dw_start));
        });
        back.put(x.gradient(), dx);
    })
}

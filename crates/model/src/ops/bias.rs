//! Bias of a linear map: `y = x + b`, in place.
//!
//! x, y `[T, N]`, b `[N]`. Saved: nothing. Backward: `dx = dy`; `db` is a chain of additions over the tokens.

use crate::params::Weight;
use crate::tape::{Graph, Var};

/// `y[T, N] = x[T, N] + b[N]`.
pub fn bias(g: &mut Graph, x: Var, b: Weight) -> Var {
    assert_eq!(x.cols(), b.cols, "bias: x is [{}, {}], b is [{}]", x.rows(), x.cols(), b.cols);
    let dx = x.gradient();
    let mut y = x.into_value().into_unshared();
    g.device().add_bias(g.weight(b), &mut y);
    g.record("bias", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        back.parameter(b, |db, start| device.bias_backward(&dy, &sequences.starts, db, start));
        back.give(dx, dy);
    })
}

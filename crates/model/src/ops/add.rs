//! Residual connection: `y = x + f`, in the buffer of f.
//!
//! x, f, y `[T, D]`. Saved: nothing. Backward: `dx = df = dy`, one tensor for both: by the time that something is added
//! to dx, the operation that made f has used df and let go of it.

use crate::tape::{Graph, Var};

/// `y[T, D] = x[T, D] + f[T, D]`.
pub fn add(g: &mut Graph, x: &Var, f: Var) -> Var {
    let (dx, df) = (x.gradient(), f.gradient());
    let mut y = f.into_value().into_unshared();
    g.device().add(x, &mut y);
    g.record("add", y, move |back, dy| {
        back.give(dx, dy.clone());
        back.give(df, dy);
    })
}

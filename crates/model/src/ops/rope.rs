//! Rotary position embedding of some columns, in place: each pair of elements is turned by `position · frequency`.
//!
//! x, y `[T, N]`; head h of the rotary part is the columns `offset + h·head_stride ..+ table's width`. Saved: nothing.
//! Backward: the same turn the other way. Source: Su et al. 2021, eq. 34; the layouts are those of
//! `wels_kernels::rope`.

use crate::tape::{Graph, Var};
use wels_device::{Direction, Rotary, RotaryColumns};

/// `y[T, N] = x[T, N]` with the columns `at` turned by each token's position.
pub fn rope(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns) -> Var {
    let dx = x.gradient();
    let mut y = x.into_value().into_unshared();
    g.device().rope(&mut y, &g.context.sequences.positions, rotary, at, Direction::Forward);
    let rotary = rotary.clone();
    g.record("rope", y, move |back, dy| {
        let mut dy = dy.into_unshared();
        back.device().rope(&mut dy, &back.context.sequences.positions, &rotary, at, Direction::Backward);
        back.give(dx, dy);
    })
}

//! Rotary position embedding of some columns, in place: each pair of elements is turned by `position · frequency`.
//!
//! x, y `[T, N]`; head h of the rotary part is the columns `offset + h·head_stride ..+ table's width`. Saved: nothing.
//! Backward: the same turn the other way. Source: Su et al. 2021, eq. 34; the layouts are those of
//! `wels_kernels::rope`.

use crate::tape::{Graph, Var};
use wels_device::{Direction, Ids, Rotary, RotaryColumns};

/// `y[T, N] = x[T, N]` with the columns `at` turned by each token's position.
pub fn rope(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns) -> Var {
    let positions = g.context.sequences.positions.clone();
    turn(g, x, rotary, at, positions, Direction::Forward)
}

/// [`rope`] of rows at other positions than the tokens'.
pub fn rope_at(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns, positions: Ids) -> Var {
    turn(g, x, rotary, at, positions, Direction::Forward)
}

/// [`rope`] the other way.
pub fn rope_back(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns) -> Var {
    let positions = g.context.sequences.positions.clone();
    turn(g, x, rotary, at, positions, Direction::Backward)
}

fn turn(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns, positions: Ids, direction: Direction) -> Var {
    let dx = x.gradient();
    let mut y = x.into_value().into_unshared();
    g.device().rope(&mut y, &positions, rotary, at, direction);
    let rotary = rotary.clone();
    g.record("rope", y, move |back, dy| {
        let mut dy = dy.into_unshared();
        let other = match direction {
            Direction::Forward => Direction::Backward,
            Direction::Backward => Direction::Forward,
        };
        back.device().rope(&mut dy, &positions, &rotary, at, other);
        back.give(dx, dy);
    })
}

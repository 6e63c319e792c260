//! Rotary position embedding of some columns, in place: each pair of elements is turned by `position · frequency`.
//!
//! x, y `[T, N]`; head h of the rotary part is the columns `offset + h·head_stride ..+ table's width`. Saved: nothing.
//! Backward: the same turn the other way. Source: Su et al. 2021, eq. 34; the layouts are those of
//! `wels_kernels::rope`.

use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_kernels::rope::{self, Direction, Layout, Table};

/// Angles and layout of a model's rotary embedding.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// Sines and cosines.
    pub table: Arc<Table>,
    /// Which elements are a pair.
    pub layout: Layout,
}

/// Where the rotary parts of the heads lie in a row.
#[derive(Clone, Copy, Debug)]
pub struct RotaryColumns {
    /// First column of the first head's rotary part.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// How many heads.
    pub heads: usize,
}

/// `y[T, N] = x[T, N]` with the columns `at` turned by each token's position.
pub fn rope(g: &mut Graph, x: Var, rotary: &Rotary, at: RotaryColumns) -> Var {
    let RotaryColumns { offset, head_stride, heads } = at;
    let dx = x.gradient();
    let stride = x.cols();
    let mut y = x.into_value().into_unshared();
    let positions = &g.context.sequences.positions;
    rope::apply(
        &mut y,
        positions,
        &rotary.table,
        rotary.layout,
        stride,
        offset,
        head_stride,
        heads,
        Direction::Forward,
    );
    let rotary = rotary.clone();
    g.record("rope", y, move |back, dy| {
        let mut dy = dy.into_unshared();
        let positions = &back.context.sequences.positions;
        rope::apply(
            &mut dy,
            positions,
            &rotary.table,
            rotary.layout,
            stride,
            offset,
            head_stride,
            heads,
            Direction::Backward,
        );
        back.give(dx, dy);
    })
}

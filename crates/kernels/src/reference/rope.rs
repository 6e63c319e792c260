//! Rotary position embedding, as plain loops.

use crate::rope::{Direction, Layout, Table};

/// Reference of [`crate::rope::apply`].
pub fn apply(
    x: &mut [f32],
    positions: &[u32],
    table: &Table,
    layout: Layout,
    row_stride: usize,
    offset: usize,
    head_stride: usize,
    heads: usize,
    direction: Direction,
) {
    for (t, &position) in positions.iter().enumerate() {
        let (cos, sin) = table.at(position);
        for h in 0..heads {
            for k in 0..table.half() {
                let (i, j) = match layout {
                    Layout::Interleaved => (2 * k, 2 * k + 1),
                    Layout::HalfSplit => (k, table.half() + k),
                };
                let head = t * row_stride + offset + h * head_stride;
                let (a, b) = (x[head + i], x[head + j]);
                let s = if direction == Direction::Forward { sin[k] } else { -sin[k] };
                x[head + i] = a.mul_add(cos[k], -(b * s));
                x[head + j] = a.mul_add(s, b * cos[k]);
            }
        }
    }
}

//! Rows of length 1 and differences, as plain loops.

use super::dot;
use crate::gemm::Start;

/// Reference of [`crate::unit::unit_rows`].
pub fn unit_rows(x: &[f32], y: &mut [f32], lengths: &mut [f32], d: usize) {
    for ((x, y), length) in x.chunks(d).zip(y.chunks_mut(d)).zip(lengths) {
        *length = dot(x, x).sqrt().max(1e-12);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x / *length);
    }
}

/// Reference of [`crate::unit::unit_rows_backward`].
pub fn unit_rows_backward(dy: &[f32], y: &[f32], lengths: &[f32], dx: &mut [f32], start: Start, d: usize) {
    for (t, length) in lengths.iter().enumerate() {
        let row = t * d..(t + 1) * d;
        let along = dot(&y[row.clone()], &dy[row.clone()]);
        for i in row {
            let out = y[i].mul_add(-along, dy[i]) / length;
            dx[i] = if start == Start::Continue { dx[i] + out } else { out };
        }
    }
}

/// Reference of [`crate::unit::differences`].
pub fn differences(a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
    (0..y.len()).for_each(|i| y[i] = factor * (a[i] - b[i]));
}

//! Additions and copies, as plain loops.

use crate::elementwise::Columns;
use crate::gemm::Start;

/// Reference of [`crate::elementwise::add`].
pub fn add(x: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] += x[i];
    }
}

/// Reference of [`crate::elementwise::sum`].
pub fn sum(a: &[f32], b: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] = a[i] + b[i];
    }
}

/// Reference of [`crate::elementwise::scale`].
pub fn scale(y: &mut [f32], factor: f32) {
    for y in y {
        *y *= factor;
    }
}

/// Reference of [`crate::elementwise::add_bias`].
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] += bias[i % bias.len()];
    }
}

/// Reference of [`crate::elementwise::bias_grad`].
pub fn bias_grad(dy: &[f32], dbias: &mut [f32], start: Start) {
    let n = dbias.len();
    if start == Start::Zero {
        dbias.fill(0.0);
    }
    for i in 0..dy.len() {
        dbias[i % n] += dy[i];
    }
}

/// Reference of [`crate::elementwise::copy_columns`].
pub fn copy_columns(src: &[f32], from: Columns, dst: &mut [f32], to: Columns, width: usize, rows: usize) {
    for t in 0..rows {
        for i in 0..width {
            dst[t * to.stride + to.offset + i] = src[t * from.stride + from.offset + i];
        }
    }
}

/// Reference of [`crate::elementwise::add_columns`].
pub fn add_columns(src: &[f32], from: Columns, dst: &mut [f32], to: Columns, width: usize, rows: usize) {
    for t in 0..rows {
        for i in 0..width {
            dst[t * to.stride + to.offset + i] += src[t * from.stride + from.offset + i];
        }
    }
}

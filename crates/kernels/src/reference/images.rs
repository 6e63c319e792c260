//! What models of images compute besides products, as plain loops.

use super::{dot, math};
use crate::lanes::{LANES, sum_tree};

/// Σ x: lane i of 16 partial sums takes elements i, i+16, …, then the fixed tree.
pub(super) fn sum(x: &[f32]) -> f32 {
    let mut partial = [0.0f32; LANES];
    x.iter().enumerate().for_each(|(i, x)| partial[i % LANES] += x);
    sum_tree(partial)
}

/// Reference of [`crate::images::layer_norm`].
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    let d = w.len();
    for (x, y) in x.chunks(d).zip(y.chunks_mut(d)) {
        let mean = sum(x) / d as f32;
        let centred: Vec<f32> = x.iter().map(|x| x - mean).collect();
        let rstd = 1.0 / (dot(&centred, &centred) / d as f32 + eps).sqrt();
        for i in 0..d {
            y[i] = (centred[i] * rstd).mul_add(w[i], b[i]);
        }
    }
}

/// Reference of [`crate::images::gelu`].
pub fn gelu(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = math::gelu(*x));
}

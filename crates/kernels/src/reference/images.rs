//! What models of images compute besides products, as plain loops.

use super::{dot, math};
use crate::images::{Activation, BLOCK};
use crate::lanes::{LANES, sum_tree};

/// Σ x: lane i of 16 partial sums takes elements i, i+16, …, then the fixed tree.
fn sum(x: &[f32]) -> f32 {
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

/// Reference of [`crate::images::group_norm`].
pub fn group_norm(x: &[f32], groups: usize, w: &[f32], b: &[f32], eps: f32, activation: Activation, y: &mut [f32]) {
    let (c, rows) = (w.len(), x.len() / w.len());
    let (width, elements) = (c / groups, (x.len() / groups) as f32);
    let group_sum = |group: usize, add: &dyn Fn(f32, f32) -> f32| {
        let column_sum = |column: usize| {
            let block =
                |first: usize| (first..rows.min(first + BLOCK)).fold(0.0f32, |sum, row| add(sum, x[row * c + column]));
            (0..rows).step_by(BLOCK).fold(0.0f32, |sum, first| sum + block(first))
        };
        (group * width..(group + 1) * width).fold(0.0f32, |sum, column| sum + column_sum(column))
    };
    for group in 0..groups {
        let mean = group_sum(group, &|sum, x| sum + x) / elements;
        let variance = group_sum(group, &|sum, x| (x - mean).mul_add(x - mean, sum)) / elements;
        let rstd = 1.0 / (variance + eps).sqrt();
        for row in 0..rows {
            for column in group * width..(group + 1) * width {
                let scaled = ((x[row * c + column] - mean) * rstd).mul_add(w[column], b[column]);
                y[row * c + column] = if activation == Activation::Silu { math::silu(scaled) } else { scaled };
            }
        }
    }
}

/// Reference of [`crate::images::gelu`].
pub fn gelu(x: &[f32], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = math::gelu(*x));
}

/// Reference of [`crate::images::softmax`].
pub fn softmax(y: &mut [f32], scale: f32, n: usize) {
    for row in y.chunks_mut(n) {
        let max = row.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
        row.iter_mut().for_each(|x| *x = math::exp((*x - max) * scale));
        let inverse = 1.0 / sum(row);
        row.iter_mut().for_each(|x| *x *= inverse);
    }
}

//! Softmax over whole rows and its backward part, as plain loops.

use super::images::sum;
use super::{dot, math};

/// Reference of [`crate::softmax::softmax`].
pub fn softmax(y: &mut [f32], scale: f32, n: usize) {
    for row in y.chunks_mut(n) {
        let max = row.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
        row.iter_mut().for_each(|x| *x = math::exp((*x - max) * scale));
        let inverse = 1.0 / sum(row);
        row.iter_mut().for_each(|x| *x *= inverse);
    }
}

/// Reference of [`crate::softmax::softmax_backward`].
pub fn softmax_backward(p: &[f32], scale: f32, dy: &mut [f32], n: usize) {
    for (p, dy) in p.chunks(n).zip(dy.chunks_mut(n)) {
        let sum = dot(p, dy);
        dy.iter_mut().zip(p).for_each(|(dy, p)| *dy = (*dy - sum) * (p * scale));
    }
}

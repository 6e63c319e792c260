//! Softmax over whole rows, for attention of every row to every row.
//!
//! Forward: p = exp(s·(x − max)) / Σ. Saved for backward: p. Backward: dx = s·p·(dp − Σ p·dp).
//! Both sums are 16 partial sums (the second by fused multiply-adds) and the fixed tree.

use crate::lanes::{LANES, Lanes, dispatch};
use crate::math;
use crate::par;
use crate::span::spans;

/// Replaces each row of y `[T, n]` by the softmax of `scale` > 0 times it.
pub fn softmax(y: &mut [f32], scale: f32, n: usize) {
    assert_eq!(y.len() % n.max(1), 0, "y is [T, n] with n = {n}");
    let rows = par::rows_per_task(y.len() / n.max(1), n);
    par::chunks_mut(y, rows * n, |_, y| {
        for y in y.chunks_exact_mut(n) {
            // SAFETY: one slice.
            unsafe { dispatch!(softmax_row(y: &mut [f32], scale: f32)) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn softmax_row<L: Lanes>(y: &mut [f32], scale: f32) {
    // SAFETY: loads of sixteen from chunks of sixteen, and spans of y in y; instructions by this function's contract.
    unsafe {
        let (chunks, rest) = y.as_chunks::<LANES>();
        let mut greatest = L::splat(f32::NEG_INFINITY);
        for chunk in chunks {
            greatest = L::load(chunk.as_ptr()).max(greatest);
        }
        let max = rest.iter().fold(greatest.max_lane(), |max, x| if *x > max { *x } else { max });
        let mut sum = L::splat(0.0);
        spans!(y.len(), |s| {
            s.store(math::exp(s.load::<L>(y).sub(L::splat(max)).mul(L::splat(scale))), y);
            sum = sum.add(s.load(y));
        });
        let inverse = L::splat(1.0 / sum.sum());
        spans!(y.len(), |s| {
            s.store(s.load::<L>(y).mul(inverse), y);
        });
    }
}

/// Replaces each row of dy `[T, n]`, the gradient of a softmax's result, by that of what it was made of; `p` `[T, n]`
/// is the result, `scale` the factor.
pub fn softmax_backward(p: &[f32], scale: f32, dy: &mut [f32], n: usize) {
    assert_eq!((p.len(), dy.len() % n.max(1)), (dy.len(), 0), "p and dy are [T, n] with n = {n}");
    let rows = par::rows_per_task(dy.len() / n.max(1), n);
    par::chunks_mut(dy, rows * n, |task, dy| {
        for (i, dy) in dy.chunks_exact_mut(n).enumerate() {
            let p = &p[(task * rows + i) * n..][..n];
            // SAFETY: both rows have n elements.
            unsafe { dispatch!(backward_row(p: &[f32], scale: f32, dy: &mut [f32])) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn backward_row<L: Lanes>(p: &[f32], scale: f32, dy: &mut [f32]) {
    // SAFETY: spans of one length lie in both slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(p.len(), |s| {
            sum = s.load::<L>(p).fma(s.load(dy), sum);
        });
        let sum = L::splat(sum.sum());
        spans!(p.len(), |s| {
            let scaled = s.load::<L>(p).mul(L::splat(scale));
            s.store(s.load::<L>(dy).sub(sum).mul(scaled), dy);
        });
    }
}

//! What transformers of images compute besides products: LayerNorm and GELU. Forward.
//!
//! | kernel | formula | order of its sums |
//! |---|---|---|
//! | [`layer_norm`] | y = (x − mean)·rstd·w + b over a row (Ba, Kiros and Hinton 2016) | 16 partial sums, the fixed tree |
//! | [`gelu`] | x·Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016) | none |
//! //!
//! rstd = 1/√(variance + eps), the variance being the mean of the squares of x − mean.

use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par;
use crate::span::spans;

/// y `[T, d]` of x `[T, d]`, w `[d]` and b `[d]`.
pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    let d = w.len();
    assert_eq!((x.len(), b.len(), y.len() % d.max(1)), (y.len(), d, 0), "x and y are [T, d], w and b [d], d = {d}");
    let rows = par::rows_per_task(y.len() / d.max(1), d);
    par::chunks_mut(y, rows * d, |task, y| {
        for (i, y) in y.chunks_exact_mut(d).enumerate() {
            let at = (task * rows + i) * d;
            let x = &x[at..at + d];
            // SAFETY: all four have d elements.
            unsafe { dispatch!(layer_norm_row(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32])) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn layer_norm_row<L: Lanes>(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            sum = sum.add(s.load(x));
        });
        let mean = L::splat(sum.sum() / x.len() as f32);
        let mut squares = L::splat(0.0);
        spans!(x.len(), |s| {
            s.store(s.load::<L>(x).sub(mean), y);
            let centred = s.load::<L>(y);
            squares = centred.fma(centred, squares);
        });
        let rstd = L::splat(1.0 / (squares.sum() / x.len() as f32 + eps).sqrt());
        spans!(x.len(), |s| {
            s.store(s.load::<L>(y).mul(rstd).fma(s.load(w), s.load(b)), y);
        });
    }
}

/// y of x, element by element.
pub fn gelu(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y");
    let len = par::task_len(y.len());
    par::chunks_mut(y, len, |task, y| {
        let x = &x[task * len..task * len + y.len()];
        // SAFETY: the piece of x was cut to the length of y.
        unsafe { dispatch!(gelu_piece(x: &[f32], y: &mut [f32])) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn gelu_piece<L: Lanes>(x: &[f32], y: &mut [f32]) {
    // SAFETY: spans of one length lie in both slices; instructions by this function's contract.
    unsafe {
        spans!(y.len(), |s| {
            s.store(math::gelu(s.load::<L>(x)), y);
        });
    }
}

//! Rows of length 1, for codes that are compared by direction (ViT-VQGAN, arXiv 2110.04627, §3.2), and differences.
//!
//! Forward: y = x/max(|x|, 1e-12) as `torch.nn.functional.normalize`. Saved for backward: y and the lengths.
//! Backward: dx = (dy − y·(y·dy))/|x|. Both sums are of fused multiply-adds, 16 partial sums and the fixed tree.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::par::{self, SharedMut};
use crate::span::spans;

/// The least length that is divided by.
const LEAST: f32 = 1e-12;

/// y `[T, d]` and lengths `[T]` of x `[T, d]`.
pub fn unit_rows(x: &[f32], y: &mut [f32], lengths: &mut [f32], d: usize) {
    assert_eq!((x.len(), y.len()), (lengths.len() * d, lengths.len() * d), "x and y are [T, {d}]");
    let rows = par::rows_per_task(lengths.len(), d);
    let y = SharedMut::new(y);
    par::chunks_mut(lengths, rows, |task, lengths| {
        for (i, length) in lengths.iter_mut().enumerate() {
            let at = (task * rows + i) * d;
            let x = &x[at..at + d];
            // SAFETY: each row is written by one task.
            let y = unsafe { y.slice(at, d) };
            // SAFETY: both rows have d elements.
            *length = unsafe { dispatch!(forward_row(x: &[f32], y: &mut [f32]) -> f32) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn forward_row<L: Lanes>(x: &[f32], y: &mut [f32]) -> f32 {
    // SAFETY: spans of one length lie in both slices; instructions by this function's contract.
    unsafe {
        let mut squares = L::splat(0.0);
        spans!(x.len(), |s| {
            let x = s.load::<L>(x);
            squares = x.fma(x, squares);
        });
        let length = squares.sum().sqrt();
        let length = if length > LEAST { length } else { LEAST };
        spans!(x.len(), |s| {
            s.store(s.load::<L>(x).div(L::splat(length)), y);
        });
        length
    }
}

/// dx `[T, d]` of dy `[T, d]`, with forward's y and lengths; dx is written or added to.
pub fn unit_rows_backward(dy: &[f32], y: &[f32], lengths: &[f32], dx: &mut [f32], start: Start, d: usize) {
    let len = lengths.len() * d;
    assert_eq!((dy.len(), y.len(), dx.len()), (len, len, len), "dy, y and dx are [T, {d}]");
    let rows = par::rows_per_task(lengths.len(), d);
    par::chunks_mut(dx, rows * d, |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
            let t = task * rows + i;
            let (dy, y, length) = (&dy[t * d..][..d], &y[t * d..][..d], lengths[t]);
            // SAFETY: all three rows have d elements.
            unsafe { dispatch!(backward_row(dy: &[f32], y: &[f32], length: f32, dx: &mut [f32], start: Start)) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn backward_row<L: Lanes>(dy: &[f32], y: &[f32], length: f32, dx: &mut [f32], start: Start) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut along = L::splat(0.0);
        spans!(y.len(), |s| {
            along = s.load::<L>(y).fma(s.load(dy), along);
        });
        let minus_along = L::splat(-along.sum());
        spans!(y.len(), |s| {
            let mut out = s.load::<L>(y).fma(minus_along, s.load(dy)).div(L::splat(length));
            if start == Start::Continue {
                out = s.load::<L>(dx).add(out);
            }
            s.store(out, dx);
        });
    }
}

/// y = factor·(a − b), number by number.
pub fn differences(a: &[f32], b: &[f32], factor: f32, y: &mut [f32]) {
    assert_eq!((a.len(), b.len()), (y.len(), y.len()), "a, b and y");
    let len = par::task_len(y.len());
    par::chunks_mut(y, len, |task, y| {
        let pairs = a[task * len..].iter().zip(&b[task * len..]);
        y.iter_mut().zip(pairs).for_each(|(y, (a, b))| *y = factor * (a - b));
    });
}

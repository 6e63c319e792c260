//! RMSNorm (B. Zhang and R. Sennrich, 2019, eq. 4), over rows of `d` elements.
//!
//! Forward: rstd = 1/√(mean(x²) + eps), y = (x·rstd)·w. Saved for backward: x and rstd.
//! Backward, with x̂ = x·rstd and g = dy·w: dx = rstd·(g − x̂·mean(g·x̂)), dw = Σ over tokens of dy·x̂.
//!
//! The means are sums of fused multiply-adds in 16 partial sums and the fixed tree, divided by d. dw is for each column
//! one chain of fused multiply-adds over the tokens in order.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::par::{self, SharedMut};
use crate::span::spans;

/// Columns of dw in a task.
const COLUMNS: usize = 128;

/// y `[T, d]` and rstd `[T]` of x `[T, d]` and w `[d]`.
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32], d: usize) {
    let tokens = rstd.len();
    assert_eq!(x.len(), tokens * d, "x is [T, d] with T = {tokens}, d = {d}");
    assert_eq!(y.len(), tokens * d, "y is [T, d] with T = {tokens}, d = {d}");
    assert_eq!(w.len(), d, "w is [d]");
    let rows = par::rows_per_task(tokens, d);
    let y = SharedMut::new(y);
    par::chunks_mut(rstd, rows, |task, rstd| {
        for (i, rstd) in rstd.iter_mut().enumerate() {
            let at = (task * rows + i) * d;
            let x = &x[at..at + d];
            // SAFETY: each row is written by one task.
            let y = unsafe { y.slice(at, d) };
            // SAFETY: x, w and y have d elements: w was checked, the rows were cut so.
            *rstd = unsafe { dispatch!(forward_row(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn forward_row<L: Lanes>(x: &[f32], w: &[f32], eps: f32, y: &mut [f32]) -> f32 {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            let x = s.load::<L>(x);
            sum = x.fma(x, sum);
        });
        let rstd = 1.0 / (sum.sum() / x.len() as f32 + eps).sqrt();
        spans!(x.len(), |s| {
            s.store(s.load::<L>(x).mul(L::splat(rstd)).mul(s.load(w)), y);
        });
        rstd
    }
}

/// dx [T, d] and dw `[d]` of dy [T, d], with forward's x, w and rstd. Each of dx and dw starts from zero or from what
/// it holds; dw's chain goes on, dx gets one addition.
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
    dx_start: Start,
    dw: &mut [f32],
    dw_start: Start,
    d: usize,
) {
    let tokens = rstd.len();
    assert_eq!(dy.len(), tokens * d, "dy is [T, d] with T = {tokens}, d = {d}");
    assert_eq!(x.len(), tokens * d, "x is [T, d] with T = {tokens}, d = {d}");
    assert_eq!(dx.len(), tokens * d, "dx is [T, d] with T = {tokens}, d = {d}");
    assert_eq!((w.len(), dw.len()), (d, d), "w and dw are [d]");
    let rows = par::rows_per_task(tokens, d);
    par::chunks_mut(dx, rows * d, |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
            let t = task * rows + i;
            let (dy, x, rstd) = (&dy[t * d..(t + 1) * d], &x[t * d..(t + 1) * d], rstd[t]);
            // SAFETY: dy, x, w and dx have d elements: w was checked, the rows were cut so.
            unsafe { dispatch!(dx_row(dy: &[f32], x: &[f32], w: &[f32], rstd: f32, dx: &mut [f32], dx_start: Start)) };
        }
    });
    par::chunks_mut(dw, COLUMNS, |task, dw| {
        let first = task * COLUMNS;
        // SAFETY: dy and x were checked to have a row of d for each of rstd, and dw lies within d from `first` on.
        unsafe {
            dispatch!(dw_columns(
                dy: &[f32], x: &[f32], rstd: &[f32], first: usize, d: usize, dw: &mut [f32], dw_start: Start
            ))
        };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn dx_row<L: Lanes>(dy: &[f32], x: &[f32], w: &[f32], rstd: f32, dx: &mut [f32], start: Start) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let r = L::splat(rstd);
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            let g = s.load::<L>(dy).mul(s.load(w));
            sum = g.fma(s.load::<L>(x).mul(r), sum);
        });
        let minus_mean = L::splat(-(sum.sum() / x.len() as f32));
        spans!(x.len(), |s| {
            let g = s.load::<L>(dy).mul(s.load(w));
            let mut out = s.load::<L>(x).mul(r).fma(minus_mean, g).mul(r);
            if start == Start::Continue {
                out = s.load::<L>(dx).add(out);
            }
            s.store(out, dx);
        });
    }
}

/// Columns `first..first + dw.len()`.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn dw_columns<L: Lanes>(
    dy: &[f32],
    x: &[f32],
    rstd: &[f32],
    first: usize,
    d: usize,
    dw: &mut [f32],
    start: Start,
) {
    if start == Start::Zero {
        dw.fill(0.0);
    }
    for (t, &rstd) in rstd.iter().enumerate() {
        let at = t * d + first;
        let (dy, x) = (&dy[at..at + dw.len()], &x[at..at + dw.len()]);
        // SAFETY: the rows were cut to the length of dw; instructions by this function's contract.
        unsafe {
            spans!(dy.len(), |s| {
                let x = s.load::<L>(x).mul(L::splat(rstd));
                s.store(s.load::<L>(dy).fma(x, s.load(dw)), dw);
            });
        }
    }
}

//! Backward of what models of images compute besides products: LayerNorm and GELU.
//!
//! With x̂ = (x − mean)·rstd and g = dy·w, LayerNorm's
//!
//! dx = rstd·(g − mean(g) − x̂·mean(g·x̂)), dw = Σ over rows of dy·x̂, db = Σ over rows of dy
//!
//! mean and rstd are computed again from x, by the forward's sums. The means over a row are 16 partial sums, of fused
//! multiply-adds where there is a product, and the fixed tree; dw and db are for each column one chain over the rows in
//! order, of fused multiply-adds and of additions. GELU's dx = dy·(Φ(x) + x·φ(x)), φ the normal density.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// Columns of dw and db in a task.
const COLUMNS: usize = 128;

/// Operands of [`layer_norm_backward`].
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    /// `[T, d]`.
    pub dy: &'a [f32],
    /// `[T, d]`: what was normalised.
    pub x: &'a [f32],
    /// `[d]`.
    pub w: &'a [f32],
    pub eps: f32,
}

/// A row's mean and 1/√(variance + eps).
#[derive(Clone, Copy, Default)]
struct Moments {
    mean: f32,
    rstd: f32,
}

/// dx `[T, d]`, dw `[d]` and db `[d]`. Each starts from zero or from what it holds; the chains of dw and db go on, dx
/// gets one addition.
pub fn layer_norm_backward(
    of: LayerNorm,
    (dx, dx_start): (&mut [f32], Start),
    (dw, dw_start): (&mut [f32], Start),
    (db, db_start): (&mut [f32], Start),
) {
    let LayerNorm { dy, x, w, eps } = of;
    let d = w.len();
    assert_eq!((dy.len(), x.len()), (dx.len(), dx.len()), "dy, x and dx are [T, d], d = {d}");
    assert_eq!((dw.len(), db.len(), dx.len() % d.max(1)), (d, d, 0), "dw and db are [d], d = {d}, and dx is [T, d]");
    let mut moments = vec![Moments::default(); dx.len() / d.max(1)];
    let rows = par::rows_per_task(moments.len(), d);
    let dx = SharedMut::new(dx);
    par::chunks_mut(&mut moments, rows, |task, moments| {
        for (i, moments) in moments.iter_mut().enumerate() {
            let at = (task * rows + i) * d;
            let (dy, x) = (&dy[at..at + d], &x[at..at + d]);
            // SAFETY: each row is written by one task.
            let dx = unsafe { dx.slice(at, d) };
            // SAFETY: all have d elements.
            *moments = unsafe {
                dispatch!(dx_row(
                    dy: &[f32], x: &[f32], w: &[f32], eps: f32, dx: &mut [f32], dx_start: Start
                ) -> Moments)
            };
        }
    });
    let (db, moments) = (SharedMut::new(db), &moments[..]);
    par::chunks_mut(dw, COLUMNS, |task, dw| {
        let first = task * COLUMNS;
        // SAFETY: these columns are written by one task.
        let db = unsafe { db.slice(first, dw.len()) };
        begin(dw, dw_start);
        begin(db, db_start);
        // SAFETY: dy and x have a row of d for each of the moments; dw and db are columns from `first` on within d.
        unsafe {
            dispatch!(add_columns(
                dy: &[f32], x: &[f32], moments: &[Moments], first: usize, d: usize, dw: &mut [f32], db: &mut [f32]
            ))
        };
    });
}

fn begin(sum: &mut [f32], start: Start) {
    if start == Start::Zero {
        sum.fill(0.0);
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn dx_row<L: Lanes>(dy: &[f32], x: &[f32], w: &[f32], eps: f32, dx: &mut [f32], start: Start) -> Moments {
    let n = x.len() as f32;
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            sum = sum.add(s.load(x));
        });
        let mean = sum.sum() / n;
        let at_mean = L::splat(mean);
        let mut squares = L::splat(0.0);
        spans!(x.len(), |s| {
            let centred = centred(s.load::<L>(x), at_mean, s.n);
            squares = centred.fma(centred, squares);
        });
        let rstd = 1.0 / (squares.sum() / n + eps).sqrt();
        let r = L::splat(rstd);
        let (mut of_g, mut of_products) = (L::splat(0.0), L::splat(0.0));
        spans!(x.len(), |s| {
            let g = s.load::<L>(dy).mul(s.load(w));
            of_g = of_g.add(g);
            of_products = g.fma(s.load::<L>(x).sub(at_mean).mul(r), of_products);
        });
        let (mean_g, minus_mean) = (L::splat(of_g.sum() / n), L::splat(-(of_products.sum() / n)));
        spans!(x.len(), |s| {
            let g = s.load::<L>(dy).mul(s.load(w)).sub(mean_g);
            let mut out = s.load::<L>(x).sub(at_mean).mul(r).fma(minus_mean, g).mul(r);
            if start == Start::Continue {
                out = s.load::<L>(dx).add(out);
            }
            s.store(out, dx);
        });
        Moments { mean, rstd }
    }
}

/// x − mean in the first `n` lanes, zeros in the others, so that what lies beyond a row's end is in no sum.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn centred<L: Lanes>(x: L, mean: L, n: usize) -> L {
    // SAFETY: an array of sixteen; instructions by this function's contract.
    unsafe {
        let centred = x.sub(mean);
        if n == crate::lanes::LANES { centred } else { L::load_first(centred.to_array().as_ptr(), n) }
    }
}

/// Columns `first..first + dw.len()` of dw and db.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn add_columns<L: Lanes>(
    dy: &[f32],
    x: &[f32],
    moments: &[Moments],
    first: usize,
    d: usize,
    dw: &mut [f32],
    db: &mut [f32],
) {
    for (t, moments) in moments.iter().enumerate() {
        let at = t * d + first;
        let (dy, x) = (&dy[at..at + dw.len()], &x[at..at + dw.len()]);
        // SAFETY: the rows were cut to the length of dw, which is that of db; instructions by this function's contract.
        unsafe {
            spans!(dy.len(), |s| {
                let normal = s.load::<L>(x).sub(L::splat(moments.mean)).mul(L::splat(moments.rstd));
                let dy = s.load::<L>(dy);
                s.store(dy.fma(normal, s.load(dw)), dw);
                s.store(s.load::<L>(db).add(dy), db);
            });
        }
    }
}

/// dx of dy and x, element by element; from zero, or one addition to what it holds.
pub fn gelu_backward(dy: &[f32], x: &[f32], dx: &mut [f32], start: Start) {
    assert_eq!((dy.len(), x.len()), (dx.len(), dx.len()), "dy, x and dx");
    let len = par::task_len(dx.len());
    par::chunks_mut(dx, len, |task, dx| {
        let range = task * len..task * len + dx.len();
        let (dy, x) = (&dy[range.clone()], &x[range]);
        // SAFETY: the pieces were cut to one length.
        unsafe { dispatch!(gelu_piece(dy: &[f32], x: &[f32], dx: &mut [f32], start: Start)) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn gelu_piece<L: Lanes>(dy: &[f32], x: &[f32], dx: &mut [f32], start: Start) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(dx.len(), |s| {
            let mut out = s.load::<L>(dy).mul(math::gelu_slope(s.load(x)));
            if start == Start::Continue {
                out = s.load::<L>(dx).add(out);
            }
            s.store(out, dx);
        });
    }
}

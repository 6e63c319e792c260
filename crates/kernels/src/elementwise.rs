//! Additions, products with a number, and copies of columns between matrices.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::par::{self, SharedMut, TASK};
use crate::span::spans;

/// Columns of a bias gradient in a task.
const COLUMNS: usize = 64;

/// y += x.
pub fn add(x: &[f32], y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y");
    let len = par::task_len(y.len());
    par::chunks_mut(y, len, |task, y| {
        let x = &x[task * len..task * len + y.len()];
        y.iter_mut().zip(x).for_each(|(y, x)| *y += x);
    });
}

/// y = a + b.
pub fn sum(a: &[f32], b: &[f32], y: &mut [f32]) {
    assert_eq!((a.len(), b.len()), (y.len(), y.len()), "a and b have the length of y");
    par::chunks_mut(y, TASK, |task, y| {
        let at = task * TASK;
        let (a, b) = (&a[at..at + y.len()], &b[at..at + y.len()]);
        y.iter_mut().zip(a.iter().zip(b)).for_each(|(y, (a, b))| *y = a + b);
    });
}

/// y ·= factor.
pub fn scale(y: &mut [f32], factor: f32) {
    par::chunks_mut(y, TASK, |_, y| y.iter_mut().for_each(|y| *y *= factor));
}

/// `y[t] += bias` for each row t of y `[T, n]`; bias is `[n]`.
pub fn add_bias(bias: &[f32], y: &mut [f32]) {
    let n = bias.len();
    assert_eq!(y.len() % n.max(1), 0, "y is [T, n] with n = {n}");
    par::chunks_mut(y, par::rows_per_task(y.len() / n.max(1), n) * n, |_, y| {
        for y in y.chunks_exact_mut(n) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
    });
}

/// dbias `[n]` (+)= Σ over tokens of dy [T, n]: for each column one chain of additions over the tokens in order.
pub fn bias_grad(dy: &[f32], dbias: &mut [f32], start: Start) {
    let n = dbias.len();
    assert_eq!(dy.len() % n.max(1), 0, "dy is [T, n] with n = {n}");
    par::chunks_mut(dbias, COLUMNS, |task, dbias| {
        let first = task * COLUMNS;
        // SAFETY: dy was checked to be whole rows of n, which have columns `first..first + dbias.len()`.
        unsafe { dispatch!(bias_columns(dy: &[f32], first: usize, n: usize, dbias: &mut [f32], start: Start)) };
    });
}

/// Columns `first..first + dbias.len()`.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn bias_columns<L: Lanes>(dy: &[f32], first: usize, n: usize, dbias: &mut [f32], start: Start) {
    if start == Start::Zero {
        dbias.fill(0.0);
    }
    for row in dy.chunks_exact(n) {
        let row = &row[first..first + dbias.len()];
        // SAFETY: the row was cut to the length of dbias; instructions by this function's contract.
        unsafe {
            spans!(row.len(), |s| {
                s.store(s.load::<L>(dbias).add(s.load(row)), dbias);
            });
        }
    }
}

/// A block of columns of a row-major matrix: element (t, i) is data[t·stride + offset + i], i < width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Columns {
    /// Elements from a row to the next.
    pub stride: usize,
    /// First column.
    pub offset: usize,
}

impl Columns {
    fn check(self, len: usize, rows: usize, width: usize, name: &str) {
        assert!(self.offset + width <= self.stride, "{name}: {}+{width} columns of {}", self.offset, self.stride);
        assert!(len >= rows * self.stride, "{name}: {rows} rows of {} elements in {len}", self.stride);
    }

    fn row(self, t: usize, width: usize) -> std::ops::Range<usize> {
        let at = t * self.stride + self.offset;
        at..at + width
    }
}

/// Copies `width` columns of `rows` rows from one matrix to another; the other columns stay.
pub fn copy_columns(src: &[f32], from: Columns, dst: &mut [f32], to: Columns, width: usize, rows: usize) {
    each_row(src, from, dst, to, width, rows, |src, dst| dst.copy_from_slice(src));
}

/// Adds `width` columns of `rows` rows of one matrix to those of another.
pub fn add_columns(src: &[f32], from: Columns, dst: &mut [f32], to: Columns, width: usize, rows: usize) {
    each_row(src, from, dst, to, width, rows, |src, dst| dst.iter_mut().zip(src).for_each(|(d, s)| *d += s));
}

fn each_row(
    src: &[f32],
    from: Columns,
    dst: &mut [f32],
    to: Columns,
    width: usize,
    rows: usize,
    work: impl Fn(&[f32], &mut [f32]) + Sync,
) {
    from.check(src.len(), rows, width, "source");
    to.check(dst.len(), rows, width, "destination");
    let dst = SharedMut::new(dst);
    let rows_per_task = par::rows_per_task(rows, width);
    par::run(rows.div_ceil(rows_per_task), |task| {
        for t in task * rows_per_task..((task + 1) * rows_per_task).min(rows) {
            // SAFETY: each row is written by one task.
            let row = unsafe { dst.slice(to.row(t, width).start, width) };
            work(&src[from.row(t, width)], row);
        }
    });
}

//! What models of images compute besides products: LayerNorm, GroupNorm, GELU, and softmax over whole rows. Forward.
//!
//! | kernel | formula | order of its sums |
//! |---|---|---|
//! | [`layer_norm`] | y = (x − mean)·rstd·w + b over a row (Ba, Kiros and Hinton 2016) | 16 partial sums, the fixed tree |
//! | [`group_norm`] | the same over all rows of a group of columns (Wu and He 2018) | see there |
//! | [`gelu`] | x·Φ(x), Φ the normal distribution function (Hendrycks and Gimpel 2016) | none |
//! | [`softmax`] | exp(s·(x − max)) / Σ | 16 partial sums, the fixed tree |
//!
//! rstd = 1/√(variance + eps), the variance being the mean of the squares of x − mean.

use crate::lanes::{LANES, Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// Rows whose sum is one chain in [`group_norm`].
pub const BLOCK: usize = 256;

/// What follows a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x·sigmoid(x).
    Silu,
}

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

/// y `[T, C]` of x `[T, C]`, w `[C]` and b `[C]`: the columns in `groups` equal groups, each normalised over all of its
/// rows and columns.
///
/// A column's sum is a chain over each [`BLOCK`] rows, and one over the blocks; a group's is one over its columns. The
/// squares of x − mean are summed the same way, by fused multiply-adds.
pub fn group_norm(x: &[f32], groups: usize, w: &[f32], b: &[f32], eps: f32, activation: Activation, y: &mut [f32]) {
    let c = w.len();
    assert_eq!((x.len(), b.len(), y.len() % c.max(1)), (y.len(), c, 0), "x and y are [T, C], w and b [C], C = {c}");
    assert!(groups > 0 && c.is_multiple_of(groups), "{c} columns in {groups} groups");
    let width = c / groups;
    let elements = (x.len() / groups) as f32;
    let mean = spread(&block_sums(x, c, None), width, |sum| sum / elements);
    let rstd = spread(&block_sums(x, c, Some(&mean)), width, |sum| 1.0 / (sum / elements + eps).sqrt());
    let (mean, rstd) = (&mean[..], &rstd[..]);
    let silu = activation == Activation::Silu;
    let rows = par::rows_per_task(y.len() / c.max(1), c);
    par::chunks_mut(y, rows * c, |task, y| {
        for (i, y) in y.chunks_exact_mut(c).enumerate() {
            let at = (task * rows + i) * c;
            let x = &x[at..at + c];
            // SAFETY: all six have C elements.
            unsafe {
                dispatch!(group_norm_row(
                    x: &[f32], mean: &[f32], rstd: &[f32], w: &[f32], b: &[f32], silu: bool, y: &mut [f32]
                ))
            };
        }
    });
}

/// `[C]`: each column's sum, of x or of (x − mean)².
fn block_sums(x: &[f32], c: usize, mean: Option<&[f32]>) -> Vec<f32> {
    let blocks = x.len().div_ceil(BLOCK * c);
    let mut sums = vec![0.0f32; blocks * c];
    let of_block = SharedMut::new(&mut sums);
    par::run(blocks, |block| {
        let x = &x[block * BLOCK * c..x.len().min((block + 1) * BLOCK * c)];
        // SAFETY: each block's sums are written by one task.
        let sums = unsafe { of_block.slice(block * c, c) };
        match mean {
            // SAFETY: x is whole rows of C, and so long are the others.
            None => unsafe { dispatch!(sum_rows(x: &[f32], sums: &mut [f32])) },
            // SAFETY: as above.
            Some(mean) => unsafe { dispatch!(sum_squares(x: &[f32], mean: &[f32], sums: &mut [f32])) },
        }
    });
    let mut sum = vec![0.0f32; c];
    for block in sums.chunks_exact(c) {
        sum.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
    }
    sum
}

/// What `f` makes of each group's sum, at each of its columns.
fn spread(columns: &[f32], width: usize, f: impl Fn(f32) -> f32) -> Vec<f32> {
    let groups = columns.chunks_exact(width).map(|group| f(group.iter().fold(0.0, |sum, x| sum + x)));
    groups.flat_map(|value| std::iter::repeat_n(value, width)).collect()
}

/// # Safety
/// The machine has the instruction set of `L`; `x` is rows as long as `sums`.
#[inline(always)]
unsafe fn sum_rows<L: Lanes>(x: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        // SAFETY: the row is as long as the sums; instructions by this function's contract.
        unsafe {
            spans!(row.len(), |s| {
                s.store(s.load::<L>(sums).add(s.load(row)), sums);
            });
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`; `x` is rows as long as `sums`, and so is `mean`.
#[inline(always)]
unsafe fn sum_squares<L: Lanes>(x: &[f32], mean: &[f32], sums: &mut [f32]) {
    for row in x.chunks_exact(sums.len()) {
        // SAFETY: the row and the mean are as long as the sums; instructions by this function's contract.
        unsafe {
            spans!(row.len(), |s| {
                let centred = s.load::<L>(row).sub(s.load(mean));
                s.store(centred.fma(centred, s.load(sums)), sums);
            });
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn group_norm_row<L: Lanes>(
    x: &[f32],
    mean: &[f32],
    rstd: &[f32],
    w: &[f32],
    b: &[f32],
    silu: bool,
    y: &mut [f32],
) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(x.len(), |s| {
            let normal = s.load::<L>(x).sub(s.load(mean)).mul(s.load(rstd));
            let scaled = normal.fma(s.load(w), s.load(b));
            s.store(if silu { math::silu(scaled) } else { scaled }, y);
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

//! GroupNorm (Wu and He 2018) of pictures, and what follows it.
//!
//! A batch is P pictures of N rows (pixels) and C columns; a picture's columns in G equal groups, each normalised over
//! all of its rows and columns, n numbers. Forward: x̂ = (x − mean)·rstd, u = x̂·w + b, y = u or silu(u), with
//! rstd = 1/√(variance + eps), the variance being the mean of the squares of x − mean. Saved for backward: x, mean and
//! rstd. Backward, with du = dy·silu'(u): db = Σ du, dw = Σ du·x̂, dx = rstd·(du·w − Σ du·w/n − x̂·Σ du·w·x̂/n).
//!
//! **Order of sums.** A column's sum over a picture is a chain over each [`BLOCK`] rows, and one over the blocks; a
//! group's is one over its columns; a parameter's gradient is one over the pictures. Squares and products are added by
//! fused multiply-adds.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// Rows whose sum is one chain.
pub const BLOCK: usize = 256;

/// What follows a norm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// Nothing.
    None,
    /// x·sigmoid(x).
    Silu,
}

/// Which norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNorm {
    /// P.
    pub pictures: usize,
    /// G.
    pub groups: usize,
    pub eps: f32,
    /// What follows.
    pub activation: Activation,
}

/// How a batch lies.
#[derive(Clone, Copy)]
struct Layout {
    pictures: usize,
    rows: usize,
    c: usize,
    /// Columns of a group.
    width: usize,
}

impl GroupNorm {
    fn layout(&self, len: usize, c: usize) -> Layout {
        let GroupNorm { pictures, groups, .. } = *self;
        assert!(groups > 0 && c.is_multiple_of(groups), "{c} columns in {groups} groups");
        assert!(pictures > 0 && len.is_multiple_of(pictures * c), "{len} numbers of {pictures} pictures, {c} columns");
        Layout { pictures, rows: len / (pictures * c), c, width: c / groups }
    }

    fn silu(&self) -> bool {
        self.activation == Activation::Silu
    }
}

impl Layout {
    fn blocks(&self) -> usize {
        self.rows.div_ceil(BLOCK)
    }

    /// The elements of a block, counted through all pictures.
    fn block(&self, index: usize) -> std::ops::Range<usize> {
        let (picture, block) = (index / self.blocks(), index % self.blocks());
        let row = |row: usize| (picture * self.rows + row.min(self.rows)) * self.c;
        row(block * BLOCK)..row((block + 1) * BLOCK)
    }

    /// `[P, sums]`: the chains over each picture's blocks of what `add` makes of each block, told which picture.
    fn sums(&self, sums: usize, add: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
        let blocks = self.blocks();
        let mut of_blocks = vec![0.0f32; self.pictures * blocks * sums];
        par::chunks_mut(&mut of_blocks, sums, |index, of_block| add(index, index / blocks, of_block));
        let mut all = vec![0.0f32; self.pictures * sums];
        for (sum, of_picture) in all.chunks_exact_mut(sums).zip(of_blocks.chunks_exact(blocks * sums)) {
            for block in of_picture.chunks_exact(sums) {
                sum.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
            }
        }
        all
    }

    /// Calls `row` with the place of each row and its picture, in tasks over all rows.
    fn each_row(&self, row: impl Fn(usize, usize) + Sync) {
        let all = self.pictures * self.rows;
        let rows = par::rows_per_task(all, self.c);
        par::run(all.div_ceil(rows), |task| {
            (task * rows..((task + 1) * rows).min(all)).for_each(|t| row(t * self.c, t / self.rows));
        });
    }

    /// What `f` makes of each group's sum, at each of its columns.
    fn spread(&self, columns: &[f32], f: impl Fn(f32) -> f32, out: &mut [f32]) {
        for (out, group) in out.chunks_exact_mut(self.width).zip(columns.chunks_exact(self.width)) {
            out.fill(f(group.iter().fold(0.0, |sum, x| sum + x)));
        }
    }
}

/// y `[P·N, C]` of x `[P·N, C]`, w `[C]` and b `[C]`. For backward: stats `[2·P, C]`, of each picture a row of means
/// and one of rstd, each group's at all of its columns.
pub fn group_norm(of: GroupNorm, x: &[f32], w: &[f32], b: &[f32], y: &mut [f32], stats: &mut [f32]) {
    let layout = of.layout(x.len(), w.len());
    let Layout { pictures, c, .. } = layout;
    assert_eq!((b.len(), y.len(), stats.len()), (c, x.len(), 2 * pictures * c), "b, y and the statistics");
    let elements = (layout.rows * layout.width) as f32;
    let sums = layout.sums(c, |block, _, sums| {
        let x = &x[layout.block(block)];
        // SAFETY: x is whole rows of C, as long as the sums.
        unsafe { dispatch!(sum_rows(x: &[f32], sums: &mut [f32])) }
    });
    for (stats, sums) in stats.chunks_exact_mut(2 * c).zip(sums.chunks_exact(c)) {
        layout.spread(sums, |sum| sum / elements, &mut stats[..c]);
    }
    let means = &*stats;
    let squares = layout.sums(c, |block, picture, sums| {
        let (x, mean) = (&x[layout.block(block)], &means[2 * picture * c..][..c]);
        // SAFETY: x is whole rows of C, as long as the means and the sums.
        unsafe { dispatch!(sum_squares(x: &[f32], mean: &[f32], sums: &mut [f32])) }
    });
    for (stats, squares) in stats.chunks_exact_mut(2 * c).zip(squares.chunks_exact(c)) {
        layout.spread(squares, |sum| 1.0 / (sum / elements + of.eps).sqrt(), &mut stats[c..]);
    }
    let (stats, silu, y) = (&*stats, of.silu(), SharedMut::new(y));
    layout.each_row(|at, picture| {
        let (x, (mean, rstd)) = (&x[at..at + c], stats[2 * picture * c..][..2 * c].split_at(c));
        // SAFETY: each row is written by one task.
        let y = unsafe { y.slice(at, c) };
        // SAFETY: all seven have C elements.
        unsafe {
            dispatch!(forward_row(
                x: &[f32], mean: &[f32], rstd: &[f32], w: &[f32], b: &[f32], silu: bool, y: &mut [f32]
            ))
        }
    });
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
unsafe fn forward_row<L: Lanes>(
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

/// dx `[P·N, C]`, dw `[C]` and db `[C]` of dy `[P·N, C]`, with forward's x, w, b and stats. dx is written; dw and db
/// begin from zero or go on from what they hold.
pub fn group_norm_backward(
    of: GroupNorm,
    dy: &[f32],
    x: &[f32],
    [w, b]: [&[f32]; 2],
    stats: &[f32],
    dx: &mut [f32],
    dw: (&mut [f32], Start),
    db: (&mut [f32], Start),
) {
    let layout = of.layout(x.len(), w.len());
    let Layout { pictures, c, .. } = layout;
    assert_eq!((dy.len(), dx.len(), stats.len()), (x.len(), x.len(), 2 * pictures * c), "dy, dx and the statistics");
    assert_eq!((b.len(), dw.0.len(), db.0.len()), (c, c, c), "b, dw and db");
    let silu = of.silu();
    let du = SharedMut::new(&mut *dx);
    // Of each picture, a row of Σ du and one of Σ du·x̂.
    let sums = layout.sums(2 * c, |block, picture, sums| {
        let place = layout.block(block);
        // SAFETY: each block is written by one task.
        let du = unsafe { du.slice(place.start, place.len()) };
        let (dy, x, stats) = (&dy[place.clone()], &x[place], &stats[2 * picture * c..][..2 * c]);
        // SAFETY: dy, x and du are whole rows of C, stats and sums two, w and b one.
        unsafe {
            dispatch!(du_rows(
                dy: &[f32], x: &[f32], stats: &[f32], w: &[f32], b: &[f32], silu: bool, du: &mut [f32], sums: &mut [f32]
            ))
        }
    });
    add_up(&sums, c, dw, 1);
    add_up(&sums, c, db, 0);
    let mut means = vec![0.0; 2 * pictures * c];
    let elements = (layout.rows * layout.width) as f32;
    for (means, sums) in means.chunks_exact_mut(c).zip(sums.chunks_exact(c)) {
        let weighted: Vec<f32> = sums.iter().zip(w).map(|(sum, w)| sum * w).collect();
        layout.spread(&weighted, |sum| sum / elements, means);
    }
    let dx = SharedMut::new(dx);
    layout.each_row(|at, picture| {
        let [stats, means] = [stats, &means].map(|all: &[f32]| &all[2 * picture * c..][..2 * c]);
        let x = &x[at..at + c];
        // SAFETY: each row is written by one task.
        let dx = unsafe { dx.slice(at, c) };
        // SAFETY: x, w and dx have C elements, the others two times as many.
        unsafe { dispatch!(dx_row(x: &[f32], stats: &[f32], w: &[f32], means: &[f32], dx: &mut [f32])) }
    });
}

/// A parameter's gradient: a chain over the pictures, of whose sums `[P, 2, C]` it is the first or the second.
fn add_up(sums: &[f32], c: usize, (gradient, start): (&mut [f32], Start), which: usize) {
    if start == Start::Zero {
        gradient.fill(0.0);
    }
    for sums in sums.chunks_exact(2 * c) {
        gradient.iter_mut().zip(&sums[which * c..][..c]).for_each(|(gradient, sum)| *gradient += sum);
    }
}

/// # Safety
/// The machine has the instruction set of `L`; `dy`, `x` and `du` are rows as long as `w` and `b`, `stats` and `sums`
/// two such rows.
#[inline(always)]
unsafe fn du_rows<L: Lanes>(
    dy: &[f32],
    x: &[f32],
    stats: &[f32],
    w: &[f32],
    b: &[f32],
    silu: bool,
    du: &mut [f32],
    sums: &mut [f32],
) {
    let c = w.len();
    let (mean, rstd) = stats.split_at(c);
    let (du_sums, normal_sums) = sums.split_at_mut(c);
    for ((dy, x), du) in dy.chunks_exact(c).zip(x.chunks_exact(c)).zip(du.chunks_exact_mut(c)) {
        // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
        unsafe {
            spans!(c, |s| {
                let normal = s.load::<L>(x).sub(s.load(mean)).mul(s.load(rstd));
                let mut d = s.load::<L>(dy);
                if silu {
                    let (u, one) = (normal.fma(s.load(w), s.load(b)), L::splat(1.0));
                    let sigmoid = math::sigmoid(u);
                    d = d.mul(sigmoid.mul(u.fma(one.sub(sigmoid), one)));
                }
                s.store(d, du);
                s.store(s.load::<L>(du_sums).add(d), du_sums);
                s.store(d.fma(normal, s.load(normal_sums)), normal_sums);
            });
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`; `x`, `w` and `dx` have one length, `stats` and `means` twice that.
#[inline(always)]
unsafe fn dx_row<L: Lanes>(x: &[f32], stats: &[f32], w: &[f32], means: &[f32], dx: &mut [f32]) {
    let ((mean, rstd), (mean_d, mean_normal)) = (stats.split_at(x.len()), means.split_at(x.len()));
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(x.len(), |s| {
            let rstd = s.load::<L>(rstd);
            let minus_normal = s.load::<L>(mean).sub(s.load(x)).mul(rstd);
            let d = s.load::<L>(dx).fma(s.load(w), L::splat(0.0).sub(s.load(mean_d)));
            s.store(minus_normal.fma(s.load(mean_normal), d).mul(rstd), dx);
        });
    }
}

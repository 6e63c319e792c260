//! Matrix products (GEMM) of linear layers and, grouped, of experts, forward and backward.
//!
//! **Order of sums.** Element (i, j) of a product is one chain of fused multiply-adds over k in ascending order, begun
//! at zero or at what the output holds ([`Start`]). It depends on row i of the left matrix and column j of the right
//! one alone: not on the other rows, the tiles, the threads or the instruction set. A weight gradient is a chain over
//! the tokens, so a step cut into micro-batches that continue one another has the bits of the whole.
//!
//! **Precision.** [`Precision::F32`] multiplies what it is given. [`Precision::Bf16`] rounds both factors to bf16
//! (nearest even, subnormals to zero) and keeps the chain in f32, flushing subnormal sums to zero: the arithmetic of
//! the hardware's bf16 dot products, on every instruction set. [`Precision::F16`] sums short runs in f16: see [`half`].

mod bf16;
mod conv;
pub mod half;

pub use conv::{conv, conv_dx};

use std::ops::Range;

use crate::lanes::{Lanes, dispatch};
use crate::micro::{self, LeftWords, Out, Step, Words};
use crate::pack::{self, Block, Matrix, TILE};
use crate::par::{self, SharedMut};
use crate::scratch::{self, Buffer};
use crate::windows::Gathered;

/// The arithmetic of a product.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32 factors, f32 chain.
    #[default]
    F32,
    /// bf16 factors, f32 chain.
    Bf16,
    /// Scaled f16 factors, f16 chains of a few terms, added up in f32; weight gradients as in [`Precision::F32`].
    F16,
}

/// What the chains of an output begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// Zero; the output's contents are overwritten.
    Zero,
    /// The output's contents.
    Continue,
}

/// `y[T,N] = x[T,K] · w[N,K]ᵀ`.
pub fn linear(p: Precision, x: &[f32], w: &[f32], y: &mut [f32], k: usize, n: usize) {
    let t = rows_of("x", x, k);
    check("w", w, n * k);
    check("y", y, t * n);
    grouped_linear(p, x, None, &[0, t as u32], w, y, k, n);
}

/// `dx[T,K] = dy[T,N] · w[N,K]`.
pub fn linear_dx(p: Precision, dy: &[f32], w: &[f32], dx: &mut [f32], k: usize, n: usize, start: Start) {
    let t = rows_of("dy", dy, n);
    grouped_linear_dx(p, dy, &[0, t as u32], w, dx, k, n, start);
}

/// `dw[N,K] = dy[T,N]ᵀ · x[T,K]`, chains over tokens.
pub fn linear_dw(p: Precision, dy: &[f32], x: &[f32], dw: &mut [f32], k: usize, n: usize, start: Start) {
    let t = rows_of("dy", dy, n);
    grouped_linear_dw(p, dy, x, None, &[0, t as u32], dw, k, n, start);
}

/// [`linear`] for each expert: slots `offsets[e]..offsets[e+1]` are rows for expert e with weights `w[e]` of
/// `[E, N, K]`; `rows` names each slot's row of `x`, which is in slot order already where there is none.
pub fn grouped_linear(
    p: Precision,
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    w: &[f32],
    y: &mut [f32],
    k: usize,
    n: usize,
) {
    let slots = check_groups(offsets, rows, rows_of("x", x, k));
    check("w", w, (offsets.len() - 1) * n * k);
    check("y", y, slots * n);
    let prepared = Prepared::rows(p, x, k);
    let (data, stride) = prepared.data_and_stride();
    let products = groups(offsets).map(|(e, group)| Product {
        size: Size { m: group.len(), n, k },
        left: match rows {
            Some(rows) => Left { data, stride, order: Order::Rows(Some(&rows[group.clone()])) },
            None => Left { data: &data[group.start * stride..], stride, order: Order::Rows(None) },
        },
        right: Right::Columns(Matrix { data: &w[e * n * k..(e + 1) * n * k], stride: k, rows: None }),
        out: group.start * n,
    });
    run(p, &products.collect::<Vec<_>>(), SharedMut::new(y), Start::Zero);
}

/// [`linear_dx`] for each expert; `dx[slots, K]` is in slot order.
pub fn grouped_linear_dx(
    p: Precision,
    dy: &[f32],
    offsets: &[u32],
    w: &[f32],
    dx: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    let slots = check_groups(offsets, None, rows_of("dy", dy, n));
    check("w", w, (offsets.len() - 1) * n * k);
    check("dx", dx, slots * k);
    let prepared = Prepared::rows(p, dy, n);
    let (data, stride) = prepared.data_and_stride();
    let products = groups(offsets).map(|(e, group)| Product {
        size: Size { m: group.len(), n: k, k: n },
        left: Left { data: &data[group.start * stride..], stride, order: Order::Rows(None) },
        right: Right::Rows(Matrix { data: &w[e * n * k..(e + 1) * n * k], stride: k, rows: None }),
        out: group.start * k,
    });
    run(p, &products.collect::<Vec<_>>(), SharedMut::new(dx), start);
}

/// [`linear_dw`] for each expert; an expert without slots gets zeros, or keeps what it holds.
pub fn grouped_linear_dw(
    p: Precision,
    dy: &[f32],
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    dw: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    let slots = check_groups(offsets, rows, rows_of("x", x, k));
    check("dy", dy, slots * n);
    check("dw", dw, (offsets.len() - 1) * n * k);
    let p = if p == Precision::F16 { Precision::F32 } else { p };
    let products = groups(offsets).map(|(e, group)| {
        let left = Left { data: &dy[group.start * n..group.end * n], stride: n, order: Order::Columns };
        let right = match rows {
            Some(rows) => Matrix { data: x, stride: k, rows: Some(&rows[group.clone()]) },
            None => Matrix { data: &x[group.start * k..group.end * k], stride: k, rows: None },
        };
        Product { size: Size { m: n, n: k, k: group.len() }, left, right: Right::Rows(right), out: e * n * k }
    });
    run(p, &products.collect::<Vec<_>>(), SharedMut::new(dw), start);
}

fn groups(offsets: &[u32]) -> impl Iterator<Item = (usize, Range<usize>)> {
    offsets.windows(2).map(|w| w[0] as usize..w[1] as usize).enumerate()
}

fn rows_of(name: &str, data: &[f32], width: usize) -> usize {
    assert!(width > 0 && data.len().is_multiple_of(width), "{name} has {} elements, rows have {width}", data.len());
    data.len() / width
}

fn check(name: &str, data: &[f32], expected: usize) {
    assert!(data.len() == expected, "{name} has {} elements instead of {expected}", data.len());
}

/// Checks offsets and row indices, which unsafe code relies on, and gives the number of slots.
pub(crate) fn check_groups(offsets: &[u32], rows: Option<&[u32]>, available: usize) -> usize {
    assert!(offsets.first() == Some(&0) && offsets.is_sorted(), "offsets {offsets:?} do not ascend from 0");
    let slots = offsets[offsets.len() - 1] as usize;
    match rows {
        None => assert!(slots == available, "{slots} slots for {available} rows"),
        Some(rows) => {
            assert!(rows.len() == slots, "{} row indices for {slots} slots", rows.len());
            let last = rows.iter().max().map_or(0, |&r| r as usize + 1);
            assert!(last <= available, "row {} of {available}", last.wrapping_sub(1));
        }
    }
    slots
}

/// Rows of a left operand: as they are, or in f16 the words that [`half`] makes of each.
enum Prepared<'a> {
    Given(&'a [f32], usize),
    Halves(Buffer, usize),
}

impl<'a> Prepared<'a> {
    fn rows(p: Precision, data: &'a [f32], columns: usize) -> Self {
        if p != Precision::F16 {
            return Prepared::Given(data, columns);
        }
        let stride = half::words(columns);
        let mut words = scratch::buffer(data.len() / columns * stride);
        half::prepare_rows(data, columns, scratch::words_mut(&mut words));
        Prepared::Halves(words, stride)
    }

    /// The rows and how far apart they begin.
    fn data_and_stride(&self) -> (&[f32], usize) {
        match self {
            Prepared::Given(data, stride) => (data, *stride),
            Prepared::Halves(words, stride) => (words, *stride),
        }
    }
}

/// The left operand of one product.
#[derive(Clone, Copy)]
struct Left<'a> {
    /// Terms, or in f16 words; nothing of windows.
    data: &'a [f32],
    stride: usize,
    order: Order<'a>,
}

#[derive(Clone, Copy)]
enum Order<'a> {
    /// The terms of an output row side by side; output row i from row i, or from the row that an index names.
    Rows(Option<&'a [u32]>),
    /// What all output rows have of a term side by side.
    Columns,
    /// Output row i from window i.
    Windows(&'a Gathered<'a>),
}

/// The right operand of one product: its rows are the terms, or its columns.
#[derive(Clone, Copy)]
enum Right<'a> {
    Rows(Matrix<'a>),
    Columns(Matrix<'a>),
}

/// Rows and columns of the output, and terms of a chain.
#[derive(Clone, Copy)]
struct Size {
    m: usize,
    n: usize,
    k: usize,
}

impl Size {
    /// Multiplications and additions.
    fn terms(self) -> usize {
        self.m * self.n * self.k
    }
}

struct Product<'a> {
    size: Size,
    left: Left<'a>,
    right: Right<'a>,
    /// Where the output begins, of rows of n.
    out: usize,
}

/// A part of a product that one thread computes.
struct Task<'a> {
    product: &'a Product<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
}

/// Words of a packed block: what half of a second-level cache of 1 MiB holds.
const BLOCK_WORDS: usize = 128 * 1024;
/// Words along k in a block; even, so that pairs of bf16 terms stay together.
const BLOCK_K_WORDS: usize = 512;
/// Tasks have a multiple of so many columns, but at the end.
const COLUMNS: usize = 32;

fn run(p: Precision, products: &[Product], out: SharedMut<f32>, start: Start) {
    let tasks = tasks(products, par::threads());
    par::run(tasks.len(), |i| {
        let mut panels = scratch::buffer(BLOCK_WORDS);
        compute(p, &tasks[i], out, start, scratch::words_mut(&mut panels));
    });
}

/// Cuts products into tasks of similar size, several a thread, since threads may be of unequal speed.
fn tasks<'a>(products: &'a [Product<'a>], threads: usize) -> Vec<Task<'a>> {
    let total: usize = products.iter().map(|product| product.size.terms()).sum();
    let wanted = match threads {
        1 => 1,
        _ if total < 1 << 29 => 2 * threads,
        _ => 4 * threads,
    };
    let mut tasks = Vec::new();
    for product in products {
        let Size { m, n, .. } = product.size;
        let share = (product.size.terms() * wanted).div_ceil(total.max(1));
        let (height, width) = cut(product.size, share);
        for columns in (0..n).step_by(width) {
            for rows in (0..m).step_by(height) {
                let (rows, columns) = (rows..(rows + height).min(m), columns..(columns + width).min(n));
                tasks.push(Task { product, rows, columns });
            }
        }
    }
    tasks
}

/// Rows and columns of each of about `share` tasks. A cut by columns means that the left operand is copied once more, a
/// cut by rows that the right one is packed once more, which costs half as much again for each element: the cheapest
/// grid whose columns fit a packed block.
fn cut(Size { m, n, k }: Size, share: usize) -> (usize, usize) {
    let block_columns = BLOCK_WORDS / k.clamp(64, BLOCK_K_WORDS) / COLUMNS * COLUMNS;
    let fewest = n.div_ceil(block_columns);
    let grids = (fewest..=fewest.max(share)).map(|columns| (share.div_ceil(columns).min(m.div_ceil(24)), columns));
    let cheapest = grids.min_by_key(|(rows, columns)| 2 * columns * m + 3 * rows * n);
    let (rows, columns) = cheapest.unwrap_or((1, 1));
    (m.div_ceil(rows.max(1)).next_multiple_of(12).max(1), n.div_ceil(columns.max(1)).next_multiple_of(COLUMNS))
}

fn compute(p: Precision, task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    match p {
        Precision::F32 => {
            // SAFETY: the products were made with the sizes of their operands; each task has rows and columns of its
            // own.
            unsafe { dispatch!(compute_f32(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32])) }
        }
        Precision::Bf16 => bf16::compute(task, out, start, panels),
        Precision::F16 => half::compute(task, out, start, panels),
    }
}

/// # Safety
/// As for [`blocks`], with the instructions of L alone.
#[inline(always)]
unsafe fn compute_f32<L: Lanes>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    // SAFETY: `micro::F32` asks for the instructions of L alone; task and output go on as they came.
    unsafe { blocks::<L, micro::F32>(task, out, start, panels) }
}

/// Block after block along k: packs the right operand's part, then extends the chains of all the task's rows.
///
/// # Safety
/// The machine has the instructions of L and S. The product's operands have the sizes that it states, and no other task
/// has this one's rows and columns of `out`.
#[inline(always)]
unsafe fn blocks<L: Lanes, S: Step<L>>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    let Size { n, k, .. } = task.product.size;
    let mut place = Out {
        at: out.at(task.product.out + task.rows.start * n + task.columns.start),
        stride: n,
        columns: task.columns.len(),
        continues: start == Start::Continue,
    };
    if k == 0 && !place.continues {
        for i in 0..task.rows.len() {
            // SAFETY: a row of the task's part of the output.
            unsafe { std::slice::from_raw_parts_mut(place.at.add(i * n), place.columns).fill(0.0) };
        }
    }
    let mut copies = scratch::buffer(COPIES);
    let step = S::WORDS.terms() * BLOCK_K_WORDS;
    for k0 in (0..k).step_by(step) {
        let block = Block { k0, k: step.min(k - k0), j0: task.columns.start, columns: task.columns.len() };
        // SAFETY: the panels were just packed when they are read; operands and output by this function's contract.
        unsafe {
            match task.product.right {
                Right::Rows(b) => pack::panels_of_rows::<L>(b, block, S::WORDS, panels),
                Right::Columns(b) => pack::panels_of_columns::<L>(b, block, S::WORDS, panels),
            }
            let left = &task.product.left;
            let copies = scratch::words_mut(&mut copies);
            match left.order {
                Order::Rows(index) => extend_rows::<L, S>(left, index, &task.rows, block, panels, copies, place),
                Order::Columns => extend_columns::<L, S>(left, &task.rows, block, panels, copies, place),
                Order::Windows(of) => extend_windows::<L, S>(of, &task.rows, block, panels, copies, place),
            }
        }
        place.continues = true;
    }
}

/// Extends the chains of `rows` by the block's terms, which lie side by side in each row of the left operand. f32 is
/// read where it is, unless that crowds a tile's rows into few sets of the first cache; bf16 is made of it by tiles.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn extend_rows<L: Lanes, S: Step<L>>(
    left: &Left,
    index: Option<&[u32]>,
    rows: &Range<usize>,
    block: Block,
    panels: &[u32],
    copies: &mut [u32],
    mut out: Out,
) {
    let words = block.k.div_ceil(S::WORDS.terms());
    let crowded = left.stride.is_multiple_of(CROWDED) && left.stride > block.k;
    for i in rows.clone().step_by(TILE) {
        let tile = (rows.end - i).min(TILE);
        let mut pointers = [std::ptr::null(); TILE];
        for (r, (pointer, copy)) in pointers.iter_mut().zip(copies.chunks_exact_mut(ROW_STRIDE)).take(tile).enumerate()
        {
            let row = index.map_or(i + r, |index| index[i + r] as usize);
            let terms = &left.data[row * left.stride + block.k0..][..block.k];
            *pointer = if S::WORDS == Words::Numbers && !crowded {
                terms.as_ptr().cast()
            } else {
                // SAFETY: a copy has room for a block's words; instructions by this function's contract.
                unsafe { pack::words_of_row::<L>(S::WORDS, terms, &mut copy[..words]) };
                copy.as_ptr()
            };
        }
        // SAFETY: each pointer has `words` words, in the operand or its copy, and the tile's rows of the output follow
        // from `out.at` on; the rest by this function's contract.
        unsafe {
            micro::product::<L, S>(tile, words, LeftWords::Rows(&pointers[..tile]), panels.as_ptr(), 16 * words, out);
            out.at = out.at.add(tile * out.stride);
        }
    }
}

/// As [`extend_rows`], where the rows are windows: a tile's are gathered where they are read from.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn extend_windows<L: Lanes, S: Step<L>>(
    of: &Gathered,
    rows: &Range<usize>,
    block: Block,
    panels: &[u32],
    copies: &mut [u32],
    mut out: Out,
) {
    let words = block.k.div_ceil(S::WORDS.terms());
    let mut terms = [0.0; 2 * BLOCK_K_WORDS];
    let terms = &mut terms[..block.k];
    for i in rows.clone().step_by(TILE) {
        let tile = (rows.end - i).min(TILE);
        let mut pointers = [std::ptr::null(); TILE];
        for (r, (pointer, copy)) in pointers.iter_mut().zip(copies.chunks_exact_mut(ROW_STRIDE)).take(tile).enumerate()
        {
            let copy = &mut copy[..words];
            if S::WORDS == Words::Numbers {
                of.terms(i + r, block.k0, scratch::numbers_mut(copy));
            } else {
                of.terms(i + r, block.k0, terms);
                // SAFETY: a copy has room for a block's words; instructions by this function's contract.
                unsafe { pack::words_of_row::<L>(S::WORDS, terms, copy) };
            }
            *pointer = copy.as_ptr();
        }
        // SAFETY: each pointer has `words` words, and the tile's rows of the output follow from `out.at` on; the rest
        // by this function's contract.
        unsafe {
            micro::product::<L, S>(tile, words, LeftWords::Rows(&pointers[..tile]), panels.as_ptr(), 16 * words, out);
            out.at = out.at.add(tile * out.stride);
        }
    }
}

/// As [`extend_rows`], where a term's row of the left operand has all output rows side by side. Several tiles are
/// copied at a time, so that each cache line is fetched once.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn extend_columns<L: Lanes, S: Step<L>>(
    left: &Left,
    rows: &Range<usize>,
    block: Block,
    panels: &[u32],
    copies: &mut [u32],
    mut out: Out,
) {
    let words = block.k.div_ceil(S::WORDS.terms());
    let terms = &left.data[block.k0 * left.stride..(block.k0 + block.k) * left.stride];
    for first in rows.clone().step_by(TILES * TILE) {
        let group = first..rows.end.min(first + TILES * TILE);
        // SAFETY: each tile's words were just copied, and its rows of the output follow from `out.at` on; the rest by
        // this function's contract.
        unsafe {
            pack::tiles_of_columns::<L>(terms, left.stride, group.clone(), S::WORDS, copies, COLUMNS_STRIDE);
            for (i, copy) in group.clone().step_by(TILE).zip(copies.chunks_exact(COLUMNS_STRIDE)) {
                let tile = (group.end - i).min(TILE);
                let left = LeftWords::Columns { first: copy.as_ptr(), stride: TILE };
                micro::product::<L, S>(tile, words, left, panels.as_ptr(), 16 * words, out);
                out.at = out.at.add(tile * out.stride);
            }
        }
    }
}

/// Tiles whose columns are copied together.
const TILES: usize = 4;
/// Rows that begin a multiple of so many numbers apart are copied before they are read together.
const CROWDED: usize = 512;
/// From one copied row to the next; a cache line more than the words, so that rows begin in different sets.
const ROW_STRIDE: usize = BLOCK_K_WORDS + 16;
/// From one copied tile of columns to the next; the copy of a tile's last words writes a whole vector.
const COLUMNS_STRIDE: usize = TILE * BLOCK_K_WORDS + 16;
/// Words of the copies of either kind.
const COPIES: usize = TILES * COLUMNS_STRIDE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_s_part_of_the_right_operand_fits_its_block() {
        for n in [1, 31, 80, 192, 256, 576, 768, 1000, 1536, 1600, 4096, 49_152] {
            for k in 1..=2 * BLOCK_K_WORDS {
                for (m, share) in [(1, 1), (24, 4), (576, 8), (8192, 8), (100, 16)] {
                    let columns = cut(Size { m, n, k }, share).1.min(n).next_multiple_of(16);
                    assert!(columns * k.min(BLOCK_K_WORDS) <= BLOCK_WORDS, "{columns} columns of [{k}, {n}]");
                }
            }
        }
    }
}

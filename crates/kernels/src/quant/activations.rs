//! Dynamic quantisation of activations: rows of x as int8, a scale for each block of 32.

use std::sync::OnceLock;

use super::dots::{Dots, dispatch_dots};
use crate::par::{self, SharedMut};
use crate::scratch::{self, Buffer};

/// Numbers that share a scale.
pub const BLOCK: usize = 32;
/// Scales below this are taken as zero, and their blocks with them: the inverse would not be finite.
const LEAST_SCALE: f32 = f32::from_bits((127 - 100) << 23);

/// Rows of x [T, K] for products with any weights; quantised at the first product with quantised ones.
pub struct Activations<'x> {
    x: &'x [f32],
    columns: usize,
    /// Whether products take them as they are, and of the weights the numbers that these stand for.
    whole: bool,
    quantised: OnceLock<Quantised>,
}

/// Quantised rows [T, K]; K is filled up with zeros to whole blocks.
pub(super) struct Quantised {
    blocks: usize,
    /// Words of 4 terms: [T, blocks, 8].
    values: Buffer,
    /// [T, blocks].
    scales: Buffer,
    /// Sums of the first and the second 16 terms of a block: [T, blocks, 2], as bits of i32.
    sums: Buffer,
}

/// Takes the rows of `x` [T, columns]. A block that holds anything not finite gets the scale NaN, which reaches all
/// products with it.
///
/// # Panics
/// If `x` is not whole rows.
pub fn quantise_rows(x: &[f32], columns: usize) -> Activations<'_> {
    assert!(columns > 0 && x.len().is_multiple_of(columns), "x has {} elements, rows have {columns}", x.len());
    Activations { x, columns, whole: false, quantised: OnceLock::new() }
}

/// Takes the rows of `x` [T, columns] for products that quantise nothing: those with the numbers that weights of any
/// type stand for, in f32.
///
/// # Panics
/// As [`quantise_rows`].
pub fn whole_rows(x: &[f32], columns: usize) -> Activations<'_> {
    Activations { whole: true, ..quantise_rows(x, columns) }
}

/// Blocks whose scales are computed together: divisions side by side.
const TOGETHER: usize = 16;

/// # Safety
/// The machine has D's instructions.
#[inline(always)]
unsafe fn quantise_row<D: Dots>(x: &[f32], values: &mut [u8], scales: &mut [f32], sums: &mut [u32]) {
    let parts = values.chunks_mut(TOGETHER * BLOCK).zip(scales.chunks_mut(TOGETHER)).zip(sums.chunks_mut(2 * TOGETHER));
    for (x, ((values, scales), sums)) in x.chunks(TOGETHER * BLOCK).zip(parts) {
        let (whole, rest) = x.as_chunks::<BLOCK>();
        let mut last = [0.0; BLOCK];
        last[..rest.len()].copy_from_slice(rest);
        let blocks = || whole.iter().chain([&last]);
        let mut most = [0; TOGETHER];
        for (most, x) in most.iter_mut().zip(blocks()) {
            // SAFETY: a block's 32 numbers; instructions by this function's contract.
            *most = unsafe { D::greatest_size(x) };
        }
        let mut inverses = [0.0; TOGETHER];
        let mut all_scales = [0.0; TOGETHER];
        for ((inverse, scale), most) in inverses.iter_mut().zip(&mut all_scales).zip(most) {
            let most = f32::from_bits(most);
            (*scale, *inverse) = (most / 127.0, 127.0 / most);
            if *scale < LEAST_SCALE {
                (*scale, *inverse) = (0.0, 0.0);
            }
            if !most.is_finite() {
                (*scale, *inverse) = (f32::NAN, 0.0);
            }
        }
        scales.copy_from_slice(&all_scales[..scales.len()]);
        let outs = values.as_chunks_mut::<BLOCK>().0.iter_mut().zip(sums.as_chunks_mut::<2>().0);
        for ((x, inverse), (values, sums)) in blocks().zip(inverses).zip(outs) {
            if inverse == 0.0 {
                (*values, *sums) = ([0; BLOCK], [0; 2]);
            } else {
                // SAFETY: a block's 32 numbers and bytes; instructions by this function's contract.
                *sums = unsafe { D::round_block(x, inverse, values) };
            }
        }
    }
}

impl Activations<'_> {
    /// T.
    pub fn rows(&self) -> usize {
        self.x.len() / self.columns
    }

    /// K.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Whether they are those of [`whole_rows`].
    pub(super) fn are_whole(&self) -> bool {
        self.whole
    }

    /// As they were given.
    pub fn x(&self) -> &[f32] {
        self.x
    }

    /// All rows, quantised on all threads at the first call.
    pub(super) fn quantised(&self) -> &Quantised {
        self.quantised.get_or_init(|| {
            let mut quantised = Quantised::of_room(self.rows(), self.columns);
            let rows = quantised.rows_mut();
            let per_task = par::rows_per_task(self.rows(), self.columns);
            par::run(self.rows().div_ceil(per_task), |task| {
                for row in task * per_task..self.rows().min((task + 1) * per_task) {
                    // SAFETY: each row is written by one task.
                    unsafe { rows.quantise(row, self.row(row)) };
                }
            });
            quantised
        })
    }

    /// Some of the rows, quantised on this thread.
    pub(super) fn quantised_rows(&self, rows: &[u32]) -> Quantised {
        let mut quantised = Quantised::of_room(rows.len(), self.columns);
        let to = quantised.rows_mut();
        for (i, &row) in rows.iter().enumerate() {
            // SAFETY: `to` borrows what was made above, and one row after the other is written.
            unsafe { to.quantise(i, self.row(row as usize)) };
        }
        quantised
    }

    fn row(&self, row: usize) -> &[f32] {
        &self.x[row * self.columns..][..self.columns]
    }
}

impl Quantised {
    fn of_room(rows: usize, columns: usize) -> Self {
        let blocks = columns.div_ceil(BLOCK);
        Quantised {
            blocks,
            values: scratch::buffer(rows * blocks * BLOCK / 4),
            scales: scratch::buffer(rows * blocks),
            sums: scratch::buffer(rows * blocks * 2),
        }
    }

    fn rows_mut(&mut self) -> RowsMut<'_> {
        RowsMut {
            blocks: self.blocks,
            values: SharedMut::new(&mut self.values),
            scales: SharedMut::new(&mut self.scales),
            sums: SharedMut::new(&mut self.sums),
        }
    }

    pub fn blocks(&self) -> usize {
        self.blocks
    }

    /// Of each row's blocks: terms, scales, sums of the first and the second half as bits of i32.
    pub fn parts(&self) -> (&[[u32; BLOCK / 4]], &[f32], &[[u32; 2]]) {
        (scratch::words(&self.values).as_chunks().0, &self.scales, scratch::words(&self.sums).as_chunks().0)
    }
}

/// Rows to be written, each by one task.
#[derive(Clone, Copy)]
struct RowsMut<'a> {
    blocks: usize,
    values: SharedMut<'a, f32>,
    scales: SharedMut<'a, f32>,
    sums: SharedMut<'a, f32>,
}

impl RowsMut<'_> {
    /// # Safety
    /// Nobody else writes or reads row `row`.
    unsafe fn quantise(&self, row: usize, x: &[f32]) {
        let RowsMut { blocks, values, scales, sums } = self;
        // SAFETY: a row's parts are the row's alone, which nobody else has by this function's contract.
        let (values, scales, sums) = unsafe {
            (
                values.slice(row * blocks * BLOCK / 4, blocks * BLOCK / 4),
                scales.slice(row * blocks, *blocks),
                sums.slice(row * blocks * 2, blocks * 2),
            )
        };
        let (values, sums) = (scratch::bytes_mut(values), scratch::words_mut(sums));
        // SAFETY: the kernel cuts its slices with bounds checked, into arrays of the sizes that are read and written.
        unsafe {
            dispatch_dots!(quantise_row(x: &[f32], values: &mut [u8], scales: &mut [f32], sums: &mut [u32]));
        }
    }
}

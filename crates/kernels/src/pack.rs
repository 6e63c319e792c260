//! Operands as the innermost loops read them. The right one becomes panels of 16 columns, `[k][16]` words each; the
//! left one is read where it is in f32, and turned into words of two terms in bf16.

use crate::lanes::{Lanes, pair_bf16};
use crate::par;

/// A matrix by its elements: `(i, j)` or transposed, with its rows picked by an index or not.
#[derive(Clone, Copy)]
pub(crate) struct Matrix<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    /// Row i of the matrix is row `rows[i]` of the data.
    pub rows: Option<&'a [u32]>,
}

impl<'a> Matrix<'a> {
    /// Row i from column `from`.
    #[inline(always)]
    pub fn row(&self, i: usize, from: usize) -> &'a [f32] {
        let i = self.rows.map_or(i, |rows| rows[i] as usize);
        &self.data[i * self.stride + from..]
    }
}

/// Words of two terms along each row: `out[i][q]` from columns 2q and 2q+1, a missing last term as zero.
pub(crate) fn pairs_along_rows(data: &[f32], columns: usize, out: &mut [u32]) {
    let words = columns.div_ceil(2);
    let block = (16384 / columns).max(1);
    par::chunks_mut(out, block * words, |b, out| {
        let data = &data[b * block * columns..];
        crate::dispatch!(pairs_of_rows(data: &[f32], columns: usize, out: &mut [u32]))
    });
}

#[inline(always)]
unsafe fn pairs_of_rows<L: Lanes>(data: &[f32], columns: usize, out: &mut [u32]) {
    for (row, out) in data.chunks_exact(columns).zip(out.chunks_exact_mut(columns.div_ceil(2))) {
        let whole = columns / 32 * 16;
        for q in (0..whole).step_by(16) {
            // SAFETY: 32 terms make 16 words; instructions as promised.
            unsafe { L::load_pairs(row[2 * q..][..32].as_ptr()).store(out[q..][..16].as_mut_ptr().cast()) };
        }
        for (out, terms) in out[whole..].iter_mut().zip(row[2 * whole..].chunks(2)) {
            *out = pair_bf16(terms[0], *terms.get(1).unwrap_or(&0.0));
        }
    }
}

/// Words of two terms down the columns: `out[q][j]` from rows 2q and 2q+1 of `data[rows, columns]`.
pub(crate) fn pairs_down_columns(data: &[f32], columns: usize, out: &mut [u32]) {
    let block = (16384 / columns).max(1);
    par::chunks_mut(out, block * columns, |b, out| {
        let data = &data[2 * b * block * columns..];
        crate::dispatch!(pairs_of_columns(data: &[f32], columns: usize, out: &mut [u32]))
    });
}

#[inline(always)]
unsafe fn pairs_of_columns<L: Lanes>(data: &[f32], columns: usize, out: &mut [u32]) {
    for (rows, out) in data.chunks(2 * columns).zip(out.chunks_exact_mut(columns)) {
        let (earlier, later) = rows.split_at(columns);
        // SAFETY: instructions as promised.
        unsafe { pair_rows::<L>(earlier, (!later.is_empty()).then_some(later), out) };
    }
}

/// Words of two terms from two rows of the same length, the second of which may be missing.
#[inline(always)]
unsafe fn pair_rows<L: Lanes>(earlier: &[f32], later: Option<&[f32]>, out: &mut [u32]) {
    let whole = earlier.len() / 16 * 16;
    for j in (0..whole).step_by(16) {
        // SAFETY: 16 columns; instructions as promised.
        unsafe {
            let load = |row: &[f32]| L::load(row[j..][..16].as_ptr());
            let lower = match later {
                Some(later) => load(later),
                None => L::splat(0.0),
            };
            load(earlier).pair_with(lower).store(out[j..][..16].as_mut_ptr().cast());
        }
    }
    for j in whole..earlier.len() {
        out[j] = pair_bf16(earlier[j], later.map_or(0.0, |later| later[j]));
    }
}

/// Part of a right operand: `k` rows (terms) from `k0` by `columns` columns from `j0`.
#[derive(Clone, Copy)]
pub(crate) struct Block {
    pub k0: usize,
    pub k: usize,
    pub j0: usize,
    pub columns: usize,
}

/// f32 panels of a matrix whose rows are the terms.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn panels_of_rows<L: Lanes>(b: Matrix, block: Block, out: &mut [u32]) {
    for k in 0..block.k {
        let row = &b.row(block.k0 + k, block.j0)[..block.columns];
        for (j, columns) in row.chunks(16).enumerate() {
            let out = out[16 * (j * block.k + k)..][..16].as_mut_ptr().cast();
            // SAFETY: as many columns as the chunk has, sixteen words of output.
            unsafe {
                if columns.len() == 16 {
                    L::load(columns.as_ptr()).store(out);
                } else {
                    L::load_first(columns.as_ptr(), columns.len()).store(out);
                }
            }
        }
    }
}

/// bf16 panels of a matrix whose rows are the terms.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn paired_panels_of_rows<L: Lanes>(b: Matrix, block: Block, out: &mut [u32]) {
    let words = block.k.div_ceil(2);
    for q in 0..words {
        let row = |k: usize| &b.row(block.k0 + k, block.j0)[..block.columns];
        let (earlier, later) = (row(2 * q), (2 * q + 1 < block.k).then(|| row(2 * q + 1)));
        for j in (0..block.columns).step_by(16) {
            let end = (j + 16).min(block.columns);
            let out = &mut out[j * words + 16 * q..][..16];
            out[end - j..].fill(0);
            // SAFETY: the caller's promise.
            unsafe { pair_rows::<L>(&earlier[j..end], later.map(|later| &later[j..end]), &mut out[..end - j]) };
        }
    }
}

/// Panels of a matrix whose columns are the terms (weights as they are stored, read forward).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn panels_of_columns<L: Lanes>(b: Matrix, block: Block, paired: bool, out: &mut [u32]) {
    let (terms, words) = if paired { (2, block.k.div_ceil(2)) } else { (1, block.k) };
    for j in (0..block.columns).step_by(16) {
        let n = (block.columns - j).min(16);
        let out = &mut out[j * words..][..16 * words];
        let squares = if n == 16 { block.k / (16 * terms) } else { 0 };
        for square in 0..squares {
            let row = |i| &b.row(block.j0 + j + i, block.k0)[square * 16 * terms..][..16 * terms];
            // SAFETY: rows have as many terms, the output as many words, as are touched.
            unsafe {
                let mut rows = [L::splat(0.0); 16];
                for (i, lanes) in rows.iter_mut().enumerate() {
                    *lanes = if paired { L::load_pairs(row(i).as_ptr()) } else { L::load(row(i).as_ptr()) };
                }
                for (q, column) in L::transpose(rows).into_iter().enumerate() {
                    column.store(out[(square * 16 + q) * 16..][..16].as_mut_ptr().cast());
                }
            }
        }
        for q in 16 * squares..words {
            let out = &mut out[16 * q..][..16];
            out.fill(0);
            for (i, out) in out[..n].iter_mut().enumerate() {
                let row = &b.row(block.j0 + j + i, block.k0)[..block.k];
                *out =
                    if paired { pair_bf16(row[2 * q], *row.get(2 * q + 1).unwrap_or(&0.0)) } else { row[q].to_bits() };
            }
        }
    }
}

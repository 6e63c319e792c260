//! Operands as the innermost loops read them. The right one becomes panels of 16 columns, `[k][16]` words each; the
//! left one is read where it is in f32, and turned into other [`Words`] in bf16.

use crate::lanes::{Lanes, pair_bf16, to_bf16};
use crate::micro::{self, Words};
use std::ops::Range;

/// Rows of the left operand that are read together.
pub(crate) const TILE: usize = 12;
/// How many rows ahead of those that are copied the next ones are fetched, where little of each is copied.
const ROWS_AHEAD: usize = 24;
/// Words along k that are packed together: each of a row's panels gets so many at a time, because the same place of
/// many panels is in few sets of a cache.
const STRIP: usize = 8;

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

/// Words of a row's terms, a missing last one of a pair as zero.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn words_of_row<L: Lanes>(kind: Words, row: &[f32], out: &mut [u32]) {
    let (whole, rest) = row.split_at(row.len() / (16 * kind.terms()) * 16 * kind.terms());
    let (whole_words, rest_words) = out.split_at_mut(whole.len() / kind.terms());
    let whole = whole.chunks_exact(16 * kind.terms());
    for (terms, out) in whole.zip(whole_words.as_chunks_mut::<16>().0) {
        // SAFETY: as many terms as make 16 words; instructions by this function's contract.
        unsafe { vector_of::<L>(kind, terms.as_ptr()).store(out.as_mut_ptr().cast()) };
    }
    for (out, terms) in rest_words.iter_mut().zip(rest.chunks(kind.terms())) {
        *out = word_of(kind, terms, 0.0);
    }
}

/// Sixteen words of consecutive terms.
///
/// # Safety
/// Sixteen words' terms are at `terms`; the machine has the instruction set of `L`.
#[inline(always)]
unsafe fn vector_of<L: Lanes>(kind: Words, terms: *const f32) -> L {
    // SAFETY: by this function's contract.
    unsafe {
        match kind {
            Words::Numbers => L::load(terms),
            Words::Rounded => L::load(terms).round_bf16(),
            Words::Pairs => L::load_pairs(terms),
        }
    }
}

/// A word of its terms, with `pad` for the later one of a pair if it is missing.
#[inline(always)]
fn word_of(kind: Words, terms: &[f32], pad: f32) -> u32 {
    match kind {
        Words::Numbers => terms[0].to_bits(),
        Words::Rounded => to_bf16(terms[0]).to_bits(),
        Words::Pairs => pair_bf16(terms[0], *terms.get(1).unwrap_or(&pad)),
    }
}

/// What is missing on the right. Its product with the zero that is missing on the left is −0, which added to a sum, be
/// it −0, leaves it as it is.
const PAD: f32 = -0.0;

/// Columns of a left operand whose rows, `stride` numbers each, are the terms, in tiles: `out[tile][word][12]`, from
/// one tile to the next `tile_words`: at least 12 a word and 4 more.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn tiles_of_columns<L: Lanes>(
    terms: &[f32],
    stride: usize,
    columns: Range<usize>,
    kind: Words,
    out: &mut [u32],
    tile_words: usize,
) {
    for (q, rows) in terms.chunks(kind.terms() * stride).enumerate() {
        let (earlier, later) = rows.split_at(stride);
        for term in rows.chunks(stride) {
            for j in columns.clone().step_by(16) {
                L::prefetch_read(term.as_ptr().wrapping_add(ROWS_AHEAD * stride + j));
            }
        }
        for (tile, j) in columns.clone().step_by(TILE).enumerate() {
            let out = &mut out[tile * tile_words + q * TILE..][..16];
            // SAFETY: up to sixteen of the row's numbers, sixteen words; instructions by contract. What is written
            // beyond the tile's twelve is written over by its next word.
            unsafe {
                let words = vector_at::<L>(earlier, j, 0.0);
                let words = match kind {
                    Words::Numbers => words,
                    Words::Rounded => words.round_bf16(),
                    Words::Pairs => words.pair_with(vector_at::<L>(later, j, 0.0)),
                };
                words.store(out.as_mut_ptr().cast());
            }
        }
    }
}

/// Up to sixteen numbers of a row from column `j` on, zeros behind them; `pad` for a row that is empty, as those beyond
/// a block's terms are.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn vector_at<L: Lanes>(row: &[f32], j: usize, pad: f32) -> L {
    // SAFETY: what the row has of sixteen columns; instructions by contract.
    unsafe {
        match row.get(j..) {
            Some(columns) if !columns.is_empty() => micro::load::<L>(columns.as_ptr(), columns.len()),
            _ => L::splat(pad),
        }
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

/// Panels of a matrix whose rows are the terms.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn panels_of_rows<L: Lanes>(b: Matrix, block: Block, kind: Words, out: &mut [u32]) {
    let (terms, words) = (kind.terms(), block.k.div_ceil(kind.terms()));
    let row = |k: usize| &b.row(block.k0 + k, block.j0)[..block.columns];
    for first in (0..words).step_by(STRIP) {
        let (k, words_here) = (first * terms, STRIP.min(words - first));
        let mut rows = [[0.0; 0].as_slice(); 2 * STRIP];
        let mut ahead = [std::ptr::null(); 2 * STRIP];
        for (r, (rows, ahead)) in rows.iter_mut().zip(&mut ahead).enumerate().take(terms * STRIP) {
            *rows = if k + r < block.k { row(k + r) } else { &[] };
            *ahead = row((k + r + terms * STRIP).min(block.k - 1)).as_ptr();
        }
        for j in (0..block.columns).step_by(16) {
            let out = out[j * words + 16 * first..][..16 * words_here].as_chunks_mut::<16>().0;
            for (w, out) in out.iter_mut().enumerate() {
                for ahead in &ahead[terms * w..terms * (w + 1)] {
                    L::prefetch_read(ahead.wrapping_add(j));
                }
                // SAFETY: sixteen words; instructions by contract.
                unsafe {
                    let row = |at: usize| rows[terms * w + at];
                    let words = match kind {
                        Words::Numbers => vector_at::<L>(row(0), j, PAD),
                        Words::Rounded => vector_at::<L>(row(0), j, PAD).round_bf16(),
                        Words::Pairs => vector_at::<L>(row(0), j, PAD).pair_with(vector_at::<L>(row(1), j, PAD)),
                    };
                    words.store(out.as_mut_ptr().cast());
                }
            }
        }
    }
}

/// Panels of a matrix whose columns are the terms (weights as they are stored, read forward).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
pub(crate) unsafe fn panels_of_columns<L: Lanes>(b: Matrix, block: Block, kind: Words, out: &mut [u32]) {
    let (terms, words) = (kind.terms(), block.k.div_ceil(kind.terms()));
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
                    for half in 0..terms {
                        L::prefetch_read(row(i).as_ptr().wrapping_add(16 * b.stride + 16 * half));
                    }
                    *lanes = vector_of::<L>(kind, row(i).as_ptr());
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
                *out = word_of(kind, &row[terms * q..], PAD);
            }
        }
    }
}

//! Operands as the innermost loops read them. The right one becomes panels of 16 columns, `[k][16]` words each; the left one is
//! read where it is in f32, and turned into words of two terms in bf16.

use crate::lanes::Lanes;
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

/// The bits of the nearest bf16 in the upper half, the lower half unspecified; ties to even, subnormals to zero.
#[inline(always)]
fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let rounded = if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { rounded };
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

/// Two consecutive terms of a chain as a word.
#[inline(always)]
pub(crate) fn pair(earlier: f32, later: f32) -> u32 {
    (round_bf16(earlier) & 0xffff_0000) | (round_bf16(later) >> 16)
}

/// Words of two terms along each row: `out[i][q]` from columns 2q and 2q+1, a missing last term as zero.
pub(crate) fn pairs_along_rows(data: &[f32], columns: usize, out: &mut [u32]) {
    let words = columns.div_ceil(2);
    let block = (16384 / columns).max(1);
    par::chunks_mut(out, block * words, |b, out| {
        for (i, out) in out.chunks_exact_mut(words).enumerate() {
            pairs_of_row(&data[(b * block + i) * columns..][..columns], out);
        }
    });
}

fn pairs_of_row(row: &[f32], out: &mut [u32]) {
    let (whole, last) = row.as_chunks::<2>();
    for (out, [a, b]) in out.iter_mut().zip(whole) {
        *out = pair(*a, *b);
    }
    if let [a] = last {
        out[whole.len()] = pair(*a, 0.0);
    }
}

/// Words of two terms down the columns: `out[q][j]` from rows 2q and 2q+1 of `data[rows, columns]`.
pub(crate) fn pairs_down_columns(data: &[f32], columns: usize, out: &mut [u32]) {
    let rows = data.len() / columns;
    let block = (16384 / columns).max(1);
    par::chunks_mut(out, block * columns, |b, out| {
        for (q, out) in out.chunks_exact_mut(columns).enumerate() {
            let first = 2 * (b * block + q);
            let earlier = &data[first * columns..][..columns];
            let later = (first + 1 < rows).then(|| &data[(first + 1) * columns..][..columns]);
            pair_rows(earlier, later, out);
        }
    });
}

#[inline(always)]
fn pair_rows(earlier: &[f32], later: Option<&[f32]>, out: &mut [u32]) {
    match later {
        Some(later) => out.iter_mut().zip(earlier.iter().zip(later)).for_each(|(out, (a, b))| *out = pair(*a, *b)),
        None => out.iter_mut().zip(earlier).for_each(|(out, a)| *out = pair(*a, 0.0)),
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
#[inline(always)]
pub(crate) fn paired_panels_of_rows(b: Matrix, block: Block, out: &mut [u32]) {
    let words = block.k.div_ceil(2);
    for q in 0..words {
        let earlier = b.row(block.k0 + 2 * q, block.j0);
        let later = (2 * q + 1 < block.k).then(|| b.row(block.k0 + 2 * q + 1, block.j0));
        for j in (0..block.columns).step_by(16) {
            let n = (block.columns - j).min(16);
            let out = &mut out[j * words + 16 * q..][..16];
            if n == 16 {
                pair_rows(&earlier[j..j + 16], later.map(|later| &later[j..j + 16]), out);
            } else {
                out.fill(0);
                pair_rows(&earlier[j..j + n], later.map(|later| &later[j..j + n]), &mut out[..n]);
            }
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
                let rows = std::array::from_fn(|i| if paired { pairs(row(i)) } else { L::load(row(i).as_ptr()) });
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
                *out = if paired { pair(row[2 * q], *row.get(2 * q + 1).unwrap_or(&0.0)) } else { row[q].to_bits() };
            }
        }
    }
}

/// Sixteen words of two terms, as lanes.
#[inline(always)]
unsafe fn pairs<L: Lanes>(terms: &[f32]) -> L {
    let words: [u32; 16] = std::array::from_fn(|i| pair(terms[2 * i], terms[2 * i + 1]));
    // SAFETY: sixteen words.
    unsafe { L::load(words.as_ptr().cast()) }
}

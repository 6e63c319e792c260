//! Products with weights in f32, f16 or bf16, widened as they are read: the chains of
//! [`gemm`](crate::gemm) in f32, from weights that are packed once.
//!
//! A panel is `[K][16]` numbers of the file's width. Several panels are read side by side where there are few rows of
//! x, since a chain waits for its own last term.

use super::blocks::BlockType;
use super::dots::{Dots, dispatch_dots};
use super::kernel::Out;
use super::pack::ROWS;
use crate::lanes::Lanes;
use crate::scratch;

/// Rows of a wide matrix into a panel of zeros.
pub(super) fn pack(block_type: BlockType, rows: &[u8], row_bytes: usize, panel: &mut [u8]) {
    let (size, mut done) = (block_type.bytes(), 0);
    if rows.len() == ROWS * row_bytes {
        done = row_bytes / 16 * 16;
        let to = &mut panel[..ROWS * done];
        // SAFETY: the kernel checks that the rows are sixteen and not shorter than what they fill.
        unsafe { dispatch_dots!(turn(rows: &[u8], row_bytes: usize, size: usize, to: &mut [u8])) };
    }
    match size {
        2 => pack_numbers::<2>(rows, row_bytes, done, panel),
        _ => pack_numbers::<4>(rows, row_bytes, done, panel),
    }
}

/// As many numbers of sixteen rows as there are 16 bytes.
///
/// # Safety
/// The machine has D's instructions.
#[inline(always)]
unsafe fn turn<D: Dots>(rows: &[u8], row_bytes: usize, size: usize, panel: &mut [u8]) {
    assert!(rows.len() == ROWS * row_bytes && panel.len() <= rows.len(), "sixteen rows");
    for (i, panel) in panel.chunks_exact_mut(ROWS * 16).enumerate() {
        // SAFETY: each row has 16 bytes here, since the panel is no longer than the rows (asserted).
        let words = unsafe { D::columns(rows.as_ptr().add(16 * i), row_bytes) };
        for (words, panel) in words.iter().zip(panel.chunks_exact_mut(ROWS * 4)) {
            if size == 2 {
                let (even, odd) = panel.split_at_mut(ROWS * 2);
                for (lane, word) in words.iter().enumerate() {
                    even[2 * lane..][..2].copy_from_slice(&(*word as u16).to_le_bytes());
                    odd[2 * lane..][..2].copy_from_slice(&((word >> 16) as u16).to_le_bytes());
                }
            } else {
                for (bytes, word) in panel.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                    *bytes = word.to_le_bytes();
                }
            }
        }
    }
}

/// From byte `done` of each row on.
fn pack_numbers<const BYTES: usize>(rows: &[u8], row_bytes: usize, done: usize, panel: &mut [u8]) {
    let panel = panel[ROWS * done..].as_chunks_mut::<BYTES>().0.as_chunks_mut::<ROWS>().0;
    for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (sixteen, number) in panel.iter_mut().zip(row[done..].as_chunks::<BYTES>().0) {
            sixteen[lane] = *number;
        }
    }
}

/// One row of a panel as it is in the file.
pub(super) fn unpack_row(block_type: BlockType, panel: &[u8], lane: usize, out: &mut [f32]) {
    let size = block_type.bytes();
    for (out, sixteen) in out.iter_mut().zip(panel.chunks_exact(ROWS * size)) {
        super::blocks::decode_block(block_type, &sixteen[lane * size..][..size], std::slice::from_mut(out));
    }
}

/// Lays out rows of x as a tile: [K][rows].
#[inline(always)]
pub(super) fn lay_tile(x: &[f32], columns: usize, rows: &[u32], tile: &mut [u32]) {
    let m = rows.len();
    let row = |row: &u32| &scratch::words(x)[*row as usize * columns..][..columns];
    let (fours, rest) = rows.as_chunks::<4>();
    for (i, four) in fours.iter().enumerate() {
        let [p, q, r, s] = four.each_ref().map(row);
        // Four terms of four rows, turned.
        let blocks = p.as_chunks().0.iter().zip(q.as_chunks().0).zip(r.as_chunks().0).zip(s.as_chunks().0);
        for ((((p, q), r), s), terms) in blocks.zip(tile.chunks_exact_mut(4 * m)) {
            for (terms, column) in terms.chunks_exact_mut(m).zip(turned([*p, *q, *r, *s])) {
                terms[4 * i..][..4].copy_from_slice(&column);
            }
        }
        for k in columns / 4 * 4..columns {
            tile[k * m + 4 * i..][..4].copy_from_slice(&[p[k], q[k], r[k], s[k]]);
        }
    }
    for (i, x) in rest.iter().map(row).enumerate() {
        for (terms, x) in tile.chunks_exact_mut(m).zip(x) {
            terms[4 * fours.len() + i] = *x;
        }
    }
}

/// Rows as columns.
#[inline(always)]
fn turned([p, q, r, s]: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    [[p[0], q[0], r[0], s[0]], [p[1], q[1], r[1], s[1]], [p[2], q[2], r[2], s[2]], [p[3], q[3], r[3], s[3]]]
}

/// A width of numbers.
pub(super) trait Width {
    const BYTES: usize;

    /// Sixteen numbers.
    ///
    /// # Safety
    /// They are there, and the machine has D's instructions.
    unsafe fn load<D: Dots>(p: *const u8) -> D::Lanes;
}

pub(super) struct F32;
pub(super) struct F16;
pub(super) struct Bf16;

impl Width for F32 {
    const BYTES: usize = 4;

    #[inline(always)]
    unsafe fn load<D: Dots>(p: *const u8) -> D::Lanes {
        // SAFETY: sixteen numbers at `p`, and the instructions, by the trait's contract.
        unsafe { D::Lanes::load(p.cast()) }
    }
}

impl Width for F16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<D: Dots>(p: *const u8) -> D::Lanes {
        // SAFETY: sixteen numbers at `p`, and the instructions, by the trait's contract.
        unsafe { D::halves(p.cast()) }
    }
}

impl Width for Bf16 {
    const BYTES: usize = 2;

    #[inline(always)]
    unsafe fn load<D: Dots>(p: *const u8) -> D::Lanes {
        // SAFETY: sixteen numbers at `p`, and the instructions, by the trait's contract.
        unsafe { D::upper_halves(p.cast()) }
    }
}

/// Panels as f32, in `to`; where they begin.
///
/// # Safety
/// There are as many numbers at `from`, in whole panels, and the machine has D's instructions.
#[inline(always)]
pub(super) unsafe fn widen<D: Dots, W: Width>(from: *const u8, to: &mut [f32]) -> *const u8 {
    for (i, sixteen) in to.as_chunks_mut::<ROWS>().0.iter_mut().enumerate() {
        // SAFETY: sixteen numbers for each of `to`, by this function's contract.
        unsafe { W::load::<D>(from.add(i * ROWS * W::BYTES)).store(sixteen.as_mut_ptr()) };
    }
    to.as_ptr().cast()
}

/// How far ahead of the terms in use few rows of x fetch them.
const AHEAD: usize = 2048;

/// Products of the `m` rows of a tile with `panels` panels that lie one after the other; `out` is the first one's
/// place, with all columns that are left.
///
/// # Safety
/// The machine has D's instructions; panels and tile are of `k` terms, and the outputs exist.
#[inline(always)]
pub(super) unsafe fn panels<D: Dots, W: Width>(
    m: usize,
    k: usize,
    mut panel: *const u8,
    panels: usize,
    tile: *const f32,
    mut out: Out,
) {
    let mut left = panels;
    while left > 0 {
        // SAFETY: each step goes on by the panels that it took, of those that exist by this function's contract.
        unsafe {
            let taken = match m {
                12 => side_by_side::<D, W, 12, 2>(k, panel, left, tile, out),
                8 => side_by_side::<D, W, 8, 2>(k, panel, left, tile, out),
                4 if D::TILE > 4 => side_by_side::<D, W, 4, 4>(k, panel, left, tile, out),
                4 => side_by_side::<D, W, 4, 1>(k, panel, left, tile, out),
                3 if D::TILE > 4 => side_by_side::<D, W, 3, 4>(k, panel, left, tile, out),
                3 => side_by_side::<D, W, 3, 1>(k, panel, left, tile, out),
                2 => side_by_side::<D, W, 2, 2>(k, panel, left, tile, out),
                _ => side_by_side::<D, W, 1, 4>(k, panel, left, tile, out),
            };
            panel = panel.add(taken * ROWS * k * W::BYTES);
            out.at = out.at.wrapping_add(taken * ROWS);
            out.columns = out.columns.saturating_sub(taken * ROWS);
            left -= taken;
        }
    }
}

/// `V` panels, or two or one where fewer are left; says how many.
///
/// # Safety
/// As for [`panels`], with `left` panels left.
#[inline(always)]
unsafe fn side_by_side<D: Dots, W: Width, const M: usize, const V: usize>(
    k: usize,
    panel: *const u8,
    left: usize,
    tile: *const f32,
    out: Out,
) -> usize {
    if M > D::TILE {
        return left;
    }
    // SAFETY: no more panels are taken than are left.
    unsafe {
        if left >= V {
            chains::<D, W, M, V>(k, panel, tile, out);
            V
        } else if left >= 2 && V > 2 {
            chains::<D, W, M, 2>(k, panel, tile, out);
            2
        } else {
            chains::<D, W, M, 1>(k, panel, tile, out);
            1
        }
    }
}

/// # Safety
/// As for [`panels`], with V panels left.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // tiles are indexed as the formula is written
unsafe fn chains<D: Dots, W: Width, const M: usize, const V: usize>(
    k: usize,
    panel: *const u8,
    tile: *const f32,
    out: Out,
) {
    let step = ROWS * W::BYTES;
    // SAFETY: k terms of V panels and M rows exist by the contract of `panels`.
    unsafe {
        let mut y = [[D::Lanes::splat(0.0); V]; M];
        for k0 in 0..k {
            let at = |v: usize| panel.add((v * k + k0) * step);
            if M <= 4 && (W::BYTES == 4 || k0 % 2 == 0) {
                for v in 0..V {
                    D::prefetch(at(v).wrapping_add(AHEAD));
                }
            }
            let mut w = [D::Lanes::splat(0.0); V];
            for v in 0..V {
                w[v] = W::load::<D>(at(v));
            }
            for i in 0..M {
                let x = D::Lanes::splat(tile.add(k0 * M + i).read());
                for v in 0..V {
                    y[i][v] = x.fma(w[v], y[i][v]);
                }
            }
        }
        for i in 0..M {
            for v in 0..V {
                let at = out.at.add(i * out.stride + v * ROWS);
                let columns = out.columns - v * ROWS;
                if columns >= ROWS { y[i][v].store(at) } else { y[i][v].store_first(at, columns) }
            }
        }
    }
}

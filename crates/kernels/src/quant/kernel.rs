//! The innermost loops: a tile of a few rows of x by a panel of 16 rows of w, block after block.

use super::activations::{BLOCK, Quantised};
use super::blocks::unit;
use super::codebooks::Codes;
use super::dots::{Dots, TURNS, dispatch_dots};
use super::pack::{Form, Panel, ROWS};
use crate::lanes::Lanes;

/// Rows of x that tiles have, the most first; an instruction set uses those up to its [`Dots::TILE`].
const TILES: [usize; 6] = [12, 8, 4, 3, 2, 1];

/// Rows of the next tile, of `left` that are left.
pub(super) fn tile_rows(left: usize, most: usize) -> usize {
    TILES.into_iter().find(|&rows| rows <= left.min(most)).unwrap_or(0)
}

/// What a block of a row of x takes in a tile, in words.
pub(super) fn block_words(form: Form) -> usize {
    let sums = if form.minima { 2 * form.halves } else { form.halves };
    sums + 1 + BLOCK / 4
}

/// Lays out rows of x as a tile: for each block the starts of the whole sums (−zero·Σa) of each half and row, the
/// scales of each row, the scaled sums d·Σa of each half and row if there are minima, and the terms of each row.
pub(super) fn lay_tile(x: &Quantised, rows: &[u32], form: Form, zero: u8, tile: &mut [u32]) {
    match (form.halves, form.minima) {
        (1, false) => lay_blocks::<1, false>(x, rows, (zero, unit(form.shift)), tile),
        (1, true) => lay_blocks::<1, true>(x, rows, (zero, unit(form.shift)), tile),
        (2, false) => lay_blocks::<2, false>(x, rows, (zero, unit(form.shift)), tile),
        _ => lay_blocks::<2, true>(x, rows, (zero, unit(form.shift)), tile),
    }
}

fn lay_blocks<const HALVES: usize, const MINIMA: bool>(
    x: &Quantised,
    rows: &[u32],
    (zero, unit): (u8, f32),
    tile: &mut [u32],
) {
    let m = rows.len();
    let sums_words = if MINIMA { HALVES * m } else { 0 };
    let (all_values, all_scales, all_sums) = x.parts();
    for (block, words) in tile.chunks_exact_mut((HALVES + 1 + BLOCK / 4) * m + sums_words).enumerate() {
        if block >= x.blocks() {
            words.fill(0); // a record goes on where a row has ended
            continue;
        }
        let (starts, words) = words.split_at_mut(HALVES * m);
        let (scales, words) = words.split_at_mut(m);
        let (sums, terms) = words.split_at_mut(sums_words);
        for ((i, &row), terms) in rows.iter().enumerate().zip(terms.as_chunks_mut().0) {
            let at = row as usize * x.blocks() + block;
            let (scale, halves) = (all_scales[at], all_sums[at].map(|sum| sum as i32));
            let halves = if HALVES == 1 { [halves[0] + halves[1], 0] } else { halves };
            for (h, &sum) in halves[..HALVES].iter().enumerate() {
                starts[h * m + i] = (-i32::from(zero) * sum) as u32;
                if MINIMA {
                    sums[h * m + i] = (scale * sum as f32).to_bits();
                }
            }
            scales[i] = (scale * unit).to_bits();
            *terms = all_values[at];
        }
    }
}

/// A tile's place in the output.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub at: *mut f32,
    /// From one row of x to the next.
    pub stride: usize,
    /// Rows of w that exist, from the panel's first on.
    pub columns: usize,
}

/// How far ahead of the terms in use a lone row of x fetches them.
const AHEAD: usize = 4096;
/// The same of scales.
const SCALES_AHEAD: usize = 1024;

/// Products of the `m` rows of a tile with a panel.
///
/// # Safety
/// The machine has D's instructions; the panel and the tile have `records` records of the form that the constants
/// name, and the outputs exist.
#[inline(always)]
pub(super) unsafe fn panel<
    D: Dots,
    const BITS: usize,
    const HALVES: usize,
    const MINIMA: bool,
    const FACTORS: bool,
    const CODES: usize,
>(
    m: usize,
    records: usize,
    panel: Panel,
    tile: *const u32,
    out: Out,
) {
    // SAFETY: each arm has the m that it matches as its constant; panel, tile and outputs go on as they came.
    unsafe {
        match m {
            12 => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 12>(records, panel, tile, out),
            8 => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 8>(records, panel, tile, out),
            4 => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 4>(records, panel, tile, out),
            3 => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 3>(records, panel, tile, out),
            2 => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 2>(records, panel, tile, out),
            _ => rows::<D, BITS, HALVES, MINIMA, FACTORS, CODES, 1>(records, panel, tile, out),
        }
    }
}

/// # Safety
/// As for [`panel`], of a tile of M rows.
#[inline(always)]
unsafe fn rows<
    D: Dots,
    const BITS: usize,
    const HALVES: usize,
    const MINIMA: bool,
    const FACTORS: bool,
    const CODES: usize,
    const M: usize,
>(
    records: usize,
    panel: Panel,
    mut tile: *const u32,
    out: Out,
) {
    if M > D::TILE {
        return;
    }
    let codes = codes(CODES);
    let form = Form { bits: BITS, halves: HALVES, minima: MINIMA, factors: FACTORS, zero: 0, codes, shift: 0 };
    let Panel { mut terms, mut scales } = panel;
    // SAFETY: records follow each other in terms, scales and tile, and there are `records` of them by the contract of
    // `panel`.
    unsafe {
        let mut y = [D::Lanes::splat(0.0); M];
        for _ in 0..records {
            let scale = if CODES == 2 { D::upper_halves(scales.cast()) } else { D::halves(scales.cast()) };
            let minimum = if MINIMA { D::halves(scales.add(2 * ROWS).cast()) } else { scale };
            let factors = scales.add(if MINIMA { 4 * ROWS } else { 2 * ROWS }).cast::<i8>();
            for b in 0..form.blocks() {
                let at = |kind: usize, h: usize| factors.add(((kind * form.blocks() + b) * HALVES + h) * ROWS);
                let scale = |h| if FACTORS { scale.mul(D::factors(at(0, h))) } else { scale };
                let minimum = |h| if FACTORS { minimum.mul(D::factors(at(1, h))) } else { minimum };
                if M == 1 {
                    D::prefetch(scales.wrapping_add(SCALES_AHEAD));
                    for line in 0..form.term_bytes() / 64 {
                        D::prefetch(terms.wrapping_add(AHEAD + 64 * line));
                    }
                }
                let w = unpack::<D, BITS, CODES>(terms);
                for h in 0..HALVES {
                    half::<D, BITS, HALVES, MINIMA, CODES, M>(&mut y, &w, scale(h), minimum(h), tile, h);
                }
                terms = terms.add(form.term_bytes());
                tile = tile.add(M * block_words(form));
            }
            scales = scales.add(form.scale_bytes());
        }
        for (i, y) in y.into_iter().enumerate() {
            let at = out.at.add(i * out.stride);
            if out.columns >= ROWS { y.store(at) } else { y.store_first(at, out.columns) }
        }
    }
}

/// Extends the chains by half `h` of a block, or by all of it where it has one group.
///
/// # Safety
/// As for [`panel`]; `tile` is the block's place in it.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // tiles are indexed as the formula is written
unsafe fn half<
    D: Dots,
    const BITS: usize,
    const HALVES: usize,
    const MINIMA: bool,
    const CODES: usize,
    const M: usize,
>(
    y: &mut [D::Lanes; M],
    w: &[D::Bytes; 8],
    scale: D::Lanes,
    minimum: D::Lanes,
    tile: *const u32,
    h: usize,
) {
    // SAFETY: a block's words lie in the tile as `lay_tile` has laid them.
    unsafe {
        let starts = tile.cast::<i32>().add(h * M);
        let scales = tile.cast::<f32>().add(HALVES * M);
        let minimum_sums = scales.add(M + h * M);
        let a = scales.add(M + if MINIMA { HALVES * M } else { 0 }).cast::<i8>();
        let words = 8 / HALVES;
        for turn in (0..M).step_by(TURNS) {
            let mut sums = [D::sums(starts.add(turn)); TURNS];
            for i in 1..TURNS {
                if turn + i < M {
                    sums[i] = D::sums(starts.add(turn + i));
                }
            }
            let of_rows = a.add(turn * BLOCK + 4 * h * words);
            let w = &w[h * words..(h + 1) * words];
            match CODES {
                1 => D::dots::<8>(&mut sums, M - turn, w, of_rows),
                2 => D::dots::<5>(&mut sums, M - turn, w, of_rows), // entries are 0 to 24
                _ => D::dots::<BITS>(&mut sums, M - turn, w, of_rows),
            }
            for i in 0..TURNS {
                if turn + i < M {
                    let scale = scale.mul(D::Lanes::splat(scales.add(turn + i).read()));
                    let chain = &mut y[turn + i];
                    *chain = D::floats(sums[i]).fma(scale, *chain);
                    if MINIMA {
                        let sum = D::Lanes::splat(minimum_sums.add(turn + i).read());
                        *chain = minimum.fma(sum, *chain);
                    }
                }
            }
        }
    }
}

/// The codebook of a form's constant.
const fn codes(codes: usize) -> Codes {
    match codes {
        0 => Codes::None,
        1 => Codes::Iq4,
        _ => Codes::E2m1,
    }
}

/// The eight words of a block, a byte for each term.
///
/// # Safety
/// The machine has D's instructions, and a block's terms of BITS bits are at `terms`.
#[inline(always)]
unsafe fn unpack<D: Dots, const BITS: usize, const CODES: usize>(terms: *const u8) -> [D::Bytes; 8] {
    // SAFETY: as many vectors as the bits of a block fill.
    unsafe {
        let mut w = [D::bytes(terms); 8];
        if BITS == 8 {
            for (g, w) in w.iter_mut().enumerate() {
                *w = D::bytes(terms.add(64 * g));
            }
            return w;
        }
        for g in 0..4 {
            (w[g], w[g + 4]) = D::nibbles(D::bytes(terms.add(64 * g)));
        }
        if CODES > 0 {
            for w in &mut w {
                *w = D::entries(*w, &const { codes(CODES).unsigned() });
            }
        }
        if BITS == 5 {
            let plane = D::bytes(terms.add(256));
            for (g, w) in w.iter_mut().enumerate() {
                *w = D::with_fifth(*w, plane, g);
            }
        } else if BITS == 6 {
            for (g, w) in w.iter_mut().enumerate() {
                *w = D::with_sixth(*w, D::bytes(terms.add(256 + 64 * (g / 4))), g % 4);
            }
        }
        w
    }
}

/// Products of [`peak`], of 64 terms each, all its sums together.
const PEAK_PRODUCTS: usize = 3 << 18;

/// Operations of a call of [`peak`] with so many sums.
pub(crate) fn peak_ops(sums: usize) -> usize {
    PEAK_PRODUCTS / sums * sums * 64 * 2
}

/// As many products of whole numbers as there can be, on registers alone, in so many independent sums: 4, 6 or 12.
pub(crate) fn peak(sums: usize) {
    let terms = &std::hint::black_box([3; 64]);
    // SAFETY: 64 bytes are one vector of terms, and four of them what each is multiplied with.
    unsafe { dispatch_dots!(peak_rounds(terms: &[u8; 64], sums: usize)) };
}

/// # Safety
/// The machine has D's instructions.
#[inline(always)]
unsafe fn peak_rounds<D: Dots>(terms: &[u8; 64], sums: usize) {
    // SAFETY: instructions by this function's contract.
    unsafe {
        match sums {
            12 => some_sums::<D, 12>(terms),
            6 => some_sums::<D, 6>(terms),
            4 => some_sums::<D, 4>(terms),
            _ => unreachable!("{sums} sums"),
        }
    }
}

/// # Safety
/// As for [`peak_rounds`].
#[inline(always)]
unsafe fn some_sums<D: Dots, const SUMS: usize>(terms: &[u8; 64]) {
    const { assert!(4 * SUMS <= 64, "four bytes for each sum") };
    // SAFETY: 64 bytes are one vector of terms, and four of them what a sum's are multiplied with.
    unsafe {
        let start = 0;
        let mut sums = [D::sums(&raw const start); SUMS];
        let w = D::bytes(terms.as_ptr());
        for _ in 0..PEAK_PRODUCTS / SUMS {
            // Who compiles this must not find products that are the same for all rounds, or all sums.
            let terms = std::hint::black_box(terms);
            for (i, sums) in sums.iter_mut().enumerate() {
                *sums = D::dot(*sums, w, terms.as_ptr().add(4 * i).cast());
            }
        }
        for sums in sums {
            std::hint::black_box(D::floats(sums).sum());
        }
    }
}

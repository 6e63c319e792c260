//! Panels of sixteen rows that exist, packed all rows at once: the layout of [`pack`](super::pack), by turning words of
//! rows into vectors. Weights that stay in their file are packed at each product, so this has to keep up with memory.

use super::activations::BLOCK;
use super::blocks::{BlockType, SUPER, power_of_two};
use super::dots::{Dots, dispatch_dots};
use super::pack::{Form, ROWS};

/// A word of each row.
type Words = [u32; ROWS];

const LOW: u32 = 0x0f0f_0f0f;
const PAIRS: u32 = 0x0303_0303;
const BITS: u32 = 0x0101_0101;

/// How far ahead of the blocks in use those of the next panel are fetched: by as many rows as this one has.
const AHEAD_ROWS: usize = ROWS;

/// Whether there is a faster way for a type than row by row.
pub(super) fn packs(block_type: BlockType) -> bool {
    !block_type.is_long_codebook() && block_type != BlockType::Iq4Xs
}

/// Sixteen rows, each `row_bytes` of whole blocks of a quantised type.
pub(super) fn pack(block_type: BlockType, rows: &[u8], row_bytes: usize, terms: &mut [u32], scales: &mut [u8]) {
    let form = Form::of(block_type);
    let blocks = row_bytes / block_type.bytes();
    assert!(rows.len() == ROWS * row_bytes && blocks * block_type.bytes() == row_bytes, "sixteen rows of blocks");
    assert_eq!(terms.len(), blocks * form.blocks() * form.term_bytes() / 4, "terms of a panel");
    assert_eq!(scales.len(), blocks * form.scale_bytes(), "scales of a panel");
    let panel = Source { block_type, form, rows, row_bytes };
    // SAFETY: rows, terms and scales have the sizes of the type, as was just checked.
    unsafe { dispatch_dots!(records(panel: Source, terms: &mut [u32], scales: &mut [u8])) };
}

#[derive(Clone, Copy)]
struct Source<'a> {
    block_type: BlockType,
    form: Form,
    rows: &'a [u8],
    row_bytes: usize,
}

/// # Safety
/// The machine has D's instructions; rows, terms and scales have the sizes of the type.
#[inline(always)]
unsafe fn records<D: Dots>(source: Source, terms: &mut [u32], scales: &mut [u8]) {
    // SAFETY: blocks follow each other in the rows, with the sizes of this function's contract.
    unsafe {
        match source.block_type {
            BlockType::Q8_0 => small::<D, 8, false>(source, terms, scales),
            BlockType::Mxfp4 => mxfp4::<D>(source, terms, scales),
            BlockType::Q4_0 | BlockType::Iq4Nl => small::<D, 4, false>(source, terms, scales),
            BlockType::Q4_1 => small::<D, 4, true>(source, terms, scales),
            BlockType::Q5_0 => small::<D, 5, false>(source, terms, scales),
            BlockType::Q5_1 => small::<D, 5, true>(source, terms, scales),
            _ => {
                let Source { block_type, form, row_bytes, .. } = source;
                let records = terms.chunks_exact_mut(SUPER / BLOCK * form.term_bytes() / 4);
                for (i, (terms, scales)) in records.zip(scales.chunks_exact_mut(form.scale_bytes())).enumerate() {
                    let block = source.rows.as_ptr().add(i * block_type.bytes());
                    ahead::<D>(block, row_bytes, block_type.bytes());
                    let block = Rows { first: block, stride: row_bytes };
                    match block_type {
                        BlockType::Q2K => q2k::<D>(block, terms, scales),
                        BlockType::Q3K => q3k::<D>(block, terms, scales),
                        BlockType::Q6K => q6k::<D>(block, terms, scales),
                        BlockType::Q4K => q4k::<D, false>(block, terms, scales),
                        _ => q4k::<D, true>(block, terms, scales),
                    }
                }
            }
        }
    }
}

/// Fetches a block of each of the next panel's rows.
#[inline(always)]
fn ahead<D: Dots>(block: *const u8, row_bytes: usize, bytes: usize) {
    for lane in 0..ROWS {
        for line in (0..bytes).step_by(64) {
            D::prefetch(block.wrapping_add((AHEAD_ROWS + lane) * row_bytes + line));
        }
    }
}

/// A block of each of sixteen rows.
#[derive(Clone, Copy)]
struct Rows {
    first: *const u8,
    stride: usize,
}

impl Rows {
    /// # Safety
    /// The blocks have two bytes at `at`.
    #[inline(always)]
    unsafe fn halves(self, at: usize, mask: u16, out: &mut [u8]) {
        let mut halves = [0; ROWS];
        for (lane, half) in halves.iter_mut().enumerate() {
            // SAFETY: the rows' blocks have these two bytes by this function's contract.
            let bytes = unsafe { self.first.add(lane * self.stride + at).cast::<[u8; 2]>().read() };
            *half = u16::from_le_bytes(bytes) ^ mask;
        }
        for (out, half) in out.as_chunks_mut::<2>().0.iter_mut().zip(halves) {
            *out = half.to_le_bytes();
        }
    }

    /// # Safety
    /// The blocks have four words at `at`, and the machine D's instructions.
    #[inline(always)]
    unsafe fn four<D: Dots>(self, at: usize) -> [Words; 4] {
        // SAFETY: the rows' blocks have four words at `at` by this function's contract.
        unsafe { D::columns(self.first.add(at), self.stride) }
    }

    /// # Safety
    /// As for [`Rows::four`], eight words.
    #[inline(always)]
    unsafe fn eight<D: Dots>(self, at: usize) -> [Words; 8] {
        // SAFETY: four words and four more, which the blocks have by this function's contract.
        let ([a, b, c, d], [e, f, g, h]) = unsafe { (self.four::<D>(at), self.four::<D>(at + 16)) };
        [a, b, c, d, e, f, g, h]
    }
}

/// Formats of blocks of 32.
///
/// # Safety
/// The machine has D's instructions; all sizes are those of the type.
#[inline(always)]
unsafe fn small<D: Dots, const WIDTH: usize, const MINIMA: bool>(source: Source, terms: &mut [u32], scales: &mut [u8]) {
    let Source { block_type, form, rows, row_bytes } = source;
    let minimum = if MINIMA { 2 } else { 0 };
    let records =
        terms.chunks_exact_mut(8 * WIDTH * ROWS * BLOCK / 64 / 4).zip(scales.chunks_exact_mut(form.scale_bytes()));
    // SAFETY: block i of each row begins i blocks on, and within it all places read are below the type's bytes: the
    // rows have as many blocks as terms and scales have records by this function's contract.
    unsafe {
        for (i, (terms, scales)) in records.enumerate() {
            let block = Rows { first: rows.as_ptr().add(i * block_type.bytes()), stride: row_bytes };
            if i % 3 == 0 {
                ahead::<D>(block.first, row_bytes, 1);
            }
            let vectors = terms.as_chunks_mut::<ROWS>().0;
            block.halves(0, 0, &mut scales[..2 * ROWS]);
            if MINIMA {
                block.halves(2, 0, &mut scales[2 * ROWS..4 * ROWS]);
            }
            if WIDTH == 8 {
                for (vector, words) in vectors.iter_mut().zip(block.eight::<D>(2)) {
                    *vector = words.map(|word| word ^ 0x8080_8080);
                }
                continue;
            }
            if WIDTH == 5 {
                let [high, ..] = block.four::<D>(2 + minimum);
                vectors[4] = high.map(bits_by_words);
            }
            let at = 2 + minimum + if WIDTH == 5 { 4 } else { 0 };
            vectors[..4].copy_from_slice(&block.four::<D>(at));
        }
    }
}

/// A byte of a power of two, and 16 bytes as those of Q4_0.
///
/// # Safety
/// As for [`small`].
#[inline(always)]
unsafe fn mxfp4<D: Dots>(source: Source, terms: &mut [u32], scales: &mut [u8]) {
    let Source { block_type, form, rows, row_bytes } = source;
    let records = terms.chunks_exact_mut(form.term_bytes() / 4).zip(scales.chunks_exact_mut(form.scale_bytes()));
    for (i, (terms, scales)) in records.enumerate() {
        let first = i * block_type.bytes();
        for (lane, scale) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            *scale = power_of_two(rows[lane * row_bytes + first]).to_le_bytes();
        }
        // SAFETY: block i of each row begins i blocks on, and has sixteen bytes behind its first.
        unsafe {
            let block = Rows { first: rows.as_ptr().add(first), stride: row_bytes };
            if i % 3 == 0 {
                ahead::<D>(block.first, row_bytes, 1);
            }
            terms.as_chunks_mut::<ROWS>().0.copy_from_slice(&block.four::<D>(1));
        }
    }
}

/// Bit 4g + b as bit g of byte b: the index of a bit, turned twice.
#[inline(always)]
fn bits_by_words(mut word: u32) -> u32 {
    for _ in 0..2 {
        for (mask, by) in [(0x2222_2222, 1), (0x0c0c_0c0c, 2), (0x00f0_00f0, 4), (0x0000_ff00, 8)] {
            let swap = (word ^ word >> by) & mask;
            word ^= swap ^ swap << by;
        }
    }
    word
}

/// Nibbles of a block of 32 from its eight words.
#[inline(always)]
fn nibbles(vectors: &mut [Words], words: impl Fn(usize, usize) -> u32) {
    for (i, vector) in vectors[..4].iter_mut().enumerate() {
        for (lane, vector) in vector.iter_mut().enumerate() {
            *vector = words(i, lane) | words(i + 4, lane) << 4;
        }
    }
}

/// Bytes of words as sixteen of each: byte b of word w becomes factor 4w + b.
#[inline(always)]
fn factors(words: &[Words], out: &mut [u8]) {
    for (words, out) in words.iter().zip(out.chunks_exact_mut(4 * ROWS)) {
        for (b, sixteen) in out.chunks_exact_mut(ROWS).enumerate() {
            for (factor, word) in sixteen.iter_mut().zip(words) {
                *factor = (word >> (8 * b)) as u8;
            }
        }
    }
}

/// # Safety
/// As for [`small`], of one block.
#[inline(always)]
unsafe fn q4k<D: Dots, const FIFTH: bool>(block: Rows, terms: &mut [u32], scales: &mut [u8]) {
    let vectors = terms.as_chunks_mut::<ROWS>().0;
    let per_block = if FIFTH { 5 } else { 4 };
    // SAFETY: all places read lie in the 144 or 176 bytes of a block.
    unsafe {
        let (halves, all) = scales.split_at_mut(4 * ROWS);
        block.halves(0, 0, &mut halves[..2 * ROWS]);
        block.halves(2, 0x8000, &mut halves[2 * ROWS..]);
        let [a, b, c, _] = block.four::<D>(4);
        let mut six = [[0; ROWS]; 4];
        for lane in 0..ROWS {
            let (a, b, c) = (a[lane], b[lane], c[lane]);
            six[0][lane] = a & 0x3f3f_3f3f;
            six[1][lane] = c & LOW | a >> 2 & 0x3030_3030;
            six[2][lane] = b & 0x3f3f_3f3f;
            six[3][lane] = c >> 4 & LOW | b >> 2 & 0x3030_3030;
        }
        factors(&six, all);
        let high = if FIFTH { block.eight::<D>(16) } else { [[0; ROWS]; 8] };
        for (pair, vectors) in vectors.chunks_exact_mut(2 * per_block).enumerate() {
            let words = block.eight::<D>(if FIFTH { 48 } else { 16 } + 32 * pair);
            let (even, odd) = vectors.split_at_mut(per_block);
            nibbles(even, |i, lane| words[i][lane] & LOW);
            nibbles(odd, |i, lane| words[i][lane] >> 4 & LOW);
            if FIFTH {
                even[4] = plane(&high, 2 * pair);
                odd[4] = plane(&high, 2 * pair + 1);
            }
        }
    }
}

/// Bit `bit` of each byte of word g as bit g.
#[inline(always)]
fn plane(words: &[Words; 8], bit: usize) -> Words {
    let mut plane = [0; ROWS];
    for (g, words) in words.iter().enumerate() {
        for (plane, word) in plane.iter_mut().zip(words) {
            *plane |= (word >> bit & BITS) << g;
        }
    }
    plane
}

/// # Safety
/// As for [`q4k`].
#[inline(always)]
unsafe fn q6k<D: Dots>(block: Rows, terms: &mut [u32], scales: &mut [u8]) {
    // SAFETY: all places read lie in the 210 bytes of a block.
    unsafe {
        let (halves, all) = scales.split_at_mut(2 * ROWS);
        block.halves(208, 0, halves);
        factors(&block.four::<D>(192), all);
        for (half, vectors) in terms.as_chunks_mut::<ROWS>().0.chunks_exact_mut(24).enumerate() {
            let high = block.eight::<D>(128 + 32 * half);
            for (b, vectors) in vectors.chunks_exact_mut(6).enumerate() {
                let words = block.eight::<D>(64 * half + 32 * (b % 2));
                nibbles(vectors, |i, lane| words[i][lane] >> (b / 2 * 4) & LOW);
                for (plane, high) in vectors[4..].iter_mut().zip(high.chunks_exact(4)) {
                    for (lane, plane) in plane.iter_mut().enumerate() {
                        *plane = 0;
                        for (g, words) in high.iter().enumerate() {
                            *plane |= (words[lane] >> (2 * b) & PAIRS) << (2 * g);
                        }
                    }
                }
            }
        }
    }
}

/// # Safety
/// As for [`q4k`].
#[inline(always)]
unsafe fn q2k<D: Dots>(block: Rows, terms: &mut [u32], scales: &mut [u8]) {
    // SAFETY: all places read lie in the 84 bytes of a block.
    unsafe {
        let (halves, all) = scales.split_at_mut(4 * ROWS);
        block.halves(80, 0, &mut halves[..2 * ROWS]);
        block.halves(82, 0x8000, &mut halves[2 * ROWS..]);
        let words = block.four::<D>(0);
        let (of_scales, of_minima) = all.split_at_mut(16 * ROWS);
        factors(&words.map(|words| words.map(|word| word & LOW)), of_scales);
        factors(&words.map(|words| words.map(|word| word >> 4 & LOW)), of_minima);
        for (half, vectors) in terms.as_chunks_mut::<ROWS>().0.chunks_exact_mut(16).enumerate() {
            let words = block.eight::<D>(16 + 32 * half);
            for (b, vectors) in vectors.chunks_exact_mut(4).enumerate() {
                nibbles(vectors, |i, lane| words[i][lane] >> (2 * b) & PAIRS);
            }
        }
    }
}

/// # Safety
/// As for [`q4k`].
#[inline(always)]
unsafe fn q3k<D: Dots>(block: Rows, terms: &mut [u32], scales: &mut [u8]) {
    // SAFETY: all places read lie in the 110 bytes of a block.
    unsafe {
        let (halves, all) = scales.split_at_mut(2 * ROWS);
        block.halves(108, 0, halves);
        // The last word is read with those before it: four more would leave the block.
        let [_, a, b, c] = block.four::<D>(92);
        let mut six = [[0; ROWS]; 4];
        for lane in 0..ROWS {
            let low = [a[lane] & LOW, b[lane] & LOW, a[lane] >> 4 & LOW, b[lane] >> 4 & LOW];
            for (g, low) in low.into_iter().enumerate() {
                let scale = low | (c[lane] >> (2 * g) & PAIRS) << 4;
                six[g][lane] = ((scale | 0x8080_8080) - 0x2020_2020) ^ 0x8080_8080; // less 32, byte by byte
            }
        }
        factors(&six, all);
        let high = block.eight::<D>(0);
        for (half, vectors) in terms.as_chunks_mut::<ROWS>().0.chunks_exact_mut(16).enumerate() {
            let words = block.eight::<D>(32 + 32 * half);
            for (b, vectors) in vectors.chunks_exact_mut(4).enumerate() {
                let bit = 4 * half + b;
                nibbles(vectors, |i, lane| words[i][lane] >> (2 * b) & PAIRS | (high[i][lane] >> bit & BITS) << 2);
            }
        }
    }
}

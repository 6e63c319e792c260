//! Panels of 16 rows as the kernels read them.
//!
//! Terms are taken in blocks of 32, and within a block in fours: word g of a row holds terms 4g..4g+4, a byte each. A
//! vector is word g of all 16 rows, 64 bytes. Of words with 4 bits a term, vector i < 4 holds word i in the low nibbles
//! and word i + 4 in the high ones. The fifth bits follow in one vector, that of word g as bit g of each byte; or the
//! fifth and sixth in two, those of word g as bits 2g' and 2g'+1 with g' = g mod 4. Codes of four bits lie as terms do.
//!
//! Scales lie apart: for each record (a block of 32, in the K family of 256) 16 f16 of each row's scale, 16 of its
//! minimum with the sign turned, and in the K family 16 factors for each group, then 16 for each group's minimum.
//! Scales of codes of E2M1 are bf16.

use super::activations::BLOCK;
use super::blocks::{BlockType, Parts, SUPER};
use super::codebooks::Codes;
use super::repack;

/// Rows of a panel.
pub(super) const ROWS: usize = 16;

/// Shape of the packed panels of a block type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Form {
    /// Bits of a packed term: 4, 5, 6 or 8.
    pub bits: usize,
    /// Groups in a block of 32: 1 or 2.
    pub halves: usize,
    pub minima: bool,
    /// Whether groups have factors, and records are of 256.
    pub factors: bool,
    pub zero: u8,
    /// What terms of four bits stand for.
    pub codes: Codes,
    /// Scales are 2 to the power of minus this times those that are packed.
    pub shift: u8,
}

impl Form {
    pub fn of(block_type: BlockType) -> Self {
        let bits = match block_type {
            BlockType::Q8_0 => 8,
            long if long.is_long_codebook() => 8,
            BlockType::Q6K => 6,
            BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K => 5,
            _ => 4,
        };
        Form {
            bits,
            halves: BLOCK / block_type.group(),
            minima: block_type.has_minima(),
            factors: block_type.len() == SUPER,
            zero: if block_type.codes() == Codes::None { block_type.zero() } else { block_type.codes().zero() },
            codes: block_type.codes(),
            shift: block_type.shift(),
        }
    }

    /// Whether terms are multiplied as those of eight bits are.
    pub fn is_wide(self) -> bool {
        self.bits == 8 || self.codes == Codes::Iq4
    }

    /// Blocks of 32 in a record.
    pub const fn blocks(self) -> usize {
        if self.factors { SUPER / BLOCK } else { 1 }
    }

    /// Bytes of a panel's terms in a block.
    pub const fn term_bytes(self) -> usize {
        8 * self.bits * (ROWS * BLOCK / 64)
    }

    /// Bytes of a panel's scales in a record.
    pub const fn scale_bytes(self) -> usize {
        let kinds = if self.minima { 2 } else { 1 };
        let factors = if self.factors { self.blocks() * self.halves * ROWS } else { 0 };
        kinds * (2 * ROWS + factors)
    }
}

/// What a matrix multiplies with.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Quantised(Form),
    /// Numbers of a width of their own: see [`wide`](super::wide).
    Wide,
}

/// Where a panel's parts are.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    pub terms: *const u8,
    pub scales: *const u8,
}

/// Packs up to 16 rows, each `row_bytes` of whole blocks, into zeros of a panel.
pub(super) fn pack(block_type: BlockType, rows: &[u8], row_bytes: usize, terms: &mut [u32], scales: &mut [u8]) {
    if rows.len() == ROWS * row_bytes && repack::packs(block_type) {
        return repack::pack(block_type, rows, row_bytes, terms, scales);
    }
    if block_type.len() == SUPER {
        pack_records::<SUPER>(block_type, rows, row_bytes, terms, scales);
    } else {
        pack_records::<BLOCK>(block_type, rows, row_bytes, terms, scales);
    }
}

fn pack_records<const LEN: usize>(
    block_type: BlockType,
    rows: &[u8],
    row_bytes: usize,
    terms: &mut [u32],
    scales: &mut [u8],
) {
    let form = Form::of(block_type);
    let (term_words, scale_bytes) = (form.blocks() * form.term_bytes() / 4, form.scale_bytes());
    for (lane, row) in rows.chunks_exact(row_bytes).enumerate() {
        let records = terms.chunks_exact_mut(term_words).zip(scales.chunks_exact_mut(scale_bytes));
        for (block, (terms, scales)) in row.chunks_exact(block_type.bytes()).zip(records) {
            let parts = Parts::<LEN>::of(block_type, block);
            pack_scales(form, &parts, lane, scales);
            let quants = parts.quants.as_chunks::<BLOCK>().0;
            for (terms, quants) in terms.chunks_exact_mut(form.term_bytes() / 4).zip(quants) {
                pack_terms(form.bits, quants, lane, terms);
            }
        }
    }
}

fn pack_scales<const LEN: usize>(form: Form, parts: &Parts<LEN>, lane: usize, record: &mut [u8]) {
    let (halves, factors) = record.split_at_mut(if form.minima { 4 * ROWS } else { 2 * ROWS });
    halves[2 * lane..][..2].copy_from_slice(&parts.scale.to_le_bytes());
    if form.minima {
        halves[2 * (ROWS + lane)..][..2].copy_from_slice(&(parts.minimum ^ 0x8000).to_le_bytes());
    }
    let all = parts.scales[..form.blocks() * form.halves].iter().chain(&parts.minima[..form.blocks() * form.halves]);
    for (sixteen, factor) in factors.chunks_exact_mut(ROWS).zip(all) {
        sixteen[lane] = *factor as u8;
    }
}

#[inline(always)]
fn pack_terms(bits: usize, quants: &[u8; BLOCK], lane: usize, terms: &mut [u32]) {
    let mut words = [0; 8];
    for (word, bytes) in words.iter_mut().zip(quants.as_chunks::<4>().0) {
        *word = u32::from_le_bytes(*bytes);
    }
    let vectors = terms.as_chunks_mut::<ROWS>().0;
    if bits == 8 {
        vectors.iter_mut().zip(words).for_each(|(vector, word)| vector[lane] = word);
        return;
    }
    let (nibbles, planes) = vectors.split_at_mut(4);
    for (i, vector) in nibbles.iter_mut().enumerate() {
        vector[lane] = words[i] & 0x0f0f_0f0f | (words[i + 4] & 0x0f0f_0f0f) << 4;
    }
    let (mask, width) = if bits == 6 { (0x0303_0303, 2) } else { (0x0101_0101, 1) };
    for (vector, words) in planes.iter_mut().zip(words.chunks_exact(8 / width)) {
        vector[lane] = words.iter().enumerate().fold(0, |plane, (g, word)| plane | (word >> 4 & mask) << (width * g));
    }
}

/// One row of a block: the reverse of [`pack_terms`].
fn unpack_terms(bits: usize, terms: &[u32], lane: usize) -> [u8; BLOCK] {
    let vectors = terms.as_chunks::<ROWS>().0;
    let mut quants = [0; BLOCK];
    for (g, bytes) in quants.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        let nibbles = |()| vectors[g % 4][lane] >> (g / 4 * 4) & 0x0f0f_0f0f;
        let word = match bits {
            8 => vectors[g][lane],
            6 => nibbles(()) | (vectors[4 + g / 4][lane] >> (2 * (g % 4)) & 0x0303_0303) << 4,
            5 => nibbles(()) | (vectors[4][lane] >> g & 0x0101_0101) << 4,
            _ => nibbles(()),
        };
        *bytes = word.to_le_bytes();
    }
    quants
}

/// The numbers of one row of a panel, as the blocks decode to.
pub(super) fn unpack_row(block_type: BlockType, terms: &[u32], scales: &[u8], lane: usize, out: &mut [f32]) {
    let form = Form::of(block_type);
    let groups = form.blocks() * form.halves;
    let u16_at = |record: &[u8], at: usize| u16::from_le_bytes([record[2 * at], record[2 * at + 1]]);
    let record_words = form.blocks() * form.term_bytes() / 4;
    let records = terms.chunks_exact(record_words).zip(scales.chunks_exact(form.scale_bytes()));
    for ((terms, record), out) in records.zip(out.chunks_mut(form.blocks() * BLOCK)) {
        let mut parts = Parts::<0>::new();
        parts.scale = u16_at(record, lane);
        if form.minima {
            parts.minimum = u16_at(record, ROWS + lane) ^ 0x8000;
        }
        let factors = &record[if form.minima { 4 * ROWS } else { 2 * ROWS }..];
        let all = parts.scales[..groups].iter_mut().chain(&mut parts.minima[..groups]);
        for (sixteen, factor) in factors.chunks_exact(ROWS).zip(all) {
            *factor = sixteen[lane] as i8;
        }
        for (b, (terms, out)) in terms.chunks_exact(form.term_bytes() / 4).zip(out.chunks_mut(BLOCK)).enumerate() {
            let quants = unpack_terms(form.bits, terms, lane);
            for (i, (out, q)) in out.iter_mut().zip(quants).enumerate() {
                let (scale, minimum) = parts.scale(block_type, (b * BLOCK + i) * form.halves / BLOCK);
                *out = scale * block_type.whole(q) as f32 - minimum;
            }
        }
    }
}

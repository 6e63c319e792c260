//! The block formats of GGUF files, and E4M3 as blocks: how a row of weights is stored, decoded and encoded.
//!
//! A block holds [`BlockType::len`] consecutive numbers of a row as small whole numbers q with shared scales:
//! x = w·(q − zero) − m, where w and m are f16, or in the formats of the K family (256 numbers a block) an f16 times
//! a whole number of 4 to 8 bits for each 16 or 32 numbers. Layout and rounding are those of llama.cpp
//! (ggml-common.h, ggml-quants.c: `dequantize_row_*`, `quantize_row_*_ref`); `scripts/oracle/make_blocks.py` has the
//! values that the tests compare with. w and m are exact in f32, so a decoded number is rounded at most once.
//!
//! In types with a codebook (`codebooks`) q − zero is an entry of it: x = w·entry, where w is also a power of two
//! times what it is elsewhere, or in MXFP4 a power of two alone.

use half::f16;

use super::codebooks::{self, Codes};
use crate::convert::{E4M3, from_bf16, to_bf16};
use crate::par;

/// How numbers are stored in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BlockType {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an IEEE single.
    Bf16,
    /// 8 bits, symmetric, an f16 scale for 32.
    Q8_0,
    /// 4 bits, zero point 8, an f16 scale for 32.
    Q4_0,
    /// 4 bits, an f16 scale and an f16 minimum for 32.
    Q4_1,
    /// 5 bits, zero point 16, an f16 scale for 32.
    Q5_0,
    /// 5 bits, an f16 scale and an f16 minimum for 32.
    Q5_1,
    /// 2 bits, 4-bit scales and minima for 16.
    Q2K,
    /// 3 bits, zero point 4, 6-bit signed scales for 16.
    Q3K,
    /// 4 bits, 6-bit scales and minima for 32.
    Q4K,
    /// 5 bits, 6-bit scales and minima for 32.
    Q5K,
    /// 6 bits, zero point 32, 8-bit signed scales for 16.
    Q6K,
    /// 4 bits for one of 16 numbers, an f16 scale for 32.
    Iq4Nl,
    /// The same with 6-bit signed scales for 32.
    Iq4Xs,
    /// E2M1 with a power of two for 32 (OCP Microscaling Formats 1.0): the experts of gpt-oss.
    Mxfp4,
    /// 8 bits for eight numbers of 256 such, 7 for their signs, 4-bit scales for 32.
    Iq2Xxs,
    /// 9 bits for eight numbers of 512 such, 7 for their signs, 4-bit scales for 16.
    Iq2Xs,
    /// 10 bits for eight numbers of 1024 such, 8 for their signs, 4-bit scales for 16.
    Iq2S,
    /// 8 bits for four numbers of 256 such, 7 for the signs of eight, 4-bit scales for 32.
    Iq3Xxs,
    /// 9 bits for four numbers of 512 such, a bit for each sign, 4-bit scales for 32.
    Iq3S,
    /// 11 bits for eight numbers of 2048 such, 3-bit scales and a common shift by an eighth for 32.
    Iq1S,
    /// The same with scales for 16 and shifts for 8.
    Iq1M,
    /// E4M3, none of them NaN, behind an f32 scale for 128: a row of a block of 128×128 of DeepSeek's checkpoints. In
    /// no GGUF file; the processor's products take its numbers in f32.
    E4m3,
}

/// Numbers in a block of the K family.
pub(crate) const SUPER: usize = 256;

impl BlockType {
    /// All types of GGUF's files.
    pub const ALL: [BlockType; 23] = [
        BlockType::F32,
        BlockType::F16,
        BlockType::Bf16,
        BlockType::Q8_0,
        BlockType::Q4_0,
        BlockType::Q4_1,
        BlockType::Q5_0,
        BlockType::Q5_1,
        BlockType::Q2K,
        BlockType::Q3K,
        BlockType::Q4K,
        BlockType::Q5K,
        BlockType::Q6K,
        BlockType::Iq4Nl,
        BlockType::Iq4Xs,
        BlockType::Mxfp4,
        BlockType::Iq2Xxs,
        BlockType::Iq2Xs,
        BlockType::Iq2S,
        BlockType::Iq3Xxs,
        BlockType::Iq3S,
        BlockType::Iq1S,
        BlockType::Iq1M,
    ];

    /// The name in the GGUF specification, of those that it has.
    pub fn name(self) -> &'static str {
        match self {
            BlockType::F32 => "F32",
            BlockType::F16 => "F16",
            BlockType::Bf16 => "BF16",
            BlockType::Q8_0 => "Q8_0",
            BlockType::Q4_0 => "Q4_0",
            BlockType::Q4_1 => "Q4_1",
            BlockType::Q5_0 => "Q5_0",
            BlockType::Q5_1 => "Q5_1",
            BlockType::Q2K => "Q2_K",
            BlockType::Q3K => "Q3_K",
            BlockType::Q4K => "Q4_K",
            BlockType::Q5K => "Q5_K",
            BlockType::Q6K => "Q6_K",
            BlockType::Iq4Nl => "IQ4_NL",
            BlockType::Iq4Xs => "IQ4_XS",
            BlockType::Mxfp4 => "MXFP4",
            BlockType::Iq2Xxs => "IQ2_XXS",
            BlockType::Iq2Xs => "IQ2_XS",
            BlockType::Iq2S => "IQ2_S",
            BlockType::Iq3Xxs => "IQ3_XXS",
            BlockType::Iq3S => "IQ3_S",
            BlockType::Iq1S => "IQ1_S",
            BlockType::Iq1M => "IQ1_M",
            BlockType::E4m3 => "E4M3",
        }
    }

    /// Numbers in a block; rows are whole blocks.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => 32,
            BlockType::Iq4Nl | BlockType::Mxfp4 => 32,
            BlockType::E4m3 => 128,
            _ => SUPER,
        }
    }

    /// Bytes that a block takes in a file.
    pub const fn bytes(self) -> usize {
        match self {
            BlockType::F32 => 4,
            BlockType::F16 | BlockType::Bf16 => 2,
            BlockType::Q8_0 => 34,
            BlockType::Q4_0 => 18,
            BlockType::Q4_1 => 20,
            BlockType::Q5_0 => 22,
            BlockType::Q5_1 => 24,
            BlockType::Q2K => 84,
            BlockType::Q3K => 110,
            BlockType::Q4K => 144,
            BlockType::Q5K => 176,
            BlockType::Q6K => 210,
            BlockType::Iq4Nl => 18,
            BlockType::Iq4Xs => 136,
            BlockType::Mxfp4 => 17,
            BlockType::Iq2Xxs => 66,
            BlockType::Iq2Xs => 74,
            BlockType::Iq2S => 82,
            BlockType::Iq3Xxs => 98,
            BlockType::Iq3S => 110,
            BlockType::Iq1S => 50,
            BlockType::Iq1M => 56,
            BlockType::E4m3 => 132,
        }
    }

    /// Bytes of a row of `columns` numbers, or none if they are not whole blocks or too many.
    pub fn row_bytes(self, columns: usize) -> Option<usize> {
        if columns.is_multiple_of(self.len()) { (columns / self.len()).checked_mul(self.bytes()) } else { None }
    }

    /// Whether numbers are stored as whole numbers with shared scales.
    pub fn is_quantised(self) -> bool {
        self.shares_scales() && self != BlockType::E4m3
    }

    /// Whether numbers are stored with scales that they share.
    pub fn shares_scales(self) -> bool {
        self.len() > 1
    }

    /// Whether [`encode`] can write it.
    pub fn can_encode(self) -> bool {
        matches!(
            self,
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 | BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1
        )
    }

    /// Scales and minima of a block: each stands for this many numbers.
    pub(crate) const fn group(self) -> usize {
        match self {
            BlockType::Q2K | BlockType::Q3K | BlockType::Q6K => 16,
            BlockType::Iq2Xs | BlockType::Iq2S | BlockType::Iq1M => 16,
            _ => 32,
        }
    }

    /// The whole number that stands for zero.
    pub(crate) const fn zero(self) -> u8 {
        match self {
            BlockType::Q8_0
            | BlockType::Iq2Xxs
            | BlockType::Iq2Xs
            | BlockType::Iq2S
            | BlockType::Iq3Xxs
            | BlockType::Iq3S
            | BlockType::Iq1S
            | BlockType::Iq1M => 128,
            BlockType::Q4_0 => 8,
            BlockType::Q5_0 => 16,
            BlockType::Q3K => 4,
            BlockType::Q6K => 32,
            _ => 0,
        }
    }

    /// Whether numbers are entries of a codebook.
    pub fn has_codebook(self) -> bool {
        self.codes() != Codes::None || self.is_long_codebook()
    }

    /// Whether one code stands for four or eight numbers.
    pub(crate) const fn is_long_codebook(self) -> bool {
        matches!(
            self,
            BlockType::Iq2Xxs
                | BlockType::Iq2Xs
                | BlockType::Iq2S
                | BlockType::Iq3Xxs
                | BlockType::Iq3S
                | BlockType::Iq1S
                | BlockType::Iq1M
        )
    }

    /// What quants of four bits stand for.
    pub(crate) const fn codes(self) -> Codes {
        match self {
            BlockType::Iq4Nl | BlockType::Iq4Xs => Codes::Iq4,
            BlockType::Mxfp4 => Codes::E2m1,
            _ => Codes::None,
        }
    }

    /// The whole number that a quant stands for.
    #[inline(always)]
    pub(crate) fn whole(self, quant: u8) -> i32 {
        match self.codes() {
            Codes::None => i32::from(quant) - i32::from(self.zero()),
            codes => i32::from(codes.entries()[usize::from(quant)]),
        }
    }

    /// Scales are those of the parts times 2 to the power of minus this.
    pub(crate) const fn shift(self) -> u8 {
        match self {
            BlockType::Iq2Xxs | BlockType::Iq2Xs | BlockType::Iq2S | BlockType::Iq1S | BlockType::Iq1M => 3,
            BlockType::Iq3Xxs => 2,
            _ => 0,
        }
    }

    /// Whether there are minima.
    pub(crate) const fn has_minima(self) -> bool {
        matches!(self, BlockType::Q4_1 | BlockType::Q5_1 | BlockType::Q2K | BlockType::Q4K | BlockType::Q5K)
    }
}

/// Numbers in a task of [`decode`] and [`encode`].
const TASK: usize = 16 * 1024;

/// The numbers of whole blocks.
///
/// # Panics
/// If `bytes` are not the blocks of as many numbers as `out` has.
pub fn decode(from: BlockType, bytes: &[u8], out: &mut [f32]) {
    check(from, bytes.len(), out.len());
    par::chunks_mut(out, TASK, |task, out| {
        let first = task * (TASK / from.len()) * from.bytes();
        let blocks = bytes[first..].chunks_exact(from.bytes());
        for (block, out) in blocks.zip(out.chunks_exact_mut(from.len())) {
            decode_block(from, block, out);
        }
    });
}

/// The numbers of rows [rows, cols], each filled up to whole blocks.
///
/// # Panics
/// If `bytes` are not whole rows.
pub fn decode_rows(from: BlockType, bytes: &[u8], cols: usize) -> Vec<f32> {
    let padded = cols.next_multiple_of(from.len());
    let row_bytes = from.row_bytes(padded).expect("whole blocks");
    assert!(bytes.len().is_multiple_of(row_bytes), "{} bytes of rows of {row_bytes}", bytes.len());
    let mut row = vec![0.0; padded];
    let rows = bytes.chunks_exact(row_bytes).flat_map(|bytes| {
        decode(from, bytes, &mut row);
        row[..cols].to_vec()
    });
    rows.collect()
}

/// Whole blocks of numbers, each rounded as llama.cpp's reference does; numbers ought to be finite and their blocks'
/// scales in f16's range, else what is decoded is not finite either.
///
/// # Panics
/// If [`BlockType::can_encode`] says no, or `bytes` are not the blocks of as many numbers as `x` has.
pub fn encode(to: BlockType, x: &[f32], bytes: &mut [u8]) {
    assert!(to.can_encode(), "{} is only decoded", to.name());
    check(to, bytes.len(), x.len());
    par::chunks_mut(bytes, TASK / to.len() * to.bytes(), |task, bytes| {
        let numbers = x[task * TASK..].chunks_exact(to.len());
        for (x, block) in numbers.zip(bytes.chunks_exact_mut(to.bytes())) {
            encode_block(to, x, block);
        }
    });
}

fn check(blocks: BlockType, bytes: usize, numbers: usize) {
    let expected = blocks.row_bytes(numbers);
    assert!(expected == Some(bytes), "{bytes} bytes of {} for {numbers} numbers", blocks.name());
}

pub(super) fn decode_block(from: BlockType, block: &[u8], out: &mut [f32]) {
    match from {
        BlockType::F32 => out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]]),
        BlockType::F16 => out[0] = half_at(block, 0),
        BlockType::Bf16 => out[0] = from_bf16(u16::from_le_bytes([block[0], block[1]])),
        BlockType::E4m3 => {
            let scale = f32::from_le_bytes([block[0], block[1], block[2], block[3]]);
            out.iter_mut().zip(&block[4..]).for_each(|(out, bits)| *out = E4M3[usize::from(*bits)] * scale);
        }
        _ if from.len() == SUPER => decode_parts::<SUPER>(from, block, out),
        _ => decode_parts::<32>(from, block, out),
    }
}

fn decode_parts<const LEN: usize>(from: BlockType, block: &[u8], out: &mut [f32]) {
    let parts = Parts::<LEN>::of(from, block);
    let group = from.group();
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let (scale, minimum) = parts.scale(from, g);
        for (out, &q) in out.iter_mut().zip(&parts.quants[g * group..]) {
            // Both f32 steps as in ggml; the product is exact.
            *out = scale * from.whole(q) as f32 - minimum;
        }
    }
}

/// A block of `LEN` as numbers: element i is `scale·whole(quants[i]) − minimum`, with the scale and minimum of its
/// group; `whole` is [`BlockType::whole`].
pub(crate) struct Parts<const LEN: usize> {
    pub quants: [u8; LEN],
    /// f16 bits that all scales share, and all minima; of MXFP4 bf16 bits.
    pub scale: u16,
    pub minimum: u16,
    /// Factors of a group; 1 where the format has none.
    pub scales: [i8; 16],
    pub minima: [i8; 16],
}

impl<const LEN: usize> Parts<LEN> {
    /// Zeros, and factors of 1.
    pub fn new() -> Self {
        Parts { quants: [0; LEN], scale: 0, minimum: 0, scales: [1; 16], minima: [1; 16] }
    }

    /// Takes a block of a quantised type apart.
    #[inline(always)]
    pub fn of(from: BlockType, block: &[u8]) -> Self {
        assert_eq!(LEN, from.len(), "numbers of {}", from.name());
        let mut parts = Parts::new();
        match from {
            BlockType::Q8_0 => {
                parts.scale = u16_at(block, 0);
                parts.quants.iter_mut().zip(&block[2..]).for_each(|(q, &byte)| *q = byte ^ 0x80);
            }
            BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => parts.read_32(from, block),
            BlockType::Q2K => parts.read_q2k(block),
            BlockType::Q3K => parts.read_q3k(block),
            BlockType::Q4K | BlockType::Q5K => parts.read_q4k_q5k(from, block),
            BlockType::Q6K => parts.read_q6k(block),
            BlockType::Iq4Nl => {
                parts.scale = u16_at(block, 0);
                spread_nibbles(&block[2..], parts.quants.split_at_mut(16));
            }
            BlockType::Mxfp4 => {
                parts.scale = power_of_two(block[0]);
                spread_nibbles(&block[1..], parts.quants.split_at_mut(16));
            }
            BlockType::Iq4Xs => parts.read_iq4xs(block),
            BlockType::Iq2Xxs
            | BlockType::Iq2Xs
            | BlockType::Iq2S
            | BlockType::Iq3Xxs
            | BlockType::Iq3S
            | BlockType::Iq1S
            | BlockType::Iq1M => codebooks::read(from, block, &mut parts),
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 | BlockType::E4m3 => {
                unreachable!("{} has no parts", from.name())
            }
        }
        parts
    }

    /// The scale and the minimum of group g of a block of type `from`, exact.
    pub fn scale(&self, from: BlockType, g: usize) -> (f32, f32) {
        if from == BlockType::Mxfp4 {
            return (from_bf16(self.scale), 0.0);
        }
        let times = |bits: u16, factor: i8| f16::from_bits(bits).to_f32() * f32::from(factor);
        (times(self.scale, self.scales[g]) * unit(from.shift()), times(self.minimum, self.minima[g]))
    }

    /// d, 2 bytes of upper and 4 of lower parts of scales, 128 bytes of nibbles, 16 apart.
    fn read_iq4xs(&mut self, block: &[u8]) {
        self.scale = u16_at(block, 0);
        let high = u16_at(block, 2);
        for g in 0..8 {
            let low = block[4 + g / 2] >> (g % 2 * 4) & 15;
            self.scales[g] = (low | ((high >> (2 * g) & 3) << 4) as u8) as i8 - 32;
        }
        for (bytes, quants) in block[8..].chunks_exact(16).zip(self.quants.chunks_exact_mut(32)) {
            spread_nibbles(bytes, quants.split_at_mut(16));
        }
    }

    /// d, [m], [32 high bits], 16 bytes with numbers 0..16 in the low and 16..32 in the high nibbles.
    fn read_32(&mut self, from: BlockType, block: &[u8]) {
        self.scale = u16_at(block, 0);
        let mut at = 2;
        if from.has_minima() {
            self.minimum = u16_at(block, at) ^ 0x8000; // which the format adds
            at += 2;
        }
        let mut high = 0;
        if matches!(from, BlockType::Q5_0 | BlockType::Q5_1) {
            high = u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
            at += 4;
        }
        let quants = &mut self.quants;
        spread_nibbles(&block[at..], quants.split_at_mut(16));
        if high != 0 {
            for (i, q) in quants.iter_mut().enumerate() {
                *q |= ((high >> i & 1) << 4) as u8;
            }
        }
    }

    /// 16 bytes of a scale (low) and a minimum (high); 64 bytes of four 2-bit numbers, 32 apart; d, dmin.
    fn read_q2k(&mut self, block: &[u8]) {
        (self.scale, self.minimum) = (u16_at(block, 80), u16_at(block, 82));
        for (g, &byte) in block[..16].iter().enumerate() {
            self.scales[g] = (byte & 15) as i8;
            self.minima[g] = (byte >> 4) as i8;
        }
        spread_pairs(&block[16..80], &mut self.quants, |q, pair| *q = pair);
    }

    /// 32 bytes of third bits, 64 bytes as in Q2_K, 12 bytes of scales, d.
    fn read_q3k(&mut self, block: &[u8]) {
        self.scale = u16_at(block, 108);
        let packed = &block[96..108];
        for (g, scale) in self.scales.iter_mut().enumerate() {
            let low = packed[g % 8] >> (g / 8 * 4) & 15;
            let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
            *scale = (low | high << 4) as i8 - 32;
        }
        spread_pairs(&block[32..96], &mut self.quants, |q, pair| *q = pair);
        spread_bits(&block[..32], &mut self.quants, 2);
    }

    /// d, dmin, 12 bytes of scales and minima, [32 bytes of fifth bits], 128 bytes of nibbles, 32 apart.
    fn read_q4k_q5k(&mut self, from: BlockType, block: &[u8]) {
        (self.scale, self.minimum) = (u16_at(block, 0), u16_at(block, 2));
        let packed = &block[4..16];
        for g in 0..8 {
            let (scale, minimum) = if g < 4 {
                (packed[g] & 63, packed[g + 4] & 63)
            } else {
                let high = |byte: u8| byte >> 6 << 4;
                (packed[g + 4] & 15 | high(packed[g - 4]), packed[g + 4] >> 4 | high(packed[g]))
            };
            (self.scales[g], self.minima[g]) = (scale as i8, minimum as i8);
        }
        let (high, low) = if from == BlockType::Q5K { block[16..].split_at(32) } else { (&[][..], &block[16..]) };
        for (low, quants) in low.chunks_exact(32).zip(self.quants.chunks_exact_mut(64)) {
            spread_nibbles(low, quants.split_at_mut(32));
        }
        if from == BlockType::Q5K {
            spread_bits(high, &mut self.quants, 4);
        }
    }

    /// 128 bytes of nibbles, 64 apart; 64 bytes of two high bits, 32 apart; 16 scales; d.
    fn read_q6k(&mut self, block: &[u8]) {
        self.scale = u16_at(block, 208);
        for (g, &byte) in block[192..208].iter().enumerate() {
            self.scales[g] = byte as i8;
        }
        for (low, quants) in block[..128].chunks_exact(64).zip(self.quants.chunks_exact_mut(128)) {
            spread_nibbles(low, quants.split_at_mut(64));
        }
        spread_pairs(&block[128..192], &mut self.quants, |q, pair| *q |= pair << 4);
    }
}

/// The lower four bits of each byte, then the upper ones.
#[inline(always)]
fn spread_nibbles(bytes: &[u8], (low, high): (&mut [u8], &mut [u8])) {
    for ((low, high), byte) in low.iter_mut().zip(high).zip(bytes) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Of each 32 bytes the lowest two bits, the next two, and so on.
#[inline(always)]
fn spread_pairs(bytes: &[u8], quants: &mut [u8], set: impl Fn(&mut u8, u8)) {
    for (bytes, quants) in bytes.chunks_exact(32).zip(quants.chunks_exact_mut(128)) {
        for (pair, quants) in quants.chunks_exact_mut(32).enumerate() {
            for (q, byte) in quants.iter_mut().zip(bytes) {
                set(q, byte >> (2 * pair) & 3);
            }
        }
    }
}

/// The lowest bit of 32 bytes, the next one, and so on, to bit `to`.
#[inline(always)]
fn spread_bits(bytes: &[u8], quants: &mut [u8], to: usize) {
    for (bit, quants) in quants.chunks_exact_mut(32).enumerate() {
        for (q, byte) in quants.iter_mut().zip(bytes) {
            *q |= (byte >> bit & 1) << to;
        }
    }
}

/// 2 to the power of −shift.
pub(super) fn unit(shift: u8) -> f32 {
    f32::from_bits((127 - u32::from(shift)) << 23)
}

/// The bf16 bits of half of 2^(e − 127), which E8M0 has as e: entries of E2M1 are twice what they stand for.
pub(super) fn power_of_two(e: u8) -> u16 {
    if e < 2 { 0x20 << e } else { u16::from(e - 1) << 7 }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_bits(u16_at(bytes, at)).to_f32()
}

fn encode_block(to: BlockType, x: &[f32], block: &mut [u8]) {
    match to {
        BlockType::F32 => block.copy_from_slice(&x[0].to_le_bytes()),
        BlockType::F16 => block.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
        BlockType::Bf16 => block.copy_from_slice(&to_bf16(x[0]).to_le_bytes()),
        BlockType::Q8_0 => {
            let scale = x.iter().fold(0.0, |most: f32, x| most.max(x.abs())) / 127.0;
            let inverse = inverse(scale);
            block[..2].copy_from_slice(&shared_scale(scale, x));
            for (q, x) in block[2..].iter_mut().zip(x) {
                *q = (x * inverse).round() as i8 as u8; // halves away from zero
            }
        }
        BlockType::Q4_0 => {
            // The number of greatest size, the first of several, becomes −8.
            let most = x.iter().fold(0.0, |most: f32, &x| if x.abs() > most.abs() { x } else { most });
            let scale = most / -8.0;
            let inverse = inverse(scale);
            block[..2].copy_from_slice(&shared_scale(scale, x));
            write_nibbles(x, &mut block[2..], |x| x.mul_add(inverse, 8.5));
        }
        BlockType::Q4_1 => {
            let least = x.iter().copied().fold(f32::INFINITY, f32::min);
            let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let scale = (most - least) / 15.0;
            let inverse = inverse(scale);
            block[..2].copy_from_slice(&shared_scale(scale, x));
            block[2..4].copy_from_slice(&f16::from_f32(least).to_le_bytes());
            write_nibbles(x, &mut block[4..], |x| (x - least) * inverse + 0.5);
        }
        _ => unreachable!("{} is only decoded", to.name()),
    }
}

fn inverse(scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { 1.0 / scale }
}

/// A block's scale as f16; NaN where a number is not finite, which comparisons would hide.
fn shared_scale(scale: f32, x: &[f32]) -> [u8; 2] {
    let scale = if x.iter().all(|x| x.is_finite()) { scale } else { f32::NAN };
    f16::from_f32(scale).to_le_bytes()
}

/// Whole parts, at most 15: the first half of the numbers in the low nibbles, the second in the high ones.
fn write_nibbles(x: &[f32], bytes: &mut [u8], quant: impl Fn(f32) -> f32) {
    let (low, high) = x.split_at(x.len() / 2);
    for (byte, (&low, &high)) in bytes.iter_mut().zip(low.iter().zip(high)) {
        *byte = (quant(low) as u8).min(15) | (quant(high) as u8).min(15) << 4;
    }
}

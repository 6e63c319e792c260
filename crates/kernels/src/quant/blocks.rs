//! The block formats of GGUF files, and E4M3 as blocks: how a row of weights is stored, decoded and encoded.
//!
//! A block holds [`BlockType::len`] consecutive numbers of a row as small whole numbers q with shared scales:
//! x = w·(q − zero) − m, where w and m are f16, or in the formats of the K family (256 numbers a block) an f16 times
//! a whole number of 4 to 8 bits for each 16 or 32 numbers. Layout and rounding are those of llama.cpp
//! (ggml-common.h, ggml-quants.c: `dequantize_row_*`, `quantize_row_*_ref`); `scripts/oracle/make_blocks.py` has the
//! values that the tests compare with. w and m are exact in f32, so a decoded number is rounded at most once.

use half::f16;

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
    /// E4M3, none of them NaN, behind an f32 scale for 128: a row of a block of 128×128 of DeepSeek's checkpoints. In
    /// no GGUF file; the processor's products take its numbers in f32.
    E4m3,
}

/// Numbers in a block of the K family.
pub(crate) const SUPER: usize = 256;

impl BlockType {
    /// All types of GGUF's files.
    pub const ALL: [BlockType; 13] = [
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
            BlockType::E4m3 => "E4M3",
        }
    }

    /// Numbers in a block; rows are whole blocks.
    #[allow(clippy::len_without_is_empty)]
    pub const fn len(self) -> usize {
        match self {
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 => 1,
            BlockType::Q8_0 | BlockType::Q4_0 | BlockType::Q4_1 | BlockType::Q5_0 | BlockType::Q5_1 => 32,
            BlockType::Q2K | BlockType::Q3K | BlockType::Q4K | BlockType::Q5K | BlockType::Q6K => SUPER,
            BlockType::E4m3 => 128,
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
            _ => 32,
        }
    }

    /// The whole number that stands for zero.
    pub(crate) const fn zero(self) -> u8 {
        match self {
            BlockType::Q8_0 => 128,
            BlockType::Q4_0 => 8,
            BlockType::Q5_0 => 16,
            BlockType::Q3K => 4,
            BlockType::Q6K => 32,
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
    let (zero, group) = (i32::from(from.zero()), from.group());
    for (g, out) in out.chunks_exact_mut(group).enumerate() {
        let (scale, minimum) = parts.scale(g);
        for (out, &q) in out.iter_mut().zip(&parts.quants[g * group..]) {
            // Both f32 steps as in ggml; the product is exact.
            *out = scale * (i32::from(q) - zero) as f32 - minimum;
        }
    }
}

/// A block of `LEN` as numbers: element i is `scale·(quants[i] − zero) − minimum`, with the scale and minimum of its
/// group.
pub(crate) struct Parts<const LEN: usize> {
    pub quants: [u8; LEN],
    /// f16 bits that all scales share, and all minima.
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
            BlockType::F32 | BlockType::F16 | BlockType::Bf16 | BlockType::E4m3 => {
                unreachable!("{} has no parts", from.name())
            }
        }
        parts
    }

    /// The scale and the minimum of group g, exact.
    pub fn scale(&self, g: usize) -> (f32, f32) {
        let times = |bits: u16, factor: i8| f16::from_bits(bits).to_f32() * f32::from(factor);
        (times(self.scale, self.scales[g]), times(self.minimum, self.minima[g]))
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

fn u16_at(bytes: &[u8], at: usize) -> u16 {
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

//! Codebooks: the numbers that codes of GGUF's IQ types and of E2M1 stand for.
//!
//! Short codes of four bits stand for one number ([`Codes`]), long ones for four or eight. The tables of the long ones
//! lie beside this file as the `gguf` package has them, two or four bits a number; `scripts/oracle/make_codebooks.py`
//! writes them. Source: ggml-common.h and ggml-quants.c of llama.cpp, `dequantize_row_iq*`.

use std::sync::LazyLock;

use super::blocks::{BlockType, Parts, u16_at};

/// What quants of four bits stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codes {
    /// Themselves, less the zero of their type.
    None,
    /// The entries of IQ4.
    Iq4,
    /// Twice the numbers of E2M1.
    E2m1,
}

impl Codes {
    /// The entries of the codebook.
    pub const fn entries(self) -> &'static [i8; 16] {
        match self {
            Codes::None => &[0; 16],
            Codes::Iq4 => &[-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113],
            Codes::E2m1 => &[0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12],
        }
    }

    /// What is added to entries for them to be bytes without a sign.
    pub const fn zero(self) -> u8 {
        match self {
            Codes::None => 0,
            Codes::Iq4 => 128,
            Codes::E2m1 => 12,
        }
    }

    /// The entries with [`Codes::zero`] added.
    pub const fn unsigned(self) -> [u8; 16] {
        let (mut bytes, mut i) = ([0; 16], 0);
        while i < 16 {
            bytes[i] = (self.entries()[i] as i16 + self.zero() as i16) as u8;
            i += 1;
        }
        bytes
    }
}

/// Vectors of whole numbers, as many bytes each as a code stands for.
type Grid<const N: usize> = Vec<[i8; N]>;

fn unpack<const N: usize>(packed: &[u8], bits: usize, numbers: &[i8]) -> Grid<N> {
    let fields = packed.iter().flat_map(|byte| (0..8 / bits).map(move |i| byte >> (i * bits) & ((1 << bits) - 1)));
    let all: Vec<i8> = fields.map(|field| numbers[usize::from(field)]).collect();
    all.as_chunks().0.to_vec()
}

macro_rules! grid {
    ($name:ident, $length:literal, $file:literal, $bits:literal, $numbers:expr) => {
        static $name: LazyLock<Grid<$length>> =
            LazyLock::new(|| unpack(include_bytes!(concat!("codebooks/", $file)), $bits, &$numbers));
    };
}

const TWO_BITS: [i8; 4] = [8, 25, 43, 0];
grid!(IQ2_XXS, 8, "iq2_xxs.bin", 2, TWO_BITS);
grid!(IQ2_XS, 8, "iq2_xs.bin", 2, TWO_BITS);
grid!(IQ2_S, 8, "iq2_s.bin", 2, TWO_BITS);
grid!(IQ3_XXS, 4, "iq3_xxs.bin", 4, [4, 12, 20, 28, 36, 44, 52, 62, 0, 0, 0, 0, 0, 0, 0, 0]);
grid!(IQ3_S, 4, "iq3_s.bin", 4, [1, 3, 5, 7, 9, 11, 13, 15, 0, 0, 0, 0, 0, 0, 0, 0]);
// Eighths, to which the shift by one of them is added.
grid!(IQ1, 8, "iq1_s.bin", 2, [-8, 0, 8, 0]);

/// Seven bits of signs, and the eighth, for which their number is even.
fn with_parity(seven: u32) -> u8 {
    let seven = (seven & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

/// Eight numbers, those negative whose bit is set.
fn put(quants: &mut [u8], numbers: impl Iterator<Item = i8>, signs: u8) {
    for (i, (quant, number)) in quants.iter_mut().zip(numbers).enumerate() {
        let signed = if signs >> i & 1 == 1 { -number } else { number };
        *quant = (signed as u8) ^ 0x80;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

/// Takes a block of a type with long codes apart. Quants have 128 as zero.
pub(super) fn read<const LEN: usize>(from: BlockType, block: &[u8], parts: &mut Parts<LEN>) {
    parts.scale = u16_at(block, 0);
    match from {
        BlockType::Iq2Xxs => read_iq2xxs(block, parts),
        BlockType::Iq2Xs => read_iq2xs(block, parts),
        BlockType::Iq2S => read_iq2s(block, parts),
        BlockType::Iq3Xxs => read_iq3xxs(block, parts),
        BlockType::Iq3S => read_iq3s(block, parts),
        BlockType::Iq1S => read_iq1s(block, parts),
        BlockType::Iq1M => read_iq1m(block, parts),
        other => unreachable!("{} has no long codes", other.name()),
    }
}

fn odd(nibble: u8) -> i8 {
    (2 * nibble + 1) as i8
}

/// d; for each 32 four codes, and a word of four times 7 signs and a scale.
fn read_iq2xxs<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    for (g, quants) in parts.quants.chunks_exact_mut(32).enumerate() {
        let (codes, word) = (&block[2 + 8 * g..][..4], u32_at(block, 6 + 8 * g));
        parts.scales[g] = odd((word >> 28) as u8);
        for (j, (quants, code)) in quants.chunks_exact_mut(8).zip(codes).enumerate() {
            put(quants, IQ2_XXS[usize::from(*code)].into_iter(), with_parity(word >> (7 * j)));
        }
    }
}

/// d; for each 8 a code of 9 bits and 7 signs; nibbles of scales.
fn read_iq2xs<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    for (i, quants) in parts.quants.chunks_exact_mut(8).enumerate() {
        let word = u16_at(block, 2 + 2 * i);
        put(quants, IQ2_XS[usize::from(word & 511)].into_iter(), with_parity(u32::from(word >> 9)));
    }
    scales_of_16(&block[66..], &mut parts.scales);
}

fn scales_of_16(bytes: &[u8], scales: &mut [i8; 16]) {
    for (g, scale) in scales.iter_mut().enumerate() {
        *scale = odd(bytes[g / 2] >> (g % 2 * 4) & 15);
    }
}

/// d; lower bits of the codes, signs, upper bits of the codes, nibbles of scales.
fn read_iq2s<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    for (i, quants) in parts.quants.chunks_exact_mut(8).enumerate() {
        let high = usize::from(block[66 + i / 4] >> (i % 4 * 2) & 3);
        let code = usize::from(block[2 + i]) | high << 8;
        put(quants, IQ2_S[code].into_iter(), block[34 + i]);
    }
    scales_of_16(&block[74..], &mut parts.scales);
}

/// d; codes of four; for each 32 a word of four times 7 signs and a scale.
fn read_iq3xxs<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    for (g, quants) in parts.quants.chunks_exact_mut(32).enumerate() {
        let word = u32_at(block, 66 + 4 * g);
        parts.scales[g] = odd((word >> 28) as u8);
        for (j, quants) in quants.chunks_exact_mut(8).enumerate() {
            let [a, b] = [0, 1].map(|half| IQ3_XXS[usize::from(block[2 + 8 * g + 2 * j + half])]);
            put(quants, a.into_iter().chain(b), with_parity(word >> (7 * j)));
        }
    }
}

/// d; lower bits of the codes of four, upper bits, signs, nibbles of scales.
fn read_iq3s<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    let code = |i: usize| usize::from(block[2 + i]) | usize::from(block[66 + i / 8] >> (i % 8) & 1) << 8;
    for (i, quants) in parts.quants.chunks_exact_mut(8).enumerate() {
        put(quants, IQ3_S[code(2 * i)].into_iter().chain(IQ3_S[code(2 * i + 1)]), block[74 + i]);
    }
    for (g, scale) in parts.scales[..8].iter_mut().enumerate() {
        *scale = odd(block[106 + g / 2] >> (g % 2 * 4) & 15);
    }
}

/// Adds an eighth, or takes it away.
fn put_shifted(quants: &mut [u8], numbers: [i8; 8], less: bool) {
    put(quants, numbers.into_iter().map(|number| if less { number - 1 } else { number + 1 }), 0);
}

/// d; lower bits of the codes; for each 32 four times 3 upper bits, a scale, and the sign of the shift.
fn read_iq1s<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    for (g, quants) in parts.quants.chunks_exact_mut(32).enumerate() {
        let word = u16_at(block, 34 + 2 * g);
        parts.scales[g] = odd((word >> 12 & 7) as u8);
        for (j, quants) in quants.chunks_exact_mut(8).enumerate() {
            let code = usize::from(block[2 + 4 * g + j]) | usize::from(word >> (3 * j) & 7) << 8;
            put_shifted(quants, IQ1[code], word & 0x8000 != 0);
        }
    }
}

/// Lower bits of the codes; nibbles of 3 upper bits and the sign of the shift; four words of four scales each and a
/// quarter of d.
fn read_iq1m<const LEN: usize>(block: &[u8], parts: &mut Parts<LEN>) {
    let word = |i: usize| u16_at(block, 48 + 2 * i);
    parts.scale = (0..4).fold(0, |bits, i| bits | (word(i) >> 12) << (4 * i));
    for (g, scale) in parts.scales.iter_mut().enumerate() {
        *scale = odd((word(g / 4) >> (g % 4 * 3) & 7) as u8);
    }
    for (i, quants) in parts.quants.chunks_exact_mut(8).enumerate() {
        let nibble = block[32 + i / 2] >> (i % 2 * 4);
        put_shifted(quants, IQ1[usize::from(block[i]) | usize::from(nibble & 7) << 8], nibble & 8 != 0);
    }
}

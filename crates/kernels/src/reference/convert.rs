//! Conversions of single numbers, the slow way.

use crate::convert::E4M3;
use half::{bf16, f16};

/// Reference of [`crate::convert::to_bf16`].
pub fn to_bf16(x: f32) -> u16 {
    bf16::from_f32(x).to_bits()
}

/// Reference of [`crate::convert::from_bf16`].
pub fn from_bf16(bits: u16) -> f32 {
    bf16::from_bits(bits).to_f32()
}

/// Reference of [`crate::convert::to_f16s`] for one number.
pub fn to_f16(x: f32) -> u16 {
    f16::from_f32_const(x).to_bits()
}

/// Reference of [`crate::convert::from_f16s`] for one number.
pub fn from_f16(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// Reference of [`crate::convert::to_e4m3`]: the nearest of all 127 sizes, the one with an even last bit of two.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return sign | 0x7f;
    }
    let distance = |bits: u8| (f64::from(E4M3[bits as usize]) - f64::from(x.abs())).abs();
    let nearer = |a: u8, b: u8| distance(b) < distance(a) || (distance(b) == distance(a) && b.is_multiple_of(2));
    let infinite = if x.is_infinite() { 0x7e } else { 0 };
    sign | (1..0x7f).fold(infinite, |best, bits| if nearer(best, bits) { bits } else { best })
}

//! Between f32 and the narrow formats of weights on disk, as bits. To the narrow ones rounds to nearest, ties to even.

use crate::lanes::{Lanes, dispatch};
use crate::par::{self, TASK};
use half::f16;
use half::slice::{HalfBitsSliceExt, HalfFloatSliceExt};

/// The bits of the nearest bf16; NaN becomes a quiet NaN.
#[inline(always)]
pub fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    (if x.is_nan() { bits >> 16 | 0x40 } else { rounded }) as u16
}

/// The value of bf16 bits.
#[inline(always)]
pub fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// [`to_bf16`] of each element.
pub fn to_bf16s(x: &[f32], y: &mut [u16]) {
    pieces(x, y, |x, y| {
        // SAFETY: `pieces` gives both slices one length.
        unsafe { dispatch!(to_bf16_piece(x: &[f32], y: &mut [u16])) }
    });
}

/// [`from_bf16`] of each element.
pub fn from_bf16s(x: &[u16], y: &mut [f32]) {
    pieces(x, y, |x, y| {
        // SAFETY: `pieces` gives both slices one length.
        unsafe { dispatch!(from_bf16_piece(x: &[u16], y: &mut [f32])) }
    });
}

/// The bits of the nearest f16 of each element; infinite from 65520 on.
pub fn to_f16s(x: &[f32], y: &mut [u16]) {
    pieces(x, y, |x, y| y.reinterpret_cast_mut::<f16>().convert_from_f32_slice(x));
}

/// The value of each element's f16 bits.
pub fn from_f16s(x: &[u16], y: &mut [f32]) {
    pieces(x, y, |x, y| x.reinterpret_cast::<f16>().convert_to_f32_slice(y));
}

/// The values of E4M3 (the variant without infinities, `e4m3fn`; P. Micikevicius et al., 2022) by their bits.
pub static E4M3: [f32; 256] = e4m3_table();

const E4M3_MAX: f32 = 448.0;
const E4M3_NAN: u8 = 0x7f;

const fn e4m3_table() -> [f32; 256] {
    let mut table = [0.0; 256];
    let mut bits = 0;
    while bits < 256 {
        let (exponent, mantissa) = ((bits >> 3 & 15) as u32, (bits & 7) as u32);
        let size = if exponent == 15 && mantissa == 7 {
            f32::NAN
        } else if exponent == 0 {
            mantissa as f32 / 512.0
        } else {
            f32::from_bits((exponent + 127 - 7) << 23 | mantissa << 20)
        };
        table[bits] = if bits < 128 { size } else { -size };
        bits += 1;
    }
    table
}

/// The bits of the nearest E4M3; what is beyond ±448, infinities too, becomes ±448.
pub fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24 & 0x80) as u8;
    let size = x.abs();
    if size.is_nan() {
        return sign | E4M3_NAN;
    }
    let size = size.min(E4M3_MAX);
    let bits = if size < 1.0 / 64.0 {
        // Subnormal: whole multiples of 2^-9; eight of them are the least normal number, whose bits are 8.
        (size * 512.0).round_ties_even() as u32
    } else {
        let bits = size.to_bits();
        let rounded = (bits + 0x7ffff + (bits >> 20 & 1)) >> 20;
        rounded - ((127 - 7) << 3)
    };
    sign | bits as u8
}

/// [`to_e4m3`] of each element.
pub fn to_e4m3s(x: &[f32], y: &mut [u8]) {
    pieces(x, y, |x, y| y.iter_mut().zip(x).for_each(|(y, &x)| *y = to_e4m3(x)));
}

/// The value of each element's E4M3 bits.
pub fn from_e4m3s(x: &[u8], y: &mut [f32]) {
    pieces(x, y, |x, y| y.iter_mut().zip(x).for_each(|(y, &x)| *y = E4M3[x as usize]));
}

fn pieces<A: Sync, B: Send>(x: &[A], y: &mut [B], work: impl Fn(&[A], &mut [B]) + Sync) {
    assert_eq!(x.len(), y.len(), "from and to");
    par::chunks_mut(y, TASK, |task, y| work(&x[task * TASK..task * TASK + y.len()], y));
}

// Plain loops over whole numbers, which the compiler makes into the set's instructions.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn to_bf16_piece<L: Lanes>(x: &[f32], y: &mut [u16]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = to_bf16(x));
}

#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn from_bf16_piece<L: Lanes>(x: &[u16], y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, &x)| *y = from_bf16(x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::{self, Isa};
    use crate::reference::convert as reference;

    /// Numbers of all exponents, halfway cases of every format among them.
    fn numbers() -> Vec<f32> {
        let spread = (0..=u32::MAX).step_by(65_521).map(f32::from_bits);
        let ties = (0..=u32::MAX >> 12).map(|high| f32::from_bits(high << 12));
        spread.chain(ties.step_by(7)).collect()
    }

    #[test]
    fn bf16_and_f16_round_as_the_reference() {
        let x = numbers();
        for isa in Isa::all_available() {
            let (mut bf16, mut f16) = (vec![0; x.len()], vec![0; x.len()]);
            isa::with(isa, || to_bf16s(&x, &mut bf16));
            isa::with(isa, || to_f16s(&x, &mut f16));
            for (i, &x) in x.iter().enumerate() {
                assert_eq!(bf16[i], reference::to_bf16(x), "bf16 of {x:e} ({})", isa.name());
                assert_eq!(f16[i], reference::to_f16(x), "f16 of {x:e} ({})", isa.name());
            }
        }
    }

    #[test]
    fn all_bf16_and_f16_go_to_f32_and_back() {
        let bits: Vec<u16> = (0..=u16::MAX).collect();
        let (mut wide, mut back) = (vec![0.0; bits.len()], vec![0; bits.len()]);
        from_bf16s(&bits, &mut wide);
        to_bf16s(&wide, &mut back);
        for (&bits, (wide, &back)) in bits.iter().zip(wide.iter().zip(&back)) {
            let expected = reference::from_bf16(bits);
            assert!(*wide == expected || wide.is_nan() && expected.is_nan(), "bf16 {bits:#x}");
            assert!(back == bits || wide.is_nan() && back == bits | 0x40, "bf16 {bits:#x} becomes {back:#x}");
        }
        from_f16s(&bits, &mut wide);
        to_f16s(&wide, &mut back);
        for (&bits, (wide, &back)) in bits.iter().zip(wide.iter().zip(&back)) {
            let expected = reference::from_f16(bits);
            assert!(*wide == expected || wide.is_nan() && expected.is_nan(), "f16 {bits:#x}");
            assert!(back == bits || wide.is_nan(), "f16 {bits:#x} becomes {back:#x}");
        }
    }

    #[test]
    fn e4m3_is_the_nearest_value() {
        for x in numbers().into_iter().step_by(5) {
            assert_eq!(to_e4m3(x), reference::to_e4m3(x), "e4m3 of {x:e}");
        }
        for bits in 0..=u8::MAX {
            let mut back = [0];
            to_e4m3s(&[E4M3[bits as usize]], &mut back);
            assert_eq!(back[0], bits);
        }
        let mut values = [0.0; 5];
        from_e4m3s(&[0x01, 0x08, 0x38, 0x7e, 0xfe], &mut values);
        assert_eq!(values, [1.0 / 512.0, 1.0 / 64.0, 1.0, 448.0, -448.0]);
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!((to_e4m3(1e9), to_e4m3(f32::NEG_INFINITY)), (0x7e, 0xfe));
    }
}

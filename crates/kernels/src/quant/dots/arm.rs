//! Products of whole numbers on NEON.

use super::{Dots, Lanes, lanes};
use std::arch::aarch64::*;

/// NEON, whose products of signed bytes are added in 16 bits by pairs: exact, since no term of x is −128.
#[derive(Clone, Copy)]
pub struct Neon;

type Four = [uint8x16_t; 4];

// SAFETY: NEON is part of every 64-bit Arm.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for Neon {
    type Lanes = lanes::Neon;
    type Bytes = Four;
    type Sums = [int32x4_t; 4];
    const WIDE_ZERO: u8 = 0;
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> Four {
        std::array::from_fn(|i| unsafe { vld1q_u8(p.add(16 * i)) })
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: Four) -> (Four, Four) {
        unsafe { (bytes.map(|x| vandq_u8(x, vdupq_n_u8(15))), bytes.map(|x| vshrq_n_u8::<4>(x))) }
    }
    #[inline(always)]
    unsafe fn entries(codes: Four, table: &[u8; 16]) -> Four {
        std::array::from_fn(|i| unsafe { vqtbl1q_u8(vld1q_u8(table.as_ptr()), codes[i]) })
    }
    #[inline(always)]
    unsafe fn with_fifth(bytes: Four, plane: Four, g: usize) -> Four {
        std::array::from_fn(|i| unsafe {
            let plane = vshlq_u8(plane[i], vdupq_n_s8(4 - g as i8));
            vorrq_u8(bytes[i], vandq_u8(plane, vdupq_n_u8(16)))
        })
    }
    #[inline(always)]
    unsafe fn with_sixth(bytes: Four, plane: Four, g: usize) -> Four {
        std::array::from_fn(|i| unsafe {
            let plane = vshlq_u8(plane[i], vdupq_n_s8(4 - 2 * g as i8));
            vorrq_u8(bytes[i], vandq_u8(plane, vdupq_n_u8(48)))
        })
    }
    #[inline(always)]
    unsafe fn sums(start: *const i32) -> [int32x4_t; 4] {
        unsafe { [vdupq_n_s32(start.read()); 4] }
    }
    #[inline(always)]
    unsafe fn dot(sums: [int32x4_t; 4], terms: Four, a: *const i8) -> [int32x4_t; 4] {
        std::array::from_fn(|i| unsafe {
            let a = vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read()));
            let terms = vreinterpretq_s8_u8(terms[i]);
            let low = vmull_s8(vget_low_s8(terms), vget_low_s8(a));
            vpadalq_s16(sums[i], vpaddq_s16(low, vmull_high_s8(terms, a)))
        })
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: [int32x4_t; 4], terms: Four, a: *const i8) -> [int32x4_t; 4] {
        unsafe { Self::dot(sums, terms.map(|x| veorq_u8(x, vdupq_n_u8(128))), a) }
    }
    #[inline(always)]
    unsafe fn floats(sums: [int32x4_t; 4]) -> lanes::Neon {
        lanes::Neon(sums.map(|sum| unsafe { vcvtq_f32_s32(sum) }))
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> lanes::Neon {
        unsafe { lanes::Neon::load(super::halves(p).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn upper_halves(p: *const u16) -> lanes::Neon {
        lanes::Neon(std::array::from_fn(|i| unsafe {
            vreinterpretq_f32_u32(vshlq_n_u32::<16>(vmovl_u16(vld1_u16(p.add(4 * i)))))
        }))
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> lanes::Neon {
        unsafe { lanes::Neon::load(p.cast::<[i8; 16]>().read().map(f32::from).as_ptr()) }
    }
}

//! Lanes of NEON.

use super::{LANES, Lanes, fma_flushed};
use std::arch::aarch64::*;
use std::arch::asm;

/// Four registers of NEON.
#[derive(Clone, Copy)]
pub struct Neon(pub(crate) [float32x4_t; 4]);

#[inline(always)]
fn zip(a: Neon, b: Neon, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Neon {
    Neon(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

/// Four vectors of four as the rows of a square: its columns.
///
/// # Safety
/// None beyond NEON, which is part of every 64-bit Arm.
#[inline(always)]
unsafe fn transpose_four([a, b, c, d]: [float32x4_t; 4]) -> [float32x4_t; 4] {
    // SAFETY: NEON by this function's contract.
    unsafe {
        let wide = |x| vreinterpretq_f64_f32(x);
        let (ab, cd) = ((vtrn1q_f32(a, b), vtrn2q_f32(a, b)), (vtrn1q_f32(c, d), vtrn2q_f32(c, d)));
        [
            vreinterpretq_f32_f64(vtrn1q_f64(wide(ab.0), wide(cd.0))),
            vreinterpretq_f32_f64(vtrn1q_f64(wide(ab.1), wide(cd.1))),
            vreinterpretq_f32_f64(vtrn2q_f64(wide(ab.0), wide(cd.0))),
            vreinterpretq_f32_f64(vtrn2q_f64(wide(ab.1), wide(cd.1))),
        ]
    }
}

// SAFETY: NEON is part of every 64-bit Arm.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Lanes for Neon {
    const TILE: (usize, usize) = (6, 1);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Neon([vdupq_n_f32(x); 4]) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        Neon(std::array::from_fn(|i| unsafe { vld1q_f32(p.add(4 * i)) }))
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        for i in 0..4 {
            unsafe { vst1q_f32(p.add(4 * i), self.0[i]) }
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        let mut whole = [0.0; 16];
        unsafe {
            std::ptr::copy_nonoverlapping(p, whole.as_mut_ptr(), n);
            Self::load(whole.as_ptr())
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe { std::ptr::copy_nonoverlapping(self.to_array().as_ptr(), p, n) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vaddq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vsubq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vmulq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vdivq_f32(a, b) })
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Neon(self.0.map(|a| unsafe { vsqrtq_f32(a) }))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Neon(std::array::from_fn(|i| unsafe { vfmaq_f32(c.0[i], self.0[i], b.0[i]) }))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vbslq_f32(vcgtq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        zip(self, o, |a, b| unsafe { vbslq_f32(vcltq_f32(a, b), a, b) })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Neon(self.0.map(|a| unsafe { vrndnq_f32(a) }))
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        Neon(self.0.map(|a| unsafe {
            let biased = vaddq_s32(vcvtnq_s32_f32(a), vdupq_n_s32(127));
            vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
        }))
    }
    #[inline(always)]
    unsafe fn fma_flushed(self, b: Self, c: Self) -> Self {
        unsafe {
            let sums = self.fma(b, c);
            let mut any = vdupq_n_u32(0);
            for sum in sums.0 {
                let size = vabsq_f32(sum);
                let tiny = vandq_u32(vcleq_f32(size, vdupq_n_f32(f32::MIN_POSITIVE)), vcgtzq_f32(size));
                any = vorrq_u32(any, tiny);
            }
            if vmaxvq_u32(any) == 0 {
                return sums;
            }
            let (a, b, c) = (self.to_array(), b.to_array(), c.to_array());
            let mut exact = [0.0; LANES];
            for (i, sum) in exact.iter_mut().enumerate() {
                *sum = fma_flushed(a[i], b[i], c[i]);
            }
            Self::load(exact.as_ptr())
        }
    }
    #[inline(always)]
    fn prefetch_write(p: *const f32) {
        unsafe { asm!("prfm pstl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    fn prefetch_read(p: *const f32) {
        unsafe { asm!("prfm pldl1keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    fn prefetch_far(p: *const f32) {
        unsafe { asm!("prfm pldl2keep, [{}]", in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        Neon(std::array::from_fn(|i| unsafe { vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p.add(4 * i)))) }))
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        for i in 0..4 {
            unsafe { vst1_u16(p.add(4 * i), vreinterpret_u16_f16(vcvt_f16_f32(self.0[i]))) }
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        let mut out = rows;
        for i in 0..4 {
            for j in 0..4 {
                let square: [float32x4_t; 4] = std::array::from_fn(|k| rows[4 * i + k].0[j]);
                for (k, column) in unsafe { transpose_four(square) }.into_iter().enumerate() {
                    out[4 * j + k].0[i] = column;
                }
            }
        }
        out
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        let [a, b, c, d] = self.0;
        unsafe {
            // Lane i with i + 8, then i + 4, i + 2, i + 1.
            let four = vaddq_f32(vaddq_f32(a, c), vaddq_f32(b, d));
            let two = vadd_f32(vget_low_f32(four), vget_high_f32(four));
            vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
        }
    }
}

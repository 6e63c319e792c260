//! Lanes of AVX2 and AVX-512.
//!
//! No closures over intrinsics: one that is not inlined is compiled without the instructions, and each of its
//! intrinsics becomes a call, at a twentieth of the speed. `cargo xtask inlined` finds them.

use super::{LANES, Lanes};
use std::arch::x86_64::*;

/// Two registers of AVX2.
#[derive(Clone, Copy)]
pub struct Avx2(pub(crate) __m256, pub(crate) __m256);

/// One register of AVX-512.
#[derive(Clone, Copy)]
pub struct Avx512(pub(crate) __m512);

/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn mask(n: usize) -> __m256i {
    // SAFETY: AVX2 by this function's contract.
    unsafe {
        let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), index)
    }
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn exp2_whole(x: __m256) -> __m256 {
    // SAFETY: AVX2 by this function's contract.
    unsafe {
        let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
        _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
    }
}

/// As [`super::to_bf16`].
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn round_bf16_avx2(x: __m256) -> __m256 {
    // SAFETY: AVX2 by this function's contract.
    unsafe {
        let bits = _mm256_castps_si256(x);
        let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
        let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
        let exponent = _mm256_and_si256(bits, _mm256_set1_epi32(0x7f80_0000));
        let tiny = _mm256_cmpeq_epi32(exponent, _mm256_setzero_si256());
        let rounded = _mm256_blendv_epi8(rounded, _mm256_and_si256(bits, _mm256_set1_epi32(i32::MIN)), tiny);
        let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
        let rounded = _mm256_blendv_epi8(rounded, _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000)), nan);
        _mm256_castsi256_ps(_mm256_and_si256(rounded, _mm256_set1_epi32(0xffff_0000_u32 as i32)))
    }
}

// SAFETY: each body is AVX2 and FMA, which the trait's users have checked.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Lanes for Avx2 {
    const TILE: (usize, usize) = (6, 1);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx2(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx2(_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe {
            _mm256_storeu_ps(p, self.0);
            _mm256_storeu_ps(p.add(8), self.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe {
            let (a, b) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
            Avx2(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b))
        }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        unsafe {
            _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0));
            _mm_storeu_si128(p.add(8).cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.1));
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        unsafe {
            if n <= 8 {
                Avx2(_mm256_maskload_ps(p, mask(n)), _mm256_setzero_ps())
            } else {
                Avx2(_mm256_loadu_ps(p), _mm256_maskload_ps(p.add(8), mask(n - 8)))
            }
        }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        unsafe {
            if n <= 8 {
                _mm256_maskstore_ps(p, mask(n), self.0);
            } else {
                _mm256_storeu_ps(p, self.0);
                _mm256_maskstore_ps(p.add(8), mask(n - 8), self.1);
            }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_add_ps(self.0, o.0), _mm256_add_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_sub_ps(self.0, o.0), _mm256_sub_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_mul_ps(self.0, o.0), _mm256_mul_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_div_ps(self.0, o.0), _mm256_div_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        unsafe { Avx2(_mm256_sqrt_ps(self.0), _mm256_sqrt_ps(self.1)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Avx2(_mm256_fmadd_ps(self.0, b.0, c.0), _mm256_fmadd_ps(self.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_max_ps(self.0, o.0), _mm256_max_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { Avx2(_mm256_min_ps(self.0, o.0), _mm256_min_ps(self.1, o.1)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { Avx2(_mm256_round_ps::<NEAREST>(self.0), _mm256_round_ps::<NEAREST>(self.1)) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        unsafe { Avx2(exp2_whole(self.0), exp2_whole(self.1)) }
    }
    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        unsafe { Avx2(round_bf16_avx2(self.0), round_bf16_avx2(self.1)) }
    }
}

/// As [`super::round_bf16`].
///
/// # Safety
/// The machine has AVX-512.
#[inline(always)]
unsafe fn round_bf16(x: __m512) -> __m512i {
    // SAFETY: AVX-512 by this function's contract.
    unsafe {
        let bits = _mm512_castps_si512(x);
        let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
        let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        let tiny = _mm512_testn_epi32_mask(bits, _mm512_set1_epi32(0x7f80_0000));
        let rounded = _mm512_mask_and_epi32(rounded, tiny, bits, _mm512_set1_epi32(i32::MIN));
        let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
        _mm512_mask_or_epi32(rounded, nan, bits, _mm512_set1_epi32(0x0040_0000))
    }
}

// SAFETY: each body is AVX-512, which the trait's users have checked.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Lanes for Avx512 {
    const TILE: (usize, usize) = (12, 2);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        unsafe { Avx512(_mm512_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        unsafe { Avx512(_mm512_loadu_ps(p)) }
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        unsafe { _mm512_storeu_ps(p, self.0) }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        unsafe { Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        debug_assert!(n < LANES);
        unsafe { Avx512(_mm512_maskz_loadu_ps((1u16 << n) - 1, p)) }
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        debug_assert!(n < LANES);
        unsafe { _mm512_mask_storeu_ps(p, (1u16 << n) - 1, self.0) }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_add_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_sub_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_mul_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_div_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        unsafe { Avx512(_mm512_sqrt_ps(self.0)) }
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        unsafe { Avx512(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_max_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        unsafe { Avx512(_mm512_min_ps(self.0, o.0)) }
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        unsafe { Avx512(_mm512_roundscale_ps::<0>(self.0)) }
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        unsafe {
            let biased = _mm512_add_epi32(_mm512_cvtps_epi32(self.0), _mm512_set1_epi32(127));
            Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased)))
        }
    }
    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        unsafe {
            let rounded = _mm512_and_si512(round_bf16(self.0), _mm512_set1_epi32(0xffff_0000_u32 as i32));
            Avx512(_mm512_castsi512_ps(rounded))
        }
    }
    #[inline(always)]
    unsafe fn pair_with(self, lower: Self) -> Self {
        unsafe {
            let upper = _mm512_and_si512(round_bf16(self.0), _mm512_set1_epi32(0xffff_0000_u32 as i32));
            let lower = _mm512_srli_epi32::<16>(round_bf16(lower.0));
            Avx512(_mm512_castsi512_ps(_mm512_or_si512(upper, lower)))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(p: *const f32) -> Self {
        unsafe {
            // In each 64 bits the earlier term is the lower one.
            let (a, b) = (round_bf16(_mm512_loadu_ps(p)), round_bf16(_mm512_loadu_ps(p.add(16))));
            let mask = _mm512_set1_epi64(0xffff_0000);
            let a = _mm512_or_si512(_mm512_and_si512(a, mask), _mm512_srli_epi64::<48>(a));
            let b = _mm512_or_si512(_mm512_and_si512(b, mask), _mm512_srli_epi64::<48>(b));
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            Avx512(_mm512_castsi512_ps(_mm512_permutex2var_epi32(a, even, b)))
        }
    }
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        unsafe {
            let mut a = [_mm512_setzero_pd(); LANES];
            for (a, row) in a.iter_mut().zip(&rows) {
                *a = _mm512_castps_pd(row.0);
            }
            // Two by two, then four by four, within each quarter of the registers.
            for i in (0..16).step_by(2) {
                let (x, y) = (_mm512_castpd_ps(a[i]), _mm512_castpd_ps(a[i + 1]));
                a[i] = _mm512_castps_pd(_mm512_unpacklo_ps(x, y));
                a[i + 1] = _mm512_castps_pd(_mm512_unpackhi_ps(x, y));
            }
            for i in (0..16).step_by(4) {
                let b = [a[i], a[i + 1], a[i + 2], a[i + 3]];
                a[i] = _mm512_unpacklo_pd(b[0], b[2]);
                a[i + 1] = _mm512_unpackhi_pd(b[0], b[2]);
                a[i + 2] = _mm512_unpacklo_pd(b[1], b[3]);
                a[i + 3] = _mm512_unpackhi_pd(b[1], b[3]);
            }
            // Then the quarters among registers: a[4r + c] holds column 4q + c of rows 4r.. in quarter q.
            let mut columns = [Avx512(_mm512_setzero_ps()); LANES];
            for c in 0..4 {
                let (q0, q1) = (_mm512_castpd_ps(a[c]), _mm512_castpd_ps(a[4 + c]));
                let (q2, q3) = (_mm512_castpd_ps(a[8 + c]), _mm512_castpd_ps(a[12 + c]));
                let low01 = _mm512_shuffle_f32x4::<0x44>(q0, q1);
                let low23 = _mm512_shuffle_f32x4::<0x44>(q2, q3);
                let high01 = _mm512_shuffle_f32x4::<0xee>(q0, q1);
                let high23 = _mm512_shuffle_f32x4::<0xee>(q2, q3);
                columns[c] = Avx512(_mm512_shuffle_f32x4::<0x88>(low01, low23));
                columns[4 + c] = Avx512(_mm512_shuffle_f32x4::<0xdd>(low01, low23));
                columns[8 + c] = Avx512(_mm512_shuffle_f32x4::<0x88>(high01, high23));
                columns[12 + c] = Avx512(_mm512_shuffle_f32x4::<0xdd>(high01, high23));
            }
            columns
        }
    }
    #[inline(always)]
    fn prefetch_write(p: *const f32) {
        // A hint, which no address makes fault.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_read(p: *const f32) {
        // As above.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    fn prefetch_far(p: *const f32) {
        // As above.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
    }
}

//! Sixteen `f32` side by side: the unit in which kernels are written. Each instruction set gives the same sixteen
//! numbers (one register of AVX-512, two of AVX2, four of NEON, an array in plain Rust), so a kernel written over
//! [`Lanes`] has the same bits on all of them. Every operation is one IEEE 754 operation on each lane, rounded to
//! nearest even.
//!
//! A kernel is an `#[inline(always)]` function over `L: Lanes`, called through [`dispatch!`](crate::dispatch), which
//! compiles it once for each set with the set's instructions switched on.

/// Lanes in a vector, and partial sums in a reduction.
pub const LANES: usize = 16;

/// Sixteen `f32` with the operations that kernels need.
///
/// # Safety
/// All methods assume that the machine has the instruction set; [`dispatch!`](crate::dispatch) makes sure of it. Loads
/// and stores go to raw addresses and assume that they are valid.
#[allow(missing_docs, clippy::missing_safety_doc)]
pub unsafe trait Lanes: Copy {
    /// Rows of a product's tile, and vectors across it: what the registers hold.
    const TILE: (usize, usize);

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(p: *const f32) -> Self;
    unsafe fn store(self, p: *mut f32);
    /// The first `n < 16` lanes from memory, the others zero.
    unsafe fn load_first(p: *const f32, n: usize) -> Self;
    /// The first `n < 16` lanes to memory, nothing else touched.
    unsafe fn store_first(self, p: *mut f32, n: usize);
    unsafe fn add(self, o: Self) -> Self;
    unsafe fn sub(self, o: Self) -> Self;
    unsafe fn mul(self, o: Self) -> Self;
    unsafe fn div(self, o: Self) -> Self;
    unsafe fn sqrt(self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// The greater lane; `o` where either is NaN or both are zeros (the rule of x86's `maxps`).
    unsafe fn max(self, o: Self) -> Self;
    /// The lesser lane; `o` where either is NaN or both are zeros.
    unsafe fn min(self, o: Self) -> Self;
    /// To the nearest whole number, ties to even.
    unsafe fn round(self) -> Self;
    /// `2^self` for lanes that hold whole numbers in −126..=127.
    unsafe fn exp2_whole(self) -> Self;
    /// Zero, with the sign kept, for subnormal lanes.
    unsafe fn flush(self) -> Self;
    /// Fetches a cache line that is about to be written; any address will do.
    #[inline(always)]
    fn prefetch_write(_p: *const f32) {}
    /// Fetches a cache line that is about to be read; any address will do.
    #[inline(always)]
    fn prefetch_read(_p: *const f32) {}
    /// The same to the second-level cache.
    #[inline(always)]
    fn prefetch_far(_p: *const f32) {}
    /// The bf16 in the upper half of each lane's bits.
    unsafe fn upper_bf16(self) -> Self;
    /// The bf16 in the lower half of each lane's bits.
    unsafe fn lower_bf16(self) -> Self;

    /// Sixteen f16, widened.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller's promise; sixteen elements.
        unsafe {
            let bits = p.cast::<[u16; LANES]>().read_unaligned();
            Self::load(bits.map(|bits| half::f16::from_bits(bits).to_f32()).as_ptr())
        }
    }

    /// The nearest f16 of each lane, ties to even.
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: the caller's promise; sixteen elements.
        unsafe {
            let bits = self.to_array().map(|x| half::f16::from_f32(x).to_bits());
            p.cast::<[u16; LANES]>().write_unaligned(bits);
        }
    }

    /// Sixteen words of two bf16 terms, `self` in the upper halves: nearest even, subnormals to zero.
    #[inline(always)]
    unsafe fn pair_with(self, lower: Self) -> Self {
        // SAFETY: the caller's promise; sixteen words.
        unsafe {
            let (mut upper, lower) = (self.to_array(), lower.to_array());
            for (u, l) in upper.iter_mut().zip(lower) {
                *u = f32::from_bits(pair_bf16(*u, l));
            }
            Self::load(upper.as_ptr())
        }
    }

    /// Sixteen words of two bf16 terms from 32 consecutive numbers, the earlier ones in the upper halves.
    #[inline(always)]
    unsafe fn load_pairs(p: *const f32) -> Self {
        let mut words = [0.0; LANES];
        for (i, word) in words.iter_mut().enumerate() {
            // SAFETY: the caller's promise.
            *word = f32::from_bits(unsafe { pair_bf16(p.add(2 * i).read(), p.add(2 * i + 1).read()) });
        }
        // SAFETY: sixteen words.
        unsafe { Self::load(words.as_ptr()) }
    }

    /// Sixteen vectors as the rows of a square: its columns.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: the caller's promise; each array has sixteen elements.
        unsafe {
            let mut columns = [[0.0; LANES]; LANES];
            for (i, row) in rows.iter().enumerate() {
                for (j, x) in row.to_array().into_iter().enumerate() {
                    columns[j][i] = x;
                }
            }
            let mut out = rows;
            for (out, column) in out.iter_mut().zip(&columns) {
                *out = Self::load(column.as_ptr());
            }
            out
        }
    }

    /// The lanes as an array.
    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: sixteen elements.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The sum in the fixed tree: lane i with i+8, then i+4, i+2, i+1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: the caller's promise.
        let a = unsafe { self.to_array() };
        sum_tree(a)
    }

    /// The greatest lane (no lane is NaN).
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: the caller's promise.
        let a = unsafe { self.to_array() };
        a.into_iter().fold(f32::NEG_INFINITY, |m, x| if x > m { x } else { m })
    }
}

/// The bits of the nearest bf16 in the upper half, the lower half unspecified; ties to even, subnormals to zero.
#[inline(always)]
fn round_bf16(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let rounded = if bits & 0x7f80_0000 == 0 { bits & 0x8000_0000 } else { rounded };
    if x.is_nan() { bits | 0x0040_0000 } else { rounded }
}

/// Two numbers as a word of two bf16.
#[inline(always)]
pub fn pair_bf16(upper: f32, lower: f32) -> u32 {
    (round_bf16(upper) & 0xffff_0000) | (round_bf16(lower) >> 16)
}

/// The fixed tree in which sixteen partial sums become one.
#[inline(always)]
pub fn sum_tree(mut a: [f32; LANES]) -> f32 {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            a[i] += a[i + half];
        }
        half /= 2;
    }
    a[0]
}

/// Plain Rust lanes.
#[derive(Clone, Copy)]
pub struct Plain([f32; LANES]);

#[inline(always)]
fn zip(a: Plain, b: Plain, f: impl Fn(f32, f32) -> f32) -> Plain {
    Plain(std::array::from_fn(|i| f(a.0[i], b.0[i])))
}

// SAFETY: plain Rust runs anywhere.
unsafe impl Lanes for Plain {
    const TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Plain([x; LANES])
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller's promise.
        Plain(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller's promise.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: the caller's promise.
        Plain(std::array::from_fn(|i| if i < n { unsafe { p.add(i).read() } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: the caller's promise.
            unsafe { p.add(i).write(self.0[i]) }
        }
    }
    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        zip(self, o, |a, b| a + b)
    }
    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        zip(self, o, |a, b| a - b)
    }
    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        zip(self, o, |a, b| a * b)
    }
    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        zip(self, o, |a, b| a / b)
    }
    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        Plain(self.0.map(f32::sqrt))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        Plain(std::array::from_fn(|i| self.0[i].mul_add(b.0[i], c.0[i])))
    }
    #[inline(always)]
    unsafe fn max(self, o: Self) -> Self {
        zip(self, o, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    unsafe fn min(self, o: Self) -> Self {
        zip(self, o, |a, b| if a < b { a } else { b })
    }
    #[inline(always)]
    unsafe fn round(self) -> Self {
        Plain(self.0.map(f32::round_ties_even))
    }
    #[inline(always)]
    unsafe fn exp2_whole(self) -> Self {
        Plain(self.0.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23)))
    }
    #[inline(always)]
    unsafe fn flush(self) -> Self {
        Plain(self.0.map(|x| if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }))
    }
    #[inline(always)]
    unsafe fn upper_bf16(self) -> Self {
        Plain(self.0.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn lower_bf16(self) -> Self {
        Plain(self.0.map(|x| f32::from_bits(x.to_bits() << 16)))
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{LANES, Lanes};
    use std::arch::x86_64::*;

    /// Two registers of AVX2.
    #[derive(Clone, Copy)]
    pub struct Avx2(pub(crate) __m256, pub(crate) __m256);

    /// One register of AVX-512.
    #[derive(Clone, Copy)]
    pub struct Avx512(pub(crate) __m512);

    #[inline(always)]
    unsafe fn mask(n: usize) -> __m256i {
        // SAFETY: AVX2 by the trait's promise.
        unsafe {
            let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), index)
        }
    }

    #[inline(always)]
    unsafe fn exp2_whole(x: __m256) -> __m256 {
        // SAFETY: AVX2 by the trait's promise.
        unsafe {
            let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
            _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
        }
    }

    #[inline(always)]
    unsafe fn flush(x: __m256) -> __m256 {
        // SAFETY: AVX2 by the trait's promise.
        unsafe {
            let sign = _mm256_set1_ps(-0.0);
            let normal = _mm256_cmp_ps::<_CMP_NLT_UQ>(_mm256_andnot_ps(sign, x), _mm256_set1_ps(f32::MIN_POSITIVE));
            _mm256_and_ps(x, _mm256_or_ps(normal, sign))
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
                let half = |p: *const u16| _mm256_cvtph_ps(_mm_loadu_si128(p.cast()));
                Avx2(half(p), half(p.add(8)))
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
        unsafe fn flush(self) -> Self {
            unsafe { Avx2(flush(self.0), flush(self.1)) }
        }
        #[inline(always)]
        unsafe fn upper_bf16(self) -> Self {
            unsafe {
                let mask = _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000_u32 as i32));
                Avx2(_mm256_and_ps(self.0, mask), _mm256_and_ps(self.1, mask))
            }
        }
        #[inline(always)]
        unsafe fn lower_bf16(self) -> Self {
            unsafe {
                let shift = |x| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(x)));
                Avx2(shift(self.0), shift(self.1))
            }
        }
    }

    /// As [`super::round_bf16`].
    #[inline(always)]
    unsafe fn round_bf16(x: __m512) -> __m512i {
        // SAFETY: AVX-512 by the trait's promise.
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
        #[inline(always)]
        unsafe fn flush(self) -> Self {
            unsafe {
                let tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(_mm512_abs_ps(self.0), _mm512_set1_ps(f32::MIN_POSITIVE));
                Avx512(_mm512_mask_and_ps(self.0, tiny, self.0, _mm512_set1_ps(-0.0)))
            }
        }
        #[inline(always)]
        unsafe fn upper_bf16(self) -> Self {
            unsafe {
                let mask = _mm512_set1_epi32(0xffff_0000_u32 as i32);
                Avx512(_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), mask)))
            }
        }
        #[inline(always)]
        unsafe fn lower_bf16(self) -> Self {
            unsafe { Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0)))) }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use super::Lanes;
    use std::arch::aarch64::*;

    /// Four registers of NEON.
    #[derive(Clone, Copy)]
    pub struct Neon(pub(crate) [float32x4_t; 4]);

    #[inline(always)]
    fn zip(a: Neon, b: Neon, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Neon {
        Neon(std::array::from_fn(|i| f(a.0[i], b.0[i])))
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
        unsafe fn flush(self) -> Self {
            Neon(self.0.map(|a| unsafe {
                let sign = vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0x8000_0000));
                let tiny = vcltq_f32(vabsq_f32(a), vdupq_n_f32(f32::MIN_POSITIVE));
                vbslq_f32(tiny, vreinterpretq_f32_u32(sign), a)
            }))
        }
        #[inline(always)]
        unsafe fn upper_bf16(self) -> Self {
            Neon(self.0.map(|a| unsafe {
                vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(a), vdupq_n_u32(0xffff_0000)))
            }))
        }
        #[inline(always)]
        unsafe fn lower_bf16(self) -> Self {
            Neon(self.0.map(|a| unsafe { vreinterpretq_f32_u32(vshlq_n_u32::<16>(vreinterpretq_u32_f32(a))) }))
        }
    }
}

/// Calls an `#[inline(always)] unsafe fn kernel<L: Lanes>(…)` compiled for the active instruction set.
///
/// `dispatch!(kernel::<L>(a, b: TypeOfB, …) -> Ret)` names each argument with its type; raw pointers and `Copy` values
/// only.
#[macro_export]
macro_rules! dispatch {
    ($kernel:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller's promise.
            unsafe { $kernel::<$crate::lanes::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller's promise.
            unsafe { $kernel::<$crate::lanes::Avx2>($($arg),*) }
        }
        // The hardware's fused multiply-add gives plain code the same bits as the software's, only sooner.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "fma")]
        unsafe fn plain_fma($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the caller's promise.
            unsafe { $kernel::<$crate::lanes::Plain>($($arg),*) }
        }
        // SAFETY: the set in use is one that this machine has; the rest is the caller's promise.
        #[allow(unused_unsafe)]
        unsafe {
            match $crate::isa::active() {
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx512 => avx512($($arg),*),
                #[cfg(target_arch = "x86_64")]
                $crate::isa::Isa::Avx2 => avx2($($arg),*),
                #[cfg(target_arch = "aarch64")]
                $crate::isa::Isa::Neon => $kernel::<$crate::lanes::Neon>($($arg),*),
                #[cfg(target_arch = "x86_64")]
                _ if std::arch::is_x86_feature_detected!("fma") => plain_fma($($arg),*),
                _ => $kernel::<$crate::lanes::Plain>($($arg),*),
            }
        }
    }};
}

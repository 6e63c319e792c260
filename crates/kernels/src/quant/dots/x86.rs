//! Products of whole numbers on AVX2 and AVX-512 with VNNI.

// No closures in here: one that is not inlined is compiled without the instructions, and each of its intrinsics
// becomes a call, at a twentieth of the speed. `cargo xtask inlined` finds them.
use super::{BLOCK, Dots, TURNS, lanes};
use std::arch::x86_64::*;

/// AVX-512 with VNNI.
#[derive(Clone, Copy)]
pub struct Avx512Vnni;

/// AVX2, whose products of bytes are added in 16 bits by pairs: exact up to six bits, wider terms by halves.
#[derive(Clone, Copy)]
pub struct Avx2;

/// A shift of all bytes by `by` bits to the left, or to the right where negative; bits of the neighbour come in.
macro_rules! shift {
    ($left:ident, $right:ident, $x:expr, $by:expr) => {
        match $by {
            4 => $left::<4>($x),
            3 => $left::<3>($x),
            2 => $left::<2>($x),
            1 => $left::<1>($x),
            0 => $x,
            -1 => $right::<1>($x),
            -2 => $right::<2>($x),
            _ => $right::<3>($x),
        }
    };
}

/// The first 16 bytes of row `i` of those that begin at `p`, `stride` bytes apart, then of rows `i + 4`, `i + 8`
/// and `i + 12`.
///
/// # Safety
/// The machine has AVX-512, and the rows have 16 bytes.
#[inline(always)]
unsafe fn four_rows(p: *const u8, stride: usize, i: usize) -> __m512i {
    // SAFETY: AVX-512 and the bytes by this function's contract.
    unsafe {
        let x = _mm512_castsi128_si512(_mm_loadu_si128(p.add(i * stride).cast()));
        let x = _mm512_inserti32x4::<1>(x, _mm_loadu_si128(p.add((i + 4) * stride).cast()));
        let x = _mm512_inserti32x4::<2>(x, _mm_loadu_si128(p.add((i + 8) * stride).cast()));
        _mm512_inserti32x4::<3>(x, _mm_loadu_si128(p.add((i + 12) * stride).cast()))
    }
}

// SAFETY: each body is AVX-512 with VNNI, which the trait's users have checked.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for Avx512Vnni {
    type Lanes = lanes::Avx512;
    type Bytes = __m512i;
    type Sums = __m512i;
    const TILE: usize = 12;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(p.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: __m512i) -> (__m512i, __m512i) {
        unsafe {
            let mask = _mm512_set1_epi8(15);
            (_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask))
        }
    }
    #[inline(always)]
    unsafe fn entries(codes: __m512i, table: &[u8; 16]) -> __m512i {
        unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.as_ptr().cast())), codes) }
    }
    #[inline(always)]
    unsafe fn with_fifth(bytes: __m512i, plane: __m512i, g: usize) -> __m512i {
        unsafe {
            let plane = shift!(_mm512_slli_epi16, _mm512_srli_epi16, plane, 4 - g as i32);
            _mm512_ternarylogic_epi32::<0xea>(plane, _mm512_set1_epi8(16), bytes) // (plane & 16) | bytes
        }
    }
    #[inline(always)]
    unsafe fn with_sixth(bytes: __m512i, plane: __m512i, g: usize) -> __m512i {
        unsafe {
            let plane = shift!(_mm512_slli_epi16, _mm512_srli_epi16, plane, 4 - 2 * g as i32);
            _mm512_ternarylogic_epi32::<0xea>(plane, _mm512_set1_epi8(48), bytes)
        }
    }
    #[inline(always)]
    unsafe fn sums(start: *const i32) -> __m512i {
        unsafe { _mm512_set1_epi32(start.read()) }
    }
    #[inline(always)]
    unsafe fn dot(sums: __m512i, terms: __m512i, a: *const i8) -> __m512i {
        unsafe { _mm512_dpbusd_epi32(sums, terms, _mm512_set1_epi32(a.cast::<i32>().read())) }
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: __m512i, terms: __m512i, a: *const i8) -> __m512i {
        unsafe { Self::dot(sums, terms, a) }
    }
    #[inline(always)]
    unsafe fn floats(sums: __m512i) -> lanes::Avx512 {
        unsafe { lanes::Avx512(_mm512_cvtepi32_ps(sums)) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> lanes::Avx512 {
        unsafe { lanes::Avx512(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn upper_halves(p: *const u16) -> lanes::Avx512 {
        unsafe {
            let words = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            lanes::Avx512(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(words)))
        }
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> lanes::Avx512 {
        unsafe { lanes::Avx512(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn columns(p: *const u8, stride: usize) -> [[u32; 16]; 4] {
        unsafe {
            let (a, b) = (four_rows(p, stride, 0), four_rows(p, stride, 1));
            let (c, d) = (four_rows(p, stride, 2), four_rows(p, stride, 3));
            let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
            let (ab_upper, cd_upper) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
            std::mem::transmute::<[__m512i; 4], [[u32; 16]; 4]>([
                _mm512_unpacklo_epi64(ab, cd),
                _mm512_unpackhi_epi64(ab, cd),
                _mm512_unpacklo_epi64(ab_upper, cd_upper),
                _mm512_unpackhi_epi64(ab_upper, cd_upper),
            ])
        }
    }
    #[inline(always)]
    unsafe fn greatest_size(x: &[f32; BLOCK]) -> u32 {
        unsafe {
            let (a, b) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x[16..].as_ptr()));
            let (a, b) = (_mm512_castps_si512(_mm512_abs_ps(a)), _mm512_castps_si512(_mm512_abs_ps(b)));
            _mm512_reduce_max_epu32(_mm512_max_epu32(a, b))
        }
    }
    #[inline(always)]
    unsafe fn round_block(x: &[f32; BLOCK], inverse: f32, values: &mut [u8; BLOCK]) -> [u32; 2] {
        let mut sums = [0; 2];
        for ((x, values), sum) in x.as_chunks::<16>().0.iter().zip(values.as_chunks_mut::<16>().0).zip(&mut sums) {
            unsafe {
                let x = _mm512_mul_ps(_mm512_loadu_ps(x.as_ptr()), _mm512_set1_ps(inverse));
                let whole = _mm512_cvtps_epi32(x);
                _mm_storeu_si128(values.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole));
                *sum = _mm512_reduce_add_epi32(whole) as u32;
            }
        }
        sums
    }
}

/// The four i8 at `a`, eight times.
///
/// # Safety
/// The machine has AVX2, and four bytes are at `a`.
#[inline(always)]
unsafe fn four(a: *const i8) -> __m256i {
    // SAFETY: AVX2 and the bytes by this function's contract.
    unsafe { _mm256_set1_epi32(a.cast::<i32>().read()) }
}

/// The low nibble of each byte.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn low(x: __m256i) -> __m256i {
    // SAFETY: AVX2 by this function's contract.
    unsafe { _mm256_and_si256(x, _mm256_set1_epi8(15)) }
}

/// `bytes` with those bits of `plane` that `MASK` selects once bit `from` of each byte is moved to bit 4.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn high_bits<const MASK: i8>(bytes: __m256i, plane: __m256i, from: usize) -> __m256i {
    // SAFETY: AVX2 by this function's contract.
    unsafe {
        let plane = shift!(_mm256_slli_epi16, _mm256_srli_epi16, plane, 4 - from as i32);
        _mm256_or_si256(bytes, _mm256_and_si256(plane, _mm256_set1_epi8(MASK)))
    }
}

/// Adds each row's four terms times the four i8 at `a`, by pairs in 16 bits.
///
/// # Safety
/// The machine has AVX2, and four bytes are at `a`.
#[inline(always)]
unsafe fn more_pairs(pairs: [__m256i; 2], terms: [__m256i; 2], a: *const i8) -> [__m256i; 2] {
    // SAFETY: AVX2 and the bytes by this function's contract.
    unsafe {
        let a = four(a);
        [
            _mm256_add_epi16(pairs[0], _mm256_maddubs_epi16(terms[0], a)),
            _mm256_add_epi16(pairs[1], _mm256_maddubs_epi16(terms[1], a)),
        ]
    }
}

/// Adds both of a row's pairs, times `FACTOR`.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn add_pairs<const FACTOR: i16>(sums: [__m256i; 2], pairs: [__m256i; 2]) -> [__m256i; 2] {
    // SAFETY: AVX2 by this function's contract.
    unsafe {
        let factor = _mm256_set1_epi16(FACTOR);
        [
            _mm256_add_epi32(sums[0], _mm256_madd_epi16(pairs[0], factor)),
            _mm256_add_epi32(sums[1], _mm256_madd_epi16(pairs[1], factor)),
        ]
    }
}

/// Extends sums as [`Dots::dots`] by words that stay within 16 bits together.
///
/// # Safety
/// The machine has AVX2; `rows` rows have a word at `a` for each of `w`.
#[inline(always)]
unsafe fn dots_of_words(sums: &mut [[__m256i; 2]], rows: usize, w: &[[__m256i; 2]], a: *const i8) {
    // SAFETY: AVX2 and the rows' words by this function's contract.
    unsafe {
        let mut pairs = [[_mm256_setzero_si256(); 2]; TURNS];
        for (g, &w) in w.iter().enumerate() {
            for (i, pairs) in pairs.iter_mut().enumerate() {
                if i < rows {
                    *pairs = more_pairs(*pairs, w, a.add(i * BLOCK + 4 * g));
                }
            }
        }
        for (i, (sums, pairs)) in sums.iter_mut().zip(pairs).enumerate() {
            if i < rows {
                *sums = add_pairs::<1>(*sums, pairs);
            }
        }
    }
}

/// As [`dots_of_words`] of terms of eight bits, by their nibbles: of two rows, whose pairs the registers hold.
///
/// # Safety
/// As for [`dots_of_words`].
#[inline(always)]
unsafe fn dots_by_nibbles(sums: &mut [[__m256i; 2]], rows: usize, w: &[[__m256i; 2]], a: *const i8) {
    // SAFETY: AVX2 and the rows' words by this function's contract.
    unsafe {
        let mut pairs = [[[_mm256_setzero_si256(); 2]; 2]; 2];
        for (g, &w) in w.iter().enumerate() {
            let (low, high) = Avx2::nibbles(w);
            for (i, [of_low, of_high]) in pairs.iter_mut().enumerate() {
                if i < rows {
                    let a = a.add(i * BLOCK + 4 * g);
                    (*of_low, *of_high) = (more_pairs(*of_low, low, a), more_pairs(*of_high, high, a));
                }
            }
        }
        for (i, (sums, [low, high])) in sums.iter_mut().zip(pairs).enumerate() {
            if i < rows {
                *sums = add_pairs::<16>(add_pairs::<1>(*sums, low), high);
            }
        }
    }
}

/// Eight bf16, widened.
///
/// # Safety
/// The machine has AVX2, and eight numbers are at `p`.
#[inline(always)]
unsafe fn widen_bf16(p: *const u16) -> __m256 {
    // SAFETY: AVX2 and the numbers by this function's contract.
    unsafe {
        let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(words))
    }
}

/// The first 16 bytes of row `i` of those that begin at `p`, `stride` bytes apart, and of row `i + 4`.
///
/// # Safety
/// The machine has AVX2, and both rows have 16 bytes.
#[inline(always)]
unsafe fn two_rows(p: *const u8, stride: usize, i: usize) -> __m256i {
    // SAFETY: AVX2 and the bytes by this function's contract.
    unsafe {
        let first = _mm256_castsi128_si256(_mm_loadu_si128(p.add(i * stride).cast()));
        _mm256_inserti128_si256::<1>(first, _mm_loadu_si128(p.add((i + 4) * stride).cast()))
    }
}

// SAFETY: each body is AVX2 and F16C, which the trait's users have checked.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for Avx2 {
    type Lanes = lanes::Avx2;
    type Bytes = [__m256i; 2];
    type Sums = [__m256i; 2];
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [__m256i; 2] {
        unsafe { [_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn nibbles([a, b]: [__m256i; 2]) -> ([__m256i; 2], [__m256i; 2]) {
        unsafe { ([low(a), low(b)], [low(_mm256_srli_epi16::<4>(a)), low(_mm256_srli_epi16::<4>(b))]) }
    }
    #[inline(always)]
    unsafe fn entries([a, b]: [__m256i; 2], table: &[u8; 16]) -> [__m256i; 2] {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.as_ptr().cast()));
            [_mm256_shuffle_epi8(table, a), _mm256_shuffle_epi8(table, b)]
        }
    }
    #[inline(always)]
    unsafe fn with_fifth(bytes: [__m256i; 2], plane: [__m256i; 2], g: usize) -> [__m256i; 2] {
        unsafe { [high_bits::<16>(bytes[0], plane[0], g), high_bits::<16>(bytes[1], plane[1], g)] }
    }
    #[inline(always)]
    unsafe fn with_sixth(bytes: [__m256i; 2], plane: [__m256i; 2], g: usize) -> [__m256i; 2] {
        unsafe { [high_bits::<48>(bytes[0], plane[0], 2 * g), high_bits::<48>(bytes[1], plane[1], 2 * g)] }
    }
    #[inline(always)]
    unsafe fn sums(start: *const i32) -> [__m256i; 2] {
        unsafe { [_mm256_set1_epi32(start.read()); 2] }
    }
    #[inline(always)]
    unsafe fn dot(sums: [__m256i; 2], terms: [__m256i; 2], a: *const i8) -> [__m256i; 2] {
        unsafe { add_pairs::<1>(sums, more_pairs([_mm256_setzero_si256(); 2], terms, a)) }
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: [__m256i; 2], terms: [__m256i; 2], a: *const i8) -> [__m256i; 2] {
        unsafe {
            let (low, high) = Self::nibbles(terms);
            let none = [_mm256_setzero_si256(); 2];
            add_pairs::<16>(add_pairs::<1>(sums, more_pairs(none, low, a)), more_pairs(none, high, a))
        }
    }
    #[inline(always)]
    unsafe fn dots<const BITS: usize>(sums: &mut [[__m256i; 2]; TURNS], rows: usize, w: &[[__m256i; 2]], a: *const i8) {
        // A pair of products adds at most 2·(2^BITS − 1)·127, and so many words stay below 2¹⁵.
        let together = match BITS {
            6 => 2,
            5 => 4,
            _ => 8, // eight bits go by nibbles
        };
        for (i, w) in w.chunks(together).enumerate() {
            unsafe {
                let a = a.add(4 * together * i);
                if BITS == 8 {
                    let (two, others) = sums.split_at_mut(2);
                    dots_by_nibbles(two, rows, w, a);
                    dots_by_nibbles(others, rows.saturating_sub(2), w, a.add(2 * BLOCK));
                } else {
                    dots_of_words(sums, rows, w, a);
                }
            }
        }
    }
    #[inline(always)]
    unsafe fn floats(sums: [__m256i; 2]) -> lanes::Avx2 {
        unsafe { lanes::Avx2(_mm256_cvtepi32_ps(sums[0]), _mm256_cvtepi32_ps(sums[1])) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> lanes::Avx2 {
        unsafe {
            let (a, b) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(8).cast()));
            lanes::Avx2(_mm256_cvtph_ps(a), _mm256_cvtph_ps(b))
        }
    }
    #[inline(always)]
    unsafe fn upper_halves(p: *const u16) -> lanes::Avx2 {
        unsafe { lanes::Avx2(widen_bf16(p), widen_bf16(p.add(8))) }
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> lanes::Avx2 {
        unsafe {
            let bytes = _mm_loadu_si128(p.cast());
            let (a, b) = (_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes)));
            lanes::Avx2(_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b))
        }
    }
    #[inline(always)]
    fn prefetch(p: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn columns(p: *const u8, stride: usize) -> [[u32; 16]; 4] {
        let mut columns = [[0; 16]; 4];
        for half in 0..2 {
            unsafe {
                let p = p.add(8 * half * stride);
                let (a, b) = (two_rows(p, stride, 0), two_rows(p, stride, 1));
                let (c, d) = (two_rows(p, stride, 2), two_rows(p, stride, 3));
                let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
                let (ab_upper, cd_upper) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
                let turned = [
                    _mm256_unpacklo_epi64(ab, cd),
                    _mm256_unpackhi_epi64(ab, cd),
                    _mm256_unpacklo_epi64(ab_upper, cd_upper),
                    _mm256_unpackhi_epi64(ab_upper, cd_upper),
                ];
                for (column, turned) in columns.iter_mut().zip(turned) {
                    _mm256_storeu_si256(column[8 * half..].as_mut_ptr().cast(), turned);
                }
            }
        }
        columns
    }
}

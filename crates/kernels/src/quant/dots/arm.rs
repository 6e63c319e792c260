//! Products of whole numbers on NEON: alone, with the products of four bytes (SDOT), and with those of small matrices
//! (USMMLA). The intrinsics of the latter two are not in stable Rust, so they are written as assembly.

use super::{BLOCK, Dots, Lanes, TURNS, lanes};
use std::arch::aarch64::*;
use std::arch::asm;

/// NEON, whose products of signed bytes are added in 16 bits by pairs: exact, since no term of x is −128.
#[derive(Clone, Copy)]
pub struct Neon;

/// NEON with FEAT_DotProd: four products of signed bytes are added in 32 bits at once.
#[derive(Clone, Copy)]
pub struct NeonDot;

/// NEON with FEAT_I8MM: as [`NeonDot`] with weights that have no sign, and for two rows of x a product of two rows by
/// two.
#[derive(Clone, Copy)]
pub struct NeonMatrix;

type Four = [uint8x16_t; 4];
type Sums = [int32x4_t; 4];

/// What the sets share: reading terms and scales.
macro_rules! common {
    () => {
        type Lanes = lanes::Neon;
        type Bytes = Four;
        type Sums = Sums;
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
        unsafe fn sums(start: *const i32) -> Sums {
            unsafe { [vdupq_n_s32(start.read()); 4] }
        }
        #[inline(always)]
        unsafe fn floats(sums: Sums) -> lanes::Neon {
            lanes::Neon(sums.map(|sum| unsafe { vcvtq_f32_s32(sum) }))
        }
        #[inline(always)]
        unsafe fn halves(p: *const u16) -> lanes::Neon {
            unsafe { lanes::Neon::load_f16(p) }
        }
        #[inline(always)]
        unsafe fn upper_halves(p: *const u16) -> lanes::Neon {
            lanes::Neon(std::array::from_fn(|i| unsafe {
                vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i))))
            }))
        }
        #[inline(always)]
        unsafe fn factors(p: *const i8) -> lanes::Neon {
            unsafe {
                let bytes = vld1q_s8(p);
                let (low, high) = (vmovl_s8(vget_low_s8(bytes)), vmovl_high_s8(bytes));
                let [a, b] = [vmovl_s16(vget_low_s16(low)), vmovl_high_s16(low)];
                let [c, d] = [vmovl_s16(vget_low_s16(high)), vmovl_high_s16(high)];
                Self::floats([a, b, c, d])
            }
        }
        #[inline(always)]
        fn prefetch(p: *const u8) {
            lanes::Neon::prefetch_read(p.cast())
        }
    };
}

/// The four bytes at `a`, four times.
///
/// # Safety
/// Four bytes are at `a`.
#[inline(always)]
unsafe fn four(a: *const i8) -> int8x16_t {
    // SAFETY: the bytes by this function's contract; NEON is part of every 64-bit Arm.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(a.cast::<i32>().read_unaligned())) }
}

/// Terms less 128, with their sign.
#[inline(always)]
fn less_128(terms: Four) -> Four {
    // SAFETY: NEON is part of every 64-bit Arm.
    terms.map(|x| unsafe { veorq_u8(x, vdupq_n_u8(128)) })
}

// SAFETY: NEON is part of every 64-bit Arm.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for Neon {
    common!();
    const WIDE_ZERO: u8 = 0;

    #[inline(always)]
    unsafe fn dot(sums: Sums, terms: Four, a: *const i8) -> Sums {
        std::array::from_fn(|i| unsafe {
            let a = four(a);
            let terms = vreinterpretq_s8_u8(terms[i]);
            let low = vmull_s8(vget_low_s8(terms), vget_low_s8(a));
            vpadalq_s16(sums[i], vpaddq_s16(low, vmull_high_s8(terms, a)))
        })
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: Sums, terms: Four, a: *const i8) -> Sums {
        unsafe { Self::dot(sums, less_128(terms), a) }
    }
}

/// An instruction that extends four sums by products of bytes.
macro_rules! instruction {
    ($(#[$doc:meta])* $name:ident, $extension:literal, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name(mut sums: int32x4_t, terms: uint8x16_t, a: int8x16_t) -> int32x4_t {
            // SAFETY: the machine has the instruction by this function's contract; it touches nothing but registers.
            unsafe {
                asm!(
                    concat!(".arch_extension ", $extension),
                    $text,
                    inlateout(vreg) sums,
                    in(vreg) terms,
                    in(vreg) a,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
    };
    ($(#[$doc:meta])* by word $name:ident, $extension:literal, $text:literal) => {
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name<const WORD: usize>(mut sums: int32x4_t, terms: uint8x16_t, a: int8x16_t) -> int32x4_t {
            // SAFETY: the machine has the instruction by this function's contract; it touches nothing but registers.
            unsafe {
                asm!(
                    concat!(".arch_extension ", $extension),
                    $text,
                    inlateout(vreg) sums,
                    in(vreg) terms,
                    in(vreg) a,
                    word = const WORD,
                    options(pure, nomem, nostack, preserves_flags)
                );
            }
            sums
        }
    };
}

instruction! {
    /// Signed terms by the four bytes of a word of `a`.
    ///
    /// # Safety
    /// The machine has FEAT_DotProd.
    by word sdot, "dotprod", "sdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{word}]"
}
instruction! {
    /// Terms without sign by the four signed bytes of a word of `a`.
    ///
    /// # Safety
    /// The machine has FEAT_I8MM.
    by word usdot, "i8mm", "usdot {0:v}.4s, {1:v}.16b, {2:v}.4b[{word}]"
}
instruction! {
    /// Two rows of eight terms without sign by two rows of eight signed bytes: sum 2i + j is that of rows i and j.
    ///
    /// # Safety
    /// The machine has FEAT_I8MM.
    usmmla, "i8mm", "usmmla {0:v}.4s, {1:v}.16b, {2:v}.16b"
}

/// Extends the sums of `rows` rows of x, each from `from` on, by the words of `w`, which are a multiple of four.
macro_rules! by_words {
    ($instruction:ident, $sums:expr, $rows:expr, $w:expr, $a:expr) => {
        for (g, w) in $w.as_chunks::<4>().0.iter().enumerate() {
            for (i, sums) in $sums.iter_mut().enumerate().take($rows) {
                let a = vld1q_s8($a.add(i * BLOCK + 16 * g));
                for (sum, j) in sums.iter_mut().zip(0..4) {
                    *sum = $instruction::<0>(*sum, w[0][j], a);
                    *sum = $instruction::<1>(*sum, w[1][j], a);
                    *sum = $instruction::<2>(*sum, w[2][j], a);
                    *sum = $instruction::<3>(*sum, w[3][j], a);
                }
            }
        }
    };
}

// SAFETY: the set's users have checked for FEAT_DotProd.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for NeonDot {
    common!();
    const WIDE_ZERO: u8 = 0;

    #[inline(always)]
    unsafe fn dot(mut sums: Sums, terms: Four, a: *const i8) -> Sums {
        unsafe {
            let a = four(a);
            for (sum, terms) in sums.iter_mut().zip(terms) {
                *sum = sdot::<0>(*sum, terms, a);
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: Sums, terms: Four, a: *const i8) -> Sums {
        unsafe { Self::dot(sums, less_128(terms), a) }
    }
    #[inline(always)]
    unsafe fn dots<const BITS: usize>(sums: &mut [Sums; TURNS], rows: usize, w: &[Four], a: *const i8) {
        unsafe {
            let mut signed = [[vdupq_n_u8(0); 4]; 8];
            for (signed, &w) in signed.iter_mut().zip(w) {
                *signed = if BITS == 8 { less_128(w) } else { w };
            }
            by_words!(sdot, sums, rows, signed[..w.len()], a)
        }
    }
}

// SAFETY: the set's users have checked for FEAT_I8MM.
#[allow(clippy::undocumented_unsafe_blocks)]
unsafe impl Dots for NeonMatrix {
    common!();

    #[inline(always)]
    unsafe fn dot(mut sums: Sums, terms: Four, a: *const i8) -> Sums {
        unsafe {
            let a = four(a);
            for (sum, terms) in sums.iter_mut().zip(terms) {
                *sum = usdot::<0>(*sum, terms, a);
            }
        }
        sums
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: Sums, terms: Four, a: *const i8) -> Sums {
        unsafe { Self::dot(sums, terms, a) }
    }
    #[inline(always)]
    unsafe fn dots<const BITS: usize>(sums: &mut [Sums; TURNS], rows: usize, w: &[Four], a: *const i8) {
        unsafe {
            match rows {
                0 => {}
                1 => by_words!(usdot, sums, 1, w, a),
                2 => two_by_two::<1>(sums, w, a),
                3 => {
                    two_by_two::<1>(sums, w, a);
                    by_words!(usdot, sums[2..], 1, w, a.add(2 * BLOCK));
                }
                _ => two_by_two::<2>(sums, w, a),
            }
        }
    }
}

/// Extends the sums of `PAIRS` pairs of rows of x by the words of `w`.
///
/// # Safety
/// The machine has FEAT_I8MM, and each row has a word for each of `w`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // tiles are indexed as the formula is written
unsafe fn two_by_two<const PAIRS: usize>(sums: &mut [Sums; TURNS], w: &[Four], a: *const i8) {
    // SAFETY: the instructions and the rows' words by this function's contract.
    unsafe {
        // Rows 4j and 4j + 1 of the weights by a pair of x, then rows 4j + 2 and 4j + 3.
        let mut squares = [[[vdupq_n_s32(0); 2]; 4]; PAIRS];
        for pair in 0..PAIRS {
            for j in 0..4 {
                let (first, second) = (sums[2 * pair][j], sums[2 * pair + 1][j]);
                squares[pair][j] = [vzip1q_s32(first, second), vzip2q_s32(first, second)];
            }
        }
        for (g, w) in w.as_chunks::<2>().0.iter().enumerate() {
            let mut x = [vdupq_n_s8(0); PAIRS];
            for (pair, x) in x.iter_mut().enumerate() {
                let a = a.add(2 * pair * BLOCK + 8 * g);
                *x = vcombine_s8(vld1_s8(a), vld1_s8(a.add(BLOCK)));
            }
            for j in 0..4 {
                let words = (vreinterpretq_u32_u8(w[0][j]), vreinterpretq_u32_u8(w[1][j]));
                let first = vreinterpretq_u8_u32(vzip1q_u32(words.0, words.1));
                let second = vreinterpretq_u8_u32(vzip2q_u32(words.0, words.1));
                for pair in 0..PAIRS {
                    squares[pair][j][0] = usmmla(squares[pair][j][0], first, x[pair]);
                    squares[pair][j][1] = usmmla(squares[pair][j][1], second, x[pair]);
                }
            }
        }
        for pair in 0..PAIRS {
            for j in 0..4 {
                let [first, second] = squares[pair][j];
                sums[2 * pair][j] = vuzp1q_s32(first, second);
                sums[2 * pair + 1][j] = vuzp2q_s32(first, second);
            }
        }
    }
}

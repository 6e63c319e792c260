//! Sixteen whole sums side by side, and 64 bytes that extend each by four terms: what an instruction set has for
//! products of whole numbers. All are exact.

use super::activations::BLOCK;
use crate::convert::from_bf16;
use crate::isa::{self, Isa};
use crate::lanes::{self, Lanes};

/// The operations of the kernels over one instruction set.
///
/// # Safety
/// As for [`Lanes`].
#[allow(clippy::missing_safety_doc)]
pub(super) unsafe trait Dots: Copy {
    /// Sixteen f32.
    type Lanes: Lanes;
    /// Four terms for each of sixteen rows, unsigned.
    type Bytes: Copy;
    /// Sixteen i32.
    type Sums: Copy;
    /// The whole number that [`Dots::dot_wide`] takes as zero.
    const WIDE_ZERO: u8 = 128;
    /// Rows of x in a large tile.
    const TILE: usize;

    unsafe fn bytes(p: *const u8) -> Self::Bytes;
    /// The lower and the upper four bits of each byte.
    unsafe fn nibbles(bytes: Self::Bytes) -> (Self::Bytes, Self::Bytes);
    /// The entries that codes below 16 stand for.
    unsafe fn entries(codes: Self::Bytes, table: &[u8; 16]) -> Self::Bytes;
    /// `bytes` with bit `g` of each of `plane` as the fifth.
    unsafe fn with_fifth(bytes: Self::Bytes, plane: Self::Bytes, g: usize) -> Self::Bytes;
    /// `bytes` with bits `2g` and `2g + 1` of each of `plane` as the fifth and sixth.
    unsafe fn with_sixth(bytes: Self::Bytes, plane: Self::Bytes, g: usize) -> Self::Bytes;
    /// All sums at one number.
    unsafe fn sums(start: *const i32) -> Self::Sums;
    /// Adds each row's four terms, of at most six bits, times the four i8 at `a`.
    unsafe fn dot(sums: Self::Sums, terms: Self::Bytes, a: *const i8) -> Self::Sums;
    /// Adds each row's four terms, less 128 plus [`Dots::WIDE_ZERO`], times the four i8 at `a`, of which none is −128.
    unsafe fn dot_wide(sums: Self::Sums, terms: Self::Bytes, a: *const i8) -> Self::Sums;
    /// [`Dots::dot`] of all words of `w`, whose terms have `BITS` bits, with each of the first `rows` rows of x, the
    /// words of which begin at `a`, a [`BLOCK`] from row to row. Terms of eight bits are those of [`Dots::dot_wide`].
    #[inline(always)]
    unsafe fn dots<const BITS: usize>(sums: &mut [Self::Sums; TURNS], rows: usize, w: &[Self::Bytes], a: *const i8) {
        for (g, &w) in w.iter().enumerate() {
            for (i, sums) in sums.iter_mut().enumerate() {
                if i < rows {
                    // SAFETY: the caller's rows have a word for each of `w`.
                    unsafe {
                        let a = a.add(i * BLOCK + 4 * g);
                        *sums = if BITS == 8 { Self::dot_wide(*sums, w, a) } else { Self::dot(*sums, w, a) };
                    }
                }
            }
        }
    }
    /// The sums, which are below 2²⁴ in size.
    unsafe fn floats(sums: Self::Sums) -> Self::Lanes;
    /// Sixteen f16.
    unsafe fn halves(p: *const u16) -> Self::Lanes;
    /// Sixteen bf16, the upper halves of f32.
    unsafe fn upper_halves(p: *const u16) -> Self::Lanes;
    /// Sixteen i8.
    unsafe fn factors(p: *const i8) -> Self::Lanes;
    /// Fetches the cache line at an address, any address.
    #[inline(always)]
    fn prefetch(_p: *const u8) {}
    /// The first four words of sixteen rows that begin `stride` bytes apart: in vector i word i, a row in each lane.
    #[inline(always)]
    unsafe fn columns(p: *const u8, stride: usize) -> [[u32; 16]; 4] {
        let mut columns = [[0; 16]; 4];
        for lane in 0..16 {
            // SAFETY: sixteen rows have 16 bytes each, by the trait's contract.
            let words = unsafe { p.add(lane * stride).cast::<[u32; 4]>().read_unaligned() };
            for (column, word) in columns.iter_mut().zip(words) {
                column[lane] = word;
            }
        }
        columns
    }

    /// The bits of the greatest size; as bits, what is not finite is greater than what is.
    #[inline(always)]
    unsafe fn greatest_size(x: &[f32; BLOCK]) -> u32 {
        let mut most = [0; 16];
        for x in x.as_chunks::<16>().0 {
            for (most, x) in most.iter_mut().zip(x) {
                *most = (*most).max(x.to_bits() & 0x7fff_ffff);
            }
        }
        most.into_iter().fold(0, u32::max)
    }

    /// `x · inverse`, at most 127.5 in size, rounded to nearest, ties to even; gives the sums of the first and of the
    /// second half.
    #[inline(always)]
    unsafe fn round_block(x: &[f32; BLOCK], inverse: f32, values: &mut [u8; BLOCK]) -> [u32; 2] {
        let mut bits = [0; BLOCK];
        for (bits, x) in bits.iter_mut().zip(x) {
            *bits = (x * inverse + ROUNDER).to_bits().wrapping_sub(ROUNDER.to_bits());
        }
        for (value, bits) in values.iter_mut().zip(bits) {
            *value = bits as u8;
        }
        let (a, b) = bits.split_at(BLOCK / 2);
        [a, b].map(|half| half.iter().fold(0, |sum: u32, bits| sum.wrapping_add(*bits)))
    }
}

/// Rows of x whose sums are extended in turns: enough to hide the latency of a product.
pub(super) const TURNS: usize = 4;

/// Added to a number of less than 2²², it leaves the nearest whole number in the lower bits: 1.5·2²³.
const ROUNDER: f32 = 12_582_912.0;

/// The instructions in use.
#[derive(Clone, Copy)]
pub(super) enum Set {
    Plain,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512Vnni,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg(target_arch = "aarch64")]
    NeonDot,
    #[cfg(target_arch = "aarch64")]
    NeonMatrix,
}

impl Set {
    pub fn active() -> Self {
        match isa::active() {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if std::arch::is_x86_feature_detected!("avx512vnni") => Set::Avx512Vnni,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx2 => Set::Avx2,
            #[cfg(target_arch = "aarch64")]
            Isa::I8mm => Set::NeonMatrix,
            #[cfg(target_arch = "aarch64")]
            Isa::Dotprod => Set::NeonDot,
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Set::Neon,
            _ => Set::Plain,
        }
    }

    /// [`Dots::TILE`] and [`Dots::WIDE_ZERO`].
    pub fn tile_and_wide_zero(self) -> (usize, u8) {
        match self {
            Set::Plain => (Plain::TILE, Plain::WIDE_ZERO),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => (Avx2::TILE, Avx2::WIDE_ZERO),
            #[cfg(target_arch = "x86_64")]
            Set::Avx512Vnni => (Avx512Vnni::TILE, Avx512Vnni::WIDE_ZERO),
            #[cfg(target_arch = "aarch64")]
            Set::Neon => (Neon::TILE, Neon::WIDE_ZERO),
            #[cfg(target_arch = "aarch64")]
            Set::NeonDot => (NeonDot::TILE, NeonDot::WIDE_ZERO),
            #[cfg(target_arch = "aarch64")]
            Set::NeonMatrix => (NeonMatrix::TILE, NeonMatrix::WIDE_ZERO),
        }
    }
}

/// Calls an `#[inline(always)] unsafe fn kernel<D: Dots>(…)` compiled for the active instructions, as
/// [`dispatch!`](crate::lanes::dispatch) does over lanes: itself `unsafe`, it chooses instructions that the machine
/// has,
/// and its user answers for whatever else the kernel asks.
macro_rules! dispatch_dots {
    ($kernel:ident ( $($arg:ident : $ty:ty),* $(,)? )) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512vnni,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512_vnni($($arg: $ty),*) {
            // SAFETY: the macro calls this where the machine has the instructions; its user answers for the arguments.
            unsafe { $kernel::<$crate::quant::dots::Avx512Vnni>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) {
            // SAFETY: the macro calls this where the machine has the instructions; its user answers for the arguments.
            unsafe { $kernel::<$crate::quant::dots::Avx2>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod")]
        unsafe fn neon_dot($($arg: $ty),*) {
            // SAFETY: the macro calls this where the machine has the instructions; its user answers for the arguments.
            unsafe { $kernel::<$crate::quant::dots::NeonDot>($($arg),*) }
        }
        #[cfg(target_arch = "aarch64")]
        #[target_feature(enable = "neon,dotprod,i8mm")]
        unsafe fn neon_matrix($($arg: $ty),*) {
            // SAFETY: the macro calls this where the machine has the instructions; its user answers for the arguments.
            unsafe { $kernel::<$crate::quant::dots::NeonMatrix>($($arg),*) }
        }
        // The hardware's fused multiply-add gives plain code the same bits as the software's, only sooner.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "fma")]
        unsafe fn plain_fma($($arg: $ty),*) {
            // SAFETY: the macro calls this where the machine has the instructions; its user answers for the arguments.
            unsafe { $kernel::<$crate::quant::dots::Plain>($($arg),*) }
        }
        match $crate::quant::dots::Set::active() {
            #[cfg(target_arch = "x86_64")]
            $crate::quant::dots::Set::Avx512Vnni => avx512_vnni($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::quant::dots::Set::Avx2 => avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::quant::dots::Set::NeonMatrix => neon_matrix($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::quant::dots::Set::NeonDot => neon_dot($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::quant::dots::Set::Neon => $kernel::<$crate::quant::dots::Neon>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::quant::dots::Set::Plain if std::arch::is_x86_feature_detected!("fma") => plain_fma($($arg),*),
            $crate::quant::dots::Set::Plain => $kernel::<$crate::quant::dots::Plain>($($arg),*),
        }
    }};
}
pub(super) use dispatch_dots;

/// Plain Rust.
#[derive(Clone, Copy)]
pub(super) struct Plain;

// SAFETY: plain Rust runs anywhere.
unsafe impl Dots for Plain {
    type Lanes = lanes::Plain;
    type Bytes = [u8; 64];
    type Sums = [i32; 16];
    const TILE: usize = 4;

    #[inline(always)]
    unsafe fn bytes(p: *const u8) -> [u8; 64] {
        // SAFETY: 64 bytes at `p` by the trait's contract.
        unsafe { p.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn nibbles(bytes: [u8; 64]) -> ([u8; 64], [u8; 64]) {
        (bytes.map(|byte| byte & 15), bytes.map(|byte| byte >> 4))
    }
    #[inline(always)]
    unsafe fn entries(codes: [u8; 64], table: &[u8; 16]) -> [u8; 64] {
        codes.map(|code| table[usize::from(code & 15)])
    }
    #[inline(always)]
    unsafe fn with_fifth(bytes: [u8; 64], plane: [u8; 64], g: usize) -> [u8; 64] {
        std::array::from_fn(|i| bytes[i] | (plane[i] >> g & 1) << 4)
    }
    #[inline(always)]
    unsafe fn with_sixth(bytes: [u8; 64], plane: [u8; 64], g: usize) -> [u8; 64] {
        std::array::from_fn(|i| bytes[i] | (plane[i] >> (2 * g) & 3) << 4)
    }
    #[inline(always)]
    unsafe fn sums(start: *const i32) -> [i32; 16] {
        // SAFETY: one number at `start` by the trait's contract.
        [unsafe { start.read() }; 16]
    }
    #[inline(always)]
    unsafe fn dot(sums: [i32; 16], terms: [u8; 64], a: *const i8) -> [i32; 16] {
        // SAFETY: four bytes at `a` by the trait's contract.
        let a = unsafe { a.cast::<[i8; 4]>().read() }.map(i32::from);
        std::array::from_fn(|i| (0..4).fold(sums[i], |sum, k| sum + i32::from(terms[4 * i + k]) * a[k]))
    }
    #[inline(always)]
    unsafe fn dot_wide(sums: [i32; 16], terms: [u8; 64], a: *const i8) -> [i32; 16] {
        // SAFETY: four bytes at `a` by the trait's contract.
        unsafe { Self::dot(sums, terms, a) }
    }
    #[inline(always)]
    unsafe fn floats(sums: [i32; 16]) -> lanes::Plain {
        // SAFETY: the array has sixteen numbers.
        unsafe { lanes::Plain::load(sums.map(|sum| sum as f32).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn halves(p: *const u16) -> lanes::Plain {
        // SAFETY: sixteen numbers at `p` by the trait's contract.
        unsafe { lanes::Plain::load(halves(p).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn upper_halves(p: *const u16) -> lanes::Plain {
        // SAFETY: sixteen numbers at `p` by the trait's contract.
        unsafe { lanes::Plain::load(p.cast::<[u16; 16]>().read_unaligned().map(from_bf16).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn factors(p: *const i8) -> lanes::Plain {
        // SAFETY: sixteen bytes at `p` by the trait's contract.
        unsafe { lanes::Plain::load(p.cast::<[i8; 16]>().read().map(f32::from).as_ptr()) }
    }
}

#[inline(always)]
unsafe fn halves(p: *const u16) -> [f32; 16] {
    // SAFETY: sixteen numbers at `p` by the trait's contract.
    unsafe { p.cast::<[u16; 16]>().read_unaligned() }.map(|bits| half::f16::from_bits(bits).to_f32())
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512Vnni};

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub(super) use arm::{Neon, NeonDot, NeonMatrix};

#[cfg(target_arch = "aarch64")]
mod arm;

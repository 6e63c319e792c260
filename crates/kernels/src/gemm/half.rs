//! Products in half precision: chains of f16 fused multiply-adds, promoted to f32 every [`RUN`] terms.
//!
//! The CPU's counterpart of DeepSeek-V3's FP8 products (report §3.3): scaled narrow factors, a narrow accumulator that
//! is emptied into f32 before it loses too much. For element (i, j):
//!
//! - Terms are cut into blocks of [`BLOCK`], from term 0 on. In each block, row i of the left operand and column j of
//!   the right one have a scale of their own, the power of two that brings the greatest magnitude into [1, 2). The
//!   scaled factors are rounded to f16 (nearest even, subnormals kept); none exceeds 2.
//! - Within a block, each [`RUN`] terms are one chain of f16 fused multiply-adds from zero. Its sum, as f32, times the
//!   product of the two inverse scales (a power of two) is added to the element's f32 sum by one fused multiply-add,
//!   the runs in order. A run cannot overflow: its sum is at most 4 · RUN.
//! - A row or column that holds an infinity or NaN in a block has the inverse scale NaN: its elements become NaN.
//!   Inverse scales are at least 2^-126, so what is smaller is scaled less. Their product is f32 as well: infinite from
//!   2^128 on, where elements become infinite or NaN, and zero below 2^-149.
//!
//! So an element depends on row i and column j alone, as in the other precisions. Terms missing from the last run are
//! zeros, which change no bit.
//!
//! Weight gradients are computed in f32: their terms are tokens, and where a run begins would depend on how a step is
//! cut into micro-batches.
//!
//! **Length of a run.** Errors measured over 4000 sums of 1024 products of Gaussian numbers, and of their magnitudes,
//! the root mean square over that of the sums (bf16: 2.3e-3 and 1.2e-4):
//!
//! | terms in a run | 1 (factors rounded, sums in f32) | 8 | 16 | 32 | 64 | 128 |
//! |---|---|---|---|---|---|---|
//! | of either sign | 3.0e-4 | 5.3e-4 | 6.7e-4 | 8.8e-4 | 1.2e-3 | 1.7e-3 |
//! | positive | 1.4e-5 | 3.9e-5 | 6.7e-5 | 1.3e-4 | 2.7e-4 | 5.8e-4 |
//!
//! 16 is the longest that errs less than bf16 on both; emptying the accumulators costs about seven instructions a run.
//!
//! The tiles for AVX512-FP16 were compared with the emulation on Bochs's model of Sapphire Rapids, with one, four
//! and six rows: all numbers are equal. Their speed has not been measured.

use super::{Left, Order, Right, Size, Start, Task};
#[cfg(target_arch = "x86_64")]
use crate::isa::{self, Isa};
use crate::lanes::{LANES, Lanes};
use crate::micro::{self, Out};
use crate::par::{self, SharedMut};

/// Terms that share a scale.
pub const BLOCK: usize = 128;
/// Terms summed in f16.
pub const RUN: usize = 16;
/// f16 in a register of 512 bits, columns in a panel.
const WIDTH: usize = 32;
/// Blocks packed at a time: with 256 columns, 256 KiB.
const PACKED_BLOCKS: usize = 4;

/// Whether this machine has the instructions; without them f16 products are emulated, with the same bits, at about a
/// tenth of the speed of f32.
pub fn is_native() -> bool {
    #[cfg(target_arch = "x86_64")]
    return isa::active() == Isa::Avx512 && std::arch::is_x86_feature_detected!("avx512fp16");
    #[cfg(not(target_arch = "x86_64"))]
    return false;
}

/// The inverse of the scale for factors whose greatest magnitude has these bits: the power of two at or below it.
#[inline(always)]
fn inverse_scale(magnitude: u32) -> f32 {
    let exponent = magnitude >> 23;
    if exponent == 255 { f32::NAN } else { f32::from_bits(exponent.max(1) << 23) }
}

#[inline(always)]
fn magnitude(x: f32) -> u32 {
    x.to_bits() & 0x7fff_ffff
}

/// The bits of the nearest f16 of a factor of magnitude up to 2, ties to even. Of NaN anything: its scale is NaN.
#[inline(always)]
fn to_f16(x: f32) -> u16 {
    let (sign, size) = ((x.to_bits() >> 16) & 0x8000, magnitude(x));
    let normal = (size.wrapping_add(0xfff + ((size >> 13) & 1)) >> 13).wrapping_sub((127 - 15) << 10);
    // Below 2^-14 an f16 counts multiples of 2^-24, which is the unit of f32 from 0.5 on.
    let subnormal = (f32::from_bits(size) + 0.5).to_bits().wrapping_sub(0.5f32.to_bits());
    (sign | if size < (127 - 14) << 23 { subnormal } else { normal }) as u16
}

/// The value of finite f16 bits.
#[inline(always)]
fn from_f16(bits: u16) -> f32 {
    let (sign, size) = (u32::from(bits & 0x8000) << 16, u32::from(bits & 0x7fff) << 13);
    // The exponent's bias is 15 instead of 127; the multiplication is exact and gives subnormals their leading one.
    let value = f32::from_bits(size) * f32::from_bits((127 + 112) << 23);
    f32::from_bits(value.to_bits() | sign)
}

/// Words of a prepared row of the left operand: an inverse scale for each block, then two f16 a word, in whole runs.
pub(super) fn words(terms: usize) -> usize {
    terms.div_ceil(BLOCK) + terms.next_multiple_of(RUN) / 2
}

/// Prepares the rows of a left operand.
pub(super) fn prepare_rows(data: &[f32], columns: usize, out: &mut [u32]) {
    let rows = (16384 / columns).max(1);
    par::chunks_mut(out, rows * words(columns), |chunk, out| {
        let data = &data[chunk * rows * columns..];
        // SAFETY: the kernel indexes its slices with bounds checked.
        unsafe { crate::lanes::dispatch!(prepare(data: &[f32], columns: usize, out: &mut [u32])) }
    });
}

#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn prepare<L: Lanes>(data: &[f32], columns: usize, out: &mut [u32]) {
    for (row, out) in data.chunks_exact(columns).zip(out.chunks_exact_mut(words(columns))) {
        let (inverses, pairs) = out.split_at_mut(columns.div_ceil(BLOCK));
        pairs[columns / 2..].fill(0);
        let blocks = row.chunks(BLOCK).zip(pairs.chunks_mut(BLOCK / 2));
        for ((block, pairs), inverse_out) in blocks.zip(inverses) {
            let inverse = inverse_scale(block.iter().fold(0, |most, &x| most.max(magnitude(x))));
            let scale = 1.0 / inverse;
            *inverse_out = inverse.to_bits();
            // SAFETY: two f16 fit a word, and any bits are valid.
            let halves = unsafe { std::slice::from_raw_parts_mut(pairs.as_mut_ptr().cast::<u16>(), block.len()) };
            halves.iter_mut().zip(block).for_each(|(half, &x)| *half = to_f16(x * scale));
        }
    }
}

/// Packed blocks of a right operand: panels of [`WIDTH`] columns, each `[terms][WIDTH]` f16, one panel after the other;
/// and the inverse scales, `[blocks][columns]`.
#[derive(Clone, Copy)]
struct Packed {
    halves: *const u16,
    inverses: *const f32,
    /// In whole runs.
    terms: usize,
    /// In whole panels.
    columns: usize,
}

/// Packs `terms` terms from `k0` of `columns` columns from `j0`.
///
/// # Safety
/// The machine has the instructions of L.
#[inline(always)]
unsafe fn pack<L: Lanes>(
    right: Right,
    (k0, terms): (usize, usize),
    (j0, columns): (usize, usize),
    out: &mut [u32],
) -> Packed {
    let (whole, padded) = (columns.next_multiple_of(WIDTH), terms.next_multiple_of(RUN));
    let (halves, inverses) = out.split_at_mut(whole * padded / 2);
    let inverses = &mut inverses[..terms.div_ceil(BLOCK) * whole];
    // SAFETY: two f16 fit a word, and any bits are valid.
    let halves = unsafe { std::slice::from_raw_parts_mut(halves.as_mut_ptr().cast::<u16>(), whole * padded) };
    for (block, first) in (0..terms).step_by(BLOCK).enumerate() {
        for j in (0..whole).step_by(LANES) {
            let size = (BLOCK.min(terms - first), LANES.min(columns.saturating_sub(j)));
            let at = (j / WIDTH * padded + first) * WIDTH + j % WIDTH;
            // SAFETY: rows and panels are cut with bounds checked; instructions by this function's contract.
            let inverse = unsafe { pack_block::<L>(right, (k0 + first, j0 + j), size, &mut halves[at..]) };
            for (out, inverse) in inverses[block * whole + j..][..LANES].iter_mut().zip(inverse) {
                *out = inverse.to_bits();
            }
        }
    }
    Packed { halves: halves.as_ptr(), inverses: inverses.as_ptr().cast(), terms: padded, columns: whole }
}

/// Packs one block of up to 16 columns from (k, j) into every other half row of a panel; zeros for what is missing.
///
/// # Safety
/// The machine has the instructions of L.
#[inline(always)]
unsafe fn pack_block<L: Lanes>(
    right: Right,
    (k, j): (usize, usize),
    (terms, columns): (usize, usize),
    out: &mut [u16],
) -> [f32; LANES] {
    let mut factors = [[0.0; LANES]; BLOCK];
    let mut most = [0; LANES];
    for (square, rows) in factors.chunks_exact_mut(LANES).enumerate().take(terms.div_ceil(LANES)) {
        let first = square * LANES;
        let count = LANES.min(terms - first);
        // SAFETY: rows have as many elements as are loaded, arrays sixteen.
        unsafe {
            match right {
                Right::Rows(b) => {
                    for (t, row) in rows[..count].iter_mut().enumerate() {
                        load::<L>(&b.row(k + first + t, j.min(b.stride))[..columns]).store(row.as_mut_ptr());
                    }
                }
                Right::Columns(b) => {
                    let mut square = [L::splat(0.0); LANES];
                    for (i, column) in square[..columns].iter_mut().enumerate() {
                        *column = load::<L>(&b.row(j + i, k + first)[..count]);
                    }
                    for (column, row) in L::transpose(square).into_iter().zip(rows.iter_mut()) {
                        column.store(row.as_mut_ptr());
                    }
                }
            }
        }
        for row in rows {
            most.iter_mut().zip(row).for_each(|(most, x)| *most = magnitude(*x).max(*most));
        }
    }
    let inverse = most.map(inverse_scale);
    let scale = inverse.map(|inverse| 1.0 / inverse);
    for (t, row) in factors[..terms.next_multiple_of(RUN)].iter().enumerate() {
        let out = &mut out[t * WIDTH..][..LANES];
        for ((out, x), scale) in out.iter_mut().zip(row).zip(scale) {
            *out = to_f16(x * scale);
        }
    }
    inverse
}

/// Up to 16 elements, then zeros.
#[inline(always)]
unsafe fn load<L: Lanes>(from: &[f32]) -> L {
    // SAFETY: as many elements as there are; the caller has checked the instructions.
    unsafe { if from.len() == LANES { L::load(from.as_ptr()) } else { L::load_first(from.as_ptr(), from.len()) } }
}

/// [`WIDTH`] f16 side by side.
///
/// # Safety
/// Methods assume the instructions; addresses must be valid.
unsafe trait Halves<L: Lanes>: Copy {
    /// Rows of a tile (4 or 6), and panels across it (1 or 4).
    const TILE: (usize, usize);
    unsafe fn zero() -> Self;
    unsafe fn splat(p: *const u16) -> Self;
    unsafe fn load(p: *const u16) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    unsafe fn widen(self) -> [L; 2];
}

/// The instructions of AVX512-FP16.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
struct Native(std::arch::x86_64::__m512h);

// SAFETY: each body is AVX-512 with FP16, which the caller of `native` has checked.
#[cfg(target_arch = "x86_64")]
#[allow(clippy::undocumented_unsafe_blocks)]
mod native {
    use super::{Halves, Native};
    use crate::lanes::Avx512;
    use std::arch::x86_64::*;

    unsafe impl Halves<Avx512> for Native {
        // 24 accumulators. A factor is broadcast once for four multiply-adds: a broadcast of 16 bits takes one of the
        // two ports that they need.
        const TILE: (usize, usize) = (6, 4);

        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { Native(_mm512_setzero_ph()) }
        }
        #[inline(always)]
        unsafe fn splat(p: *const u16) -> Self {
            unsafe { Native(_mm512_castsi512_ph(_mm512_set1_epi16(p.cast::<i16>().read()))) }
        }
        #[inline(always)]
        unsafe fn load(p: *const u16) -> Self {
            unsafe { Native(_mm512_castsi512_ph(_mm512_loadu_si512(p.cast()))) }
        }
        #[inline(always)]
        unsafe fn fma(self, b: Self, c: Self) -> Self {
            unsafe { Native(_mm512_fmadd_ph(self.0, b.0, c.0)) }
        }
        #[inline(always)]
        unsafe fn widen(self) -> [Avx512; 2] {
            unsafe {
                let bits = _mm512_castph_si512(self.0);
                let (low, high) = (_mm512_castsi512_si256(bits), _mm512_extracti64x4_epi64::<1>(bits));
                [Avx512(_mm512_cvtph_ps(low)), Avx512(_mm512_cvtph_ps(high))]
            }
        }
    }
}

/// The same numbers held as f64, for machines without the instructions.
#[derive(Clone, Copy)]
struct Emulated([f64; WIDTH]);

// SAFETY: plain Rust runs anywhere.
unsafe impl<L: Lanes> Halves<L> for Emulated {
    const TILE: (usize, usize) = (4, 1);

    #[inline(always)]
    unsafe fn zero() -> Self {
        Emulated([0.0; WIDTH])
    }
    #[inline(always)]
    unsafe fn splat(p: *const u16) -> Self {
        // SAFETY: sixteen values, or one, at `p`, and the instructions, by the trait's contract.
        Emulated([f64::from(from_f16(unsafe { p.read() })); WIDTH])
    }
    #[inline(always)]
    unsafe fn load(p: *const u16) -> Self {
        // SAFETY: sixteen values, or one, at `p`, and the instructions, by the trait's contract.
        let bits = unsafe { p.cast::<[u16; WIDTH]>().read_unaligned() };
        Emulated(bits.map(|bits| f64::from(from_f16(bits))))
    }
    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        let mut sum = c;
        for ((sum, a), b) in sum.0.iter_mut().zip(self.0).zip(b.0) {
            *sum = round_to_f16(a * b + *sum);
        }
        sum
    }
    #[inline(always)]
    unsafe fn widen(self) -> [L; 2] {
        let values = self.0.map(|x| x as f32);
        // SAFETY: two arrays of sixteen; instructions by the trait's contract.
        unsafe { [L::load(values.as_ptr()), L::load(values[LANES..].as_ptr())] }
    }
}

/// The nearest f16 of a sum `c + ab` that was computed in f64, ties to even.
///
/// The product of two f16 is exact in f64, and rounding the sum first to f64 does no harm here, where factors are at
/// most 2 and `|c| < 2^7`. If `|ab| ≥ 2^-16`, its 22 bits end at 2^-37 and the sum is exact. If `|c| < 2^4`, all bits
/// lie between 2^-48 and 2^4 and the sum is exact. Else `c` is the nearest f16 and the nearest tie at least 2^-8 away,
/// which neither `|ab| < 2^-16` nor the first rounding reaches.
///
/// Adding and subtracting 1.5 · 2^52 units rounds to whole units: 2^-10 of the number's power of two, at least 2^-24.
#[inline(always)]
fn round_to_f16(x: f64) -> f64 {
    let power = f64::from_bits(x.to_bits() & (0x7ff << 52));
    let shift = (power * (1.5 * (1u64 << 42) as f64)).max(1.5 * (1u64 << 28) as f64);
    ((x + shift) - shift).copysign(x)
}

/// The task's part of the product.
pub(super) fn compute(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if is_native() {
        #[target_feature(enable = "avx512fp16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn native(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
            // SAFETY: the machine has the instructions.
            unsafe { blocks::<crate::lanes::Avx512, Native>(task, out, start, panels) }
        }
        // SAFETY: just detected.
        return unsafe { native(task, out, start, panels) };
    }
    // SAFETY: the products were made with the sizes of their operands, and each task has rows and columns of its own.
    unsafe { crate::lanes::dispatch!(emulated(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32])) }
}

/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn emulated<L: Lanes>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    // SAFETY: emulation asks for the instructions of L alone; the rest by this function's contract.
    unsafe { blocks::<L, Emulated>(task, out, start, panels) }
}

/// A few blocks after the other: packs the right operand's part, then extends the sums of all the task's rows.
///
/// # Safety
/// The machine has the instructions of L and H. The product's operands have the sizes that it states.
#[inline(always)]
unsafe fn blocks<L: Lanes, H: Halves<L>>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    let Size { n, k, .. } = task.product.size;
    let mut place = Out {
        at: out.at(task.product.out + task.rows.start * n + task.columns.start),
        stride: n,
        columns: task.columns.len(),
        continues: start == Start::Continue,
    };
    for k0 in (0..k).step_by(PACKED_BLOCKS * BLOCK) {
        let terms = (k0, (PACKED_BLOCKS * BLOCK).min(k - k0));
        // SAFETY: the panels were just packed for these terms; operands and output by this function's contract.
        unsafe {
            let packed = pack::<L>(task.product.right, terms, (task.columns.start, task.columns.len()), panels);
            let (mut i, mut out) = (task.rows.start, place);
            while i < task.rows.end {
                let taken = rows::<L, H>(&task.product.left, i..task.rows.end, (k0, k), packed, out);
                i += taken;
                out.at = out.at.add(taken * n);
            }
        }
        place.continues = true;
    }
}

/// Extends the sums of up to `H::TILE.0` rows by all the panels, and says how many rows it took.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn rows<L: Lanes, H: Halves<L>>(
    left: &Left,
    rows: std::ops::Range<usize>,
    (k0, k): (usize, usize),
    packed: Packed,
    out: Out,
) -> usize {
    macro_rules! across {
        ($m:literal) => {{
            let left: [LeftRow; $m] = std::array::from_fn(|i| LeftRow::new(left, rows.start + i, k0, k));
            let mut j = 0;
            while j < packed.columns {
                // SAFETY: a panel, its scales and its outputs begin at column j.
                unsafe {
                    let panels = (packed.columns - j) / WIDTH;
                    let (halves, inverses) = (packed.halves.add(j * packed.terms), packed.inverses.add(j));
                    let packed = Packed { halves, inverses, ..packed };
                    let out = Out { at: out.at.add(j), columns: out.columns - j, ..out };
                    if const { H::TILE.1 == 4 } && panels >= 4 {
                        tile::<L, H, $m, 4>(&left, packed, out);
                        j += 4 * WIDTH;
                    } else {
                        tile::<L, H, $m, 1>(&left, packed, out);
                        j += WIDTH;
                    }
                }
            }
            $m
        }};
    }
    if const { H::TILE.0 == 6 } && rows.len() >= 6 {
        across!(6)
    } else if rows.len() >= 4 {
        across!(4)
    } else {
        across!(1)
    }
}

/// Where the blocks of a row of the left operand are.
#[derive(Clone, Copy)]
struct LeftRow {
    inverses: *const f32,
    halves: *const u16,
}

impl LeftRow {
    /// Row i of `k` terms, from term `k0` on.
    #[inline(always)]
    fn new(left: &Left, i: usize, k0: usize, k: usize) -> Self {
        let Order::Rows(index) = left.order else { unreachable!("f16 products read rows") };
        let row =
            &crate::scratch::words(left.data)[index.map_or(i, |index| index[i] as usize) * left.stride..][..words(k)];
        let (inverses, pairs) = row.split_at(k.div_ceil(BLOCK));
        LeftRow { inverses: inverses[k0 / BLOCK..].as_ptr().cast(), halves: pairs[k0 / 2..].as_ptr().cast() }
    }
}

/// Extends the sums of `M` rows by `V` panels by all the packed terms.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn tile<L: Lanes, H: Halves<L>, const M: usize, const V: usize>(left: &[LeftRow; M], packed: Packed, out: Out) {
    // SAFETY: words and outputs exist by this function's contract.
    unsafe {
        let mut sums = [[[L::splat(0.0); 2]; V]; M];
        if out.continues {
            for (i, row) in sums.iter_mut().enumerate() {
                for (v, [low, high]) in row.iter_mut().enumerate() {
                    let (at, columns) = (out.at.wrapping_add(i * out.stride + WIDTH * v), out.columns - WIDTH * v);
                    *low = micro::load(at, columns);
                    *high = micro::load(at.wrapping_add(LANES), columns.saturating_sub(LANES));
                }
            }
        }
        for first in (0..packed.terms).step_by(BLOCK) {
            let inverses = packed.inverses.add(first / BLOCK * packed.columns);
            let mut scales = [[[L::splat(0.0); 2]; V]; M];
            for (left, row) in left.iter().zip(&mut scales) {
                let left = L::splat(left.inverses.add(first / BLOCK).read());
                for (v, [low, high]) in row.iter_mut().enumerate() {
                    *low = L::load(inverses.add(WIDTH * v)).mul(left);
                    *high = L::load(inverses.add(WIDTH * v + LANES)).mul(left);
                }
            }
            for k in (first..packed.terms.min(first + BLOCK)).step_by(RUN) {
                let run = run::<L, H, M, V>(left, packed, k);
                for (i, row) in run.iter().enumerate() {
                    for (v, run) in row.iter().enumerate() {
                        let [low, high] = run.widen();
                        sums[i][v][0] = low.fma(scales[i][v][0], sums[i][v][0]);
                        sums[i][v][1] = high.fma(scales[i][v][1], sums[i][v][1]);
                    }
                }
            }
        }
        for (i, row) in sums.iter().enumerate() {
            for (v, [low, high]) in row.iter().enumerate() {
                let (at, columns) = (out.at.wrapping_add(i * out.stride + WIDTH * v), out.columns - WIDTH * v);
                micro::store(*low, at, columns);
                micro::store(*high, at.wrapping_add(LANES), columns.saturating_sub(LANES));
            }
        }
    }
}

/// The f16 sums of the run from term `first` on.
///
/// # Safety
/// As for [`blocks`].
#[inline(always)]
unsafe fn run<L: Lanes, H: Halves<L>, const M: usize, const V: usize>(
    left: &[LeftRow; M],
    packed: Packed,
    first: usize,
) -> [[H; V]; M] {
    // SAFETY: words exist for all of the run's terms by this function's contract.
    unsafe {
        let mut sums = [[H::zero(); V]; M];
        for k in first..first + RUN {
            let mut b = [H::zero(); V];
            for (v, b) in b.iter_mut().enumerate() {
                *b = H::load(packed.halves.add((v * packed.terms + k) * WIDTH));
            }
            for (left, row) in left.iter().zip(&mut sums) {
                let a = H::splat(left.halves.add(k));
                for (sum, b) in row.iter_mut().zip(b) {
                    *sum = a.fma(b, *sum);
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Key;
    use crate::reference::gemm::fma_f16;

    #[test]
    fn factors_round_to_the_nearest_f16_and_back() {
        let spread = (0..0x4000_0000u32).step_by(4099).chain((0..0x4_0000).map(|high| high << 12));
        for size in spread.map(f32::from_bits).filter(|&x| x <= 2.0) {
            for x in [size, -size] {
                let expected = ::half::f16::from_f32(x);
                assert_eq!(to_f16(x), expected.to_bits(), "{x:e}");
                assert_eq!(from_f16(to_f16(x)), expected.to_f32(), "{x:e}");
            }
        }
    }

    #[test]
    fn emulated_chains_round_once() {
        let key = Key { seed: 3, stream: 0 };
        let mut chain = 0.0f32;
        for i in 0..2_000_000 {
            // Any factor up to 2, of any exponent; now and then a new chain.
            let factor = |draw| {
                from_f16(key.below_at(2 * i + draw, 0x4001) as u16 | (key.u64_at(i) << 15 >> draw) as u16 & 0x8000)
            };
            let (a, b) = (factor(0), factor(1));
            if i % 16 == 0 {
                chain = 0.0;
            }
            let expected = fma_f16(a, b, chain);
            let got = round_to_f16(f64::from(a) * f64::from(b) + f64::from(chain));
            assert_eq!(got, f64::from(expected), "{a:e} · {b:e} + {chain:e}");
            chain = expected;
        }
    }

    #[test]
    fn sums_next_to_ties_round_as_if_exact() {
        let least = 2f32.powi(-24);
        for c in [32.0, 33.0 + 1.0 / 32.0, 64.0 - 1.0 / 32.0, 100.0, 2047.0 / 2048.0 * 16.0] {
            for a in [2.0, 1.0 / 64.0, 1.0 / 128.0, 1.0 / 32.0 + least, least] {
                for b in [1.0, -1.0, 1.0 + 1.0 / 1024.0, least, -least] {
                    let got = round_to_f16(f64::from(a) * f64::from(b) + f64::from(c));
                    assert_eq!(got, f64::from(fma_f16(a, b, c)), "{a:e} · {b:e} + {c:e}");
                }
            }
        }
    }
}

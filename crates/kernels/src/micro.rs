//! The innermost loops: a tile of a few rows by one or two vectors of columns, held in registers along k.
//!
//! Both operands are read as 4-byte [`Words`]: one term of the chain, or two consecutive ones in bf16.

use crate::lanes::Lanes;

/// What a word of an operand is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Words {
    /// One term, in f32.
    Numbers,
    /// One term rounded to bf16, in the 32 bits of f32.
    Rounded,
    /// Two terms in bf16: the earlier one in the upper half, because the hardware's dot product takes the upper half
    /// first. Only x86 has these.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    Pairs,
}

impl Words {
    /// How many terms of the chain are in one.
    pub const fn terms(self) -> usize {
        match self {
            Words::Numbers | Words::Rounded => 1,
            Words::Pairs => 2,
        }
    }
}

/// How a word of the left operand and a vector of words of the right one extend the chains.
pub(crate) trait Step<L: Lanes> {
    const WORDS: Words;

    /// How the processor is to compute meanwhile.
    type Mode: Mode;

    /// What is computed of chains that go on.
    ///
    /// # Safety
    /// The machine has L's instructions.
    #[inline(always)]
    unsafe fn resumed(chain: L) -> L {
        chain
    }

    /// # Safety
    /// `a` is one readable word; the machine has L's instructions.
    unsafe fn step(acc: L, a: *const u32, b: L) -> L;
}

/// The processor's rules for numbers, from `set` until what it gave is dropped.
pub(crate) trait Mode {
    fn set() -> Self;
}

/// Those that Rust assumes everywhere.
pub(crate) struct Usual;

impl Mode for Usual {
    #[inline(always)]
    fn set() -> Self {
        Usual
    }
}

/// One f32 term a word.
pub(crate) struct F32;

impl<L: Lanes> Step<L> for F32 {
    const WORDS: Words = Words::Numbers;
    type Mode = Usual;

    #[inline(always)]
    unsafe fn step(acc: L, a: *const u32, b: L) -> L {
        // SAFETY: one word at `a`, and the instructions, by the trait's contract.
        unsafe { L::splat(a.cast::<f32>().read()).fma(b, acc) }
    }
}

/// Terms rounded to bf16, in plain f32 operations.
pub(crate) struct Bf16;

impl<L: Lanes> Step<L> for Bf16 {
    const WORDS: Words = Words::Rounded;
    type Mode = Usual;

    #[inline(always)]
    unsafe fn resumed(chain: L) -> L {
        // SAFETY: the instructions, by the trait's contract.
        unsafe { chain.flush() }
    }

    #[inline(always)]
    unsafe fn step(acc: L, a: *const u32, b: L) -> L {
        // SAFETY: one word at `a`, and the instructions, by the trait's contract.
        unsafe { L::splat(a.cast::<f32>().read()).fma_flushed(b, acc) }
    }
}

/// The same where the processor flushes subnormal numbers to zero by itself: as fast as f32.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bf16Fma;

#[cfg(target_arch = "x86_64")]
impl<L: Lanes> Step<L> for Bf16Fma {
    const WORDS: Words = Words::Rounded;
    type Mode = Flushing;

    #[inline(always)]
    unsafe fn step(acc: L, a: *const u32, b: L) -> L {
        // SAFETY: as for f32.
        unsafe { <F32 as Step<L>>::step(acc, a, b) }
    }
}

/// Subnormal results become zero, and subnormal operands are taken as zero (FTZ and DAZ of MXCSR).
///
/// Rust's compiler may assume that this is never so. What it can make of a tile's loop under that assumption is the
/// same: the sums come from memory after the register is set and are back there before it is reset, since neither
/// load nor store moves across the assembly, and in between there are fused multiply-adds of numbers that it cannot
/// know.
#[cfg(target_arch = "x86_64")]
pub(crate) struct Flushing {
    before: u32,
}

#[cfg(target_arch = "x86_64")]
impl Flushing {
    const FTZ_AND_DAZ: u32 = 0x8040;

    #[inline(always)]
    fn load(mode: u32) {
        // SAFETY: a word that is there, with bits that every processor with AVX2 has.
        unsafe { std::arch::asm!("ldmxcsr [{}]", in(reg) &mode, options(nostack)) }
    }
}

#[cfg(target_arch = "x86_64")]
impl Mode for Flushing {
    #[inline(always)]
    fn set() -> Self {
        let mut before = 0u32;
        // SAFETY: a word that is there.
        unsafe { std::arch::asm!("stmxcsr [{}]", in(reg) &mut before, options(nostack)) };
        Flushing::load(before | Flushing::FTZ_AND_DAZ);
        Flushing { before }
    }
}

#[cfg(target_arch = "x86_64")]
impl Drop for Flushing {
    #[inline(always)]
    fn drop(&mut self) {
        Flushing::load(self.before);
    }
}

/// Two bf16 terms a word, by the dot product of AVX512-BF16: two chained fused multiply-adds, nearest even, subnormals
/// flushed, upper half first (measured on Zen 4 against two million random words, and on Intel's Emerald Rapids where
/// rounding and flushing meet).
#[cfg(target_arch = "x86_64")]
pub(crate) struct Bf16Dot;

#[cfg(target_arch = "x86_64")]
impl Step<crate::lanes::Avx512> for Bf16Dot {
    const WORDS: Words = Words::Pairs;
    type Mode = Usual;

    #[inline(always)]
    unsafe fn step(acc: crate::lanes::Avx512, a: *const u32, b: crate::lanes::Avx512) -> crate::lanes::Avx512 {
        use std::arch::x86_64::*;
        // SAFETY: one word at `a`, and the instructions, by the trait's contract.
        unsafe {
            let a = std::mem::transmute::<__m512i, __m512bh>(_mm512_set1_epi32(a.cast::<i32>().read()));
            let b = std::mem::transmute::<__m512, __m512bh>(b.0);
            crate::lanes::Avx512(_mm512_dpbf16_ps(acc.0, a, b))
        }
    }
}

/// Where the words of a tile's rows are: word (i, k) of the left operand.
#[derive(Clone, Copy)]
pub(crate) enum LeftWords<'a> {
    /// At `rows[i] + k`.
    Rows(&'a [*const u32]),
    /// At `first + k * stride + i`.
    Columns { first: *const u32, stride: usize },
}

/// A tile's place in the output.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub at: *mut f32,
    pub stride: usize,
    /// Columns that exist, of the 16 a vector.
    pub columns: usize,
    /// Whether the chains go on from what is there.
    pub continues: bool,
}

/// Extends the chains of `M` rows by `V` vectors of columns by `k` words.
///
/// # Safety
/// All words and outputs named by the arguments exist; `panel_stride` words lie between the panels of adjacent vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // tiles are indexed as the formula is written
pub(crate) unsafe fn tile<L: Lanes, S: Step<L>, const M: usize, const V: usize>(
    k: usize,
    left: LeftWords,
    panel: *const u32,
    panel_stride: usize,
    out: Out,
) {
    // SAFETY: words, panels and outputs of M rows by V vectors by k words exist by this function's contract.
    unsafe {
        let mut acc = [[L::splat(0.0); V]; M];
        if out.continues {
            for (i, row) in acc.iter_mut().enumerate() {
                for (v, acc) in row.iter_mut().enumerate() {
                    *acc = S::resumed(load(out.at.add(i * out.stride + 16 * v), out.columns.saturating_sub(16 * v)));
                }
            }
        } else {
            for i in 0..M {
                for v in 0..V {
                    L::prefetch_write(out.at.wrapping_add(i * out.stride + 16 * v));
                }
            }
        }
        match left {
            LeftWords::Rows(rows) => {
                let rows: [*const u32; M] = std::array::from_fn(|i| *rows.get_unchecked(i));
                for k in 0..k {
                    let mut b = [L::splat(0.0); V];
                    for v in 0..V {
                        b[v] = L::load(panel.add(v * panel_stride + 16 * k).cast());
                    }
                    for i in 0..M {
                        for v in 0..V {
                            acc[i][v] = S::step(acc[i][v], rows[i].add(k), b[v]);
                        }
                    }
                }
            }
            LeftWords::Columns { first, stride } => {
                for k in 0..k {
                    let mut b = [L::splat(0.0); V];
                    for v in 0..V {
                        b[v] = L::load(panel.add(v * panel_stride + 16 * k).cast());
                    }
                    let a = first.add(k * stride);
                    for i in 0..M {
                        for v in 0..V {
                            acc[i][v] = S::step(acc[i][v], a.add(i), b[v]);
                        }
                    }
                }
            }
        }
        for (i, row) in acc.iter().enumerate() {
            for (v, acc) in row.iter().enumerate() {
                store(*acc, out.at.add(i * out.stride + 16 * v), out.columns.saturating_sub(16 * v));
            }
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and `columns` numbers, at most sixteen of them, are at `p`.
#[inline(always)]
pub(crate) unsafe fn load<L: Lanes>(p: *const f32, columns: usize) -> L {
    // SAFETY: numbers at `p` by this function's contract.
    unsafe { if columns >= 16 { L::load(p) } else { L::load_first(p, columns) } }
}

/// # Safety
/// The machine has the instruction set of `L`, and there is room for `columns` numbers, at most sixteen of them, at
/// `p`.
#[inline(always)]
pub(crate) unsafe fn store<L: Lanes>(x: L, p: *mut f32, columns: usize) {
    // SAFETY: room at `p` by this function's contract.
    unsafe { if columns >= 16 { x.store(p) } else { x.store_first(p, columns) } }
}

/// Extends the chains of all `count` rows of the left operand by `k` words.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
pub(crate) unsafe fn product<L: Lanes, S: Step<L>>(
    count: usize,
    k: usize,
    left: LeftWords,
    panels: *const u32,
    panel_stride: usize,
    mut out: Out,
) {
    let _mode = S::Mode::set();
    let mut i = 0;
    while i < count {
        // SAFETY: row i of the left operand and of the output is i rows on.
        unsafe {
            let left = match left {
                LeftWords::Rows(rows) => LeftWords::Rows(&rows[i..]),
                LeftWords::Columns { first, stride } => LeftWords::Columns { first: first.add(i), stride },
            };
            let taken = rows::<L, S>(count - i, k, left, panels, panel_stride, out);
            out.at = out.at.add(taken * out.stride);
            i += taken;
        }
    }
}

/// Extends the chains of up to `L::TILE.0` rows by all the panels, and says how many rows it took.
///
/// # Safety
/// As for [`tile`].
#[inline(always)]
unsafe fn rows<L: Lanes, S: Step<L>>(
    rows: usize,
    k: usize,
    left: LeftWords,
    panels: *const u32,
    panel_stride: usize,
    out: Out,
) -> usize {
    macro_rules! across {
        ($m:literal) => {{
            let mut v = 0;
            while v < out.columns.div_ceil(16) {
                // SAFETY: panel v begins v strides on, and its outputs 16 v columns on.
                unsafe {
                    let panel = panels.add(v * panel_stride);
                    let out = Out { at: out.at.add(16 * v), columns: out.columns - 16 * v, ..out };
                    if L::TILE.1 == 2 && out.columns > 16 {
                        tile::<L, S, $m, 2>(k, left, panel, panel_stride, out);
                    } else {
                        tile::<L, S, $m, 1>(k, left, panel, panel_stride, out);
                    }
                }
                v += L::TILE.1;
            }
            $m
        }};
    }
    match rows.min(L::TILE.0) {
        12.. => across!(12),
        8..12 => across!(8),
        6..8 => across!(6),
        4..6 => across!(4),
        2..4 => across!(2),
        _ => across!(1),
    }
}

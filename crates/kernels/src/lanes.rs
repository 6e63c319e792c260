//! Sixteen `f32` side by side: the unit in which kernels are written. Each instruction set gives the same sixteen
//! numbers (one register of AVX-512, two of AVX2, four of NEON, an array in plain Rust), so a kernel written over
//! [`Lanes`] has the same bits on all of them. Every operation is one IEEE 754 operation on each lane, rounded to
//! nearest even.
//!
//! A kernel is an `#[inline(always)]` function over `L: Lanes`, called through `dispatch!`,
//! which
//! compiles it once for each set with the set's instructions switched on.

/// Lanes in a vector, and partial sums in a reduction.
pub const LANES: usize = 16;

/// Sixteen `f32` with the operations that kernels need.
///
/// # Safety
/// All methods assume that the machine has the instruction set; `dispatch!` makes sure of
/// it. Loads
/// and stores go to raw addresses and assume that they are valid.
#[allow(clippy::missing_safety_doc)]
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
    /// Fetches a cache line that is about to be written; any address will do.
    #[inline(always)]
    fn prefetch_write(_p: *const f32) {}
    /// Fetches a cache line that is about to be read; any address will do.
    #[inline(always)]
    fn prefetch_read(_p: *const f32) {}
    /// The same to the second-level cache.
    #[inline(always)]
    fn prefetch_far(_p: *const f32) {}

    /// Sixteen f16, widened.
    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: sixteen elements at `p`, and the instructions, by the trait's contract.
        unsafe {
            let bits = p.cast::<[u16; LANES]>().read_unaligned();
            Self::load(bits.map(|bits| half::f16::from_bits(bits).to_f32()).as_ptr())
        }
    }

    /// The nearest f16 of each lane, ties to even.
    #[inline(always)]
    unsafe fn store_f16(self, p: *mut u16) {
        // SAFETY: sixteen elements at `p`, and the instructions, by the trait's contract.
        unsafe {
            let bits = self.to_array().map(|x| half::f16::from_f32(x).to_bits());
            p.cast::<[u16; LANES]>().write_unaligned(bits);
        }
    }

    /// `self * b + c` as [`fma_flushed`] has it.
    #[inline(always)]
    unsafe fn fma_flushed(self, b: Self, c: Self) -> Self {
        // SAFETY: arrays of sixteen; instructions by the trait's contract.
        unsafe {
            let (a, b, c) = (self.to_array(), b.to_array(), c.to_array());
            let sums: [f32; LANES] = std::array::from_fn(|i| fma_flushed(a[i], b[i], c[i]));
            Self::load(sums.as_ptr())
        }
    }

    /// Zero, with the sign kept, for subnormal lanes.
    #[inline(always)]
    unsafe fn flush(self) -> Self {
        // SAFETY: an array of sixteen; instructions by the trait's contract.
        unsafe { Self::load(self.to_array().map(flush).as_ptr()) }
    }

    /// The nearest bf16 of each lane: ties to even, subnormals to zero.
    #[inline(always)]
    unsafe fn round_bf16(self) -> Self {
        // SAFETY: an array of sixteen; instructions by the trait's contract.
        unsafe { Self::load(self.to_array().map(to_bf16).as_ptr()) }
    }

    /// Sixteen words of two bf16 terms, `self` in the upper halves, rounded as in [`Lanes::round_bf16`].
    #[inline(always)]
    unsafe fn pair_with(self, lower: Self) -> Self {
        // SAFETY: an array of sixteen; instructions by the trait's contract.
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
            // SAFETY: 32 numbers at `p` by the trait's contract.
            *word = f32::from_bits(unsafe { pair_bf16(p.add(2 * i).read(), p.add(2 * i + 1).read()) });
        }
        // SAFETY: `words` is an array of sixteen; instructions by the trait's contract.
        unsafe { Self::load(words.as_ptr()) }
    }

    /// Sixteen vectors as the rows of a square: its columns.
    #[inline(always)]
    unsafe fn transpose(rows: [Self; LANES]) -> [Self; LANES] {
        // SAFETY: arrays of sixteen; instructions by the trait's contract.
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

    #[inline(always)]
    unsafe fn to_array(self) -> [f32; LANES] {
        let mut out = [0.0; LANES];
        // SAFETY: `out` is an array of sixteen; instructions by the trait's contract.
        unsafe { self.store(out.as_mut_ptr()) };
        out
    }

    /// The sum in the fixed tree: lane i with i+8, then i+4, i+2, i+1.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: touches no memory but its own array; instructions by the trait's contract.
        let a = unsafe { self.to_array() };
        sum_tree(a)
    }

    /// The greatest lane (no lane is NaN).
    #[inline(always)]
    unsafe fn max_lane(self) -> f32 {
        // SAFETY: touches no memory but its own array; instructions by the trait's contract.
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

/// The nearest bf16: ties to even, subnormals to zero.
#[inline(always)]
pub fn to_bf16(x: f32) -> f32 {
    f32::from_bits(round_bf16(x) & 0xffff_0000)
}

/// Zero, with the sign kept, for a subnormal number.
#[inline(always)]
pub fn flush(x: f32) -> f32 {
    if x.abs() < f32::MIN_POSITIVE { 0.0f32.copysign(x) } else { x }
}

/// `a * b + c`, rounded once to the 24 bits of a normal number, however small it is, and zero, with its sign, if it is
/// then below [`f32::MIN_POSITIVE`]: what x86 computes when it flushes to zero, and its bf16 dot products. No factor
/// and not c may be subnormal.
#[inline(always)]
pub fn fma_flushed(a: f32, b: f32, c: f32) -> f32 {
    let sum = a.mul_add(b, c);
    if sum.abs() == f32::MIN_POSITIVE {
        // Rounded to a multiple of 2^-149, as all near it, where 2^-150 would have been the last bit.
        let scale = 2f32.powi(64);
        let scaled = (a * scale).mul_add(b, c * scale);
        if scaled.abs() < f32::MIN_POSITIVE * scale {
            return 0.0f32.copysign(sum);
        }
    }
    flush(sum)
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
        // SAFETY: sixteen numbers at `p` by the trait's contract, at any address that f32 may have.
        Plain(unsafe { p.cast::<[f32; LANES]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: sixteen numbers at `p` by the trait's contract.
        unsafe { p.cast::<[f32; LANES]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: element i is below n, and n are at `p` by the trait's contract.
        Plain(std::array::from_fn(|i| if i < n { unsafe { p.add(i).read() } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store_first(self, p: *mut f32, n: usize) {
        for i in 0..n {
            // SAFETY: element i is below n, and n are at `p` by the trait's contract.
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
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "aarch64")]
pub use arm::Neon;

#[cfg(target_arch = "aarch64")]
mod arm;

/// Calls an `#[inline(always)] unsafe fn kernel<L: Lanes>(…)` compiled for the active instruction set.
///
/// `dispatch!(kernel(a: TypeOfA, b: TypeOfB, …) -> Ret)`: each argument is a variable of that name, given with its
/// type,
/// which may borrow; what is returned may not. The call is `unsafe`: the macro chooses a set that the machine has, and
/// its user answers for whatever else the kernel asks, such as slices of one length.
macro_rules! dispatch {
    ($kernel:ident ( $($arg:ident : $ty:ty),* $(,)? ) $(-> $ret:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
        unsafe fn avx512($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the macro calls this where the machine has the set; its user answers for the arguments.
            unsafe { $kernel::<$crate::lanes::Avx512>($($arg),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: the macro calls this where the machine has the set; its user answers for the arguments.
            unsafe { $kernel::<$crate::lanes::Avx2>($($arg),*) }
        }
        // The hardware's fused multiply-add gives plain code the same bits as the software's, only sooner.
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "fma")]
        unsafe fn plain_fma($($arg: $ty),*) $(-> $ret)? {
            // SAFETY: plain lanes ask for no instructions; the macro's user answers for the arguments.
            unsafe { $kernel::<$crate::lanes::Plain>($($arg),*) }
        }
        match $crate::isa::active() {
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx512 => avx512($($arg),*),
            #[cfg(target_arch = "x86_64")]
            $crate::isa::Isa::Avx2 => avx2($($arg),*),
            #[cfg(target_arch = "aarch64")]
            $crate::isa::Isa::Neon | $crate::isa::Isa::Dotprod | $crate::isa::Isa::I8mm => $kernel::<$crate::lanes::Neon>($($arg),*),
            #[cfg(target_arch = "x86_64")]
            _ if std::arch::is_x86_feature_detected!("fma") => plain_fma($($arg),*),
            _ => $kernel::<$crate::lanes::Plain>($($arg),*),
        }
    }};
}
pub(crate) use dispatch;

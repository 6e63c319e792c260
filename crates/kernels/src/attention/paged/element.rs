//! Numbers of a KV cache as they are stored.

use crate::convert::{from_bf16, to_bf16};
use crate::lanes::{LANES, Lanes};

/// Number format of what a KV cache holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CacheDtype {
    /// As they were computed.
    #[default]
    F32,
    /// Rounded to the nearest f16, those beyond its range to its greatest.
    F16,
    /// Rounded to the nearest bf16.
    Bf16,
}

impl CacheDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            CacheDtype::F32 => 4,
            CacheDtype::F16 | CacheDtype::Bf16 => 2,
        }
    }
}

/// A number of a cache.
pub(in crate::attention) trait Element: Copy {
    /// # Safety
    /// Sixteen readable elements; the machine has the instruction set of `L`.
    unsafe fn load<L: Lanes>(p: *const Self) -> L;
    /// # Safety
    /// The machine has the instruction set of `L`.
    unsafe fn of<L: Lanes>(x: L) -> [Self; LANES];
    /// What it stands for.
    fn number(self) -> f32;
}

impl Element for f32 {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: sixteen elements at `p` by the trait's contract.
        unsafe { L::load(p) }
    }
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> [Self; LANES] {
        // SAFETY: no memory is touched; instructions by the trait's contract.
        unsafe { x.to_array() }
    }
    fn number(self) -> f32 {
        self
    }
}

/// The bits of an f16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(in crate::attention) struct Half(u16);

impl Element for Half {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: sixteen elements at `p` by the trait's contract.
        unsafe { L::load_f16(p.cast()) }
    }
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> [Self; LANES] {
        let mut bits = [Half(0); LANES];
        // SAFETY: sixteen elements to write to; instructions by the trait's contract. In this order the limits let NaN
        // pass.
        unsafe {
            let limited = L::splat(65504.0).min(L::splat(-65504.0).max(x));
            limited.store_f16(bits.as_mut_ptr().cast());
        }
        bits
    }
    fn number(self) -> f32 {
        half::f16::from_bits(self.0).to_f32()
    }
}

/// The bits of a bf16.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(in crate::attention) struct Brain(u16);

impl Element for Brain {
    #[inline(always)]
    unsafe fn load<L: Lanes>(p: *const Self) -> L {
        // SAFETY: sixteen elements at `p` by the trait's contract, which `u16` has the size and alignment of.
        let bits = unsafe { p.cast::<[u16; LANES]>().read() };
        // SAFETY: sixteen numbers of the stack; instructions by the trait's contract.
        unsafe { L::load(bits.map(from_bf16).as_ptr()) }
    }
    #[inline(always)]
    unsafe fn of<L: Lanes>(x: L) -> [Self; LANES] {
        // SAFETY: no memory is touched; instructions by the trait's contract.
        unsafe { x.to_array() }.map(|x| Brain(to_bf16(x)))
    }
    fn number(self) -> f32 {
        from_bf16(self.0)
    }
}

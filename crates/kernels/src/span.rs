//! Walking slices sixteen elements at a time, with a shorter last step.

use crate::lanes::{LANES, Lanes};

/// Elements `at..at + n` of slices of equal length, with 0 < n ≤ 16. In the body of [`spans!`] n is the
/// constant 16 but for the last step, so that the compiler drops the tests below.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub at: usize,
    pub n: usize,
}

impl Span {
    /// The elements, with zeros after the n-th.
    ///
    /// # Safety
    /// The machine has the instruction set of `L`; `x` has the length that the span was made for, or a greater one.
    #[inline(always)]
    pub unsafe fn load<L: Lanes>(self, x: &[f32]) -> L {
        debug_assert!(self.at + self.n <= x.len());
        // SAFETY: `spans!` makes no span that reaches beyond its length, which `x` has by this function's contract.
        unsafe {
            let p = x.as_ptr().add(self.at);
            if self.n == LANES { L::load(p) } else { L::load_first(p, self.n) }
        }
    }

    /// Stores the first n lanes.
    ///
    /// # Safety
    /// The machine has the instruction set of `L`; `x` has the length that the span was made for, or a greater one.
    #[inline(always)]
    pub unsafe fn store<L: Lanes>(self, lanes: L, x: &mut [f32]) {
        debug_assert!(self.at + self.n <= x.len());
        // SAFETY: `spans!` makes no span that reaches beyond its length, which `x` has by this function's contract.
        unsafe {
            let p = x.as_mut_ptr().add(self.at);
            if self.n == LANES { lanes.store(p) } else { lanes.store_first(p, self.n) }
        }
    }
}

/// `spans!(len, |s| body)` runs the body for each span of `0..len`. A macro and not a function that takes a closure:
/// the body must be compiled inside of the function that has the instruction set.
macro_rules! spans {
    ($len:expr, |$s:ident| $body:block) => {{
        let len: usize = $len;
        let mut at = 0;
        while at + $crate::lanes::LANES <= len {
            let $s = $crate::span::Span { at, n: $crate::lanes::LANES };
            $body
            at += $crate::lanes::LANES;
        }
        if at < len {
            let $s = $crate::span::Span { at, n: len - at };
            $body
        }
    }};
}

pub(crate) use spans;

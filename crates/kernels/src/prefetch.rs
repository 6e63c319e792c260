//! What threads do while they wait for a task: they fetch the weights of the next product into their caches. Decoding a
//! token goes through the same matrices in the same order each time, at the pace of memory, which otherwise rests
//! between one product and the next. What followed a product is remembered from the last time. Fetching changes no
//! result; a wrong guess costs bandwidth alone.

use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Matrices of a product that are fetched.
const SPANS: usize = 4;
/// Places for what followed a product; two that fall on one guess wrong.
const PRODUCTS: usize = 4096;
/// Bytes that one thread fetches at most: half of a second-level cache of 1 MiB.
const SHARE_MAX: usize = 512 * 1024;
const LINE: usize = 64;
/// Lines fetched between two looks for a task.
const LINES: usize = 4;

/// Addresses of a product's weights. A reader may see half of a change, which does no harm to a guess.
pub(crate) struct Spans([(AtomicUsize, AtomicUsize); SPANS]);

impl Spans {
    pub const fn none() -> Self {
        Spans([const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; SPANS])
    }

    fn set(&self, from: &[Range<usize>; SPANS]) {
        for ((start, end), span) in self.0.iter().zip(from) {
            start.store(span.start, Relaxed);
            end.store(span.end, Relaxed);
        }
    }

    fn get(&self) -> [Range<usize>; SPANS] {
        std::array::from_fn(|i| self.0[i].0.load(Relaxed)..self.0[i].1.load(Relaxed))
    }

    /// The share of thread `i` of `threads`.
    pub fn share(&self, i: usize, threads: usize) -> Share {
        let spans = self.get();
        let total: usize = spans.iter().map(Range::len).sum();
        let (from, to) = (total * i / threads, total * (i + 1) / threads);
        Share { spans, left: from..to.min(from + SHARE_MAX) }
    }
}

/// What one thread fetches: a part of the spans put one after the other.
pub(crate) struct Share {
    spans: [Range<usize>; SPANS],
    left: Range<usize>,
}

impl Share {
    /// Fetches the next few lines, if any are left.
    pub fn fetch(&mut self) {
        for _ in 0..LINES {
            if self.left.start >= self.left.end {
                return;
            }
            let mut at = self.left.start;
            for span in &self.spans {
                if at < span.len() {
                    prefetch(span.start + at);
                    break;
                }
                at -= span.len();
            }
            self.left.start += LINE;
        }
    }
}

#[inline(always)]
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: part of every 64-bit x86, and a hint for any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(std::ptr::without_provenance(address));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint for any address.
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{}]", in(reg) address, options(readonly, nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = address;
}

static FOLLOWERS: [Spans; PRODUCTS] = [const { Spans::none() }; PRODUCTS];
thread_local!(static LAST: Cell<usize> = const { Cell::new(0) });

fn follower(first: usize) -> &'static Spans {
    &FOLLOWERS[(first / LINE).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (usize::BITS - PRODUCTS.ilog2())]
}

/// Notes that this thread begins a product with these weights; `next` becomes what followed it the last time.
pub(crate) fn begin(weights: impl Iterator<Item = Range<usize>>, next: &Spans) {
    let mut spans: [Range<usize>; SPANS] = std::array::from_fn(|_| 0..0);
    spans.iter_mut().zip(weights).for_each(|(span, weights)| *span = weights);
    let first = spans[0].start;
    follower(LAST.replace(first)).set(&spans);
    next.set(&follower(first).get());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_is_fetched_next_time() {
        let next = Spans::none();
        // Addresses that nothing else has; a fetch of them does nothing.
        let products: [&[Range<usize>]; 2] =
            [&[64..6400, 1 << 39..(1 << 39) + 64], &[1 << 40..(1 << 40) + 128, 1 << 41..(1 << 41) + 100]];
        for _ in 0..2 {
            products.iter().for_each(|product| begin(product.iter().cloned(), &next));
        }
        begin(products[0].iter().cloned(), &next);
        assert_eq!(next.get()[..2], products[1][..]);
    }

    #[test]
    fn shares_cover_all_once() {
        let spans = Spans::none();
        spans.set(&[0..1000, 5000..5300, 0..0, 0..0]);
        for threads in [1, 2, 3, 7] {
            let mut end = 0;
            for i in 0..threads {
                let mut share = spans.share(i, threads);
                assert_eq!(share.left.start, end);
                end = share.left.end;
                (0..100).for_each(|_| share.fetch());
                assert!(share.left.is_empty());
            }
            assert_eq!(end, 1300);
        }
    }
}

//! The machine's limit, to hold results against: the greatest rate of f32 fused multiply-adds on registers alone.

use crate::lanes::{LANES, Lanes};
use crate::{dispatch, par};
use std::time::{Duration, Instant};

/// Independent chains: more than latency times units of any machine here, fewer than registers.
const CHAINS: usize = 12;
const ROUNDS: usize = 1 << 17;

/// Operations (a multiply-add is two) a second of all threads together with the active instruction set: the best of the
/// pieces of about a millisecond that fit into `duration`.
pub fn fma_flops_per_second(duration: Duration) -> f64 {
    let flops = (par::threads() * CHAINS * LANES * ROUNDS * 2) as f64;
    let begin = Instant::now();
    let mut best = 0.0;
    while begin.elapsed() < duration {
        let piece = Instant::now();
        par::run(par::threads(), |_| {
            let rounds = ROUNDS;
            let sum = dispatch!(chains(rounds: usize) -> f32);
            std::hint::black_box(sum);
        });
        best = f64::max(best, flops / piece.elapsed().as_secs_f64());
    }
    best
}

#[inline(always)]
unsafe fn chains<L: Lanes>(rounds: usize) -> f32 {
    // SAFETY: the dispatcher has checked the set.
    unsafe {
        let factor = L::splat(std::hint::black_box(0.999));
        let mut sums = [L::splat(std::hint::black_box(1.0)); CHAINS];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.fma(factor, factor);
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + sum.sum())
    }
}

//! The machine's limits, to hold results against: the greatest rates of f32 fused multiply-adds and of products of
//! whole numbers on registers alone, and of reading from memory.

use crate::lanes::{LANES, Lanes, dispatch};
use crate::memory::Buffer;
use crate::{par, quant};
use std::time::{Duration, Instant};

/// Independent chains, of which the best number counts: on some machine they are more than latency times units and stay
/// in registers, of which a chain takes one, two or four.
const CHAINS: [usize; 3] = [12, 6, 4];
/// Multiply-adds of a call.
const ROUNDS: usize = 3 << 19;

/// Operations (a multiply-add is two) a second of all threads together with the active instruction set: the best of the
/// pieces of about a millisecond that fit into `duration`.
pub fn fma_flops_per_second(duration: Duration) -> f64 {
    let of = |count: usize| {
        let rounds = ROUNDS / count;
        best_rate(duration / CHAINS.len() as u32, (par::threads() * count * LANES * rounds * 2) as f64, || {
            par::run(par::threads(), |_| {
                // SAFETY: it touches no memory.
                let sum = unsafe { dispatch!(chains(count: usize, rounds: usize) -> f32) };
                std::hint::black_box(sum);
            });
        })
    };
    CHAINS.map(of).into_iter().fold(0.0, f64::max)
}

/// Operations (a multiply-add is two) a second on whole numbers of 8 bits, as [`fma_flops_per_second`].
pub fn dot_ops_per_second(duration: Duration) -> f64 {
    let of = |count: usize| {
        let ops = (par::threads() * quant::peak_ops(count)) as f64;
        best_rate(duration / CHAINS.len() as u32, ops, || par::run(par::threads(), |_| quant::peak(count)))
    };
    CHAINS.map(of).into_iter().fold(0.0, f64::max)
}

/// Bytes a second that all threads together read, from a buffer larger than a third-level cache: the best pass of
/// those that fit into `duration`, at least one.
pub fn read_bytes_per_second(duration: Duration) -> f64 {
    let buffer = Buffer::zeros(READ_BYTES / size_of::<f32>());
    let pieces = 16 * par::threads();
    best_rate(duration, READ_BYTES as f64, || {
        par::run(pieces, |i| {
            let piece = &buffer[i * buffer.len() / pieces..(i + 1) * buffer.len() / pieces];
            // SAFETY: whole groups of vectors of the piece are read.
            let sum = unsafe { dispatch!(read(piece: &[f32]) -> f32) };
            std::hint::black_box(sum);
        });
    })
}

/// Four times the third-level cache of a desktop's processor.
const READ_BYTES: usize = 128 << 20;
/// How far ahead lines are fetched.
const AHEAD: usize = 4096;

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn read<L: Lanes>(piece: &[f32]) -> f32 {
    // SAFETY: whole vectors of the piece; instructions by this function's contract.
    unsafe {
        let mut sums = [L::splat(0.0); 4];
        for lines in piece.as_chunks::<{ 4 * LANES }>().0 {
            for (i, sum) in sums.iter_mut().enumerate() {
                let line = lines.as_ptr().add(LANES * i);
                L::prefetch_far(line.wrapping_byte_add(AHEAD));
                *sum = sum.add(L::load(line));
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + sum.sum())
    }
}

/// The best rate of `amount` for each call of `work`, over the calls that fit into `duration`.
fn best_rate(duration: Duration, amount: f64, work: impl Fn()) -> f64 {
    let begin = Instant::now();
    let mut best = 0.0;
    while best == 0.0 || begin.elapsed() < duration {
        let piece = Instant::now();
        work();
        best = f64::max(best, amount / piece.elapsed().as_secs_f64());
    }
    best
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn chains<L: Lanes>(count: usize, rounds: usize) -> f32 {
    // SAFETY: instructions by this function's contract.
    unsafe {
        match count {
            12 => some_chains::<L, 12>(rounds),
            6 => some_chains::<L, 6>(rounds),
            4 => some_chains::<L, 4>(rounds),
            _ => unreachable!("{count} chains"),
        }
    }
}

/// # Safety
/// As for [`chains`].
#[inline(always)]
unsafe fn some_chains<L: Lanes, const COUNT: usize>(rounds: usize) -> f32 {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe {
        let factor = L::splat(std::hint::black_box(0.999));
        let mut sums = [L::splat(std::hint::black_box(1.0)); COUNT];
        for _ in 0..rounds {
            for sum in &mut sums {
                *sum = sum.fma(factor, factor);
            }
        }
        sums.into_iter().fold(0.0, |total, sum| total + sum.sum())
    }
}

//! Which instructions compute in bf16. All have the same bits.

use super::{Start, Task, blocks};
#[cfg(target_arch = "x86_64")]
use crate::isa::{self, Isa};
use crate::lanes::{Lanes, dispatch};
use crate::micro;
use crate::par::SharedMut;

pub(super) fn compute(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    // SAFETY: as for f32: the sizes are those of the operands, the task's part of the output is its own; and the set
    // that is active is one that the machine has.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match isa::active() {
            Isa::Avx512 if x86::has_fast_dot() => return x86::dot(task, out, start, panels),
            Isa::Avx512 | Isa::Avx2 => return x86::fma(task, out, start, panels),
            _ => {}
        }
        dispatch!(plain(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]))
    }
}

/// # Safety
/// As for [`blocks`], with the instructions of L alone.
#[inline(always)]
unsafe fn plain<L: Lanes>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
    // SAFETY: `micro::Bf16` asks for the instructions of L alone; task and output go on as they came.
    unsafe { blocks::<L, micro::Bf16>(task, out, start, panels) }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::*;
    use crate::lanes::Avx512;
    use crate::micro::{Bf16Dot, Bf16Fma, Step};
    use std::hint::black_box;
    use std::sync::OnceLock;
    use std::time::{Duration, Instant};

    /// # Safety
    /// As for [`blocks`].
    pub(super) unsafe fn fma(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
        // SAFETY: `dispatch!` chooses a set that the machine has; task and output go on as they came.
        unsafe { dispatch!(flushing(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32])) }
    }

    /// # Safety
    /// As for [`blocks`], with the instructions of L alone.
    #[inline(always)]
    unsafe fn flushing<L: Lanes>(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
        // SAFETY: `micro::Bf16Fma` asks for the instructions of L alone; task and output go on as they came.
        unsafe { blocks::<L, Bf16Fma>(task, out, start, panels) }
    }

    /// # Safety
    /// As for [`blocks`]; the machine has AVX-512 with BF16.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) unsafe fn dot(task: &Task, out: SharedMut<f32>, start: Start, panels: &mut [u32]) {
        // SAFETY: AVX-512 and its bf16 are enabled for this function; task and output go on as they came.
        unsafe { blocks::<Avx512, Bf16Dot>(task, out, start, panels) }
    }

    /// Whether this machine has AVX512-BF16, and its dot product takes no longer than the two fused multiply-adds that
    /// it stands for. On AMD's Zen 4 it takes as long as one of them, on Intel's Emerald Rapids as long as four.
    pub(super) fn has_fast_dot() -> bool {
        static FAST: OnceLock<bool> = OnceLock::new();
        *FAST.get_or_init(|| {
            // SAFETY: AVX-512 is active where this is asked, and its bf16 has been found.
            std::arch::is_x86_feature_detected!("avx512bf16") && unsafe { dots() <= 2 * fmas() }
        })
    }

    /// # Safety
    /// The machine has AVX-512 with BF16.
    #[target_feature(enable = "avx512bf16,avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn dots() -> Duration {
        // SAFETY: by this function's contract.
        unsafe { best_time::<Bf16Dot>() }
    }

    /// # Safety
    /// The machine has AVX-512.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    unsafe fn fmas() -> Duration {
        // SAFETY: by this function's contract.
        unsafe { best_time::<Bf16Fma>() }
    }

    /// The best time of some 20,000 steps, of several tries.
    ///
    /// # Safety
    /// The machine has the instructions of S.
    #[inline(always)]
    unsafe fn best_time<S: Step<Avx512>>() -> Duration {
        let (left, mut best) = (black_box(0), Duration::MAX);
        for _ in 0..8 {
            let begin = Instant::now();
            // SAFETY: one word is read; instructions by this function's contract.
            unsafe {
                let (right, mut chains) = (Avx512::splat(black_box(0.0)), [Avx512::splat(black_box(0.0)); 12]);
                for _ in 0..1600 {
                    for chain in &mut chains {
                        *chain = S::step(*chain, &left, right);
                    }
                }
                black_box(chains.map(|chain| chain.0));
            }
            best = best.min(begin.elapsed());
        }
        best
    }

    #[cfg(test)]
    mod tests {
        use super::super::super::{BLOCK_WORDS, Left, Order, Product, Right, Size};
        use super::*;
        use crate::pack::Matrix;
        use crate::random::Key;
        use crate::scratch;

        /// Whichever is faster here, the other is tested too.
        #[test]
        fn dots_have_the_bits_of_multiply_adds() {
            if !Isa::Avx512.available() || !std::arch::is_x86_feature_detected!("avx512bf16") {
                println!("SKIPPED: this machine has no AVX512-BF16");
                return;
            }
            let (m, n, k) = (17, 50, 1101);
            let key = Key { seed: 3, stream: 0 };
            // Of ordinary size, such that sums fall below the least normal number, and such that they are -0, which the
            // term that fills up an odd number of them must not change.
            for size in [1.0, 1.5e-19, 0.0] {
                let number = |i: usize| (key.below_at(i as u64, 2001) as f32 / 1000.0 - 1.0) * size;
                let numbers = |first: usize, len: usize| (first..first + len).map(number).collect::<Vec<f32>>();
                let (left, right) = (numbers(0, m * k), numbers(m * k, n * k));
                let columns = Right::Columns(Matrix { data: &right, stride: k, rows: None });
                let rows = Right::Rows(Matrix { data: &right, stride: n, rows: None });
                for (order, right) in [(Order::Rows(None), columns), (Order::Columns, columns), (Order::Columns, rows)]
                {
                    let product = Product {
                        size: Size { m, n, k },
                        left: Left { data: &left, stride: if let Order::Columns = order { m } else { k }, order },
                        right,
                        out: 0,
                    };
                    let results = [dot, fma].map(|way| {
                        let task = Task { product: &product, rows: 0..m, columns: 0..n };
                        let (mut out, mut panels) = (numbers(0, m * n), scratch::buffer(BLOCK_WORDS));
                        // SAFETY: the operands have the product's sizes, and the task has all of the output.
                        unsafe {
                            way(&task, SharedMut::new(&mut out), Start::Continue, scratch::words_mut(&mut panels))
                        };
                        out.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
                    });
                    assert_eq!(results[0], results[1], "numbers of {size}");
                }
            }
        }
    }
}

//! Random numbers as a function of (seed, stream, index): nothing is drawn from a state, so that order, threads and
//! resuming change nothing.
//!
//! The function is Philox4x32 with ten rounds (J. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC
//! 2011), which passes BigCrush, is what cuRAND and PyTorch use on GPUs, and is a bijection of the counter for each
//! key: the seed is the key, stream and index are the counter, so different (stream, index) never share a block.

use crate::par;
use std::f64::consts::TAU;

/// Names a sequence of random numbers. Give each purpose its own stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The run's.
    pub seed: u64,
    /// The purpose's.
    pub stream: u64,
}

impl Key {
    /// 64 random bits.
    pub fn u64_at(self, index: u64) -> u64 {
        self.pair_at(index).0
    }

    /// Uniform in [0, 1), a multiple of 2⁻⁵³.
    pub fn uniform_at(self, index: u64) -> f64 {
        unit(self.u64_at(index))
    }

    /// Uniform in 0..bound, by multiplication; numbers differ in probability by less than 2⁻⁶⁴.
    pub fn below_at(self, index: u64, bound: u64) -> u64 {
        assert!(bound > 0, "a number below zero");
        ((u128::from(self.u64_at(index)) * u128::from(bound)) >> 64) as u64
    }

    /// Normal with mean 0 and deviation 1, by Box and Muller's transformation in f64; |result| < 8.6.
    pub fn normal_at(self, index: u64) -> f64 {
        let (a, b) = self.pair_at(index);
        // 1 − u is in (0, 1], whose logarithm is finite.
        let radius = (-2.0 * libm::log(1.0 - unit(a))).sqrt();
        radius * libm::cos(TAU * unit(b))
    }

    fn pair_at(self, index: u64) -> (u64, u64) {
        let [a, b, c, d] = philox(split(index, self.stream), [self.seed as u32, (self.seed >> 32) as u32]);
        (u64::from(b) << 32 | u64::from(a), u64::from(d) << 32 | u64::from(c))
    }
}

/// `x[i]` = deviation · normal number `first + i`, rounded to f32 once.
pub fn fill_normal(x: &mut [f32], deviation: f64, key: Key, first: u64) {
    const PIECE: usize = 1024;
    par::chunks_mut(x, PIECE, |task, x| {
        for (x, index) in x.iter_mut().zip(first + (task * PIECE) as u64..) {
            *x = (key.normal_at(index) * deviation) as f32;
        }
    });
}

fn unit(bits: u64) -> f64 {
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

fn split(low: u64, high: u64) -> [u32; 4] {
    [low as u32, (low >> 32) as u32, high as u32, (high >> 32) as u32]
}

fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = u64::from(counter[0]) * 0xD251_1F53;
        let b = u64::from(counter[2]) * 0xCD9E_8D57;
        counter = [(b >> 32) as u32 ^ counter[1] ^ key[0], b as u32, (a >> 32) as u32 ^ counter[3] ^ key[1], a as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Random123's `kat_vectors`.
    #[test]
    fn philox_gives_the_published_numbers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([!0; 4], [!0; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(philox(pi, [0xa409_3822, 0x299f_31d0]), [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn normals_have_the_moments_of_normals() {
        let key = Key { seed: 7, stream: 3 };
        let n = 100_000;
        let moment = |power: i32| (0..n).map(|i| key.normal_at(i).powi(power)).sum::<f64>() / n as f64;
        // Five standard errors of the sample moments: √(1, 2, 15, 96)/√n.
        assert!(moment(1).abs() < 5.0 / (n as f64).sqrt());
        assert!((moment(2) - 1.0).abs() < 5.0 * 2f64.sqrt() / (n as f64).sqrt());
        assert!(moment(3).abs() < 5.0 * 15f64.sqrt() / (n as f64).sqrt());
        assert!((moment(4) - 3.0).abs() < 5.0 * 96f64.sqrt() / (n as f64).sqrt());
    }

    #[test]
    fn streams_and_seeds_differ_and_bounds_hold() {
        let key = Key { seed: 1, stream: 1 };
        assert_ne!(key.u64_at(0), Key { seed: 1, stream: 2 }.u64_at(0));
        assert_ne!(key.u64_at(0), Key { seed: 2, stream: 1 }.u64_at(0));
        let mut counts = [0u32; 10];
        (0..100_000).for_each(|i| counts[key.below_at(i, 10) as usize] += 1);
        // Each count is binomial with mean 10000 and deviation 95.
        assert!(counts.iter().all(|&c| c.abs_diff(10_000) < 5 * 95), "{counts:?}");
        assert!((0..1000).all(|i| (0.0..1.0).contains(&key.uniform_at(i))));
    }

    #[test]
    fn filling_in_pieces_is_filling_at_once() {
        let key = Key { seed: 5, stream: 0 };
        let mut whole = vec![0.0; 3000];
        fill_normal(&mut whole, 0.02, key, 0);
        let mut parts = vec![0.0; 3000];
        let (a, b) = parts.split_at_mut(1111);
        fill_normal(b, 0.02, key, 1111);
        fill_normal(a, 0.02, key, 0);
        assert_eq!(whole, parts);
    }
}

//! Random numbers that are functions of their index, and a random order that needs no memory.

/// The mixing step of splitmix64 (Steele, Lea, Flood, 2014): a bijection of 64 bits.
fn mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// 64 random bits for these four numbers, always the same.
pub fn bits(seed: u64, stream: u64, a: u64, b: u64) -> u64 {
    [stream, a, b].into_iter().fold(mix(seed), |state, word| mix(state ^ mix(word)))
}

/// `bits` as a number in 0..n. The bias is below n / 2^64.
pub fn below(bits: u64, n: u64) -> u64 {
    ((bits as u128 * n as u128) >> 64) as u64
}

/// A random order of 0..n for a key: a Feistel network over the next even number of bits, walked until it lands below n
/// (Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002). Every index maps to another; nothing is stored.
#[derive(Clone, Copy)]
pub struct Permutation {
    n: u64,
    half_bits: u32,
    key: u64,
}

impl Permutation {
    const ROUNDS: u64 = 6;

    /// The order of 0..n that `key` chooses.
    pub fn new(n: u64, key: u64) -> Self {
        let bits = u64::BITS - n.saturating_sub(1).leading_zeros();
        Permutation { n, half_bits: bits.div_ceil(2).max(1), key }
    }

    /// Where `index` goes.
    pub fn at(&self, index: u64) -> u64 {
        assert!(index < self.n, "index {index} in an order of {}", self.n);
        let mask = (1 << self.half_bits) - 1;
        let mut x = index;
        loop {
            let (mut left, mut right) = (x >> self.half_bits, x & mask);
            for round in 0..Self::ROUNDS {
                (left, right) = (right, left ^ (bits(self.key, round, right, 0) & mask));
            }
            x = (left << self.half_bits) | right;
            if x < self.n {
                return x;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permutation_reaches_every_index_once() {
        for n in [1, 2, 3, 4, 5, 16, 17, 1000, 4096] {
            let order = Permutation::new(n, 7);
            let mut seen: Vec<u64> = (0..n).map(|i| order.at(i)).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "n = {n}");
        }
    }

    #[test]
    fn permutation_depends_on_the_key() {
        let order = |key| (0..1000).map(|i| Permutation::new(1000, key).at(i)).collect::<Vec<_>>();
        assert_ne!(order(1), order(2));
        // About 1 of 1000 indices of a random order stays where it is.
        let fixed = order(1).iter().enumerate().filter(|&(i, &x)| i as u64 == x).count();
        assert!(fixed < 10, "{fixed} of 1000 stayed");
    }
}

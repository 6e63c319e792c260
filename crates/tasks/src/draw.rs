//! Random draws in a row, for generators.

use wels_data::random::{below, bits};

/// A sequence of draws that (seed, stream, index) determine.
pub struct Draw {
    seed: u64,
    stream: u64,
    index: u64,
    next: u64,
}

impl Draw {
    /// Before the first draw.
    pub fn new(seed: u64, stream: u64, index: u64) -> Draw {
        Draw { seed, stream, index, next: 0 }
    }

    fn bits(&mut self) -> u64 {
        self.next += 1;
        bits(self.seed, self.stream, self.index, self.next)
    }

    /// In 0..n.
    pub fn below(&mut self, n: usize) -> usize {
        below(self.bits(), n as u64) as usize
    }

    /// In `min..=max`.
    pub fn between(&mut self, min: u64, max: u64) -> u64 {
        min + below(self.bits(), max - min + 1)
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        // 53 bits, so that the number is exact.
        ((self.bits() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    /// One of `from`, which is not empty.
    pub fn one<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A random order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i + 1));
        }
    }
}

//! Random draws in a row, for scenes and questions.

use wels_data::random::{below, bits};

/// A sequence of draws that (seed, stream, number) determine.
pub(crate) struct Draw {
    seed: u64,
    stream: u64,
    number: u64,
    next: u64,
}

impl Draw {
    pub(crate) fn new(seed: u64, stream: u64, number: u64) -> Draw {
        Draw { seed, stream, number, next: 0 }
    }

    /// In 0..n.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        below(bits(self.seed, self.stream, self.number, self.next), n as u64) as usize
    }

    /// One of `from`, which is not empty.
    pub(crate) fn one<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

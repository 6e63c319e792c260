//! Small memory that was given back, to be handed out again: without a call of the driver, and so that steps that take
//! and give back the same find it in the same places, as a graph wants it.
//!
//! All work of a card is one queue, so memory may be used again while kernels that used it wait.

use std::collections::BTreeSet;

/// Bytes of the smallest and of the largest that is kept, both powers of two.
const LEAST: usize = 256;
const MOST: usize = 16 << 20;

/// What is kept, by size.
#[derive(Default)]
pub(super) struct Blocks {
    free: [BTreeSet<u64>; (MOST / LEAST).ilog2() as usize + 1],
}

/// How many bytes are taken where so many are asked for: small memory has few sizes.
pub(super) fn size_of(bytes: usize) -> usize {
    if bytes <= MOST { bytes.next_power_of_two().max(LEAST) } else { bytes }
}

impl Blocks {
    fn of_size(&mut self, bytes: usize) -> Option<&mut BTreeSet<u64>> {
        (bytes <= MOST).then(|| &mut self.free[(size_of(bytes) / LEAST).ilog2() as usize])
    }

    /// The first place of this size.
    pub fn take(&mut self, bytes: usize) -> Option<u64> {
        self.of_size(bytes)?.pop_first()
    }

    /// Keeps it; false if it is too large.
    pub fn keep(&mut self, at: u64, bytes: usize) -> bool {
        self.of_size(bytes).map(|places| places.insert(at)).is_some()
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> usize {
        self.free.iter().enumerate().map(|(size, places)| places.len() * (LEAST << size)).sum()
    }

    /// Everything that is kept, from now on no more: places and sizes.
    pub fn take_all(&mut self) -> Vec<(u64, usize)> {
        let of_size = |(size, places): (usize, &mut BTreeSet<u64>)| {
            std::mem::take(places).into_iter().map(move |at| (at, LEAST << size))
        };
        self.free.iter_mut().enumerate().flat_map(of_size).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_place_of_a_size_is_taken_again() {
        let mut blocks = Blocks::default();
        assert_eq!([1, 256, 257, MOST, MOST + 1].map(size_of), [256, 256, 512, MOST, MOST + 1]);
        for at in [4096, 1024, 2048] {
            assert!(blocks.keep(at, 200));
        }
        assert!(blocks.keep(8192, 300) && blocks.keep(1 << 30, MOST) && !blocks.keep(0, MOST + 1));
        assert_eq!(blocks.bytes(), 3 * 256 + 512 + MOST);
        assert_eq!([256, 1, 512, 512].map(|bytes| blocks.take(bytes)), [Some(1024), Some(2048), Some(8192), None]);
        assert_eq!((blocks.take(2 * MOST), blocks.take_all()), (None, vec![(4096, 256), (1 << 30, MOST)]));
        assert_eq!(blocks.bytes(), 0);
    }
}

//! The fixed binary tree by which sums over the shards of a batch go.
//!
//! ```text
//! sum(shards a..b) = sum(a..m) + sum(m..b), m in the middle; one shard is itself
//! ```
//! With a power of two of shards, those of each of 2^k ranks are a subtree, so ranks add up their own and then each
//! other's, and the result has the same bits for any such number of ranks. Depth first, one process needs log2 S + 1
//! buffers for S shards: [`Counter`].

use std::ops::Range;

/// The shards of rank `rank` of `world`, of `shards` in all.
///
/// # Panics
/// If the ranks do not divide the shards.
pub fn shards_of(rank: usize, world: usize, shards: usize) -> Range<usize> {
    assert!(rank < world && shards.is_multiple_of(world), "{shards} shards on {world} ranks, rank {rank}");
    let each = shards / world;
    rank * each..(rank + 1) * each
}

/// The sequences of shard `shard`, of `sequences` in all; none where there are more shards than sequences.
pub fn sequences_of(shard: usize, shards: usize, sequences: usize) -> Range<usize> {
    shard * sequences / shards..(shard + 1) * sequences / shards
}

/// Sums up in the order of the tree what comes one after the other, as a binary counter does: it holds partial sums
/// of 2^k neighbours, at most one of each size, and adds two as soon as they are equally large.
#[derive(Debug)]
pub struct Counter<T> {
    /// Partial sums and how many they are of, the largest first.
    partial: Vec<(usize, T)>,
}

impl<T> Default for Counter<T> {
    fn default() -> Self {
        Counter { partial: Vec::new() }
    }
}

impl<T> Counter<T> {
    /// Takes the next one. `add` adds its second argument to its first.
    pub fn push(&mut self, next: T, mut add: impl FnMut(&mut T, T)) {
        let mut count = 1;
        let mut sum = next;
        while self.partial.last().is_some_and(|(of, _)| *of == count) {
            let (_, mut left) = self.partial.pop().expect("looked at");
            add(&mut left, sum);
            sum = left;
            count *= 2;
        }
        self.partial.push((count, sum));
    }

    /// The sum of all; none if nothing came.
    ///
    /// # Panics
    /// If their number is not a power of two.
    pub fn finish(mut self) -> Option<T> {
        let sum = self.partial.pop();
        assert!(self.partial.is_empty(), "a tree over a number that is no power of two");
        sum.map(|(_, sum)| sum)
    }
}

/// The sum of a power of two of numbers in the order of the tree.
///
/// # Panics
/// If there are none, or not a power of two.
pub fn sum(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut counter = Counter::default();
    for value in values {
        counter.push(value, |left, right| *left += right);
    }
    counter.finish().expect("numbers to add up")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(values: Range<usize>) -> String {
        let mut counter = Counter::default();
        for value in values {
            counter.push(value.to_string(), |left, right| *left = format!("({left}+{right})"));
        }
        counter.finish().unwrap()
    }

    #[test]
    fn the_order_is_that_of_a_balanced_tree() {
        assert_eq!(text(0..1), "0");
        assert_eq!(text(0..8), "(((0+1)+(2+3))+((4+5)+(6+7)))");
    }

    #[test]
    fn each_rank_sums_a_subtree() {
        for world in [1, 2, 4, 8] {
            let mut counter = Counter::default();
            for rank in 0..world {
                counter.push(text(shards_of(rank, world, 8)), |left, right| *left = format!("({left}+{right})"));
            }
            assert_eq!(counter.finish().unwrap(), text(0..8), "{world} ranks");
        }
    }

    #[test]
    fn no_more_than_one_partial_sum_of_each_size_is_held() {
        let mut counter = Counter::default();
        for _ in 0..1000 {
            counter.push(1u64, |left, right| *left += right);
            assert!(counter.partial.len() <= 10, "{}", counter.partial.len());
        }
    }

    #[test]
    #[should_panic(expected = "no power of two")]
    fn a_tree_has_a_power_of_two_of_leaves() {
        text(0..6);
    }

    #[test]
    fn sequences_are_dealt_in_order_and_completely() {
        for (sequences, shards) in [(8, 8), (13, 4), (17, 16), (5, 1), (3, 8), (0, 2)] {
            let parts: Vec<usize> = (0..shards).flat_map(|shard| sequences_of(shard, shards, sequences)).collect();
            assert_eq!(parts, (0..sequences).collect::<Vec<_>>());
            let empty = (0..shards).filter(|&shard| sequences_of(shard, shards, sequences).is_empty()).count();
            assert_eq!(empty, shards.saturating_sub(sequences));
        }
    }
}

//! Training examples, and how they are packed into batches: whole, one after the other, none seeing another.

use std::ops::Range;

use wels_device::IGNORE;
use wels_device::host::random::Key;
use wels_model::model::Batch;

/// A sequence, and which of its tokens are to be learnt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Example {
    /// Token ids, at least two.
    pub tokens: Vec<u32>,
    /// One a token: whether the model is to predict it. The first cannot be.
    pub learn: Vec<bool>,
}

impl Example {
    /// An answer to be learnt behind a prompt that is not.
    pub fn answer(prompt: &[u32], answer: &[u32]) -> Example {
        Example::episode(prompt, answer, &[])
    }

    /// The same where the tokens at the places `given` of the answer are not to be learnt either.
    pub fn episode(prompt: &[u32], answer: &[u32], given: &[Range<usize>]) -> Example {
        let mut learn = vec![false; prompt.len()];
        learn.resize(prompt.len() + answer.len(), true);
        for range in given {
            learn[prompt.len() + range.start..prompt.len() + range.end].fill(false);
        }
        Example { tokens: [prompt, answer].concat(), learn }
    }

    /// Rows that it takes in a batch: the last token is only a target.
    pub fn rows(&self) -> usize {
        self.tokens.len() - 1
    }

    /// Whether there is anything to learn from it.
    pub fn has_target(&self) -> bool {
        self.learn.iter().skip(1).any(|learn| *learn)
    }
}

/// The examples as one batch, a sequence each.
///
/// # Panics
/// If an example has fewer than two tokens, or not a mark for each.
pub fn pack<'a>(examples: impl IntoIterator<Item = &'a Example>) -> Batch {
    let mut batch = Batch { tokens: Vec::new(), targets: Vec::new(), starts: vec![0] };
    for Example { tokens, learn } in examples {
        assert!(tokens.len() >= 2 && tokens.len() == learn.len(), "{} tokens, {} marks", tokens.len(), learn.len());
        batch.tokens.extend(&tokens[..tokens.len() - 1]);
        let targets = tokens[1..].iter().zip(&learn[1..]);
        batch.targets.extend(targets.map(|(token, learn)| if *learn { *token } else { IGNORE }));
        batch.starts.push(batch.tokens.len() as u32);
    }
    batch
}

/// Which examples make up each batch: `epochs` times all of them, shuffled anew each time, cut where the next one would
/// not fit into `rows` rows. Batches thus hold about the same number of tokens whatever the lengths, and no length is
/// weighted more than another. An example longer than that is a batch by itself.
///
/// The result depends on nothing but the arguments, so a training that goes on needs no state of it.
pub fn batches(example_rows: &[usize], rows: usize, epochs: u64, key: Key) -> Vec<Vec<usize>> {
    let mut batches: Vec<Vec<usize>> = Vec::new();
    let mut filled = rows;
    for epoch in 0..epochs {
        for index in shuffled(example_rows.len(), Key { stream: key.stream.wrapping_add(epoch << 32), ..key }) {
            if filled + example_rows[index] > rows || batches.is_empty() {
                batches.push(Vec::new());
                filled = 0;
            }
            filled += example_rows[index];
            batches.last_mut().expect("pushed above").push(index);
        }
    }
    batches
}

/// 0..n in random order (Fisher and Yates).
pub fn shuffled(n: usize, key: Key) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, key.below_at(i as u64, i as u64 + 1) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_examples_predict_what_is_marked() {
        let examples =
            [Example::answer(&[5, 6], &[7, 8]), Example::episode(&[9], &[1, 2, 3, 4], std::slice::from_ref(&(1..3)))];
        let batch = pack(&examples);
        assert_eq!(batch.tokens, [5, 6, 7, 9, 1, 2, 3]);
        assert_eq!(batch.targets, [IGNORE, 7, 8, 1, IGNORE, IGNORE, 4]);
        assert_eq!(batch.starts, [0, 3, 7]);
    }

    #[test]
    fn every_example_comes_once_an_epoch_in_batches_that_are_full() {
        let lengths: Vec<usize> = (0..50).map(|i| 3 + i * 7 % 11).collect();
        let key = Key { seed: 3, stream: 1 };
        let all = batches(&lengths, 40, 3, key);
        assert_eq!(all, batches(&lengths, 40, 3, key));
        let rows = |batch: &Vec<usize>| batch.iter().map(|i| lengths[*i]).sum::<usize>();
        assert!(all.iter().all(|batch| rows(batch) <= 40));
        assert!(all.windows(2).all(|pair| rows(&pair[0]) + lengths[pair[1][0]] > 40), "a batch could hold more");
        let order: Vec<usize> = all.concat();
        for epoch in order.chunks(50) {
            let mut sorted = epoch.to_vec();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        }
        assert_ne!(order[..50], order[50..100]);
        assert_eq!(batches(&[9, 90], 10, 1, key).len(), 2);
    }
}

//! From the states of a prompt's tokens to one vector.

use crate::request::Pooling;

/// What has been pooled of the states so far.
#[derive(Default)]
pub(crate) struct Pooled {
    sum: Vec<f32>,
    tokens: usize,
}

impl Pooled {
    /// Takes the states `[T, D]` of the tokens from place `first` on. At 0 it begins anew, as a sequence does that had
    /// given up its pages.
    pub fn add(&mut self, pooling: Pooling, first: usize, states: &[f32], width: usize) {
        if first == 0 || pooling == Pooling::Last {
            *self = Pooled { sum: vec![0.0; width], tokens: 0 };
        }
        let rows = states.chunks_exact(width);
        let skipped = if pooling == Pooling::Last { rows.len() - 1 } else { 0 };
        for row in rows.skip(skipped) {
            self.sum.iter_mut().zip(row).for_each(|(sum, state)| *sum += state);
            self.tokens += 1;
        }
    }

    /// The vector, `[D]`.
    pub fn take(&mut self) -> Vec<f32> {
        let count = self.tokens as f32;
        std::mem::take(&mut self.sum).into_iter().map(|sum| sum / count).collect()
    }
}

//! Sequences of text and pictures to learn from.

use std::ops::Range;

use wels_device::Ids;

/// What the language model is given at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// A token of text.
    Token(u32),
    /// A code of a picture that is drawn.
    Code(u32),
    /// The next row of [`JanusBatch::seen`].
    Seen,
}

/// What is to be predicted at a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Nothing,
    /// By the language model's head.
    Token(u32),
    /// By the head of codes.
    Code(u32),
}

/// Sequences one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JanusBatch {
    /// `[T]`.
    pub inputs: Vec<Input>,
    /// `[T]`.
    pub targets: Vec<Target>,
    /// Where each sequence begins, and T at the end.
    pub starts: Vec<u32>,
    /// `[rows, width]`: what is seen of a patch, one row an [`Input::Seen`]; its pixels ([`super::patches`]) where the
    /// tower learns too, and otherwise the tower's states.
    pub seen: Vec<f32>,
}

/// How many targets of each sort there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    pub text: usize,
    pub codes: usize,
}

impl JanusBatch {
    /// One less than the starts; 0 for a batch of nothing.
    pub fn sequences(&self) -> usize {
        self.starts.len().saturating_sub(1)
    }

    /// Of the first `rows` rows.
    pub fn targets_before(&self, rows: usize) -> Targets {
        self.targets[..rows].iter().fold(Targets::default(), |counts, target| match target {
            Target::Nothing => counts,
            Target::Token(_) => Targets { text: counts.text + 1, ..counts },
            Target::Code(_) => Targets { codes: counts.codes + 1, ..counts },
        })
    }

    /// Of all rows.
    pub fn target_counts(&self) -> Targets {
        self.targets_before(self.targets.len())
    }

    /// Some of the sequences.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn cut(&self, sequences: Range<usize>) -> JanusBatch {
        let (first, last) = (self.starts[sequences.start], self.starts[sequences.end]);
        let rows = first as usize..last as usize;
        let seen = |to: usize| self.inputs[..to].iter().filter(|input| **input == Input::Seen).count();
        let (before, until, all) = (seen(rows.start), seen(rows.end), seen(self.inputs.len()));
        let width = self.seen.len() / all.max(1);
        JanusBatch {
            inputs: self.inputs[rows.clone()].to_vec(),
            targets: self.targets[rows].to_vec(),
            starts: self.starts[sequences.start..=sequences.end].iter().map(|start| start - first).collect(),
            seen: self.seen[before * width..until * width].to_vec(),
        }
    }

    /// In pieces of whole sequences, as many as fit into `rows` rows, with their places among the sequences; a longer
    /// sequence is a piece by itself.
    pub fn micro_batches(&self, rows: usize) -> impl Iterator<Item = Range<usize>> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            if from == self.sequences() {
                return None;
            }
            let end = self.starts[from] as usize + rows;
            let fitting = self.starts.partition_point(|start| *start as usize <= end) - 1;
            let first = from;
            from = fitting.max(first + 1);
            Some(first..from)
        })
    }

    /// # Panics
    /// If inputs, targets and starts do not fit together.
    pub(crate) fn check(&self) {
        let (rows, last) = (self.inputs.len(), self.starts.last());
        assert_eq!(
            (self.targets.len(), last),
            (rows, Some(&(rows as u32))),
            "targets, and the last start, of the rows"
        );
    }
}

/// Some rows of a batch, in order, and what stands there.
pub(crate) struct Part {
    /// `[R]`: which rows.
    pub rows: Ids,
    /// Where each sequence begins among them; R at the end.
    pub starts: Ids,
    /// `[R]`.
    pub ids: Vec<u32>,
}

impl Part {
    /// The rows of which `id` gives something.
    pub fn of<T: Copy>(all: &[T], starts: &[u32], id: impl Fn(T) -> Option<u32>) -> Part {
        let found = || all.iter().zip(0u32..).filter_map(|(it, row)| Some((row, id(*it)?)));
        let (rows, ids): (Vec<u32>, Vec<u32>) = found().unzip();
        let before = |start: &u32| rows.partition_point(|row| row < start) as u32;
        let starts: Vec<u32> = starts.iter().map(before).collect();
        Part { starts: starts.into(), rows: rows.into(), ids }
    }

    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch() -> JanusBatch {
        JanusBatch {
            inputs: vec![Input::Token(1), Input::Code(2), Input::Seen, Input::Seen, Input::Token(3), Input::Seen],
            targets: vec![
                Target::Code(5),
                Target::Nothing,
                Target::Nothing,
                Target::Token(6),
                Target::Nothing,
                Target::Token(7),
            ],
            starts: vec![0, 2, 4, 6],
            seen: vec![0.0, 0.5, 1.0, 1.5, 2.0, 2.5],
        }
    }

    #[test]
    fn pieces_are_whole_sequences_with_what_they_see() {
        let batch = batch();
        let pieces = |rows| batch.micro_batches(rows).collect::<Vec<_>>();
        assert_eq!(pieces(5), [0..2, 2..3]);
        assert_eq!(pieces(1), [0..1, 1..2, 2..3]);
        assert_eq!(pieces(6).len(), 1);
        let last = batch.cut(2..3);
        assert_eq!((last.starts.as_slice(), last.seen.as_slice()), ([0, 2].as_slice(), [2.0, 2.5].as_slice()));
        assert_eq!((last.inputs, last.targets), (batch.inputs[4..].to_vec(), batch.targets[4..].to_vec()));
        assert_eq!(batch.target_counts(), Targets { text: 2, codes: 1 });
    }

    #[test]
    fn a_part_knows_where_its_sequences_begin() {
        let batch = batch();
        let seen = |input| (input == Input::Seen).then_some(0);
        let part = Part::of(&batch.inputs, &batch.starts, seen);
        assert_eq!((&part.rows[..], &part.starts[..]), ([2, 3, 5].as_slice(), [0, 0, 2, 3].as_slice()));
    }
}

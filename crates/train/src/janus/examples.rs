//! What a Janus model learns from, packed into batches: whole sequences, one after the other, none seeing another.

use wels_device::IGNORE;
use wels_device::host::random::Key;
use wels_model::janus::batch::{Input, JanusBatch, Target};
use wels_model::janus::without_words;

use crate::example::Example;

/// A sequence.
#[derive(Clone, Debug, PartialEq)]
pub enum JanusExample {
    /// A picture to be drawn.
    Draw {
        /// The caption and what stands around it, at least one token.
        prompt: Vec<u32>,
        /// At least one.
        codes: Vec<u32>,
    },
    /// A conversation about a picture.
    See {
        /// What stands before the picture.
        before: Vec<u32>,
        /// `[rows, width]`, a row a patch: its pixels (`wels_model::janus::patches`) where the network has the tower
        /// (`Sight::Patches`), and otherwise the states that a tower has made of them (`Sight::States`).
        seen: Vec<f32>,
        rows: usize,
        /// What stands behind the picture, two tokens or more, the first of which is not learnt: questions, and answers
        /// that are.
        talk: Example,
    },
    /// Text alone.
    Text(Example),
}

impl JanusExample {
    /// Rows that it takes in a batch: what comes last is only a target.
    pub fn rows(&self) -> usize {
        match self {
            JanusExample::Draw { prompt, codes } => prompt.len() + codes.len() - 1,
            JanusExample::See { before, rows, talk, .. } => before.len() + rows + talk.tokens.len() - 1,
            JanusExample::Text(example) => example.rows(),
        }
    }

    /// Writes one more token of a talk before its last one.
    ///
    /// # Panics
    /// If it is not about a picture.
    pub fn say(&mut self, token: u32) {
        let JanusExample::See { talk: Example { tokens, learn }, .. } = self else { panic!("about a picture") };
        tokens.insert(tokens.len() - 1, token);
        learn.push(true);
    }

    fn push(&self, batch: &mut JanusBatch) {
        match self {
            JanusExample::Draw { prompt, codes } => {
                assert!(!prompt.is_empty() && !codes.is_empty(), "{} tokens, {} codes", prompt.len(), codes.len());
                batch.inputs.extend(prompt.iter().map(|token| Input::Token(*token)));
                batch.inputs.extend(codes[..codes.len() - 1].iter().map(|code| Input::Code(*code)));
                learn(batch, codes.iter().map(|code| Target::Code(*code)).collect());
            }
            JanusExample::See { before, seen, rows, talk: Example { tokens, learn: learnt } } => {
                assert!(tokens.len() > 1 && tokens.len() == learnt.len() && !learnt[0], "questions and answers");
                batch.inputs.extend(before.iter().map(|token| Input::Token(*token)));
                batch.inputs.extend(std::iter::repeat_n(Input::Seen, *rows));
                batch.inputs.extend(tokens[..tokens.len() - 1].iter().map(|token| Input::Token(*token)));
                batch.seen.extend_from_slice(seen);
                let target =
                    |(token, learnt): (&u32, &bool)| if *learnt { Target::Token(*token) } else { Target::Nothing };
                learn(batch, tokens.iter().zip(learnt).skip(1).map(target).collect());
            }
            JanusExample::Text(example) => {
                let text = crate::example::pack([example]);
                batch.inputs.extend(text.tokens.iter().map(|token| Input::Token(*token)));
                let target = |target: &u32| if *target == IGNORE { Target::Nothing } else { Target::Token(*target) };
                learn(batch, text.targets.iter().map(target).collect());
            }
        }
        batch.starts.push(batch.inputs.len() as u32);
    }
}

/// Targets of the last inputs; none of those before them.
fn learn(batch: &mut JanusBatch, targets: Vec<Target>) {
    batch.targets.resize(batch.inputs.len() - targets.len(), Target::Nothing);
    batch.targets.extend(targets);
}

/// The examples as one batch, a sequence each.
///
/// # Panics
/// If a prompt, a picture, a question or an answer is empty, or the pictures seen are of different widths.
pub fn pack<'a>(examples: impl IntoIterator<Item = &'a JanusExample>) -> JanusBatch {
    let mut batch = JanusBatch { starts: vec![0], ..JanusBatch::default() };
    for example in examples {
        example.push(&mut batch);
    }
    batch
}

/// Takes its caption from about `share` of the pictures that are to be drawn, so that guidance has something to compare
/// with. Example number n of a training, counted over all steps from `first` on, always has the same fate.
pub fn without_captions(examples: &mut [JanusExample], share: f64, padding: u32, key: Key, first: u64) {
    for (n, example) in (first..).zip(examples) {
        if let JanusExample::Draw { prompt, .. } = example
            && key.uniform_at(n) < share
        {
            *prompt = without_words(prompt, padding);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sort_learns_what_it_is_for() {
        let draw = JanusExample::Draw { prompt: vec![1, 2, 3], codes: vec![7, 8] };
        let see =
            JanusExample::See { before: vec![1], seen: vec![0.5; 4], rows: 2, talk: Example::answer(&[4], &[5, 6]) };
        let text = JanusExample::Text(Example::answer(&[1, 2], &[3]));
        let examples = [draw, see, text];
        let batch = pack(&examples);
        use Input::{Code, Seen, Token};
        let inputs =
            [Token(1), Token(2), Token(3), Code(7), Token(1), Seen, Seen, Token(4), Token(5), Token(1), Token(2)];
        assert_eq!(batch.inputs, inputs);
        let none = Target::Nothing;
        let targets = [
            none,
            none,
            Target::Code(7),
            Target::Code(8),
            none,
            none,
            none,
            Target::Token(5),
            Target::Token(6),
            none,
            Target::Token(3),
        ];
        assert_eq!(batch.targets, targets);
        assert_eq!(batch.starts, [0, 4, 9, 11]);
        assert_eq!(examples.iter().map(JanusExample::rows).sum::<usize>(), 11);
    }

    #[test]
    fn captions_are_dropped_by_number() {
        let all = vec![JanusExample::Draw { prompt: vec![1, 2, 3, 4], codes: vec![7] }; 1000];
        let key = Key { seed: 3, stream: 4 };
        let dropped = |mut examples: Vec<JanusExample>, first| {
            without_captions(&mut examples, 0.1, 0, key, first);
            examples
        };
        let whole = dropped(all.clone(), 0);
        let without = JanusExample::Draw { prompt: vec![1, 0, 0, 4], codes: vec![7] };
        let count = whole.iter().filter(|example| **example == without).count();
        assert!((70..130).contains(&count), "{count} of 1000");
        assert_eq!(whole.iter().filter(|example| **example == all[0]).count(), 1000 - count);
        assert_eq!([dropped(all[..300].to_vec(), 0), dropped(all[300..].to_vec(), 300)].concat(), whole);
    }
}

//! Whether a corpus holds the items that a model is measured with: runs of equal words, as GPT-3's authors looked for
//! them (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C).
//!
//! Words are runs of letters and digits, in lower case. An item of 13 words or more is looked for by every run of 13 of
//! its words, a shorter one of 8 or more whole, and one of fewer not at all.

use std::collections::HashMap;
use std::ops::Range;

/// Words of a run.
pub const RUN_WORDS: usize = 13;
/// Fewest words of an item that is looked for.
pub const RUN_WORDS_MIN: usize = 8;

/// Odd, so that multiplying by it loses nothing.
const BASE: u128 = 0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835;
const STREAM_WORDS: u64 = 0x776f_7264;

/// Items to be looked for.
#[derive(Clone, Debug, Default)]
pub struct Index {
    items: Vec<Found>,
    /// Items with a run, by the run's length and hash.
    runs: HashMap<(u8, u128), Vec<u32>>,
    /// The lengths in use.
    lengths: Vec<usize>,
}

/// What was found of one item.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The item's.
    pub id: String,
    /// How many different runs it has; 0 if it is too short to be looked for.
    pub runs: usize,
    /// Of these, those that the corpus has.
    pub found: usize,
    /// The first place: name of the document, and the words as they stand there.
    pub example: Option<(String, String)>,
    hashes: Vec<(u8, u128, bool)>,
}

impl Index {
    /// Adds an item by its text.
    pub fn add(&mut self, id: &str, text: &str) {
        let words = words(text);
        let length = words.len().min(RUN_WORDS);
        let number = self.items.len() as u32;
        let mut hashes: Vec<(u8, u128, bool)> = Vec::new();
        if length >= RUN_WORDS_MIN {
            if !self.lengths.contains(&length) {
                self.lengths.push(length);
            }
            let all: Vec<u128> = words.iter().map(|word| word_hash(&word.0)).collect();
            runs(&all, length, |_, hash| {
                if hashes.iter().all(|(_, other, _)| *other != hash) {
                    hashes.push((length as u8, hash, false));
                    self.runs.entry((length as u8, hash)).or_default().push(number);
                }
            });
        }
        self.items.push(Found { id: id.to_owned(), runs: hashes.len(), found: 0, example: None, hashes });
    }

    /// Looks for the items in a document of the corpus.
    pub fn search(&mut self, name: &str, document: &str) {
        let words = words(document);
        let hashes: Vec<u128> = words.iter().map(|word| word_hash(&word.0)).collect();
        for &length in &self.lengths {
            runs(&hashes, length, |first, hash| {
                for &item in self.runs.get(&(length as u8, hash)).into_iter().flatten() {
                    let item = &mut self.items[item as usize];
                    let run = item.hashes.iter_mut().find(|run| run.1 == hash).expect("it is indexed under its runs");
                    item.found += usize::from(!std::mem::replace(&mut run.2, true));
                    item.example.get_or_insert_with(|| {
                        let place = words[first].1.start..words[first + length - 1].1.end;
                        (name.to_owned(), document[place].to_owned())
                    });
                }
            });
        }
    }

    /// The items in their order.
    pub fn items(&self) -> &[Found] {
        &self.items
    }
}

/// The words of a text, and where they stand.
fn words(text: &str) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    let mut begin = None;
    for (at, c) in text.char_indices().chain([(text.len(), ' ')]) {
        match (c.is_alphanumeric(), begin) {
            (true, None) => begin = Some(at),
            (false, Some(first)) => {
                found.push((text[first..at].to_lowercase(), first..at));
                begin = None;
            }
            _ => {}
        }
    }
    found
}

fn word_hash(word: &str) -> u128 {
    let half = |seed| {
        word.as_bytes().chunks(8).fold(
            wels_data::random::bits(seed, STREAM_WORDS, word.len() as u64, 0),
            |hash, piece| {
                let mut bytes = [0; 8];
                bytes[..piece.len()].copy_from_slice(piece);
                wels_data::random::bits(hash, STREAM_WORDS, u64::from_le_bytes(bytes), seed)
            },
        )
    };
    u128::from(half(1)) << 64 | u128::from(half(2))
}

/// Each run of `length` words: where it begins, and its hash, Σ wᵢ·BASE^(length−1−i) modulo 2^128.
fn runs(words: &[u128], length: usize, mut each: impl FnMut(usize, u128)) {
    let out = (0..length).fold(1u128, |power, _| power.wrapping_mul(BASE));
    let mut hash = 0u128;
    for (at, word) in words.iter().enumerate() {
        hash = hash.wrapping_mul(BASE).wrapping_add(*word);
        if at >= length {
            hash = hash.wrapping_sub(words[at - length].wrapping_mul(out));
        }
        if at + 1 >= length {
            each(at + 1 - length, hash);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: &str = "One two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen";

    fn found(items: &[&str], documents: &[&str]) -> Vec<Found> {
        let mut index = Index::default();
        items.iter().enumerate().for_each(|(at, text)| index.add(&at.to_string(), text));
        documents.iter().enumerate().for_each(|(at, text)| index.search(&format!("d{at}"), text));
        index.items().to_vec()
    }

    #[test]
    fn runs_are_found_whatever_stands_around_them() {
        let document = "zero, ONE two, three-four five six\nseven eight nine ten “eleven” twelve thirteen. And so on.";
        let item = &found(&[LONG], &["nothing", document, document])[0];
        assert_eq!((item.runs, item.found), (3, 1));
        let (name, words) = item.example.clone().unwrap();
        assert_eq!(name, "d1");
        assert!(words.starts_with("ONE two, three-four") && words.ends_with("twelve thirteen"), "{words}");
        assert_eq!(found(&[LONG], &[LONG])[0].found, 3);
    }

    #[test]
    fn twelve_equal_words_are_not_enough_for_a_long_item() {
        let twelve = "two three four five six seven eight nine ten eleven twelve thirteen";
        assert_eq!(found(&[LONG], &[twelve])[0].found, 0);
        let swapped = LONG.replace("seven eight", "eight seven");
        assert_eq!(found(&[LONG], &[&swapped])[0].found, 0);
    }

    #[test]
    fn short_items_are_looked_for_whole_and_very_short_ones_not_at_all() {
        let nine = "what is the capital of the land of France";
        let items = found(&[nine, "what is the capital"], &["He asked: What is the capital of the land of France?"]);
        assert_eq!((items[0].runs, items[0].found), (1, 1));
        assert_eq!((items[1].runs, items[1].found), (0, 0));
    }

    #[test]
    fn items_that_share_a_run_are_both_found() {
        let other = format!("{LONG} sixteen");
        let items = found(&[LONG, &other], &[LONG]);
        assert_eq!((items[0].found, items[1].found, items[1].runs), (3, 3, 4));
    }
}

//! The short way through byte-level tokenizers: split, look words up.
//!
//! The `tokenizers` crate keeps for every byte of the text where it came from, through every step. Corpora need ids
//! only. For tokenizers that split by regular expressions and then map bytes, as those of DeepSeek, Qwen and Llama 3
//! do, the words are cut from the text itself and the ids of words that were seen before come from a table.

use std::collections::HashMap;

use tokenizers::pre_tokenizers::split::Split;
use tokenizers::{Model, ModelWrapper, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::{TokenizerError, failed};

/// Words longer than this are not remembered.
const WORD_BYTES_MAX: usize = 64;

/// Regular expressions that cut a text into words, one within the pieces of the other.
pub(super) struct Splitter(Vec<Split>);

impl Splitter {
    /// `None` unless these steps only keep each match and each gap as pieces of their own.
    pub(super) fn of(steps: &[PreTokenizerWrapper]) -> Option<Splitter> {
        let split = |step: &PreTokenizerWrapper| match step {
            PreTokenizerWrapper::Split(split)
                if split.behavior == SplitDelimiterBehavior::Isolated && !split.invert =>
            {
                Some(split.clone())
            }
            _ => None,
        };
        steps.iter().map(split).collect::<Option<_>>().map(Splitter)
    }

    /// Calls `word` with each word of `text`, in order.
    pub(super) fn for_each<'t>(&self, text: &'t str, word: &mut impl FnMut(&'t str)) {
        cut(&self.0, text, word);
    }
}

fn cut<'t>(splits: &[Split], text: &'t str, word: &mut impl FnMut(&'t str)) {
    if text.is_empty() {
        return;
    }
    let Some((split, inner)) = splits.split_first() else { return word(text) };
    let mut done = 0;
    for (start, end) in split.regex.find_iter(text) {
        cut(inner, &text[done..start], word);
        cut(inner, &text[start..end], word);
        done = end;
    }
    cut(inner, &text[done..], word);
}

/// Ids of words by their text.
pub(super) type Words = HashMap<String, Box<[u32]>>;

/// What the short way needs to know of a tokenizer.
pub(super) struct WordEncoder {
    splitter: Splitter,
    char_of_byte: [char; 256],
}

impl WordEncoder {
    /// `None` for tokenizers that do more than split and map bytes.
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Option<WordEncoder> {
        let Some(PreTokenizerWrapper::Sequence(steps)) = tokenizer.get_pre_tokenizer() else { return None };
        let (last, splits) = steps.as_ref().split_last()?;
        let PreTokenizerWrapper::ByteLevel(bytes) = last else { return None };
        let plain = !bytes.add_prefix_space && !bytes.use_regex && tokenizer.get_normalizer().is_none();
        let bpe = matches!(tokenizer.get_model(), ModelWrapper::BPE(_));
        // Added tokens that are words, not marks, are found in the text by the crate before anything else.
        let no_added_words = tokenizer.get_added_tokens_decoder().values().all(|token| token.special);
        let splitter = Splitter::of(splits).filter(|_| plain && bpe && no_added_words)?;
        Some(WordEncoder { splitter, char_of_byte: super::bpe::char_of_byte() })
    }

    /// The ids of `text` by the model of `tokenizer`; `words` are those met so far.
    pub(super) fn encode(
        &self,
        tokenizer: &tokenizers::Tokenizer,
        text: &str,
        words: &mut Words,
    ) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(text.len() / 3);
        let mut error = None;
        self.splitter.for_each(text, &mut |word| {
            if let Some(known) = words.get(word) {
                return ids.extend_from_slice(known);
            }
            let mapped: String = word.bytes().map(|byte| self.char_of_byte[byte as usize]).collect();
            match tokenizer.get_model().tokenize(&mapped) {
                Ok(tokens) => {
                    let first = ids.len();
                    ids.extend(tokens.iter().map(|token| token.id));
                    if word.len() <= WORD_BYTES_MAX {
                        words.insert(word.to_owned(), ids[first..].into());
                    }
                }
                Err(e) => error = error.take().or(Some(failed(&e))),
            }
        });
        error.map_or(Ok(ids), Err)
    }
}

//! Training of a byte-level BPE vocabulary.
//!
//! The `tokenizers` crate has a trainer, but its merge order depends on the iteration order of randomly seeded hash
//! maps where counts tie, and it counts pairs in 32 bits. This one is specified: the next merge is the adjacent pair
//! with the highest count, among equals the one with the smallest (left id, right id). Counts are sums of integers, so
//! neither threads nor the order of the texts change the result. Pre-tokenisation is DeepSeek-V3's.
//!
//! Source: Sennrich, Haddow, Birch, "Neural Machine Translation of Rare Words with Subword Units" (2016), algorithm 1,
//! over bytes as in GPT-2.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use rayon::prelude::*;
use serde_json::{Map, Value, json};
use tokenizers::PreTokenizerWrapper;

use super::split::Splitter;
use super::{SpecialTokens, Tokenizer, TokenizerError};

/// DeepSeek-V3's pre-tokenisation, as in its `tokenizer.json`: digits in groups of at most three, runs of Chinese and
/// Japanese script, then words with the one character before them, punctuation, line ends, spaces.
pub(super) const SPLITS: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
];

type Pair = (u32, u32);

/// Counts words of any number of texts, then derives the vocabulary.
///
/// ```
/// use wels_data::tokenizer::{BpeTrainer, SpecialTokens};
/// let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).unwrap();
/// trainer.feed(&["low lower lowest", "new newer newest"]);
/// let tokenizer = trainer.train().unwrap();
/// let ids = tokenizer.encode("lowest").unwrap();
/// assert_eq!(tokenizer.decode(&ids).unwrap(), "lowest");
/// ```
pub struct BpeTrainer {
    vocab_size: usize,
    special: SpecialTokens,
    splitter: Splitter,
    word_counts: HashMap<String, u64>,
    number_digits: usize,
}

impl BpeTrainer {
    /// A trainer for a vocabulary of `vocab_size` ids: the special tokens, the 256 bytes, then merges.
    pub fn new(vocab_size: usize, special: SpecialTokens) -> Result<Self, TokenizerError> {
        let needed = special.all().len() + 256;
        if vocab_size < needed {
            return Err(TokenizerError::VocabularyTooSmall { vocab_size, needed });
        }
        let steps: Vec<PreTokenizerWrapper> =
            serde_json::from_value(Value::Array(split_steps())).expect("the regular expressions are constants");
        let splitter = Splitter::of(&steps).expect("the steps are plain splits");
        Ok(BpeTrainer { vocab_size, special, splitter, word_counts: HashMap::new(), number_digits: 1 })
    }

    /// Makes every run of up to `digits` digits one token, whatever the texts hold: the merges that spell them come
    /// first. Three is the longest run that pre-tokenisation leaves whole. One, the default, asks for nothing.
    pub fn number_digits(mut self, digits: usize) -> Result<Self, TokenizerError> {
        let needed = self.special.all().len() + 256 + number_merges(digits.min(3)).len();
        if self.vocab_size < needed {
            return Err(TokenizerError::VocabularyTooSmall { vocab_size: self.vocab_size, needed });
        }
        self.number_digits = digits.min(3);
        Ok(self)
    }

    /// Counts the words of `texts`, on all threads. Texts of about a megabyte or less share the work best.
    pub fn feed<S: AsRef<str> + Sync>(&mut self, texts: &[S]) {
        let splitter = &self.splitter;
        let counts = texts
            .par_iter()
            .fold(HashMap::new, |mut counts, text| {
                count_words(splitter, text.as_ref(), &mut counts);
                counts
            })
            .reduce(HashMap::new, |a, b| {
                let (mut into, from) = if a.len() >= b.len() { (a, b) } else { (b, a) };
                for (word, count) in from {
                    *into.entry(word).or_default() += count;
                }
                into
            });
        for (word, count) in counts {
            *self.word_counts.entry(word).or_default() += count;
        }
    }

    /// The tokenizer. It has fewer than `vocab_size` ids when the texts run out of pairs that occur twice.
    pub fn train(self) -> Result<Tokenizer, TokenizerError> {
        let special = self.special.all();
        let merges_wanted = self.vocab_size - special.len() - 256;
        let mut words: Vec<(&String, &u64)> = self.word_counts.iter().collect();
        words.sort_unstable();
        let words = words.into_iter().map(|(word, &count)| Word::new(word, count)).collect();
        let merges = Merger::new(words).run(number_merges(self.number_digits), merges_wanted);
        Tokenizer::from_json(
            tokenizer_json(&self.special, &merges).as_bytes(),
            Some(tokenizer_config(&self.special).as_bytes()),
        )
    }
}

/// Merges for all runs of 2 to `digits` digits, the shorter ones first.
fn number_merges(digits: usize) -> Vec<Merge> {
    let run = |length: usize, value: usize| format!("{value:0length$}").into_bytes();
    let merge = |length: usize, value: usize| (run(length - 1, value / 10), vec![b'0' + (value % 10) as u8]);
    (2..=digits).flat_map(|length| (0..10_usize.pow(length as u32)).map(move |value| merge(length, value))).collect()
}

fn count_words(splitter: &Splitter, text: &str, counts: &mut HashMap<String, u64>) {
    splitter.for_each(text, &mut |word| match counts.get_mut(word) {
        Some(count) => *count += 1,
        None => _ = counts.insert(word.to_owned(), 1),
    });
}

/// A distinct word as the symbols it is made of so far: bytes are 0..256, then those that merges made.
struct Word {
    symbols: Vec<u32>,
    count: u64,
}

impl Word {
    fn new(word: &str, count: u64) -> Self {
        Word { symbols: word.bytes().map(u32::from).collect(), count }
    }

    /// Replaces each `pair`, from the left, by `symbol`, and reports every adjacent pair that went (−1) or came (+1).
    fn merge(&mut self, pair: Pair, symbol: u32, mut changed: impl FnMut(Pair, i64)) {
        let old = &self.symbols;
        let mut new = Vec::with_capacity(old.len());
        let mut i = 0;
        while i < old.len() {
            let hit = i + 1 < old.len() && (old[i], old[i + 1]) == pair;
            new.push(if hit { symbol } else { old[i] });
            i += if hit { 2 } else { 1 };
        }
        if new.len() < old.len() {
            old.windows(2).for_each(|p| changed((p[0], p[1]), -1));
            new.windows(2).for_each(|p| changed((p[0], p[1]), 1));
            self.symbols = new;
        }
    }
}

/// One merge of the vocabulary: the spellings (in bytes) of its two parts.
type Merge = (Vec<u8>, Vec<u8>);

/// The state of the merge loop.
struct Merger {
    words: Vec<Word>,
    counts: HashMap<Pair, u64>,
    /// The words that a pair occurs in, or once occurred in; may name a word twice.
    places: HashMap<Pair, Vec<u32>>,
    /// Candidates with the count they had when pushed; outdated ones are pushed again when they surface.
    queue: BinaryHeap<(u64, Reverse<Pair>)>,
    /// The bytes of each symbol, and back. Two merges may spell the same symbol.
    spellings: Vec<Vec<u8>>,
    symbols: HashMap<Vec<u8>, u32>,
}

impl Merger {
    fn new(words: Vec<Word>) -> Self {
        let mut counts: HashMap<Pair, u64> = HashMap::new();
        let mut places: HashMap<Pair, Vec<u32>> = HashMap::new();
        for (index, word) in words.iter().enumerate() {
            for p in word.symbols.windows(2) {
                *counts.entry((p[0], p[1])).or_default() += word.count;
                push_new(places.entry((p[0], p[1])).or_default(), index as u32);
            }
        }
        let queue = counts.iter().map(|(&pair, &count)| (count, Reverse(pair))).collect();
        let spellings: Vec<Vec<u8>> = (0..=255).map(|byte| vec![byte]).collect();
        let symbols = spellings.iter().cloned().zip(0..).collect();
        Merger { words, counts, places, queue, spellings, symbols }
    }

    /// The merges, in order, that make `wanted` new symbols, or fewer when no pair occurs twice any more (its token
    /// would never be seen again). The `first` ones are made in any case.
    fn run(mut self, first: Vec<Merge>, wanted: usize) -> Vec<Merge> {
        let mut merges = Vec::new();
        for (left, right) in first {
            self.merge((self.symbols[&left], self.symbols[&right]), &mut merges);
        }
        while self.spellings.len() < 256 + wanted {
            let Some((count, Reverse(pair))) = self.queue.pop() else { break };
            let current = self.counts[&pair];
            if current < 2 {
                continue;
            }
            if current != count {
                self.queue.push((current, Reverse(pair)));
                continue;
            }
            self.merge(pair, &mut merges);
        }
        merges
    }

    fn merge(&mut self, pair: Pair, merges: &mut Vec<Merge>) {
        let (left, right) = (&self.spellings[pair.0 as usize], &self.spellings[pair.1 as usize]);
        let merged = [left.as_slice(), right].concat();
        merges.push((left.clone(), right.clone()));
        let symbol = *self.symbols.entry(merged.clone()).or_insert_with(|| {
            self.spellings.push(merged);
            self.spellings.len() as u32 - 1
        });
        self.apply(pair, symbol);
    }

    fn apply(&mut self, pair: Pair, symbol: u32) {
        let Merger { words, counts, places, queue, .. } = self;
        let mut grown: Vec<Pair> = Vec::new();
        for index in places.remove(&pair).unwrap_or_default() {
            let word = &mut words[index as usize];
            let times = word.count;
            word.merge(pair, symbol, |changed, sign| {
                let count = counts.entry(changed).or_default();
                if sign < 0 {
                    *count -= times;
                    return;
                }
                *count += times;
                // The other pairs come back as they went.
                if changed.0 == symbol || changed.1 == symbol {
                    push_new(places.entry(changed).or_default(), index);
                    grown.push(changed);
                }
            });
        }
        grown.sort_unstable();
        grown.dedup();
        queue.extend(grown.into_iter().map(|pair| (counts[&pair], Reverse(pair))));
    }
}

/// Appends `index` unless it was the last one appended.
fn push_new(places: &mut Vec<u32>, index: u32) {
    if places.last() != Some(&index) {
        places.push(index);
    }
}

/// GPT-2's printable stand-in for each byte: itself where printable, else the next free code point from 256.
pub(super) fn char_of_byte() -> [char; 256] {
    let printable = |b: u32| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    std::array::from_fn(|byte| {
        let byte = byte as u32;
        let code = if printable(byte) { byte } else { next };
        next += u32::from(code == next);
        char::from_u32(code).expect("below the surrogates")
    })
}

/// The inverse of [`char_of_byte`].
pub(super) fn byte_of_char() -> HashMap<char, u8> {
    char_of_byte().into_iter().zip(0..=255).collect()
}

fn split_steps() -> Vec<Value> {
    SPLITS.iter().map(|expression| split_step(expression)).collect()
}

/// A pre-tokenizer that keeps matches and gaps as pieces of their own.
pub(super) fn split_step(expression: &str) -> Value {
    json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false})
}

/// A pre-tokenizer, and decoder, that maps bytes to their stand-ins.
pub(super) fn byte_level_step() -> Value {
    json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false})
}

/// The `tokenizer.json`: special tokens from id 0, then the bytes in the order of their stand-ins, then the merges.
/// Where two merges spell the same token, they share its id.
fn tokenizer_json(special: &SpecialTokens, merges: &[Merge]) -> String {
    let chars = char_of_byte();
    let mut vocab: Map<String, Value> = Map::new();
    let add = |vocab: &mut Map<String, Value>, token: &str| {
        let id = vocab.len();
        vocab.entry(token).or_insert_with(|| json!(id));
    };
    special.all().iter().for_each(|token| add(&mut vocab, token));
    let mut alphabet = chars;
    alphabet.sort_unstable();
    alphabet.iter().for_each(|c| add(&mut vocab, &c.to_string()));

    let spell = |bytes: &[u8]| bytes.iter().map(|&byte| chars[byte as usize]).collect::<String>();
    let mut merge_list = Vec::with_capacity(merges.len());
    for (left, right) in merges {
        let (left, right) = (spell(left), spell(right));
        add(&mut vocab, &format!("{left}{right}"));
        merge_list.push(json!([left, right]));
    }

    let mut steps = split_steps();
    let byte_level = byte_level_step();
    steps.push(byte_level.clone());
    let added = special.all().iter().enumerate().map(|(id, token)| added_token(special, id, token)).collect::<Vec<_>>();
    let file = json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": special.bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [
                {"SpecialToken": {"id": special.bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {&special.bos: {"id": special.bos, "ids": [0], "tokens": [special.bos]}},
        },
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocab,
            "merges": merge_list,
        },
    });
    serde_json::to_string_pretty(&file).expect("strings and numbers serialise")
}

/// As in DeepSeek's vocabularies, the thinking marks are no "special" tokens, so that decoding with
/// `skip_special_tokens` keeps them.
fn added_token(special: &SpecialTokens, id: usize, token: &str) -> Value {
    let is_special = token != special.think_begin && token != special.think_end;
    json!({
        "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": is_special,
    })
}

fn tokenizer_config(special: &SpecialTokens) -> String {
    json!({"bos_token": special.bos, "eos_token": special.eos, "pad_token": special.pad}).to_string()
}

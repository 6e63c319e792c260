//! Tests of the crate's public interface, in one binary.

mod chat;
mod corpus;
mod gguf;
mod golden;
mod loader;
mod oracle;
mod sentencepiece;
mod shards;
mod tiktoken;
mod tokenizer;

use std::fs;
use std::path::Path;

use wels_data::Tokenizer;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens};

/// A small deterministic text: `words` words of a made-up language with a skewed distribution.
fn babble(seed: u64, words: usize) -> String {
    let mut state = seed;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let syllables = ["ka", "to", "mi", "wel", "sen", "ru", "é", "ß", "日", "x1"];
    let mut text = String::new();
    for word in 0..words {
        let len = 1 + next(3);
        (0..len).for_each(|_| text.push_str(syllables[(next(10) * next(10) / 10) as usize]));
        text.push_str(if word % 11 == 10 { ".\n" } else { " " });
    }
    text
}

/// A tokenizer trained on babble.
fn small_tokenizer() -> Tokenizer {
    let mut trainer = BpeTrainer::new(400, SpecialTokens::default()).unwrap();
    trainer.feed(&[babble(1, 3000), babble(2, 3000)]);
    trainer.train().unwrap()
}

/// Writes `files` into `dir`.
fn write_files(dir: &Path, files: &[(&str, &[u8])]) {
    for (name, bytes) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

/// `bytes` with a piece cut off its end and some bytes changed, as `changes` says: (where, what) pairs.
fn damage(bytes: &[u8], keep: usize, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = bytes[..keep.min(bytes.len())].to_vec();
    for &(at, value) in changes {
        if !bytes.is_empty() {
            let at = at % bytes.len();
            bytes[at] = value;
        }
    }
    bytes
}

//! SentencePiece's BPE: pieces with scores, in GGUF files (`tokenizer.ggml.model = llama`) and in `tokenizer.model`.
//!
//! It joins the two neighbours that make the piece of the highest score, which a `tokenizer.json` says with an ordered
//! list of merges: all ways in which two pieces make a third, by the third's score. Ties, which the scores of published
//! models leave only between ways to make one piece, are broken as `transformers` does when it converts such files
//! (`generate_merges` in `convert_slow_tokenizer.py`); then SentencePiece would take the leftmost.

use std::path::Path;

use serde_json::{Value, json};

use super::gguf::{GgufVocabulary, SENTENCEPIECE, TokenKind, from};
use super::{Tokenizer, TokenizerError};

/// Stands for a space in pieces.
const SPACE: &str = "\u{2581}";

impl GgufVocabulary {
    /// The `tokenizer.json` of a SentencePiece vocabulary.
    pub(super) fn sentencepiece_json(&self) -> Result<Value, TokenizerError> {
        let vocab = self.vocab()?;
        if self.scores.len() != self.tokens.len() {
            let (scores, tokens) = (self.scores.len(), self.tokens.len());
            return Err(from(format!("it has {tokens} tokens and the scores of {scores}")));
        }
        let unknown = (0..self.tokens.len()).find(|id| self.kind(*id) == TokenKind::Unknown);
        let mut steps = vec![json!({"type": "Replace", "pattern": {"String": " "}, "content": SPACE})];
        let mut decoders = vec![
            json!({"type": "Replace", "pattern": {"String": SPACE}, "content": " "}),
            json!({"type": "ByteFallback"}),
            json!({"type": "Fuse"}),
        ];
        if self.add_space_prefix.unwrap_or(true) {
            steps.insert(0, json!({"type": "Prepend", "prepend": SPACE}));
            decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
        }
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": {"type": "Sequence", "normalizers": steps},
            "pre_tokenizer": null,
            "post_processor": self.post_processor(SENTENCEPIECE)?,
            "decoder": {"type": "Sequence", "decoders": decoders},
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": unknown.map(|id| &self.tokens[id]),
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": true,
                "byte_fallback": true,
                "ignore_merges": false,
                "vocab": vocab,
                "merges": self.merges_of_scores(),
            },
        }))
    }

    /// All ways in which two pieces make a third, the third's score and then longer halves first.
    fn merges_of_scores(&self) -> Vec<[&str; 2]> {
        let is_piece = |id: usize| matches!(self.kind(id), TokenKind::Normal | TokenKind::UserDefined);
        let pieces = || (0..self.tokens.len()).filter(|id| is_piece(*id));
        let ids: std::collections::HashMap<&str, usize> = pieces().map(|id| (&self.tokens[id][..], id)).collect();
        let mut merges = Vec::new();
        for id in pieces() {
            let token = &self.tokens[id];
            let halves = token.char_indices().skip(1).map(|(at, _)| token.split_at(at));
            let mut ways: Vec<_> = halves.filter_map(|(l, r)| Some(((*ids.get(l)?, *ids.get(r)?), [l, r]))).collect();
            ways.sort_by_key(|(ids, _)| *ids);
            merges.extend(ways.into_iter().map(|(_, way)| (self.scores[id], way)));
        }
        let lengths = |[l, r]: [&str; 2]| (l.chars().count(), r.chars().count());
        merges.sort_by(|(a, x), (b, y)| b.total_cmp(a).then_with(|| lengths(*y).cmp(&lengths(*x))));
        merges.into_iter().map(|(_, way)| way).collect()
    }
}

/// The vocabulary of a `tokenizer.model`.
///
/// # Errors
/// [`TokenizerError::SentencePiece`]: damaged, or of another kind than BPE with bytes for what has no piece.
pub(super) fn parse(bytes: &[u8]) -> Result<GgufVocabulary, TokenizerError> {
    let mut vocabulary = GgufVocabulary { model: "llama".into(), ..GgufVocabulary::default() };
    let mut trained = Trained::default();
    for field in Fields(bytes) {
        match field? {
            (1, Field::Bytes(piece)) => push_piece(piece, &mut vocabulary)?,
            (2, Field::Bytes(spec)) => trained.read_trainer(spec)?,
            (3, Field::Bytes(spec)) => trained.read_normalizer(spec)?,
            _ => {}
        }
    }
    trained.check()?;
    let known = |id: Option<u64>| id.filter(|id| *id < vocabulary.tokens.len() as u64).map(|id| id as u32);
    let [bos, eos, pad] = trained.special.map(known);
    Ok(GgufVocabulary { bos, eos, pad, add_space_prefix: Some(trained.prefix), ..vocabulary })
}

/// A tokenizer from a `tokenizer.model`, with a `tokenizer_config.json` if there is one.
pub(super) fn load(bytes: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
    let vocabulary = parse(bytes)?;
    let own = vocabulary.tokenizer_config().to_string();
    Tokenizer::from_json(
        vocabulary.sentencepiece_json()?.to_string().as_bytes(),
        Some(config.unwrap_or(own.as_bytes())),
    )
}

/// Whether a directory has a `tokenizer.model` and no `tokenizer.json`.
pub(super) fn is_alone(dir: &Path) -> bool {
    dir.join(FILE).is_file() && !dir.join("tokenizer.json").exists()
}

/// The name of the file.
pub(super) const FILE: &str = "tokenizer.model";

/// What the file says of how it was made, with the defaults of `sentencepiece_model.proto`.
struct Trained {
    model: u64,
    byte_fallback: bool,
    /// Whether a text is read as if a space came before it.
    prefix: bool,
    squeezes_spaces: bool,
    /// Whether characters are exchanged.
    maps: bool,
    /// BOS, EOS, padding.
    special: [Option<u64>; 3],
}

impl Default for Trained {
    fn default() -> Self {
        let special = [Some(1), Some(2), None];
        Trained { model: 1, byte_fallback: false, prefix: true, squeezes_spaces: true, maps: false, special }
    }
}

impl Trained {
    fn read_trainer(&mut self, spec: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(spec) {
            match field? {
                (3, Field::Number(model)) => self.model = model,
                (35, Field::Number(flag)) => self.byte_fallback = flag != 0,
                (41, Field::Number(id)) => self.special[0] = Some(id),
                (42, Field::Number(id)) => self.special[1] = Some(id),
                (43, Field::Number(id)) => self.special[2] = Some(id),
                _ => {}
            }
        }
        Ok(())
    }

    fn read_normalizer(&mut self, spec: &[u8]) -> Result<(), TokenizerError> {
        for field in Fields(spec) {
            match field? {
                (2, Field::Bytes(map)) => self.maps = !map.is_empty(),
                (3, Field::Number(flag)) => self.prefix = flag != 0,
                (4, Field::Number(flag)) => self.squeezes_spaces = flag != 0,
                _ => {}
            }
        }
        Ok(())
    }

    fn check(&self) -> Result<(), TokenizerError> {
        let why = match self {
            Trained { model, .. } if *model != 2 => "its model is not BPE",
            Trained { byte_fallback: false, .. } => "it has no bytes for what has no piece",
            Trained { squeezes_spaces: true, .. } => "it takes several spaces for one",
            Trained { maps: true, .. } => "it exchanges characters before it cuts",
            _ => return Ok(()),
        };
        Err(damaged(why))
    }
}

fn push_piece(piece: &[u8], to: &mut GgufVocabulary) -> Result<(), TokenizerError> {
    let (mut text, mut score, mut kind) = (None, 0.0, TokenKind::Normal);
    for field in Fields(piece) {
        match field? {
            (1, Field::Bytes(bytes)) => text = std::str::from_utf8(bytes).ok(),
            (2, Field::Word(bits)) => score = f32::from_bits(bits),
            (3, Field::Number(id)) => {
                kind = TokenKind::from_id(id).ok_or_else(|| damaged("a piece of unknown type"))?
            }
            _ => {}
        }
    }
    to.tokens.push(text.ok_or_else(|| damaged("a piece that is no text"))?.to_owned());
    to.scores.push(score);
    to.kinds.push(kind);
    Ok(())
}

fn damaged(reason: &str) -> TokenizerError {
    TokenizerError::SentencePiece { reason: reason.to_owned() }
}

/// The fields of a message of Protocol Buffers.
struct Fields<'a>(&'a [u8]);

enum Field<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Other,
}

impl<'a> Fields<'a> {
    fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn field(&mut self) -> Option<(u64, Field<'a>)> {
        let tag = self.number()?;
        let field = match tag & 7 {
            0 => Field::Number(self.number()?),
            1 => self.take(8).map(|_| Field::Other)?,
            2 => {
                let len = usize::try_from(self.number()?).ok()?;
                Field::Bytes(self.take(len)?)
            }
            5 => Field::Word(u32::from_le_bytes(self.take(4)?.try_into().ok()?)),
            _ => return None,
        };
        Some((tag >> 3, field))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Field<'a>), TokenizerError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field().ok_or_else(|| damaged("it is no message of Protocol Buffers"));
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}

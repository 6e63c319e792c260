//! Vocabularies of GGUF files ↔ `tokenizer.json`.
//!
//! A GGUF file holds tokens, their kinds and the merges, and of everything else a name
//! ([`presplit`](super::presplit)). Here it becomes the `tokenizer.json` that the name stands for, so that all of Wels
//! knows one kind of tokenizer. Byte-level BPE (`tokenizer.ggml.model = gpt2`) is read and written, SentencePiece's BPE
//! (`llama`) read ([`spm`](super::spm)).

use std::collections::{BTreeSet, HashMap, HashSet};

use serde_json::{Map, Value, json};

use super::{TOKEN_ID_MAX, Tokenizer, TokenizerError, bpe, presplit};

/// What the `tokenizer.ggml.*` keys of a file say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GgufVocabulary {
    /// `model`: `gpt2`, `llama`, …
    pub model: String,
    /// `pre`, how text is cut into words.
    pub pre: Option<String>,
    /// `tokens`, by id.
    pub tokens: Vec<String>,
    /// `token_type`, by id; empty if the file has none.
    pub kinds: Vec<TokenKind>,
    /// `scores`, by id, of SentencePiece.
    pub scores: Vec<f32>,
    /// `add_space_prefix`, of SentencePiece: whether a text is read as if a space came before it.
    pub add_space_prefix: Option<bool>,
    /// `merges`, two tokens with a space between, first to last.
    pub merges: Vec<String>,
    /// `bos_token_id`.
    pub bos: Option<u32>,
    /// `eos_token_id`.
    pub eos: Option<u32>,
    /// `padding_token_id`.
    pub pad: Option<u32>,
    /// `add_bos_token`.
    pub add_bos: Option<bool>,
    /// `add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// `token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// Text.
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// A mark with a meaning, no text.
    Control,
    /// Text, but found before anything is cut or merged.
    UserDefined,
    /// An id without a token.
    Unused,
    /// One byte, for SentencePiece's fallback.
    Byte,
}

impl TokenKind {
    /// The kind with this number.
    pub fn from_id(id: u64) -> Option<TokenKind> {
        let kinds = [TokenKind::Normal, TokenKind::Unknown, TokenKind::Control, TokenKind::UserDefined];
        let all = kinds.into_iter().chain([TokenKind::Unused, TokenKind::Byte]);
        all.into_iter().find(|kind| kind.id() == id)
    }

    /// Its number in a file.
    pub fn id(self) -> u64 {
        match self {
            TokenKind::Normal => 1,
            TokenKind::Unknown => 2,
            TokenKind::Control => 3,
            TokenKind::UserDefined => 4,
            TokenKind::Unused => 5,
            TokenKind::Byte => 6,
        }
    }
}

impl Tokenizer {
    /// The tokenizer of a GGUF file.
    ///
    /// # Errors
    /// [`TokenizerError::Gguf`]: another model than byte-level BPE, a `pre` that is not known, tokens or merges that
    /// contradict each other.
    pub fn from_gguf(vocabulary: &GgufVocabulary) -> Result<Tokenizer, TokenizerError> {
        let json = vocabulary.tokenizer_json()?;
        let config = vocabulary.tokenizer_config();
        Tokenizer::from_json(json.to_string().as_bytes(), Some(config.to_string().as_bytes()))
    }

    /// What a GGUF file has to say of this tokenizer, for a model with `vocab_size` embedding rows.
    ///
    /// # Errors
    /// [`TokenizerError::Gguf`] if it is no byte-level BPE, or cuts text in a way that has no name in GGUF.
    pub fn to_gguf(&self, vocab_size: usize) -> Result<GgufVocabulary, TokenizerError> {
        let file: Value = serde_json::from_str(self.to_json()).expect("it has been parsed before");
        let pre = presplit::name_of(&file).ok_or_else(|| {
            to("its way of cutting text into words has no name in GGUF that is known here".to_owned())
        })?;
        if file["model"]["type"] != "BPE" {
            return Err(to(format!("its model is {}, and byte-level BPE is written", file["model"]["type"])));
        }
        if self.vocab_size() > vocab_size {
            return Err(to(format!("it has {} ids, and the model {vocab_size} rows", self.vocab_size())));
        }
        let merges = file["model"]["merges"].as_array().map(Vec::as_slice).unwrap_or_default();
        let merges = merges.iter().map(merge_text).collect::<Option<Vec<_>>>();
        let merges = merges.ok_or_else(|| to("a merge is not a pair of strings without spaces".to_owned()))?;
        let added = file["added_tokens"].as_array().map(Vec::as_slice).unwrap_or_default();
        let added: HashMap<u64, bool> = added
            .iter()
            .filter_map(|token| Some((token["id"].as_u64()?, token["special"].as_bool().unwrap_or(false))))
            .collect();
        let (mut tokens, mut kinds) = (Vec::with_capacity(vocab_size), Vec::with_capacity(vocab_size));
        for id in 0..vocab_size as u32 {
            let token = self.token(id);
            kinds.push(match (&token, added.get(&u64::from(id))) {
                (None, _) => TokenKind::Unused,
                (Some(_), Some(true)) => TokenKind::Control,
                // What llama.cpp calls control is hidden from the text of an answer; thinking marks are not.
                (Some(_), Some(false)) => TokenKind::UserDefined,
                (Some(_), None) => TokenKind::Normal,
            });
            tokens.push(token.unwrap_or_else(|| format!("[PAD{id}]")));
        }
        let special = self.special();
        let probe = self.encode_with_added("")?;
        Ok(GgufVocabulary {
            model: "gpt2".to_owned(),
            pre: Some(pre.to_owned()),
            tokens,
            kinds,
            scores: Vec::new(),
            add_space_prefix: None,
            merges,
            bos: special.bos,
            eos: special.eos,
            pad: special.pad,
            add_bos: Some(special.bos.is_some_and(|bos| probe.first() == Some(&bos))),
            add_eos: Some(special.eos.is_some_and(|eos| probe.len() > 1 && probe.last() == Some(&eos))),
            chat_template: self.chat_template().map(str::to_owned),
        })
    }
}

impl GgufVocabulary {
    fn tokenizer_json(&self) -> Result<Value, TokenizerError> {
        match &self.model[..] {
            "gpt2" => {}
            "llama" => return self.sentencepiece_json(),
            other => return Err(from(format!("`tokenizer.ggml.model` is `{other}`; `gpt2` and `llama` are read"))),
        }
        let pre = self.pre.as_deref().unwrap_or("default");
        let splitting = presplit::named(pre).ok_or_else(|| {
            from(format!("`tokenizer.ggml.pre` is `{pre}`, which is not known (known: {})", presplit::names()))
        })?;
        let vocab = self.vocab()?;
        let merges = self.merges.iter().map(|merge| check_merge(merge, &vocab)).collect::<Result<Vec<_>, _>>()?;
        let is_joined = |id: usize| self.kind(id) == TokenKind::Normal && self.tokens[id].chars().nth(1).is_some();
        if merges.is_empty() && (0..self.tokens.len()).any(is_joined) {
            return Err(from("it has tokens of several bytes and no merges".to_owned()));
        }
        let byte_level = bpe::byte_level_step();
        Ok(json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": self.added_tokens(),
            "normalizer": if splitting.nfc { json!({"type": "NFC"}) } else { Value::Null },
            "pre_tokenizer": splitting.to_json(),
            "post_processor": self.post_processor(pre)?,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": null,
                "unk_token": null,
                "continuing_subword_prefix": null,
                "end_of_word_suffix": null,
                "fuse_unk": false,
                "byte_fallback": false,
                "ignore_merges": splitting.whole_words,
                "vocab": vocab,
                "merges": merges,
            },
        }))
    }

    pub(super) fn vocab(&self) -> Result<Map<String, Value>, TokenizerError> {
        if self.tokens.is_empty() || self.tokens.len() as u64 > TOKEN_ID_MAX {
            return Err(from(format!("it has {} tokens", self.tokens.len())));
        }
        if !self.kinds.is_empty() && self.kinds.len() != self.tokens.len() {
            return Err(from(format!("it has {} tokens and the types of {}", self.tokens.len(), self.kinds.len())));
        }
        let mut vocab = Map::with_capacity(self.tokens.len());
        for (id, token) in self.tokens.iter().enumerate() {
            if let Some(earlier) = vocab.insert(token.clone(), json!(id)) {
                return Err(from(format!("the token {token:?} has the ids {earlier} and {id}")));
            }
        }
        Ok(vocab)
    }

    pub(super) fn kind(&self, id: usize) -> TokenKind {
        self.kinds.get(id).copied().unwrap_or(TokenKind::Normal)
    }

    pub(super) fn added_tokens(&self) -> Vec<Value> {
        let roles: HashSet<usize> =
            [self.bos, self.eos, self.pad].into_iter().flatten().map(|id| id as usize).collect();
        let entry = |(id, token): (usize, &String)| {
            let special = match self.kind(id) {
                TokenKind::Control | TokenKind::Unknown => true,
                TokenKind::UserDefined => false,
                // Files without types still have these.
                TokenKind::Normal if self.kinds.is_empty() && roles.contains(&id) => true,
                TokenKind::Normal | TokenKind::Unused | TokenKind::Byte => return None,
            };
            Some(json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            }))
        };
        self.tokens.iter().enumerate().filter_map(entry).collect()
    }

    /// Puts the tokens in front and behind that the file asks for.
    pub(super) fn post_processor(&self, pre: &str) -> Result<Value, TokenizerError> {
        // llama.cpp adds a BOS for Llama 3 and SentencePiece unless told otherwise, and for no other vocabulary.
        let add_bos = self.add_bos.unwrap_or(matches!(pre, "llama-bpe" | "llama3" | "llama-v3" | SENTENCEPIECE));
        let token = |id: Option<u32>, add: bool, name: &str| match id.filter(|_| add) {
            None => Ok(None),
            Some(id) => match self.tokens.get(id as usize) {
                Some(token) => Ok(Some((id, token))),
                None => Err(from(format!("`{name}` is {id}, and there are {} tokens", self.tokens.len()))),
            },
        };
        let bos = token(self.bos, add_bos, "bos_token_id")?;
        let eos = token(self.eos, self.add_eos.unwrap_or(false), "eos_token_id")?;
        if bos.is_none() && eos.is_none() {
            return Ok(Value::Null);
        }
        let special = |token: Option<(u32, &String)>, sequence: u32| {
            token.map(|(_, token)| json!({"SpecialToken": {"id": token, "type_id": sequence}}))
        };
        let around = |name: &str, sequence: u32| -> Vec<Value> {
            let middle = json!({"Sequence": {"id": name, "type_id": sequence}});
            special(bos, sequence).into_iter().chain([middle]).chain(special(eos, sequence)).collect()
        };
        let used: BTreeSet<_> = bos.into_iter().chain(eos).collect();
        let tokens: Map<String, Value> = used
            .into_iter()
            .map(|(id, token)| (token.clone(), json!({"id": token, "ids": [id], "tokens": [token]})))
            .collect();
        let pair = [around("A", 0), around("B", 1)].concat();
        Ok(json!({
            "type": "TemplateProcessing",
            "single": around("A", 0),
            "pair": pair,
            "special_tokens": tokens,
        }))
    }

    pub(super) fn tokenizer_config(&self) -> Value {
        let token = |id: Option<u32>| id.and_then(|id| self.tokens.get(id as usize));
        json!({
            "bos_token": token(self.bos),
            "eos_token": token(self.eos),
            "pad_token": token(self.pad),
            "chat_template": self.chat_template,
        })
    }
}

/// `left right` as a pair whose halves and whole are tokens.
fn check_merge(merge: &str, vocab: &Map<String, Value>) -> Result<Value, TokenizerError> {
    // A token may be a space's stand-in but never a space; llama.cpp looks for it from the second byte on.
    let parts = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
    let (left, right) = parts.ok_or_else(|| from(format!("the merge {merge:?} is no pair of tokens")))?;
    match [left, right, &format!("{left}{right}")].into_iter().find(|part| !vocab.contains_key(*part)) {
        Some(part) => Err(from(format!("the merge {merge:?} needs {part:?}, which is no token"))),
        None => Ok(json!([left, right])),
    }
}

/// A merge of a `tokenizer.json`, which has two ways to write it.
fn merge_text(merge: &Value) -> Option<String> {
    let text = match merge {
        Value::String(text) => text.clone(),
        Value::Array(pair) if pair.len() == 2 => format!("{} {}", pair[0].as_str()?, pair[1].as_str()?),
        _ => return None,
    };
    (text.matches(' ').count() == 1).then_some(text)
}

/// Stands for the name of a cutting where there is none.
pub(super) const SENTENCEPIECE: &str = "sentencepiece";

pub(super) fn from(reason: String) -> TokenizerError {
    TokenizerError::Gguf { direction: "from", reason }
}

fn to(reason: String) -> TokenizerError {
    TokenizerError::Gguf { direction: "to", reason }
}

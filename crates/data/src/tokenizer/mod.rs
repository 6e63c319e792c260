//! Text ↔ token ids: any `tokenizer.json` of the Hugging Face ecosystem, or a byte-level BPE trained here.
//!
//! Encoding is the `tokenizers` crate's, so ids agree with `transformers`. Two things are done here instead: training
//! ([`BpeTrainer`], because the result must not depend on threads or hash seeds) and decoding of byte-level
//! vocabularies (a table from id to bytes, which is exact for every id sequence and cheap to stream).

mod bpe;
mod config;
mod gguf;
mod presplit;
mod split;
mod spm;
mod stream;
mod tiktoken;

pub use bpe::BpeTrainer;
pub use gguf::{GgufVocabulary, TokenKind};
pub use stream::StreamDecoder;

use split::{WordEncoder, Words};

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::Value;
use sha2::{Digest, Sha256};

/// Largest `tokenizer.json` that is read. The largest known one (262,144 entries) takes 33 MB.
pub const TOKENIZER_BYTES_MAX: u64 = 256 << 20;

/// Largest id a vocabulary may hold; tables indexed by id are sized by it.
const TOKEN_ID_MAX: u64 = (1 << 24) - 1;

/// What can go wrong with a tokenizer.
#[derive(Debug, thiserror::Error)]
pub enum TokenizerError {
    /// A file cannot be read or written.
    #[error("cannot access tokenizer file {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A file is larger than any tokenizer.
    #[error("tokenizer file has {bytes} bytes, more than the {TOKENIZER_BYTES_MAX} that are accepted")]
    TooLarge { bytes: u64 },
    /// Not a `tokenizer.json`, or one that contradicts itself.
    #[error("not a valid tokenizer.json: {reason}")]
    Invalid {
        /// What is wrong, with line and column where known.
        reason: String,
    },
    /// Not a `tokenizer_config.json`.
    #[error("not a valid tokenizer_config.json: {reason}")]
    InvalidConfig { reason: String },
    /// A `tokenizer.model` is damaged, or not of the kind that is read.
    #[error("not a tokenizer.model of SentencePiece's BPE: {reason}")]
    SentencePiece { reason: String },
    /// A file of tiktoken's ranks is damaged, or nothing says how it cuts texts.
    #[error("not a usable vocabulary of tiktoken: {reason}")]
    Tiktoken { reason: String },
    /// The vocabulary of a GGUF file is damaged, or means something that is not implemented; or a vocabulary has no
    /// form in GGUF.
    #[error("the vocabulary cannot be taken {direction} GGUF: {reason}")]
    Gguf {
        /// `from` or `to`.
        direction: &'static str,
        reason: String,
    },
    /// The tokenizer cannot encode or decode this input.
    #[error("tokenizer failed: {reason}")]
    Failed {
        /// The tokenizer's own words.
        reason: String,
    },
    /// An id outside the vocabulary.
    #[error("token id {id} is not in the vocabulary of {vocab_size}")]
    UnknownId {
        id: u32,
        /// Number of ids, from 0.
        vocab_size: usize,
    },
    /// A vocabulary size that cannot hold bytes and special tokens.
    #[error("a vocabulary of {vocab_size} is too small: {needed} tokens come first (special ones, bytes, numbers)")]
    VocabularyTooSmall {
        /// As asked for.
        vocab_size: usize,
        /// Special tokens, bytes, and the numbers asked for.
        needed: usize,
    },
}

/// The strings that have a meaning beyond text, by role. The default has DeepSeek-V3's strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpecialTokens {
    pub bos: String,
    pub eos: String,
    pub pad: String,
    pub think_begin: String,
    pub think_end: String,
    pub user: String,
    pub assistant: String,
    pub fim_begin: String,
    pub fim_hole: String,
    pub fim_end: String,
    /// Behind these ten.
    pub more: Vec<String>,
}

/// [`SpecialTokens::of_janus`] has them behind its ten, from id [`JANUS_PLACE`] on.
const JANUS_TOKENS: [&str; 5] =
    ["<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>"];
/// The id of `<image_placeholder>` in a vocabulary that is trained with [`SpecialTokens::of_janus`].
pub const JANUS_PLACE: u32 = 10;

impl Default for SpecialTokens {
    fn default() -> Self {
        let own = str::to_owned;
        SpecialTokens {
            bos: own("<｜begin▁of▁sentence｜>"),
            eos: own("<｜end▁of▁sentence｜>"),
            pad: own("<｜▁pad▁｜>"),
            think_begin: own("<think>"),
            think_end: own("</think>"),
            user: own("<｜User｜>"),
            assistant: own("<｜Assistant｜>"),
            fim_begin: own("<｜fim▁begin｜>"),
            fim_hole: own("<｜fim▁hole｜>"),
            fim_end: own("<｜fim▁end｜>"),
            more: Vec::new(),
        }
    }
}

impl SpecialTokens {
    /// With the tokens of Janus: in the places of a picture, around it, and before what user and assistant say.
    pub fn of_janus() -> SpecialTokens {
        SpecialTokens { more: JANUS_TOKENS.map(str::to_owned).into(), ..SpecialTokens::default() }
    }

    /// In the order of the ids that training gives them: bos 0, eos 1 and pad 2 as in DeepSeek-V3.
    pub fn all(&self) -> Vec<&str> {
        let ten = [
            &self.bos,
            &self.eos,
            &self.pad,
            &self.think_begin,
            &self.think_end,
            &self.fim_hole,
            &self.fim_begin,
            &self.fim_end,
            &self.user,
            &self.assistant,
        ];
        ten.into_iter().map(String::as_str).chain(self.more.iter().map(String::as_str)).collect()
    }
}

/// The ids of the tokens in [`SpecialTokens`]; `None` where the vocabulary has no such token.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpecialIds {
    pub bos: Option<u32>,
    pub eos: Option<u32>,
    pub pad: Option<u32>,
    pub think_begin: Option<u32>,
    pub think_end: Option<u32>,
    pub user: Option<u32>,
    pub assistant: Option<u32>,
    pub fim_begin: Option<u32>,
    pub fim_hole: Option<u32>,
    pub fim_end: Option<u32>,
}

/// How an id is turned back into text.
enum Pieces {
    /// The bytes of every id, of a byte-level vocabulary: decoding concatenates them.
    Bytes(Vec<Box<[u8]>>),
    /// Another decoder (SentencePiece and the like), which the `tokenizers` crate runs; the number of text bytes of
    /// each id is an estimate from its string.
    Other(Vec<u32>),
}

/// A tokenizer with the names of its special tokens and, if it came with one, its chat template. Cheap to share by
/// reference; all methods take `&self`.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The same tokenizer, but blind to special tokens: corpora and users must not be able to write them.
    ordinary: tokenizers::Tokenizer,
    /// A faster way to do what `ordinary` does, where there is one.
    words: Option<WordEncoder>,
    pieces: Pieces,
    /// Per id: an added token with a meaning, no text of a corpus.
    control: Vec<bool>,
    ids: SpecialIds,
    adds_bos: bool,
    json: String,
    chat_template: Option<String>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).field("ids", &self.ids).finish()
    }
}

impl Tokenizer {
    /// Loads `path`: a `tokenizer.json`, or a directory that has one, or instead of one a `tokenizer.model` of
    /// SentencePiece or the ranks of tiktoken (`tiktoken.model`, `*.tiktoken`). `tokenizer_config.json` and
    /// `chat_template.jinja` beside it name the special tokens and the chat template.
    pub fn load(path: &Path) -> Result<Tokenizer, TokenizerError> {
        let (file, dir) = match path.is_dir() {
            true => (Self::file_in(path).unwrap_or_else(|| path.join("tokenizer.json")), path),
            false => (path.to_owned(), path.parent().unwrap_or(Path::new("."))),
        };
        let config = config::read_optional(&dir.join("tokenizer_config.json"))?;
        let template = config::read_optional(&dir.join("chat_template.jinja"))?;
        let bytes = read_limited(&file)?;
        let mut tokenizer = if file.file_name().is_some_and(|name| name == spm::FILE) {
            spm::load(&bytes, config.as_deref())?
        } else if tiktoken::is_ranks(&file) {
            tiktoken::load(&bytes, config.as_deref())?
        } else {
            Self::from_json(&bytes, config.as_deref())?
        };
        if let Some(template) = template {
            tokenizer.chat_template = Some(config::utf8(template)?);
        }
        Ok(tokenizer)
    }

    /// The file of a directory that [`Tokenizer::load`] would read, if it has one.
    pub fn file_in(dir: &Path) -> Option<PathBuf> {
        let json = dir.join("tokenizer.json");
        if json.is_file() {
            return Some(json);
        }
        if spm::is_alone(dir) {
            return Some(dir.join(spm::FILE));
        }
        tiktoken::alone_in(dir)
    }

    /// From the contents of a `tokenizer.json` and, if there is one, of a `tokenizer_config.json`.
    pub fn from_json(json: &[u8], config: Option<&[u8]>) -> Result<Tokenizer, TokenizerError> {
        if json.len() as u64 > TOKENIZER_BYTES_MAX {
            return Err(TokenizerError::TooLarge { bytes: json.len() as u64 });
        }
        let text = std::str::from_utf8(json).map_err(|e| invalid(&e))?;
        let value: Value = serde_json::from_str(text).map_err(|e| invalid(&e))?;
        check_ids(&value)?;
        let config = config.map(config::TokenizerConfig::parse).transpose()?.unwrap_or_default();
        let inner = build(&value)?;
        let ids = config::special_ids(&inner, &config);
        let control = control_tokens(&inner, &ids);
        let mut ordinary = build(&with_all_special(value, &control))?;
        ordinary.set_encode_special_tokens(true);
        let pieces = pieces(&inner, control.len());
        let of_empty = inner.encode_fast("", true).map_err(|e| failed(&e))?;
        let adds_bos = config.add_bos.unwrap_or(ids.bos.is_some() && of_empty.get_ids().first().copied() == ids.bos);
        Ok(Tokenizer {
            inner,
            words: WordEncoder::of(&ordinary),
            ordinary,
            pieces,
            control,
            ids,
            adds_bos,
            json: text.to_owned(),
            chat_template: config.chat_template,
        })
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and, with a chat template, `chat_template.jinja` into `dir`, so
    /// that `transformers.AutoTokenizer` loads the directory. `context_length` is what it reports as the longest input.
    pub fn save(&self, dir: &Path, context_length: usize) -> Result<(), TokenizerError> {
        let write = |name: &str, contents: &str| {
            let path = dir.join(name);
            crate::atomic::write(&path, contents.as_bytes()).map_err(|source| TokenizerError::Io { path, source })
        };
        write("tokenizer.json", &self.json)?;
        write("tokenizer_config.json", &self.to_config_json(context_length))?;
        match &self.chat_template {
            Some(template) => write("chat_template.jinja", template),
            None => Ok(()),
        }
    }

    /// The ids of `text`, special tokens in it recognised; nothing is added in front or behind. What `transformers`
    /// calls `add_special_tokens=False`. For text whose author may write special tokens, such as a rendered chat
    /// template.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// As [`Tokenizer::encode`], then with the tokens that the vocabulary's own post-processor adds, usually a BOS in
    /// front: what calling a `transformers` tokenizer does.
    pub fn encode_with_added(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.inner.encode_fast(text, true).map_err(|e| failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids of `text` as plain text: a special token spelled out in it is encoded like any other letters. For
    /// corpora and for what users type.
    pub fn encode_ordinary(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.encode_known(text, &mut Words::new())
    }

    /// [`Tokenizer::encode_ordinary`] of many texts, on all threads. Faster than one by one: words are looked up once.
    pub fn encode_ordinary_all<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Vec<u32>>, TokenizerError> {
        let share = texts.len().div_ceil(4 * rayon::current_num_threads()).max(1);
        let encode = |texts: &[S]| {
            let mut words = Words::new();
            texts.iter().map(|text| self.encode_known(text.as_ref(), &mut words)).collect::<Result<Vec<_>, _>>()
        };
        let shares: Vec<Vec<Vec<u32>>> = texts.par_chunks(share).map(encode).collect::<Result<_, _>>()?;
        Ok(shares.into_iter().flatten().collect())
    }

    fn encode_known(&self, text: &str, words: &mut Words) -> Result<Vec<u32>, TokenizerError> {
        if let Some(encoder) = &self.words {
            return encoder.encode(&self.ordinary, text, words);
        }
        let encoding = self.ordinary.encode_fast(text, false).map_err(|e| failed(&e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens spelled out. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        for &id in ids {
            self.check_id(id)?;
        }
        match &self.pieces {
            Pieces::Bytes(pieces) => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| pieces[id as usize].iter().copied()).collect();
                Ok(String::from_utf8(bytes).unwrap_or_else(|e| String::from_utf8_lossy(e.as_bytes()).into_owned()))
            }
            Pieces::Other(_) => self.inner.decode(ids, false).map_err(|e| failed(&e)),
        }
    }

    /// A decoder that takes ids one by one and gives out text as soon as it is complete.
    pub fn stream(&self) -> StreamDecoder<&Tokenizer> {
        StreamDecoder::new(self)
    }

    /// Number of ids, from 0: the least number of embedding rows. Ids without a token (holes) count.
    pub fn vocab_size(&self) -> usize {
        self.control.len()
    }

    /// The ids of the special tokens.
    pub fn special(&self) -> &SpecialIds {
        &self.ids
    }

    /// Whether BOS comes in front of text, as the configuration's `add_bos_token` says, or else as the vocabulary's
    /// post-processor does.
    pub fn adds_bos(&self) -> bool {
        self.adds_bos
    }

    /// The most bytes of a text that one token can stand for, so that a text of `n` times as many has at least `n`
    /// tokens. `None` where no such number is known: for vocabularies that are not byte-level, change the text first,
    /// swallow spaces around a token, or lack a byte.
    pub fn bytes_per_token_max(&self) -> Option<usize> {
        let Pieces::Bytes(pieces) = &self.pieces else { return None };
        let swallows = self.inner.get_added_tokens_decoder().values().any(|token| token.lstrip || token.rstrip);
        let bytes: std::collections::HashSet<u8> =
            pieces.iter().filter(|piece| piece.len() == 1).map(|piece| piece[0]).collect();
        let exact = self.inner.get_normalizer().is_none() && !swallows && bytes.len() == 256;
        exact.then(|| pieces.iter().map(|piece| piece.len()).max().unwrap_or(1))
    }

    /// The id of `token`, spelled as in the vocabulary.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The vocabulary's spelling of `id`.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether `id` is a special token, not text of a corpus.
    pub fn is_special(&self, id: u32) -> bool {
        self.control.get(id as usize).copied().unwrap_or(false)
    }

    /// Bytes of corpus text that each id stands for, special tokens none: the denominator of bits per byte. Exact for
    /// byte-level vocabularies; for others, the length of the token's own string with `▁` as one space.
    pub fn byte_lengths(&self) -> Vec<u32> {
        let len = |id: usize| match &self.pieces {
            Pieces::Bytes(pieces) => pieces[id].len() as u32,
            Pieces::Other(lengths) => lengths[id],
        };
        (0..self.vocab_size()).map(|id| if self.control[id] { 0 } else { len(id) }).collect()
    }

    /// The bytes that `id` stands for in a text; none for an id without a token. Of vocabularies that are not
    /// byte-level, those of the token's string, with `▁` as a space.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match &self.pieces {
            Pieces::Bytes(pieces) => pieces.get(id as usize).map(|piece| piece.to_vec()).unwrap_or_default(),
            Pieces::Other(_) => {
                let token = self.token(id).unwrap_or_default();
                let byte = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
                match byte.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
                    Some(byte) => vec![byte],
                    None => token.replace('▁', " ").into_bytes(),
                }
            }
        }
    }

    /// The `tokenizer.json`, byte for byte as loaded or trained.
    pub fn to_json(&self) -> &str {
        &self.json
    }

    /// SHA-256 of the `tokenizer.json`, in hex.
    pub fn sha256(&self) -> String {
        crate::atomic::hex(&Sha256::digest(self.json.as_bytes()))
    }

    /// The Jinja chat template that came with the tokenizer.
    pub fn chat_template(&self) -> Option<&str> {
        self.chat_template.as_deref()
    }

    /// Sets the chat template, which [`Tokenizer::save`] writes.
    pub fn set_chat_template(&mut self, template: Option<String>) {
        self.chat_template = template;
    }

    fn check_id(&self, id: u32) -> Result<(), TokenizerError> {
        match (id as usize) < self.vocab_size() {
            true => Ok(()),
            false => Err(TokenizerError::UnknownId { id, vocab_size: self.vocab_size() }),
        }
    }
}

fn read_limited(path: &Path) -> Result<Vec<u8>, TokenizerError> {
    let io = |source| TokenizerError::Io { path: path.to_owned(), source };
    let metadata = fs::metadata(path).map_err(io)?;
    if !metadata.is_file() {
        return Err(io(config::not_regular()));
    }
    let bytes = metadata.len();
    if bytes > TOKENIZER_BYTES_MAX {
        return Err(TokenizerError::TooLarge { bytes });
    }
    fs::read(path).map_err(io)
}

fn invalid(reason: &dyn std::fmt::Display) -> TokenizerError {
    TokenizerError::Invalid { reason: reason.to_string() }
}

fn failed(reason: &dyn std::fmt::Display) -> TokenizerError {
    TokenizerError::Failed { reason: reason.to_string() }
}

/// The crate's tokenizer from parsed JSON. Padding, truncation and BPE dropout are training settings of the library
/// that wrote the file; left on, they would silently shorten, lengthen or randomise what is encoded.
fn build(value: &Value) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let mut value = value.clone();
    value["truncation"] = Value::Null;
    value["padding"] = Value::Null;
    if let Some(dropout) = value.pointer_mut("/model/dropout") {
        *dropout = Value::Null;
    }
    let json = value.to_string();
    // The crate indexes by ids that the file names: a file that lies about them can make it panic, some only when a
    // text is encoded.
    let parse = || {
        let tokenizer = json.parse::<tokenizers::Tokenizer>()?;
        let _ = tokenizer.encode("", true);
        Ok::<_, tokenizers::Error>(tokenizer)
    };
    crate::guard::catch(parse).ok_or_else(|| invalid(&"its parts contradict each other"))?.map_err(|e| invalid(&e))
}

/// Refuses ids beyond [`TOKEN_ID_MAX`] before any table is sized by them.
fn check_ids(value: &Value) -> Result<(), TokenizerError> {
    if !value.is_object() {
        return Err(invalid(&"the top level is not an object"));
    }
    let vocab = value.pointer("/model/vocab").and_then(Value::as_object).into_iter().flat_map(|vocab| vocab.values());
    let added = value.get("added_tokens").and_then(Value::as_array).into_iter().flatten();
    let ids = vocab.chain(added.filter_map(|token| token.get("id")));
    match ids.filter_map(Value::as_u64).find(|&id| id > TOKEN_ID_MAX) {
        Some(id) => Err(invalid(&format_args!("token id {id} is beyond {TOKEN_ID_MAX}"))),
        None => Ok(()),
    }
}

/// Per id: whether it is an added token with a meaning (marked special, or one of the roles of [`SpecialIds`]).
fn control_tokens(inner: &tokenizers::Tokenizer, ids: &SpecialIds) -> Vec<bool> {
    let added = inner.get_added_tokens_decoder();
    let vocab = inner.get_vocab(true);
    let size = vocab.values().chain(added.keys()).max().map_or(0, |&id| id as usize + 1);
    let mut control = vec![false; size];
    for (&id, token) in &added {
        control[id as usize] = token.special;
    }
    let roles = [ids.bos, ids.eos, ids.pad, ids.think_begin, ids.think_end, ids.user, ids.assistant];
    for id in roles.into_iter().chain([ids.fim_begin, ids.fim_hole, ids.fim_end]).flatten() {
        control[id as usize] |= added.contains_key(&id);
    }
    control
}

/// The file with every control token marked special, so that the crate can be told to overlook them.
fn with_all_special(mut value: Value, control: &[bool]) -> Value {
    for token in value.get_mut("added_tokens").and_then(Value::as_array_mut).into_iter().flatten() {
        let id = token.get("id").and_then(Value::as_u64).unwrap_or(u64::MAX) as usize;
        if control.get(id).copied().unwrap_or(false) {
            token["special"] = Value::Bool(true);
        }
    }
    value
}

fn pieces(inner: &tokenizers::Tokenizer, vocab_size: usize) -> Pieces {
    let added = inner.get_added_tokens_decoder();
    let mut tokens = vec![String::new(); vocab_size];
    for (token, id) in inner.get_vocab(true) {
        tokens[id as usize] = token;
    }
    if let Some(tokenizers::DecoderWrapper::ByteLevel(_)) = inner.get_decoder() {
        let bytes = bpe::byte_of_char();
        let piece = |(id, token): (usize, &String)| -> Box<[u8]> {
            // Added tokens are spelled in plain text; so is what is no byte-level string, as the crate decodes it.
            let mapped: Option<Vec<u8>> = token.chars().map(|c| bytes.get(&c).copied()).collect();
            match (added.contains_key(&(id as u32)), mapped) {
                (false, Some(mapped)) => mapped.into(),
                _ => token.as_bytes().into(),
            }
        };
        return Pieces::Bytes(tokens.iter().enumerate().map(piece).collect());
    }
    let len = |token: &String| match token.starts_with("<0x") && token.ends_with('>') && token.len() == 6 {
        true => 1,
        false => token.chars().map(|c| if c == '▁' { 1 } else { c.len_utf8() as u32 }).sum(),
    };
    Pieces::Other(tokens.iter().map(len).collect())
}

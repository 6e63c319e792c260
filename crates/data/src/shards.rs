//! Documents → memory-mapped token shards with a manifest of hashes.
//!
//! ```text
//! DIR/sources.jsonl          name, bytes and SHA-256 of every source file; its own hash is the corpus hash
//! DIR/train-00000.tokens …   shards, see `format`
//! DIR/validation-00000.tokens …
//! DIR/manifest.json          written last: the directory is complete when it is there
//! ```
//! Building reads the corpus twice. The first pass hashes every document, which settles duplicates and the split; the
//! second tokenises. A shard gets its name only when it is complete and synced. After a crash the same call goes on: it
//! reads and hashes the documents again, checks finished shards and keeps them, and tokenises only the rest.

mod build;
mod format;

pub use build::{Phase, Progress, ShardOptions, build};
pub use format::Shard;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::corpus::{CorpusError, Skipped};
use crate::tokenizer::TokenizerError;

/// Name of the manifest within a directory of shards.
pub const MANIFEST: &str = "manifest.json";
const SOURCES: &str = "sources.jsonl";

/// What can go wrong with shards.
#[derive(Debug, thiserror::Error)]
pub enum ShardError {
    /// A file or folder cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io { action: &'static str, path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Corpus(#[from] CorpusError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Too little text to train and to validate on.
    #[error("the corpus has {documents} distinct documents with text; training and validation need one each")]
    EmptyCorpus { documents: u64 },
    /// The corpus changed while it was read.
    #[error("the corpus changed while it was being tokenised")]
    CorpusChanged,
    /// The directory has finished shards of something else.
    #[error("{path} holds shards of another corpus, tokenizer or other options")]
    OtherContents { path: PathBuf },
    /// A file is not what its name, header or manifest says.
    #[error("{path} is damaged: {reason}")]
    Damaged { path: PathBuf, reason: String },
    /// Whoever is told of the progress has broken it off.
    #[error("building the shards was broken off")]
    Stopped,
}

impl ShardError {
    /// What the user can do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            ShardError::Io { action: "write", .. } => {
                "make room or choose a writable directory, then run the same command again"
            }
            ShardError::Io { .. } => "check the path and its permissions",
            ShardError::Corpus(error) => error.hint(),
            ShardError::Tokenizer(_) => "check the tokenizer's files",
            ShardError::EmptyCorpus { .. } => "name a folder or file with more text",
            ShardError::CorpusChanged => "leave the corpus alone while it is read, and run the same command again",
            ShardError::OtherContents { .. } => "choose another directory, or delete this one",
            ShardError::Damaged { .. } => "delete the directory of shards and build it again",
            ShardError::Stopped => "run the same command again: finished shards are kept",
        }
    }
}

/// Which part of the documents.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Validation,
}

impl Split {
    /// Its name in files.
    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Validation => "validation",
        }
    }
}

/// What a directory of shards holds and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this layout.
    pub version: u32,
    /// SHA-256 over corpus, tokenizer and options: equal keys mean equal shards.
    pub key: String,
    /// SHA-256 of `sources.jsonl`.
    pub corpus_sha256: String,
    /// SHA-256 of `tokenizer.json`.
    pub tokenizer_sha256: String,
    /// Number of ids of the tokenizer.
    pub vocab_size: usize,
    /// Longest document; longer texts were cut.
    pub document_bytes_max: usize,
    /// Files of the corpus.
    pub sources: u64,
    /// Documents dropped because an earlier one has the same bytes.
    pub duplicates: u64,
    /// Documents left out for other reasons.
    pub skipped: Skipped,
    pub train: SplitManifest,
    pub validation: SplitManifest,
}

/// Totals and shards of one split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitManifest {
    pub documents: u64,
    /// Bytes of their UTF-8 text.
    pub bytes: u64,
    /// Tokens of their text; BOS, EOS and FIM marks are added by the loader.
    pub tokens: u64,
    pub shards: Vec<ShardManifest>,
}

/// One shard file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShardManifest {
    pub file: String,
    /// SHA-256 of the whole file.
    pub sha256: String,
    pub file_bytes: u64,
    pub documents: u64,
    /// Bytes of text in it.
    pub bytes: u64,
    pub tokens: u64,
}

impl Manifest {
    /// Reads `DIR/manifest.json`; `None` where there is none, so the shards are not complete.
    pub fn load(dir: &Path) -> Result<Option<Manifest>, ShardError> {
        let path = dir.join(MANIFEST);
        let read = || match std::fs::metadata(&path)?.is_file() {
            true => std::fs::read(&path),
            false => Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file")),
        };
        match read() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(ShardError::Io { action: "read", path, source }),
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(manifest) => Ok(Some(manifest)),
                Err(e) => Err(ShardError::Damaged { path, reason: e.to_string() }),
            },
        }
    }

    /// The part about `split`.
    pub fn split(&self, split: Split) -> &SplitManifest {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }
}

/// An opened directory of shards: all files mapped, their sizes and tables checked.
pub struct Dataset {
    manifest: Manifest,
    train: Vec<Shard>,
    validation: Vec<Shard>,
}

impl Dataset {
    /// Opens a complete directory of shards. Compares headers and sizes with the manifest; [`Dataset::verify`] also
    /// compares contents.
    pub fn open(dir: &Path) -> Result<Dataset, ShardError> {
        let Some(manifest) = Manifest::load(dir)? else {
            let source = std::io::Error::new(std::io::ErrorKind::NotFound, "the shards are not complete");
            return Err(ShardError::Io { action: "read", path: dir.join(MANIFEST), source });
        };
        let open = |split: &SplitManifest| {
            split.shards.iter().map(|entry| open_listed(dir, entry, manifest.vocab_size)).collect::<Result<Vec<_>, _>>()
        };
        let (train, validation) = (open(&manifest.train)?, open(&manifest.validation)?);
        Ok(Dataset { train, validation, manifest })
    }

    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The shards of `split`.
    pub fn shards(&self, split: Split) -> &[Shard] {
        match split {
            Split::Train => &self.train,
            Split::Validation => &self.validation,
        }
    }

    /// Hashes every shard and compares with the manifest.
    pub fn verify(&self) -> Result<(), ShardError> {
        for split in [Split::Train, Split::Validation] {
            for (shard, entry) in self.shards(split).iter().zip(&self.manifest.split(split).shards) {
                if shard.sha256() != entry.sha256 {
                    let reason = "its contents do not have the hash in the manifest".to_owned();
                    return Err(ShardError::Damaged { path: shard.path().to_owned(), reason });
                }
            }
        }
        Ok(())
    }
}

fn open_listed(dir: &Path, entry: &ShardManifest, vocab_size: usize) -> Result<Shard, ShardError> {
    let path = dir.join(&entry.file);
    let damaged = |reason: &str| ShardError::Damaged { path: path.clone(), reason: reason.to_owned() };
    if Path::new(&entry.file).file_name() != Some(entry.file.as_ref()) {
        return Err(damaged("the manifest names a file outside the directory"));
    }
    let shard = Shard::open(&path)?;
    let found = (shard.documents() as u64, shard.bytes(), shard.tokens());
    if found != (entry.documents, entry.bytes, entry.tokens) {
        return Err(damaged("its counts differ from the manifest's"));
    }
    if shard.token_bytes() != format::token_bytes(vocab_size) {
        return Err(damaged("its tokens do not have the width of this vocabulary's"));
    }
    Ok(shard)
}

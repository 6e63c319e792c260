//! Building a directory of shards.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::format::{Hash, Shard, Writer, token_bytes};
use super::{MANIFEST, Manifest, SOURCES, ShardError, ShardManifest, Split, SplitManifest};
use crate::atomic;
use crate::corpus::{Corpus, Skipped};
use crate::tokenizer::Tokenizer;

/// Version of the layout; part of the key.
const VERSION: u32 = 1;

/// Text that is tokenised at a time, on all threads.
const BATCH_BYTES: usize = 8 << 20;

/// A corpus of fewer documents is cut finer, so that validation comes close to its fraction of the text.
const DOCUMENTS_MIN: u64 = 64;

/// Documents are cut no finer than this for the sake of [`DOCUMENTS_MIN`].
const DOCUMENT_BYTES_FLOOR: usize = 2 << 10;

/// How to build shards.
#[derive(Clone, Debug, PartialEq)]
pub struct ShardOptions {
    /// Part of the documents that is held out, in 0..1. At least one document is held out and one is not.
    pub validation_fraction: f64,
    /// A shard is finished once it has this many tokens. It bounds what a crash loses.
    pub shard_tokens: u64,
}

impl Default for ShardOptions {
    fn default() -> Self {
        ShardOptions { validation_fraction: 0.01, shard_tokens: 1 << 24 }
    }
}

/// What [`build`] is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Hashing the source files.
    Hash,
    /// Reading all documents: duplicates and the split.
    Scan,
    Tokenize,
}

/// How far [`build`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    pub phase: Phase,
    /// Bytes done in this phase: of files while hashing, of text afterwards.
    pub bytes: u64,
    /// Bytes to do, where known.
    pub bytes_total: Option<u64>,
    /// Tokens written so far.
    pub tokens: u64,
}

/// Tokenises `corpus` into `dir`, or what is missing there, and returns the manifest. The bytes of all files depend on
/// corpus, tokenizer and options alone. Calls `progress` every few megabytes, which may break it off; finished
/// shards are kept.
///
/// # Errors
/// Besides what reading and writing can meet: [`ShardError::OtherContents`] if `dir` is complete but from something
/// else, [`ShardError::EmptyCorpus`] if there is too little text, [`ShardError::Stopped`] if `progress` breaks off.
pub fn build(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    dir: &Path,
    options: &ShardOptions,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Manifest, ShardError> {
    let fraction = options.validation_fraction;
    assert!((0.0..1.0).contains(&fraction), "the validation fraction {fraction} is not in 0..1");
    fs::create_dir_all(dir).map_err(|source| ShardError::Io { action: "write", path: dir.to_owned(), source })?;
    let sources = hash_sources(corpus, progress)?;
    let key = build_key(&sources, corpus, tokenizer, options);
    if let Some(manifest) = Manifest::load(dir)? {
        if manifest.key != atomic::hex(&key) {
            return Err(ShardError::OtherContents { path: dir.to_owned() });
        }
        super::Dataset::open(dir)?.verify()?;
        return Ok(manifest);
    }
    remove_temporaries(dir)?;
    let (corpus, scan) = scan_fine_enough(corpus, fraction, progress)?;
    let mut splits = [Split::Train, Split::Validation]
        .map(|split| SplitBuilder::new(dir, split, key, options.shard_tokens, token_bytes(tokenizer.vocab_size())));
    tokenize(&corpus, tokenizer, &scan, &mut splits, progress)?;
    let [train, validation] = splits;
    let (train, validation) = (train.finish()?, validation.finish()?);
    if (train.documents + validation.documents, train.bytes + validation.bytes) != (scan.documents, scan.bytes) {
        return Err(ShardError::CorpusChanged);
    }
    let manifest = Manifest {
        version: VERSION,
        key: atomic::hex(&key),
        corpus_sha256: atomic::hex(&Sha256::digest(&sources)),
        tokenizer_sha256: tokenizer.sha256(),
        vocab_size: tokenizer.vocab_size(),
        document_bytes_max: corpus.options().document_bytes_max,
        sources: corpus.sources().len() as u64,
        duplicates: scan.duplicates,
        skipped: scan.skipped,
        train,
        validation,
    };
    write(&dir.join(SOURCES), sources.as_bytes())?;
    let mut json = serde_json::to_string_pretty(&manifest).expect("strings and numbers serialise");
    json.push('\n');
    write(&dir.join(MANIFEST), json.as_bytes())?;
    Ok(manifest)
}

fn go_on(flow: ControlFlow<()>) -> Result<(), ShardError> {
    if flow.is_break() { Err(ShardError::Stopped) } else { Ok(()) }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), ShardError> {
    atomic::write(path, bytes).map_err(|source| ShardError::Io { action: "write", path: path.to_owned(), source })
}

/// The lines of `sources.jsonl`: name, size and hash of each file.
fn hash_sources(corpus: &Corpus, progress: &mut dyn FnMut(Progress) -> ControlFlow<()>) -> Result<String, ShardError> {
    let mut lines = String::new();
    let mut done = 0;
    for batch in corpus.sources().chunks(256) {
        let hashed: Vec<(u64, String)> = batch
            .par_iter()
            .map(|source| {
                let io = |error| ShardError::Io { action: "read", path: source.path.clone(), source: error };
                let mut hasher = Sha256::new();
                let bytes = File::open(&source.path)
                    .and_then(|mut file| io::copy(&mut file, &mut HashWriter(&mut hasher)))
                    .map_err(io)?;
                Ok((bytes, atomic::hex(&hasher.finalize())))
            })
            .collect::<Result<_, ShardError>>()?;
        for (source, (bytes, sha256)) in batch.iter().zip(hashed) {
            lines.push_str(&json!({"name": source.name, "bytes": bytes, "sha256": sha256}).to_string());
            lines.push('\n');
            done += bytes;
        }
        go_on(progress(Progress { phase: Phase::Hash, bytes: done, bytes_total: None, tokens: 0 }))?;
    }
    Ok(lines)
}

struct HashWriter<'a>(&'a mut Sha256);

impl io::Write for HashWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// SHA-256 of everything that the shards' bytes depend on.
fn build_key(sources: &str, corpus: &Corpus, tokenizer: &Tokenizer, options: &ShardOptions) -> Hash {
    let read = corpus.options();
    let parts = json!({
        "version": VERSION,
        "sources": atomic::hex(&Sha256::digest(sources)),
        "field": read.field,
        "skip_bad": read.skip_bad,
        "document_bytes_max": read.document_bytes_max,
        "tokenizer": tokenizer.sha256(),
        "vocab_size": tokenizer.vocab_size(),
        "validation_fraction": options.validation_fraction,
        "shard_tokens": options.shard_tokens,
    });
    Sha256::digest(parts.to_string()).into()
}

fn remove_temporaries(dir: &Path) -> Result<(), ShardError> {
    let io = |source| ShardError::Io { action: "read", path: dir.to_owned(), source };
    for entry in fs::read_dir(dir).map_err(io)? {
        let entry = entry.map_err(io)?;
        if entry.file_name().to_string_lossy().starts_with(atomic::TEMPORARY) {
            fs::remove_file(entry.path()).map_err(|source| ShardError::Io {
                action: "write",
                path: entry.path(),
                source,
            })?;
        }
    }
    Ok(())
}

/// What the first pass finds.
struct Scan {
    /// Distinct documents.
    documents: u64,
    /// Bytes of their text.
    bytes: u64,
    bytes_longest: usize,
    duplicates: u64,
    skipped: Skipped,
    /// Documents whose hash begins with a number below this are held out.
    threshold: u64,
}

/// The first 8 bytes of a hash as a number: what the split goes by.
fn leading(hash: &Hash) -> u64 {
    u64::from_be_bytes(hash[..8].try_into().expect("eight bytes"))
}

/// The documents seen so far, by the first half of their hash: 16 bytes a document in memory, and a chance below
/// 10⁻²⁰ that two of 10⁹ different documents are taken for equal.
#[derive(Default)]
struct Seen(HashSet<[u8; 16]>);

impl Seen {
    fn is_new(&mut self, hash: &Hash) -> bool {
        self.0.insert(hash[..16].try_into().expect("sixteen bytes"))
    }
}

/// Scans; if there are so few documents that one of them is a large part of the text, cuts them finer and scans again.
fn scan_fine_enough(
    corpus: &Corpus,
    fraction: f64,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(Corpus, Scan), ShardError> {
    let found = scan(corpus, fraction, progress)?;
    let finer = (found.bytes / DOCUMENTS_MIN) as usize;
    let finer = finer.max(DOCUMENT_BYTES_FLOOR).min(found.bytes_longest.div_ceil(2).max(4));
    let few = found.documents < DOCUMENTS_MIN && found.bytes_longest > DOCUMENT_BYTES_FLOOR || found.documents < 2;
    let (corpus, found) = match few && found.documents > 0 {
        true => {
            let corpus = corpus.clone().with_document_bytes_max(finer);
            let found = scan(&corpus, fraction, progress)?;
            (corpus, found)
        }
        false => (corpus.clone(), found),
    };
    match found.documents {
        documents @ (0 | 1) => Err(ShardError::EmptyCorpus { documents }),
        _ => Ok((corpus, found)),
    }
}

fn scan(
    corpus: &Corpus,
    fraction: f64,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Scan, ShardError> {
    // The split is by content, so it stays when documents are added. `as` saturates, and fraction < 1.
    let mut threshold = (fraction * 2f64.powi(64)) as u64;
    let (mut lowest, mut highest) = (u64::MAX, 0);
    let mut seen = Seen::default();
    let mut found =
        Scan { documents: 0, bytes: 0, bytes_longest: 0, duplicates: 0, skipped: Skipped::default(), threshold };
    let mut documents = corpus.documents();
    let mut reported = 0;
    while let Some(text) = documents.next().transpose()? {
        let hash: Hash = Sha256::digest(&text).into();
        if !seen.is_new(&hash) {
            found.duplicates += 1;
            continue;
        }
        lowest = lowest.min(leading(&hash));
        highest = highest.max(leading(&hash));
        found.documents += 1;
        found.bytes += text.len() as u64;
        found.bytes_longest = found.bytes_longest.max(text.len());
        if found.bytes >= reported + BATCH_BYTES as u64 {
            reported = found.bytes;
            go_on(progress(Progress { phase: Phase::Scan, bytes: found.bytes, bytes_total: None, tokens: 0 }))?;
        }
    }
    // One document each at least: the lowest hash is held out, the highest is not.
    threshold = threshold.max(lowest.saturating_add(1)).min(highest);
    Ok(Scan { threshold, skipped: documents.skipped(), ..found })
}

/// The second pass: documents in order, tokenised in batches on all threads, to their split.
fn tokenize(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    scan: &Scan,
    [train, validation]: &mut [SplitBuilder; 2],
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<(), ShardError> {
    let mut seen = Seen::default();
    let mut documents = corpus.documents();
    let mut done = 0;
    loop {
        let mut batch: Vec<(String, Hash, Split)> = Vec::new();
        let mut batch_bytes = 0;
        while batch_bytes < BATCH_BYTES {
            let Some(text) = documents.next().transpose()? else { break };
            let hash: Hash = Sha256::digest(&text).into();
            if !seen.is_new(&hash) {
                continue;
            }
            done += text.len() as u64;
            let split = if leading(&hash) < scan.threshold { Split::Validation } else { Split::Train };
            let builder = if split == Split::Train { &mut *train } else { &mut *validation };
            if !builder.skip_finished(&hash)? {
                batch_bytes += text.len();
                batch.push((text, hash, split));
            }
        }
        if batch.is_empty() {
            return Ok(());
        }
        let texts: Vec<&str> = batch.iter().map(|(text, ..)| text.as_str()).collect();
        let encoded = tokenizer.encode_ordinary_all(&texts)?;
        for ((text, hash, split), tokens) in batch.iter().zip(&encoded) {
            let builder = if *split == Split::Train { &mut *train } else { &mut *validation };
            builder.push(tokens, text.len() as u64, hash)?;
        }
        let tokens = train.tokens() + validation.tokens();
        go_on(progress(Progress { phase: Phase::Tokenize, bytes: done, bytes_total: Some(scan.bytes), tokens }))?;
    }
}

/// The shards of one split: finished ones from an earlier run are kept, then new ones are written.
struct SplitBuilder {
    dir: PathBuf,
    split: Split,
    key: Hash,
    shard_tokens: u64,
    token_bytes: usize,
    finished: Vec<ShardManifest>,
    /// A finished shard whose documents are being passed over: how many are left, and their hash so far.
    passing: Option<(Shard, u64, Sha256)>,
    /// Nothing further is there from an earlier run.
    fresh: bool,
    writer: Option<Writer>,
}

impl SplitBuilder {
    fn new(dir: &Path, split: Split, key: Hash, shard_tokens: u64, token_bytes: usize) -> Self {
        SplitBuilder {
            dir: dir.to_owned(),
            split,
            key,
            shard_tokens,
            token_bytes,
            finished: Vec::new(),
            passing: None,
            fresh: false,
            writer: None,
        }
    }

    fn next_path(&self) -> PathBuf {
        self.dir.join(format!("{}-{:05}.tokens", self.split.name(), self.finished.len()))
    }

    /// Whether the next document is in a finished shard already.
    fn skip_finished(&mut self, hash: &Hash) -> Result<bool, ShardError> {
        if self.fresh {
            return Ok(false);
        }
        if self.passing.is_none() {
            match self.reusable()? {
                Some(shard) => {
                    self.passing = Some((shard.documents() as u64, shard)).map(|(n, s)| (s, n, Sha256::new()))
                }
                None => {
                    self.fresh = true;
                    return Ok(false);
                }
            }
        }
        let (shard, left, contents) = self.passing.as_mut().expect("set above");
        contents.update(hash);
        *left -= 1;
        if *left == 0 {
            if contents.clone().finalize()[..] != *shard.contents() {
                return Err(ShardError::CorpusChanged);
            }
            self.finished.push(shard.manifest());
            self.passing = None;
        }
        Ok(true)
    }

    /// The next shard, if an earlier run with the same key finished it and it is intact.
    fn reusable(&self) -> Result<Option<Shard>, ShardError> {
        let path = self.next_path();
        match Shard::open(&path) {
            Ok(shard) if shard.key() == self.key && shard.documents() > 0 && shard.is_intact() => Ok(Some(shard)),
            // Of another corpus or damaged: written anew.
            Ok(_) | Err(ShardError::Damaged { .. }) => Ok(None),
            Err(ShardError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tokens(&self) -> u64 {
        let finished: u64 = self.finished.iter().map(|shard| shard.tokens).sum();
        finished + self.writer.as_ref().map_or(0, Writer::tokens)
    }

    fn push(&mut self, tokens: &[u32], bytes: u64, hash: &Hash) -> Result<(), ShardError> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => Writer::create(&self.next_path(), self.token_bytes)?,
        };
        writer.push(tokens, bytes, hash)?;
        if writer.tokens() >= self.shard_tokens {
            self.finished.push(writer.finish(&self.key)?);
        } else {
            self.writer = Some(writer);
        }
        Ok(())
    }

    /// Finishes the last shard and removes what an earlier run with other contents left behind.
    fn finish(mut self) -> Result<SplitManifest, ShardError> {
        if self.passing.is_some() {
            return Err(ShardError::CorpusChanged);
        }
        if let Some(writer) = self.writer.take() {
            self.finished.push(writer.finish(&self.key)?);
        }
        let mut stale = self.finished.len();
        let path = |index: usize| self.dir.join(format!("{}-{index:05}.tokens", self.split.name()));
        while fs::remove_file(path(stale)).is_ok() {
            stale += 1;
        }
        Ok(SplitManifest {
            documents: self.finished.iter().map(|shard| shard.documents).sum(),
            bytes: self.finished.iter().map(|shard| shard.bytes).sum(),
            tokens: self.finished.iter().map(|shard| shard.tokens).sum(),
            shards: self.finished,
        })
    }
}

//! The shard file. All numbers little-endian.
//!
//! ```text
//! offset  bytes
//!      0      8  "WELSTOK1"
//!      8      8  bytes a token, 2 or 4
//!     16      8  documents N
//!     24      8  tokens
//!     32      8  bytes of text
//!     40     32  key of the build (SHA-256 of corpus, tokenizer, options)
//!     72     32  SHA-256 over the documents' content hashes, in order
//!    104     32  SHA-256 of everything from offset 136
//!    136         tokens, zero-padded to a multiple of 8 bytes
//!                N × (end of the document in tokens, bytes of its text): two 8-byte numbers each
//! ```

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::{ShardError, ShardManifest};
use crate::atomic;
use crate::mapped::Mapped;

const MAGIC: [u8; 8] = *b"WELSTOK1";
const HEADER_BYTES: usize = 136;
const TABLE_ENTRY_BYTES: usize = 16;

/// A SHA-256.
pub(super) type Hash = [u8; 32];

/// Bytes a token takes on disk: 2 where all ids fit.
pub(super) fn token_bytes(vocab_size: usize) -> usize {
    if vocab_size <= 1 << 16 { 2 } else { 4 }
}

/// Writes one shard under a temporary name, document by document.
pub(super) struct Writer {
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    token_bytes: usize,
    payload: Sha256,
    contents: Sha256,
    /// End in tokens and bytes of text, per document.
    table: Vec<(u64, u64)>,
    buffer: Vec<u8>,
}

impl Writer {
    pub(super) fn create(path: &Path, token_bytes: usize) -> Result<Writer, ShardError> {
        let temporary = atomic::temporary_path(path);
        let create = || {
            let mut file = BufWriter::with_capacity(1 << 20, atomic::create(&temporary)?);
            file.write_all(&[0; HEADER_BYTES])?;
            Ok(file)
        };
        let file = create().map_err(|source| write_error(path, source))?;
        Ok(Writer {
            path: path.to_owned(),
            temporary,
            file,
            token_bytes,
            payload: Sha256::new(),
            contents: Sha256::new(),
            table: Vec::new(),
            buffer: Vec::new(),
        })
    }

    /// Tokens written so far.
    pub(super) fn tokens(&self) -> u64 {
        self.table.last().map_or(0, |&(end, _)| end)
    }

    /// Appends a document of `bytes` bytes whose text has the hash `content`.
    pub(super) fn push(&mut self, tokens: &[u32], bytes: u64, content: &Hash) -> Result<(), ShardError> {
        self.buffer.clear();
        match self.token_bytes {
            2 => tokens.iter().for_each(|&id| self.buffer.extend((id as u16).to_le_bytes())),
            _ => tokens.iter().for_each(|&id| self.buffer.extend(id.to_le_bytes())),
        }
        self.table.push((self.tokens() + tokens.len() as u64, bytes));
        self.contents.update(content);
        self.write_buffer()
    }

    fn write_buffer(&mut self) -> Result<(), ShardError> {
        self.payload.update(&self.buffer);
        self.file.write_all(&self.buffer).map_err(|source| write_error(&self.path, source))
    }

    /// Adds the table, then the header, syncs, and gives the file its name.
    pub(super) fn finish(mut self, key: &Hash) -> Result<ShardManifest, ShardError> {
        let tokens = self.tokens();
        let padding = (tokens as usize * self.token_bytes).next_multiple_of(8) - tokens as usize * self.token_bytes;
        self.buffer = vec![0; padding];
        for (end, bytes) in &self.table {
            self.buffer.extend(end.to_le_bytes());
            self.buffer.extend(bytes.to_le_bytes());
        }
        self.write_buffer()?;
        let bytes: u64 = self.table.iter().map(|&(_, bytes)| bytes).sum();
        let mut header = MAGIC.to_vec();
        for number in [self.token_bytes as u64, self.table.len() as u64, tokens, bytes] {
            header.extend(number.to_le_bytes());
        }
        header.extend(key);
        header.extend(self.contents.finalize_reset());
        header.extend(self.payload.finalize_reset());

        self.publish(&header).map_err(|source| write_error(&self.path, source))?;
        Ok(Shard::open(&self.path)?.manifest())
    }

    fn publish(&mut self, header: &[u8]) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(0))?;
        self.file.write_all(header)?;
        self.file.flush()?;
        atomic::publish(self.file.get_ref().try_clone()?, &self.temporary, &self.path)
    }
}

impl Drop for Writer {
    /// Removes the temporary file, if the shard was not finished.
    fn drop(&mut self) {
        _ = std::fs::remove_file(&self.temporary);
    }
}

fn write_error(path: &Path, source: std::io::Error) -> ShardError {
    ShardError::Io { action: "write", path: path.to_owned(), source }
}

/// A finished shard, mapped into memory.
pub struct Shard {
    path: PathBuf,
    file: Mapped,
    token_bytes: usize,
    /// Where each document starts, in tokens, and where the last one ends.
    starts: Vec<u64>,
    bytes: u64,
}

impl Shard {
    /// Maps `path` and checks its header, sizes and table against each other and against the file.
    pub(super) fn open(path: &Path) -> Result<Shard, ShardError> {
        let damaged = |reason: &str| ShardError::Damaged { path: path.to_owned(), reason: reason.to_owned() };
        let io = |source| ShardError::Io { action: "read", path: path.to_owned(), source };
        if std::fs::metadata(path).map_err(io)?.len() < HEADER_BYTES as u64 {
            return Err(damaged("it is shorter than a header"));
        }
        let file = Mapped::open(path).map_err(io)?;
        if file.len() < HEADER_BYTES || file[..8] != MAGIC {
            return Err(damaged("it does not start like a shard"));
        }
        let [token_bytes, documents, tokens, bytes] = [8, 16, 24, 32].map(|at| u64_at(&file, at));
        if token_bytes != 2 && token_bytes != 4 {
            return Err(damaged("its tokens are neither 2 nor 4 bytes wide"));
        }
        let payload = |tokens: u64, documents: u64| {
            let tokens = tokens.checked_mul(token_bytes)?.checked_next_multiple_of(8)?;
            tokens.checked_add(documents.checked_mul(TABLE_ENTRY_BYTES as u64)?)
        };
        if payload(tokens, documents) != Some((file.len() - HEADER_BYTES) as u64) {
            return Err(damaged("its size is not what its header says"));
        }
        let table = file.len() - documents as usize * TABLE_ENTRY_BYTES;
        let mut starts = Vec::with_capacity(documents as usize + 1);
        starts.push(0);
        starts.extend((0..documents as usize).map(|i| u64_at(&file, table + i * TABLE_ENTRY_BYTES)));
        if !starts.is_sorted() || starts.last() != Some(&tokens) {
            return Err(damaged("its table of documents is out of order"));
        }
        Ok(Shard { path: path.to_owned(), file, token_bytes: token_bytes as usize, starts, bytes })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn documents(&self) -> usize {
        self.starts.len() - 1
    }

    pub fn tokens(&self) -> u64 {
        self.starts[self.documents()]
    }

    /// Bytes of text.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Number of tokens of a document.
    pub fn document_tokens(&self, document: usize) -> u64 {
        self.starts[document + 1] - self.starts[document]
    }

    /// Appends the tokens `range` of a document to `out`.
    pub fn copy_tokens(&self, document: usize, range: Range<u64>, out: &mut Vec<u32>) {
        let len = self.document_tokens(document);
        assert!(range.end <= len, "tokens {range:?} of a document of {len}");
        let first = self.starts[document];
        let at = |token: u64| HEADER_BYTES + (first + token) as usize * self.token_bytes;
        let bytes = &self.file[at(range.start)..at(range.end)];
        match self.token_bytes {
            2 => out.extend(bytes.chunks_exact(2).map(|b| u32::from(u16::from_le_bytes([b[0], b[1]])))),
            _ => out.extend(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))),
        }
    }

    /// SHA-256 of the whole file, in hex. Reads all of it.
    pub fn sha256(&self) -> String {
        atomic::hex(&Sha256::digest(&self.file[..]))
    }

    pub(super) fn token_bytes(&self) -> usize {
        self.token_bytes
    }

    pub(super) fn key(&self) -> &[u8] {
        &self.file[40..72]
    }

    /// SHA-256 over the content hashes of its documents.
    pub(super) fn contents(&self) -> &[u8] {
        &self.file[72..104]
    }

    /// Whether tokens and table have the hash in the header.
    pub(super) fn is_intact(&self) -> bool {
        Sha256::digest(&self.file[HEADER_BYTES..])[..] == self.file[104..136]
    }

    pub(super) fn manifest(&self) -> ShardManifest {
        ShardManifest {
            file: self.path.file_name().expect("shards have names").to_string_lossy().into_owned(),
            sha256: self.sha256(),
            file_bytes: self.file.len() as u64,
            documents: self.documents() as u64,
            bytes: self.bytes,
            tokens: self.tokens(),
        }
    }
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

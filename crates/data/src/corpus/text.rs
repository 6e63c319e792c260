//! Files that are one text each, and cutting of long texts.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{CorpusError, Record};

/// Reads a text file in blocks, each a document. A block that is not UTF-8 is reported as such and passed over.
pub(super) struct Reader {
    path: PathBuf,
    file: Option<File>,
    block_bytes: usize,
    /// Read, but not yet given out: less than a block.
    carry: Vec<u8>,
}

impl Reader {
    pub(super) fn open(path: &Path, block_bytes: usize) -> Result<Self, CorpusError> {
        let file = File::open(path).map_err(|source| CorpusError::Io { path: path.to_owned(), source })?;
        Ok(Reader { path: path.to_owned(), file: Some(file), block_bytes, carry: Vec::new() })
    }

    fn read_block(&mut self) -> std::io::Result<Option<Vec<u8>>> {
        let Some(file) = &mut self.file else { return Ok(None) };
        let mut block = std::mem::take(&mut self.carry);
        let missing = (self.block_bytes - block.len()) as u64;
        file.by_ref().take(missing).read_to_end(&mut block)?;
        if block.len() < self.block_bytes {
            self.file = None;
        } else {
            let end = cut_point(&block, self.block_bytes);
            self.carry = block.split_off(end);
        }
        Ok((!block.is_empty()).then_some(block))
    }
}

impl Iterator for Reader {
    type Item = Result<Record, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let block =
            self.read_block().map_err(|source| CorpusError::Io { path: self.path.clone(), source }).transpose()?;
        Some(block.map(|block| String::from_utf8(block).map_or(Record::InvalidUtf8, Record::Text)))
    }
}

/// `text` in pieces of at most `max` bytes, each up to a line end where there is one.
pub(super) fn cut(text: String, max: usize) -> Vec<String> {
    if text.len() <= max {
        return vec![text];
    }
    let mut pieces = Vec::new();
    let mut rest = text.as_str();
    while rest.len() > max {
        let (piece, tail) = rest.split_at(cut_point(rest.as_bytes(), max));
        pieces.push(piece.to_owned());
        rest = tail;
    }
    pieces.push(rest.to_owned());
    pieces
}

/// Where to cut `bytes`: after the last line end in the first `max` bytes, else before the character that reaches over
/// them; after `max` if there is neither.
fn cut_point(bytes: &[u8], max: usize) -> usize {
    assert!(max >= 4 && bytes.len() >= max, "{} bytes to be cut after {max}", bytes.len());
    if let Some(newline) = bytes[..max].iter().rposition(|&byte| byte == b'\n') {
        return newline + 1;
    }
    let continues = |at: usize| bytes.get(at).is_some_and(|byte| byte & 0xc0 == 0x80);
    let starts = |at: usize| bytes[at] >= 0xc0;
    // The byte after `max` may not be known yet: step back over a last character, whole or not.
    let last = (max - 4..max).rev().find(|&at| !continues(at)).unwrap_or(max);
    if last > 0 && last < max && starts(last) { last } else { max }
}

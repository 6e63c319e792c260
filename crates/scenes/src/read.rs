//! Reading files that others wrote: errors that name file and entry, and JSON Lines.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

/// Longest line.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The system refuses.
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// The file as a whole is not what it should be.
    #[error("{path}: {reason}")]
    File { path: PathBuf, reason: String },
    /// A line, row or entry is not what it should be.
    #[error("{path}, {entry}: {reason}")]
    Entry { path: PathBuf, entry: String, reason: String },
}

impl ReadError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> ReadError {
        ReadError::Io { path: path.to_owned(), source }
    }

    pub(crate) fn file(path: &Path, reason: impl Into<String>) -> ReadError {
        ReadError::File { path: path.to_owned(), reason: reason.into() }
    }

    pub(crate) fn entry(path: &Path, entry: impl Into<String>, reason: impl Into<String>) -> ReadError {
        ReadError::Entry { path: path.to_owned(), entry: entry.into(), reason: reason.into() }
    }

    pub(crate) fn line(path: &Path, line: u64, reason: impl Into<String>) -> ReadError {
        ReadError::entry(path, format!("line {line}"), reason)
    }
}

/// The objects of a JSON Lines file with the numbers of their lines, from 1. Empty lines are passed over.
pub(crate) struct JsonLines {
    path: PathBuf,
    input: BufReader<File>,
    line: u64,
}

impl JsonLines {
    pub(crate) fn open(path: &Path) -> Result<JsonLines, ReadError> {
        let file = File::open(path).map_err(|source| ReadError::io(path, source))?;
        Ok(JsonLines { path: path.to_owned(), input: BufReader::new(file), line: 0 })
    }

    /// The bytes of the next line that is not empty.
    fn line(&mut self) -> Result<Option<Vec<u8>>, ReadError> {
        loop {
            self.line += 1;
            let mut bytes = Vec::new();
            let read = self.input.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut bytes);
            match read.map_err(|source| ReadError::io(&self.path, source))? as u64 {
                0 => return Ok(None),
                read if read > LINE_BYTES_MAX => {
                    let reason = format!("it is longer than {LINE_BYTES_MAX} bytes");
                    return Err(ReadError::line(&self.path, self.line, reason));
                }
                _ if bytes.trim_ascii().is_empty() => {}
                _ => return Ok(Some(bytes)),
            }
        }
    }
}

impl Iterator for JsonLines {
    type Item = Result<(u64, Map<String, Value>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = self.line().transpose()?;
        Some(bytes.and_then(|bytes| {
            let text = bytes.strip_prefix(b"\xef\xbb\xbf").filter(|_| self.line == 1).unwrap_or(&bytes);
            let object = object(text).map_err(|reason| ReadError::line(&self.path, self.line, reason))?;
            Ok((self.line, object))
        }))
    }
}

/// A JSON object, or why it is none.
pub(crate) fn object(text: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("it is no JSON object".to_owned()),
        Err(error) => {
            let reason = error.to_string();
            let reason = reason.split(" at line ").next().unwrap_or_default();
            Err(format!("column {}: {reason}", error.column()))
        }
    }
}

/// The text of the first of these fields that is there, or what is there instead.
pub(crate) fn text<'a>(object: &'a Map<String, Value>, names: &[&str]) -> Result<&'a str, String> {
    match names.iter().find_map(|name| object.get(*name)) {
        Some(Value::String(text)) => Ok(text),
        Some(_) => Err(format!("`{}` is no text", names.join("` or `"))),
        None => {
            let there: Vec<&str> = object.keys().take(12).map(String::as_str).collect();
            Err(format!("there is no `{}`, only `{}`", names.join("` or `"), there.join("`, `")))
        }
    }
}

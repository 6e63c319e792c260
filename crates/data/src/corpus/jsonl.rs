//! JSONL: one JSON object a line, one of its strings the text.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Compression, CorpusError, ReadOptions, Record};

/// Longest line that is read into memory.
const LINE_BYTES_MAX: u64 = 256 << 20;

pub(super) struct Reader {
    path: PathBuf,
    input: BufReader<Box<dyn Read>>,
    field: String,
    skip_bad: bool,
    /// Lines read so far.
    line: u64,
    buffer: Vec<u8>,
}

impl Reader {
    pub(super) fn open(path: &Path, compression: Compression, options: &ReadOptions) -> Result<Self, CorpusError> {
        let io = |source| CorpusError::Io { path: path.to_owned(), source };
        let file = File::open(path).map_err(io)?;
        let input: Box<dyn Read> = match compression {
            Compression::None => Box::new(file),
            Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(file)),
            Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(file).map_err(io)?),
        };
        let (field, skip_bad) = (options.field.clone(), options.skip_bad);
        let input = BufReader::with_capacity(1 << 18, input);
        Ok(Reader { path: path.to_owned(), input, field, skip_bad, line: 0, buffer: Vec::new() })
    }

    /// Reads a line and gives its bytes; 0 at the end of the file.
    fn read_line(&mut self) -> Result<u64, CorpusError> {
        self.buffer.clear();
        self.line += 1;
        let read = self.input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut self.buffer);
        match read.map_err(|source| CorpusError::Io { path: self.path.clone(), source })? as u64 {
            LINE_BYTES_MAX if self.buffer.last() != Some(&b'\n') => {
                Err(self.bad(0, format!("the line is longer than {LINE_BYTES_MAX} bytes")))
            }
            bytes => Ok(bytes),
        }
    }

    fn parse(&self) -> Result<String, CorpusError> {
        let value: Value = serde_json::from_slice(&self.buffer).map_err(|e| self.bad(e.column(), json_reason(&e)))?;
        match value {
            Value::Object(mut object) => match object.get_mut(&self.field).map(Value::take) {
                Some(Value::String(text)) => Ok(text),
                Some(_) => Err(self.bad(0, format!("`{}` is not a string", self.field))),
                None => Err(self.bad(0, format!("the object has no `{}`", self.field))),
            },
            _ => Err(self.bad(0, "the line is not a JSON object".to_owned())),
        }
    }

    fn bad(&self, column: usize, reason: String) -> CorpusError {
        CorpusError::BadRecord { path: self.path.clone(), line: self.line, column, reason }
    }
}

/// The parser's reason without the position, which counts from the start of this one line.
fn json_reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or(&text).to_owned()
}

impl Iterator for Reader {
    type Item = Result<Record, CorpusError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.read_line() {
                Err(error) => return Some(Err(error)),
                Ok(0) => return None,
                Ok(_) => {}
            }
            if self.buffer.trim_ascii().is_empty() {
                continue;
            }
            return match self.parse() {
                Ok(text) => Some(Ok(Record::Text(text))),
                Err(_) if self.skip_bad => Some(Ok(Record::Bad)),
                Err(error) => Some(Err(error)),
            };
        }
    }
}

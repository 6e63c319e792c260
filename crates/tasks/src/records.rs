//! Reading the files that tasks come in: JSON Lines and CSV, also compressed by gzip. What is wrong is named by file,
//! line and column.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::read::MultiGzDecoder;
use serde_json::{Map, Value};

use crate::task::TaskError;

/// Longest line.
const LINE_BYTES_MAX: u64 = 64 << 20;
/// Most records of a file.
const RECORDS_MAX: usize = 10_000_000;

/// A record with its place, for messages.
#[derive(Clone, Debug)]
pub struct Record {
    /// From 1.
    pub line: u64,
    /// From 0: a table begins again where its header does, as in files that were put one behind another.
    pub part: u64,
    /// The object, or the row by the names of its columns.
    pub fields: Map<String, Value>,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub struct Records {
    pub records: Vec<Record>,
    /// How many were passed over, being damaged.
    pub skipped: u64,
}

fn open(path: &Path) -> Result<Box<dyn Read>, TaskError> {
    let file = File::open(path).map_err(|source| TaskError::Io { path: path.to_owned(), source })?;
    let compressed = path.extension().is_some_and(|extension| extension == "gz");
    Ok(if compressed { Box::new(MultiGzDecoder::new(file)) } else { Box::new(file) })
}

pub(crate) fn bad(path: &Path, line: u64, column: usize, reason: impl Into<String>) -> TaskError {
    TaskError::BadRecord { path: path.to_owned(), line, column, reason: reason.into() }
}

/// One JSON object a line; empty lines are passed over. With `skip_bad` damaged lines are counted instead of ending it.
pub fn jsonl(path: &Path, skip_bad: bool) -> Result<Records, TaskError> {
    let mut input = BufReader::new(open(path)?);
    let mut found = Records { records: Vec::new(), skipped: 0 };
    let mut buffer = Vec::new();
    for line in 1.. {
        buffer.clear();
        let read = input.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut buffer);
        let read = read.map_err(|source| TaskError::Io { path: path.to_owned(), source })? as u64;
        if read == 0 {
            break;
        }
        if read == LINE_BYTES_MAX || found.records.len() == RECORDS_MAX {
            return Err(bad(path, line, 0, "the line is too long, or there are too many"));
        }
        let text = if line == 1 { buffer.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&buffer) } else { &buffer };
        if text.trim_ascii().is_empty() {
            continue;
        }
        match object(path, line, text) {
            Ok(fields) => found.records.push(Record { line, part: 0, fields }),
            Err(_) if skip_bad => found.skipped += 1,
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

fn object(path: &Path, line: u64, text: &[u8]) -> Result<Map<String, Value>, TaskError> {
    if let Err(error) = std::str::from_utf8(text) {
        return Err(bad(path, line, error.valid_up_to() + 1, "the text is not UTF-8"));
    }
    match serde_json::from_slice(text) {
        Ok(Value::Object(fields)) => Ok(fields),
        Ok(_) => Err(bad(path, line, 1, "the line is no JSON object")),
        Err(error) => {
            let reason = error.to_string();
            Err(bad(path, line, error.column(), reason.split(" at line ").next().unwrap_or(&reason)))
        }
    }
}

/// Rows by the names in the first row, which may come again; `columns` stand for that row in files without one, which
/// are told by its first cell.
pub fn csv(path: &Path, columns: Option<&[&str]>) -> Result<Records, TaskError> {
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(open(path)?);
    let (mut names, mut part): (Vec<String>, u64) = (Vec::new(), 0);
    let mut found = Records { records: Vec::new(), skipped: 0 };
    let mut row = csv::StringRecord::new();
    loop {
        let line = reader.position().line();
        match reader.read_record(&mut row) {
            Ok(true) => {}
            Ok(false) => return Ok(found),
            Err(error) => return Err(csv_error(path, line, error)),
        }
        if names.is_empty() {
            let cells: Vec<String> = row.iter().map(|cell| cell.trim_start_matches('\u{feff}').to_owned()).collect();
            let headless =
                columns.filter(|columns| columns.len() == cells.len() && cells.iter().any(|c| c.contains(' ')));
            match headless {
                Some(columns) => names = columns.iter().map(|name| (*name).to_owned()).collect(),
                None => {
                    names = cells;
                    continue;
                }
            }
        }
        if row.iter().eq(names.iter().map(String::as_str)) {
            part += 1;
            continue;
        }
        if row.len() != names.len() {
            return Err(bad(path, line, 0, format!("the row has {} cells and not {}", row.len(), names.len())));
        }
        if found.records.len() == RECORDS_MAX {
            return Err(bad(path, line, 0, "there are too many rows"));
        }
        let cells = row.iter().map(|cell| Value::String(cell.to_owned()));
        found.records.push(Record { line, part, fields: names.iter().cloned().zip(cells).collect() });
    }
}

fn csv_error(path: &Path, line: u64, error: csv::Error) -> TaskError {
    let reason = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => TaskError::Io { path: path.to_owned(), source },
        csv::ErrorKind::Utf8 { err, .. } => bad(path, line, 0, format!("cell {} is not UTF-8", err.field() + 1)),
        _ => bad(path, line, 0, reason),
    }
}

impl Record {
    /// The text of the first of these fields that is there; numbers as text.
    pub fn text(&self, path: &Path, names: &[&str]) -> Result<String, TaskError> {
        match names.iter().find_map(|name| self.fields.get(*name)) {
            Some(Value::String(text)) => Ok(text.clone()),
            Some(Value::Number(number)) => Ok(number.to_string()),
            Some(_) => Err(bad(path, self.line, 0, format!("`{}` is no text", names.join("` or `")))),
            None => {
                let there: Vec<&str> = self.fields.keys().map(String::as_str).take(12).collect();
                let reason = format!("there is no `{}`, only `{}`", names.join("` or `"), there.join("`, `"));
                Err(bad(path, self.line, 0, reason))
            }
        }
    }
}

/// Refuses an id that was there before.
pub(crate) fn unique(path: &Path, line: u64, id: &str, seen: &mut BTreeSet<String>) -> Result<(), TaskError> {
    if seen.insert(id.to_owned()) {
        return Ok(());
    }
    Err(bad(path, line, 0, format!("the id `{id}` was there before")))
}

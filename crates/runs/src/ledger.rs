//! The ledger: what a run consumed, one JSON object a line, append-only. Each line holds the hash of the line before it
//! and of itself, so a line cannot be changed, dropped or inserted without the chain breaking there.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::FileRecord;
use crate::hash::sha256;
use crate::rundir::RunError;

/// The hash before the first line.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// What one line says: the work since the line before, and what came out. Work that a kill destroyed is not in any
/// line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// `start`, `resume`, `checkpoint`, `stage-done`.
    pub event: String,
    /// `tokenizer`, `data`, `pretrain`, `sample`.
    pub stage: String,
    /// Steps of the stage that are done.
    pub step: u64,
    /// Tokens consumed since the line before.
    pub tokens: u64,
    /// Floating-point operations since the line before, as the plan counts them.
    pub flops: f64,
    /// Seconds of wall-clock since the line before in this process.
    pub seconds: f64,
    /// Threads that were at work.
    pub threads: usize,
    /// Money for those seconds, in millionths of a dollar; 0 without `run.usd_per_hour`.
    pub cost_micro_usd: u64,
    /// Greatest memory of the process so far; 0 where the system does not tell.
    pub peak_rss_bytes: u64,
    /// Hashes of the files that came out.
    pub files: BTreeMap<String, FileRecord>,
    /// Version of the program.
    pub wels_version: String,
}

/// The open ledger of a run.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
    file: File,
    last_hash: String,
    entries: Vec<Entry>,
}

impl Ledger {
    /// Opens `path` or starts it. A last line without its end, left by a kill, is cut off.
    ///
    /// # Errors
    /// [`RunError::Damaged`] if a line does not follow from the one before it.
    pub fn open(path: &Path) -> Result<Ledger, RunError> {
        let text = match fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(RunError::io("read", path)(error)),
        };
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let mut ledger = Ledger {
            path: path.to_path_buf(),
            file: File::options().create(true).append(true).open(path).map_err(RunError::io("open", path))?,
            last_hash: GENESIS.to_string(),
            entries: Vec::new(),
        };
        for (index, line) in text[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
            let (entry, hash) = check_line(line, &ledger.last_hash).map_err(|message| RunError::Damaged {
                path: path.to_path_buf(),
                message: format!("line {}: {message}", index + 1),
                hint: "the file was changed by something other than this program; restore it from a copy".into(),
            })?;
            ledger.entries.push(entry);
            ledger.last_hash = hash;
        }
        if whole < text.len() {
            ledger.file.set_len(whole as u64).map_err(RunError::io("repair", path))?;
        }
        Ok(ledger)
    }

    /// All lines so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds a line; it is on the disk when this returns.
    pub fn append(&mut self, entry: Entry) -> Result<(), RunError> {
        let Ok(Value::Object(mut object)) = serde_json::to_value(&entry) else { panic!("an entry is plain data") };
        object.insert("prev_hash".into(), self.last_hash.clone().into());
        let hash = hash_of(&object);
        object.insert("hash".into(), hash.clone().into());
        let line = format!("{}\n", Value::Object(object));
        let write = |file: &mut File| file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        write(&mut self.file).map_err(RunError::io("append to", &self.path))?;
        self.last_hash = hash;
        self.entries.push(entry);
        Ok(())
    }
}

fn hash_of(object: &Map<String, Value>) -> String {
    sha256(serde_json::to_string(object).expect("plain data").as_bytes())
}

fn check_line(line: &[u8], prev_hash: &str) -> Result<(Entry, String), String> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    let hash = object.shift_remove("hash").and_then(|hash| hash.as_str().map(str::to_string)).unwrap_or_default();
    if object.get("prev_hash").and_then(Value::as_str) != Some(prev_hash) {
        return Err("does not follow from the line before it".into());
    }
    if hash_of(&object) != hash {
        return Err("its hash does not belong to its contents".into());
    }
    let entry = serde_json::from_value(Value::Object(object)).map_err(|error| error.to_string())?;
    Ok((entry, hash))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(step: u64) -> Entry {
        Entry { event: "checkpoint".into(), step, flops: 1e15 / 3.0, seconds: 0.1 + step as f64, ..Entry::default() }
    }

    #[test]
    fn a_torn_line_is_cut_off_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = Ledger::open(&path).unwrap();
        for step in 0..3 {
            ledger.append(entry(step)).unwrap();
        }
        let whole = fs::read(&path).unwrap();
        let two = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n').nth(1).unwrap().0 + 1;
        for len in two..whole.len() {
            fs::write(&path, &whole[..len]).unwrap();
            let mut ledger = Ledger::open(&path).unwrap();
            assert_eq!(ledger.entries(), [entry(0), entry(1)]);
            ledger.append(entry(2)).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = Ledger::open(&path).unwrap();
        ledger.append(entry(1)).unwrap();
        ledger.append(entry(2)).unwrap();
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).filter(|at| whole[*at].is_ascii_digit()) {
            let mut changed = whole.clone();
            changed[at] = if changed[at] == b'9' { b'8' } else { changed[at] + 1 };
            fs::write(&path, &changed).unwrap();
            assert!(matches!(Ledger::open(&path), Err(RunError::Damaged { .. })), "byte {at}");
        }
        let second = whole.iter().position(|byte| *byte == b'\n').unwrap() + 1;
        fs::write(&path, &whole[second..]).unwrap();
        let error = Ledger::open(&path).unwrap_err();
        assert!(error.to_string().contains("line 1: does not follow"), "{error}");
    }
}

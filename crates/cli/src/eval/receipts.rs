//! The folder of an evaluation: what was asked, a receipt for each answer, scores.
//!
//! ```text
//! OUT/eval.json            model, benchmarks and settings: everything that the receipts depend on
//!     NAME.jsonl           a receipt a line, in the order of the items
//!     NAME.seconds.jsonl   what differs from run to run: seconds, tokens found in the cache
//!     scores.json          from the receipts alone
//! ```
//! Receipts are appended, one write each, when all before them are there. So a kill at any moment leaves the beginning
//! of the file that the whole run would have written, and perhaps a torn line, which `--resume` drops.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use wels_pipeline::refusal::refuse;
use wels_runs::files::write_atomically;

use super::answer::Answer;
use super::receipt::Receipt;
use super::scores::Scores;
use super::suite::Suite;

/// Of the files in the folder.
pub const FORMAT: u32 = 1;

/// What of an answer differs from run to run.
#[derive(Serialize)]
struct Seconds<'a> {
    item: &'a str,
    sample: u32,
    seconds: f64,
    cached_tokens: u64,
}

/// The folder, locked for this process until dropped.
pub struct Folder {
    path: PathBuf,
    _lock: File,
}

impl Folder {
    /// Makes the folder at `path`, or goes on with it if that is asked for and `settings` are what it was made with.
    pub fn open(path: &Path, settings: &Value, resume: bool) -> Result<Folder> {
        let cannot = || format!("cannot use the folder {}", path.display());
        fs::create_dir_all(path).with_context(cannot)?;
        let lock = File::create(path.join("lock")).with_context(cannot)?;
        if lock.try_lock().is_err() {
            return Err(refuse(
                format!("another wels evaluates into {}", path.display()),
                "wait, or choose another --out",
            ));
        }
        let saved = path.join("eval.json");
        match saved.exists() {
            true if !resume => {
                let message = format!("{} holds an evaluation already", path.display());
                return Err(refuse(message, "go on with it by --resume, or choose another --out"));
            }
            true => same_settings(&saved, settings)?,
            false => {
                let text = serde_json::to_string_pretty(settings).expect("plain data") + "\n";
                write_atomically(&saved, text.as_bytes()).with_context(cannot)?;
            }
        }
        Ok(Folder { path: path.to_owned(), _lock: lock })
    }

    /// Where the receipts of a suite go on, and how many there are.
    pub fn writer(&self, suite: &Suite) -> Result<(Writer, usize)> {
        let path = self.path.join(format!("{}.jsonl", suite.name()));
        let times = self.path.join(format!("{}.seconds.jsonl", suite.name()));
        let (receipts, bytes) = read_whole(&path)?;
        for (number, receipt) in receipts.iter().enumerate() {
            let (place, sample) = suite.place(number);
            if number >= suite.len() || suite.item(place, 0).id != receipt.item || sample != receipt.sample {
                let message = format!(
                    "{}, line {}: the receipt of {} is not due there",
                    path.display(),
                    number + 1,
                    receipt.item
                );
                return Err(refuse(message, "somebody has changed the file; evaluate into another folder"));
            }
        }
        let file = append(&path, bytes)?;
        let kept = fs::read_to_string(&times).unwrap_or_default();
        let kept: usize =
            kept.split_inclusive('\n').take(receipts.len()).filter(|line| line.ends_with('\n')).map(str::len).sum();
        let times = append(&times, kept as u64)?;
        let begin = receipts.len();
        Ok((Writer { path, file, times, held: BTreeMap::new(), receipts }, begin))
    }

    /// Writes the scores.
    pub fn finish(&self, scores: &Scores) -> Result<()> {
        let path = self.path.join("scores.json");
        let text = serde_json::to_string_pretty(scores).expect("plain data") + "\n";
        write_atomically(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// Refuses to go on with an evaluation of something else, and says what differs.
fn same_settings(saved: &Path, settings: &Value) -> Result<()> {
    let cannot = || format!("cannot read {}", saved.display());
    let text = fs::read_to_string(saved).with_context(cannot)?;
    let before: Value = serde_json::from_str(&text).with_context(cannot)?;
    match first_difference("", &before, settings) {
        None => Ok(()),
        Some(difference) => {
            let message = format!("{} is of another evaluation: {difference}", saved.display());
            Err(refuse(message, "use the settings it was begun with, or another --out"))
        }
    }
}

fn first_difference(place: &str, before: &Value, now: &Value) -> Option<String> {
    match (before, now) {
        (Value::Object(before), Value::Object(now)) => {
            let keys = before.keys().chain(now.keys().filter(|key| !before.contains_key(*key)));
            let at = |key: &String| {
                let place = if place.is_empty() { key.clone() } else { format!("{place}.{key}") };
                first_difference(&place, before.get(key).unwrap_or(&Value::Null), now.get(key).unwrap_or(&Value::Null))
            };
            keys.into_iter().find_map(at)
        }
        (Value::Array(before), Value::Array(now)) if before.len() == now.len() => {
            let each = before.iter().zip(now).enumerate();
            each.into_iter().find_map(|(at, (before, now))| first_difference(&format!("{place}[{at}]"), before, now))
        }
        _ => (before != now).then(|| format!("`{place}` was {before} and is {now}")),
    }
}

/// The receipts of the whole lines that `path` begins with, and those lines' length.
fn read_whole(path: &Path) -> Result<(Vec<Receipt>, u64)> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let (mut receipts, mut len) = (Vec::new(), 0);
    for line in bytes.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
        let Ok(receipt) = serde_json::from_slice(line) else { break };
        receipts.push(receipt);
        len += line.len() as u64;
    }
    if len < bytes.len() as u64 {
        eprintln!("note: {}: {} bytes of an unfinished line are dropped", path.display(), bytes.len() as u64 - len);
    }
    Ok((receipts, len))
}

/// All receipts of a benchmark that was evaluated into `folder`.
pub fn read(folder: &Path, name: &str) -> Result<Vec<Receipt>> {
    let path = folder.join(format!("{name}.jsonl"));
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1))
    };
    text.lines().enumerate().map(line).collect()
}

/// Opens a file to append behind its first `len` bytes.
fn append(path: &Path, len: u64) -> Result<File> {
    let cannot = || format!("cannot write {}", path.display());
    let file = OpenOptions::new().create(true).append(true).open(path).with_context(cannot)?;
    file.set_len(len).with_context(cannot)?;
    Ok(file)
}

/// Writes receipts in the order of the questions.
pub struct Writer {
    path: PathBuf,
    file: File,
    times: File,
    /// Receipts that come after ones that are not there yet, and their seconds.
    held: BTreeMap<usize, (Receipt, String)>,
    receipts: Vec<Receipt>,
}

impl Writer {
    /// Takes the receipt of question `number`, and writes all that are due.
    pub fn put(&mut self, number: usize, receipt: Receipt, answer: &Answer) -> Result<()> {
        let Answer { seconds, cached_tokens, .. } = *answer;
        let seconds = Seconds { item: &receipt.item, sample: receipt.sample, seconds, cached_tokens };
        let seconds = serde_json::to_string(&seconds).expect("plain data") + "\n";
        self.held.insert(number, (receipt, seconds));
        while let Some((receipt, seconds)) = self.held.remove(&self.receipts.len()) {
            let line = serde_json::to_string(&receipt).expect("plain data") + "\n";
            let written = self.file.write_all(line.as_bytes()).and_then(|()| self.times.write_all(seconds.as_bytes()));
            written.with_context(|| format!("cannot write {}", self.path.display()))?;
            self.receipts.push(receipt);
        }
        Ok(())
    }

    /// How many receipts are written.
    pub fn written(&self) -> usize {
        self.receipts.len()
    }

    /// How it goes, for the progress bar.
    pub fn detail(&self) -> String {
        let right = self.receipts.iter().filter(|receipt| receipt.correct).count();
        format!("{right} of {} right ({:.1}%)", self.written(), 100.0 * right as f64 / self.written().max(1) as f64)
    }

    /// Makes the receipts durable.
    pub fn finish(self) -> Result<Vec<Receipt>> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))?;
        Ok(self.receipts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn differences_are_named() {
        let before = json!({"seed": 1, "benchmarks": [{"name": "mmlu", "shots": 5}]});
        assert_eq!(first_difference("", &before, &before), None);
        let now = json!({"seed": 1, "benchmarks": [{"name": "mmlu", "shots": 0}]});
        assert_eq!(first_difference("", &before, &now).unwrap(), "`benchmarks[0].shots` was 5 and is 0");
        let more = json!({"seed": 1, "benchmarks": [], "x": true});
        assert!(first_difference("", &before, &more).unwrap().starts_with("`benchmarks` was"));
    }
}

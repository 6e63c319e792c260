//! The ledger: what a run consumed, one JSON object a line, append-only. Each line holds the hash of the line before it
//! and of itself, so a line cannot be changed, dropped or inserted without the chain breaking there.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::checkpoint::FileRecord;
use crate::error::RunError;
use crate::files;
use crate::hash::sha256;

/// What to do about a ledger that is not as it was written.
pub(crate) const HINT: &str = "the file was changed by something other than this program; restore it from a copy";

/// The hash before the first line.
const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The event of a run that is gone on with.
pub const RESUME: &str = "resume";

/// The event of a stage without checkpoints that is done.
pub const STAGE_DONE: &str = "stage-done";

/// The event of a stage that stopped where it writes no checkpoint.
pub const STOPPED: &str = "stopped";

/// What one line says: the work since the line before, and what came out. Work that a kill destroyed is not in any
/// line. Lines of older programs lack some of these; what they lack is 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Entry {
    /// `start`, `resume`, `plan`, `checkpoint`, `stage-done`, `stopped`.
    pub event: String,
    /// `tokenizer`, `data`, `pretrain`, `sample`.
    pub stage: String,
    /// Steps of the stage that are done.
    pub step: u64,
    /// The kind of work: `prepare`, `train`, `generate`, … Totals are kept by kind.
    pub kind: String,
    /// Seconds since 1970 when the line was written; never less than in the line before (see `clock_back`).
    pub time: u64,
    /// Seconds by which the system's clock stood behind the line before. Durations come from a clock that nobody sets.
    pub clock_back: u64,
    /// Tokens consumed since the line before: learnt from, or sampled.
    pub tokens: u64,
    /// Where what was sampled is learnt from, the tokens of that, prompts included; else 0.
    pub learned_tokens: u64,
    /// Floating-point operations since the line before, as the plan counts them.
    pub flops: f64,
    /// Seconds of wall-clock since the line before in this process.
    pub seconds: f64,
    /// Seconds times devices; a machine without accelerators is one device.
    pub device_seconds: f64,
    /// Seconds of processor time, all threads together; 0 where the system does not tell.
    pub cpu_seconds: f64,
    /// Energy of the processors' packages; `None` where the machine does not tell.
    pub joules: Option<f64>,
    /// Energy of a device with memory of its own, whoever asked it to work; none where nothing counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_joules: Option<f64>,
    /// Threads that were at work.
    pub threads: usize,
    /// Ranks that worked together.
    pub ranks: usize,
    /// How many of them shared the routed experts; none where each had all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_parallel: Option<usize>,
    /// The kind of device that computed: `cpu`, `cuda`. Their bits may differ.
    pub device: String,
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
    entries: Vec<Entry>,
    /// Of each line.
    hashes: Vec<String>,
}

impl Ledger {
    /// The device that the last lines of a run's ledger were computed with, if it has any.
    pub fn device(run: &Path) -> Option<String> {
        let (mut entries, _) = Ledger::read(&run.join("ledger.jsonl")).ok()?;
        entries.pop().map(|entry| entry.device)
    }

    /// Starts a ledger without lines at `path`, if there is none.
    ///
    /// # Errors
    /// [`RunError::Io`].
    pub fn create(path: &Path) -> Result<(), RunError> {
        let make = || {
            files::open_append(path)?.sync_all()?;
            files::sync_folder(path.parent().expect("a file in a folder"))
        };
        make().map_err(RunError::io("create", path))
    }

    /// Opens the ledger at `path`. A last line without its end, left by a kill, is cut off.
    ///
    /// # Errors
    /// [`RunError::Damaged`] if there is none, or if a line does not follow from the one before it.
    pub fn open(path: &Path) -> Result<Ledger, RunError> {
        let text = read(path)?;
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let (entries, hashes) = parse(path, &text[..whole])?;
        let file = files::open_append(path).map_err(RunError::io("open", path))?;
        if whole < text.len() {
            file.set_len(whole as u64).map_err(RunError::io("repair", path))?;
        }
        Ok(Ledger { path: path.to_path_buf(), file, entries, hashes })
    }

    /// The hash of the last line: whoever publishes it fixes all lines up to it.
    pub fn head(&self) -> &str {
        self.hashes.last().map_or(GENESIS, String::as_str)
    }

    /// The hash of a line, counted from 1; that of 0 is before the first.
    pub fn hash_of_line(&self, line: usize) -> Option<&str> {
        match line.checked_sub(1) {
            None => Some(GENESIS),
            Some(index) => self.hashes.get(index).map(String::as_str),
        }
    }

    /// Reads `path` without changing it: the lines, and the hash of each.
    ///
    /// # Errors
    /// As [`open`](Ledger::open), and if its last line has no end.
    pub fn read(path: &Path) -> Result<(Vec<Entry>, Vec<String>), RunError> {
        parse(path, &read(path)?)
    }

    /// The line that says that a stage without checkpoints is done, and with which files.
    pub fn stage_done(&self, stage: &str) -> Option<&Entry> {
        self.entries.iter().rfind(|entry| entry.event == STAGE_DONE && entry.stage == stage)
    }

    /// All lines so far.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Adds a line; it is on the disk when this returns. A clock that went back is set right here, and said.
    pub fn append(&mut self, mut entry: Entry) -> Result<(), RunError> {
        let last = self.entries.last().map_or(0, |entry| entry.time);
        if entry.time < last {
            entry.clock_back = if entry.time == 0 { 0 } else { last - entry.time };
            entry.time = last;
        }
        let Ok(Value::Object(mut object)) = serde_json::to_value(&entry) else { panic!("an entry is plain data") };
        object.insert("prev_hash".into(), self.head().into());
        let hash = hash_of(&object);
        object.insert("hash".into(), hash.clone().into());
        let line = format!("{}\n", Value::Object(object));
        let write = |file: &mut File| file.write_all(line.as_bytes()).and_then(|()| file.sync_data());
        write(&mut self.file).map_err(RunError::io("append to", &self.path))?;
        self.hashes.push(hash);
        self.entries.push(entry);
        Ok(())
    }
}

/// Sums over lines of a ledger.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Tokens, learnt from or sampled.
    pub tokens: u64,
    /// Tokens of samples, and of their prompts, that were learnt from.
    pub learned_tokens: u64,
    /// Operations.
    pub flops: f64,
    /// Seconds by the clock.
    pub seconds: f64,
    /// Seconds times devices.
    pub device_seconds: f64,
    /// Seconds of processor time.
    pub cpu_seconds: f64,
    /// Energy, of the lines that know it.
    pub joules: Option<f64>,
    /// Energy of devices, of the lines that know it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_joules: Option<f64>,
    /// Money, millionths of a dollar.
    pub cost_micro_usd: u64,
    /// Greatest memory of a process.
    pub peak_rss_bytes: u64,
}

impl Totals {
    /// The sums over some lines.
    pub fn of<'a>(entries: impl Iterator<Item = &'a Entry>) -> Totals {
        entries.fold(Totals::default(), |sum, entry| Totals {
            tokens: sum.tokens.saturating_add(entry.tokens),
            learned_tokens: sum.learned_tokens.saturating_add(entry.learned_tokens),
            flops: sum.flops + entry.flops,
            seconds: sum.seconds + entry.seconds,
            device_seconds: sum.device_seconds + entry.device_seconds,
            cpu_seconds: sum.cpu_seconds + entry.cpu_seconds,
            joules: known_sum(sum.joules, entry.joules),
            device_joules: known_sum(sum.device_joules, entry.device_joules),
            cost_micro_usd: sum.cost_micro_usd.saturating_add(entry.cost_micro_usd),
            peak_rss_bytes: sum.peak_rss_bytes.max(entry.peak_rss_bytes),
        })
    }

    /// All energy that is known.
    pub fn energy_joules(&self) -> Option<f64> {
        known_sum(self.joules, self.device_joules)
    }

    /// The sums of each key, in the order in which the keys come up.
    pub fn by<'a>(entries: &'a [Entry], key: impl Fn(&'a Entry) -> &'a str) -> Vec<(&'a str, Totals)> {
        let mut keys: Vec<&str> = Vec::new();
        for entry in entries {
            if !keys.contains(&key(entry)) {
                keys.push(key(entry));
            }
        }
        keys.into_iter().map(|name| (name, Totals::of(entries.iter().filter(|entry| key(entry) == name)))).collect()
    }
}

fn known_sum(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (None, None) => None,
        (a, b) => Some(a.unwrap_or(0.0) + b.unwrap_or(0.0)),
    }
}

fn hash_of(object: &Map<String, Value>) -> String {
    sha256(serde_json::to_string(object).expect("plain data").as_bytes())
}

fn read(path: &Path) -> Result<Vec<u8>, RunError> {
    files::read(path, files::RECORDS_BYTES_MAX).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => RunError::Damaged {
            path: path.to_path_buf(),
            message: "it is missing".into(),
            hint: "restore it from a copy: without it nothing says what the run consumed, and none is begun anew"
                .into(),
        },
        _ => RunError::io("read", path)(error),
    })
}

/// The lines of a ledger, and the hash of each.
fn parse(path: &Path, text: &[u8]) -> Result<(Vec<Entry>, Vec<String>), RunError> {
    let (mut entries, mut hashes) = (Vec::new(), Vec::<String>::new());
    for (index, line) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let ended = line.strip_suffix(b"\n").ok_or_else(|| "has no end".to_string());
        let head = hashes.last().map_or(GENESIS, String::as_str);
        let (entry, hash) = ended.and_then(|line| check_line(line, head)).map_err(|message| RunError::Damaged {
            path: path.to_path_buf(),
            message: format!("line {}: {message}", index + 1),
            hint: HINT.into(),
        })?;
        entries.push(entry);
        hashes.push(hash);
    }
    Ok((entries, hashes))
}

/// A line is the one text that says what it says: a key that comes twice, of which readers may take either, or spaces
/// and numbers in another spelling are changes that the hash of its contents would not show.
fn check_line(line: &[u8], prev_hash: &str) -> Result<(Entry, String), String> {
    let mut object: Map<String, Value> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    if serde_json::to_string(&object).expect("plain data").as_bytes() != line {
        return Err("is not spelled as a ledger's lines are, or has a key twice".into());
    }
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
    use std::fs;

    fn new(path: &Path) -> Ledger {
        Ledger::create(path).unwrap();
        Ledger::open(path).unwrap()
    }

    fn entry(step: u64) -> Entry {
        Entry { event: "checkpoint".into(), step, flops: 1e15 / 3.0, seconds: 0.1 + step as f64, ..Entry::default() }
    }

    #[test]
    fn a_torn_line_is_cut_off_at_every_length() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = new(&path);
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
    fn a_clock_that_goes_back_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = new(&path);
        for time in [1000, 400, 1200] {
            ledger.append(Entry { time, ..entry(1) }).unwrap();
        }
        let (read, hashes) = Ledger::read(&path).unwrap();
        assert_eq!(
            read.iter().map(|entry| (entry.time, entry.clock_back)).collect::<Vec<_>>(),
            [(1000, 0), (1000, 600), (1200, 0)]
        );
        assert_eq!(hashes.last().unwrap(), ledger.head());
        fs::write(&path, &fs::read(&path).unwrap()[..50]).unwrap();
        assert!(Ledger::read(&path).unwrap_err().to_string().contains("line 1: has no end"));
    }

    #[test]
    fn a_line_of_an_older_program_is_read() {
        let mut object = Map::new();
        object.insert("event".into(), "checkpoint".into());
        object.insert("tokens".into(), 7.into());
        object.insert("prev_hash".into(), GENESIS.into());
        object.insert("hash".into(), hash_of(&object).into());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        fs::write(&path, format!("{}\n", Value::Object(object))).unwrap();
        let ledger = Ledger::open(&path).unwrap();
        assert_eq!((ledger.entries()[0].tokens, ledger.entries()[0].joules), (7, None));
        assert_eq!(Totals::of(ledger.entries().iter()).tokens, 7);
    }

    #[test]
    fn energy_of_a_card_is_in_lines_that_know_it_and_no_others() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = new(&path);
        ledger.append(Entry { joules: Some(1.0), ..entry(1) }).unwrap();
        assert!(!fs::read_to_string(&path).unwrap().contains("device_joules"), "as lines were before");
        ledger.append(Entry { device_joules: Some(2.5), ..entry(2) }).unwrap();
        let (read, _) = Ledger::read(&path).unwrap();
        assert_eq!(read, ledger.entries());
        let totals = Totals::of(read.iter());
        assert_eq!((totals.joules, totals.device_joules, totals.energy_joules()), (Some(1.0), Some(2.5), Some(3.5)));
        assert_eq!(Totals::of(read[..1].iter()).energy_joules(), Some(1.0));
        assert_eq!(Totals::default().energy_joules(), None);
    }

    #[test]
    fn a_lost_ledger_is_not_begun_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let error = Ledger::open(&path).unwrap_err();
        assert!(error.to_string().contains("is damaged: it is missing"), "{error}");
        assert!(!path.exists());
    }

    #[test]
    fn a_line_has_one_spelling() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        new(&path).append(entry(1)).unwrap();
        let line = fs::read_to_string(&path).unwrap();
        for (from, to) in [
            ("\"step\":1", "\"step\":9,\"step\":1"),
            ("\"step\":1", "\"step\": 1"),
            ("\"step\":1", "\"st\\u0065p\":1"),
            ("\"hash\":", "\"hash\":\"\",\"hash\":"),
            ("\"seconds\":1.1", "\"seconds\":1.10"),
        ] {
            assert!(line.contains(from));
            fs::write(&path, line.replacen(from, to, 1)).unwrap();
            let error = Ledger::read(&path).unwrap_err();
            assert!(error.to_string().contains("line 1: is not spelled as"), "{to}: {error}");
            assert!(Ledger::open(&path).is_err());
        }
    }

    #[test]
    fn every_changed_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ledger.jsonl");
        let mut ledger = new(&path);
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

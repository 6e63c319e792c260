//! Looks for what is not as it was written, in a run's directory: every file against the ledger, the ledger against
//! itself and against the recipe, the receipt against both. Nothing is changed; regular files alone are opened. Whether
//! the numbers in a checkpoint are what training gives can only be seen by training again, which is not done
//! here.
//!
//! Every name in the directory is accounted for: covered by a hash or by what it follows from, named in
//! [`Findings::not_covered`], or a problem. `docs/runs.md` lists which is which.
//!
//! Whoever rewrites every file consistently is found by two things only: repeating the work, and a receipt published
//! before.

mod folder;
mod ledger;
mod stages;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;

use crate::checkpoint::FileRecord;
use crate::files;
use crate::hash::sha256_file;
use crate::ledger::{Entry, Ledger, RESUME, STAGE_DONE};
use crate::receipt::{CHECKPOINT, METRICS, RECEIPT, Receipt};
use crate::recipe::{PRETRAIN, Recipe};
use crate::rundir::{self, FORMAT, RunError};
use folder::Folder;

pub use stages::Expected;

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Which file, within the run.
    pub path: String,
    /// What is wrong with it.
    pub message: String,
}

/// What was looked at and found.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Findings {
    /// Files that were hashed.
    pub files: u64,
    pub ledger_lines: usize,
    /// Checkpoints whose files are all there and right, by stage and step.
    pub checkpoints: Vec<(String, u64)>,
    /// What is there and could be otherwise without being found: the report, and what a stage has not finished.
    pub not_covered: Vec<String>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl Findings {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), message: message.into() });
    }
}

/// The most bytes of a list of sources, the one hashed file whose size no line of the ledger says.
const SOURCES_BYTES_MAX: u64 = 1 << 36;

/// What a run's directory has, and which of it has been accounted for.
struct Examination<'a> {
    run: &'a Path,
    recipe: Option<Recipe>,
    entries: Vec<Entry>,
    folder: Folder,
    accounted: BTreeSet<String>,
    found: Findings,
}

/// Examines the run at `path`; gives back the ledger's lines as well.
///
/// # Errors
/// [`RunError`] if it is no run, or one of a newer program.
pub fn examine(path: &Path, expected: &[Expected]) -> Result<(Findings, Vec<Entry>), RunError> {
    let mut found = Findings::default();
    rundir::check_format(path)?;
    let recipe = match Recipe::load(&path.join("recipe.toml")) {
        Ok(recipe) => Some(recipe),
        Err(error) => {
            found.problem("recipe.toml", format!("cannot be read: {error}"));
            None
        }
    };
    let folder = Folder::read(path, &mut found)?;
    let (entries, hashes) = match Ledger::read(&path.join("ledger.jsonl")) {
        Ok(read) => read,
        Err(RunError::Damaged { message, .. }) => {
            found.problem("ledger.jsonl", message);
            return Ok((found, Vec::new()));
        }
        Err(error) => {
            found.problem("ledger.jsonl", error.to_string());
            return Ok((found, Vec::new()));
        }
    };
    found.ledger_lines = entries.len();
    let mut it = Examination { run: path, recipe, entries, folder, accounted: BTreeSet::new(), found };
    it.accounted.insert("ledger.jsonl".into());
    it.check_lines();
    it.check_run_files();
    it.check_inputs();
    it.check_shards();
    it.check_receipt(&hashes);
    expected.iter().for_each(|expected| it.check_amounts(expected));
    it.check_stages();
    it.check_names();
    Ok((it.found, it.entries))
}

fn checkpoints(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(|entry| entry.event == CHECKPOINT)
}

impl Examination<'_> {
    /// Compares a file of the run with what was written.
    fn file(&mut self, name: &str, record: &FileRecord) {
        self.found.files += 1;
        self.accounted.insert(name.to_string());
        let written = record.bytes;
        match self.folder.files.get(name) {
            // Not hashed then: it may be as long as the disk is large.
            Some(bytes) if *bytes != written => {
                self.found.problem(name, format!("has {bytes} bytes, and {written} were written"));
                return;
            }
            Some(_) => {}
            None if self.folder.is_irregular(name) => return, // a problem already
            None => return self.found.problem(name, "is missing"),
        }
        match sha256_file(&self.run.join(name)) {
            Ok((hash, _)) if hash == record.sha256 => {}
            Ok((hash, _)) => self.found.problem(name, format!("has hash {hash}, and {} was written", record.sha256)),
            Err(error) => self.found.problem(name, format!("cannot be read: {error}")),
        }
    }

    /// `run.json` says what the first line of the ledger does; recipe and plan are those of the last lines that have
    /// them.
    fn check_run_files(&mut self) {
        let files = run_files(&self.entries);
        if files.is_empty() {
            self.found.problem("ledger.jsonl", "has no line of a start");
        }
        files.iter().for_each(|(name, record)| self.file(name, record));
        self.accounted.insert("run.json".into());
        let should = self.entries.first().map(|first| rundir::run_json(&first.wels_version));
        match files::read_text(&self.run.join("run.json"), files::SMALL_BYTES_MAX) {
            Ok(text) if should.is_none_or(|should| text == should) => {}
            Ok(_) => self.found.problem("run.json", "is not what the program of the ledger's first line writes"),
            Err(error) => self.found.problem("run.json", format!("cannot be read: {error}")),
        }
    }

    /// What stages without steps left behind.
    fn check_inputs(&mut self) {
        let mut files = BTreeMap::new();
        for entry in self.entries.iter().filter(|entry| entry.event == STAGE_DONE) {
            let of_stage = entry.files.iter().map(|(name, record)| (format!("{}/{name}", entry.stage), record.clone()));
            files.extend(of_stage);
        }
        for (name, record) in files {
            self.file(&name, &record);
        }
    }

    /// The shards and the list of sources against the manifest, whose own hash the ledger has.
    fn check_shards(&mut self) {
        const MANIFEST: &str = "data/manifest.json";
        if !self.accounted.contains(MANIFEST) {
            return;
        }
        let Ok(bytes) = files::read(&self.run.join(MANIFEST), files::RECORDS_BYTES_MAX) else { return };
        let Ok(manifest) = serde_json::from_slice::<serde_json::Value>(&bytes) else {
            return self.found.problem(MANIFEST, "is no manifest of shards");
        };
        for split in ["train", "validation"] {
            for shard in manifest[split]["shards"].as_array().into_iter().flatten() {
                let (Some(file), Some(hash), Some(bytes)) =
                    (shard["file"].as_str(), shard["sha256"].as_str(), shard["file_bytes"].as_u64())
                else {
                    self.found.problem(MANIFEST, "lists a shard without file, hash and size");
                    continue;
                };
                self.file(&format!("data/{file}"), &FileRecord { bytes, sha256: hash.to_string() });
            }
        }
        if let Some(hash) = manifest["corpus_sha256"].as_str() {
            self.check_sources(hash);
        }
    }

    fn check_sources(&mut self, hash: &str) {
        const SOURCES: &str = "data/sources.jsonl";
        self.found.files += 1;
        self.accounted.insert(SOURCES.into());
        match self.folder.files.get(SOURCES) {
            None => return self.found.problem(SOURCES, "is missing"),
            Some(bytes) if *bytes > SOURCES_BYTES_MAX => {
                return self.found.problem(SOURCES, format!("has {bytes} bytes, more than any list of sources"));
            }
            Some(_) => {}
        }
        match sha256_file(&self.run.join(SOURCES)) {
            Ok((read, _)) if read == hash => {}
            Ok(_) => self.found.problem(SOURCES, "is not the list that the manifest names"),
            Err(error) => self.found.problem(SOURCES, format!("cannot be read: {error}")),
        }
    }

    fn check_receipt(&mut self, hashes: &[String]) {
        self.accounted.insert(RECEIPT.into());
        if !self.folder.files.contains_key(RECEIPT) {
            if self.entries.iter().any(|entry| !entry.stage.is_empty()) {
                self.found.problem(RECEIPT, "is missing");
            }
            return;
        }
        let path = self.run.join(RECEIPT);
        let receipt = match Receipt::read(&path) {
            Ok(receipt) => receipt,
            Err(error) => return self.found.problem(RECEIPT, error.to_string()),
        };
        if !is_spelled_as_written(&path) {
            self.found.problem(RECEIPT, "is not spelled as a receipt is, or has a key twice");
        }
        let lines = receipt.ledger_lines;
        let Some(head) = lines.checked_sub(1).and_then(|last| hashes.get(last)) else {
            let message = format!("has {} lines, and the receipt knows of {lines}", self.entries.len());
            return self.found.problem("ledger.jsonl", message);
        };
        if *head != receipt.ledger_head {
            return self.found.problem("ledger.jsonl", format!("line {lines} is not the one that the receipt names"));
        }
        let Some(recipe) = &self.recipe else { return };
        let as_it_follows = Receipt::of(recipe, &self.entries[..lines], head);
        for (what, same) in [
            ("format", receipt.format == FORMAT),
            // As it is meant: an earlier version may have written the same in another order.
            ("recipe", receipt.recipe().is_ok_and(|its| its == *recipe)),
            ("name", receipt.name == as_it_follows.name),
            ("seed", receipt.seed == as_it_follows.seed),
            ("inputs", receipt.inputs == as_it_follows.inputs),
            ("checkpoints", receipt.checkpoints == as_it_follows.checkpoints),
            ("totals", receipt.totals == as_it_follows.totals),
            ("wels_version", receipt.wels_version == as_it_follows.wels_version),
        ] {
            if !same {
                self.found.problem(RECEIPT, format!("its {what} does not follow from recipe and ledger"));
            }
        }
    }

    /// The folders that a run of this recipe has, in the order in which they come; none if the recipe is not known.
    fn stages(&self) -> Option<Vec<String>> {
        let recipe = self.recipe.as_ref()?;
        let prepared: &[&str] = if recipe.pretrains() { &["tokenizer", "data", PRETRAIN] } else { &["tokenizer"] };
        let own = recipe.stages.iter().map(|stage| stage.name.as_str());
        Some(prepared.iter().copied().chain(own).chain(["sample"]).map(str::to_string).collect())
    }
}

/// Recipe and plan as the ledger has them: of a start or a resumption, or of a plan that knew more.
pub fn run_files(entries: &[Entry]) -> BTreeMap<String, FileRecord> {
    let of_run = |entry: &&Entry| ["start", RESUME, "plan"].contains(&entry.event.as_str());
    let files = entries.iter().filter(of_run).flat_map(|entry| &entry.files);
    files.map(|(name, record)| (name.clone(), record.clone())).collect()
}

/// Whether a file of JSON is what the value in it is written as: with no key twice, of which readers may take either.
fn is_spelled_as_written(path: &Path) -> bool {
    let Ok(text) = files::read_text(path, files::RECORDS_BYTES_MAX) else { return false };
    let value: Result<serde_json::Value, _> = serde_json::from_str(&text);
    value.is_ok_and(|value| rundir::json_text(&value).trim_end() == text.trim_end())
}

/// Whether a name within a run leads to a file of that run: no `..`, nothing absolute.
fn is_within(name: &str) -> bool {
    !name.is_empty() && name.split('/').all(|part| !["", ".", ".."].contains(&part)) && name != METRICS
}

#[cfg(test)]
mod tests;

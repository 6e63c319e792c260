//! Looks for what is not as it was written, in a run's directory: every file against the ledger, the ledger against
//! itself and against the recipe, the receipt against both. Nothing is changed. Whether the numbers in a checkpoint are
//! what training gives can only be seen by training again, which is not done here.
//!
//! Whoever rewrites every file consistently is found by two things only: repeating the work, and a receipt published
//! before.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{self, FileRecord};
use crate::hash::{sha256, sha256_file};
use crate::ledger::{Entry, Ledger};
use crate::receipt::{CHECKPOINT, METRICS, RECEIPT, Receipt};
use crate::recipe::Recipe;
use crate::rundir::{self, RunError};

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
    /// Lines of the ledger.
    pub ledger_lines: usize,
    /// Checkpoints whose files are all there and right, by stage and step.
    pub checkpoints: Vec<(String, u64)>,
    /// Everything that is wrong.
    pub problems: Vec<Problem>,
}

impl Findings {
    fn problem(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.problems.push(Problem { path: path.into(), message: message.into() });
    }

    /// Compares a file of the run with what was written.
    fn file(&mut self, run: &Path, name: &str, record: &FileRecord) -> bool {
        self.files += 1;
        match sha256_file(&run.join(name)) {
            Ok((hash, bytes)) if hash == record.sha256 && bytes == record.bytes => return true,
            Ok((_, bytes)) if bytes != record.bytes => {
                self.problem(name, format!("has {bytes} bytes, and {} were written", record.bytes));
            }
            Ok((hash, _)) => self.problem(name, format!("has hash {hash}, and {} was written", record.sha256)),
            Err(error) => self.problem(name, format!("cannot be read: {error}")),
        }
        false
    }
}

/// What a stage must have in its ledger, for those stages whose tokens follow from the recipe.
pub struct Expected {
    /// The stage.
    pub stage: String,
    /// Tokens after so many steps.
    pub tokens_after: Box<dyn Fn(u64) -> u64>,
    /// Operations of one token.
    pub flops_per_token: u64,
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
    check_run_files(&mut found, path, &entries);
    check_inputs(&mut found, path, &entries);
    check_shards(&mut found, path);
    check_receipt(&mut found, path, recipe.as_ref(), &entries, &hashes);
    expected.iter().for_each(|expected| check_amounts(&mut found, &entries, expected));
    let stages: BTreeSet<&str> = checkpoints(&entries).map(|entry| entry.stage.as_str()).collect();
    for stage in stages {
        check_stage(&mut found, path, stage, &entries);
    }
    Ok((found, entries))
}

fn checkpoints(entries: &[Entry]) -> impl Iterator<Item = &Entry> {
    entries.iter().filter(|entry| entry.event == CHECKPOINT)
}

/// Recipe and plan are those of the last lines that have them.
fn check_run_files(found: &mut Findings, run: &Path, entries: &[Entry]) {
    let files = run_files(entries);
    if files.is_empty() {
        found.problem("ledger.jsonl", "has no line of a start");
    }
    files.iter().for_each(|(name, record)| {
        found.file(run, name, record);
    });
}

/// Recipe and plan as the ledger has them: of a start or a resumption, or of a plan that knew more.
pub fn run_files(entries: &[Entry]) -> BTreeMap<String, FileRecord> {
    let of_run = |entry: &&Entry| ["start", "resume", "plan"].contains(&entry.event.as_str());
    let files = entries.iter().filter(of_run).flat_map(|entry| &entry.files);
    files.map(|(name, record)| (name.clone(), record.clone())).collect()
}

/// What stages without steps left behind.
fn check_inputs(found: &mut Findings, run: &Path, entries: &[Entry]) {
    let mut files = BTreeMap::new();
    for entry in entries.iter().filter(|entry| entry.event == "stage-done") {
        files.extend(entry.files.iter().map(|(name, record)| (format!("{}/{name}", entry.stage), record)));
    }
    for (name, record) in files {
        found.file(run, &name, record);
    }
}

/// The shards and the list of sources against the manifest, whose own hash the ledger has.
fn check_shards(found: &mut Findings, run: &Path) {
    let Ok(text) = fs::read_to_string(run.join("data/manifest.json")) else { return };
    let Ok(manifest) = serde_json::from_str::<serde_json::Value>(&text) else { return };
    for split in ["train", "validation"] {
        for shard in manifest[split]["shards"].as_array().into_iter().flatten() {
            let (Some(file), Some(hash), Some(bytes)) =
                (shard["file"].as_str(), shard["sha256"].as_str(), shard["file_bytes"].as_u64())
            else {
                found.problem("data/manifest.json", "lists a shard without file, hash and size");
                continue;
            };
            found.file(run, &format!("data/{file}"), &FileRecord { bytes, sha256: hash.to_string() });
        }
    }
    if let Some(hash) = manifest["corpus_sha256"].as_str() {
        found.files += 1;
        match sha256_file(&run.join("data/sources.jsonl")) {
            Ok((read, _)) if read == hash => {}
            Ok(_) => found.problem("data/sources.jsonl", "is not the list that the manifest names"),
            Err(error) => found.problem("data/sources.jsonl", format!("cannot be read: {error}")),
        }
    }
}

fn check_receipt(found: &mut Findings, run: &Path, recipe: Option<&Recipe>, entries: &[Entry], hashes: &[String]) {
    let path = run.join(RECEIPT);
    if !path.exists() {
        if checkpoints(entries).next().is_some() {
            found.problem(RECEIPT, "is missing");
        }
        return;
    }
    let receipt = match Receipt::read(&path) {
        Ok(receipt) => receipt,
        Err(error) => return found.problem(RECEIPT, error.to_string()),
    };
    let Some(head) = receipt.ledger_lines.checked_sub(1).and_then(|last| hashes.get(last)) else {
        return found.problem(
            "ledger.jsonl",
            format!("has {} lines, and the receipt knows of {}", entries.len(), receipt.ledger_lines),
        );
    };
    if *head != receipt.ledger_head {
        let line = receipt.ledger_lines;
        return found.problem("ledger.jsonl", format!("line {line} is not the one that the receipt names"));
    }
    let Some(recipe) = recipe else { return };
    let as_it_follows = Receipt::of(recipe, &entries[..receipt.ledger_lines], head);
    for (what, same) in [
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
            found.problem(RECEIPT, format!("its {what} does not follow from recipe and ledger"));
        }
    }
}

/// Tokens and operations of every checkpoint against the recipe's schedule.
fn check_amounts(found: &mut Findings, entries: &[Entry], expected: &Expected) {
    let mut tokens = 0;
    for entry in checkpoints(entries).filter(|entry| entry.stage == expected.stage) {
        tokens += entry.tokens;
        let should = (expected.tokens_after)(entry.step);
        if tokens != should {
            let step = entry.step;
            found.problem("ledger.jsonl", format!("says {tokens} tokens up to step {step}; the recipe gives {should}"));
        }
        let flops = entry.tokens as f64 * expected.flops_per_token as f64;
        if entry.flops != flops {
            let message = format!("says {} operations for step {}; its tokens give {flops}", entry.flops, entry.step);
            found.problem("ledger.jsonl", message);
        }
    }
}

fn check_stage(found: &mut Findings, run: &Path, stage: &str, entries: &[Entry]) {
    let folder = run.join(stage);
    let of_stage: Vec<&Entry> = checkpoints(entries).filter(|entry| entry.stage == stage).collect();
    check_metrics(found, &folder, stage, &of_stage);
    check_tokens(found, &folder, stage, &of_stage);
    let kept = match checkpoint::list(&folder) {
        Ok(kept) => kept,
        Err(error) => return found.problem(stage, error.to_string()),
    };
    let newest = of_stage.iter().map(|entry| entry.step).max();
    if let Some(newest) = newest.filter(|newest| kept.iter().all(|(step, _)| step != newest)) {
        found.problem(format!("{stage}/step-{newest:06}"), "the newest checkpoint is missing");
    }
    for (step, path) in kept {
        let name = format!("{stage}/step-{step:06}");
        match of_stage.iter().rfind(|entry| entry.step == step) {
            None => found.problem(name, "no line of the ledger knows this checkpoint"),
            Some(entry) => check_checkpoint(found, run, &name, &path, entry),
        }
    }
}

fn check_checkpoint(found: &mut Findings, run: &Path, name: &str, path: &PathBuf, entry: &Entry) {
    let before = found.problems.len();
    let files: BTreeMap<_, _> = entry.files.iter().filter(|(file, _)| *file != METRICS).collect();
    for (file, record) in &files {
        found.file(run, &format!("{name}/{file}"), record);
    }
    match checkpoint::done_files(path) {
        Ok(done) if done.iter().eq(files.iter().map(|(name, record)| (*name, *record))) => {}
        Ok(_) => found.problem(format!("{name}/DONE"), "lists other hashes than the ledger"),
        Err(error) => found.problem(format!("{name}/DONE"), error.to_string()),
    }
    for file in fs::read_dir(path).into_iter().flatten().flatten() {
        let file = file.file_name().to_string_lossy().into_owned();
        if file != "DONE" && !files.contains_key(&file) {
            found.problem(format!("{name}/{file}"), "was not written by the run");
        }
    }
    if found.problems.len() == before {
        found.checkpoints.push((entry.stage.clone(), entry.step));
    }
}

/// The ledger's tokens up to each checkpoint are those of the metrics, and every token of a stage took as many
/// operations as others of its kind.
fn check_tokens(found: &mut Findings, folder: &Path, stage: &str, of_stage: &[&Entry]) {
    let Ok(text) = fs::read_to_string(folder.join("metrics.jsonl")) else { return };
    let lines: Vec<&str> = text.lines().collect();
    let (mut tokens, mut learned) = (0, 0);
    let flops_of = flops_by_tokens(of_stage);
    for entry in of_stage {
        tokens += entry.tokens;
        learned += entry.learned_tokens;
        let line = entry.step.checked_sub(1).and_then(|at| lines.get(at as usize));
        let line = line.and_then(|line| serde_json::from_str::<serde_json::Value>(line).ok()).unwrap_or_default();
        let step = entry.step;
        for (what, says, key) in [("tokens", tokens, "tokens"), ("tokens learnt from", learned, "learned_tokens")] {
            if let Some(should) = line[key].as_u64().filter(|should| *should != says) {
                let message = format!("says {says} {what} up to step {step} of {stage}; the metrics say {should}");
                found.problem("ledger.jsonl", message);
            }
        }
        let should = flops_of.as_ref().map_or(entry.flops, |flops_of| flops_of(entry));
        if (entry.flops - should).abs() > 1e-9 * should.abs() {
            let message = format!("says {} operations for step {step} of {stage}; its tokens give others", entry.flops);
            found.problem("ledger.jsonl", message);
        }
    }
}

/// What a line's operations must be, from those lines of its stage that tell what a token of either kind takes; `None`
/// if no two lines do.
fn flops_by_tokens(of_stage: &[&Entry]) -> Option<impl Fn(&Entry) -> f64 + use<>> {
    let amounts = |entry: &Entry| (entry.tokens as f64, entry.learned_tokens as f64);
    let first = of_stage.first()?;
    let (t0, l0) = amounts(first);
    let (counted, learned) = if of_stage.iter().all(|entry| entry.learned_tokens == 0) {
        (first.flops / t0, 0.0)
    } else {
        let apart = |entry: &Entry| {
            let (t, l) = amounts(entry);
            t0 * l - t * l0
        };
        let other = of_stage.iter().max_by(|a, b| apart(a).abs().total_cmp(&apart(b).abs()))?;
        let (t, l) = amounts(other);
        let told = apart(other).abs() > 1e-4 * t0 * l.max(1.0);
        told.then(|| {
            ((first.flops * l - other.flops * l0) / apart(other), (t0 * other.flops - t * first.flops) / apart(other))
        })?
    };
    Some(move |entry: &Entry| counted * entry.tokens as f64 + learned * entry.learned_tokens as f64)
}

/// The beginning of the metrics up to each checkpoint is what it was when the checkpoint was written.
fn check_metrics(found: &mut Findings, folder: &Path, stage: &str, of_stage: &[&Entry]) {
    let name = format!("{stage}/metrics.jsonl");
    let records = of_stage.iter().filter_map(|entry| Some((entry.step, entry.files.get(METRICS)?)));
    let records: Vec<_> = records.collect();
    if records.is_empty() {
        return;
    }
    found.files += 1;
    let bytes = match fs::read(folder.join("metrics.jsonl")) {
        Ok(bytes) => bytes,
        Err(error) => return found.problem(name, format!("cannot be read: {error}")),
    };
    for (step, record) in records {
        let Some(beginning) = bytes.get(..record.bytes as usize) else {
            return found.problem(name, format!("ends before step {step}"));
        };
        if sha256(beginning) != record.sha256 {
            return found.problem(name, format!("a line up to step {step} is not the one that was written"));
        }
    }
}

//! Stages: checkpoints, metrics, and the amounts that the ledger says they took.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufReader, Read};

use super::{Examination, checkpoints};
use crate::checkpoint::{self, FileRecord};
use crate::files;
use crate::hash::Hasher;
use crate::ledger::Entry;
use crate::metrics;
use crate::receipt::METRICS;
use crate::recipe::PRETRAIN;
use crate::report::{SHEET, sheet_name};

/// What a stage must have in its ledger, for those stages whose tokens follow from the recipe.
pub struct Expected {
    pub stage: String,
    /// Tokens after so many steps.
    pub tokens_after: Box<dyn Fn(u64) -> u64>,
    /// Operations of one token.
    pub flops_per_token: u64,
}

impl Examination<'_> {
    /// Tokens and operations of every checkpoint against the recipe's schedule.
    pub(super) fn check_amounts(&mut self, expected: &Expected) {
        let mut tokens = 0;
        for entry in checkpoints(&self.entries).filter(|entry| entry.stage == expected.stage) {
            tokens += entry.tokens;
            let (step, should) = (entry.step, (expected.tokens_after)(entry.step));
            if tokens != should {
                let message = format!("says {tokens} tokens up to step {step}; the recipe gives {should}");
                self.found.problem("ledger.jsonl", message);
            }
            let flops = entry.tokens as f64 * expected.flops_per_token as f64;
            if entry.flops != flops {
                let message = format!("says {} operations for step {step}; its tokens give {flops}", entry.flops);
                self.found.problem("ledger.jsonl", message);
            }
        }
    }

    /// All stages that train and have a folder or a line.
    pub(super) fn check_stages(&mut self) {
        let with_lines = checkpoints(&self.entries).map(|entry| entry.stage.clone());
        let with_folders = self.folder.folders.iter().filter(|name| self.trains(name)).cloned();
        let stages: BTreeSet<String> = with_lines.chain(with_folders).collect();
        for stage in stages {
            let of_stage: Vec<Entry> =
                checkpoints(&self.entries).filter(|entry| entry.stage == stage).cloned().collect();
            self.check_metrics(&stage, &of_stage);
            self.check_sheets(&of_stage);
            self.check_tokens(&stage, &of_stage);
            self.check_checkpoints(&stage, &of_stage);
        }
    }

    /// Pictures of checkpoints, which stay when these are removed. A kill can come before they are there.
    fn check_sheets(&mut self, of_stage: &[Entry]) {
        for entry in of_stage {
            let name = format!("{}/{}", entry.stage, sheet_name(entry.step));
            if let (Some(record), true) = (entry.files.get(SHEET), self.folder.files.contains_key(&name)) {
                self.file(&name, record);
            }
        }
    }

    fn check_checkpoints(&mut self, stage: &str, of_stage: &[Entry]) {
        let done = |name: &&String| {
            let step = name.strip_prefix(stage)?.strip_prefix('/')?.strip_suffix("/DONE")?;
            checkpoint::step_of(step)
        };
        let kept: BTreeSet<u64> = self.folder.files.keys().filter_map(|name| done(&name)).collect();
        let newest = of_stage.iter().map(|entry| entry.step).max();
        if let Some(newest) = newest.filter(|newest| !kept.contains(newest)) {
            let name = format!("{stage}/{}", checkpoint::directory_name(newest));
            self.found.problem(name, "the newest checkpoint is missing");
        }
        for step in kept {
            let name = format!("{stage}/{}", checkpoint::directory_name(step));
            match of_stage.iter().rfind(|entry| entry.step == step) {
                Some(entry) => self.check_checkpoint(&name, entry),
                None => {
                    self.account_for_all_within(&name);
                    self.found.problem(name, "no line of the ledger knows this checkpoint");
                }
            }
        }
    }

    fn check_checkpoint(&mut self, name: &str, entry: &Entry) {
        let before = self.found.problems.len();
        let files: BTreeMap<String, FileRecord> =
            entry.files.iter().filter(|(file, _)| *file != METRICS).map(|(k, v)| (k.clone(), v.clone())).collect();
        for (file, record) in &files {
            self.file(&format!("{name}/{file}"), record);
        }
        let done = format!("{name}/DONE");
        match files::read_text(&self.run.join(&done), files::SMALL_BYTES_MAX) {
            Ok(text) if text == checkpoint::done_text(entry.step, &files) => {}
            Ok(_) => self.found.problem(&*done, "lists other hashes than the ledger"),
            Err(error) => self.found.problem(&*done, format!("cannot be read: {error}")),
        }
        self.accounted.insert(done);
        for file in self.account_for_all_within(name) {
            self.found.problem(file, "was not written by the run");
        }
        if self.found.problems.len() == before {
            self.found.checkpoints.push((entry.stage.clone(), entry.step));
        }
    }

    /// The names within a folder that nothing had accounted for.
    fn account_for_all_within(&mut self, folder: &str) -> Vec<String> {
        let prefix = format!("{folder}/");
        let names = self.folder.files.keys().filter(|name| name.starts_with(&prefix));
        let new: Vec<String> = names.filter(|name| !self.accounted.contains(*name)).cloned().collect();
        self.accounted.extend(new.iter().cloned());
        new
    }

    /// The beginning of the metrics up to each checkpoint is what it was when the checkpoint was written. What comes
    /// behind the last one has no hash: it is a problem if the stage is done, and else not covered.
    fn check_metrics(&mut self, stage: &str, of_stage: &[Entry]) {
        let name = format!("{stage}/metrics.jsonl");
        let records = of_stage.iter().filter_map(|entry| Some((entry.files.get(METRICS)?.clone(), entry.step)));
        let mut records: Vec<(FileRecord, u64)> = records.collect();
        if records.is_empty() {
            return; // whatever is there is not covered
        }
        records.sort_by_key(|(record, _)| record.bytes);
        self.found.files += 1;
        self.accounted.insert(name.clone());
        if let Err(message) = self.compare_beginnings(&name, &records) {
            return self.found.problem(name, message);
        }
        let covered = records.last().map_or(0, |(record, _)| record.bytes);
        let more = self.folder.files.get(&name).map_or(0, |bytes| bytes - covered);
        if more == 0 {
            return;
        }
        let last = of_stage.iter().map(|entry| entry.step).max().unwrap_or(0);
        match self.is_done(stage, last) {
            true => self.found.problem(name, format!("goes on for {more} bytes behind step {last}, the stage's last")),
            false => self.found.not_covered.push(format!("{name}, behind step {last}")),
        }
    }

    /// Hashes a file of metrics once, up to each of some lengths in ascending order.
    fn compare_beginnings(&self, name: &str, records: &[(FileRecord, u64)]) -> Result<(), String> {
        if self.folder.is_irregular(name) {
            return Err("cannot be read".into());
        }
        let has = *self.folder.files.get(name).ok_or("is missing")?;
        let unreadable = |error: std::io::Error| format!("cannot be read: {error}");
        let mut file = BufReader::new(files::open_regular(&self.run.join(name)).map_err(unreadable)?);
        let (mut hasher, mut at, mut buffer) = (Hasher::default(), 0, vec![0; 1 << 20]);
        for (record, step) in records {
            if has < record.bytes {
                return Err(format!("ends before step {step}"));
            }
            while at < record.bytes {
                let wanted = (record.bytes - at).min(buffer.len() as u64) as usize;
                file.read_exact(&mut buffer[..wanted]).map_err(unreadable)?;
                hasher.update(&buffer[..wanted]);
                at += wanted as u64;
            }
            if hasher.so_far() != record.sha256 {
                return Err(format!("a line up to step {step} is not the one that was written"));
            }
        }
        Ok(())
    }

    /// Whether a stage that has a checkpoint of step `last` does no more steps: the recipe has no more, or a stage
    /// behind it has begun.
    fn is_done(&self, stage: &str, last: u64) -> bool {
        let Some(recipe) = &self.recipe else { return false };
        if stage == PRETRAIN && last >= recipe.pretrain.steps {
            return true;
        }
        self.is_left_behind(stage)
    }

    /// Whether the ledger has lines of a stage that comes behind this one.
    pub(super) fn is_left_behind(&self, stage: &str) -> bool {
        let behind = self.stages().unwrap_or_default().into_iter().skip_while(|name| name != stage).skip(1);
        let behind: BTreeSet<String> = behind.collect();
        self.entries.iter().any(|entry| behind.contains(&entry.stage))
    }

    /// The ledger's tokens up to each checkpoint are those of the metrics, and every token of a stage took as many
    /// operations as others of its kind.
    fn check_tokens(&mut self, stage: &str, of_stage: &[Entry]) {
        let name = format!("{stage}/metrics.jsonl");
        if !self.folder.files.contains_key(&name) {
            return;
        }
        let steps: BTreeSet<u64> = of_stage.iter().map(|entry| entry.step).collect();
        let last = steps.last().copied().unwrap_or(0);
        // What cannot be read is a problem already.
        let lines = metrics::lines_where(&self.run.join(&name), last, |step| steps.contains(&step)).unwrap_or_default();
        let (mut tokens, mut learned) = (0u64, 0u64);
        let flops_of = flops_by_tokens(of_stage);
        for entry in of_stage {
            tokens = tokens.saturating_add(entry.tokens);
            learned = learned.saturating_add(entry.learned_tokens);
            let step = entry.step;
            let line: serde_json::Value =
                lines.get(&step).and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default();
            for (what, says, key) in [("tokens", tokens, "tokens"), ("tokens learnt from", learned, "learned_tokens")] {
                if let Some(should) = line[key].as_u64().filter(|should| *should != says) {
                    let message = format!("says {says} {what} up to step {step} of {stage}; the metrics say {should}");
                    self.found.problem("ledger.jsonl", message);
                }
            }
            let should = flops_of.as_ref().map_or(entry.flops, |flops_of| flops_of(entry));
            if (entry.flops - should).abs() > 1e-9 * should.abs() {
                let says = entry.flops;
                let message = format!("says {says} operations for step {step} of {stage}; its tokens give others");
                self.found.problem("ledger.jsonl", message);
            }
        }
    }
}

/// What a line's operations must be, from those lines of its stage that tell what a token of either kind takes; `None`
/// if no two lines do.
fn flops_by_tokens(of_stage: &[Entry]) -> Option<impl Fn(&Entry) -> f64 + use<>> {
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

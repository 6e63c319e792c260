//! What is in a run's directory, looked at once and without opening anything.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use super::{Examination, Findings, checkpoints};
use crate::checkpoint;
use crate::files::{UNFINISHED, is_environment_record};
use crate::ledger::STAGE_DONE;
use crate::receipt::CHECKPOINT;
use crate::recipe::{PRETRAIN, Work};
use crate::report::{PICTURES, REPORT};
use crate::rundir::RunError;

/// Names that are looked at: a run of thousands of parts and checkpoints has fewer.
const NAMES_MAX: usize = 1 << 20;

/// Problems with names that are listed one by one.
const LISTED_MAX: usize = 50;

/// Folders within folders of a run: `STAGE/model-0/part-0000.jsonl` is the deepest.
const DEPTH_MAX: usize = 2;

/// Names within the run, with `/` between their parts.
pub struct Folder {
    /// Regular files, with their lengths.
    pub files: BTreeMap<String, u64>,
    pub folders: BTreeSet<String>,
    /// Links, pipes, devices, sockets.
    irregular: BTreeSet<String>,
}

impl Folder {
    /// Lists all of the run; what is neither a file nor a folder is a problem.
    ///
    /// # Errors
    /// [`RunError::Io`] if a folder cannot be listed.
    pub fn read(run: &Path, found: &mut Findings) -> Result<Folder, RunError> {
        let mut all = Folder { files: BTreeMap::new(), folders: BTreeSet::new(), irregular: BTreeSet::new() };
        let mut left = vec![(String::new(), 0)];
        while let Some((within, depth)) = left.pop() {
            let path = run.join(&within);
            for entry in fs::read_dir(&path).map_err(RunError::io("list", &path))? {
                let entry = entry.map_err(RunError::io("list", &path))?;
                let metadata = entry.metadata().map_err(RunError::io("look at", &entry.path()))?;
                let name = format!("{within}{}", entry.file_name().to_string_lossy());
                if all.files.len() + all.folders.len() + all.irregular.len() >= NAMES_MAX {
                    found.problem(name, format!("is one of more than {NAMES_MAX} names, and not looked at"));
                    return Ok(all);
                }
                if metadata.is_file() {
                    all.files.insert(name, metadata.len());
                } else if metadata.is_dir() {
                    if depth < DEPTH_MAX {
                        left.push((format!("{name}/"), depth + 1));
                    }
                    all.folders.insert(name);
                } else {
                    all.irregular.insert(name);
                }
            }
        }
        let listed = all.irregular.iter().take(LISTED_MAX);
        listed.for_each(|name| found.problem(name, "is neither a file nor a folder, and is not opened"));
        if all.irregular.len() > LISTED_MAX {
            found.problem(".", format!("has {} such names in all", all.irregular.len()));
        }
        Ok(all)
    }

    /// Whether the name is one of what is neither a file nor a folder, or within a link.
    pub fn is_irregular(&self, name: &str) -> bool {
        name.match_indices('/').map(|(at, _)| &name[..at]).chain([name]).any(|part| self.irregular.contains(part))
    }
}

/// How a name that no check has accounted for stands.
enum NameStatus {
    /// It says nothing that anybody relies on.
    Passes,
    /// It is there by right, and nothing knows what should be in it.
    NotCovered,
    /// It is not there by right.
    Problem(&'static str),
}

impl Examination<'_> {
    /// Every name that nothing has accounted for yet.
    pub(super) fn check_names(&mut self) {
        let Some(stages) = self.stages() else { return };
        let (mut strange, mut not_covered) = (Vec::new(), Vec::new());
        let folders = self.folder.folders.iter().map(|name| (name, self.status_of_folder(name, &stages)));
        for (name, status) in folders.collect::<Vec<_>>() {
            if let NameStatus::Problem(message) = status {
                strange.push((name.clone(), message));
            }
        }
        let within = |name: &str, of: &str| name.strip_prefix(of).is_some_and(|rest| rest.starts_with('/'));
        // Of a folder that should not be there, and of what is in it, the folder alone is named.
        let outer: Vec<String> = strange.iter().map(|(name, _)| name.clone()).collect();
        strange.retain(|(name, _)| !outer.iter().any(|outer| within(name, outer)));
        for name in self.folder.files.keys().filter(|name| !self.accounted.contains(*name)) {
            if outer.iter().any(|outer| within(name, outer)) {
                continue;
            }
            match self.status_of_file(name) {
                NameStatus::Passes => {}
                NameStatus::NotCovered => not_covered.push(name.clone()),
                NameStatus::Problem(message) => strange.push((name.clone(), message)),
            }
        }
        let rest = strange.len().saturating_sub(LISTED_MAX);
        strange.into_iter().take(LISTED_MAX).for_each(|(name, message)| self.found.problem(name, message));
        if rest > 0 {
            self.found.problem(".", format!("has {rest} more names that the run has not written"));
        }
        self.found.not_covered.extend(not_covered);
    }

    fn status_of_folder(&self, name: &str, stages: &[String]) -> NameStatus {
        const FOREIGN: &str = "was not written by the run";
        let mut parts = name.split('/');
        let (Some(stage), inner, None) = (parts.next(), parts.next(), parts.next()) else {
            return if is_unfinished(name) { NameStatus::Passes } else { NameStatus::Problem(FOREIGN) };
        };
        let known = match inner {
            _ if is_unfinished(name) => true,
            None => stages.iter().any(|known| known == stage),
            Some(PICTURES) => self.draws(stage),
            Some(inner) if self.trains(stage) => checkpoint::step_of(inner).is_some(),
            Some(inner) => self.scores(stage) && inner.strip_prefix("model-").is_some_and(is_number),
        };
        if known { NameStatus::Passes } else { NameStatus::Problem(FOREIGN) }
    }

    /// Of a file in folders that are there by right.
    fn status_of_file(&self, name: &str) -> NameStatus {
        const FOREIGN: &str = "was not written by the run";
        if name == "lock" {
            return NameStatus::Passes;
        }
        if name == REPORT || is_unfinished(name) {
            return NameStatus::NotCovered;
        }
        let Some((stage, inner)) = name.split_once('/') else { return NameStatus::Problem(FOREIGN) };
        if self.asks_an_address(stage) && is_environment_record(inner) {
            return NameStatus::NotCovered;
        }
        if self.trains(stage) {
            let half_removed = || {
                let step = inner.split_once('/').and_then(|(folder, _)| checkpoint::step_of(folder));
                let done = |step| {
                    self.folder.files.contains_key(&format!("{stage}/{}/DONE", checkpoint::directory_name(step)))
                };
                step.is_some_and(|step| {
                    !done(step) && checkpoints(&self.entries).any(|entry| (&*entry.stage, entry.step) == (stage, step))
                })
            };
            // Without a checkpoint no line of the ledger knows of metrics.
            let under_way = inner == "metrics.jsonl" && !self.is_left_behind(stage);
            return match under_way || half_removed() {
                true => NameStatus::NotCovered,
                false => NameStatus::Problem(FOREIGN),
            };
        }
        // While a stage is stopped, what it has written is in no line yet.
        let names_files = |event: &str| event == CHECKPOINT || event == STAGE_DONE;
        let has_line = self.entries.iter().any(|entry| entry.stage == stage && names_files(&entry.event));
        match has_line || self.is_left_behind(stage) {
            true => NameStatus::Problem("was not written by the run, as the ledger has it"),
            false => NameStatus::NotCovered,
        }
    }

    pub(super) fn trains(&self, stage: &str) -> bool {
        let own = |recipe: &crate::recipe::Recipe| {
            recipe.stages.iter().any(|section| section.name == stage && section.work.trains())
        };
        stage == PRETRAIN || self.recipe.as_ref().is_some_and(own)
    }

    fn draws(&self, stage: &str) -> bool {
        let own = |recipe: &crate::recipe::Recipe| {
            recipe.stages.iter().any(|section| section.name == stage && section.work.is_of_pictures())
        };
        self.trains(stage) && self.recipe.as_ref().is_some_and(own)
    }

    fn asks_an_address(&self, stage: &str) -> bool {
        let asks = |work: &Work| work.answering().is_some_and(|answering| answering.task.address().is_some());
        let own = |recipe: &crate::recipe::Recipe| {
            recipe.stages.iter().any(|section| section.name == stage && asks(&section.work))
        };
        self.recipe.as_ref().is_some_and(own)
    }

    fn scores(&self, stage: &str) -> bool {
        let scores = |work: &Work| matches!(work, Work::Score(_));
        let own = |recipe: &crate::recipe::Recipe| {
            recipe.stages.iter().any(|section| section.name == stage && scores(&section.work))
        };
        self.recipe.as_ref().is_some_and(own)
    }
}

/// Whether a name is, or is within, something that was being written.
fn is_unfinished(name: &str) -> bool {
    name.split('/').any(|part| part.ends_with(UNFINISHED))
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

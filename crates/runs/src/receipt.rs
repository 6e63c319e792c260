//! `receipt.json`: what anyone needs to repeat a run and to know that they got the same: the recipe as resolved, the
//! program's version, the seed, hashes of tokenizer and data, and the hashes of every checkpoint that was ever written,
//! also of those that are no longer kept. It follows from recipe and ledger alone.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::FileRecord;
use crate::error::{FORMAT, RunError};
use crate::files;
use crate::ledger::{Entry, STAGE_DONE, Totals};
use crate::recipe::Recipe;

/// Its name in a run's directory.
pub const RECEIPT: &str = "receipt.json";

/// The ledger's event of a checkpoint.
pub const CHECKPOINT: &str = "checkpoint";

/// The receipt of a run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    /// Of run directories.
    pub format: u32,
    /// The program that did the last of it.
    pub wels_version: String,
    pub name: String,
    /// All randomness follows from it.
    pub seed: u64,
    /// The resolved recipe, TOML.
    pub recipe: String,
    /// Files that stages made before training, such as the tokenizer and the data's manifest, by stage.
    pub inputs: BTreeMap<String, BTreeMap<String, FileRecord>>,
    /// Every checkpoint, in the order in which they were written.
    pub checkpoints: Vec<CheckpointReceipt>,
    /// Lines of the ledger that this rests on.
    pub ledger_lines: usize,
    /// The hash of the last of them, which fixes all before it.
    pub ledger_head: String,
    /// The kind of device that computed all checkpoints, where that is not the processor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// What all of it took, by stage.
    pub totals: BTreeMap<String, Totals>,
}

/// One checkpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckpointReceipt {
    pub stage: String,
    /// Steps done.
    pub step: u64,
    pub files: BTreeMap<String, FileRecord>,
}

/// The name under which a checkpoint's line in the ledger has the beginning of the stage's metrics, up to its step.
pub const METRICS: &str = "../metrics.jsonl";

impl Receipt {
    /// The receipt of `recipe` and the ledger's lines.
    pub fn of(recipe: &Recipe, entries: &[Entry], head: &str) -> Receipt {
        let mut inputs: BTreeMap<String, BTreeMap<String, FileRecord>> = BTreeMap::new();
        for entry in entries.iter().filter(|entry| entry.event == STAGE_DONE) {
            inputs.entry(entry.stage.clone()).or_default().extend(entry.files.clone());
        }
        let checkpoints = entries.iter().filter(|entry| entry.event == CHECKPOINT).map(|entry| CheckpointReceipt {
            stage: entry.stage.clone(),
            step: entry.step,
            // Metrics hold times, which nobody can repeat.
            files: entry
                .files
                .iter()
                .filter(|(name, _)| *name != METRICS)
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect(),
        });
        let devices: BTreeSet<&String> =
            entries.iter().filter(|entry| entry.event == CHECKPOINT).map(|entry| &entry.device).collect();
        let device = devices.first().filter(|device| devices.len() == 1 && **device != "cpu");
        let totals = Totals::by(entries, |entry| &entry.stage);
        Receipt {
            format: FORMAT,
            wels_version: entries.last().map_or(String::new(), |entry| entry.wels_version.clone()),
            name: recipe.run.name.clone(),
            seed: recipe.run.seed,
            recipe: recipe.to_toml(),
            inputs,
            checkpoints: checkpoints.collect(),
            ledger_lines: entries.len(),
            ledger_head: head.to_string(),
            device: device.map(|device| device.to_string()),
            totals: totals
                .into_iter()
                .filter(|(stage, _)| !stage.is_empty())
                .map(|(k, v)| (k.to_string(), v))
                .collect(),
        }
    }

    /// Reads a receipt.
    ///
    /// # Errors
    /// [`RunError::Newer`] for a receipt of a newer program, [`RunError::Damaged`] for what is no receipt.
    pub fn read(path: &Path) -> Result<Receipt, RunError> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let text = files::read_text(path, files::RECORDS_BYTES_MAX).map_err(RunError::io("read", path))?;
        let damaged = |message: String| RunError::Damaged {
            path: path.to_path_buf(),
            message,
            hint: "a receipt is the receipt.json of a run".into(),
        };
        let head: Head = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        if head.format > FORMAT {
            return Err(RunError::Newer { path: path.to_path_buf(), found: head.format });
        }
        serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))
    }

    /// The recipe in it.
    ///
    /// # Errors
    /// [`RunError::Recipe`] if it is not valid.
    pub fn recipe(&self) -> Result<Recipe, RunError> {
        Ok(Recipe::parse("the receipt's recipe", &self.recipe, Path::new(""))?)
    }
}

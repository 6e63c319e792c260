//! A rank of a run, and what rank 0 has the others do: what for, is in `ranks`.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_comm::{Comm, Lost};
use wels_device::Device;
use wels_runs::recipe::{Answering, StageSection};
use wels_runs::rundir::RunDir;
use wels_tasks::{Split, Task};

use crate::blanks;
use crate::task::{self, Programs, RecordFolder};

/// A rank of a run: where it works, with what, and with whom.
pub(crate) struct Rank {
    pub run: RunDir,
    pub programs: Programs,
    pub device: Arc<dyn Device>,
    pub comm: Arc<dyn Comm>,
    /// How many ranks share the routed experts: 1 if each has all.
    pub expert_parallel: usize,
}

/// What rank 0 has the others do.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Work on the run in this directory.
    Open { run: PathBuf },
    /// Begin a stage that trains, behind its checkpoint of this step.
    Train { stage: String, behind: Option<u64> },
    /// Do the next step.
    Step,
    /// Take part in a checkpoint.
    Save,
    /// Begin the answers of one of a stage's models.
    Sample { stage: String, model: String },
    /// Answer these items.
    Answer { first: u64, end: u64 },
    /// The stage, or this model's part in it, is over for now.
    Done,
}

impl Rank {
    /// On rank 0: has the others do what it does next.
    pub fn tell(&self, command: &Command) -> Result<(), Lost> {
        match self.comm.world() {
            1 => Ok(()),
            _ => self.comm.broadcast(serde_json::to_vec(command).expect("plain data")).map(drop),
        }
    }

    /// On the others: what to do next; nothing once rank 0 is gone, or any other.
    pub fn hear(comm: &dyn Comm) -> Option<Command> {
        let command = comm.broadcast(Vec::new()).ok()?;
        Some(serde_json::from_slice(&command).expect("what rank 0 wrote"))
    }

    /// The task that a stage asks: that of a name, or the questions that an earlier stage has made.
    pub fn task(&self, of: &Answering, split: Split, stage: &str) -> Result<Box<dyn Task>> {
        match blanks::maker(self.run.recipe(), &of.task.name) {
            Some(_) => Ok(Box::new(blanks::task(&self.run, &of.task.name, split)?)),
            None => task::task(of, split, self.programs, Some(&RecordFolder::of(self, stage))),
        }
    }

    /// The section of a `[[stage]]`.
    pub fn section(&self, name: &str) -> Result<&StageSection> {
        let stages = &self.run.recipe().stages;
        stages.iter().find(|stage| stage.name == name).with_context(|| format!("the recipe has no stage {name}"))
    }
}

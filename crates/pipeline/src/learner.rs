//! What stages of kind `pretrain`, `sft`, `rl` and `distil` train: a model's weights, or an adapter of a model's.

use std::ops::{Deref, DerefMut};
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use wels_comm::Lost;
use wels_data::tokenizer::Tokenizer;
use wels_model::adapter::BaseName;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::recipe::{Optimization, Precision, Start};
use wels_train::trainer::Trainer;

use crate::adapters::name_of_base;
use crate::attention;
use crate::hyper::{of_stage, stage_execution};
use crate::rank::Rank;
use crate::start::{Beginning, model_of};
use crate::state::save_adapter;
use crate::training::Trained;

/// A trainer, and what its adapter belongs to, if that is what it trains.
pub(crate) struct Learner {
    trainer: Trainer,
    base: Option<BaseName>,
}

/// What a stage says of it.
#[derive(Clone, Copy)]
pub(crate) struct Learns<'a> {
    /// The stage's name.
    pub stage: &'a str,
    pub precision: Precision,
    pub start: &'a Start,
    pub optimization: &'a Optimization,
    /// All updates of the weights.
    pub updates: u64,
    /// The longest sequence, where that is less than the model's own.
    pub context: usize,
}

impl Learner {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(rank: &Rank, of: Learns, tokenizer: &Tokenizer, latest: Option<&Checkpoint>) -> Result<Learner> {
        let Learns { stage, precision, start, optimization, updates, context } = of;
        let (config, state) = Beginning::of(start, optimization, precision).state(rank, tokenizer, latest)?;
        attention::check(&config, &*rank.device)?;
        let base = match (&optimization.lora, start) {
            (Some(_), Start::From { from }) => {
                let run = std::path::absolute(rank.run.path())?;
                // All checkpoints of the stage are as deep.
                let to = run.join(stage).join(checkpoint::directory_name(0));
                Some(name_of_base(from, &model_of(&rank.run, from)?, &run, &to)?)
            }
            _ => None,
        };
        let context = context.min(config.rope.max_positions);
        let (hyper, execution) = (of_stage(optimization, updates), stage_execution(precision, &rank.device));
        let mut trainer = Trainer::new(config, context, state, hyper, execution).with_comm(Arc::clone(&rank.comm));
        if optimization.optimizer.mtp_lambda == 0.0 {
            trainer.freeze_mtp();
        }
        Ok(Learner { trainer, base })
    }
}

impl Deref for Learner {
    type Target = Trainer;

    fn deref(&self) -> &Trainer {
        &self.trainer
    }
}

impl DerefMut for Learner {
    fn deref_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }
}

impl Trained for Learner {
    fn updates(&self) -> u64 {
        self.trainer.updates()
    }

    fn save(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
        match &self.base {
            None => self.trainer.save(folder, tokenizer),
            Some(base) => save_adapter(&self.trainer, folder, tokenizer, base),
        }
    }

    fn join_in_saving(&self) -> Result<(), Lost> {
        self.trainer.join_in_saving()
    }
}

//! What every kind of training says about its optimizer and checkpoints: declared, read and checked here, once.

use serde::{Serialize, Serializer};

use super::Decay;
use super::reader::{RecipeError, Section};

/// What moves the matrices of a model's layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Rule {
    AdamW,
    Muon,
}

/// `[pretrain]`, and `[[stage]]` of every kind that trains: optimizer
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Optimizer {
    /// What moves the matrices of the layers: AdamW, or Muon, whose updates are as large as AdamW's and which keeps one
    /// number for each of a matrix's where AdamW keeps two. Embeddings, head, norms, biases and routers are AdamW's in
    /// any case.
    pub optimizer: Rule,
    /// Muon's μ.
    pub momentum: f64,
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Learning rate of the last update.
    pub learning_rate_min: f64,
    /// Updates of linear warm-up.
    pub warmup_steps: u64,
    /// How the learning rate falls at the end.
    #[serde(serialize_with = "decay_word")]
    pub decay: Decay,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Decoupled weight decay, on matrices, embeddings and head.
    pub weight_decay: f64,
    /// Greatest global norm of the gradient.
    pub clip_norm: f64,
    /// γ: how far a router bias moves an update.
    pub bias_update_speed: f64,
    /// α of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// Weight of the losses by which the indexers of `deepseek_v32` and `deepseek_v4` learn what attention weighs; 0
    /// leaves them as they are.
    pub indexer_weight: f64,
    /// λ of the multi-token-prediction loss; 0 in a `[[stage]]` freezes its layers.
    pub mtp_lambda: f64,
    /// S, a power of two: a batch's sequences are dealt to so many shards, whose gradients are added up by a fixed
    /// tree. Part of the result; `wels run --ranks N` with an N that divides it changes no bit.
    pub gradient_shards: usize,
}

fn decay_word<S: Serializer>(decay: &Decay, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(match decay {
        Decay::Linear => "linear",
        Decay::Cosine => "cosine",
    })
}

/// `[pretrain]`, and `[[stage]]` of every kind that trains: checkpoints
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Checkpoints {
    /// Steps between checkpoints.
    pub checkpoint_every: u64,
    /// Seconds after which a checkpoint is written whatever the step.
    pub checkpoint_seconds: u64,
    /// Checkpoints that are kept, the newest ones.
    pub keep_checkpoints: usize,
}

/// Defaults that differ between kinds.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub learning_rate: f64,
    pub warmup_steps: u64,
    pub weight_decay: f64,
    pub bias_update_speed: f64,
    pub balance_alpha: f64,
    pub indexer_weight: f64,
    pub mtp_lambda: f64,
    pub checkpoint_every: u64,
    pub checkpoint_seconds: u64,
}

impl Defaults {
    /// In `[pretrain]`
    pub fn of_pretraining(steps: u64) -> Defaults {
        Defaults {
            learning_rate: 1e-3,
            warmup_steps: (steps / 10).min(2000),
            weight_decay: 0.1,
            bias_update_speed: 1e-3,
            balance_alpha: 1e-4,
            indexer_weight: 1.0,
            mtp_lambda: 0.3,
            checkpoint_every: (steps / 5).max(1),
            checkpoint_seconds: 600,
        }
    }
}

/// In `pretrain`
pub(super) const OF_EXAMPLES: Defaults = Defaults {
    learning_rate: 2e-3,
    warmup_steps: 0,
    weight_decay: 0.1,
    bias_update_speed: 1e-3,
    balance_alpha: 1e-4,
    indexer_weight: 1.0,
    mtp_lambda: 0.3,
    checkpoint_every: 100,
    checkpoint_seconds: 120,
};

/// In `sft` and `distil`
pub(super) const OF_TUNING: Defaults = Defaults {
    learning_rate: 5e-5,
    warmup_steps: 0,
    weight_decay: 0.0,
    bias_update_speed: 0.0,
    balance_alpha: 1e-4,
    indexer_weight: 1.0,
    mtp_lambda: 0.1,
    checkpoint_every: 100,
    checkpoint_seconds: 120,
};

/// In `rl`
pub(super) const OF_REINFORCEMENT: Defaults = Defaults {
    learning_rate: 1e-6,
    warmup_steps: 0,
    weight_decay: 0.0,
    bias_update_speed: 0.0,
    balance_alpha: 0.0,
    indexer_weight: 0.0,
    mtp_lambda: 0.0,
    checkpoint_every: 100,
    checkpoint_seconds: 120,
};

/// In `vq`
pub(super) const OF_CODES: Defaults = Defaults {
    learning_rate: 2e-3,
    warmup_steps: 40,
    weight_decay: 0.0,
    bias_update_speed: 0.0,
    balance_alpha: 0.0,
    indexer_weight: 0.0,
    mtp_lambda: 0.0,
    checkpoint_every: 500,
    checkpoint_seconds: 120,
};

/// In `janus`
pub(super) const OF_PICTURES: Defaults = Defaults {
    learning_rate: 3e-3,
    warmup_steps: 40,
    weight_decay: 0.0,
    bias_update_speed: 0.0,
    balance_alpha: 0.0,
    indexer_weight: 0.0,
    mtp_lambda: 0.0,
    checkpoint_every: 500,
    checkpoint_seconds: 120,
};

/// In `draw_rl`
pub(super) const OF_DRAWING: Defaults = Defaults {
    learning_rate: 3e-4,
    warmup_steps: 5,
    weight_decay: 0.0,
    bias_update_speed: 0.0,
    balance_alpha: 0.0,
    indexer_weight: 0.0,
    mtp_lambda: 0.0,
    checkpoint_every: 50,
    checkpoint_seconds: 120,
};

impl Optimizer {
    pub(super) fn resolve(s: &mut Section, of: &Defaults) -> Result<Optimizer, RecipeError> {
        let not_negative = |x: f64| x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let learning_rate = s.get_where("learning_rate", of.learning_rate, |x| x > 0.0, "greater than 0")?;
        Ok(Optimizer {
            optimizer: s.word("optimizer", &[("adamw", Rule::AdamW), ("muon", Rule::Muon)])?,
            momentum: s.get_where("momentum", 0.95, unit, "at least 0 and below 1")?,
            learning_rate,
            learning_rate_min: s.get_where(
                "learning_rate_min",
                learning_rate / 10.0,
                |x| (0.0..=learning_rate).contains(&x),
                "between 0 and learning_rate",
            )?,
            warmup_steps: s.get_or("warmup_steps", of.warmup_steps)?,
            decay: s.word("decay", &[("cosine", Decay::Cosine), ("linear", Decay::Linear)])?,
            beta1: s.get_where("beta1", 0.9, unit, "at least 0 and below 1")?,
            beta2: s.get_where("beta2", 0.95, unit, "at least 0 and below 1")?,
            epsilon: s.get_where("epsilon", 1e-8, |x| x > 0.0, "greater than 0")?,
            weight_decay: s.get_where("weight_decay", of.weight_decay, not_negative, "0 or more")?,
            clip_norm: s.get_where("clip_norm", 1.0, |x| x > 0.0, "greater than 0")?,
            bias_update_speed: s.get_where("bias_update_speed", of.bias_update_speed, not_negative, "0 or more")?,
            balance_alpha: s.get_where("balance_alpha", of.balance_alpha, not_negative, "0 or more")?,
            indexer_weight: s.get_where("indexer_weight", of.indexer_weight, not_negative, "0 or more")?,
            mtp_lambda: s.get_where("mtp_lambda", of.mtp_lambda, not_negative, "0 or more")?,
            gradient_shards: gradient_shards(s)?,
        })
    }

    /// Refuses more shards than the smallest batch has sequences.
    pub(super) fn check_shards(&self, s: &Section, sequences: u64) -> Result<(), RecipeError> {
        let most = 1u64 << sequences.max(1).ilog2();
        if self.gradient_shards as u64 <= sequences.max(1) {
            return Ok(());
        }
        let message = format!(
            "is {}, but a batch may have no more than {sequences} sequences; at most {most} works",
            self.gradient_shards
        );
        Err(s.wrong("gradient_shards", message))
    }
}

fn gradient_shards(s: &mut Section) -> Result<usize, RecipeError> {
    let shards: usize = s.get_or("gradient_shards", 1)?;
    if shards.is_power_of_two() {
        return Ok(shards);
    }
    let below = if shards == 0 { 1 } else { 1 << shards.ilog2() };
    Err(s.wrong("gradient_shards", format!("must be a power of two, but is {shards}; {below} and {} work", 2 * below)))
}

impl Checkpoints {
    pub(super) fn resolve(s: &mut Section, of: &Defaults) -> Result<Checkpoints, RecipeError> {
        Ok(Checkpoints {
            checkpoint_every: s.get_where("checkpoint_every", of.checkpoint_every, |n| n > 0, "1 or more")?,
            checkpoint_seconds: s.get_where("checkpoint_seconds", of.checkpoint_seconds, |n| n > 0, "1 or more")?,
            keep_checkpoints: s.get_where("keep_checkpoints", 2, |n| n > 0, "1 or more")?,
        })
    }
}

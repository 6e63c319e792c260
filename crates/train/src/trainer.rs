//! The trainer and its one step, whatever the stage.
//!
//! ```text
//! gradients of the objective over the whole batch: Trainer::gradients touches no weight
//! stop if anything is not finite
//! clip by the global norm;  AdamW or Muon;  b_i += γ·sign(mean load − load_i) for every router: Trainer::update
//! ```
//! Pretraining and fine-tuning minimise the mean loss over the batch's targets plus λ/D Σ MTP losses plus
//! α Σ_layers mean balance loss, [`Trainer::step`]. Reinforcement learning gives the gradients another coefficient a
//! token, and looks at the log-probabilities before it updates.
//!
//! The batch goes through the model in micro-batches of whole sequences. All sums over tokens are chains that one
//! micro-batch continues from the one before it, and every coefficient is the whole batch's, so the split changes no
//! bit.
//!
//! With [`Hyperparameters::gradient_shards`] above 1 the chains are those of a shard of the batch, and the shards are
//! added up by a fixed tree, over ranks where there are several: `shards.rs`, `sharded.rs`.
//!
//! Source: DeepSeek-V3 report §2.1.2 (balancing), §2.2 (MTP), §4.2 (optimizer).

mod lockstep;
mod update;

pub use update::decays;
pub(crate) use update::{learnt, move_biases};

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use wels_comm::tree::Counter;
use wels_comm::{Comm, Lost, Single, tree};
use wels_device::{Coefficient, IGNORE, Tensor};
use wels_model::config::ModelConfig;
use wels_model::expert_parallel::{ExpertShare, Sent};
use wels_model::model::{Batch, Losses, Model, Objective, Teacher};
use wels_model::names::ParamSpec;
use wels_model::params::{Grads, Params};
use wels_model::tape::Execution;

use crate::experts::expert_share;
use crate::muon::Rule;
use crate::reduction::SharedReduction;
use crate::schedule::{LearningRate, Switch};
use crate::sharded::Owned;
use crate::shards;

/// The mathematics of a training: all that decides about the weights besides data and initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Learning rate of each step.
    pub learning_rate: LearningRate,
    /// What moves matrices; AdamW moves all else.
    pub rule: Rule,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Decoupled weight decay, see [`decays`].
    pub weight_decay: f64,
    /// Greatest global norm of the gradient.
    pub clip_norm: f64,
    /// γ of the router's selection biases.
    pub bias_update_speed: f64,
    /// Steps after which the biases stand still.
    pub bias_update_steps: u64,
    /// α of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// Weight of the indexers' losses, each layer's mean over the tokens; where it is 0 they stay as they are.
    pub indexer_weight: f64,
    /// λ of multi-token prediction.
    pub mtp_lambda: Switch,
    /// S, a power of two: a batch's sequences are dealt, in order, to so many shards, of which each is one chain of
    /// sums.
    pub gradient_shards: usize,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// Targets that the loss is the mean of.
    pub targets: u64,
    /// Mean negative log-likelihood of the next token, nats.
    pub loss: f64,
    /// Mean divergence from the teacher, nats; 0 without one.
    pub divergence: f64,
    /// The same as `loss` for each depth of MTP.
    pub mtp_losses: Vec<f64>,
    /// Balance loss without α, mean over sequences and layers with experts; 1 is a perfect balance.
    pub balance: f64,
    /// Mean loss of the indexers over layers and tokens, nats; `None` without, or where none learns.
    pub indexer: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
    /// Layers with experts.
    pub experts: Vec<ExpertReport>,
}

/// What one layer's router did in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertReport {
    /// The layer, MTP layers counting on from the last.
    pub layer: usize,
    /// Tokens that went to each expert.
    pub load: Vec<u64>,
    /// (greatest load − mean load) / mean load.
    pub max_violation: f64,
    /// Least and greatest selection bias after the step; `None` for routers without one.
    pub bias_range: Option<(f32, f32)>,
}

/// The gradients of a batch, and what was seen on the way; no weight has been touched.
#[derive(Debug)]
#[must_use = "gradients are for Trainer::update"]
pub struct Pass {
    /// Losses of the whole batch.
    pub losses: Losses,
    /// `[T]`: log-probability of each target, 0 for [`IGNORE`].
    pub logprobs: Vec<f32>,
    /// Sequences of the batch.
    sequences: usize,
    tokens: usize,
}

/// Why a step was not done. No weight was touched.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StepError {
    /// A loss or gradient is not a finite number.
    #[error("the {what} of step {step} is not a finite number, first in {place}; the weights are still those of step {}", step - 1)]
    NonFinite {
        /// `loss` or `gradient`.
        what: &'static str,
        /// The step that failed.
        step: u64,
        /// Layer and operation, or parameter.
        place: String,
    },
    /// Another rank is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
}

impl StepError {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            StepError::NonFinite { .. } => {
                "lower the stage's learning_rate or clip_norm, or lengthen its warmup_steps, in a recipe of another \
                 run.name"
            }
            StepError::Lost(_) => {
                "look for what that rank said last; the same command goes on from the last checkpoint"
            }
        }
        .into()
    }
}

/// A shard of a batch.
struct Part {
    sequences: Range<usize>,
    /// Whether it is the last one of this rank.
    is_last: bool,
}

/// A model in training.
pub struct Trainer {
    model: Arc<Model>,
    execution: Execution,
    hyper: Hyperparameters,
    grads: Grads,
    /// Sums over shards, of this rank and of all.
    reduction: SharedReduction,
    comm: Arc<dyn Comm>,
    /// What this rank's optimizer has of each parameter.
    owned: Arc<Owned>,
    /// One a parameter: whether it stays as it is.
    frozen: Vec<bool>,
    /// What was counted and nobody has asked for.
    sent: Sent,
    /// What is learnt and what the optimizer remembers; public, to be saved and loaded.
    pub state: State,
}

/// Everything that a step changes: saved and loaded, training goes on with the same bits. A trainer among several ranks
/// holds the optimizer's part of its own rank alone: see [`Trainer::whole_moments`].
pub struct State {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub params: Params,
    /// AdamW's mean of gradients or Muon's momentum, one a parameter; `[0, cols]` for router biases and for what an
    /// adapter leaves as it is.
    pub m: Vec<Tensor>,
    /// AdamW's mean of squared gradients, likewise; `[0, cols]` for what Muon moves.
    pub v: Vec<Tensor>,
}

impl State {
    /// Before the first step, for a training by `rule`.
    pub fn new(params: Params, rule: Rule) -> State {
        let rows = |param: usize| if params.is_learnt(param) { params.rows_here(param).len() } else { 0 };
        let zeros = |has: &dyn Fn(&ParamSpec) -> bool| -> Vec<Tensor> {
            let zeros = |(param, spec): (usize, &ParamSpec)| {
                Tensor::zeros(params.device(), if has(spec) { rows(param) } else { 0 }, spec.cols)
            };
            params.specs().iter().enumerate().map(zeros).collect()
        };
        State { step: 0, m: zeros(&|_| true), v: zeros(&|spec| !rule.is_muon(spec.kind)), params }
    }

    /// Of the routed experts those of a share alone, with what the optimizer remembers of them.
    pub fn keep_share(self, share: ExpertShare) -> State {
        let State { step, params, m, v } = self;
        let cut = |moments: Vec<Tensor>| -> Vec<Tensor> {
            let cut = |(spec, whole): (&ParamSpec, Tensor)| match share.rows(spec) {
                rows if whole.is_empty() || rows.len() == spec.rows => whole,
                rows => {
                    let values = &whole.to_host()[rows.start * spec.cols..rows.end * spec.cols];
                    Tensor::of(whole.device(), rows.len(), spec.cols, values)
                }
            };
            params.specs().iter().zip(moments).map(cut).collect()
        };
        let (m, v) = (cut(m), cut(v));
        State { step, m, v, params: params.keep_share(share) }
    }
}

impl Trainer {
    /// Trains `state` with sequences of up to `context` tokens.
    pub fn new(
        config: ModelConfig,
        context: usize,
        state: State,
        hyper: Hyperparameters,
        execution: Execution,
    ) -> Trainer {
        let model = Arc::new(Model::new(config, context));
        let indexers_stay = hyper.indexer_weight == 0.0;
        let stays =
            |(param, spec): (usize, &ParamSpec)| param < state.params.frozen() || indexers_stay && spec.is_of_indexer();
        let frozen = state.params.specs().iter().enumerate().map(stays).collect();
        // Of a share of experts the ranks are told by `with_comm`; these are the fewest.
        let (rank, world) = state.params.share().map_or((0, 1), |share| (share.place(), share.ranks()));
        let (grads, owned) = (model.grads_of(&state.params, world), Owned::new(&state.params, hyper.rule, rank, world));
        let (comm, owned): (Arc<dyn Comm>, _) = (Arc::new(Single), Arc::new(owned));
        let reduction = SharedReduction::new(&comm, &owned, &state.params, &grads);
        Trainer { model, execution, hyper, grads, reduction, comm, owned, frozen, sent: Sent::default(), state }
    }

    /// As one of several ranks, which all have the same state, or each its share of the experts, and do the same steps.
    /// Each computes the gradients of its shards, and from now on has only its own part of the optimizer's state.
    ///
    /// # Panics
    /// If the ranks do not divide the shards.
    pub fn with_comm(mut self, comm: Arc<dyn Comm>) -> Trainer {
        let shards = self.hyper.gradient_shards;
        assert!(shards.is_multiple_of(comm.world()), "{shards} gradient shards on {} ranks", comm.world());
        self.owned = Arc::new(Owned::new(&self.state.params, self.hyper.rule, comm.rank(), comm.world()));
        self.reduction = SharedReduction::new(&comm, &self.owned, &self.state.params, &self.grads);
        if comm.world() > 1 {
            self.state.m = self.owned.parts_of(&self.state.m);
            self.state.v = self.owned.parts_of(&self.state.v);
        }
        self.comm = comm;
        self
    }

    /// [`Trainer::with_comm`], where groups of `ranks` ranks share the routed experts: each keeps its own.
    ///
    /// # Panics
    /// If groups of so many do not divide the ranks, or they not the experts.
    pub fn with_experts_over(mut self, comm: Arc<dyn Comm>, ranks: usize) -> Trainer {
        if let Some(share) = expert_share(&comm, ranks).filter(|_| self.model.config().moe.is_some()) {
            self.state = self.state.keep_share(share);
        }
        self.with_comm(comm)
    }

    /// The ranks that train together.
    pub fn comm(&self) -> &Arc<dyn Comm> {
        &self.comm
    }

    /// On rank 0 the optimizer's [`State::m`] and [`State::v`], one vector a parameter, from all ranks; none on the
    /// others. All of them have to ask.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn whole_moments(&self) -> Result<[Vec<Cow<'_, [f32]>>; 2], Lost> {
        let State { params, m, v, .. } = &self.state;
        let has_squares = |param: usize| !self.hyper.rule.is_muon(params.specs()[param].kind);
        Ok([self.owned.whole(&*self.comm, m, &|_| true)?, self.owned.whole(&*self.comm, v, &has_squares)?])
    }

    /// Leaves the layers of multi-token prediction as they are: no update, no weight decay, no bias moves. Their loss
    /// is left out too, so the main model's gradients are those of its own loss alone.
    pub fn freeze_mtp(&mut self) {
        let layers = self.model.config().layers;
        let specs = self.state.params.specs().iter();
        self.frozen.iter_mut().zip(specs).for_each(|(frozen, spec)| *frozen |= spec.layer() >= Some(layers));
        self.hyper.mtp_lambda = Switch { early: 0.0, late: 0.0, late_step: 0 };
    }

    fn indexers_learn(&self) -> bool {
        self.model.config().indexer.is_some() && self.hyper.indexer_weight != 0.0
    }

    /// The mathematics.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyper
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How it computes.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Bytes that the gradients of this rank's shards take, those of shards that wait to be added up included.
    pub fn grads_bytes(&self) -> usize {
        self.grads.bytes() + self.reduction.lock().partials().bytes()
    }

    /// One step on the mean loss over the targets of `batch`, whose rows go through the model at most `micro_rows` at a
    /// time.
    ///
    /// # Errors
    /// [`StepError`]; the state is then what it was.
    ///
    /// # Panics
    /// If the batch has no target.
    pub fn step(&mut self, batch: &Batch, micro_rows: usize) -> Result<StepReport, StepError> {
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        let coefficient = 1.0 / targets as f32;
        let pass = self.gradients(batch, micro_rows, Coefficient::Uniform(coefficient))?;
        self.update(pass)
    }

    /// The gradients of the whole batch, for [`Trainer::update`]. `coefficient` is −∂loss/∂logp of the target of a row
    /// of `batch`, given its log-probability; the losses of MTP and balance are added as the hyperparameters say,
    /// MTP's divided by the number of targets.
    ///
    /// # Errors
    /// [`StepError`] if a loss is not finite, or a rank is gone.
    ///
    /// # Panics
    /// If the batch has no target.
    pub fn gradients(&mut self, batch: &Batch, micro_rows: usize, coefficient: Coefficient) -> Result<Pass, StepError> {
        self.pass(batch, micro_rows, coefficient, None)
    }

    /// The gradients of a student: [`Trainer::gradients`] of the mean, over the targets of `batch`, of the divergence
    /// from `teacher` and of the cross-entropy, as the teacher weighs them.
    ///
    /// # Errors
    /// [`StepError`] if a loss is not finite, or a rank is gone.
    ///
    /// # Panics
    /// If the batch has no target, or the teacher another vocabulary.
    pub fn gradients_towards(
        &mut self,
        teacher: &Teacher,
        batch: &Batch,
        micro_rows: usize,
    ) -> Result<Pass, StepError> {
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        let coefficient = 1.0 / targets as f32;
        self.pass(batch, micro_rows, Coefficient::Uniform(coefficient), Some(*teacher))
    }

    fn pass(
        &mut self,
        batch: &Batch,
        micro_rows: usize,
        coefficient: Coefficient,
        teacher: Option<Teacher>,
    ) -> Result<Pass, StepError> {
        let sequences = batch.starts.len() - 1;
        let mut logprobs = Vec::with_capacity(batch.tokens.len());
        let losses = self.shards(batch, micro_rows, self.objective(batch, coefficient, teacher), &mut logprobs);
        self.reduction.lock().begin_rest(&self.grads);
        let (losses, logprobs) = shards::agree(&*self.comm, self.state.step + 1, losses, logprobs)?;
        Ok(Pass { losses, logprobs, sequences, tokens: batch.tokens.len() })
    }

    /// The gradients of this rank's shards, added up in the trainer's buffers, and their losses.
    fn shards(
        &mut self,
        batch: &Batch,
        micro_rows: usize,
        objective: Objective,
        logprobs: &mut Vec<f32>,
    ) -> Result<Losses, StepError> {
        let (shards, sequences) = (self.hyper.gradient_shards, batch.starts.len() - 1);
        let (mut losses, mut failed) = (Counter::default(), None);
        self.choose_sums(batch, micro_rows);
        self.reduction.lock().begin();
        let of_rank = tree::shards_of(self.comm.rank(), self.comm.world(), shards);
        let last = of_rank.end - 1;
        for shard in of_rank {
            self.reduction.lock().partials().make_room(&mut self.grads);
            let of_shard = Part { sequences: tree::sequences_of(shard, shards, sequences), is_last: shard == last };
            let of_shard = self.shard(batch, of_shard, micro_rows, &objective, logprobs, &mut failed);
            if self.state.params.share().is_some() {
                self.attend(self.passes_of_shard(shard, batch, micro_rows));
            } else if let Some(micro) = &failed {
                return Err(self.non_finite(micro, objective.teacher));
            }
            self.grads.finish();
            self.reduction.lock().partials().take(&mut self.grads);
            losses.push(of_shard, |left: &mut Losses, right| left.add(&right));
        }
        self.reduction.lock().partials().finish();
        if self.state.params.share().is_some() {
            self.find_failure(failed, objective.teacher)?;
        }
        Ok(losses.finish().expect("a rank has shards"))
    }

    /// What the whole batch is to minimise: coefficients for all its rows.
    ///
    /// # Panics
    /// If the batch has no target.
    fn objective<'a>(
        &self,
        batch: &Batch,
        coefficient: Coefficient<'a>,
        teacher: Option<Teacher<'a>>,
    ) -> Objective<'a> {
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        assert!(targets > 0, "a batch without targets");
        let lambda = self.hyper.mtp_lambda.at(self.state.step + 1);
        let mtp_depth = self.model.config().mtp_depth.max(1);
        let sequences = batch.starts.len() - 1;
        Objective {
            coefficient,
            mtp_coefficient: (lambda / (mtp_depth * targets) as f64) as f32,
            balance_coefficient: (self.hyper.balance_alpha / sequences as f64) as f32,
            indexer_coefficient: (self.hyper.indexer_weight / batch.tokens.len() as f64) as f32,
            teacher,
        }
    }

    /// The gradients of some sequences of a batch, in the trainer's buffers, and their losses; the first micro-batch
    /// whose losses are not finite. Where ranks share the experts it goes on behind that, as the others do.
    fn shard(
        &mut self,
        batch: &Batch,
        Part { sequences, is_last }: Part,
        micro_rows: usize,
        objective: &Objective,
        logprobs: &mut Vec<f32>,
        failed: &mut Option<Batch>,
    ) -> Losses {
        let mut losses = self.losses();
        self.grads.begin();
        let mut micros = micro_batches(batch, sequences, micro_rows).peekable();
        while let Some((micro, rows)) = micros.next() {
            // Ranks that share the experts may have micro-batches in different numbers, and exchange in each.
            if is_last && micros.peek().is_none() && self.state.params.share().is_none() {
                self.grads.set_on_layer(Some(self.reduction.on_layer()));
            }
            let objective = Objective { coefficient: objective.coefficient.rows(rows), ..*objective };
            let (params, grads) = (&self.state.params, &mut self.grads);
            logprobs.extend(self.model.accumulate(params, grads, &self.execution, &micro, &objective, &mut losses));
            let sum = losses.mtp.iter().fold(losses.main.sum + losses.divergence, |sum, depth| sum + depth.sum);
            if !sum.is_finite() && failed.is_none() {
                *failed = Some(micro);
                if self.state.params.share().is_none() {
                    break;
                }
            }
        }
        self.grads.set_on_layer(None);
        losses
    }

    /// Losses of nothing, with a place for each depth of MTP and each layer with experts that a pass has.
    fn losses(&self) -> Losses {
        Losses::none(self.model.config(), self.hyper.mtp_lambda.at(self.state.step + 1) != 0.0)
    }

    /// Where the loss of a micro-batch stops being finite.
    fn non_finite(&self, micro: &Batch, teacher: Option<Teacher>) -> StepError {
        let place = self.model.first_non_finite(&self.state.params, &self.execution, micro);
        let place = place.or_else(|| self.of_teacher(teacher, micro));
        let place = place.unwrap_or_else(|| "the output head".into());
        StepError::NonFinite { what: "loss", step: self.state.step + 1, place }
    }

    fn of_teacher(&self, teacher: Option<Teacher>, micro: &Batch) -> Option<String> {
        let teacher = teacher?;
        let place = teacher.model.first_non_finite(teacher.params, &self.execution, micro)?;
        Some(format!("the teacher's {place}"))
    }

    /// Log-probability of each target of `batch` under the weights as they are, at most `micro_rows` rows at a time.
    /// Ranks share the sequences.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn logprobs(&self, batch: &Batch, micro_rows: usize) -> Result<Vec<f32>, Lost> {
        self.logprobs_of(&self.state.params, batch, micro_rows)
    }

    /// The same under other weights of the same model, those of a reference.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn logprobs_of(&self, params: &Params, batch: &Batch, micro_rows: usize) -> Result<Vec<f32>, Lost> {
        let logprobs = |(micro, _)| self.model.logprobs(params, &self.execution, &micro);
        let (rank, world, sequences) = (self.comm.rank(), self.comm.world(), batch.starts.len() - 1);
        let of_rank = |rank| tree::sequences_of(rank, world, sequences);
        let logprobs = micro_batches(batch, of_rank(rank), micro_rows).flat_map(logprobs).collect();
        if params.share().is_some() {
            let passes = |rank| pieces(&batch.starts, of_rank(rank), micro_rows).count();
            let most = (0..world).map(passes).max().expect("a world has ranks");
            (passes(rank)..most).for_each(|_| self.model.attend_forward(params, &self.execution, false));
        }
        shards::gather(&*self.comm, logprobs)
    }
}

fn bias_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate.e_score_correction_bias")
}

/// Some sequences of a batch in pieces of whole ones, as many as fit into `rows` rows, with the rows of the batch that
/// they are; a longer sequence is a piece by itself.
fn micro_batches(batch: &Batch, sequences: Range<usize>, rows: usize) -> impl Iterator<Item = (Batch, Range<usize>)> {
    pieces(&batch.starts, sequences, rows).map(|Range { start, end }| {
        let starts = &batch.starts[start..=end];
        let range = starts[0] as usize..batch.starts[end] as usize;
        let piece = Batch {
            tokens: batch.tokens[range.clone()].to_vec(),
            targets: batch.targets[range.clone()].to_vec(),
            starts: starts.iter().map(|start| start - range.start as u32).collect(),
        };
        (piece, range)
    })
}

/// The sequences of each piece.
fn pieces(starts: &[u32], sequences: Range<usize>, rows: usize) -> impl Iterator<Item = Range<usize>> {
    let mut from = sequences.start;
    std::iter::from_fn(move || {
        if from == sequences.end {
            return None;
        }
        let begin = starts[from] as usize;
        let to = starts.partition_point(|start| *start as usize <= begin + rows) - 1;
        let to = to.max(from + 1).min(sequences.end);
        Some(std::mem::replace(&mut from, to)..to)
    })
}

#[cfg(test)]
mod tests {
    use wels_cpu::testing::device;

    use super::*;
    use crate::schedule::Decay;

    fn hyper(gradient_shards: usize) -> Hyperparameters {
        let (steps, decay) = (10, Decay::Cosine);
        Hyperparameters {
            learning_rate: LearningRate { peak: 1e-2, min: 1e-3, steps, warmup_steps: 2, decay_steps: 5, decay },
            rule: Rule::AdamW,
            beta1: 0.9,
            beta2: 0.95,
            epsilon: 1e-8,
            weight_decay: 0.1,
            clip_norm: 1.0,
            bias_update_speed: 0.0,
            bias_update_steps: 0,
            balance_alpha: 0.0,
            indexer_weight: 0.0,
            mtp_lambda: Switch { early: 0.0, late: 0.0, late_step: 0 },
            gradient_shards,
        }
    }

    #[test]
    fn gradients_of_layers_are_under_way_when_the_backward_pass_ends() {
        let json = r#"{"model_type": "llama", "hidden_size": 16, "num_hidden_layers": 3, "intermediate_size": 16,
            "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 20,
            "max_position_embeddings": 16, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
        let batch = Batch {
            tokens: (0..32).map(|token| token % 20).collect(),
            targets: (1..33).map(|token| token % 20).collect(),
            starts: vec![0, 8, 16, 24, 32],
        };
        let rank = |comm: wels_comm::Threads| {
            let config = ModelConfig::from_hf_json(json).unwrap().0;
            let state = State::new(Params::init(&device(), &config, 5), Rule::AdamW);
            let trainer = Trainer::new(config, 8, state, hyper(4), Execution::new(device()));
            let mut trainer = trainer.with_comm(Arc::new(comm));
            let objective = trainer.objective(&batch, Coefficient::Uniform(1.0 / 32.0), None);
            trainer.shards(&batch, 8, objective, &mut Vec::new()).unwrap();
            let mut reduction = trainer.reduction.lock();
            let (begun, rest) = reduction.buckets().split_at(reduction.begun);
            assert!(!begun.is_empty() && begun.iter().all(|bucket| bucket.layer.is_some()));
            assert!(!rest.is_empty() && rest.iter().all(|bucket| bucket.layer.is_none()));
            reduction.begin_rest(&trainer.grads);
            reduction.finish(&trainer.grads).unwrap();
        };
        std::thread::scope(|scope| wels_comm::threads(2).into_iter().for_each(|comm| drop(scope.spawn(|| rank(comm)))));
    }

    #[test]
    fn micro_batches_are_whole_sequences() {
        let starts = vec![0, 3, 4, 9, 10];
        let batch = Batch { tokens: (0..10).collect(), targets: (1..11).collect(), starts };
        let cut = |rows| micro_batches(&batch, 0..4, rows).map(|(it, _)| (it.tokens, it.starts)).collect::<Vec<_>>();
        let middle: Vec<_> = micro_batches(&batch, 1..3, 100).map(|(it, rows)| (it.starts, rows)).collect();
        assert_eq!(middle, [(vec![0, 1, 6], 3..9)]);
        let expected: [(Vec<u32>, Vec<u32>); 3] =
            [(vec![0, 1, 2, 3], vec![0, 3, 4]), (vec![4, 5, 6, 7, 8], vec![0, 5]), (vec![9], vec![0, 1])];
        assert_eq!(cut(4), expected);
        assert_eq!(cut(100).len(), 1);
        for rows in 1..12 {
            let tokens: Vec<u32> = cut(rows).into_iter().flat_map(|(tokens, _)| tokens).collect();
            assert_eq!(tokens, batch.tokens, "{rows} rows");
        }
    }
}

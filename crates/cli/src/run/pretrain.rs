//! The stage `pretrain`: steps, metrics, validation, checkpoints, until the steps of the recipe are done or the user
//! stops.
//!
//! What a step computes is in `wels_train::trainer`; this decides when to write what.

use std::f64::consts::LN_2;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::loader::{self, Fim, FimRate, Loader, LoaderConfig};
use wels_data::shards::Dataset;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::gemm;
use wels_model::count;
use wels_model::model::Batch;
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};
use wels_model::tensor::Pool;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::metrics::{self, Metrics};
use wels_runs::plan::stages::{TokenFlops, Tokens};
use wels_runs::receipt::METRICS;
use wels_runs::recipe::{Precision, PretrainSection, Recipe};
use wels_runs::rundir::{RunError, write_json};
use wels_train::schedule::{LearningRate, Switch};
use wels_train::trainer::{Hyperparameters, NonFinite, State, StepReport, Trainer};

use super::stage::{checkpoint_entry, enter_late, load_state, save_state};
use super::{Outcome, Session};
use crate::bench::fma_peak_flops;
use crate::output::short;
use crate::progress::Progress;

/// The stage's name in the run and in the ledger.
const STAGE: &str = wels_runs::recipe::PRETRAIN;

/// `state.json` of a checkpoint.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Position {
    /// Steps done.
    step: u64,
    /// Tokens of these steps: where in the stream of sequences the next one begins.
    tokens: u64,
}

/// One line of `metrics.jsonl`. What comes after `validation` depends on the machine, all before it on the recipe
/// alone.
#[derive(Serialize)]
struct Line {
    #[serde(flatten)]
    position: Position,
    loss: f64,
    mtp_losses: Vec<f64>,
    balance: f64,
    grad_norm: f64,
    learning_rate: f64,
    experts: Vec<ExpertLine>,
    validation: Option<Validation>,
    seconds: f64,
    tokens_per_second: f64,
    mfu: f64,
}

#[derive(Serialize)]
struct ExpertLine {
    layer: usize,
    max_violation: f64,
    bias_range: Option<(f32, f32)>,
    load: Vec<u64>,
}

/// The model on held-out text.
#[derive(Clone, Copy, Serialize)]
struct Validation {
    nll: f64,
    bits_per_byte: f64,
}

struct Pretraining<'a> {
    recipe: &'a Recipe,
    tokenizer: &'a Tokenizer,
    stage: PathBuf,
    trainer: Trainer,
    train: Loader,
    validation: Loader,
    byte_lengths: Vec<u32>,
    metrics: Metrics,
    position: Position,
    flops_per_token: u64,
    peak_flops: f64,
}

/// Trains until the recipe's steps are done or the user stops.
pub(super) fn pretrain(
    session: &mut Session,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    dataset: Arc<Dataset>,
) -> Result<Outcome> {
    let stage = session.run.stage(STAGE)?;
    let latest = checkpoint::latest(&stage)?;
    if let Some(latest) = &latest {
        let Position { step, tokens } = Position::read(&latest.path)?;
        let tokens = Tokens { counted: tokens, learned: 0 };
        enter_late(session, STAGE, latest, step, tokens, TokenFlops::counted(flops_per_token(recipe)))?;
    }
    if latest.as_ref().is_some_and(|latest| latest.step == recipe.pretrain.steps) {
        return Ok(Outcome::Done);
    }
    let mut it = Pretraining::prepare(recipe, tokenizer, dataset, stage, latest)?;
    let mut progress = Progress::new("pretrain", "steps", it.position.step, Some(recipe.pretrain.steps));
    let (mut saved, mut saved_at) = (it.position, Instant::now());
    let mut shown = String::new();
    while it.position.step < recipe.pretrain.steps {
        let line = match it.step() {
            Ok(line) => line,
            Err(error) => return Err(it.keep_after(error, saved)),
        };
        it.metrics.append(&line)?;
        if let Some(text) = line.validation_in_words() {
            progress.line(&text);
        }
        shown = format!("{}, {}", line.in_words(), session.spent_in_words());
        progress.at(it.position.step, || shown.clone());
        let section = &recipe.pretrain;
        let (sequence_length, since_saved) = (recipe.data.sequence_length, it.position.tokens - saved.tokens);
        let next_tokens = section.batch_tokens_after(it.position.tokens, sequence_length);
        let over_budget = session.over_budget(since_saved, next_tokens, line.seconds);
        let asked = session.interrupt.asked() || over_budget.is_some();
        let due = it.position.step.is_multiple_of(section.checkpoint_every)
            || it.position.step == section.steps
            || saved_at.elapsed().as_secs() >= section.checkpoint_seconds;
        if asked || due {
            let written = it.save().context("cannot save a checkpoint")?;
            checkpoint::prune(&it.stage, section.keep_checkpoints)?;
            let tokens = Tokens { counted: since_saved, learned: 0 };
            let flops = TokenFlops::counted(it.flops_per_token);
            session.record(checkpoint_entry(STAGE, &written, tokens, flops)?)?;
            (saved, saved_at) = (it.position, Instant::now());
        }
        if asked && it.position.step < section.steps {
            progress.finish(&format!("stopped after step {}", it.position.step));
            return Ok(over_budget.map_or(Outcome::Interrupted, Outcome::OverBudget));
        }
    }
    progress.finish(&format!("{} steps done; {shown}", recipe.pretrain.steps));
    Ok(Outcome::Done)
}

/// Forward and backward of one token.
pub(crate) fn flops_per_token(recipe: &Recipe) -> u64 {
    let context = count::Context::Causal { tokens: recipe.data.sequence_length };
    count::forward_flops(recipe.model.config(), context).training().0
}

impl Position {
    /// The position in a checkpoint's folder.
    fn read(folder: &Path) -> Result<Position> {
        let file = folder.join("state.json");
        let text = std::fs::read_to_string(&file).map_err(RunError::io("read", &file))?;
        serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
    }
}

impl<'a> Pretraining<'a> {
    fn prepare(
        recipe: &'a Recipe,
        tokenizer: &'a Tokenizer,
        dataset: Arc<Dataset>,
        stage: PathBuf,
        latest: Option<Checkpoint>,
    ) -> Result<Pretraining<'a>> {
        let config = recipe.model.config();
        let (state, position) = match &latest {
            None => (State::new(Params::init(config, recipe.run.seed)), Position { step: 0, tokens: 0 }),
            Some(checkpoint) => {
                let position = Position::read(&checkpoint.path)?;
                let state = load_state(config, &checkpoint.path, position.step)
                    .with_context(|| format!("cannot go on from {}", checkpoint.path.display()))?;
                (state, position)
            }
        };
        let metrics = Metrics::open(&stage.join("metrics.jsonl"), position.step)?;
        let context = recipe.data.sequence_length;
        let execution = execution(&recipe.pretrain);
        let trainer = Trainer::new(config.clone(), context, state, hyperparameters(&recipe.pretrain), execution);
        let loader_config = loader_config(recipe, tokenizer);
        Ok(Pretraining {
            recipe,
            tokenizer,
            stage,
            trainer,
            train: Loader::train(Arc::clone(&dataset), loader_config.clone()),
            validation: Loader::validation(dataset, loader_config),
            byte_lengths: tokenizer.byte_lengths(),
            metrics,
            position,
            flops_per_token: flops_per_token(recipe),
            peak_flops: fma_peak_flops(),
        })
    }

    /// One step, and a validation if it is time for one.
    fn step(&mut self) -> Result<Line, NonFinite> {
        let (section, sequence_length) = (&self.recipe.pretrain, self.recipe.data.sequence_length);
        let started = Instant::now();
        let tokens = section.batch_tokens_after(self.position.tokens, sequence_length);
        let sequence = sequence_length as u64;
        let batch = self.train.batch(self.position.tokens / sequence, (tokens / sequence) as usize);
        let report = self.trainer.step(&model_batch(batch), self.micro_rows())?;
        self.position = Position { step: report.step, tokens: self.position.tokens + tokens };
        let seconds = started.elapsed().as_secs_f64();
        let last = report.step == section.steps;
        let validation = (last || report.step.is_multiple_of(section.validate_every)).then(|| self.validate());
        if validation.is_some() {
            // What else the machine does may have stopped since the last look.
            self.peak_flops = self.peak_flops.max(fma_peak_flops());
        }
        let tokens_per_second = tokens as f64 / seconds;
        let mfu = tokens_per_second * self.flops_per_token as f64 / self.peak_flops;
        Ok(Line::new(report, self.position, validation, seconds, tokens_per_second, mfu))
    }

    fn micro_rows(&self) -> usize {
        self.recipe.pretrain.micro_batch * self.recipe.data.sequence_length
    }

    /// Sequences spread evenly over the held-out documents, always the same ones.
    fn validate(&self) -> Validation {
        let held_out = self.validation.sequences();
        let sequences = (self.recipe.pretrain.validate_sequences as u64).min(held_out);
        let (mut nll, mut targets, mut bytes) = (0.0, 0, 0);
        for i in 0..sequences {
            let batch = self.validation.batch(i * held_out / sequences, 1);
            targets += batch.target_count();
            bytes += batch.target_bytes(&self.byte_lengths);
            let logprobs = self.trainer.logprobs(&model_batch(batch), self.micro_rows());
            nll = logprobs.iter().fold(nll, |nll, logp| nll - f64::from(*logp));
        }
        Validation { nll: nll / targets as f64, bits_per_byte: nll / LN_2 / bytes as f64 }
    }

    /// Saves what was reached before a step failed, and passes the failure on.
    fn keep_after(&mut self, failure: NonFinite, saved: Position) -> anyhow::Error {
        let kept = if self.position.step > saved.step { self.save().map(|_| ()) } else { Ok(()) };
        match kept {
            Ok(()) => failure.into(),
            Err(error) => error.context(failure),
        }
    }

    /// Writes a checkpoint: a Hugging Face directory, and beside it what is needed to go on.
    fn save(&mut self) -> Result<Checkpoint> {
        self.metrics.sync()?;
        let state = &self.trainer.state;
        let config = self.trainer.model().config();
        checkpoint::write(&self.stage, self.position.step, |folder| {
            save_state(folder, config, state, self.tokenizer)?;
            Ok(write_json(&folder.join("state.json"), &self.position)?)
        })
    }
}

/// The stage once more, from one of its checkpoints or from nothing, in a folder of its own.
pub(crate) struct Replay<'a>(Pretraining<'a>);

impl<'a> Replay<'a> {
    /// Begins behind the checkpoint `from`, or at the first step. `scratch` is an empty folder.
    pub(crate) fn begin(
        recipe: &'a Recipe,
        tokenizer: &'a Tokenizer,
        dataset: Arc<Dataset>,
        scratch: &Path,
        from: Option<Checkpoint>,
    ) -> Result<Replay<'a>> {
        if let Some(from) = &from {
            // The lines that lead to the checkpoint, as the run has them.
            let metrics = from.path.join(METRICS);
            let beginning = metrics::beginning(&metrics, from.step)?;
            let bytes = std::fs::read(&metrics).map_err(RunError::io("read", &metrics))?;
            let copy = scratch.join("metrics.jsonl");
            std::fs::write(&copy, &bytes[..beginning.bytes as usize]).map_err(RunError::io("write", &copy))?;
        }
        Ok(Replay(Pretraining::prepare(recipe, tokenizer, dataset, scratch.to_path_buf(), from)?))
    }
}

impl crate::verify::Replay for Replay<'_> {
    fn step(&mut self) -> Result<(u64, serde_json::Value)> {
        let line = self.0.step()?;
        // By way of text, as in the file: an f32 is written with as many digits as tell it from its neighbours.
        Ok((line.position.step, serde_json::from_str(&serde_json::to_string(&line)?)?))
    }

    fn save(&mut self) -> Result<Checkpoint> {
        self.0.save()
    }
}

/// The recipe's mathematics, as the trainer takes it.
pub(crate) fn hyperparameters(section: &PretrainSection) -> Hyperparameters {
    Hyperparameters {
        learning_rate: LearningRate {
            peak: section.learning_rate,
            min: section.learning_rate_min,
            steps: section.steps,
            warmup_steps: section.warmup_steps,
            decay_steps: section.decay_steps,
            decay: section.decay,
        },
        beta1: section.beta1,
        beta2: section.beta2,
        epsilon: section.epsilon,
        weight_decay: section.weight_decay,
        clip_norm: section.clip_norm,
        bias_update_speed: section.bias_update_speed,
        bias_update_steps: section.bias_update_steps,
        balance_alpha: section.balance_alpha,
        mtp_lambda: Switch {
            early: section.mtp_lambda,
            late: section.mtp_lambda_late,
            late_step: section.mtp_lambda_late_step,
        },
    }
}

/// The recipe's way to compute, as the model takes it.
pub(crate) fn execution(section: &PretrainSection) -> Execution {
    if section.precision == Precision::F16 && !gemm::half::is_native() {
        eprintln!("note: this machine has no AVX512-FP16: f16 products are emulated, ten times slower than f32");
    }
    Execution {
        pool: Pool::new(),
        precision: section.precision,
        recompute: Recompute::Layers(section.recompute_layers.clone()),
    }
}

fn loader_config(recipe: &Recipe, tokenizer: &Tokenizer) -> LoaderConfig {
    let special = tokenizer.special();
    let marks = (special.fim_begin, special.fim_hole, special.fim_end);
    let fim = match marks {
        (Some(begin), Some(hole), Some(end)) if recipe.data.fim_rate > 0.0 => {
            Some(Fim { rate: FimRate::new(recipe.data.fim_rate), begin, hole, end })
        }
        _ => None,
    };
    LoaderConfig {
        seq_len: recipe.data.sequence_length,
        seed: recipe.run.seed,
        bos: special.bos,
        eos: special.eos,
        fim,
        window: recipe.data.shuffle_window,
        mask_documents: recipe.data.mask_documents,
    }
}

fn model_batch(batch: loader::Batch) -> Batch {
    Batch { tokens: batch.tokens, targets: batch.targets, starts: batch.starts }
}

impl Line {
    fn new(
        report: StepReport,
        position: Position,
        validation: Option<Validation>,
        seconds: f64,
        tokens_per_second: f64,
        mfu: f64,
    ) -> Line {
        let experts = report.experts.into_iter().map(|experts| ExpertLine {
            layer: experts.layer,
            max_violation: experts.max_violation,
            bias_range: experts.bias_range,
            load: experts.load,
        });
        Line {
            position,
            loss: report.loss,
            mtp_losses: report.mtp_losses,
            balance: report.balance,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            experts: experts.collect(),
            validation,
            seconds,
            tokens_per_second,
            mfu,
        }
    }

    /// The greatest violation of balance in any layer; `None` without experts.
    fn max_violation(&self) -> Option<f64> {
        self.experts.iter().map(|experts| experts.max_violation).reduce(f64::max)
    }

    fn in_words(&self) -> String {
        let mut text = format!("loss {:.3}", self.loss);
        if let Some(violation) = self.max_violation() {
            text += &format!(", MaxViolation {violation:.2}");
        }
        text += &format!(", {} tok/s, MFU {:.0}%", short(self.tokens_per_second), 100.0 * self.mfu);
        text
    }

    fn validation_in_words(&self) -> Option<String> {
        let Validation { nll, bits_per_byte } = self.validation?;
        let step = self.position.step;
        let mut text = format!("{:>9} step {step}: loss {nll:.3}, {bits_per_byte:.3} bits per byte", "validate");
        if let Some(violation) = self.max_violation() {
            text += &format!(", MaxViolation {violation:.2}");
        }
        Some(text)
    }
}

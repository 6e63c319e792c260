//! The stage `[pretrain]`: the mean loss over text, with validations on held-out documents.
//!
//! What a step computes is in `wels_train::trainer`; when what is written, in `training`.

use std::f64::consts::LN_2;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use wels_data::loader::{self, Fim, FimRate, Loader, LoaderConfig};
use wels_data::shards::Dataset;
use wels_data::tokenizer::Tokenizer;
use wels_model::count;
use wels_model::model::Batch;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{PRETRAIN, Recipe, Start};
use wels_train::doctor::{Learnt, LossDoctor};
use wels_train::trainer::{StepReport, Trainer};

use crate::doctor;
use crate::experts::ExchangeLine;
use crate::host::Event;
use crate::hyper::{execution, of_pretraining, slow_precision};
use crate::measure::peak_flops;
use crate::rank::Rank;
use crate::session::Session;
use crate::start::Beginning;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// One line of `metrics.jsonl`. The last three depend on the machine, all before them on the recipe alone.
#[derive(Serialize)]
pub(crate) struct PretrainMetrics {
    step: u64,
    tokens: u64,
    loss: f64,
    mtp_losses: Vec<f64>,
    balance: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    indexer_loss: Option<f64>,
    grad_norm: f64,
    learning_rate: f64,
    experts: Vec<ExpertLine>,
    validation: Option<Validation>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<ExchangeLine>,
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

/// The stage under way.
pub(crate) struct Pretraining<'a> {
    recipe: &'a Recipe,
    trainer: Trainer,
    train: Loader,
    validation: Loader,
    byte_lengths: Vec<u32>,
    flops_per_token: u64,
    peak_flops: f64,
    doctor: LossDoctor,
}

/// Does what is left of the stage.
pub(crate) fn pretrain(
    session: &mut Session,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    dataset: Arc<Dataset>,
) -> Result<()> {
    let section = &recipe.pretrain;
    let stage = Stage {
        name: PRETRAIN,
        label: PRETRAIN,
        tokenizer,
        checkpoints: &section.checkpoints,
        steps: section.steps,
        samples: false,
        flops: TokenFlops::counted(flops_per_token(recipe)),
    };
    let Some((running, latest)) = stage.open(session)? else { return Ok(()) };
    if let Some(note) = slow_precision(section) {
        session.host.event(Event::Note(note));
    }
    let pretraining = Pretraining::begin(&session.rank, recipe, tokenizer, dataset, latest.as_ref())?;
    running.run(session, pretraining)
}

/// Forward and backward of one token.
pub(crate) fn flops_per_token(recipe: &Recipe) -> u64 {
    let context = count::Context::Causal { tokens: recipe.data.sequence_length };
    count::forward_flops(recipe.model.config(), context).training().0
}

impl<'a> Pretraining<'a> {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        recipe: &'a Recipe,
        tokenizer: &Tokenizer,
        dataset: Arc<Dataset>,
        latest: Option<&Checkpoint>,
    ) -> Result<Pretraining<'a>> {
        let start = Start::New { model: Box::new(recipe.model.clone()) };
        let (_, state) = Beginning::of_all(&start, &recipe.pretrain.optimizer, recipe.pretrain.precision)
            .state(rank, tokenizer, latest)?;
        let config = recipe.model.config().clone();
        let (context, section) = (recipe.data.sequence_length, &recipe.pretrain);
        let trainer = Trainer::new(config, context, state, of_pretraining(section), execution(section, &rank.device))
            .with_comm(Arc::clone(&rank.comm));
        let loader_config = loader_config(recipe, tokenizer);
        Ok(Pretraining {
            recipe,
            trainer,
            train: Loader::train(Arc::clone(&dataset), loader_config.clone()),
            validation: Loader::validation(dataset, loader_config),
            byte_lengths: tokenizer.byte_lengths(),
            flops_per_token: flops_per_token(recipe),
            peak_flops: 0.0,
            doctor: doctor::of_losses(&rank.run, PRETRAIN, latest)?,
        })
    }

    fn tokens_after(&self, at: Position) -> u64 {
        self.recipe.pretrain.batch_tokens_after(at.tokens, self.recipe.data.sequence_length)
    }

    fn micro_rows(&self) -> usize {
        self.recipe.pretrain.micro_batch * self.recipe.data.sequence_length
    }

    /// The device's limit, for rank 0, which has a line to write.
    fn device_limit(&self) -> f64 {
        let device = &**self.trainer.state.params.device();
        if self.trainer.comm().rank() == 0 { peak_flops(device, self.recipe.pretrain.precision) } else { f64::INFINITY }
    }

    /// Sequences spread evenly over the held-out documents, always the same ones.
    fn validate(&self) -> Result<Validation> {
        let held_out = self.validation.sequences();
        let sequences = (self.recipe.pretrain.validate_sequences as u64).min(held_out);
        let (mut nll, mut targets, mut bytes) = (0.0, 0, 0);
        for i in 0..sequences {
            let batch = self.validation.batch(i * held_out / sequences, 1);
            targets += batch.target_count();
            bytes += batch.target_bytes(&self.byte_lengths);
            let logprobs = self.trainer.logprobs(&model_batch(batch), self.micro_rows())?;
            nll = logprobs.iter().fold(nll, |nll, logp| nll - f64::from(*logp));
        }
        Ok(Validation { nll: nll / targets as f64, bits_per_byte: nll / LN_2 / bytes as f64 })
    }
}

impl Training for Pretraining<'_> {
    type Metrics = PretrainMetrics;

    /// One step, and a validation if it is time for one.
    fn step(&mut self, at: Position) -> Result<(Position, PretrainMetrics)> {
        let section = &self.recipe.pretrain;
        let started = Instant::now();
        let tokens = self.tokens_after(at);
        let sequence = self.recipe.data.sequence_length as u64;
        let batch = self.train.batch(at.tokens / sequence, (tokens / sequence) as usize);
        let report = self.trainer.step(&model_batch(batch), self.micro_rows())?;
        let position = Position { step: report.step, updates: report.step, tokens: at.tokens + tokens, ..at };
        let seconds = started.elapsed().as_secs_f64();
        let last = report.step == section.steps;
        let validation =
            (last || report.step.is_multiple_of(section.validate_every)).then(|| self.validate()).transpose()?;
        if validation.is_some() || self.peak_flops == 0.0 {
            // What else the machine does may have stopped since the last look.
            self.peak_flops = self.peak_flops.max(self.device_limit());
        }
        let tokens_per_second = tokens as f64 / seconds;
        let mfu = tokens_per_second * self.flops_per_token as f64 / self.peak_flops;
        let warnings = self.doctor.look(seen(&report, validation));
        let line = PretrainMetrics::new(report, position, validation, seconds, tokens_per_second, mfu);
        Ok((position, PretrainMetrics { warnings, exchange: ExchangeLine::of(&mut self.trainer), ..line }))
    }

    fn trained(&self) -> &dyn Trained {
        &self.trainer
    }

    fn next_tokens(&self, at: Position) -> Option<u64> {
        Some(self.tokens_after(at))
    }

    fn state(&self, position: Position) -> Value {
        json!({"step": position.step, "tokens": position.tokens})
    }

    fn in_words(&self, line: &PretrainMetrics) -> String {
        line.in_words()
    }

    fn remarks(&self, line: &PretrainMetrics) -> Vec<String> {
        line.validation_in_words().into_iter().chain(doctor::in_lines(&line.warnings)).collect()
    }
}

fn seen(report: &StepReport, validation: Option<Validation>) -> Learnt {
    Learnt {
        loss: report.loss,
        grad_norm: report.grad_norm,
        loads: report.experts.iter().map(|experts| (experts.layer, experts.load.clone())).collect(),
        held_out: validation.map(|validation| validation.nll),
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

impl PretrainMetrics {
    fn new(
        report: StepReport,
        position: Position,
        validation: Option<Validation>,
        seconds: f64,
        tokens_per_second: f64,
        mfu: f64,
    ) -> PretrainMetrics {
        let experts = report.experts.into_iter().map(|experts| ExpertLine {
            layer: experts.layer,
            max_violation: experts.max_violation,
            bias_range: experts.bias_range,
            load: experts.load,
        });
        PretrainMetrics {
            step: position.step,
            tokens: position.tokens,
            loss: report.loss,
            mtp_losses: report.mtp_losses,
            balance: report.balance,
            indexer_loss: report.indexer,
            grad_norm: report.grad_norm,
            learning_rate: report.learning_rate,
            experts: experts.collect(),
            validation,
            warnings: Vec::new(),
            exchange: None,
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
        let step = self.step;
        let mut text = format!("{:>9} step {step}: loss {nll:.3}, {bits_per_byte:.3} bits per byte", "validate");
        if let Some(violation) = self.max_violation() {
            text += &format!(", MaxViolation {violation:.2}");
        }
        Some(text)
    }
}

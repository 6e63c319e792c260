//! What all stages that train share: where the weights come from, the loop over steps, metrics, checkpoints, the
//! ledger's lines; and doing a stretch of steps again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::gemm::Precision;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::gguf::GgufFile;
use wels_model::params::Params;
use wels_model::weights;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::ledger::{Entry, Totals};
use wels_runs::metrics::{self, Metrics};
use wels_runs::plan::stages::{TokenFlops, Tokens};
use wels_runs::receipt::{CHECKPOINT, METRICS};
use wels_runs::recipe::{self, Answering, Optimization, Start};
use wels_runs::rundir::{RunDir, RunError, write_json};
use wels_runs::tensors;
use wels_train::rollout::RolloutOptions;
use wels_train::schedule::{LearningRate, Switch};
use wels_train::trainer::{Hyperparameters, State, Trainer};

use super::{Outcome, Session, TRAIN};
use crate::failure::refuse;
use crate::model::{Location, in_directory, load_params, locate, read_tokenizer};
use crate::progress::Progress;
use crate::verify::Replay;

/// The largest file of weights that is written.
const WEIGHTS_FILE_BYTES: u64 = 4 << 30;

/// Where a stage stands: `state.json` of its checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Position {
    /// Steps done.
    pub step: u64,
    /// Updates of the weights in these steps.
    pub updates: u64,
    /// Tokens learnt from or sampled.
    pub tokens: u64,
    /// Where what was sampled is learnt from, the tokens of that, prompts included.
    #[serde(default)]
    pub learned_tokens: u64,
    /// Items of the task that were asked for.
    pub items: u64,
}

impl Position {
    /// Of either kind.
    fn all_tokens(self) -> Tokens {
        Tokens { counted: self.tokens, learned: self.learned_tokens }
    }
}

/// A stage under way.
pub(super) struct Stage<'a> {
    name: String,
    folder: PathBuf,
    tokenizer: &'a Tokenizer,
    optimization: &'a Optimization,
    steps: u64,
    metrics: Metrics,
    pub position: Position,
    saved: Position,
    saved_at: Instant,
    flops: TokenFlops,
}

/// What a stage does in a step.
pub(super) trait Training {
    /// A line of `metrics.jsonl`.
    type Line: Serialize;
    /// Does the step behind `at`: where it ends, and its line.
    fn step(&mut self, at: Position) -> Result<(Position, Self::Line)>;
    /// What is trained.
    fn trainer(&self) -> &Trainer;
    /// Writes into a checkpoint what is needed to go on besides weights and optimizer.
    fn save(&self, _folder: &Path) -> Result<()> {
        Ok(())
    }
    /// A line, for people.
    fn in_words(&self, line: &Self::Line) -> String;
    /// What people should hear at once.
    fn warnings<'l>(&self, _line: &'l Self::Line) -> &'l [String] {
        &[]
    }
}

/// A stage's newest checkpoint, or a model elsewhere.
pub(super) fn model_of(run: &RunDir, from: &str) -> Result<Location> {
    let names = |stage: &recipe::StageSection| stage.name == from;
    if from != recipe::PRETRAIN && !run.recipe().stages.iter().any(names) {
        return locate(Path::new(from));
    }
    let stage = run.path().join(from);
    let latest = if stage.is_dir() { checkpoint::latest(&stage)? } else { None };
    let none = || refuse(format!("the stage {from} has no checkpoint"), "name a stage that trains, before this one");
    Ok(Location::Directory(latest.ok_or_else(none)?.path))
}

/// Fails if a model comes with another tokenizer than the run's.
pub(super) fn check_tokenizer(model: &Location, tokenizer: &Tokenizer) -> Result<()> {
    if read_tokenizer(model)?.is_some_and(|own| own.sha256() != tokenizer.sha256()) {
        let message = format!("the model {} has another tokenizer than the run", model.path().display());
        return Err(refuse(message, "name the model's tokenizer with tokenizer.path"));
    }
    Ok(())
}

/// The configuration and weights that a stage begins with.
pub(super) fn initial(run: &RunDir, start: &Start, tokenizer: &Tokenizer) -> Result<Params> {
    let params = match start {
        Start::New { model } => Params::init(model.config(), run.recipe().run.seed),
        Start::From { from } => {
            let model = model_of(run, from)?;
            check_tokenizer(&model, tokenizer)?;
            load_params(&model, &config_of(&model)?)?
        }
    };
    let (ids, vocab_size) = (tokenizer.vocab_size(), config_for(run, start)?.vocab_size);
    if ids > vocab_size {
        let message = format!("the tokenizer has {ids} tokens, and the model's vocab_size is {vocab_size}");
        return Err(refuse(message, "name the tokenizer that belongs to the model with tokenizer.path"));
    }
    Ok(params)
}

/// The configuration that a stage begins with.
pub(super) fn config_for(run: &RunDir, start: &Start) -> Result<ModelConfig> {
    match start {
        Start::New { model } => Ok(model.config().clone()),
        Start::From { from } => config_of(&model_of(run, from)?),
    }
}

/// The configuration of a model whose files fit it.
pub(super) fn config_of(model: &Location) -> Result<ModelConfig> {
    Ok(match model {
        Location::Directory(folder) => weights::open_dir(folder)?.0,
        Location::Gguf(path) => in_directory(GgufFile::open_model(path)?.0),
    })
}

/// The recipe's mathematics for `updates` updates, as the trainer takes it.
pub(super) fn hyperparameters(of: &Optimization, updates: u64) -> Hyperparameters {
    Hyperparameters {
        learning_rate: LearningRate {
            peak: of.learning_rate,
            min: of.learning_rate_min,
            steps: updates,
            warmup_steps: of.warmup_steps,
            decay_steps: (updates as f64 * of.decay_fraction).round() as u64,
            decay: of.decay,
        },
        beta1: of.beta1,
        beta2: of.beta2,
        epsilon: of.epsilon,
        weight_decay: of.weight_decay,
        clip_norm: of.clip_norm,
        bias_update_speed: of.bias_update_speed,
        bias_update_steps: updates,
        balance_alpha: of.balance_alpha,
        mtp_lambda: Switch { early: of.mtp_lambda, late: of.mtp_lambda, late_step: 0 },
    }
}

/// How a model of this configuration answers.
pub(super) fn rollout_options(of: &Answering, temperature: f64, config: &ModelConfig) -> RolloutOptions {
    RolloutOptions {
        samples: of.samples,
        max_tokens: of.max_tokens,
        temperature: temperature as f32,
        stop_tokens: config.eos_ids.clone(),
        running: of.running,
        precision: Precision::F32,
    }
}

impl<'a> Stage<'a> {
    /// Goes on with the stage `name` of `steps` steps behind its newest checkpoint; `None` if it is done.
    pub fn open(
        session: &mut Session,
        name: &str,
        tokenizer: &'a Tokenizer,
        optimization: &'a Optimization,
        steps: u64,
        flops: TokenFlops,
    ) -> Result<Option<(Stage<'a>, Option<Checkpoint>)>> {
        let folder = session.run.stage(name)?;
        let latest = checkpoint::latest(&folder)?;
        let position = position_of(latest.as_ref())?;
        if let Some(latest) = &latest {
            enter_late(session, name, latest, position.step, position.all_tokens(), flops)?;
        }
        if position.step == steps {
            return Ok(None);
        }
        let metrics = Metrics::open(&folder.join("metrics.jsonl"), position.step)?;
        let (name, saved, saved_at) = (name.to_string(), position, Instant::now());
        let stage = Stage { name, folder, tokenizer, optimization, steps, metrics, position, saved, saved_at, flops };
        Ok(Some((stage, latest)))
    }

    /// Does the steps that are left.
    pub fn run(mut self, session: &mut Session, mut training: impl Training, label: &'static str) -> Result<Outcome> {
        let mut progress = Progress::new(label, "steps", self.position.step, Some(self.steps));
        loop {
            let (position, line) = training.step(self.position)?;
            self.position = position;
            self.metrics.append(&line)?;
            let asked = session.interrupt.asked();
            let last = position.step == self.steps;
            let due = last
                || position.step.is_multiple_of(self.optimization.checkpoint_every)
                || self.saved_at.elapsed().as_secs() >= self.optimization.checkpoint_seconds;
            if asked || due {
                self.save(session, &training).context("cannot save a checkpoint")?;
            }
            training.warnings(&line).iter().for_each(|warning| progress.line(&format!("warning: {warning}")));
            progress.at(position.step, || training.in_words(&line));
            if last {
                let (words, spent) = (training.in_words(&line), session.spent_in_words());
                progress.finish(&format!("{}: {} steps done; {words}, {spent}", self.name, self.steps));
                return Ok(Outcome::Done);
            }
            if asked {
                progress.finish(&format!("{}: stopped after step {}", self.name, position.step));
                return Ok(Outcome::Interrupted);
            }
        }
    }

    fn save(&mut self, session: &mut Session, training: &impl Training) -> Result<()> {
        self.metrics.sync()?;
        let written = write_checkpoint(&self.folder, self.position, training, self.tokenizer)?;
        checkpoint::prune(&self.folder, self.optimization.keep_checkpoints)?;
        let since = since(self.position.all_tokens(), self.saved.all_tokens());
        session.record(checkpoint_entry(&self.name, &written, since, self.flops)?)?;
        (self.saved, self.saved_at) = (self.position, Instant::now());
        Ok(())
    }
}

/// Writes all that is needed to go on behind `position`.
fn write_checkpoint(
    folder: &Path,
    position: Position,
    training: &impl Training,
    tokenizer: &Tokenizer,
) -> Result<Checkpoint> {
    let trainer = training.trainer();
    checkpoint::write(folder, position.step, |folder| {
        save_state(folder, trainer.model().config(), &trainer.state, tokenizer)?;
        training.save(folder)?;
        Ok(write_json(&folder.join("state.json"), &position)?)
    })
}

/// A stage once more, from one of its checkpoints or from its beginning, in a folder of its own.
pub(super) struct Again<'a, T> {
    pub training: T,
    pub position: Position,
    pub tokenizer: &'a Tokenizer,
    pub scratch: PathBuf,
}

impl<T: Training> Replay for Again<'_, T> {
    fn step(&mut self) -> Result<(u64, Value)> {
        let (position, line) = self.training.step(self.position)?;
        self.position = position;
        // By way of text, as in the file: an f32 is written with as many digits as tell it from its neighbours.
        Ok((position.step, serde_json::from_str(&serde_json::to_string(&line)?)?))
    }

    fn save(&mut self) -> Result<Checkpoint> {
        write_checkpoint(&self.scratch, self.position, &self.training, self.tokenizer)
    }
}

/// The first `steps` lines of a stage's metrics.
pub(super) fn lines_of(run: &RunDir, stage: &str, steps: u64) -> Result<Vec<Value>> {
    let path = run.path().join(stage).join("metrics.jsonl");
    if steps == 0 {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(RunError::io("read", &path))?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()));
    text.lines().take(steps as usize).map(line).collect()
}

/// Where a checkpoint stands; without one at the beginning.
pub(super) fn position_of(checkpoint: Option<&Checkpoint>) -> Result<Position> {
    let Some(checkpoint) = checkpoint else { return Ok(Position::default()) };
    let file = checkpoint.path.join("state.json");
    let text = std::fs::read_to_string(&file).map_err(RunError::io("read", &file))?;
    serde_json::from_str(&text).with_context(|| format!("{} is damaged", file.display()))
}

/// Writes the ledger's line of a checkpoint, of so many steps and tokens, behind which a kill came before the line was
/// written.
pub(super) fn enter_late(
    session: &mut Session,
    stage: &str,
    latest: &Checkpoint,
    step: u64,
    tokens: Tokens,
    flops: TokenFlops,
) -> Result<()> {
    let lines = || session.ledger.entries().iter().filter(|entry| entry.event == CHECKPOINT && entry.stage == stage);
    let entered = Totals::of(lines());
    if lines().all(|entry| entry.step < step) {
        let since = since(tokens, Tokens { counted: entered.tokens, learned: entered.learned_tokens });
        session.record(checkpoint_entry(stage, latest, since, flops)?)?;
    }
    Ok(())
}

/// What came to `before` until `now`.
fn since(now: Tokens, before: Tokens) -> Tokens {
    Tokens { counted: now.counted.saturating_sub(before.counted), learned: now.learned.saturating_sub(before.learned) }
}

/// The ledger's line of a checkpoint, with the metrics that lead to it.
pub(super) fn checkpoint_entry(
    stage: &str,
    checkpoint: &Checkpoint,
    tokens: Tokens,
    flops: TokenFlops,
) -> Result<Entry> {
    let mut files = checkpoint.files.clone();
    files.insert(METRICS.into(), metrics::beginning(&checkpoint.path.join(METRICS), checkpoint.step)?);
    Ok(Entry {
        event: CHECKPOINT.into(),
        stage: stage.into(),
        kind: TRAIN.into(),
        step: checkpoint.step,
        tokens: tokens.counted,
        learned_tokens: tokens.learned,
        flops: flops.of(tokens),
        files,
        ..Entry::default()
    })
}

/// Writes weights, configuration, tokenizer and the optimizer's state.
pub(super) fn save_state(folder: &Path, config: &ModelConfig, state: &State, tokenizer: &Tokenizer) -> Result<()> {
    let values = |param: usize| &state.params.values[param][..];
    weights::save_dir(folder, config, Dtype::F32, WEIGHTS_FILE_BYTES, &values)?;
    tokenizer.save(folder, config.rope.max_positions)?;
    Ok(tensors::save(&folder.join("optimizer.safetensors"), moments(state), HashMap::new())?)
}

/// Reads back what [`save_state`] wrote, after `updates` updates.
pub(super) fn load_state(config: &ModelConfig, folder: &Path, updates: u64) -> Result<State> {
    let mut params = Params::zeros(config);
    weights::load_dir(folder, config, &mut |param, first_row, _, values| params.set_rows(param, first_row, values))?;
    let mut state = State::new(params);
    let State { params, m, v, .. } = &mut state;
    let buffers = params.specs().iter().zip(m.iter_mut().zip(v)).flat_map(|(spec, (m, v))| {
        [(format!("m.{}", spec.name), &mut m[..]), (format!("v.{}", spec.name), &mut v[..])]
    });
    tensors::load(&folder.join("optimizer.safetensors"), buffers)?;
    state.step = updates;
    Ok(state)
}

/// AdamW's state under names: `m.` and `v.` before the parameter's.
fn moments(state: &State) -> impl Iterator<Item = (String, &[f32])> {
    state
        .params
        .specs()
        .iter()
        .zip(state.m.iter().zip(&state.v))
        .flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), &m[..]), (format!("v.{}", spec.name), &v[..])])
}

/// The state that a stage goes on with.
pub(super) fn state_of(
    run: &RunDir,
    start: &Start,
    tokenizer: &Tokenizer,
    latest: Option<&Checkpoint>,
    position: Position,
) -> Result<(ModelConfig, State)> {
    match latest {
        None => {
            let params = initial(run, start, tokenizer)?;
            Ok((config_for(run, start)?, State::new(params)))
        }
        Some(checkpoint) => {
            let config = config_of(&Location::Directory(checkpoint.path.clone()))?;
            let state = load_state(&config, &checkpoint.path, position.updates)
                .with_context(|| format!("cannot go on from {}", checkpoint.path.display()))?;
            Ok((config, state))
        }
    }
}

/// What a stage says about the worked puzzles that it learns from, if it does.
pub(super) fn traces_of(work: &recipe::Work) -> Option<&recipe::Supervised> {
    let section = match work {
        recipe::Work::Pretrain(it) | recipe::Work::Sft(it) => Some(&**it),
        recipe::Work::Distil(it) => match &it.answers {
            recipe::Answers::Given(given) => Some(given),
            recipe::Answers::Own(_) => None,
        },
        _ => None,
    };
    section.filter(|section| section.data == "traces")
}

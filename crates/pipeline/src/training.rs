//! The one loop of all stages that train: steps, metrics, checkpoints, the ledger's lines, the budget; and doing a
//! stretch of steps again.

use std::path::{Path, PathBuf};

use crate::host::{Event, Host};
use crate::pictures;
use crate::rank::Command;
use crate::session::{Session, Spending, TRAIN};
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use wels_comm::Lost;
use wels_data::tokenizer::Tokenizer;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::ledger::{Entry, Totals};
use wels_runs::metrics::{self, Metrics};
use wels_runs::plan::stages::{TokenFlops, Tokens};
use wels_runs::receipt::{CHECKPOINT, METRICS};
use wels_runs::recipe::Checkpoints;
use wels_runs::rundir::{RunError, write_json};

/// Where a stage stands: `state.json` of its checkpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Position {
    /// Steps done.
    pub step: u64,
    /// Updates of the weights in these steps.
    pub updates: u64,
    /// Tokens learnt from or sampled.
    pub tokens: u64,
    /// Where what was sampled is learnt from, the tokens of that, prompts included.
    pub learned_tokens: u64,
    /// Items of the task that were asked for.
    pub items: u64,
}

impl Position {
    /// Where a checkpoint stands; without one at the beginning.
    pub fn of(checkpoint: Option<&Checkpoint>) -> Result<Position> {
        let Some(checkpoint) = checkpoint else { return Ok(Position::default()) };
        let file = checkpoint.path.join("state.json");
        let text = std::fs::read_to_string(&file).map_err(RunError::io("read", &file))?;
        let damaged = || format!("{} is damaged", file.display());
        let state: Value = serde_json::from_str(&text).with_context(damaged)?;
        let position: Position = serde_json::from_value(state.clone()).with_context(damaged)?;
        // `[pretrain]` has an update a step, and does not say so.
        let updates = if state.get("updates").is_some() { position.updates } else { position.step };
        Ok(Position { updates, ..position })
    }

    /// Of either kind.
    fn all_tokens(self) -> Tokens {
        Tokens { counted: self.tokens, learned: self.learned_tokens }
    }
}

/// What a stage trains, as checkpoints have it.
pub(crate) trait Trained {
    /// Updates of the weights so far.
    fn updates(&self) -> u64;

    /// Writes weights, configuration, tokenizer and the optimizer's state, on rank 0.
    fn save(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()>;

    /// Does what the other ranks have to meanwhile.
    fn join_in_saving(&self) -> Result<(), Lost> {
        Ok(())
    }
}

/// What a stage does in a step.
pub(crate) trait Training {
    /// A line of `metrics.jsonl`.
    type Metrics: Serialize;

    /// Does the step behind `at`: where it ends, and its line.
    fn step(&mut self, at: Position) -> Result<(Position, Self::Metrics)>;

    /// What its checkpoints are of.
    fn trained(&self) -> &dyn Trained;

    /// Tokens that the step behind `at` will learn from, where that is known before; else it is taken to be as the one
    /// before it.
    fn next_tokens(&self, _at: Position) -> Option<u64> {
        None
    }

    /// The position as `state.json` has it.
    fn state(&self, position: Position) -> Value {
        json!(position)
    }

    /// Writes into a checkpoint what is needed to go on besides weights and optimizer.
    fn save(&self, _folder: &Path) -> Result<()> {
        Ok(())
    }

    /// A line, for people.
    fn in_words(&self, line: &Self::Metrics) -> String;

    /// What people should hear at once.
    fn remarks(&self, _line: &Self::Metrics) -> Vec<String> {
        Vec::new()
    }
}

/// A stage as the loop knows it.
pub(crate) struct Stage<'a> {
    /// Its folder in the run, and its name in the ledger.
    pub name: &'a str,
    /// The kind of work, for people.
    pub label: &'static str,
    pub tokenizer: &'a Tokenizer,
    pub checkpoints: &'a Checkpoints,
    pub steps: u64,
    /// Whether the tokens that are counted are sampled, and others learnt from.
    pub samples: bool,
    pub flops: TokenFlops,
}

/// A stage under way.
pub(crate) struct Running<'a> {
    stage: Stage<'a>,
    folder: PathBuf,
    metrics: Metrics,
    position: Position,
    saved: Position,
    saved_at: f64,
    /// What the last step took.
    last: Spending,
}

impl<'a> Stage<'a> {
    /// Goes on behind the newest checkpoint; `None` if all steps are done.
    pub fn open(self, session: &mut Session) -> Result<Option<(Running<'a>, Option<Checkpoint>)>> {
        let folder = session.rank.run.stage(self.name)?;
        let latest = checkpoint::latest(&folder)?;
        let position = Position::of(latest.as_ref())?;
        if let Some(latest) = &latest {
            enter_late(session, self.name, latest, position, self.flops)?;
        }
        if position.step == self.steps {
            return Ok(None);
        }
        let metrics = Metrics::open(&folder.join("metrics.jsonl"), position.step)?;
        let behind = latest.as_ref().map(|latest| latest.step);
        session.rank.tell(&Command::Train { stage: self.name.into(), behind })?;
        let (saved_at, last) = (seconds(session.host), session.last_step_of(self.name));
        let running = Running { stage: self, folder, metrics, position, saved: position, saved_at, last };
        Ok(Some((running, latest)))
    }
}

impl Running<'_> {
    /// Does the steps that are left, as far as the budget goes and until the host asks to stop.
    ///
    /// # Errors
    /// [`Stopped`](crate::session::Stopped) behind a checkpoint of all steps done.
    pub fn run(mut self, session: &mut Session, mut training: impl Training) -> Result<()> {
        let (label, total) = (self.stage.label, Some(self.stage.steps));
        session.host.event(Event::Began { label, unit: "steps", done: self.position.step, total });
        let mut words = String::new();
        while self.position.step < self.stage.steps {
            if let Some(why) = session.why_stop(self.since_saved(), self.next(&training)) {
                self.save_if_behind(session, &training)?;
                session.host.event(Event::Ended(&self.named(&format!("stopped after step {}", self.position.step))));
                session.rank.tell(&Command::Done)?;
                return Err(session.stopped(why));
            }
            let line = match self.step(session, &mut training) {
                Ok(line) => line,
                Err(error) => return Err(self.keep_after(error, session, &training)),
            };
            self.metrics.append(&line)?;
            if self.is_due(session.host) {
                self.save(session, &training)?;
            }
            training.remarks(&line).iter().for_each(|remark| session.host.event(Event::Remark(remark)));
            words = format!("{}, {}", training.in_words(&line), session.spent_in_words());
            session.host.event(Event::Reached { done: self.position.step, words: &|| words.clone() });
        }
        session.host.event(Event::Ended(&self.named(&format!("{} steps done; {words}", self.stage.steps))));
        Ok(session.rank.tell(&Command::Done)?)
    }

    fn step<T: Training>(&mut self, session: &Session, training: &mut T) -> Result<T::Metrics> {
        let (before, begun) = (self.position, seconds(session.host));
        session.rank.tell(&Command::Step)?;
        let (position, line) = training.step(before)?;
        self.position = position;
        self.last = Spending { seconds: seconds(session.host) - begun, ..self.between(before, position) };
        Ok(line)
    }

    /// `[pretrain]` is the run's one stage of that label.
    fn named(&self, words: &str) -> String {
        match self.stage.name == self.stage.label {
            true => words.to_string(),
            false => format!("{}: {words}", self.stage.name),
        }
    }

    /// Tokens between two positions; no time.
    fn between(&self, before: Position, after: Position) -> Spending {
        let Tokens { counted, learned } = since(after.all_tokens(), before.all_tokens());
        match self.stage.samples {
            true => Spending { seconds: 0.0, trained: learned, sampled: counted },
            false => Spending { seconds: 0.0, trained: counted, sampled: 0 },
        }
    }

    fn since_saved(&self) -> Spending {
        self.between(self.saved, self.position)
    }

    /// What the next step will take, as far as that can be told.
    fn next(&self, training: &impl Training) -> Spending {
        Spending { trained: training.next_tokens(self.position).unwrap_or(self.last.trained), ..self.last }
    }

    fn is_due(&self, host: &dyn Host) -> bool {
        let Checkpoints { checkpoint_every, checkpoint_seconds, .. } = self.stage.checkpoints;
        self.position.step == self.stage.steps
            || self.position.step.is_multiple_of(*checkpoint_every)
            || seconds(host) - self.saved_at >= *checkpoint_seconds as f64
    }

    fn save_if_behind(&mut self, session: &mut Session, training: &impl Training) -> Result<()> {
        if self.position.step > self.saved.step { self.save(session, training) } else { Ok(()) }
    }

    fn save(&mut self, session: &mut Session, training: &impl Training) -> Result<()> {
        self.write(session, training).context("cannot save a checkpoint")
    }

    fn write(&mut self, session: &mut Session, training: &impl Training) -> Result<()> {
        self.metrics.sync()?;
        let Stage { name, tokenizer, checkpoints, flops, .. } = self.stage;
        session.rank.tell(&Command::Save)?;
        let written = write_checkpoint(&self.folder, self.position, training, tokenizer)?;
        pictures::keep_sheet(&self.folder, &written)?;
        checkpoint::prune(&self.folder, checkpoints.keep_checkpoints)?;
        let since = since(self.position.all_tokens(), self.saved.all_tokens());
        session.record(checkpoint_entry(name, &written, since, flops)?)?;
        (self.saved, self.saved_at) = (self.position, seconds(session.host));
        Ok(())
    }

    /// Saves what was reached before a step failed, unless the step has changed weights, and passes the failure on.
    fn keep_after(&mut self, failure: anyhow::Error, session: &mut Session, training: &impl Training) -> anyhow::Error {
        if training.trained().updates() != self.position.updates {
            return failure;
        }
        match self.save_if_behind(session, training) {
            Ok(()) => failure,
            Err(error) => error.context(failure),
        }
    }
}

fn seconds(host: &dyn Host) -> f64 {
    host.clock().as_secs_f64()
}

/// Writes all that is needed to go on behind `position`.
fn write_checkpoint(
    folder: &Path,
    position: Position,
    training: &impl Training,
    tokenizer: &Tokenizer,
) -> Result<Checkpoint> {
    checkpoint::write(folder, position.step, |folder| {
        training.trained().save(folder, tokenizer)?;
        training.save(folder)?;
        Ok(write_json(&folder.join("state.json"), &training.state(position))?)
    })
}

/// A stage that is done again, or by another rank, step by step.
pub(crate) trait Replay {
    /// Does the next step: its number, and its line of metrics.
    fn step(&mut self) -> Result<(u64, Value)>;
    /// Writes a checkpoint of where it is, within this folder.
    fn save(&self, folder: &Path) -> Result<Checkpoint>;
    /// Does what the others have to while rank 0 writes a checkpoint.
    fn join_in_saving(&self) -> Result<(), Lost>;
}

/// A stage once more, from one of its checkpoints or from its beginning.
pub(crate) struct StageReplay<'a, T> {
    pub training: T,
    pub position: Position,
    pub tokenizer: &'a Tokenizer,
}

impl<T: Training> Replay for StageReplay<'_, T> {
    fn step(&mut self) -> Result<(u64, Value)> {
        let (position, line) = self.training.step(self.position)?;
        self.position = position;
        // By way of text, as in the file: an f32 is written with as many digits as tell it from its neighbours.
        Ok((position.step, serde_json::from_str(&serde_json::to_string(&line)?)?))
    }

    fn save(&self, folder: &Path) -> Result<Checkpoint> {
        write_checkpoint(folder, self.position, &self.training, self.tokenizer)
    }

    fn join_in_saving(&self) -> Result<(), Lost> {
        self.training.trained().join_in_saving()
    }
}

/// Writes the ledger's line of a checkpoint behind which a kill came before the line was written.
fn enter_late(
    session: &mut Session,
    stage: &str,
    latest: &Checkpoint,
    position: Position,
    flops: TokenFlops,
) -> Result<()> {
    let lines = || session.ledger.entries().iter().filter(|entry| entry.event == CHECKPOINT && entry.stage == stage);
    let entered = Totals::of(lines());
    if lines().all(|entry| entry.step < position.step) {
        let entered = Tokens { counted: entered.tokens, learned: entered.learned_tokens };
        session.record(checkpoint_entry(stage, latest, since(position.all_tokens(), entered), flops)?)?;
    }
    Ok(())
}

/// What came to `before` until `now`.
fn since(now: Tokens, before: Tokens) -> Tokens {
    Tokens { counted: now.counted.saturating_sub(before.counted), learned: now.learned.saturating_sub(before.learned) }
}

/// The ledger's line of a checkpoint, with the metrics that lead to it.
fn checkpoint_entry(stage: &str, checkpoint: &Checkpoint, tokens: Tokens, flops: TokenFlops) -> Result<Entry> {
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

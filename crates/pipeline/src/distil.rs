//! Stages of kind `distil`: a student learns a teacher's distribution of every next token, on given answers (as
//! `learn.rs` has them) or on its own. What a step computes is in `wels_train::distil`.

use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::config::ModelConfig;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{Answers, Distil, OwnAnswers, Rollouts, StageSection};
use wels_tasks::{Split, Task};
use wels_train::distil::{self, OwnOptions, OwnReport};
use wels_train::rl::Prompter;

use crate::experts::ExchangeLine;
use crate::hyper::rollout_options;
use crate::learn;
use crate::learner::{Learner, Learns};
use crate::rank::Rank;
use crate::session::Session;
use crate::start::config_for;
use crate::teacher::TeacherModel;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// One line of `metrics.jsonl` of a student that learns on its own answers; the last four depend on the machine.
#[derive(Serialize)]
pub(crate) struct DistilMetrics {
    #[serde(flatten)]
    position: Position,
    divergence: f64,
    loss: f64,
    accuracy: f64,
    length: f64,
    truncated: f64,
    logprob_difference_max: f64,
    grad_norm: f64,
    learning_rate: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<ExchangeLine>,
    seconds: f64,
    rollout_seconds: f64,
    sampled_tokens_per_second: f64,
}

/// Does what is left of the stage.
pub(crate) fn distil(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &Distil,
) -> Result<()> {
    let teacher = TeacherModel::open(&session.rank, tokenizer, section)?;
    match &section.answers {
        Answers::Given(given) => learn::learn(session, tokenizer, stage, given, Some(teacher)),
        Answers::Own(own) => on_policy(session, tokenizer, stage, own, teacher),
    }
}

fn on_policy(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &OwnAnswers,
    teacher: TeacherModel,
) -> Result<()> {
    let config = config_for(&session.rank.run, &section.start)?;
    let (steps, flops) = (section.rollouts.steps, TokenFlops::of_own_answers(&config, teacher.config(), section));
    let checkpoints = &section.optimization.checkpoints;
    let at = Stage { name: &stage.name, label: "distil", tokenizer, checkpoints, steps, samples: true, flops };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    let template = ChatTemplate::of(tokenizer)?;
    let prompter = Prompter { tokenizer, template: template.as_ref() };
    let correction = Correction::begin(&session.rank, prompter, stage, section, teacher, latest.as_ref())?;
    running.run(session, correction)
}

/// A stage in which a student learns on its own answers.
pub(crate) struct Correction<'a> {
    trainer: Learner,
    teacher: TeacherModel,
    task: Box<dyn Task>,
    prompter: Prompter<'a>,
    options: OwnOptions,
    seed: u64,
}

impl<'a> Correction<'a> {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        prompter: Prompter<'a>,
        stage: &StageSection,
        section: &OwnAnswers,
        teacher: TeacherModel,
        latest: Option<&Checkpoint>,
    ) -> Result<Correction<'a>> {
        let Rollouts { steps, mini_batches, answering, .. } = &section.rollouts;
        let learns = Learns {
            stage: &stage.name,
            precision: stage.precision,
            start: &section.start,
            optimization: &section.optimization,
            updates: steps * *mini_batches as u64,
            context: teacher.context(),
        };
        let trainer = Learner::begin(rank, learns, prompter.tokenizer, latest)?;
        let options = options(stage, section, trainer.model().config());
        let task = rank.task(answering, Split::Train, &stage.name)?;
        Ok(Correction { trainer, teacher, task, prompter, options, seed: rank.run.recipe().run.seed })
    }
}

impl Training for Correction<'_> {
    type Metrics = DistilMetrics;

    /// Both halves, timed.
    fn step(&mut self, at: Position) -> Result<(Position, DistilMetrics)> {
        let started = Instant::now();
        let Correction { trainer, teacher, task, prompter, options, seed } = self;
        let answered = distil::sample(trainer, &**task, prompter, options, *seed, at.items, &mut |_, _| {})?;
        let rollout_seconds = started.elapsed().as_secs_f64();
        let key = Key { seed: *seed, stream: at.step };
        let report = distil::learn(trainer, &teacher.teacher(), &answered, options, key)?;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + report.updates.len() as u64,
            tokens: at.tokens + report.sampled_tokens,
            learned_tokens: at.learned_tokens + report.learned_tokens,
            items: at.items + options.prompts as u64,
        };
        let line = DistilMetrics::new(&report, position, started.elapsed().as_secs_f64(), rollout_seconds);
        Ok((position, DistilMetrics { exchange: ExchangeLine::of(trainer), ..line }))
    }

    fn trained(&self) -> &dyn Trained {
        &self.trainer
    }

    fn in_words(&self, line: &DistilMetrics) -> String {
        line.in_words()
    }
}

/// The section, as a step takes it.
fn options(stage: &StageSection, section: &OwnAnswers, config: &ModelConfig) -> OwnOptions {
    OwnOptions {
        prompts: section.rollouts.prompts,
        rollout: rollout_options(&section.rollouts.answering, stage.precision, 1.0, config),
        mini_batches: section.rollouts.mini_batches,
        micro_rows: section.optimization.micro_rows,
    }
}

impl DistilMetrics {
    fn new(report: &OwnReport, position: Position, seconds: f64, rollout_seconds: f64) -> DistilMetrics {
        let last = report.updates.last();
        DistilMetrics {
            position,
            divergence: report.mean(|update| update.divergence),
            loss: report.mean(|update| update.loss),
            accuracy: report.accuracy,
            length: report.length,
            truncated: report.truncated,
            logprob_difference_max: report.logprob_difference_max,
            grad_norm: last.map_or(0.0, |update| update.grad_norm),
            learning_rate: last.map_or(0.0, |update| update.learning_rate),
            exchange: None,
            seconds,
            rollout_seconds,
            sampled_tokens_per_second: report.sampled_tokens as f64 / rollout_seconds,
        }
    }

    fn in_words(&self) -> String {
        format!(
            "divergence {:.3}, accuracy {:.3}, {:.0} tokens an answer, logp difference {}, {} sampled tok/s, {:.0}% of \
             the time in rollouts",
            self.divergence,
            self.accuracy,
            self.length,
            self.logprob_difference_max,
            short(self.sampled_tokens_per_second),
            100.0 * self.rollout_seconds / self.seconds
        )
    }
}

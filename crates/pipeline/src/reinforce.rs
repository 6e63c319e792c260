//! Stages of kind `rl`: rollouts, rewards, updates. What a step computes is in `wels_train::rl`.

use std::collections::HashMap;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::config::ModelConfig;
use wels_model::params::Params;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::plan::stages::TokenFlops;
use wels_runs::recipe::{AdvantageScale, LossMean, OverlongRule, PolicyObjective, Rl, Rollouts, StageSection};
use wels_runs::rundir::{RunDir, RunError};
use wels_runs::tensors;
use wels_tasks::{RewardWeights, Split, Task};
use wels_train::doctor::Doctor;
use wels_train::grpo::{Aggregation, Grpo, Overlong, Scale, Surrogate};
use wels_train::rl::{Answered, Prompter, RlOptions, RlReport, Rollout, learn, sample};
use wels_train::trainer::Trainer;

use crate::experts::ExchangeLine;
use crate::hyper::rollout_options;
use crate::learner::{Learner, Learns};
use crate::rank::Rank;
use crate::session::Session;
use crate::start::config_for;
use crate::training::{Position, Stage, Trained, Training};
use crate::words::short;

/// The weights that KL is measured from, in a checkpoint.
const REFERENCE: &str = "reference.safetensors";

/// Answers of a step that its line shows.
const SHOWN: usize = 2;

/// One line of `metrics.jsonl`; what comes after `samples` depends on the machine.
#[derive(Serialize)]
pub(crate) struct GrpoMetrics {
    #[serde(flatten)]
    position: Position,
    reward: f64,
    accuracy: f64,
    format: f64,
    language: f64,
    length: f64,
    /// In an environment, as what it said between turns.
    #[serde(skip_serializing_if = "Option::is_none")]
    turns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    observed: Option<f64>,
    truncated: f64,
    entropy: f64,
    kl: f64,
    clipped_high: f64,
    clipped_low: f64,
    dead_groups: f64,
    logprob_difference_max: f64,
    loss: f64,
    grad_norm: f64,
    learning_rate: f64,
    max_violation: f64,
    warnings: Vec<String>,
    samples: Vec<Shown>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exchange: Option<ExchangeLine>,
    seconds: f64,
    rollout_seconds: f64,
    sampled_tokens_per_second: f64,
}

#[derive(Serialize)]
struct Shown {
    item: String,
    answer: String,
    accuracy: f64,
    verdict: String,
}

/// Does what is left of the stage.
pub(crate) fn reinforce(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &Rl,
) -> Result<()> {
    let config = config_for(&session.rank.run, &section.start)?;
    let (steps, flops) = (section.rollouts.steps, TokenFlops::of_reinforcement(&config, section));
    let checkpoints = &section.optimization.checkpoints;
    let at = Stage { name: &stage.name, label: "rl", tokenizer, checkpoints, steps, samples: true, flops };
    let Some((running, latest)) = at.open(session)? else { return Ok(()) };
    let template = ChatTemplate::of(tokenizer)?;
    let prompter = Prompter { tokenizer, template: template.as_ref() };
    let reinforcement = Reinforcement::begin(&session.rank, prompter, stage, section, latest.as_ref())?;
    running.run(session, reinforcement)
}

/// A stage of reinforcement.
pub(crate) struct Reinforcement<'a> {
    trainer: Learner,
    task: Box<dyn Task>,
    prompter: Prompter<'a>,
    options: RlOptions,
    /// The weights that KL is measured from.
    reference: Option<Params>,
    reference_every: u64,
    doctor: Doctor,
    seed: u64,
}

impl<'a> Reinforcement<'a> {
    /// Ready to go on behind a checkpoint, or from the stage's beginning.
    pub fn begin(
        rank: &Rank,
        prompter: Prompter<'a>,
        stage: &StageSection,
        section: &Rl,
        latest: Option<&Checkpoint>,
    ) -> Result<Reinforcement<'a>> {
        let run = &rank.run;
        let Rollouts { steps, mini_batches, answering, .. } = &section.rollouts;
        let learns = Learns {
            stage: &stage.name,
            precision: stage.precision,
            start: &section.start,
            optimization: &section.optimization,
            updates: steps * *mini_batches as u64,
            context: usize::MAX,
        };
        let trainer = Learner::begin(rank, learns, prompter.tokenizer, latest)?;
        let reference = reference(&trainer, section, latest)?;
        let options = options(stage, section, trainer.model().config());
        let mut doctor = Doctor::default();
        lines_of(run, &stage.name, Position::of(latest)?.step)?
            .iter()
            .for_each(|line| _ = doctor.look(&recalled(line)));
        Ok(Reinforcement {
            trainer,
            task: rank.task(answering, Split::Train, &stage.name)?,
            prompter,
            options,
            reference,
            reference_every: section.reference_every,
            doctor,
            seed: run.recipe().run.seed,
        })
    }
}

impl Training for Reinforcement<'_> {
    type Metrics = GrpoMetrics;

    /// Both halves, timed.
    fn step(&mut self, at: Position) -> Result<(Position, GrpoMetrics)> {
        let started = Instant::now();
        let Reinforcement { trainer, task, prompter, options, seed, .. } = self;
        let rollout = sample(trainer, &**task, prompter, options, *seed, at.items, &mut |_, _| {})?;
        let rollout_seconds = started.elapsed().as_secs_f64();
        let key = Key { seed: *seed, stream: at.step };
        let report = learn(trainer, self.reference.as_ref(), &rollout, options, key)?;
        let position = Position {
            step: at.step + 1,
            updates: at.updates + report.updates.len() as u64,
            tokens: at.tokens + report.sampled_tokens,
            learned_tokens: at.learned_tokens + report.learned_tokens,
            items: at.items + rollout.items,
        };
        let plays = task.environment().is_some();
        let mut line = GrpoMetrics::new(&report, &rollout, position, started.elapsed().as_secs_f64(), rollout_seconds);
        (line.turns, line.observed) = (plays.then_some(report.turns), plays.then_some(report.observed));
        if self.reference_every > 0 && position.step.is_multiple_of(self.reference_every) {
            self.reference = self.reference.take().map(|_| self.trainer.whole_params()).transpose()?;
        }
        let exchange = ExchangeLine::of(&mut self.trainer);
        Ok((position, GrpoMetrics { warnings: self.doctor.look(&report), exchange, ..line }))
    }

    fn trained(&self) -> &dyn Trained {
        &self.trainer
    }

    fn save(&self, folder: &Path) -> Result<()> {
        save_reference(folder, self.reference.as_ref())
    }

    fn in_words(&self, line: &GrpoMetrics) -> String {
        line.in_words()
    }

    fn remarks(&self, line: &GrpoMetrics) -> Vec<String> {
        line.warnings.iter().map(|warning| format!("warning: {warning}")).collect()
    }
}

/// The first `steps` lines of a stage's metrics.
pub(crate) fn lines_of(run: &RunDir, stage: &str, steps: u64) -> Result<Vec<Value>> {
    let path = run.path().join(stage).join("metrics.jsonl");
    if steps == 0 {
        return Ok(Vec::new());
    }
    let text = std::fs::read_to_string(&path).map_err(RunError::io("read", &path))?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()));
    text.lines().take(steps as usize).map(line).collect()
}

/// What the doctor saw of an earlier step, so that it says the same behind a kill.
fn recalled(line: &Value) -> RlReport {
    let number = |key: &str| line[key].as_f64().unwrap_or(0.0);
    RlReport {
        entropy: number("entropy"),
        length: number("length"),
        dead_groups: number("dead_groups"),
        truncated: number("truncated"),
        accuracy: number("accuracy"),
        format: number("format"),
        ..RlReport::default()
    }
}

/// The section, as a step takes it.
fn options(stage: &StageSection, section: &Rl, config: &ModelConfig) -> RlOptions {
    let max_tokens = section.rollouts.answering.max_tokens;
    RlOptions {
        prompts: section.rollouts.prompts,
        rollout: rollout_options(&section.rollouts.answering, stage.precision, 1.0, config),
        grpo: Grpo {
            surrogate: match section.objective {
                PolicyObjective::Grpo => Surrogate::Token,
                PolicyObjective::Gspo => Surrogate::Sequence,
                PolicyObjective::Cispo => Surrogate::Weight,
            },
            scale: match section.advantage_scale {
                AdvantageScale::Deviation => Scale::Deviation,
                AdvantageScale::SampleDeviation => Scale::SampleDeviation,
                AdvantageScale::None => Scale::None,
            },
            aggregation: match section.loss_mean {
                LossMean::Token => Aggregation::TokenMean,
                LossMean::Sequence => Aggregation::SequenceMean,
                LossMean::Constant => Aggregation::Constant(max_tokens as f64),
            },
            clip_low: section.clip_low,
            clip_high: section.clip_high,
            kl: section.kl,
            overlong: match section.overlong {
                OverlongRule::Keep => Overlong::Keep,
                OverlongRule::Filter => Overlong::Filter,
                OverlongRule::Penalty => Overlong::Penalty { max: max_tokens, buffer: section.overlong_buffer },
            },
        },
        weights: RewardWeights {
            accuracy: section.reward_accuracy,
            format: section.reward_format,
            language: section.reward_language,
        },
        mini_batches: section.rollouts.mini_batches,
        rounds: section.sampling_rounds,
        micro_rows: section.optimization.micro_rows,
    }
}

/// The weights that KL is measured from: those of the checkpoint, or those that the stage begins with, which the
/// trainer's are then. What is not learnt they share.
fn reference(trainer: &Trainer, section: &Rl, latest: Option<&Checkpoint>) -> Result<Option<Params>> {
    if section.kl == 0.0 {
        return Ok(None);
    }
    let (mut params, first) = (trainer.whole_params()?, trainer.state.params.frozen());
    if let Some(latest) = latest {
        let learnt = &params.specs()[first..];
        let names: Vec<_> = learnt.iter().map(|spec| (spec.name.clone(), spec.len())).collect();
        let mut set = |place: usize, values: &[f32]| params.set_values(first + place, values);
        tensors::load(&latest.path.join(REFERENCE), names, &mut set)?;
    }
    Ok(Some(params))
}

fn save_reference(folder: &Path, reference: Option<&Params>) -> Result<()> {
    let Some(reference) = reference else { return Ok(()) };
    let values = reference.specs().iter().zip(reference.tensors()).skip(reference.frozen());
    let named = values.map(|(spec, tensor)| (spec.name.clone(), tensor.to_host()));
    Ok(tensors::save(&folder.join(REFERENCE), named, HashMap::new())?)
}

impl GrpoMetrics {
    fn new(
        report: &RlReport,
        rollout: &Rollout,
        position: Position,
        seconds: f64,
        rollout_seconds: f64,
    ) -> GrpoMetrics {
        let last = report.updates.last();
        let violations = last.iter().flat_map(|update| &update.experts).map(|experts| experts.max_violation);
        let first = |group: &Answered| {
            group.answers.first().map(|it| Shown {
                item: group.item.id.clone(),
                answer: it.text.clone(),
                accuracy: it.reward.accuracy,
                verdict: it.reward.grade.reason.to_string(),
            })
        };
        GrpoMetrics {
            position,
            reward: report.reward,
            accuracy: report.accuracy,
            format: report.format,
            language: report.language,
            length: report.length,
            turns: None,
            observed: None,
            truncated: report.truncated,
            entropy: report.entropy,
            kl: report.policy.kl,
            clipped_high: report.policy.clipped_high,
            clipped_low: report.policy.clipped_low,
            dead_groups: report.dead_groups,
            logprob_difference_max: report.logprob_difference_max,
            loss: report.policy.loss,
            grad_norm: last.map_or(0.0, |update| update.grad_norm),
            learning_rate: last.map_or(0.0, |update| update.learning_rate),
            max_violation: violations.fold(0.0, f64::max),
            warnings: Vec::new(),
            samples: rollout.answered.iter().filter_map(first).take(SHOWN).collect(),
            exchange: None,
            seconds,
            rollout_seconds,
            sampled_tokens_per_second: report.sampled_tokens as f64 / rollout_seconds,
        }
    }

    fn in_words(&self) -> String {
        let turns = self.turns.map_or(String::new(), |turns| format!(" in {turns:.1} turns"));
        format!(
            "accuracy {:.3}, {:.0} tokens an answer{turns}, entropy {:.2}, {:.0}% dead, logp difference {}, {} sampled \
             tok/s, {:.0}% of the time in rollouts",
            self.accuracy,
            self.length,
            self.entropy,
            100.0 * self.dead_groups,
            self.logprob_difference_max,
            short(self.sampled_tokens_per_second),
            100.0 * self.rollout_seconds / self.seconds
        )
    }
}

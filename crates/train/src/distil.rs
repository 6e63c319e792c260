//! Distillation: a student learns a teacher's distribution of every next token, and not only which token came.
//!
//! ```text
//! off-policy:  given answers                          → divergence from the teacher on them → update
//! on-policy:   prompts → the student's own answers    → divergence from the teacher on them → updates
//! ```
//! On its own answers a student learns what to do behind its own mistakes, which no given answer shows. The gradient is
//! that of the divergence at given tokens; none flows through the sampling (GKD, Agarwal et al., arXiv 2306.13649,
//! algorithm 1). Loss and temperature are those of `wels_kernels::distil`.

use std::sync::Arc;

use wels_device::host::random::Key;
use wels_model::model::{Batch, Teacher};
use wels_tasks::{Task, TaskError};

use crate::example::{Example, pack, shuffled};
use crate::rl::{Answered, Prompter, Rewarded, RlError, answer, difference, training_item};
use crate::rollout::{Answer, RolloutOptions};
use crate::trainer::{StepError, StepReport, Trainer};

/// Streams of the run's seed.
const STREAM_ANSWERS: u64 = 0x6473_616e;
const STREAM_PARTS: u64 = 0x6473_7061;

/// One step on given answers, whose rows go through both models at most `micro_rows` at a time.
///
/// # Errors
/// [`StepError`]; the state is then what it was.
///
/// # Panics
/// If the batch has no target, or the teacher another vocabulary.
pub fn step(
    trainer: &mut Trainer,
    teacher: &Teacher,
    batch: &Batch,
    micro_rows: usize,
) -> Result<StepReport, StepError> {
    let pass = trainer.gradients_towards(teacher, batch, micro_rows)?;
    trainer.update(pass)
}

/// What a step on the student's own answers does.
#[derive(Clone, Debug, PartialEq)]
pub struct OwnOptions {
    /// Prompts of a step.
    pub prompts: usize,
    /// How the student answers.
    pub rollout: RolloutOptions,
    /// Parts of the answers, an update each.
    pub mini_batches: usize,
    /// Rows that go through the models at a time.
    pub micro_rows: usize,
}

/// The student's answers, as it is now, to the training's items from `first` on.
///
/// # Errors
/// [`RlError`] as described there.
pub fn sample(
    trainer: &Trainer,
    task: &dyn Task,
    prompter: &Prompter,
    options: &OwnOptions,
    seed: u64,
    first: u64,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<Vec<Answered>, RlError> {
    let params = Arc::new(trainer.whole_params()?);
    let key = Key { seed, stream: STREAM_ANSWERS };
    let numbers = first..first + options.prompts as u64;
    let items = numbers.map(|n| training_item(task, seed, n)).collect::<Result<_, TaskError>>()?;
    let seed_of = |n: usize| key.u64_at(first + n as u64);
    answer(&**trainer.comm(), trainer.model(), &params, task, prompter, items, seed_of, &options.rollout, watch)
}

/// What a step on the student's own answers did.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OwnReport {
    /// Share of the answers that are right; it is not learnt from.
    pub accuracy: f64,
    /// Mean tokens of an answer.
    pub length: f64,
    /// Share of answers that ran into the limit.
    pub truncated: f64,
    /// Tokens that were sampled.
    pub sampled_tokens: u64,
    /// Tokens that were learnt from: the answers, each behind its prompt.
    pub learned_tokens: u64,
    /// Greatest |logp sampled − logp recomputed| of the first part: 0, or the step fails.
    pub logprob_difference_max: f64,
    /// One a part.
    pub updates: Vec<StepReport>,
}

impl OwnReport {
    /// Mean over the updates.
    pub fn mean(&self, of: impl Fn(&StepReport) -> f64) -> f64 {
        self.updates.iter().map(of).sum::<f64>() / self.updates.len().max(1) as f64
    }
}

/// Learns what the teacher would have said in the place of `answered`. The first part, which meets the weights that
/// sampled, is compared with them, bit for bit.
///
/// # Errors
/// [`RlError`] as described there. Where a later part fails, the earlier ones have been learnt.
///
/// # Panics
/// If the teacher has another vocabulary.
pub fn learn(
    trainer: &mut Trainer,
    teacher: &Teacher,
    answered: &[Answered],
    options: &OwnOptions,
    key: Key,
) -> Result<OwnReport, RlError> {
    let mut report = summary(answered);
    let all = answered.iter().flat_map(|group| group.answers.iter().map(move |it| (&group.prompt, &it.answer)));
    let all: Vec<_> = all.filter(|(_, answer)| answer.chosen() > 0).collect();
    let order = shuffled(all.len(), Key { stream: key.stream.wrapping_add(STREAM_PARTS), ..key });
    let parts = options.mini_batches.min(all.len());
    for part in 0..parts {
        let chosen = &order[part * all.len() / parts..(part + 1) * all.len() / parts];
        let chosen = || chosen.iter().map(|at| all[*at]);
        let example = |(prompt, it): (&Vec<u32>, &Answer)| Example::episode(prompt, &it.tokens, &it.given);
        let examples: Vec<Example> = chosen().map(example).collect();
        let batch = pack(&examples);
        report.learned_tokens += batch.tokens.len() as u64;
        let pass = trainer.gradients_towards(teacher, &batch, options.micro_rows)?;
        if part == 0 {
            let sampled = chosen().flat_map(|(_, it)| it.chosen_logprobs());
            report.logprob_difference_max = difference(sampled, &pass.logprobs, &batch)?;
        }
        report.updates.push(trainer.update(pass)?);
    }
    Ok(report)
}

fn summary(answered: &[Answered]) -> OwnReport {
    let answers: Vec<&Rewarded> = answered.iter().flat_map(|group| &group.answers).collect();
    let n = answers.len().max(1) as f64;
    let mean = |value: &dyn Fn(&Rewarded) -> f64| answers.iter().map(|it| value(it)).sum::<f64>() / n;
    OwnReport {
        accuracy: mean(&|it| f64::from(u8::from(it.reward.grade.correct))),
        length: mean(&|it| it.answer.chosen() as f64),
        truncated: mean(&|it| f64::from(u8::from(it.answer.truncated))),
        sampled_tokens: answers.iter().map(|it| it.answer.chosen() as u64).sum(),
        ..OwnReport::default()
    }
}

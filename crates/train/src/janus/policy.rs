//! A step of reinforcement learning on pictures: draw some to each caption, reward them, learn from them.
//!
//! The objective is that of [`crate::grpo`], a code being what a token is there; T2I-R1 (arXiv 2505.00703) trains
//! Janus-Pro so. Before the first update every log-probability that was drawn with is compared with the one that the
//! training pass computes: a difference other than 0 is a bug, and stops the step with the weights as they were.

use thiserror::Error;
use wels_device::host::random::Key;
use wels_device::{Coefficient, IGNORE, Policy, PolicyTerm};
use wels_model::generate::Sampling;
use wels_model::janus::batch::{Input, JanusBatch, Target};
use wels_model::janus::network::Weighted;
use wels_model::janus::{DrawPrompt, Drawn, JanusError, draw_all};
use wels_model::params::Params;

use super::trainer::JanusTrainer;
use crate::grpo::{BadReward, Group, Grpo, PolicyBatch, PolicyReport, Sample};
use crate::trainer::StepError;

/// Streams of the run's seed.
const STREAM_PICTURES: u64 = 0x6a6e_7069;
const STREAM_PARTS: u64 = 0x6a6e_7061;

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PictureOptions {
    /// Pictures of each caption.
    pub pictures: usize,
    pub grpo: Grpo,
    /// Parts of what was drawn, an update each.
    pub mini_batches: usize,
    /// Rows that go through the model at a time.
    pub micro_rows: usize,
    /// Of the run; with the step it decides what is drawn.
    pub seed: u64,
}

/// What a step did; the parts of the objective are means over its updates.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PictureReport {
    /// Mean over all pictures.
    pub reward: f64,
    /// Captions whose pictures all earned the same.
    pub dead: usize,
    pub updates: usize,
    pub policy: PolicyReport,
    /// Global norm of the last gradient before clipping.
    pub grad_norm: f64,
}

/// Why a step was not done to its end. Of the update that failed, no weight was touched.
#[derive(Debug, Error)]
pub enum PictureError {
    /// A prompt that nothing can be drawn after.
    #[error(transparent)]
    Draw(#[from] JanusError),
    /// A reward that is no number.
    #[error(transparent)]
    Reward(#[from] BadReward),
    /// No update.
    #[error(transparent)]
    Step(#[from] StepError),
    /// The drawing and the training pass disagree.
    #[error("a drawn log-probability differs from the recomputed one by {difference}: a bug, the step is not done")]
    Mismatch {
        /// The greatest.
        difference: f64,
    },
}

/// Draws pictures to each prompt, learns from what `reward` makes of their codes (given the number of the prompt), and
/// returns what was drawn. `reference` is what the objective's KL term is measured from.
///
/// # Errors
/// [`PictureError`].
///
/// # Panics
/// If the objective has a KL term and no reference is given.
pub fn step(
    trainer: &mut JanusTrainer,
    prompts: &[Vec<u32>],
    reward: impl Fn(usize, &[u32]) -> f64,
    reference: Option<&Params>,
    options: &PictureOptions,
) -> Result<(PictureReport, Vec<Vec<Drawn>>), PictureError> {
    assert!(options.grpo.kl == 0.0 || reference.is_some(), "a KL term without a reference");
    let drawn = draw(trainer, prompts, options)?;
    let sample = |prompt: usize, drawn: &Drawn| Sample {
        tokens: drawn.codes.clone(),
        logprobs: drawn.logprobs.clone(),
        given: Vec::new(),
        truncated: false,
        reward: reward(prompt, &drawn.codes),
    };
    let group = |(prompt, drawn): (usize, &Vec<Drawn>)| Group {
        prompt: prompts[prompt].clone(),
        samples: drawn.iter().map(|drawn| sample(prompt, drawn)).collect(),
    };
    let groups: Vec<Group> = drawn.iter().enumerate().map(group).collect();
    let report = learn(trainer, &groups, reference, options)?;
    Ok((report, drawn))
}

/// Pictures of every prompt, which are the same whatever is drawn beside them.
fn draw(trainer: &JanusTrainer, prompts: &[Vec<u32>], options: &PictureOptions) -> Result<Vec<Vec<Drawn>>, JanusError> {
    let key = Key { seed: options.seed, stream: STREAM_PICTURES };
    let mut samplings =
        (trainer.state.step << 32..).map(|n| Sampling::Random { temperature: 1.0, top_p: 1.0, seed: key.u64_at(n) });
    let mut group = |tokens| {
        let prompt = DrawPrompt { tokens, unconditional: &[], guidance: 1.0 };
        (prompt, samplings.by_ref().take(options.pictures).collect())
    };
    let groups: Vec<(DrawPrompt, Vec<Sampling>)> = prompts.iter().map(|prompt| group(prompt)).collect();
    let painter = Weighted { network: trainer.network(), params: &trainer.state.params };
    draw_all(&painter, trainer.execution(), &groups)
}

/// The updates of groups of pictures that were drawn with the weights as they are.
fn learn(
    trainer: &mut JanusTrainer,
    groups: &[Group],
    reference: Option<&Params>,
    options: &PictureOptions,
) -> Result<PictureReport, PictureError> {
    let key = Key { seed: options.seed, stream: STREAM_PARTS.wrapping_add(trainer.state.step << 32) };
    let (mut parts, dead) = PolicyBatch::of(groups, &options.grpo, options.mini_batches, key)?;
    let rewards = || groups.iter().flat_map(|group| &group.samples).map(|sample| sample.reward);
    let mut report = PictureReport {
        reward: rewards().sum::<f64>() / rewards().count().max(1) as f64,
        dead,
        ..PictureReport::default()
    };
    for (i, part) in parts.iter_mut().enumerate() {
        let batch = pictures(part);
        if let Some(reference) = reference.filter(|_| options.grpo.kl != 0.0) {
            let logprobs = trainer.logprobs_of(reference, &batch, options.micro_rows);
            part.set_reference(&of_rows(&batch, &logprobs.codes));
        }
        let terms = terms(part, &batch);
        let Coefficient::Policy(policy) = part.coefficient() else { unreachable!("the coefficient of a policy") };
        let codes = Coefficient::Policy(Policy { terms: &terms, ..policy });
        let pass = trainer.gradients(&batch, options.micro_rows, Coefficient::Uniform(0.0), codes)?;
        let seen = part.report(&of_rows(&batch, &pass.logprobs.codes));
        if i == 0 && seen.logprob_difference_max != 0.0 {
            return Err(PictureError::Mismatch { difference: seen.logprob_difference_max });
        }
        report.grad_norm = trainer.update(pass)?.grad_norm;
        report.updates += 1;
        add(&mut report.policy, seen);
    }
    let updates = report.updates.max(1) as f64;
    let policy = &mut report.policy;
    for mean in [&mut policy.loss, &mut policy.kl, &mut policy.clipped_high, &mut policy.clipped_low] {
        *mean /= updates;
    }
    Ok(report)
}

fn add(sum: &mut PolicyReport, part: PolicyReport) {
    sum.loss += part.loss;
    sum.kl += part.kl;
    sum.clipped_high += part.clipped_high;
    sum.clipped_low += part.clipped_low;
    sum.logprob_difference_max = sum.logprob_difference_max.max(part.logprob_difference_max);
    sum.tokens += part.tokens;
}

/// The batch of a policy whose samples are codes behind prompts of tokens: a row's input is a code where the row before
/// it had one to predict.
fn pictures(part: &PolicyBatch) -> JanusBatch {
    let text = &part.batch;
    let code = |row: usize| text.targets[row] != IGNORE;
    let first = |row: usize| text.starts.binary_search(&(row as u32)).is_ok();
    let input = |(row, id): (usize, &u32)| match row > 0 && !first(row) && code(row - 1) {
        true => Input::Code(*id),
        false => Input::Token(*id),
    };
    let target = |id: &u32| if *id == IGNORE { Target::Nothing } else { Target::Code(*id) };
    JanusBatch {
        inputs: text.tokens.iter().enumerate().map(input).collect(),
        targets: text.targets.iter().map(target).collect(),
        starts: text.starts.clone(),
        seen: Vec::new(),
    }
}

/// Of the rows with targets.
fn terms(part: &PolicyBatch, batch: &JanusBatch) -> Vec<PolicyTerm> {
    let rows = part.terms().iter().zip(&batch.targets);
    rows.filter(|(_, target)| **target != Target::Nothing).map(|(term, _)| *term).collect()
}

/// `[T]` of what belongs to targets; 0 for the other rows.
fn of_rows(batch: &JanusBatch, of_targets: &[f32]) -> Vec<f32> {
    let mut of_targets = of_targets.iter();
    let one = |target: &Target| match target {
        Target::Nothing => 0.0,
        _ => *of_targets.next().expect("one a target"),
    };
    batch.targets.iter().map(one).collect()
}

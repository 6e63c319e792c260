//! A step of reinforcement learning: sample answers, reward them, learn from them.
//!
//! ```text
//! prompts → answers (rollout) → rewards (task) → live groups → mini-batches (grpo) → updates (trainer)
//! prompts → episodes (episode, with an environment) …
//! ```
//! Before the first update every log-probability that was sampled is compared with the one that the training pass
//! computes. A difference other than 0 is a bug, and stops the step with the weights as they were.

use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use wels_comm::{Comm, Lost, tree};
use wels_device::Coefficient;
use wels_device::host::random::Key;
use wels_model::model::{Batch, Model};
use wels_model::params::Params;
use wels_tasks::{Item, Reward, RewardWeights, Task, TaskError};

use crate::episode::play;
use crate::grpo::{BadReward, Group, Grpo, PolicyBatch, PolicyReport, Sample, Surrogate, advantages};
use crate::prompter::PromptError;
pub use crate::prompter::Prompter;
use crate::rollout::{Answer, Question, RolloutError, RolloutOptions, rollout};
use crate::trainer::{StepError, StepReport, Trainer};

/// Streams of the run's seed.
const STREAM_ITEMS: u64 = 0x726c_6974;
const STREAM_ANSWERS: u64 = 0x726c_616e;
const STREAM_PARTS: u64 = 0x726c_7061;

/// What a step does.
#[derive(Clone, Debug, PartialEq)]
pub struct RlOptions {
    /// Prompts of a step.
    pub prompts: usize,
    /// How to sample.
    pub rollout: RolloutOptions,
    /// The objective.
    pub grpo: Grpo,
    /// What each component of the reward counts.
    pub weights: RewardWeights,
    /// Parts of a rollout, an update each.
    pub mini_batches: usize,
    /// Rounds of sampling at most, until enough groups are live (DAPO's dynamic sampling); 1 takes what comes.
    pub rounds: usize,
    /// Rows that go through the model at a time.
    pub micro_rows: usize,
}

/// What can go wrong in a step; no weight was touched.
#[derive(Debug, Error)]
pub enum RlError {
    /// No answers.
    #[error(transparent)]
    Rollout(#[from] RolloutError),
    /// The task fails.
    #[error(transparent)]
    Task(#[from] TaskError),
    /// A question that cannot be put to the model, or an answer that cannot be read.
    #[error(transparent)]
    Prompt(#[from] PromptError),
    /// A reward that is no number.
    #[error(transparent)]
    Reward(#[from] BadReward),
    /// No update.
    #[error(transparent)]
    Step(#[from] StepError),
    /// Another rank is gone.
    #[error(transparent)]
    Lost(#[from] Lost),
    /// Another rank has no answers to its part of the items.
    #[error("rank {rank}: {message}")]
    OnRank {
        /// Which; the first that fails.
        rank: usize,
        /// What it says.
        message: String,
    },
    /// The sampler and the trainer disagree.
    #[error("a sampled log-probability differs from the recomputed one by {difference}: a bug, the step is not done")]
    Mismatch {
        /// The greatest.
        difference: f64,
    },
}

/// An answer with its reward.
#[derive(Clone, Debug, PartialEq)]
pub struct Rewarded {
    /// As sampled.
    pub answer: Answer,
    pub text: String,
    /// Bytes of the text that an environment said.
    pub said: Vec<Range<usize>>,
    /// By component.
    pub reward: Reward,
}

/// The answers to an item.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    pub item: Item,
    /// The prompt's tokens.
    pub prompt: Vec<u32>,
    pub answers: Vec<Rewarded>,
}

/// Samples and rewards answers to `items`; `seed_of` gives the seed of the n-th. Ranks share the items, and all of them
/// have all answers in the end.
///
/// # Errors
/// [`RlError`] as described there. A rank that fails has all others fail with [`RlError::OnRank`].
pub fn answer(
    comm: &dyn Comm,
    model: &Arc<Model>,
    params: &Arc<Params>,
    task: &dyn Task,
    prompter: &Prompter,
    items: Vec<Item>,
    seed_of: impl Fn(usize) -> u64,
    options: &RolloutOptions,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<Vec<Answered>, RlError> {
    let mut questions = Vec::new();
    for (n, item) in items.iter().enumerate() {
        questions.push(Question { prompt: prompter.tokens(&item.prompt)?, seed: seed_of(n) });
    }
    let mine = tree::sequences_of(comm.rank(), comm.world(), items.len());
    let (of_items, of_questions) = (&items[mine.clone()], &questions[mine]);
    let groups = match task.environment() {
        Some(environment) => play((model, params), environment, prompter, of_items, of_questions, options, watch),
        None => rollout(model, params, of_questions, options, watch)
            .map_err(RlError::from)
            .and_then(|answers| rewarded(task, prompter, of_items, answers, options)),
    };
    let groups = exchange(comm, groups)?;
    let answered = items.into_iter().zip(questions).zip(groups);
    Ok(answered.map(|((item, question), answers)| Answered { item, prompt: question.prompt, answers }).collect())
}

/// Answers of one turn with what the task says of them.
fn rewarded(
    task: &dyn Task,
    prompter: &Prompter,
    items: &[Item],
    answers: Vec<Vec<Answer>>,
    options: &RolloutOptions,
) -> Result<Vec<Vec<Rewarded>>, RlError> {
    let reward = |(item, answers): (&Item, Vec<Answer>)| -> Result<Vec<Rewarded>, RlError> {
        let reward = |answer: Answer| {
            let text = prompter.text(&answer.tokens, &options.stop_tokens)?;
            let reward = task.reward(item, &text)?;
            Ok(Rewarded { answer, text, said: Vec::new(), reward })
        };
        answers.into_iter().map(reward).collect()
    };
    items.iter().zip(answers).map(reward).collect()
}

/// The ranks' groups of answers, one rank's after the other's; or the failure of the first rank that has one.
fn exchange(comm: &dyn Comm, mine: Result<Vec<Vec<Rewarded>>, RlError>) -> Result<Vec<Vec<Rewarded>>, RlError> {
    if comm.world() == 1 {
        return mine;
    }
    // Log-probabilities as bits: no number changes on its way.
    type One = (Vec<u32>, Vec<u32>, Vec<Range<usize>>, bool, (String, Vec<Range<usize>>), Reward);
    type Wire = Result<Vec<Vec<One>>, String>;
    let wire = |it: Rewarded| {
        let Answer { tokens, logprobs, given, truncated } = it.answer;
        (tokens, logprobs.into_iter().map(f32::to_bits).collect(), given, truncated, (it.text, it.said), it.reward)
    };
    let (mine, own): (Wire, _) = match mine {
        Ok(mine) => (Ok(mine.into_iter().map(|group| group.into_iter().map(wire).collect()).collect()), None),
        Err(error) => (Err(error.to_string()), Some(error)),
    };
    let gathered = comm.all_gather(serde_json::to_vec(&mine).expect("numbers and text have a form in JSON"))?;
    if let Some(own) = own {
        return Err(own);
    }
    let mut all = Vec::new();
    for (rank, bytes) in gathered.iter().enumerate() {
        let groups: Wire = serde_json::from_slice(bytes).expect("what another rank wrote the same way");
        let groups = groups.map_err(|message| RlError::OnRank { rank, message })?;
        let back = |(tokens, logprobs, given, truncated, (text, said), reward): One| {
            let logprobs = logprobs.into_iter().map(f32::from_bits).collect();
            Rewarded { answer: Answer { tokens, logprobs, given, truncated }, text, said, reward }
        };
        all.extend(groups.into_iter().map(|group| group.into_iter().map(back).collect()));
    }
    Ok(all)
}

/// The item number `n` of a training: all items of a task in random order, then all again in another.
///
/// # Errors
/// [`TaskError`] if the task has no such item.
pub fn training_item(task: &dyn Task, seed: u64, n: u64) -> Result<Item, TaskError> {
    match task.len() {
        None => task.item(n),
        Some(len) => {
            let len = len.max(1);
            let key = Key { seed, stream: STREAM_ITEMS.wrapping_add((n / len) << 32) };
            task.item(wels_data::random::Permutation::new(len, key.u64_at(0)).at(n % len))
        }
    }
}

/// What a step has sampled.
pub struct Rollout {
    /// Every group that was sampled.
    pub answered: Vec<Answered>,
    /// Those of them that are learnt from.
    pub chosen: Vec<usize>,
    /// Groups that were sampled anew because their rewards are all equal.
    pub passed_over: usize,
    /// Items that were asked.
    pub items: u64,
    /// Tokens that were sampled.
    pub tokens: u64,
}

/// The first half of a step: samples the answers of step `step`, beginning with the training's item `first`.
///
/// # Errors
/// [`RlError`] as described there.
pub fn sample(
    trainer: &Trainer,
    task: &dyn Task,
    prompter: &Prompter,
    options: &RlOptions,
    seed: u64,
    first: u64,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<Rollout, RlError> {
    let params = Arc::new(trainer.whole_params()?);
    let key = Key { seed, stream: STREAM_ANSWERS };
    let mut rollout = Rollout { answered: Vec::new(), chosen: Vec::new(), passed_over: 0, items: 0, tokens: 0 };
    for round in 0..options.rounds.max(1) {
        let next = first + rollout.items;
        let items =
            (next..next + options.prompts as u64).map(|n| training_item(task, seed, n)).collect::<Result<_, _>>()?;
        let seed_of = |n: usize| key.u64_at(next + n as u64);
        let answered = answer(
            &**trainer.comm(),
            trainer.model(),
            &params,
            task,
            prompter,
            items,
            seed_of,
            &options.rollout,
            watch,
        )?;
        rollout.items += options.prompts as u64;
        rollout.tokens +=
            answered.iter().flat_map(|group| &group.answers).map(|it| it.answer.chosen() as u64).sum::<u64>();
        let dynamic = options.rounds > 1;
        let lives = |group: &Answered| advantages(&totals(group, options), options.grpo.scale).is_some();
        for group in answered {
            match !dynamic || lives(&group) {
                true => rollout.chosen.push(rollout.answered.len()),
                false => rollout.passed_over += 1,
            }
            rollout.answered.push(group);
        }
        if !dynamic || rollout.chosen.len() >= options.prompts || round + 1 == options.rounds {
            break;
        }
    }
    rollout.chosen.truncate(options.prompts);
    Ok(rollout)
}

/// The rewards of a group, penalties included.
fn totals(group: &Answered, options: &RlOptions) -> Vec<f64> {
    let total =
        |it: &Rewarded| it.reward.total(&options.weights) + options.grpo.overlong.penalty(it.answer.tokens.len());
    group.answers.iter().map(total).collect()
}

/// What a step did; means are over all answers that were sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RlReport {
    /// Mean total reward.
    pub reward: f64,
    /// Mean of each component, unweighted.
    pub accuracy: f64,
    /// See `accuracy`.
    pub format: f64,
    /// See `accuracy`; 0 where the task has no target language.
    pub language: f64,
    /// Share of answers that ran into the limit.
    pub truncated: f64,
    /// Mean tokens that were sampled of an answer.
    pub length: f64,
    /// Mean turns of an answer; 1 without an environment.
    pub turns: f64,
    /// Mean tokens that an environment put between the turns of an answer.
    pub observed: f64,
    /// Mean −logp of the sampled tokens: an unbiased estimate of the policy's entropy, nats a token.
    pub entropy: f64,
    /// Share of groups without deviation.
    pub dead_groups: f64,
    /// Tokens that were sampled.
    pub sampled_tokens: u64,
    /// Tokens that were learnt from: answers of live groups, each behind its prompt, with what an environment said.
    pub learned_tokens: u64,
    /// Greatest |logp sampled − logp recomputed|: 0, or the step fails.
    pub logprob_difference_max: f64,
    /// The objective, mean over mini-batches.
    pub policy: PolicyReport,
    /// One an update; none if all groups are dead.
    pub updates: Vec<StepReport>,
}

/// The second half of a step: learns from `rollout`. `reference` has the weights that KL is measured from.
///
/// # Errors
/// [`RlError`] as described there. Where a later mini-batch fails, the earlier ones have been learnt.
pub fn learn(
    trainer: &mut Trainer,
    reference: Option<&Params>,
    rollout: &Rollout,
    options: &RlOptions,
    key: Key,
) -> Result<RlReport, RlError> {
    let groups: Vec<Group> = rollout.chosen.iter().map(|at| as_group(&rollout.answered[*at], options)).collect();
    let parts_key = Key { stream: key.stream.wrapping_add(STREAM_PARTS), ..key };
    let (mut parts, dead) = PolicyBatch::of(&groups, &options.grpo, options.mini_batches, parts_key)?;
    let mut report = summary(rollout, options);
    report.dead_groups = (dead + rollout.passed_over) as f64 / rollout.answered.len().max(1) as f64;
    report.learned_tokens = parts.iter().map(|part| part.batch.tokens.len() as u64).sum();
    for part in &mut parts {
        if let (Some(reference), true) = (reference, options.grpo.kl > 0.0) {
            let logprobs = trainer.logprobs_of(reference, &part.batch, options.micro_rows)?;
            part.set_reference(&logprobs);
        }
    }
    // The first part is compared in its training pass, the others before the first update changes the weights.
    for part in parts.iter().skip(1) {
        compare(part, &trainer.logprobs(&part.batch, options.micro_rows)?, &mut report)?;
    }
    let count = parts.len() as f64;
    for (i, part) in parts.iter().enumerate() {
        // The first part meets the weights that sampled, so that its log-probabilities are known.
        let current = match (options.grpo.surrogate, i) {
            (Surrogate::Token, _) => None,
            (_, 0) => Some(part.sampled_logprobs().collect()),
            _ => Some(trainer.logprobs(&part.batch, options.micro_rows)?),
        };
        let each = current.and_then(|logprobs: Vec<f32>| part.coefficients(&logprobs));
        let coefficient = each.as_deref().map_or_else(|| part.coefficient(), Coefficient::PerToken);
        let pass = trainer.gradients(&part.batch, options.micro_rows, coefficient)?;
        if i == 0 {
            compare(part, &pass.logprobs, &mut report)?;
        }
        let policy = part.report(&pass.logprobs);
        report.policy.loss += policy.loss / count;
        report.policy.kl += policy.kl / count;
        report.policy.clipped_high += policy.clipped_high / count;
        report.policy.clipped_low += policy.clipped_low / count;
        report.policy.logprob_difference_max = report.policy.logprob_difference_max.max(policy.logprob_difference_max);
        report.policy.tokens += policy.tokens;
        report.updates.push(trainer.update(pass)?);
    }
    Ok(report)
}

fn compare(part: &PolicyBatch, recomputed: &[f32], report: &mut RlReport) -> Result<(), RlError> {
    let answers = part.batch.targets.iter().map(|target| *target != wels_device::IGNORE);
    let sampled = part.sampled_logprobs().zip(answers).filter(|(_, answer)| *answer).map(|(logp, _)| logp);
    let difference = difference(sampled, recomputed, &part.batch)?;
    report.logprob_difference_max = report.logprob_difference_max.max(difference);
    Ok(())
}

/// The greatest |logp sampled − logp recomputed|: 0. `sampled` has one for each target of the batch, `recomputed` one
/// for each row.
pub(crate) fn difference(
    sampled: impl Iterator<Item = f32>,
    recomputed: &[f32],
    batch: &Batch,
) -> Result<f64, RlError> {
    let rows = recomputed.iter().zip(&batch.targets);
    let recomputed = rows.filter(|(_, target)| **target != wels_device::IGNORE).map(|(logp, _)| *logp);
    // NaN is a difference too.
    let differs = |(sampled, recomputed): (f32, f32)| match (f64::from(sampled) - f64::from(recomputed)).abs() {
        difference if difference.is_nan() => f64::INFINITY,
        difference => difference,
    };
    match sampled.zip(recomputed).map(differs).fold(0.0, f64::max) {
        0.0 => Ok(0.0),
        difference => Err(RlError::Mismatch { difference }),
    }
}

fn as_group(group: &Answered, options: &RlOptions) -> Group {
    let sample = |(it, reward): (&Rewarded, f64)| Sample {
        tokens: it.answer.tokens.clone(),
        logprobs: it.answer.logprobs.clone(),
        given: it.answer.given.clone(),
        truncated: it.answer.truncated,
        reward,
    };
    let rewards = totals(group, options);
    Group { prompt: group.prompt.clone(), samples: group.answers.iter().zip(rewards).map(sample).collect() }
}

fn summary(rollout: &Rollout, options: &RlOptions) -> RlReport {
    let answers: Vec<&Rewarded> = rollout.answered.iter().flat_map(|group| &group.answers).collect();
    let n = answers.len().max(1) as f64;
    let mean = |value: &dyn Fn(&Rewarded) -> f64| answers.iter().map(|it| value(it)).sum::<f64>() / n;
    let tokens: usize = answers.iter().map(|it| it.answer.chosen()).sum();
    // Of what an environment said it is 0.
    let surprise: f64 = answers.iter().flat_map(|it| &it.answer.logprobs).map(|logp| -f64::from(*logp)).sum();
    RlReport {
        reward: rollout.answered.iter().flat_map(|group| totals(group, options)).sum::<f64>() / n,
        accuracy: mean(&|it| it.reward.accuracy),
        format: mean(&|it| it.reward.format),
        language: mean(&|it| it.reward.language.unwrap_or(0.0)),
        truncated: mean(&|it| f64::from(u8::from(it.answer.truncated))),
        length: tokens as f64 / n,
        turns: mean(&|it| (it.answer.given.len() + 1) as f64),
        observed: mean(&|it| (it.answer.tokens.len() - it.answer.chosen()) as f64),
        entropy: surprise / tokens.max(1) as f64,
        sampled_tokens: rollout.tokens,
        ..RlReport::default()
    }
}

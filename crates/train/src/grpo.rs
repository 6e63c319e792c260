//! Group relative policy optimization: from rewarded samples to a coefficient for each token.
//!
//! ```text
//! A_i   = (r_i − mean r) / std r                            over the samples of one prompt; without std: Dr.GRPO
//! ρ     = exp(logp − logp_old)                              a token
//! k3    = exp(logp_ref − logp) − (logp_ref − logp) − 1      KL to the reference, unbiased and ≥ 0
//! loss  = −Σ w · [ min(ρ A, clip(ρ, 1 − ε_low, 1 + ε_high) A) − β k3 ]      over the tokens of all samples
//! w     = 1/(N |o_i|)   a mean over samples of means over tokens     (Aggregation::SequenceMean)
//!       = 1/Σ |o_i|     a mean over tokens, DAPO                     (Aggregation::TokenMean)
//!       = 1/(N L)       a constant length, Dr.GRPO                   (Aggregation::Constant)
//! −∂loss/∂logp = w · [ ρ A, 0 where the clipped one is the lesser − β (1 − exp(logp_ref − logp)) ]
//! ```
//! N and the sums run over the samples of the batch. A group whose rewards are all equal says nothing about which
//! answer is better: it is *dead* and left out, its KL too.
//!
//! Sources: DeepSeekMath eq. 3, 4 (k3); DAPO, arXiv 2503.14476, eq. 8 to 13; Dr.GRPO, arXiv 2503.20783.

use thiserror::Error;
use wels_device::host::random::Key;
use wels_device::host::scalar;
use wels_device::{Coefficient, IGNORE, Policy, PolicyTerm};
use wels_model::model::Batch;

use crate::example::{Example, pack, shuffled};

/// What the advantages of a group are divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// The standard deviation of the group, divided by n (population).
    Deviation,
    /// The standard deviation of the group, divided by n − 1, as `torch.std` and TRL.
    SampleDeviation,
    /// Nothing: Dr.GRPO.
    None,
}

/// How the terms of the tokens are added up.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Aggregation {
    /// Mean over samples of the mean over a sample's tokens.
    SequenceMean,
    /// Mean over all tokens.
    TokenMean,
    /// Sum over all tokens, divided by the number of samples and this length.
    Constant(f64),
}

/// What to do about answers that ran into the limit of length.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Overlong {
    /// Nothing.
    Keep,
    /// Leave them out of the loss; they count in the group's mean and deviation.
    Filter,
    /// A penalty from 0 at `max − buffer` tokens to −1 at `max`.
    Penalty {
        /// The limit, tokens.
        max: usize,
        /// Tokens before it in which the penalty grows.
        buffer: usize,
    },
}

impl Overlong {
    /// What is added to the reward of an answer of `tokens` tokens (DAPO, eq. 13).
    pub fn penalty(self, tokens: usize) -> f64 {
        match self {
            Overlong::Penalty { max, buffer } => {
                -((tokens + buffer).saturating_sub(max) as f64 / buffer.max(1) as f64).min(1.0)
            }
            Overlong::Keep | Overlong::Filter => 0.0,
        }
    }
}

/// The objective.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Grpo {
    /// Divisor of the advantages.
    pub scale: Scale,
    /// How tokens are added up.
    pub aggregation: Aggregation,
    /// ε_low.
    pub clip_low: f64,
    /// ε_high.
    pub clip_high: f64,
    /// β, 0 for no reference.
    pub kl: f64,
    /// About answers that ran into the limit.
    pub overlong: Overlong,
}

/// One answer of the policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The answer's tokens.
    pub tokens: Vec<u32>,
    /// Log-probability of each when it was sampled.
    pub logprobs: Vec<f32>,
    /// Whether it ran into the limit of length.
    pub truncated: bool,
    /// What it earned, penalties included.
    pub reward: f64,
}

/// The answers to one prompt.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The prompt's tokens, at least one.
    pub prompt: Vec<u32>,
    /// Answers to it.
    pub samples: Vec<Sample>,
}

/// A reward that is not a number: nothing can be learnt from it, and nothing may be made of it silently.
#[derive(Clone, Debug, Error, PartialEq)]
#[error("the reward of sample {sample} of prompt {prompt} is {reward}")]
pub struct BadReward {
    /// From 0, in the step.
    pub prompt: usize,
    /// From 0, in the group.
    pub sample: usize,
    pub reward: f64,
}

/// A_i of each reward of a group; `None` if they are all equal.
///
/// # Panics
/// If a reward is not finite; see [`PolicyBatch::of`].
pub fn advantages(rewards: &[f64], scale: Scale) -> Option<Vec<f64>> {
    assert!(rewards.iter().all(|reward| reward.is_finite()), "rewards {rewards:?}");
    let n = rewards.len() as f64;
    if rewards.windows(2).all(|pair| pair[0] == pair[1]) {
        return None;
    }
    let mean = rewards.iter().sum::<f64>() / n;
    let squares: f64 = rewards.iter().map(|reward| (reward - mean).powi(2)).sum();
    let divisor = match scale {
        Scale::Deviation => (squares / n).sqrt(),
        Scale::SampleDeviation => (squares / (n - 1.0)).sqrt(),
        Scale::None => 1.0,
    };
    Some(rewards.iter().map(|reward| (reward - mean) / divisor).collect())
}

/// Samples ready to learn from.
#[derive(Clone, Debug)]
pub struct PolicyBatch {
    /// Prompt and answer of each sample, the targets being the answer's tokens.
    pub batch: Batch,
    /// One a row.
    terms: Vec<PolicyTerm>,
    clip_low: f32,
    clip_high: f32,
    kl: f32,
    pub samples: usize,
}

/// What the objective was, means over the tokens of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyReport {
    pub loss: f64,
    /// Of k3; 0 without a reference.
    pub kl: f64,
    /// Share of tokens whose ratio is above 1 + ε_high with an advantage above 0.
    pub clipped_high: f64,
    /// Share of tokens whose ratio is below 1 − ε_low with an advantage below 0.
    pub clipped_low: f64,
    /// Greatest |logp − logp_old|: 0 while the weights are those that sampled.
    pub logprob_difference_max: f64,
    pub tokens: u64,
}

/// A sample that counts, with its prompt and advantage.
struct LiveSample<'a> {
    prompt: &'a [u32],
    sample: &'a Sample,
    advantage: f64,
}

/// The samples of live groups, and how many groups are dead.
fn live_samples<'a>(groups: &'a [Group], grpo: &Grpo) -> Result<(Vec<LiveSample<'a>>, usize), BadReward> {
    let mut live = Vec::new();
    let mut dead = 0;
    for (prompt, group) in groups.iter().enumerate() {
        let rewards: Vec<f64> = group.samples.iter().map(|sample| sample.reward).collect();
        if let Some(sample) = rewards.iter().position(|reward| !reward.is_finite()) {
            return Err(BadReward { prompt, sample, reward: rewards[sample] });
        }
        let Some(advantages) = advantages(&rewards, grpo.scale) else {
            dead += 1;
            continue;
        };
        let filtered = |sample: &Sample| grpo.overlong == Overlong::Filter && sample.truncated;
        let counts = |sample: &Sample| !sample.tokens.is_empty() && !filtered(sample);
        let counted = group.samples.iter().zip(advantages).filter(|(sample, _)| counts(sample));
        live.extend(counted.map(|(sample, advantage)| LiveSample { prompt: &group.prompt, sample, advantage }));
    }
    Ok((live, dead))
}

impl PolicyBatch {
    /// The live samples of a rollout in `mini_batches` random parts of almost equal number, and the number of dead
    /// groups. Fewer parts if there are fewer samples; none if all groups are dead.
    ///
    /// # Errors
    /// [`BadReward`] for a reward that is not finite.
    pub fn of(
        groups: &[Group],
        grpo: &Grpo,
        mini_batches: usize,
        key: Key,
    ) -> Result<(Vec<PolicyBatch>, usize), BadReward> {
        let (live, dead) = live_samples(groups, grpo)?;
        let order = if mini_batches > 1 { shuffled(live.len(), key) } else { (0..live.len()).collect() };
        let parts = mini_batches.min(live.len());
        let part = |i: usize| &order[i * live.len() / parts..(i + 1) * live.len() / parts];
        let batches = (0..parts).map(|i| PolicyBatch::pack(part(i).iter().map(|at| &live[*at]).collect(), grpo));
        Ok((batches.collect(), dead))
    }

    fn pack(live: Vec<&LiveSample>, grpo: &Grpo) -> PolicyBatch {
        let examples: Vec<Example> = live.iter().map(|it| Example::answer(it.prompt, &it.sample.tokens)).collect();
        let n = live.len() as f64;
        let tokens: usize = live.iter().map(|it| it.sample.tokens.len()).sum();
        let mut terms = Vec::new();
        for it in &live {
            assert_eq!(it.sample.tokens.len(), it.sample.logprobs.len(), "tokens and log-probabilities of a sample");
            let weight = match grpo.aggregation {
                Aggregation::SequenceMean => 1.0 / (n * it.sample.tokens.len() as f64),
                Aggregation::TokenMean => 1.0 / tokens as f64,
                Aggregation::Constant(length) => 1.0 / (n * length),
            } as f32;
            terms.resize(terms.len() + it.prompt.len() - 1, PolicyTerm::default());
            let advantage = it.advantage as f32;
            terms.extend(it.sample.logprobs.iter().map(|&old| PolicyTerm { advantage, weight, old, reference: 0.0 }));
        }
        PolicyBatch {
            batch: pack(&examples),
            terms,
            clip_low: (1.0 - grpo.clip_low) as f32,
            clip_high: (1.0 + grpo.clip_high) as f32,
            kl: grpo.kl as f32,
            samples: live.len(),
        }
    }

    /// Log-probabilities of the batch's targets when they were sampled, `[T]`, 0 for prompts.
    pub fn sampled_logprobs(&self) -> impl Iterator<Item = f32> {
        self.terms.iter().map(|term| term.old)
    }

    /// Sets the reference's log-probabilities of the batch's targets, `[T]`.
    ///
    /// # Panics
    /// If there is not one a row.
    pub fn set_reference(&mut self, logprobs: &[f32]) {
        assert_eq!(logprobs.len(), self.terms.len(), "log-probabilities of the reference and rows");
        self.terms.iter_mut().zip(logprobs).for_each(|(term, logp)| term.reference = *logp);
    }

    /// The objective's −∂loss/∂logp of the targets.
    pub fn coefficient(&self) -> Coefficient<'_> {
        Coefficient::Policy(self.policy())
    }

    /// One a row.
    pub(crate) fn terms(&self) -> &[PolicyTerm] {
        &self.terms
    }

    fn policy(&self) -> Policy<'_> {
        Policy { terms: &self.terms, clip_low: self.clip_low, clip_high: self.clip_high, kl: self.kl }
    }

    /// What the objective is at these log-probabilities of the targets, `[T]`.
    pub fn report(&self, logprobs: &[f32]) -> PolicyReport {
        assert_eq!(logprobs.len(), self.terms.len(), "log-probabilities and rows");
        let mut sum = PolicyReport::default();
        let rows = self.terms.iter().zip(logprobs).zip(&self.batch.targets);
        for ((term, &logp), _) in rows.filter(|(_, target)| **target != IGNORE) {
            let [logp64, old, reference] = [logp, term.old, term.reference].map(f64::from);
            let (ratio, advantage) = (libm::exp(logp64 - old), f64::from(term.advantage));
            let clipped = ratio.clamp(f64::from(self.clip_low), f64::from(self.clip_high));
            let policy = (ratio * advantage).min(clipped * advantage);
            let kl = if self.kl == 0.0 { 0.0 } else { libm::exp(reference - logp64) - (reference - logp64) - 1.0 };
            sum.loss -= f64::from(term.weight) * (policy - f64::from(self.kl) * kl);
            sum.kl += kl;
            let clips = f64::from(u8::from(self.policy().clips(term, scalar::exp(logp - term.old))));
            sum.clipped_high += if advantage > 0.0 { clips } else { 0.0 };
            sum.clipped_low += if advantage > 0.0 { 0.0 } else { clips };
            sum.logprob_difference_max = sum.logprob_difference_max.max((logp64 - old).abs());
            sum.tokens += 1;
        }
        let tokens = sum.tokens.max(1) as f64;
        PolicyReport {
            kl: sum.kl / tokens,
            clipped_high: sum.clipped_high / tokens,
            clipped_low: sum.clipped_low / tokens,
            ..sum
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Grpo = Grpo {
        scale: Scale::Deviation,
        aggregation: Aggregation::TokenMean,
        clip_low: 0.2,
        clip_high: 0.2,
        kl: 0.0,
        overlong: Overlong::Keep,
    };

    fn group(rewards: &[f64]) -> Group {
        let sample = |(i, reward): (usize, &f64)| Sample {
            tokens: vec![7; i + 1],
            logprobs: vec![-1.0; i + 1],
            truncated: i == 2,
            reward: *reward,
        };
        Group { prompt: vec![1, 2, 3], samples: rewards.iter().enumerate().map(sample).collect() }
    }

    #[test]
    fn advantages_of_equal_rewards_are_none() {
        assert_eq!(advantages(&[0.1, 0.1, 0.1], Scale::Deviation), None);
        assert_eq!(advantages(&[1.0], Scale::SampleDeviation), None);
        assert_eq!(advantages(&[1.0, 0.0, 0.0, 1.0], Scale::Deviation), Some(vec![1.0, -1.0, -1.0, 1.0]));
        assert_eq!(advantages(&[3.0, 1.0], Scale::None), Some(vec![1.0, -1.0]));
    }

    #[test]
    fn dead_groups_and_filtered_answers_are_left_out() {
        let groups = [group(&[1.0, 0.0, 0.0]), group(&[1.0, 1.0, 1.0])];
        let key = Key { seed: 1, stream: 1 };
        let (batches, dead) = PolicyBatch::of(&groups, &PLAIN, 1, key).unwrap();
        assert_eq!((batches.len(), dead, batches[0].samples), (1, 1, 3));
        assert_eq!(batches[0].batch.starts, [0, 3, 7, 12]);
        let filter = Grpo { overlong: Overlong::Filter, ..PLAIN };
        assert_eq!(PolicyBatch::of(&groups, &filter, 1, key).unwrap().0[0].samples, 2);
        assert!(PolicyBatch::of(&groups[1..], &PLAIN, 4, key).unwrap().0.is_empty());
        let (parts, _) = PolicyBatch::of(&groups, &PLAIN, 2, key).unwrap();
        assert_eq!(parts.iter().map(|part| part.samples).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_reward_that_is_no_number_is_an_error() {
        let error = PolicyBatch::of(&[group(&[1.0, f64::NAN])], &PLAIN, 1, Key { seed: 1, stream: 1 }).unwrap_err();
        assert_eq!(error.to_string(), "the reward of sample 1 of prompt 0 is NaN");
    }

    #[test]
    fn the_penalty_grows_within_its_buffer() {
        let penalty = Overlong::Penalty { max: 100, buffer: 20 };
        assert_eq!([50, 80, 90, 100, 120].map(|tokens| penalty.penalty(tokens)), [0.0, 0.0, -0.5, -1.0, -1.0]);
        assert_eq!(Overlong::Keep.penalty(1000), 0.0);
    }
}

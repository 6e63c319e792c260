//! Group relative policy optimization: from rewarded samples to a coefficient for each token.
//!
//! ```text
//! A_i   = (r_i − mean r) / std r                            over the samples of one prompt; without std: Dr.GRPO
//! ρ     = exp(logp − logp_old)                              a token
//! s_i   = exp(Σ (logp − logp_old) / |o_i|)                  a sample
//! k3    = exp(logp_ref − logp) − (logp_ref − logp) − 1      KL to the reference, unbiased and ≥ 0
//! loss  = −Σ w · [ f − β k3 ]                               over the tokens of all samples
//! w     = 1/(N |o_i|)   a mean over samples of means over tokens     (Aggregation::SequenceMean)
//!       = 1/Σ |o_i|     a mean over tokens, DAPO                     (Aggregation::TokenMean)
//!       = 1/(N L)       a constant length, Dr.GRPO                   (Aggregation::Constant)
//!
//! f and ∂f/∂logp, clip(x) being x within 1 − ε_low and 1 + ε_high, sg a value that no gradient flows through:
//! GRPO    min(ρ A, clip(ρ) A)          ρ A, 0 where the clipped one is the lesser           (Surrogate::Token)
//! GSPO    min(s A, clip(s) A)          s A, 0 for the whole sample where …                  (Surrogate::Sequence)
//! CISPO   sg(clip(ρ)) A logp           clip(ρ) A, which no token is without                 (Surrogate::Weight)
//!
//! −∂loss/∂logp = w · [ ∂f/∂logp − β (1 − exp(logp_ref − logp)) ]
//! ```
//! N and the sums run over the samples of the batch, |o_i| counts the tokens that the policy chose: those that an
//! environment put between them are seen and not learnt. A group whose rewards are all equal says nothing about which
//! answer is better: it is *dead* and left out, its KL too.
//!
//! With the mean over samples this is GSPO as published: the gradient of s to a token's logp is s/|o|. With another
//! mean it is GSPO-token, sg(s)·ρ/sg(ρ), whose value and gradient are those of GSPO where a sample's tokens have one
//! advantage, as here.
//!
//! Sources: DeepSeekMath eq. 3, 4 (k3); DAPO, arXiv 2503.14476, eq. 8 to 13; Dr.GRPO, arXiv 2503.20783; GSPO, arXiv
//! 2507.18071, section 4; CISPO, MiniMax-M1, arXiv 2506.13585, section 3.1.

use std::ops::Range;

use thiserror::Error;
use wels_device::host::random::Key;
use wels_device::host::scalar;
use wels_device::{Coefficient, IGNORE, Policy, PolicyTerm};
use wels_model::model::Batch;

use crate::example::{Example, pack, shuffled};

/// What a token's advantage is multiplied with, and where the gradient ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Surrogate {
    /// The token's ratio, clipped where that gives the lesser term: GRPO.
    #[default]
    Token,
    /// The ratio of the whole sample, normalised by its length: GSPO.
    Sequence,
    /// The token's clipped ratio as a weight of its log-probability: CISPO.
    Weight,
}

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
    /// What is multiplied with the advantages.
    pub surrogate: Surrogate,
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
    /// Places of tokens that the policy did not choose, in order: what an environment said.
    pub given: Vec<Range<usize>>,
    /// Whether it ran into the limit of length.
    pub truncated: bool,
    /// What it earned, penalties included.
    pub reward: f64,
}

impl Sample {
    /// How many tokens the policy has chosen.
    pub fn chosen(&self) -> usize {
        self.tokens.len() - self.given.iter().map(ExactSizeIterator::len).sum::<usize>()
    }
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
    surrogate: Surrogate,
    pub samples: usize,
}

/// What the objective was, means over the tokens of the batch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct PolicyReport {
    pub loss: f64,
    /// Of k3; 0 without a reference.
    pub kl: f64,
    /// Share of tokens that are clipped at 1 + ε_high: their ratio, or their sample's, is above it with an advantage
    /// above 0; of CISPO whatever the advantage.
    pub clipped_high: f64,
    /// The same at 1 − ε_low, with an advantage below 0.
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
        let counts = |sample: &Sample| sample.chosen() > 0 && !filtered(sample);
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
        let example = |it: &&LiveSample| Example::episode(it.prompt, &it.sample.tokens, &it.sample.given);
        let examples: Vec<Example> = live.iter().map(example).collect();
        let n = live.len() as f64;
        let tokens: usize = live.iter().map(|it| it.sample.chosen()).sum();
        let mut terms = Vec::new();
        for it in &live {
            assert_eq!(it.sample.tokens.len(), it.sample.logprobs.len(), "tokens and log-probabilities of a sample");
            let weight = match grpo.aggregation {
                Aggregation::SequenceMean => 1.0 / (n * it.sample.chosen() as f64),
                Aggregation::TokenMean => 1.0 / tokens as f64,
                Aggregation::Constant(length) => 1.0 / (n * length),
            } as f32;
            terms.resize(terms.len() + it.prompt.len() - 1, PolicyTerm::default());
            let (first, advantage) = (terms.len(), it.advantage as f32);
            terms.extend(it.sample.logprobs.iter().map(|&old| PolicyTerm { advantage, weight, old, reference: 0.0 }));
            for range in &it.sample.given {
                terms[first + range.start..first + range.end].fill(PolicyTerm::default());
            }
        }
        PolicyBatch {
            batch: pack(&examples),
            terms,
            clip_low: (1.0 - grpo.clip_low) as f32,
            clip_high: (1.0 + grpo.clip_high) as f32,
            kl: grpo.kl as f32,
            surrogate: grpo.surrogate,
            samples: live.len(),
        }
    }

    /// Log-probabilities of the batch's targets when they were sampled, `[T]`, 0 where there is none.
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

    /// The objective's −∂loss/∂logp of the targets as a function of each one's log-probability.
    ///
    /// # Panics
    /// If the objective needs more than that; see [`PolicyBatch::coefficients`].
    pub fn coefficient(&self) -> Coefficient<'_> {
        assert_eq!(self.surrogate, Surrogate::Token, "an objective of which a token's log-probability is not enough");
        Coefficient::Policy(self.policy())
    }

    /// The objective's −∂loss/∂logp of the targets, `[T]`, given the log-probabilities of all of them under the weights
    /// that the gradient is taken at. `None` where [`PolicyBatch::coefficient`] does without these.
    ///
    /// # Panics
    /// If there is not one a row.
    pub fn coefficients(&self, logprobs: &[f32]) -> Option<Vec<f32>> {
        if self.surrogate == Surrogate::Token {
            return None;
        }
        let factors = self.factors(logprobs);
        let coefficient = |((term, &logp), factor): ((&PolicyTerm, &f32), &Factor)| {
            let policy = if factor.clips { 0.0 } else { factor.ratio };
            let beyond = libm::exp(f64::from(term.reference) - f64::from(logp));
            let kl = if self.kl == 0.0 { 0.0 } else { f64::from(self.kl) * (1.0 - beyond) };
            (f64::from(term.weight) * (policy * f64::from(term.advantage) - kl)) as f32
        };
        Some(self.terms.iter().zip(logprobs).zip(&factors).map(coefficient).collect())
    }

    /// What the advantage of each row is multiplied with, `[T]`.
    fn factors(&self, logprobs: &[f32]) -> Vec<Factor> {
        assert_eq!(logprobs.len(), self.terms.len(), "log-probabilities and rows");
        let (low, high) = (f64::from(self.clip_low), f64::from(self.clip_high));
        let difference = |row: usize| match self.batch.targets[row] {
            IGNORE => 0.0,
            _ => f64::from(logprobs[row]) - f64::from(self.terms[row].old),
        };
        let mut factors = Vec::with_capacity(logprobs.len());
        for sample in self.batch.starts.windows(2).map(|pair| pair[0] as usize..pair[1] as usize) {
            let chosen = self.batch.targets[sample.clone()].iter().filter(|target| **target != IGNORE).count();
            // In the order of the tokens.
            let whole = sample.clone().map(difference).sum::<f64>() / chosen.max(1) as f64;
            factors.extend(sample.map(|row| match self.surrogate {
                Surrogate::Token => {
                    let ratio = libm::exp(difference(row));
                    let clips = self.policy().clips(&self.terms[row], scalar::exp(logprobs[row] - self.terms[row].old));
                    Factor { ratio, clips, clipped: ratio.clamp(low, high) }
                }
                Surrogate::Sequence => {
                    let ratio = libm::exp(whole);
                    let clips = self.policy().clips(&self.terms[row], ratio as f32);
                    Factor { ratio, clips, clipped: ratio.clamp(low, high) }
                }
                Surrogate::Weight => {
                    let weight = libm::exp(difference(row)).clamp(low, high);
                    Factor { ratio: weight, clips: false, clipped: weight }
                }
            }));
        }
        factors
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
        let factors = self.factors(logprobs);
        let mut sum = PolicyReport::default();
        let rows = self.terms.iter().zip(logprobs).zip(&factors).zip(&self.batch.targets);
        for (((term, &logp), factor), _) in rows.filter(|(_, target)| **target != IGNORE) {
            let [logp64, old, reference] = [logp, term.old, term.reference].map(f64::from);
            let advantage = f64::from(term.advantage);
            let policy = match self.surrogate {
                Surrogate::Weight => factor.ratio * advantage * logp64,
                _ => (factor.ratio * advantage).min(factor.clipped * advantage),
            };
            let kl = if self.kl == 0.0 { 0.0 } else { libm::exp(reference - logp64) - (reference - logp64) - 1.0 };
            sum.loss -= f64::from(term.weight) * (policy - f64::from(self.kl) * kl);
            sum.kl += kl;
            let [high, low] = self.clipped(term, factor, logp64 - old);
            sum.clipped_high += high;
            sum.clipped_low += low;
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

    /// Whether a token's factor is clipped, from above and from below: 1 or 0.
    fn clipped(&self, term: &PolicyTerm, factor: &Factor, difference: f64) -> [f64; 2] {
        let [high, low] = match self.surrogate {
            Surrogate::Weight => {
                let ratio = libm::exp(difference);
                [ratio > f64::from(self.clip_high), ratio < f64::from(self.clip_low)]
            }
            _ => [factor.clips && term.advantage > 0.0, factor.clips && term.advantage <= 0.0],
        };
        [high, low].map(|clips| f64::from(u8::from(clips)))
    }
}

/// What an advantage is multiplied with.
struct Factor {
    ratio: f64,
    /// The same within the limits.
    clipped: f64,
    /// Whether the clipped one gives the lesser term, so that no gradient flows.
    clips: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Grpo = Grpo {
        surrogate: Surrogate::Token,
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
            given: Vec::new(),
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

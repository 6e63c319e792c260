//! The sampler: from logits to a token.
//!
//! The random number is a function of (seed, choice, position): not the next one of a generator's state. So batching,
//! speculation and starting again change nothing. Temperatures go through the kernels' own exponential, sums have a
//! stated order, and no step sorts the vocabulary: candidates of equal leading bits are counted first, and only the
//! bucket in which a limit falls is sorted.

use std::collections::HashMap;
use std::ops::ControlFlow;

use wels_kernels::random::Key;
use wels_kernels::sample;

use crate::request::Sampling;

/// Streams of the random numbers that choose tokens: this one, plus the request's `choice` in the upper half.
const STREAM: u64 = 0x7361_6d70;

/// Chooses the tokens of one sequence.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    key: Key,
    /// How often each token is in the answer; tokens of the prompt alone have 0. Kept only where penalties need it.
    seen: HashMap<u32, u32>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    pub token: u32,
    /// Its log-probability and the likeliest tokens', of the logits as they came; where they were asked for.
    pub logprobs: Option<(f32, Vec<(u32, f32)>)>,
}

/// Buffers `[V]` that choices share.
#[derive(Clone, Debug, Default)]
pub struct Scratch {
    adjusted: Vec<f32>,
    weights: Vec<f32>,
    candidates: Vec<Candidate>,
}

/// A token and its weight, exp((logit − max) / temperature).
type Candidate = (u32, f32);

impl Sampler {
    /// For a sequence that begins with `prompt`; `choice` tells the answers to one prompt apart.
    pub fn new(sampling: Sampling, choice: u32, prompt: &[u32]) -> Self {
        let key = Key { seed: sampling.seed, stream: STREAM | u64::from(choice) << 32 };
        let mut sampler = Sampler { sampling, key, seen: HashMap::new() };
        if sampler.sampling.repetition_penalty != 1.0 {
            sampler.seen.extend(prompt.iter().map(|token| (*token, 0)));
        }
        sampler
    }

    /// The token at `position` of the sequence, from its logits `[V]` and, of a constraint, the tokens that are
    /// allowed: token t is bit t mod 32 of word t/32.
    /// `None` if no logit that counts is finite, or the greatest is NaN or ∞.
    ///
    /// # Panics
    /// If there are no logits.
    pub fn choose(
        &self,
        logits: &[f32],
        position: usize,
        allowed: Option<&[u32]>,
        top_logprobs: Option<usize>,
        scratch: &mut Scratch,
    ) -> Option<Choice> {
        assert!(!logits.is_empty(), "a choice among no tokens");
        let Scratch { adjusted, weights, candidates } = scratch;
        weights.resize(logits.len(), 0.0);
        let logits_count = if self.adjusts() || allowed.is_some() {
            self.adjust(logits, allowed, adjusted);
            &adjusted[..]
        } else {
            logits
        };
        let token = match self.sampling.is_greedy() {
            true => likeliest(logits_count)?,
            false => {
                let (max, _) = sample::weights(logits_count, 1.0 / self.sampling.temperature, weights);
                if !max.is_finite() || weights.iter().any(|w| w.is_nan()) {
                    return None;
                }
                let uniform = self.key.uniform_at(position as u64);
                match self.filters() {
                    false => draw_from_all(weights, uniform),
                    true => {
                        self.filter(weights, candidates);
                        draw(candidates.iter().copied(), uniform)
                    }
                }
            }
        };
        let logprobs = top_logprobs.map(|top| {
            let total = sample::weights(logits, 1.0, weights);
            let logprob = |token: u32| sample::logprob(logits[token as usize], total);
            (logprob(token), top_of(logits, top).into_iter().map(|token| (token, logprob(token))).collect())
        });
        Some(Choice { token, logprobs })
    }

    /// Counts tokens that somebody else has said, as those of the prompt.
    pub fn given(&mut self, tokens: &[u32]) {
        if self.sampling.repetition_penalty != 1.0 {
            tokens.iter().for_each(|token| _ = self.seen.entry(*token).or_insert(0));
        }
    }

    /// Counts a token of the answer.
    pub fn push(&mut self, token: u32) {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        if repetition_penalty != 1.0 || presence_penalty != 0.0 || frequency_penalty != 0.0 {
            *self.seen.entry(token).or_insert(0) += 1;
        }
    }

    fn adjusts(&self) -> bool {
        !self.seen.is_empty() || !self.sampling.logit_bias.is_empty()
    }

    fn filters(&self) -> bool {
        self.sampling.top_k > 0 || self.sampling.top_p < 1.0 || self.sampling.min_p > 0.0
    }

    /// Constraint, bias, penalties.
    fn adjust(&self, logits: &[f32], allowed: Option<&[u32]>, adjusted: &mut Vec<f32>) {
        adjusted.clear();
        adjusted.extend_from_slice(logits);
        if let Some(allowed) = allowed {
            for (word, logits) in allowed.iter().zip(adjusted.chunks_mut(32)) {
                (0..).zip(logits).filter(|(bit, _)| word >> bit & 1 == 0).for_each(|(_, l)| *l = f32::NEG_INFINITY);
            }
        }
        for (token, bias) in &self.sampling.logit_bias {
            adjusted[*token as usize] += bias;
        }
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        for (&token, &count) in &self.seen {
            let logit = &mut adjusted[token as usize];
            *logit = if *logit > 0.0 { *logit / repetition_penalty } else { *logit * repetition_penalty };
            if count > 0 {
                *logit -= presence_penalty + count as f32 * frequency_penalty;
            }
        }
    }

    /// The candidates that min-p, top-k and top-p leave, the likeliest first, of equals the lowest id.
    fn filter(&self, weights: &[f32], candidates: &mut Vec<Candidate>) {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let top_k = if top_k == 0 { usize::MAX } else { top_k };
        // The greatest weight is exp(0) = 1, so weights are fractions of it.
        let least = |weight: f32| weight > 0.0 && weight >= min_p;
        let buckets = Buckets::of(weights.iter().copied().filter(|weight| least(*weight)));
        let kept = buckets.reach(top_k);
        // What top-k leaves, to a bucket; its sum is the whole that top-p takes a share of. The last bucket is cut
        // below.
        candidates.clear();
        candidates
            .extend((0..).zip(weights.iter().copied()).filter(|(_, weight)| least(*weight) && bucket(*weight) >= kept));
        if candidates.len() > top_k {
            let order = |a: &Candidate, b: &Candidate| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
            candidates.select_nth_unstable_by(top_k - 1, order);
            candidates.truncate(top_k);
            candidates.sort_unstable_by_key(|candidate| candidate.0);
        }
        if top_p < 1.0 {
            keep_likeliest(candidates, top_p);
        }
    }
}

/// The log-probabilities of `tokens` under softmax(`logits[V]`).
pub(crate) fn logprobs_of(logits: &[f32], tokens: &[u32], scratch: &mut Scratch) -> Vec<f32> {
    if tokens.is_empty() {
        return Vec::new();
    }
    scratch.weights.resize(logits.len(), 0.0);
    let total = sample::weights(logits, 1.0, &mut scratch.weights);
    tokens.iter().map(|token| sample::logprob(logits[*token as usize], total)).collect()
}

/// Keeps the fewest candidates that together have `top_p` of the weight: the likeliest, of equals the lowest ids. Takes
/// and leaves them in the order of their ids.
fn keep_likeliest(candidates: &mut Vec<Candidate>, top_p: f32) {
    let total: f64 = candidates.iter().map(|(_, weight)| f64::from(*weight)).sum();
    let enough = f64::from(top_p) * total;
    let mut sums = [0.0f64; BUCKETS];
    candidates.iter().for_each(|(_, weight)| sums[bucket(*weight)] += f64::from(*weight));
    // Whole buckets from the likeliest on, until the next one would be enough.
    let mut sum = 0.0;
    let crossed = (0..BUCKETS).rev().try_for_each(|bucket| match sum + sums[bucket] >= enough {
        true => ControlFlow::Break(bucket),
        false => {
            sum += sums[bucket];
            ControlFlow::Continue(())
        }
    });
    let ControlFlow::Break(last) = crossed else { return };
    let mut edge: Vec<Candidate> = candidates.iter().copied().filter(|c| bucket(c.1) == last).collect();
    edge.sort_unstable_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let fits = edge.iter().position(|(_, weight)| {
        sum += f64::from(*weight);
        sum >= enough
    });
    // Of weights equal to the last one, those up to its id.
    let (id, weight) = edge[fits.unwrap_or(edge.len() - 1)];
    candidates.retain(|c| bucket(c.1) > last || c.1 > weight || c.1 == weight && c.0 <= id);
}

/// Weights of equal exponent and leading three bits of the fraction. Weights are in (0, 1].
fn bucket(weight: f32) -> usize {
    (weight.to_bits() >> 20) as usize
}

const BUCKETS: usize = (1f32.to_bits() >> 20) as usize + 1;

/// How many weights fall into each bucket.
struct Buckets([u32; BUCKETS]);

impl Buckets {
    fn of(weights: impl Iterator<Item = f32>) -> Self {
        let mut counts = [0; BUCKETS];
        weights.for_each(|weight| counts[bucket(weight)] += 1);
        Buckets(counts)
    }

    /// The highest bucket that, with those above, has `count` weights; 0 if all together have fewer.
    fn reach(&self, count: usize) -> usize {
        let mut sum = 0;
        (0..BUCKETS)
            .rev()
            .find(|bucket| {
                sum += self.0[*bucket] as usize;
                sum >= count
            })
            .unwrap_or(0)
    }
}

/// The token in whose share of the weight the number `uniform` in [0, 1) falls. Sums are chains in f64.
fn draw(candidates: impl Iterator<Item = Candidate> + Clone, uniform: f64) -> u32 {
    let total: f64 = candidates.clone().map(|(_, weight)| f64::from(weight)).sum();
    let target = uniform * total;
    let (mut sum, mut last) = (0.0, 0);
    for (token, weight) in candidates.filter(|(_, weight)| *weight > 0.0) {
        sum += f64::from(weight);
        last = token;
        if sum > target {
            break;
        }
    }
    last
}

/// As [`draw`] from all tokens, but by blocks: their sums are f32 by [`block_sum`], added up in f64.
fn draw_from_all(weights: &[f32], uniform: f64) -> u32 {
    const BLOCK: usize = 512;
    let total: f64 = weights.chunks(BLOCK).map(|block| f64::from(block_sum(block))).sum();
    let target = uniform * total;
    let mut sum = 0.0;
    let mut found = 0;
    for (b, block) in weights.chunks(BLOCK).enumerate() {
        let of_block = f64::from(block_sum(block));
        if of_block == 0.0 {
            continue;
        }
        found = b;
        if sum + of_block > target {
            break;
        }
        sum += of_block;
    }
    let first = (found * BLOCK) as u32;
    let block = &weights[found * BLOCK..weights.len().min((found + 1) * BLOCK)];
    let (mut sum, mut last) = (sum, 0);
    for (token, weight) in (first..).zip(block).filter(|(_, weight)| **weight > 0.0) {
        sum += f64::from(*weight);
        last = token;
        if sum > target {
            break;
        }
    }
    last
}

/// Sixteen partial sums, added in order.
fn block_sum(block: &[f32]) -> f32 {
    let (chunks, rest) = block.as_chunks::<16>();
    let mut partial = [0.0f32; 16];
    for chunk in chunks {
        partial.iter_mut().zip(chunk).for_each(|(sum, weight)| *sum += weight);
    }
    partial.iter().chain(rest).sum()
}

/// The token of the greatest logit, of equals the lowest; `None` if that is NaN or not finite.
fn likeliest(logits: &[f32]) -> Option<u32> {
    let (chunks, rest) = logits.as_chunks::<16>();
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut nan = false;
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(max, l)| *max = if *l > *max { *l } else { *max });
        nan |= chunk.iter().fold(false, |nan, l| nan | l.is_nan());
    }
    let max = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, l| if *l > max { *l } else { max });
    if nan || rest.iter().any(|l| l.is_nan()) || !max.is_finite() {
        return None;
    }
    logits.iter().position(|l| *l == max).map(|token| token as u32)
}

/// The `count` likeliest tokens, the likeliest first, of equals the lowest id.
fn top_of(logits: &[f32], count: usize) -> Vec<u32> {
    let mut top: Vec<u32> = Vec::with_capacity(count + 1);
    if count == 0 {
        return top;
    }
    for (token, logit) in (0u32..).zip(logits) {
        if top.len() == count && *logit <= logits[top[count - 1] as usize] {
            continue;
        }
        let place = top.partition_point(|other| logits[*other as usize] >= *logit);
        top.insert(place, token);
        top.truncate(count);
    }
    top
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use wels_kernels::random::fill_normal;

    fn choose(sampling: &Sampling, logits: &[f32], position: usize) -> u32 {
        Sampler::new(sampling.clone(), 0, &[])
            .choose(logits, position, None, None, &mut Scratch::default())
            .expect("finite logits")
            .token
    }

    /// What the filters mean, by sorting everything.
    fn filtered(sampling: &Sampling, weights: &[f32]) -> Vec<u32> {
        let mut all: Vec<Candidate> = (0..).zip(weights.iter().copied()).filter(|(_, w)| *w > 0.0).collect();
        all.retain(|(_, weight)| *weight >= sampling.min_p);
        all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if sampling.top_k > 0 {
            all.truncate(sampling.top_k);
        }
        let total: f64 = all.iter().map(|(_, weight)| f64::from(*weight)).sum();
        let mut sum = 0.0;
        let enough = all.iter().position(|(_, weight)| {
            sum += f64::from(*weight);
            sum >= f64::from(sampling.top_p) * total * (1.0 - 1e-12)
        });
        all.truncate(enough.map_or(all.len(), |last| last + 1));
        let mut ids: Vec<u32> = all.into_iter().map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    proptest! {
        /// Powers of two as weights make every sum exact, and many weights equal.
        #[test]
        fn filters_keep_what_sorting_everything_keeps(
            powers in prop::collection::vec(0i32..12, 1..200),
            top_k in 0usize..40,
            top_p in prop::sample::select(vec![1.0f32, 0.96875, 0.75, 0.5, 0.25, 0.0]),
            min_p in prop::sample::select(vec![0.0f32, 0.01, 0.25, 1.0]),
        ) {
            let least = *powers.iter().min().unwrap();
            let weights: Vec<f32> = powers.iter().map(|power| 2f32.powi(least - power)).collect();
            let sampling = Sampling { top_k, top_p, min_p, ..Sampling::default() };
            let mut candidates = vec![];
            Sampler::new(sampling.clone(), 0, &[]).filter(&weights, &mut candidates);
            let kept: Vec<u32> = candidates.into_iter().map(|(id, _)| id).collect();
            prop_assert_eq!(kept, filtered(&sampling, &weights));
        }

        #[test]
        fn the_block_drawn_from_is_the_one_that_a_chain_finds(
            seed in 0u64..1000, len in 1usize..3000, uniform in 0.0f64..1.0,
        ) {
            let mut weights = vec![0.0; len];
            fill_normal(&mut weights, 1.0, Key { seed, stream: 0 }, 0);
            // Multiples of 1/64 below 8: every sum is exact.
            weights.iter_mut().for_each(|w| *w = (w.abs() * 64.0).round() / 64.0);
            prop_assume!(weights.iter().any(|w| *w > 0.0));
            prop_assert_eq!(draw_from_all(&weights, uniform), draw((0..).zip(weights.iter().copied()), uniform));
        }
    }

    #[test]
    fn greedy_takes_the_first_of_the_likeliest() {
        assert_eq!(choose(&Sampling::greedy(), &[0.5, 2.0, -1.0, 2.0], 0), 1);
        let mut many = vec![0.0; 100];
        (many[40], many[77], many[99]) = (3.0, 3.0, 3.0);
        assert_eq!(choose(&Sampling::greedy(), &many, 0), 40);
        let nearly = Sampling { temperature: 1e-3, seed: 4, ..Sampling::default() };
        assert_eq!(choose(&nearly, &[0.5, 2.0, -1.0, 1.0], 9), 1);
    }

    #[test]
    fn frequencies_are_the_probabilities() {
        let logits = [0.1f32.ln(), 0.6f32.ln(), 0.3f32.ln()];
        let count = |sampling: Sampling| {
            let mut count = [0i32; 3];
            (0..10_000).for_each(|position| count[choose(&sampling, &logits, position) as usize] += 1);
            count
        };
        let near = |count: [i32; 3], expected: [i32; 3]| count.iter().zip(expected).all(|(a, b)| (a - b).abs() < 200);
        let all = count(Sampling { seed: 1, ..Sampling::default() });
        assert!(near(all, [1000, 6000, 3000]), "{all:?}");
        let two = count(Sampling { top_p: 0.8, seed: 2, ..Sampling::default() });
        assert!(near(two, [0, 6667, 3333]) && two[0] == 0, "{two:?}");
        assert_eq!(count(Sampling { top_p: 0.5, seed: 3, ..Sampling::default() }), [0, 10_000, 0]);
        assert_eq!(count(Sampling { top_k: 1, seed: 3, ..Sampling::default() }), [0, 10_000, 0]);
        let flat = count(Sampling { temperature: 100.0, seed: 4, ..Sampling::default() });
        assert!(near(flat, [3333, 3333, 3333]), "{flat:?}");
        let square = count(Sampling { temperature: 0.5, seed: 5, ..Sampling::default() });
        assert!(near(square, [217, 7826, 1957]), "{square:?}");
    }

    #[test]
    fn choices_and_seeds_draw_differently() {
        let logits = vec![0.0; 1000];
        let draw = |seed, choice| {
            let sampler = Sampler::new(Sampling { seed, ..Sampling::default() }, choice, &[]);
            let scratch = &mut Scratch::default();
            (0..8).map(|at| sampler.choose(&logits, at, None, None, scratch).unwrap().token).collect::<Vec<_>>()
        };
        assert_eq!(draw(1, 0), draw(1, 0));
        assert_ne!(draw(1, 0), draw(2, 0));
        assert_ne!(draw(1, 0), draw(1, 1));
    }

    #[test]
    fn penalties_are_those_of_the_definitions() {
        let sampling = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: vec![(3, -1.0)],
            ..Sampling::greedy()
        };
        let mut sampler = Sampler::new(sampling, 0, &[0, 1]);
        [1, 2, 2].into_iter().for_each(|token| sampler.push(token));
        let mut adjusted = vec![];
        sampler.adjust(&[4.0, -4.0, 6.0, 1.0, 1.0], Some(&[0b01111]), &mut adjusted);
        // In the prompt alone; in both; twice in the answer; biased; not allowed.
        assert_eq!(adjusted, [2.0, -8.0 - 0.75, 3.0 - 1.0, 0.0, f32::NEG_INFINITY]);
    }

    #[test]
    fn log_probabilities_are_of_the_logits_as_they_came() {
        let mut logits = vec![0.0; 61];
        fill_normal(&mut logits, 2.0, Key { seed: 3, stream: 0 }, 0);
        let sampling = Sampling { logit_bias: vec![(7, 100.0)], temperature: 0.3, top_k: 3, ..Sampling::default() };
        let sampler = Sampler::new(sampling, 0, &[]);
        let choice = sampler.choose(&logits, 0, None, Some(4), &mut Scratch::default()).unwrap();
        assert_eq!(choice.token, 7);
        let (logprob, top) = choice.logprobs.unwrap();
        let total = sample::weights(&logits, 1.0, &mut vec![0.0; 61]);
        assert_eq!(logprob, sample::logprob(logits[7], total));
        let mut order: Vec<u32> = (0..61).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        let expected: Vec<_> = order[..4].iter().map(|&t| (t, sample::logprob(logits[t as usize], total))).collect();
        assert_eq!(top, expected);
    }

    #[test]
    fn logits_that_are_no_numbers_choose_nothing() {
        for sampling in [Sampling::greedy(), Sampling::default()] {
            let sampler = Sampler::new(sampling, 0, &[]);
            for logits in [[f32::NAN, 1.0], [f32::NEG_INFINITY; 2], [f32::INFINITY, 0.0]] {
                assert_eq!(sampler.choose(&logits, 0, None, None, &mut Scratch::default()), None, "{logits:?}");
            }
            assert_eq!(sampler.choose(&[0.0, 1.0], 0, Some(&[0]), None, &mut Scratch::default()), None);
        }
    }
}

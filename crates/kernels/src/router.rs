//! The router of a mixture of experts: which experts a token goes to, with which weights, and the loss that keeps their
//! loads balanced.
//!
//! Scores come from logits [T, E]: sigmoid (DeepSeek-V3 report, eq. 12–16, and `noaux_tc` of its released code) or
//! softmax over all experts (DeepSeek-V2 report, §2.2; `greedy` and `group_limited_greedy` of its code), or the square
//! root of softplus (DeepSeek-V4 report, §2.1; in f64, rounded once). Chosen are the K experts with the greatest score
//! plus bias, within the groups with the best group scores; the bias steers the choice only. The weights are the chosen
//! experts' scores without bias, divided by their sum + 1e-20 if normalised, times a factor.
//!
//! Ties go to the lower expert (group); a NaN counts as −∞, so that any logits lead to K different experts. A token's
//! experts are listed in ascending order, and its K-term sums are chains in this order. Sums over E experts are 16
//! partial sums and the fixed tree. Saved for backward: scores and choices.

use crate::lanes::{LANES, Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// What logits become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scoring {
    /// Each logit's sigmoid. A group's score is the sum of its two greatest biased scores.
    Sigmoid,
    /// The softmax of a token's logits. A group's score is its greatest biased score.
    Softmax,
    /// √ln(1 + eˣ) of each logit. A group's score is as with `Sigmoid`.
    SqrtSoftplus,
}

impl Scoring {
    /// Whether each score is its logit's alone.
    fn is_of_one(self) -> bool {
        self != Scoring::Softmax
    }
}

/// How a layer routes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Router {
    /// What logits become.
    pub scoring: Scoring,
    /// E.
    pub experts: usize,
    /// Experts of each token, K.
    pub top_k: usize,
    /// Groups of E/groups neighbouring experts; 1 for none.
    pub groups: usize,
    /// How many groups a token may use.
    pub top_groups: usize,
    /// Whether a token's weights are divided by their sum.
    pub normalize: bool,
    /// Factor of the weights.
    pub scale: f32,
}

/// Added to the sum by which weights are divided.
const SUM_EPS: f32 = 1e-20;

impl Router {
    fn check(&self) {
        let Router { experts, top_k, groups, top_groups, .. } = *self;
        assert!(groups > 0 && experts.is_multiple_of(groups), "{experts} experts in {groups} groups");
        assert!(0 < top_groups && top_groups <= groups, "{top_groups} of {groups} groups");
        let reachable = experts / groups * top_groups;
        assert!(0 < top_k && top_k <= reachable, "{top_k} of {reachable} experts in {top_groups} of {groups} groups");
    }
}

/// Scores [T, E], chosen experts [T, K] and their weights [T, K] of logits [T, E] and a bias `[E]`.
pub fn forward(
    router: &Router,
    logits: &[f32],
    bias: Option<&[f32]>,
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let choosing = |choice: &mut Choice, _: usize, scores: &[f32], experts: &mut [u32]| {
        // SAFETY: scores and bias have E elements, experts K.
        unsafe {
            dispatch!(choose(
                router: &Router, choice: &mut Choice, scores: &[f32], bias: Option<&[f32]>, experts: &mut [u32]
            ))
        };
    };
    assert!(bias.is_none_or(|bias| bias.len() == router.experts), "bias is [E] with E = {}", router.experts);
    forward_by(router, logits, &choosing, scores, experts, weights);
}

/// [`forward`] where a token's experts are those that `table[V, K]` has in the row of its id, in any order.
///
/// # Panics
/// If a row names an expert twice, or one that there is not.
pub fn forward_by_table(
    router: &Router,
    logits: &[f32],
    (table, ids): (&[f32], &[u32]),
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let k = router.top_k;
    let listed = |_: &mut Choice, t: usize, _: &[f32], experts: &mut [u32]| {
        let row = &table[ids[t] as usize * k..][..k];
        experts.iter_mut().zip(row).for_each(|(to, from)| *to = *from as u32);
        experts.sort_unstable();
        let valid = experts.windows(2).all(|pair| pair[0] < pair[1]);
        assert!(valid && experts[k - 1] < router.experts as u32, "token {} goes to the experts {row:?}", ids[t]);
    };
    assert_eq!(ids.len() * router.experts, logits.len(), "an id a token");
    forward_by(router, logits, &listed, scores, experts, weights);
}

/// What lists the experts of a token, given its scores, ascending.
type Listing<'a> = &'a (dyn Fn(&mut Choice, usize, &[f32], &mut [u32]) + Sync);

fn forward_by(
    router: &Router,
    logits: &[f32],
    list: Listing,
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    router.check();
    let (e, k) = (router.experts, router.top_k);
    let tokens = check_tokens(logits.len(), e);
    assert_eq!(scores.len(), tokens * e, "scores is [T, E] with T = {tokens}, E = {e}");
    assert_eq!(
        (experts.len(), weights.len()),
        (tokens * k, tokens * k),
        "choices are [T, K] with T = {tokens}, K = {k}"
    );
    let rows = par::rows_per_task(tokens, e * 4);
    let (experts, weights) = (SharedMut::new(experts), SharedMut::new(weights));
    par::chunks_mut(scores, rows * e, |task, scores| {
        let mut choice = Choice::new(router);
        for (i, scores) in scores.chunks_exact_mut(e).enumerate() {
            let t = task * rows + i;
            let logits = &logits[t * e..(t + 1) * e];
            // SAFETY: logits and scores are rows of E elements.
            unsafe {
                match router.scoring {
                    Scoring::Sigmoid => dispatch!(sigmoid_row(logits: &[f32], scores: &mut [f32])),
                    Scoring::Softmax => dispatch!(softmax_row(logits: &[f32], scores: &mut [f32])),
                    Scoring::SqrtSoftplus => {
                        scores.iter_mut().zip(logits).for_each(|(score, logit)| *score = sqrt_softplus(*logit));
                    }
                }
            }
            // SAFETY: each token is one task's.
            let (experts, weights) = unsafe { (experts.slice(t * k, k), weights.slice(t * k, k)) };
            list(&mut choice, t, scores, experts);
            weigh(router, scores, experts, weights);
        }
    });
}

/// Backward of [`forward`]: dlogits [T, E] of dweights [T, K] and, if given, of the scores' gradient from elsewhere
/// dscores [T, E] (that of the balance loss).
pub fn backward(
    router: &Router,
    scores: &[f32],
    experts: &[u32],
    dweights: &[f32],
    dscores: Option<&[f32]>,
    dlogits: &mut [f32],
) {
    router.check();
    let (e, k) = (router.experts, router.top_k);
    let tokens = check_tokens(scores.len(), e);
    assert_eq!(dlogits.len(), tokens * e, "dlogits is [T, E] with T = {tokens}, E = {e}");
    assert_eq!((experts.len(), dweights.len()), (tokens * k, tokens * k), "choices are [T, K], T = {tokens}, K = {k}");
    assert!(dscores.is_none_or(|d| d.len() == scores.len()), "dscores has the shape of scores");
    let rows = par::rows_per_task(tokens, e * 2);
    par::chunks_mut(dlogits, rows * e, |task, dlogits| {
        for (i, dlogits) in dlogits.chunks_exact_mut(e).enumerate() {
            let t = task * rows + i;
            let scores = &scores[t * e..(t + 1) * e];
            match dscores {
                Some(dscores) => dlogits.copy_from_slice(&dscores[t * e..(t + 1) * e]),
                None => dlogits.fill(0.0),
            }
            let choices = t * k..(t + 1) * k;
            weigh_backward(router, scores, &experts[choices.clone()], &dweights[choices], dlogits);
            // SAFETY: scores and dlogits are rows of E elements.
            unsafe {
                match router.scoring {
                    Scoring::Sigmoid => dispatch!(sigmoid_row_backward(scores: &[f32], dlogits: &mut [f32])),
                    Scoring::Softmax => dispatch!(softmax_row_backward(scores: &[f32], dlogits: &mut [f32])),
                    Scoring::SqrtSoftplus => {
                        dlogits.iter_mut().zip(scores).for_each(|(d, score)| *d *= sqrt_softplus_slope(*score));
                    }
                }
            }
        }
    });
}

fn check_tokens(len: usize, e: usize) -> usize {
    assert_eq!(len % e, 0, "rows of {e} experts in {len} elements");
    len / e
}

/// Room for choosing, kept from token to token.
struct Choice {
    /// [E], without NaN.
    biased: Vec<f32>,
    /// [E]
    keys: Vec<u64>,
    /// [groups]
    group_keys: Vec<u64>,
    /// [top_groups]
    kept: Vec<u32>,
}

impl Choice {
    fn new(router: &Router) -> Self {
        Choice {
            biased: vec![0.0; router.experts],
            keys: vec![0; router.experts],
            group_keys: vec![0; router.groups],
            kept: vec![0; router.top_groups],
        }
    }
}

/// The K experts of a token, ascending.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn choose<L: Lanes>(
    router: &Router,
    choice: &mut Choice,
    scores: &[f32],
    bias: Option<&[f32]>,
    experts: &mut [u32],
) {
    let Choice { biased, keys, group_keys, kept } = choice;
    match bias {
        Some(bias) => biased.iter_mut().zip(scores.iter().zip(bias)).for_each(|(a, (s, b))| *a = s + b),
        None => biased.copy_from_slice(scores),
    }
    biased.iter_mut().for_each(|a| *a = if a.is_nan() { f32::NEG_INFINITY } else { *a });
    make_keys(biased, keys);
    if router.top_groups < router.groups {
        let size = router.experts / router.groups;
        for (g, (key, group)) in group_keys.iter_mut().zip(biased.chunks_exact(size)).enumerate() {
            *key = key_of(group_score(router.scoring, group), g);
        }
        take_greatest(group_keys, kept);
        // What is left of the keys are the groups that were not taken.
        for (group, keys) in group_keys.iter().zip(keys.chunks_exact_mut(size)) {
            if *group != TAKEN {
                keys.fill(TAKEN);
            }
        }
    }
    take_greatest(keys, experts);
    experts.sort_unstable();
}

#[inline(always)]
fn group_score(scoring: Scoring, group: &[f32]) -> f32 {
    let (mut first, mut second) = (f32::NEG_INFINITY, f32::NEG_INFINITY);
    for &a in group {
        // f32::max would look for NaN, of which there are none here.
        let lesser = if a > first { first } else { a };
        first = if a > first { a } else { first };
        second = if lesser > second { lesser } else { second };
    }
    if scoring.is_of_one() && second > f32::NEG_INFINITY { first + second } else { first }
}

/// Less than any key.
const TAKEN: u64 = 0;

/// A number that orders by value, and of equal values the earlier index first; NaN is as −∞, −0 as 0.
#[inline(always)]
fn key_of(value: f32, index: usize) -> u64 {
    let bits = if value.is_nan() { f32::NEG_INFINITY } else { value + 0.0 }.to_bits();
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(ordered) << 32 | u64::from(!(index as u32))
}

#[inline(always)]
fn make_keys(values: &[f32], keys: &mut [u64]) {
    keys.iter_mut().zip(values).enumerate().for_each(|(i, (key, &value))| *key = key_of(value, i));
}

/// The indices of the greatest keys, the greatest first; their keys become [`TAKEN`]. A pass over the keys for each
/// index: without branches, of which keeping a sorted list is full (measured at K = 6 of 64: a fifth of its time).
#[inline(always)]
fn take_greatest(keys: &mut [u64], chosen: &mut [u32]) {
    for chosen in chosen {
        let greatest = keys.iter().fold(TAKEN, |greatest, &key| greatest.max(key));
        *chosen = !(greatest as u32);
        keys[*chosen as usize] = TAKEN;
    }
}

/// The weights of a token's experts.
fn weigh(router: &Router, scores: &[f32], experts: &[u32], weights: &mut [f32]) {
    let chosen = experts.iter().map(|&e| scores[e as usize]);
    let sum = chosen.clone().fold(0.0, |sum, s| sum + s) + SUM_EPS;
    for (weight, s) in weights.iter_mut().zip(chosen) {
        *weight = if router.normalize { s / sum * router.scale } else { s * router.scale };
    }
}

/// Adds the weights' part to the scores' gradient.
fn weigh_backward(router: &Router, scores: &[f32], experts: &[u32], dweights: &[f32], dscores: &mut [f32]) {
    let chosen = || experts.iter().map(|&e| scores[e as usize]);
    let sum = chosen().fold(0.0, |sum, s| sum + s) + SUM_EPS;
    let mean = chosen().zip(dweights).fold(0.0, |dot: f32, (s, dw)| s.mul_add(*dw, dot)) / sum;
    for (&e, dw) in experts.iter().zip(dweights) {
        dscores[e as usize] += if router.normalize { (dw - mean) / sum * router.scale } else { dw * router.scale };
    }
}

/// √ln(1 + eˣ).
pub(crate) fn sqrt_softplus(x: f32) -> f32 {
    let x = f64::from(x);
    libm::sqrt(x.max(0.0) + libm::log1p(libm::exp(-x.abs()))) as f32
}

/// The slope of [`sqrt_softplus`] where it is `y`: (1 − e^(−y²))/(2y), since 1 − e^(−softplus) is the sigmoid.
pub(crate) fn sqrt_softplus_slope(y: f32) -> f32 {
    let y = f64::from(y);
    if y == 0.0 { 0.0 } else { (-libm::expm1(-y * y) / (2.0 * y)) as f32 }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn sigmoid_row<L: Lanes>(logits: &[f32], scores: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(logits.len(), |s| {
            s.store(math::sigmoid(s.load::<L>(logits)), scores);
        });
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn sigmoid_row_backward<L: Lanes>(scores: &[f32], d: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(scores.len(), |s| {
            let score = s.load::<L>(scores);
            let slope = score.mul(L::splat(1.0).sub(score));
            s.store(s.load::<L>(d).mul(slope), d);
        });
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn softmax_row<L: Lanes>(logits: &[f32], scores: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let max = greatest::<L>(logits);
        let mut sum = L::splat(0.0);
        spans!(logits.len(), |s| {
            s.store(math::exp(s.load::<L>(logits).sub(L::splat(max))), scores);
            // What was stored, not what was computed: after the last element come zeros.
            sum = sum.add(s.load(scores));
        });
        let sum = L::splat(sum.sum());
        spans!(logits.len(), |s| {
            s.store(s.load::<L>(scores).div(sum), scores);
        });
    }
}

/// The greatest element that is no NaN, or −∞.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn greatest<L: Lanes>(x: &[f32]) -> f32 {
    let (sixteens, rest) = x.as_chunks::<LANES>();
    // SAFETY: spans lie in x; instructions by this function's contract. In this order a NaN leaves the maximum as it
    // is.
    let lanes = unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for x in sixteens {
            max = L::load(x.as_ptr()).max(max);
        }
        max.to_array()
    };
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |max, &x| if x > max { x } else { max })
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn softmax_row_backward<L: Lanes>(scores: &[f32], d: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut dot = L::splat(0.0);
        spans!(scores.len(), |s| {
            dot = s.load::<L>(d).fma(s.load(scores), dot);
        });
        let dot = L::splat(dot.sum());
        spans!(scores.len(), |s| {
            s.store(s.load::<L>(d).sub(dot).mul(s.load(scores)), d);
        });
    }
}

/// What the balance loss keeps of the forward pass for its gradient.
#[derive(Clone, Debug, PartialEq)]
pub struct Balance {
    /// `[S]`: each sequence's loss Σ f·P, without the factor α; 1 for a perfect balance.
    pub losses: Vec<f32>,
    /// [S, E]: f, each expert's share of the sequence's choices, times E.
    pub shares: Vec<f32>,
}

/// Sequence-wise balance loss (DeepSeek-V3 report, eq. 17–20) of packed sequences, sequence s being tokens
/// `starts[s]..starts[s + 1]`: Σ over experts of f·P with f = E/(K·T)·(how often among the K greatest) and P = the mean
/// of the token's scores, which with sigmoid scoring are divided by their sum over experts first.
///
/// With sigmoid scoring f counts the K greatest scores without bias and groups, as printed; with softmax scoring it
/// counts the chosen `experts` [T, K], as `seq_aux` of DeepSeek-V2's code does. P is a chain of additions over the
/// sequence's tokens divided by their number, Σ f·P is 16 partial sums and the fixed tree.
pub fn balance(router: &Router, scores: &[f32], experts: &[u32], starts: &[u32]) -> Balance {
    router.check();
    let (e, k) = (router.experts, router.top_k);
    check_starts(starts, check_tokens(scores.len(), e));
    assert_eq!(experts.len() / k, scores.len() / e, "choices are [T, K] with K = {k}");
    let sequences = starts.len() - 1;
    let mut balance = Balance { losses: vec![0.0; sequences], shares: vec![0.0; sequences * e] };
    let losses = SharedMut::new(&mut balance.losses);
    par::chunks_mut(&mut balance.shares, e, |sequence, shares| {
        let (first, end) = (starts[sequence] as usize, starts[sequence + 1] as usize);
        if first == end {
            return;
        }
        let scores = &scores[first * e..end * e];
        match router.scoring {
            Scoring::Sigmoid | Scoring::SqrtSoftplus => {
                let counts = &mut shares[..];
                // SAFETY: the kernel indexes its slices with bounds checked.
                unsafe { dispatch!(count_greatest(scores: &[f32], e: usize, k: usize, counts: &mut [f32])) }
            }
            Scoring::Softmax => experts[first * k..end * k].iter().for_each(|&e| shares[e as usize] += 1.0),
        }
        let tokens = (end - first) as f32;
        let factor = e as f32 / (k as f32 * tokens);
        shares.iter_mut().for_each(|share| *share *= factor);
        let mut means = vec![0.0; e];
        for scores in scores.chunks_exact(e) {
            let normalize = router.scoring.is_of_one();
            let means = &mut means[..];
            // SAFETY: scores and means have E elements.
            unsafe { dispatch!(add_shares(scores: &[f32], normalize: bool, means: &mut [f32])) };
        }
        means.iter_mut().for_each(|mean| *mean /= tokens);
        let (a, b) = (&shares[..], &means[..]);
        // SAFETY: each sequence is one task's.
        let loss = unsafe { losses.slice(sequence, 1) };
        // SAFETY: shares and means have E elements.
        loss[0] = unsafe { dispatch!(dot(a: &[f32], b: &[f32]) -> f32) };
    });
    balance
}

/// The balance loss's part of the gradient of scores: dscores [T, E] of Σ over sequences of `coefficients[s]·losses[s]`
/// (sets it). The shares are constants, as in the paper: counting has no gradient.
pub fn balance_backward(
    router: &Router,
    scores: &[f32],
    starts: &[u32],
    balance: &Balance,
    coefficients: &[f32],
    dscores: &mut [f32],
) {
    let e = router.experts;
    let tokens = check_tokens(scores.len(), e);
    check_starts(starts, tokens);
    assert_eq!(dscores.len(), scores.len(), "dscores has the shape of scores");
    let sequences = starts.len() - 1;
    assert_eq!(coefficients.len(), sequences, "a coefficient for each sequence");
    assert_eq!(balance.shares.len(), sequences * e, "shares are [S, E] with S = {sequences}, E = {e}");
    let rows = par::rows_per_task(tokens, e * 2);
    par::chunks_mut(dscores, rows * e, |task, dscores| {
        for (i, out) in dscores.chunks_exact_mut(e).enumerate() {
            let t = task * rows + i;
            let sequence = starts.partition_point(|&start| start as usize <= t) - 1;
            let factor = coefficients[sequence] / (starts[sequence + 1] - starts[sequence]) as f32;
            let shares = &balance.shares[sequence * e..(sequence + 1) * e];
            let scores = &scores[t * e..(t + 1) * e];
            let normalize = router.scoring.is_of_one();
            // SAFETY: scores, shares and out have E elements.
            unsafe {
                dispatch!(balance_row(scores: &[f32], shares: &[f32], factor: f32, normalize: bool, out: &mut [f32]))
            };
        }
    });
}

fn check_starts(starts: &[u32], tokens: usize) {
    assert!(starts.first() == Some(&0) && starts.is_sorted(), "starts ascend from 0: {starts:?}");
    assert_eq!(starts[starts.len() - 1] as usize, tokens, "starts end with the number of tokens");
}

/// Adds 1 to the K greatest scores of each token.
#[allow(clippy::extra_unused_type_parameters)]
#[inline(always)]
unsafe fn count_greatest<L: Lanes>(scores: &[f32], e: usize, k: usize, counts: &mut [f32]) {
    let (mut keys, mut chosen) = (vec![0; e], vec![0; k]);
    for scores in scores.chunks_exact(e) {
        make_keys(scores, &mut keys);
        take_greatest(&mut keys, &mut chosen);
        chosen.iter().for_each(|&e| counts[e as usize] += 1.0);
    }
}

/// means += scores, or scores/Σscores.
///
/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn add_shares<L: Lanes>(scores: &[f32], normalize: bool, means: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let sum = L::splat(if normalize { total::<L>(scores) } else { 1.0 });
        spans!(scores.len(), |s| {
            s.store(s.load::<L>(means).add(s.load::<L>(scores).div(sum)), means);
        });
    }
}

/// out = factor·(shares − Σ shares·scores/Σscores)/Σscores, or factor·shares.
///
/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn balance_row<L: Lanes>(scores: &[f32], shares: &[f32], factor: f32, normalize: bool, out: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let (mut mean, mut factor) = (0.0, factor);
        if normalize {
            let sum = total::<L>(scores);
            mean = dot::<L>(shares, scores) / sum;
            factor /= sum;
        }
        spans!(out.len(), |s| {
            s.store(s.load::<L>(shares).sub(L::splat(mean)).mul(L::splat(factor)), out);
        });
    }
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn total<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: spans lie in x; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            sum = sum.add(s.load(x));
        });
        sum.sum()
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(a.len(), |s| {
            sum = s.load::<L>(a).fma(s.load(b), sum);
        });
        sum.sum()
    }
}

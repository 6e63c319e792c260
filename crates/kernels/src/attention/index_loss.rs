//! What an indexer learns by: the divergence of its softmax from attention's weights (DeepSeek-V3.2 report, arXiv
//! 2512.02556, eq. 3 and 4).
//!
//! Of the keys S that query t attends to, `p_s = Σ_h attention(t, h, s) / H`, attention's H heads weighing alike, and
//! `loss_t = Σ_s p_s·(ln p_s − ln softmax(I_t)_s)` with the indexer's scores I of S. Attention learns nothing by it:
//! `dI_s = softmax(I_t)_s − p_s`. With `r = q_h·k_s / √d` where that is greater than 0, `dw_h = Σ_s dI_s·r / √H`,
//! `dq_h = Σ_s dI_s·w_h·k_s / √(H·d)`, and dk likewise.
//!
//! **Order of sums.** Products by 16 partial sums and the fixed tree, of a key's own and shared part apart. p is a
//! chain over the heads, the sum of the softmax by 16 partial sums over S and the fixed tree, the loss a chain over S.
//! dw and dq are chains over S, dk is one over the queries, and over the heads within one.
//!
//! Where entries are chosen, which have a part of the weights, p is divided by its sum, a chain over S: `entry_losses`.

use std::ops::Range;

use super::compressed::{Compressed, Operands, Span};
use super::index::Indexer;
use super::{Chosen, Heads, Keys, Shape, check_operands, check_sequences, dot, places};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::par::{self, SharedMut};
use crate::scratch;
use crate::span::spans;

const TASK_QUERIES: usize = 8;
const TASK_KEYS: usize = 16;

/// `losses[T]`, and the gradients of the scores of the chosen keys, as these lie. `stats[T, H, 2]` is what
/// [`forward`](super::forward) has left.
pub fn losses(
    shape: Shape,
    chosen: &Chosen,
    starts: &[u32],
    q: Heads,
    k: Keys,
    stats: &[f32],
    losses: &mut [f32],
) -> Vec<f32> {
    let tokens = check_sequences(starts);
    check_operands(&shape, (&q, tokens), (&k, &Heads { dim: 0, ..k.own }, tokens));
    shape.check_chosen(None, chosen, places(starts));
    assert!(stats.len() == tokens * shape.heads * 2, "stats has {} elements", stats.len());
    assert!(losses.len() == tokens, "losses has {} elements, {tokens} tokens", losses.len());
    losses_of(&LossJob { shape, chosen, q, k, stats, whole: true }, &firsts(starts), losses)
}

/// [`losses`] of the chosen among the entries of an attention over these and a window; 0 for queries without any.
///
/// # Panics
/// If no entries were chosen, or operands do not fit together.
pub fn entry_losses(of: Compressed, spans: &[Span], operands: Operands, stats: &[f32], losses: &mut [f32]) -> Vec<f32> {
    of.check(spans, &operands);
    let Compressed { heads, dim, scale, .. } = of;
    let chosen = operands.chosen.expect("a choice of entries");
    assert!(stats.len() == 2 * losses.len() * heads, "stats has {} elements", stats.len());
    assert!(losses.len() == chosen.queries(), "losses has {} elements, {} queries", losses.len(), chosen.queries());
    let shape = Shape { heads, kv_heads: heads, scale, window: None, cap: None };
    let own = Heads { data: operands.entries, row_stride: dim, offset: 0, head_stride: 0, dim };
    let (q, k) = (Heads::contiguous(operands.q, heads, dim), Keys { own, shared: None });
    losses_of(&LossJob { shape, chosen, q, k, stats, whole: false }, &entry_firsts(spans), losses)
}

/// Of each query the first entry of its sequence.
fn entry_firsts(spans: &[Span]) -> Vec<usize> {
    spans.iter().flat_map(|span| std::iter::repeat_n(span.entries.start, span.queries.len())).collect()
}

fn losses_of(job: &LossJob, firsts: &[usize], losses: &mut [f32]) -> Vec<f32> {
    let (tokens, chosen) = (losses.len(), job.chosen);
    let mut gradients = vec![0.0; chosen.total()];
    let (all_losses, all_gradients) = (SharedMut::new(losses), SharedMut::new(&mut gradients));
    par::run(tokens.div_ceil(TASK_QUERIES), |task| {
        let queries = task * TASK_QUERIES..tokens.min((task + 1) * TASK_QUERIES);
        for (t, &first) in queries.clone().zip(&firsts[queries]) {
            let range = chosen.range(t);
            // SAFETY: each query has a loss and gradients of its own; operands and choice were checked.
            unsafe {
                let loss = &mut all_losses.slice(t, 1)[0];
                let gradients = all_gradients.slice(range.start, range.len());
                crate::lanes::dispatch!(loss_of(
                    job: &LossJob, t: usize, first: usize, loss: &mut f32, gradients: &mut [f32]
                ));
            }
        }
    });
    gradients
}

/// Of each token the first of its sequence.
fn firsts(starts: &[u32]) -> Vec<usize> {
    let lens = starts.windows(2).map(|ends| (ends[0] as usize, (ends[1] - ends[0]) as usize));
    lens.flat_map(|(first, len)| std::iter::repeat_n(first, len)).collect()
}

struct LossJob<'a> {
    shape: Shape,
    chosen: &'a Chosen,
    q: Heads<'a>,
    k: Keys<'a>,
    stats: &'a [f32],
    /// Whether the chosen keys have all of the weights.
    whole: bool,
}

/// # Safety
/// The machine has the instruction set of `L`; operands and choice were checked, and there is a gradient for each of
/// the query's keys.
#[inline(always)]
unsafe fn loss_of<L: Lanes>(job: &LossJob, t: usize, first: usize, loss: &mut f32, gradients: &mut [f32]) {
    let LossJob { shape, chosen, q, k, stats, whole } = job;
    let (keys, scores) = (chosen.of(t), chosen.scores(t));
    let mut products = scratch::buffer(keys.len());
    gradients.fill(0.0);
    // Until the end they hold attention's weights.
    let p = gradients;
    // SAFETY: rows of one width each; `spans!` stays within slices of one length; instructions by this function's
    // contract.
    unsafe {
        for h in 0..shape.heads {
            let (own, turned) = q.row(t, h).split_at(k.own.dim);
            for (product, key) in products.iter_mut().zip(keys) {
                let s = first + *key as usize;
                *product = dot::<L>(own, k.own.row(s, h));
                if let Some(shared) = &k.shared {
                    *product += dot::<L>(turned, shared.row(s, 0));
                }
            }
            let at = 2 * (t * shape.heads + h);
            let (max, inverse) = (L::splat(stats[at]), L::splat(stats[at + 1]));
            spans!(p.len(), |s| {
                let scaled = s.load::<L>(&products).mul(L::splat(shape.scale));
                let weight = math::exp(scaled.sub(max)).mul(inverse);
                s.store(s.load::<L>(p).add(weight), p);
            });
        }
        let share = 1.0 / shape.heads as f32;
        let max = scores.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
        let mut sum = L::splat(0.0);
        spans!(p.len(), |s| {
            // What is loaded behind the end counts nothing.
            let terms = math::exp(s.load::<L>(scores).sub(L::splat(max))).to_array();
            sum = sum.add(if s.n == LANES { L::load(terms.as_ptr()) } else { L::load_first(terms.as_ptr(), s.n) });
        });
        let sum = sum.sum();
        let (inverse, log_sum) = (1.0 / sum, math::scalar::log(sum));
        *loss = 0.0;
        p.iter_mut().for_each(|p| *p *= share);
        if !whole {
            let sum = p.iter().fold(0.0, |sum, p| sum + p);
            if sum <= 0.0 {
                return p.fill(0.0);
            }
            p.iter_mut().for_each(|p| *p /= sum);
        }
        for (p, score) in p.iter_mut().zip(scores) {
            if *p > 0.0 {
                *loss = p.mul_add(math::scalar::log(*p) - (score - max - log_sum), *loss);
            }
            *p = math::scalar::exp(score - max) * inverse - *p;
        }
    }
}

/// Operands of an indexer of T tokens.
#[derive(Clone, Copy)]
pub struct IndexOperands<'a> {
    /// `[T, H·d]`.
    pub q: &'a [f32],
    /// `[T, H]`.
    pub w: &'a [f32],
    /// `[T, d]`.
    pub k: &'a [f32],
}

/// Sets the gradients of an indexer's operands, from `factor` times those of the scores.
pub fn backward(
    of: Indexer,
    chosen: &Chosen,
    starts: &[u32],
    (gradients, factor): (&[f32], f32),
    operands: IndexOperands,
    [dq, dw, dk]: [&mut [f32]; 3],
) {
    let tokens = check_sequences(starts);
    let IndexOperands { q, w, k } = operands;
    of.check(tokens, q, w, Some(k));
    of.check(tokens, dq, dw, Some(dk));
    chosen.check(places(starts));
    assert!(gradients.len() == chosen.total(), "{} gradients of {} scores", gradients.len(), chosen.total());
    let job = &BackwardJob { of, chosen, gradients, factor, operands };
    let sequences = starts.windows(2).map(|ends| ends[0] as usize..ends[1] as usize);
    let sequences: Vec<Sequence> = sequences.map(|all| Sequence { queries: all.clone(), keys: all }).collect();
    backward_of(job, &sequences, &firsts(starts), [dq, dw, dk]);
}

/// [`backward`] of an indexer of entries, whose keys are `[E, d]`.
///
/// # Panics
/// If operands do not fit together.
pub fn entry_backward(
    of: Indexer,
    chosen: &Chosen,
    spans: &[Span],
    (gradients, factor): (&[f32], f32),
    operands: IndexOperands,
    [dq, dw, dk]: [&mut [f32]; 3],
) {
    let (tokens, IndexOperands { q, w, k }) = (chosen.queries(), operands);
    let entries: usize = spans.iter().map(|span| span.entries.len()).sum();
    of.check(tokens, q, w, None);
    of.check(tokens, dq, dw, None);
    assert!((k.len(), dk.len()) == (entries * of.dim, entries * of.dim), "index keys of {entries} entries");
    assert!(gradients.len() == chosen.total(), "{} gradients of {} scores", gradients.len(), chosen.total());
    let sequence = |span: &Span| Sequence { queries: span.queries.clone(), keys: span.entries.clone() };
    let sequences: Vec<Sequence> = spans.iter().map(sequence).collect();
    assert!(sequences.last().map_or(0, |last| last.queries.end) == tokens, "spans of {tokens} queries");
    let fits = |it: &Sequence| {
        let mut keys = it.queries.clone().filter_map(|t| chosen.of(t).last());
        keys.all(|key| (*key as usize) < it.keys.len())
    };
    assert!(sequences.iter().all(fits), "entries that there are not");
    let job = &BackwardJob { of, chosen, gradients, factor, operands };
    backward_of(job, &sequences, &entry_firsts(spans), [dq, dw, dk]);
}

/// A sequence's queries, and the keys among which they choose.
struct Sequence {
    queries: Range<usize>,
    keys: Range<usize>,
}

fn backward_of(job: &BackwardJob, sequences: &[Sequence], firsts: &[usize], [dq, dw, dk]: [&mut [f32]; 3]) {
    let (all_dq, all_dw, all_dk) = (SharedMut::new(dq), SharedMut::new(dw), SharedMut::new(dk));
    let (tokens, Indexer { heads, dim, .. }) = (firsts.len(), job.of);
    par::run(tokens.div_ceil(TASK_QUERIES), |task| {
        let queries = task * TASK_QUERIES..tokens.min((task + 1) * TASK_QUERIES);
        for (t, &first) in queries.clone().zip(&firsts[queries]) {
            // SAFETY: each query has gradients of its own; operands and choice were checked.
            unsafe {
                let (dq, dw) = (all_dq.slice(t * heads * dim, heads * dim), all_dw.slice(t * heads, heads));
                crate::lanes::dispatch!(query_of(
                    job: &BackwardJob, t: usize, first: usize, dq: &mut [f32], dw: &mut [f32]
                ));
            }
        }
    });
    let tasks: Vec<(&Sequence, usize)> = sequences
        .iter()
        .flat_map(|sequence| (0..sequence.keys.len()).step_by(TASK_KEYS).map(move |key| (sequence, key)))
        .collect();
    par::run(tasks.len(), |i| {
        let (sequence, from) = tasks[i];
        let keys = from..sequence.keys.len().min(from + TASK_KEYS);
        // SAFETY: each task has keys of its own; operands and choice were checked.
        unsafe {
            let dk = all_dk.slice((sequence.keys.start + from) * dim, keys.len() * dim);
            crate::lanes::dispatch!(keys_of(
                job: &BackwardJob, sequence: &Sequence, keys: Range<usize>, dk: &mut [f32]
            ));
        }
    });
}

struct BackwardJob<'a> {
    of: Indexer,
    chosen: &'a Chosen,
    gradients: &'a [f32],
    factor: f32,
    operands: IndexOperands<'a>,
}

impl BackwardJob<'_> {
    /// Head `h` of query `t`, and its weight's factor on products.
    #[inline(always)]
    fn head(&self, t: usize, h: usize) -> (&[f32], f32) {
        let Indexer { heads, dim, .. } = self.of;
        (&self.operands.q[(t * heads + h) * dim..][..dim], self.operands.w[t * heads + h] * self.of.share())
    }

    #[inline(always)]
    fn key(&self, t: usize) -> &[f32] {
        &self.operands.k[t * self.of.dim..][..self.of.dim]
    }
}

/// # Safety
/// The machine has the instruction set of `L`; operands and choice were checked; dq and dw are the query's.
#[inline(always)]
unsafe fn query_of<L: Lanes>(job: &BackwardJob, t: usize, first: usize, dq: &mut [f32], dw: &mut [f32]) {
    let (scale, share) = (job.of.scale(), job.of.share());
    let (keys, gradients) = (job.chosen.of(t), &job.gradients[job.chosen.range(t)]);
    dq.fill(0.0);
    for (h, (dq, dw)) in dq.chunks_exact_mut(job.of.dim).zip(dw).enumerate() {
        let (q, weight) = job.head(t, h);
        let mut sum = 0.0f32;
        for (key, gradient) in keys.iter().zip(gradients) {
            let k = job.key(first + *key as usize);
            let gradient = gradient * job.factor;
            // SAFETY: rows of one width; instructions by this function's contract.
            unsafe {
                let positive = dot::<L>(q, k) * scale;
                if positive > 0.0 {
                    sum = gradient.mul_add(positive, sum);
                    extend::<L>(gradient * weight * scale, k, dq);
                }
            }
        }
        *dw = sum * share;
    }
}

/// # Safety
/// As for [`query_of`]; dk is that of `keys` of the sequence with these tokens.
#[inline(always)]
unsafe fn keys_of<L: Lanes>(job: &BackwardJob, sequence: &Sequence, keys: Range<usize>, dk: &mut [f32]) {
    let (dim, scale) = (job.of.dim, job.of.scale());
    dk.fill(0.0);
    // A key is chosen by none before it.
    for t in sequence.queries.clone().skip(keys.start) {
        let chosen = job.chosen.of(t);
        let from = chosen.partition_point(|key| (*key as usize) < keys.start);
        let some = chosen[from..].iter().take_while(|key| (**key as usize) < keys.end).count();
        let gradients = &job.gradients[job.chosen.range(t)][from..from + some];
        for (key, gradient) in chosen[from..from + some].iter().zip(gradients) {
            let k = job.key(sequence.keys.start + *key as usize);
            let dk = &mut dk[(*key as usize - keys.start) * dim..][..dim];
            for h in 0..job.of.heads {
                let (q, weight) = job.head(t, h);
                // SAFETY: rows of one width; instructions by this function's contract.
                unsafe {
                    if dot::<L>(q, k) * scale > 0.0 {
                        extend::<L>(gradient * job.factor * weight * scale, q, dk);
                    }
                }
            }
        }
    }
}

/// `y += a·x`, each element fused.
///
/// # Safety
/// The machine has the instruction set of `L`; x and y have one length.
#[inline(always)]
unsafe fn extend<L: Lanes>(a: f32, x: &[f32], y: &mut [f32]) {
    spans!(y.len(), |s| {
        // SAFETY: spans of both, which have one length by this function's contract.
        unsafe { s.store(L::splat(a).fma(s.load::<L>(x), s.load::<L>(y)), y) };
    });
}

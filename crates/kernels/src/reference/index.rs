//! The lightning indexer and what it learns by, as plain loops.

use super::{dot, math};
use std::ops::Range;

use crate::attention::compressed::{Compressed, Operands, Span};
use crate::attention::index::Indexer;
use crate::attention::index_loss::IndexOperands;
use crate::attention::{Chosen, Heads, Keys, Shape};

/// The scores that query `t` gives the keys `first..=last`.
fn scores(of: Indexer, t: usize, first: usize, last: usize, q: &[f32], w: &[f32], k: &[f32]) -> Vec<f32> {
    let Indexer { heads, dim, .. } = of;
    let score = |s: usize| {
        let mut sum = 0.0f32;
        for h in 0..heads {
            let (q, k) = (&q[(t * heads + h) * dim..][..dim], &k[s * dim..][..dim]);
            let product = q.iter().zip(k).fold(0.0f32, |sum, (q, k)| q.mul_add(*k, sum)) * of.scale();
            let positive = if product > 0.0 { product } else { 0.0 };
            sum = (w[t * heads + h] * of.share()).mul_add(positive, sum);
        }
        sum + 0.0
    };
    (first..=last).map(score).collect()
}

/// The places of the greatest scores, of equal ones the first, ascending.
fn select(scores: &[f32], top_k: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    order.truncate(top_k);
    order.sort_unstable();
    order.into_iter().map(|key| key as u32).collect()
}

/// Reference of [`crate::attention::index::choose`].
pub fn choose(of: Indexer, starts: &[u32], q: &[f32], w: &[f32], k: &[f32]) -> Chosen {
    let all = starts.windows(2).map(|ends| (ends[0] as usize, ends[1] as usize));
    let queries: Vec<Vec<f32>> =
        all.flat_map(|(first, end)| (first..end).map(move |t| scores(of, t, first, t, q, w, k))).collect();
    chosen(of, queries)
}

/// Reference of [`Pages::choose`](crate::attention::paged::Pages::choose) of one sequence: of its newest `n` queries,
/// among the keys `k[len, d]`.
pub fn choose_cached(of: Indexer, n: usize, q: &[f32], w: &[f32], k: &[f32]) -> Chosen {
    let Indexer { heads, dim, .. } = of;
    let past = k.len() / dim - n;
    // Queries of the past, which are asked nothing.
    let q = [&vec![0.0; past * heads * dim], q].concat();
    let w = [&vec![0.0; past * heads], w].concat();
    chosen(of, (past..past + n).map(|t| scores(of, t, 0, t, &q, &w, k)).collect())
}

/// Reference of [`crate::attention::index::choose_entries`].
pub fn choose_entries(of: Indexer, rate: usize, spans: &[Span], q: &[f32], w: &[f32], k: &[f32]) -> Chosen {
    let of_query = |span: &Span, t: usize| {
        let first = span.entries.start;
        match (span.place(t) + 1) / rate {
            0 => vec![],
            keys => scores(of, t, first, first + keys - 1, q, w, k),
        }
    };
    chosen(of, spans.iter().flat_map(|span| span.queries.clone().map(move |t| of_query(span, t))).collect())
}

fn chosen(of: Indexer, queries: Vec<Vec<f32>>) -> Chosen {
    let keys: Vec<Vec<u32>> = queries.iter().map(|scores| select(scores, of.top_k)).collect();
    let kept = queries.iter().zip(&keys).flat_map(|(scores, keys)| keys.iter().map(|key| scores[*key as usize]));
    Chosen::new(keys.iter().map(Vec::len), keys.concat(), kept.collect())
}

/// Reference of [`crate::attention::index_loss::losses`].
pub fn losses(
    shape: Shape,
    chosen: &Chosen,
    starts: &[u32],
    q: Heads,
    k: Keys,
    stats: &[f32],
    losses: &mut [f32],
) -> Vec<f32> {
    let all = starts.windows(2).map(|ends| (ends[0] as usize..ends[1] as usize, ends[0] as usize));
    losses_of(shape, chosen, &all.collect::<Vec<_>>(), q, k, (stats, true), losses)
}

/// Reference of [`crate::attention::index_loss::entry_losses`].
pub fn entry_losses(of: Compressed, spans: &[Span], operands: Operands, stats: &[f32], losses: &mut [f32]) -> Vec<f32> {
    let Compressed { heads, dim, scale, .. } = of;
    let shape = Shape { heads, kv_heads: heads, scale, window: None, cap: None };
    let own = Heads { data: operands.entries, row_stride: dim, offset: 0, head_stride: 0, dim };
    let (q, k) = (Heads::contiguous(operands.q, heads, dim), Keys { own, shared: None });
    let all: Vec<_> = spans.iter().map(|span| (span.queries.clone(), span.entries.start)).collect();
    losses_of(shape, operands.chosen.expect("a choice"), &all, q, k, (stats, false), losses)
}

/// Of sequences, their queries and first keys; `whole` says whether the chosen keys have all of the weights.
fn losses_of(
    shape: Shape,
    chosen: &Chosen,
    sequences: &[(Range<usize>, usize)],
    q: Heads,
    k: Keys,
    (stats, whole): (&[f32], bool),
    losses: &mut [f32],
) -> Vec<f32> {
    let mut gradients = Vec::with_capacity(chosen.total());
    for (queries, first) in sequences {
        for t in queries.clone() {
            let scores = chosen.scores(t);
            let weight = |key: &u32| {
                let s = first + *key as usize;
                let of_head = |h: usize| {
                    let (own, turned) = q.row(t, h).split_at(k.own.dim);
                    let shared = k.shared.as_ref().map(|shared| dot(turned, shared.row(s, 0)));
                    let product = dot(own, k.own.row(s, h));
                    let product = shared.map_or(product, |shared| product + shared);
                    let at = 2 * (t * shape.heads + h);
                    math::exp(product * shape.scale - stats[at]) * stats[at + 1]
                };
                (0..shape.heads).fold(0.0, |sum, h| sum + of_head(h)) * (1.0 / shape.heads as f32)
            };
            let mut p: Vec<f32> = chosen.of(t).iter().map(weight).collect();
            losses[t] = 0.0;
            let all = p.iter().fold(0.0, |sum, p| sum + p);
            if !whole && all <= 0.0 {
                gradients.extend(vec![0.0; p.len()]);
                continue;
            }
            if !whole {
                p.iter_mut().for_each(|p| *p /= all);
            }
            let max = scores.iter().fold(f32::NEG_INFINITY, |max, x| if *x > max { *x } else { max });
            let terms: Vec<f32> = scores.iter().map(|score| math::exp(score - max)).collect();
            // A product with 1 is what it was, so this is a sum.
            let sum = dot(&terms, &vec![1.0; terms.len()]);
            for ((p, score), term) in p.iter().zip(scores).zip(&terms) {
                if *p > 0.0 {
                    losses[t] = p.mul_add(math::log(*p) - (score - max - math::log(sum)), losses[t]);
                }
                gradients.push(term * (1.0 / sum) - p);
            }
        }
    }
    gradients
}

/// Reference of [`crate::attention::index_loss::backward`].
pub fn backward(
    of: Indexer,
    chosen: &Chosen,
    starts: &[u32],
    (gradients, factor): (&[f32], f32),
    IndexOperands { q, w, k }: IndexOperands,
    [dq, dw, dk]: [&mut [f32]; 3],
) {
    let all = starts.windows(2).map(|ends| (ends[0] as usize..ends[1] as usize, ends[0] as usize));
    let operands = IndexOperands { q, w, k };
    backward_of(of, chosen, &all.collect::<Vec<_>>(), (gradients, factor), operands, [dq, dw, dk]);
}

/// Reference of [`crate::attention::index_loss::entry_backward`].
pub fn entry_backward(
    of: Indexer,
    chosen: &Chosen,
    spans: &[Span],
    scores: (&[f32], f32),
    operands: IndexOperands,
    gradients: [&mut [f32]; 3],
) {
    let all: Vec<_> = spans.iter().map(|span| (span.queries.clone(), span.entries.start)).collect();
    backward_of(of, chosen, &all, scores, operands, gradients);
}

fn backward_of(
    of: Indexer,
    chosen: &Chosen,
    sequences: &[(Range<usize>, usize)],
    (gradients, factor): (&[f32], f32),
    IndexOperands { q, w, k }: IndexOperands,
    [dq, dw, dk]: [&mut [f32]; 3],
) {
    let Indexer { heads, dim, .. } = of;
    dq.fill(0.0);
    dk.fill(0.0);
    for (queries, first) in sequences {
        for t in queries.clone() {
            dw[t * heads..][..heads].fill(0.0);
            for (key, gradient) in chosen.of(t).iter().zip(&gradients[chosen.range(t)]) {
                let s = first + *key as usize;
                for h in 0..heads {
                    let at = t * heads + h;
                    let product = dot(&q[at * dim..][..dim], &k[s * dim..][..dim]) * of.scale();
                    if product > 0.0 {
                        let gradient = gradient * factor;
                        dw[at] = gradient.mul_add(product, dw[at]);
                        let of_product = gradient * (w[at] * of.share()) * of.scale();
                        for i in 0..dim {
                            dq[at * dim + i] = of_product.mul_add(k[s * dim + i], dq[at * dim + i]);
                            dk[s * dim + i] = of_product.mul_add(q[at * dim + i], dk[s * dim + i]);
                        }
                    }
                }
            }
            dw[t * heads..][..heads].iter_mut().for_each(|dw| *dw *= of.share());
        }
    }
}

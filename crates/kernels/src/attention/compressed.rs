//! Attention over a window of the nearest tokens and over compressed entries of all that is further away (DeepSeek-V4
//! report, §2.3): one row of numbers is key and value at once, the same for all heads, and each head has a sink.
//!
//! The query at place p attends to the rows of tokens p − window + 1 ..= p and, of the entries (`crate::compress`) of m
//! tokens each, to those that are complete, which are the first (p + 1)/m, or to the [`Chosen`] of these.
//!
//! **Order of sums.** Scores are 16 partial sums of fused multiply-adds over the dimensions and the fixed tree, times
//! `scale`; the maximum is over all of them and the sink; weights `exp(score − max)`; their sum is a chain over the
//! tokens, then the entries, then the sink; outputs are chains over the same keys, multiplied with 1/sum. A query
//! depends on itself and on rows and entries of its own sequence up to itself.
//!
//! Backward: p = exp(s − max)·inverse, ds = p·(g·k − g·out)·scale; dq is a chain over the keys; the gradient of a row
//! or entry is a chain over the queries, and within one over the heads: of ds·q, then of p·g. Saved: operands, out, and
//! of each query and head the maximum and 1/sum. The sinks' gradients are those of [`sink_terms`](super::sink_terms).

use std::ops::Range;

use super::{Chosen, dot};
use crate::lanes::Lanes;
use crate::math::scalar;
use crate::par::{self, SharedMut};
use crate::scratch;
use crate::span::spans;

/// Heads, and what they attend to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compressed {
    /// H.
    pub heads: usize,
    /// d.
    pub dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// How many tokens a query attends to, the one at its own place and those before it.
    pub window: usize,
    /// m; 0 where there are no entries.
    pub rate: usize,
}

/// Where a sequence's rows are in the operands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Which queries are of its new tokens.
    pub queries: Range<usize>,
    /// Place in the sequence of the first query.
    pub past: usize,
    /// Of keys: the newest tokens' up to the last query's.
    pub rows: Range<usize>,
    /// All entries up to the last query.
    pub entries: Range<usize>,
}

impl Span {
    /// Whole sequences, packed, of which `rate` tokens become an entry each; 0 for none.
    pub fn packed(starts: &[u32], rate: usize) -> Vec<Span> {
        let mut end = 0;
        let span = |ends: &[u32]| {
            let queries = ends[0] as usize..ends[1] as usize;
            let entries = end..end + queries.len().checked_div(rate).unwrap_or(0);
            end = entries.end;
            Span { rows: queries.clone(), queries, past: 0, entries }
        };
        starts.windows(2).map(span).collect()
    }

    /// The place in the sequence of a query of the operands.
    pub(crate) fn place(&self, query: usize) -> usize {
        self.past + (query - self.queries.start)
    }

    /// The row in the operands of the token at a place.
    fn row_at(&self, place: usize) -> usize {
        self.rows.end - (self.past + self.queries.len() - place)
    }
}

impl Compressed {
    /// How many entries the query at a place may attend to.
    pub fn complete(&self, place: usize) -> usize {
        (place + 1).checked_div(self.rate).unwrap_or(0)
    }

    /// The rows of tokens that a query of a span attends to.
    pub(crate) fn rows(&self, span: &Span, query: usize) -> Range<usize> {
        let place = span.place(query);
        span.row_at((place + 1).saturating_sub(self.window))..span.row_at(place) + 1
    }

    /// The entries that it attends to, in the operands.
    pub(crate) fn entries<'a>(
        &self,
        span: &Span,
        chosen: Option<&'a Chosen>,
        query: usize,
    ) -> impl Iterator<Item = usize> + use<'a> {
        let first = span.entries.start;
        let all = if chosen.is_some() { 0 } else { self.complete(span.place(query)) };
        let some = chosen.map_or(&[][..], |chosen| chosen.of(query));
        (first..first + all).chain(some.iter().map(move |entry| first + *entry as usize))
    }

    pub(super) fn check(&self, spans: &[Span], operands: &Operands) {
        let Compressed { heads, dim, scale, window, .. } = *self;
        assert!(heads > 0 && dim > 0 && scale > 0.0 && window > 0, "{self:?}");
        let Operands { q, rows, entries, chosen, sinks } = *operands;
        assert_eq!(sinks.len(), heads, "sinks of {heads} heads");
        let count = |x: &[f32], width: usize| {
            assert!(x.len().is_multiple_of(width), "{} numbers in rows of {width}", x.len());
            x.len() / width
        };
        let [queries, rows, entries] =
            [(q, heads * dim), (rows, dim), (entries, dim)].map(|(x, width)| count(x, width));
        let mut next = 0;
        for span in spans {
            let Span { queries: own, past, .. } = span;
            assert!(own.start == next && own.end <= queries, "queries {own:?} after {next} of {queries}");
            next = own.end;
            assert!(span.rows.end <= rows && span.entries.end <= entries, "{span:?} of {rows} rows, {entries} entries");
            let seen = (past + 1).min(window) - 1 + own.len();
            assert!(own.is_empty() || span.rows.len() >= seen, "{span:?} lacks rows of the first window");
            let complete = self.complete((past + own.len()).saturating_sub(1));
            assert!(own.is_empty() || span.entries.len() >= complete, "{span:?} lacks entries");
            for query in own.clone() {
                let last = chosen.and_then(|chosen| chosen.of(query).last());
                let complete = self.complete(span.place(query));
                assert!(last.is_none_or(|last| (*last as usize) < complete), "query {query} chose entry {last:?}");
            }
        }
        assert!(next == queries && chosen.is_none_or(|chosen| chosen.queries() == queries), "{queries} queries");
    }
}

/// What attention is computed of.
#[derive(Clone, Copy)]
pub struct Operands<'a> {
    /// `[T, H·d]`.
    pub q: &'a [f32],
    /// `[R, d]`: keys and values of tokens.
    pub rows: &'a [f32],
    /// `[E, d]`: of entries.
    pub entries: &'a [f32],
    /// The entries that queries attend to, if not to all.
    pub chosen: Option<&'a Chosen>,
    /// `[H]`.
    pub sinks: &'a [f32],
}

/// Where the span of each query is.
fn spans_of(spans: &[Span]) -> Vec<usize> {
    spans.iter().enumerate().flat_map(|(i, span)| std::iter::repeat_n(i, span.queries.len())).collect()
}

/// The rows that a query sees, then the entries.
fn keys_of<'a>(of: &Compressed, span: &Span, operands: &Operands<'a>, query: usize) -> Vec<&'a [f32]> {
    let rows = of.rows(span, query).map(|row| &operands.rows[row * of.dim..][..of.dim]);
    let entries = of.entries(span, operands.chosen, query).map(|entry| &operands.entries[entry * of.dim..][..of.dim]);
    rows.chain(entries).collect()
}

/// `out[T, H·d]`, and `stats[T, H·2]`: of each query and head the maximum and 1/sum.
pub fn forward(of: Compressed, spans: &[Span], operands: Operands, out: &mut [f32], stats: &mut [f32]) {
    of.check(spans, &operands);
    let width = of.heads * of.dim;
    let tokens = operands.q.len() / width;
    assert_eq!((out.len(), stats.len()), (operands.q.len(), tokens * of.heads * 2), "out and stats");
    let (stats, which) = (SharedMut::new(stats), spans_of(spans));
    par::chunks_mut(out, width, |t, out| {
        let keys = keys_of(&of, &spans[which[t]], &operands, t);
        let (keys, q, sinks) = (&keys[..], &operands.q[t * width..][..width], operands.sinks);
        // SAFETY: each query is one task's.
        let stats = unsafe { stats.slice(t * of.heads * 2, of.heads * 2) };
        // SAFETY: q and out have H rows of d numbers, as many as there are sinks and pairs of stats; keys have d.
        unsafe {
            crate::lanes::dispatch!(attend(
                of: Compressed, keys: &[&[f32]], q: &[f32], sinks: &[f32], out: &mut [f32], stats: &mut [f32]
            ))
        };
    });
}

/// # Safety
/// The machine has the instruction set of `L`; q and out have `of.heads` rows of `of.dim` numbers, keys as many
/// numbers, sinks and stats one and two numbers a head.
#[inline(always)]
unsafe fn attend<L: Lanes>(
    of: Compressed,
    keys: &[&[f32]],
    q: &[f32],
    sinks: &[f32],
    out: &mut [f32],
    stats: &mut [f32],
) {
    let mut weights = vec![0.0; keys.len()];
    let heads = q.chunks_exact(of.dim).zip(out.chunks_exact_mut(of.dim));
    for ((q, out), (sink, stats)) in heads.zip(sinks.iter().zip(stats.as_chunks_mut::<2>().0)) {
        let mut max = *sink;
        for (weight, key) in weights.iter_mut().zip(keys) {
            // SAFETY: query and key have `dim` numbers; instructions by this function's contract.
            *weight = unsafe { dot::<L>(q, key) } * of.scale;
            max = if *weight > max { *weight } else { max };
        }
        let mut sum = 0.0;
        for weight in &mut weights {
            *weight = scalar::exp(*weight - max);
            sum += *weight;
        }
        let inverse = 1.0 / (sum + scalar::exp(*sink - max));
        // SAFETY: a span of `out` lies in each key; instructions by this function's contract.
        unsafe {
            spans!(out.len(), |s| {
                let mut sum = L::splat(0.0);
                for (weight, key) in weights.iter().zip(keys) {
                    sum = L::splat(*weight).fma(s.load(key), sum);
                }
                s.store(sum.mul(L::splat(inverse)), out);
            });
        }
        *stats = [max, inverse];
    }
}

/// What [`forward`] has given, and the gradient of its output.
#[derive(Clone, Copy)]
pub struct Given<'a> {
    pub out: &'a [f32],
    pub stats: &'a [f32],
    pub d_out: &'a [f32],
}

/// The gradients of queries, rows and entries, all of which are set.
pub struct Gradients<'a> {
    pub q: &'a mut [f32],
    pub rows: &'a mut [f32],
    pub entries: &'a mut [f32],
}

/// Queries whose weights are held at a time. Chains go on from one to the next, so it changes no bit.
const BLOCK: usize = 64;

/// Backward of [`forward`], but for the sinks.
pub fn backward(of: Compressed, spans: &[Span], operands: Operands, given: Given, gradients: Gradients) {
    of.check(spans, &operands);
    let Gradients { q: dq, rows: d_rows, entries: d_entries } = gradients;
    assert_eq!((dq.len(), d_rows.len()), (operands.q.len(), operands.rows.len()), "gradients of queries and rows");
    assert_eq!(d_entries.len(), operands.entries.len(), "gradients of entries");
    d_rows.fill(0.0);
    d_entries.fill(0.0);
    let width = of.heads * of.dim;
    for span in spans {
        for first in span.queries.clone().step_by(BLOCK) {
            let block = Block::new(&of, span, &operands, first..(first + BLOCK).min(span.queries.end));
            let mut products = scratch::buffer(block.len * of.heads * 2);
            block.products(&operands, &given, &mut products, &mut dq[first * width..block.queries.end * width]);
            block.gradients(&operands, &given, &products, d_rows, d_entries);
        }
    }
}

/// Some queries of a span.
struct Block<'a> {
    of: &'a Compressed,
    span: &'a Span,
    queries: Range<usize>,
    /// Where the keys of each query begin among all of the block.
    starts: Vec<usize>,
    /// Keys of all queries together.
    len: usize,
}

impl<'a> Block<'a> {
    fn new(of: &'a Compressed, span: &'a Span, operands: &Operands, queries: Range<usize>) -> Self {
        let (mut starts, mut len) = (Vec::with_capacity(queries.len()), 0);
        for query in queries.clone() {
            starts.push(len);
            len += of.rows(span, query).len() + of.entries(span, operands.chosen, query).count();
        }
        Block { of, span, queries, starts, len }
    }

    /// Of each query, head and key p and ds, a head's keys one after the other; and the gradients of the queries.
    fn products(&self, operands: &Operands, given: &Given, products: &mut [f32], dq: &mut [f32]) {
        let of = *self.of;
        let (width, products) = (of.heads * of.dim, SharedMut::new(products));
        par::chunks_mut(dq, width, |i, dq| {
            let t = self.queries.start + i;
            let keys = &keys_of(self.of, self.span, operands, t)[..];
            let len = keys.len() * of.heads * 2;
            // SAFETY: each query is one task's.
            let products = unsafe { products.slice(self.starts[i] * of.heads * 2, len) };
            let [q, out, d_out] = [operands.q, given.out, given.d_out].map(|x| &x[t * width..][..width]);
            let stats = &given.stats[t * of.heads * 2..][..of.heads * 2];
            let query = &Query { of, keys, q, out, d_out, stats };
            // SAFETY: all rows have `dim` numbers, as many rows and pairs of stats as heads are there.
            unsafe { crate::lanes::dispatch!(query_backward(query: &Query, products: &mut [f32], dq: &mut [f32])) };
        });
    }

    /// Adds to the gradients of rows and entries.
    fn gradients(
        &self,
        operands: &Operands,
        given: &Given,
        products: &[f32],
        d_rows: &mut [f32],
        d_entries: &mut [f32],
    ) {
        let dim = self.of.dim;
        let rows =
            self.of.rows(self.span, self.queries.start).start..self.span.row_at(self.span.place(self.queries.end));
        par::chunks_mut(&mut d_rows[rows.start * dim..rows.end * dim], dim, |i, d_key| {
            let column = |query: usize| {
                let own = self.of.rows(self.span, query);
                own.contains(&(rows.start + i)).then(|| rows.start + i - own.start)
            };
            self.add(operands, given, products, &column, d_key);
        });
        let entries = self.span.entries.clone();
        par::chunks_mut(&mut d_entries[entries.start * dim..entries.end * dim], dim, |entry, d_key| {
            let column = |query: usize| {
                let behind = self.of.rows(self.span, query).len();
                let found = match operands.chosen {
                    Some(chosen) => chosen.of(query).binary_search(&(entry as u32)).ok(),
                    None => (entry < self.of.complete(self.span.place(query))).then_some(entry),
                };
                found.map(|column| behind + column)
            };
            self.add(operands, given, products, &column, d_key);
        });
    }

    /// Adds to a key's gradient what the queries give it that have it, at which of their keys `column` says.
    fn add(
        &self,
        operands: &Operands,
        given: &Given,
        products: &[f32],
        column: &dyn Fn(usize) -> Option<usize>,
        d_key: &mut [f32],
    ) {
        let Compressed { heads, dim, .. } = *self.of;
        for (i, query) in self.queries.clone().enumerate() {
            let Some(column) = column(query) else { continue };
            let end = self.starts.get(i + 1).copied().unwrap_or(self.len);
            let keys = end - self.starts[i];
            for head in 0..heads {
                let at = (self.starts[i] * heads + head * keys + column) * 2;
                let (p, ds) = (products[at], products[at + 1]);
                let at = (query * heads + head) * dim;
                let (q, d_out) = (&operands.q[at..at + dim], &given.d_out[at..at + dim]);
                // SAFETY: all have `dim` numbers.
                unsafe {
                    crate::lanes::dispatch!(add_products(
                        p: f32, ds: f32, q: &[f32], d_out: &[f32], d_key: &mut [f32]
                    ))
                };
            }
        }
    }
}

struct Query<'a> {
    of: Compressed,
    keys: &'a [&'a [f32]],
    q: &'a [f32],
    out: &'a [f32],
    d_out: &'a [f32],
    stats: &'a [f32],
}

/// # Safety
/// The machine has the instruction set of `L`; all rows have `dim` numbers; there are as many of the query, and pairs
/// of stats, as heads, and two products for each head and key.
#[inline(always)]
unsafe fn query_backward<L: Lanes>(query: &Query, products: &mut [f32], dq: &mut [f32]) {
    let Query { of, keys, q, out, d_out, stats } = *query;
    for (head, products) in products.chunks_exact_mut(2 * keys.len()).enumerate() {
        let row = head * of.dim..(head + 1) * of.dim;
        let (q, out, d_out) = (&q[row.clone()], &out[row.clone()], &d_out[row.clone()]);
        let (max, inverse) = (stats[2 * head], stats[2 * head + 1]);
        let pairs = products.as_chunks_mut::<2>().0;
        // SAFETY: all rows have `dim` numbers; instructions by this function's contract.
        unsafe {
            let delta = dot::<L>(d_out, out);
            for (pair, key) in pairs.iter_mut().zip(keys) {
                let p = scalar::exp(dot::<L>(q, key) * of.scale - max) * inverse;
                *pair = [p, p * (dot::<L>(d_out, key) - delta) * of.scale];
            }
            let dq = &mut dq[row];
            spans!(dq.len(), |s| {
                let mut sum = L::splat(0.0);
                for ([_, ds], key) in pairs.iter().zip(keys) {
                    sum = L::splat(*ds).fma(s.load(key), sum);
                }
                s.store(sum, dq);
            });
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn add_products<L: Lanes>(p: f32, ds: f32, q: &[f32], d_out: &[f32], d_key: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(d_key.len(), |s| {
            let sum = L::splat(ds).fma(s.load(q), s.load(d_key));
            s.store(L::splat(p).fma(s.load(d_out), sum), d_key);
        });
    }
}

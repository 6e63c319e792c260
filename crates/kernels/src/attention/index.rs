//! The lightning indexer of DeepSeek Sparse Attention: which keys a query attends to (DeepSeek-V3.2 report, arXiv
//! 2512.02556, eq. 1 and 2).
//!
//! With H index heads of width d and one index key a token, `score(t, s) = Σ_h w_h·ReLU(q_h·k_s / √d) / √H`. A query
//! attends to the `top_k` keys up to its own of the greatest score, to all where there are no more.
//!
//! **Order of sums.** q·k is a chain of fused multiply-adds over the dimensions; times 1/√d; what is not greater than 0
//! becomes 0; the score is a chain over the heads whose factors are w times 1/√H. **Of equal scores** the key that
//! stands earlier comes first. So a query's keys depend on its sequence up to itself alone, as in attention.
//!
//! Index keys lie in pages as keys do: a layer's part is `[dim][PAGE]`. Whole sequences are chosen from in the same
//! way, over pages that are made for it.

use std::ops::Range;

use super::Chosen;
use super::compressed::Span;
use super::paged::{
    Brain, CacheDtype, Element, Half, PAGE, Pages, Place, Sequence, Slot, extend, for_each_token, write_row,
};
use crate::lanes::{LANES, Lanes};
use crate::par::{self, SharedMut};
use crate::scratch;

/// An indexer's sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Indexer {
    /// H.
    pub heads: usize,
    /// Width of a query head and of the key.
    pub dim: usize,
    /// Keys that a query attends to.
    pub top_k: usize,
}

impl Indexer {
    /// Factor on products: 1/√d.
    pub fn scale(&self) -> f32 {
        (1.0 / (self.dim as f64).sqrt()) as f32
    }

    /// Factor on the weights of heads: 1/√H.
    pub fn share(&self) -> f32 {
        (1.0 / (self.heads as f64).sqrt()) as f32
    }

    /// Numbers that a page has of a layer's index keys.
    pub fn page_len(dim: usize) -> usize {
        PAGE * dim
    }

    /// Checks operands of so many tokens.
    pub(super) fn check(&self, tokens: usize, q: &[f32], w: &[f32], k: Option<&[f32]>) {
        let Indexer { heads, dim, top_k } = *self;
        assert!(heads > 0 && dim > 0 && top_k > 0, "{self:?}");
        assert!(q.len() == tokens * heads * dim, "index queries have {} elements, {tokens} tokens", q.len());
        assert!(w.len() == tokens * heads, "weights of index heads have {} elements, {tokens} tokens", w.len());
        let k = k.map_or(tokens * dim, <[f32]>::len);
        assert!(k == tokens * dim, "index keys have {k} elements, {tokens} tokens");
    }
}

/// The keys of the queries `q[T, H·d]`, with weights `w[T, H]` and index keys `k[T, d]` of packed sequences.
pub fn choose(of: Indexer, starts: &[u32], q: &[f32], w: &[f32], k: &[f32]) -> Chosen {
    let tokens = super::check_sequences(starts);
    of.check(tokens, q, w, Some(k));
    let lens: Vec<usize> = starts.windows(2).map(|ends| (ends[1] - ends[0]) as usize).collect();
    let (pages, numbers) = paged(of.dim, &lens, k);
    let sequences = in_pages(&numbers, &lens);
    pages.choose(0, of, &sequences, q, w)
}

/// The entries that the queries `q[T, H·d]` of some spans attend to, with weights `w[T, H]`, among the entries of
/// `rate` tokens each with index keys `k[E, d]` that are complete at the query's place: the `top_k` of the greatest
/// score.
///
/// # Panics
/// If there are more or fewer queries or keys than the spans have.
pub fn choose_entries(of: Indexer, rate: usize, spans: &[Span], q: &[f32], w: &[f32], k: &[f32]) -> Chosen {
    let tokens = spans.last().map_or(0, |span| span.queries.end);
    of.check(tokens, q, w, None);
    let lens: Vec<usize> = spans.iter().map(|span| span.entries.len()).collect();
    let total: usize = lens.iter().sum();
    assert!(k.len() == total * of.dim, "index keys have {} elements, {total} entries", k.len());
    let (pages, numbers) = paged(of.dim, &lens, k);
    let mut queries = Vec::with_capacity(tokens);
    for (span, Sequence { pages, .. }) in spans.iter().zip(in_pages(&numbers, &lens)) {
        for token in span.queries.clone() {
            let keys = (span.place(token) + 1) / rate;
            assert!(keys <= span.entries.len(), "{span:?} lacks entries of query {token}");
            queries.push(Query { token, pages: &pages[..keys.div_ceil(PAGE)], keys });
        }
    }
    pages.choose_among(0, of, &queries, q, w)
}

/// Pages that hold the index keys of some sequences of these lengths, and their numbers.
fn paged(dim: usize, lens: &[usize], k: &[f32]) -> (Pages, Vec<u32>) {
    let count: usize = lens.iter().map(|len| len.div_ceil(PAGE)).sum();
    let numbers: Vec<u32> = (0..count as u32).collect();
    let mut pages = Pages::new(CacheDtype::F32, count, Indexer::page_len(dim));
    pages.append_index(0, dim, &in_pages(&numbers, lens), k);
    (pages, numbers)
}

/// Sequences of these lengths, in pages one after the other.
fn in_pages<'a>(mut numbers: &'a [u32], lens: &[usize]) -> Vec<Sequence<'a>> {
    let sequence = |new: &usize| {
        let (pages, others) = numbers.split_at(new.div_ceil(PAGE));
        numbers = others;
        Sequence { pages, past: 0, new: *new }
    };
    lens.iter().map(sequence).collect()
}

impl Pages {
    /// Writes the new tokens' index keys `k[T, dim]` to a layer's part of the pages, which begins at `offset`.
    ///
    /// # Panics
    /// If pages are missing or shared by two sequences that write to them, or k has another size.
    pub fn append_index(&mut self, offset: usize, dim: usize, sequences: &[Sequence], k: &[f32]) {
        let tokens = self.check(sequences);
        self.check_part(offset, Indexer::page_len(dim));
        assert!(k.len() == tokens * dim, "index keys have {} elements, {tokens} tokens", k.len());
        let (place, dtype) = (self.place_mut(offset), self.dtype);
        for_each_token(sequences, |at| {
            let k = &k[at.token * dim..][..dim];
            // SAFETY: `check` and `check_part` have seen that the slot's page and the layer's part exist and that no
            // other token has the slot; the pages hold what `dtype` says.
            unsafe {
                match dtype {
                    CacheDtype::F32 => crate::lanes::dispatch!(append_f32(place: Place, k: &[f32], at: Slot)),
                    CacheDtype::F16 => crate::lanes::dispatch!(append_f16(place: Place, k: &[f32], at: Slot)),
                    CacheDtype::Bf16 => crate::lanes::dispatch!(append_bf16(place: Place, k: &[f32], at: Slot)),
                }
            }
        });
    }

    /// The keys of the new tokens' queries among all of their sequences up to themselves, whose own were
    /// [appended](Pages::append_index).
    ///
    /// # Panics
    /// As for [`Pages::append_index`].
    pub fn choose(&self, offset: usize, of: Indexer, sequences: &[Sequence], q: &[f32], w: &[f32]) -> Chosen {
        let tokens = self.check(sequences);
        self.check_part(offset, Indexer::page_len(of.dim));
        of.check(tokens, q, w, None);
        self.choose_among(offset, of, &queries(sequences), q, w)
    }

    /// [`Pages::choose`] of queries that were checked.
    fn choose_among(&self, offset: usize, of: Indexer, queries: &[Query], q: &[f32], w: &[f32]) -> Chosen {
        let counts: Vec<usize> = queries.iter().map(|query| query.keys.min(of.top_k)).collect();
        let total = counts.iter().sum();
        let (mut keys, mut scores) = (vec![0; total], vec![0.0; total]);
        let job = Job { place: self.place(offset), of, q, w };
        let mut to = (&mut keys[..], &mut scores[..]);
        for together in batches(queries) {
            let (queries, counts) = (&queries[together.clone()], &counts[together]);
            let (own_keys, own_scores);
            let total = counts.iter().sum();
            ((own_keys, to.0), (own_scores, to.1)) = (to.0.split_at_mut(total), to.1.split_at_mut(total));
            choose_together(&job, self.dtype, queries, counts, (own_keys, own_scores));
        }
        Chosen::new(counts, keys, scores)
    }
}

/// Which keys it may choose: the first of these pages.
struct Query<'a> {
    /// Its row in the call's operands.
    token: usize,
    pages: &'a [u32],
    keys: usize,
}

fn queries<'a>(sequences: &[Sequence<'a>]) -> Vec<Query<'a>> {
    let mut queries = Vec::new();
    for Sequence { pages, past, new } in sequences {
        for place in *past..past + new {
            queries.push(Query { token: queries.len(), pages: &pages[..place / PAGE + 1], keys: place + 1 });
        }
    }
    queries
}

/// Scores that are held at a time.
const TOGETHER: usize = 1 << 22;
/// Pages whose scores are one task.
const TASK_PAGES: usize = 64;

/// Queries whose scores are made together.
fn batches(queries: &[Query]) -> Vec<Range<usize>> {
    let mut batches: Vec<Range<usize>> = Vec::new();
    let mut held = 0;
    for (i, query) in queries.iter().enumerate() {
        let own = PAGE * query.pages.len();
        match batches.last_mut() {
            Some(last) if held + own <= TOGETHER => {
                last.end = i + 1;
                held += own;
            }
            _ => {
                batches.push(i..i + 1);
                held = own;
            }
        }
    }
    batches
}

struct Job<'a> {
    place: Place,
    of: Indexer,
    q: &'a [f32],
    w: &'a [f32],
}

/// Some pages of a query, and where their scores go.
struct Task<'a> {
    token: usize,
    pages: &'a [u32],
    at: usize,
}

fn choose_together(
    job: &Job,
    dtype: CacheDtype,
    queries: &[Query],
    counts: &[usize],
    (keys, chosen_scores): (&mut [u32], &mut [f32]),
) {
    let (mut tasks, mut firsts, mut len) = (Vec::new(), Vec::with_capacity(queries.len()), 0);
    for query in queries {
        // Also where all are chosen: the indexer learns by their scores.
        firsts.push(len);
        for pages in query.pages.chunks(TASK_PAGES) {
            tasks.push(Task { token: query.token, pages, at: len });
            len += PAGE * pages.len();
        }
    }
    let mut scores = scratch::buffer(len);
    let to = SharedMut::new(&mut scores);
    par::run(tasks.len(), |i| {
        let task = &tasks[i];
        // SAFETY: pages, part and operands were checked; each task has scores of its own; the pages hold what `dtype`
        // says.
        unsafe {
            let scores = to.slice(task.at, PAGE * task.pages.len());
            match dtype {
                CacheDtype::F32 => crate::lanes::dispatch!(scores_f32(job: &Job, task: &Task, scores: &mut [f32])),
                CacheDtype::F16 => crate::lanes::dispatch!(scores_f16(job: &Job, task: &Task, scores: &mut [f32])),
                CacheDtype::Bf16 => crate::lanes::dispatch!(scores_bf16(job: &Job, task: &Task, scores: &mut [f32])),
            }
        }
    });
    let ends: Vec<usize> = counts
        .iter()
        .scan(0, |end, count| {
            *end += count;
            Some(*end)
        })
        .collect();
    let (keys, chosen_scores) = (SharedMut::new(keys), SharedMut::new(chosen_scores));
    par::run(queries.len(), |i| {
        let (count, query) = (counts[i], &queries[i]);
        let own = &scores[firsts[i]..][..query.keys];
        // SAFETY: each query has keys and scores of its own.
        let (keys, chosen) =
            unsafe { (keys.slice(ends[i] - count, count), chosen_scores.slice(ends[i] - count, count)) };
        select(own, keys);
        chosen.iter_mut().zip(&*keys).for_each(|(score, key)| *score = own[*key as usize]);
    });
}

/// The places of the greatest scores, as many as there is room for, ascending.
fn select(scores: &[f32], keys: &mut [u32]) {
    let count = keys.len();
    if count == scores.len() {
        keys.iter_mut().zip(0..).for_each(|(to, key)| *to = key);
        return;
    }
    let ranked = |(key, score): (usize, &f32)| u64::from(!ordered(*score)) << 32 | key as u64;
    let mut ranks: Vec<u64> = scores.iter().enumerate().map(ranked).collect();
    ranks.select_nth_unstable(count - 1);
    keys.iter_mut().zip(&ranks).for_each(|(key, rank)| *key = *rank as u32);
    keys.sort_unstable();
}

/// Bits that order as the numbers do.
fn ordered(x: f32) -> u32 {
    let bits = x.to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// # Safety
/// As for [`append`], of pages of f32.
#[inline(always)]
unsafe fn append_f32<L: Lanes>(place: Place, k: &[f32], at: Slot) {
    // SAFETY: f32 is what these pages hold; place, key and slot go on as they came.
    unsafe { append::<L, f32>(place, k, at) }
}

/// # Safety
/// As for [`append`], of pages of f16.
#[inline(always)]
unsafe fn append_f16<L: Lanes>(place: Place, k: &[f32], at: Slot) {
    // SAFETY: `Half` is a number of pages of f16; place, key and slot go on as they came.
    unsafe { append::<L, Half>(place, k, at) }
}

/// # Safety
/// As for [`append`], of pages of bf16.
#[inline(always)]
unsafe fn append_bf16<L: Lanes>(place: Place, k: &[f32], at: Slot) {
    // SAFETY: `Brain` is a number of pages of bf16; place, key and slot go on as they came.
    unsafe { append::<L, Brain>(place, k, at) }
}

/// # Safety
/// Page and slot exist and hold numbers of type E, and no other task has this slot; the machine has the instruction set
/// of `L`.
#[inline(always)]
unsafe fn append<L: Lanes, E: Element>(place: Place, k: &[f32], at: Slot) {
    // SAFETY: a slot's numbers lie a page's tokens apart in the layer's part, which is this task's by this function's
    // contract.
    unsafe { write_row::<L, E>(k, place.page::<E>(at.page).add(at.slot), PAGE) }
}

/// # Safety
/// As for [`scores_of`], of pages of f32.
#[inline(always)]
unsafe fn scores_f32<L: Lanes>(job: &Job, task: &Task, scores: &mut [f32]) {
    // SAFETY: f32 is what these pages hold; the rest goes on as it came.
    unsafe { scores_of::<L, f32>(job, task, scores) }
}

/// # Safety
/// As for [`scores_of`], of pages of f16.
#[inline(always)]
unsafe fn scores_f16<L: Lanes>(job: &Job, task: &Task, scores: &mut [f32]) {
    // SAFETY: `Half` is a number of pages of f16; the rest goes on as it came.
    unsafe { scores_of::<L, Half>(job, task, scores) }
}

/// # Safety
/// As for [`scores_of`], of pages of bf16.
#[inline(always)]
unsafe fn scores_bf16<L: Lanes>(job: &Job, task: &Task, scores: &mut [f32]) {
    // SAFETY: `Brain` is a number of pages of bf16; the rest goes on as it came.
    unsafe { scores_of::<L, Brain>(job, task, scores) }
}

/// Scores of the keys in a task's pages, `[pages][PAGE]`; those of slots that nothing was written to mean nothing.
///
/// # Safety
/// The machine has the instruction set of `L`; the pages exist and hold numbers of type E; the operands were checked;
/// there is a score for each slot.
#[inline(always)]
unsafe fn scores_of<L: Lanes, E: Element>(job: &Job, task: &Task, scores: &mut [f32]) {
    let Indexer { heads, dim, .. } = job.of;
    let q = &job.q[task.token * heads * dim..][..heads * dim];
    let w = &job.w[task.token * heads..][..heads];
    let (scale, share) = (job.of.scale(), job.of.share());
    // SAFETY: the query has `heads` rows of `dim` numbers, a page as many for each of its slots; a score for each by
    // this function's contract.
    unsafe {
        for (page, scores) in task.pages.iter().zip(scores.as_chunks_mut::<LANES>().0) {
            let panel = job.place.page::<E>(*page).cast_const();
            let mut sum = L::splat(0.0);
            let mut head = 0;
            while head < heads {
                let at = (&q[head * dim..], &w[head..]);
                if heads - head >= 8 {
                    sum = heads_of::<L, E, 8>(sum, at, dim, panel, (scale, share));
                    head += 8;
                } else {
                    sum = heads_of::<L, E, 1>(sum, at, dim, panel, (scale, share));
                    head += 1;
                }
            }
            // A zero has one sign, so that equal scores have equal bits.
            sum.add(L::splat(0.0)).store(scores.as_mut_ptr());
        }
    }
}

/// Extends the scores of a page's keys by those of M heads.
///
/// # Safety
/// As for [`scores_of`]; queries and weights of M heads are there.
#[inline(always)]
unsafe fn heads_of<L: Lanes, E: Element, const M: usize>(
    mut sum: L,
    (q, w): (&[f32], &[f32]),
    dim: usize,
    panel: *const E,
    (scale, share): (f32, f32),
) -> L {
    // SAFETY: M rows of `dim` numbers and a panel of as many by this function's contract.
    unsafe {
        let rows: [*const f32; M] = std::array::from_fn(|i| q[i * dim..].as_ptr());
        let products = extend::<L, E, M, 1>([[L::splat(0.0)]; M], dim, rows, [panel], None);
        for (i, [product]) in products.into_iter().enumerate() {
            let positive = product.mul(L::splat(scale)).max(L::splat(0.0));
            sum = L::splat(w[i] * share).fma(positive, sum);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_equal_scores_the_earlier_key_comes_first() {
        let mut keys = [9; 3];
        select(&[0.0, 2.0, 0.0, -1.0, 2.0, 0.0], &mut keys);
        assert_eq!(keys, [0, 1, 4]);
        let mut keys = [9; 4];
        select(&[-0.5, -3.0, f32::NEG_INFINITY, 1e-30, 0.0], &mut keys);
        assert_eq!(keys, [0, 1, 3, 4]);
    }

    #[test]
    fn many_queries_are_done_a_part_at_a_time() {
        let pages = vec![0; TOGETHER / PAGE / 2];
        let query = |token| Query { token, pages: &pages, keys: 1 };
        let queries: Vec<Query> = (0..5).map(query).collect();
        assert_eq!(batches(&queries), [0..2, 2..4, 4..5]);
    }
}

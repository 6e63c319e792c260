//! The forward pass that reads and extends the KV cache ([`PagedCache`]).
//!
//! A [`Chunk`] names a sequence's pages in the order of the tokens. Full pages may belong to several sequences.
//! Positions are `past..`, so going back to a shorter past needs nothing but a smaller `past`.
//!
//! **Same bits.** With [`CacheLayout::Expanded`] and [`CacheDtype::F32`] the logits are those of
//! [`Model::logits`] over the whole sequence, bit for bit. With any layout and number format they do not depend on how
//! a sequence was cut into chunks, on what else was in a step, or on the pages.

use crate::adapter::Adapter;
use crate::kv_cache::Paging;
use crate::model::Model;
use crate::ops::{self, Head};
use crate::params::Params;
use crate::tape::{AdaptedRows, Execution, Graph, Var};
use std::ops::Range;
use std::sync::Arc;
use wels_device::{Ids, Sequence, Tensor, WeightRef};

pub use crate::config::CacheLayout;
pub use crate::kv_cache::{PAGE_TOKENS, PagedCache};
pub use wels_device::CacheDtype;

/// New tokens of one sequence.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    /// The new tokens, at least one.
    pub tokens: &'a [u32],
    /// Tokens of the sequence that its pages hold already.
    pub past: usize,
    /// Its pages in order: enough for the past and the new tokens; more are not looked at.
    pub pages: &'a [u32],
    /// How many of the last tokens want logits.
    pub logits: usize,
    /// How many of the last tokens want their states.
    pub states: usize,
}

/// Rows that stand in place of tokens' embeddings: the features of a picture, or a part of them.
#[derive(Clone, Debug)]
pub struct Given<'a> {
    /// The first of the step's new tokens, all chunks one after the other, that they stand for.
    pub at: usize,
    /// `[·, D]`.
    pub features: &'a Tensor,
    /// Which of the features.
    pub rows: Range<usize>,
}

/// What a step gives for the tokens that want it, chunks in order.
pub struct StepOutput {
    /// `[rows, V]`, of those that want logits.
    pub logits: Tensor,
    /// `[rows, D]`, of those that want states: what the head read, which MTP goes on from.
    pub hidden: Tensor,
}

/// The most new tokens of a step whose operations are so small that what lies between them counts. A guess.
const SMALL_STEP: usize = 256;

/// Does the work of a step, as one that is like many before if it is small.
fn together<T>(execution: &Execution, chunks: &[Chunk], work: impl FnOnce() -> T) -> T {
    if chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>() > SMALL_STEP {
        return work();
    }
    let (mut work, mut done) = (Some(work), None);
    execution.device().together(&mut || done = work.take().map(|work| work()));
    done.expect("a device that does the work")
}

impl Model {
    /// Continues the sequences by their new tokens, whose keys and values go to their pages.
    ///
    /// # Panics
    /// If a chunk has no token, too few pages or a page that does not exist, if two chunks write to one page, or a
    /// sequence grows beyond the context.
    pub fn step(&self, params: &Params, execution: &Execution, cache: &mut PagedCache, chunks: &[Chunk]) -> StepOutput {
        self.step_with(params, execution, cache, chunks, &[])
    }

    /// [`Model::step`] with other rows than the embeddings of some tokens, whose ids do not matter.
    ///
    /// # Panics
    /// As for [`Model::step`], and if rows are of another width or stand beyond the tokens.
    pub fn step_with(
        &self,
        params: &Params,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        given: &[Given],
    ) -> StepOutput {
        self.step_adapted(params, execution, cache, chunks, given, &[])
    }

    /// [`Model::step_with`] where chunks have adapters, one or none each; of an empty list, none has one.
    ///
    /// # Panics
    /// As for [`Model::step_with`], and if there are more or fewer than chunks, or an adapter is of another model.
    pub fn step_adapted(
        &self,
        params: &Params,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        given: &[Given],
        adapters: &[Option<Arc<Adapter>>],
    ) -> StepOutput {
        together(execution, chunks, || {
            let mut g = self.paged(params, execution, cache, chunks);
            g.context.adapted = adapted(chunks, adapters);
            let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
            let h = self.embed(&mut g, &tokens.into());
            let h = place(&mut g, h, given);
            let h = self.through_layers(&mut g, h);
            let h = last(&mut g, &h, chunks, |chunk| chunk.tokens.len(), |chunk| chunk.results());
            let h = self.final_norm(&mut g, h);
            self.output(&mut g, h, chunks, self.head())
        })
    }

    /// [`Model::step`] of embeddings `[T, D]`, of tokens or of something else, in the places of the chunks' tokens:
    /// the states `[rows, D]` of those that want them.
    ///
    /// # Panics
    /// As for [`Model::step`], and if there are more or fewer embeddings than tokens.
    pub fn step_states(
        &self,
        params: &Params,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        embeddings: Tensor,
    ) -> Tensor {
        let tokens = chunks.iter().map(|chunk| chunk.tokens.len()).sum::<usize>();
        assert_eq!((embeddings.rows(), embeddings.cols()), (tokens, self.config().hidden_size), "embeddings");
        together(execution, chunks, || {
            let mut g = self.paged(params, execution, cache, chunks);
            let h = g.variable(embeddings);
            let h = self.through_layers(&mut g, h);
            let h = last(&mut g, &h, chunks, |chunk| chunk.tokens.len(), |chunk| chunk.states);
            self.final_norm(&mut g, h).into_value()
        })
    }

    /// What MTP of depth `depth` ≥ 1 expects beyond the next token. Token i of a chunk is the one `depth` places after
    /// position `past + i`, and row i of `hidden[T, D]`, all chunks one after the other, the state that the depth
    /// before (for depth 1: [`Model::step`]) gave for that position. The logits are those of the token after it.
    ///
    /// Depth 1 may be applied again to its own states and the token it expects, to look further ahead than the model
    /// was trained for; then its keys and values at those positions are only a draft, to be written over.
    ///
    /// # Panics
    /// As for [`Model::step`], and if the model has no such depth or `hidden` another size.
    pub fn draft(
        &self,
        params: &Params,
        execution: &Execution,
        cache: &mut PagedCache,
        depth: usize,
        chunks: &[Chunk],
        hidden: Tensor,
    ) -> StepOutput {
        together(execution, chunks, || {
            let mut g = self.paged(params, execution, cache, chunks);
            let tokens: Vec<u32> = chunks.iter().flat_map(|chunk| chunk.tokens).copied().collect();
            assert_eq!((hidden.rows(), hidden.cols()), (tokens.len(), self.config().hidden_size), "hidden states");
            let hidden = g.variable(hidden);
            let mtp = self.mtp(depth);
            let h = mtp.run(&mut g, &hidden, &tokens.into());
            let h = last(&mut g, &h, chunks, |chunk| chunk.tokens.len(), |chunk| chunk.results());
            self.output(&mut g, h, chunks, self.head_of(mtp))
        })
    }

    /// From the states of all tokens that want anything.
    fn output(&self, g: &mut Graph, h: Var, chunks: &[Chunk], head: Head) -> StepOutput {
        let for_logits = last(g, &h, chunks, |chunk| chunk.results(), |chunk| chunk.logits);
        let hidden = last(g, &h, chunks, |chunk| chunk.results(), |chunk| chunk.states);
        StepOutput { logits: ops::logits(g, &for_logits, head), hidden: hidden.into_value() }
    }

    fn paged<'a>(
        &self,
        params: &'a Params,
        execution: &'a Execution,
        cache: &'a mut PagedCache,
        chunks: &[Chunk<'a>],
    ) -> Graph<'a> {
        let mut starts = vec![0];
        starts.extend(chunks.iter().scan(0, |end, chunk| {
            *end += chunk.tokens.len() as u32;
            Some(*end)
        }));
        let mut positions = Vec::with_capacity(starts[chunks.len()] as usize);
        for Chunk { tokens, past, .. } in chunks {
            let end = past + tokens.len();
            assert!(end <= self.context_len(), "{end} tokens in a context of {}", self.context_len());
            positions.extend((*past..end).map(|position| position as u32));
        }
        let paging = Paging::new(cache, chunks.iter().map(Chunk::sequence).collect(), self.config());
        Graph::inference(self.context(params, execution, starts.into(), positions.into()), Some(paging))
    }
}

impl<'a> Chunk<'a> {
    /// How many of the last tokens want anything.
    fn results(&self) -> usize {
        self.logits.max(self.states)
    }

    /// # Panics
    /// If it has no token or wants more logits or states than tokens.
    fn sequence(&self) -> Sequence<'a> {
        let Chunk { tokens, past, pages, logits, states } = *self;
        assert!(!tokens.is_empty(), "a chunk without tokens");
        let new = tokens.len();
        assert!(logits.max(states) <= new, "{logits} logits and {states} states of {new} tokens");
        Sequence { pages, past, new }
    }
}

/// Rows of several tensors of equal width, one after the other: how states that wait for MTP come together.
///
/// # Panics
/// If there are none, or they differ in width.
pub fn concatenate(execution: &Execution, parts: &[(&Tensor, Range<usize>)]) -> Tensor {
    let rows = parts.iter().map(|(_, rows)| rows.len()).sum();
    let first = parts.first().expect("rows to put together").0;
    let mut all = execution.pool.tensor_of(first.dtype(), rows, first.cols());
    let mut to = 0;
    for (tensor, rows) in parts {
        execution.device().copy_rows(tensor, rows.start, &mut all, to, rows.len());
        to += rows.len();
    }
    all
}

/// Which of the step's rows have which adapter.
fn adapted(chunks: &[Chunk], adapters: &[Option<Arc<Adapter>>]) -> Arc<[AdaptedRows]> {
    assert!(adapters.is_empty() || adapters.len() == chunks.len(), "{} adapters", adapters.len());
    let mut of_adapters: Vec<(&Arc<Adapter>, Vec<u32>)> = Vec::new();
    let mut first = 0;
    for (i, chunk) in chunks.iter().enumerate() {
        let rows = first..first + chunk.tokens.len() as u32;
        first = rows.end;
        let Some(Some(adapter)) = adapters.get(i) else { continue };
        match of_adapters.iter_mut().find(|(other, _)| *other == adapter) {
            Some((_, all)) => all.extend(rows),
            None => of_adapters.push((adapter, rows.collect())),
        }
    }
    let rows = |(adapter, rows): (&Arc<Adapter>, Vec<u32>)| {
        let all = rows.len() == first as usize;
        AdaptedRows { adapter: Arc::clone(adapter), rows: rows.into(), all }
    };
    of_adapters.into_iter().map(rows).collect()
}

/// `h[T, D]` with the given rows in their places.
fn place(g: &mut Graph, h: Var, given: &[Given]) -> Var {
    if given.is_empty() {
        return h;
    }
    let mut h = h.into_value();
    let device = h.device().clone();
    for Given { at, features, rows } in given {
        device.copy_rows(features, rows.start, &mut h, *at, rows.len());
    }
    g.variable(h)
}

/// The last `count` rows of each chunk, which has `rows` of `h`.
fn last(
    g: &mut Graph,
    h: &Var,
    chunks: &[Chunk],
    rows: impl Fn(&Chunk) -> usize,
    count: impl Fn(&Chunk) -> usize,
) -> Var {
    let mut picked = Vec::new();
    let mut end = 0;
    for chunk in chunks {
        end += rows(chunk) as u32;
        picked.extend(end - count(chunk) as u32..end);
    }
    if picked.len() == h.rows() {
        return h.clone();
    }
    let mut out = g.tensor_of(h.dtype(), picked.len(), h.cols());
    g.device().gather(WeightRef::Plain(h), &Ids::from(picked), &mut out);
    g.variable(out)
}

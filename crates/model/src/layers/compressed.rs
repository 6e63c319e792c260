//! Attention over a window of the nearest tokens and over compressed entries of the others.
//!
//! ```text
//! q    = RoPE(norm(W_QB c_Q)), c_Q = norm(W_QA h)      each head normed without a weight; its last part turns
//! kv   = RoPE(norm(W_KV h))                             one row, key and value of all heads
//! e    = RoPE(norm(compress(W_C h, W_G h)))             an entry turns by the place of its window's first token
//! u    = W_OB W_OA RoPE⁻¹(attention(q; kv, e))          W_OA is a matrix for each group of heads
//! ```
//! What is a value was turned as a key; turned back by the query's place, it depends on the distance. Where entries are
//! chosen, an indexer with entries of its own chooses; nothing that it reads learns by it. Source: DeepSeek-V4 report,
//! §2.3, and `transformers` 5.23.

use crate::config::{Attention, Entries, ModelConfig};
use crate::entry_pages::{Parts, compression};
use crate::ops::{
    EntryChoice, EntryParts, attend_entries, choose_entries, compress, grouped_linear, keep_rows, kept_rows, linear,
    linears, plain_norm_heads, rms_norm, rope, rope_at, rope_back,
};
use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use std::ops::Range;
use wels_device::{
    Compression, EntryAttention, Indexer, Precision, Rotary, RotaryColumns, RowLayout, Span, Stretch, Tensor,
};

pub(crate) struct CompressedAttention {
    q_a: Weight,
    q_norm: Weight,
    q_b: Weight,
    kv: Weight,
    kv_norm: Weight,
    o_a: Weight,
    o_b: Weight,
    sinks: Weight,
    entries: Option<Compressor>,
    indexer: Option<EntryIndexer>,
    of: EntryAttention,
    groups: usize,
    rope_dim: usize,
    rotary: Rotary,
    eps: f32,
    /// Of the rows of tokens.
    layout: RowLayout,
}

/// What makes entries of tokens.
struct Compressor {
    of: Compression,
    kv: Weight,
    gate: Weight,
    bias: Weight,
    norm: Weight,
    rope_dim: usize,
    rotary: Rotary,
    eps: f32,
    /// Of what entries are made of, kv and gate, and of entries.
    layouts: [RowLayout; 3],
}

struct EntryIndexer {
    of: Indexer,
    compressor: Compressor,
    q: Weight,
    weights: Weight,
}

/// New tokens of a sequence, and those before them.
#[derive(Clone, Copy)]
struct Reach {
    past: usize,
    new: usize,
}

impl Reach {
    fn end(self) -> usize {
        self.past + self.new
    }

    /// The places of the tokens that the windows of the new ones reach.
    fn within(self, window: usize) -> Range<usize> {
        (self.past + 1).saturating_sub(window).min(self.end())..self.end()
    }
}

fn reaches(g: &mut Graph) -> Vec<Reach> {
    match g.paging() {
        Some(paging) => paging.sequences().iter().map(|it| Reach { past: it.past, new: it.new }).collect(),
        None => {
            let starts = &g.context.sequences.starts;
            starts.windows(2).map(|ends| Reach { past: 0, new: (ends[1] - ends[0]) as usize }).collect()
        }
    }
}

/// Ranges one after the other, of these lengths.
fn packed(lens: impl IntoIterator<Item = usize>) -> Vec<Range<usize>> {
    let mut end = 0;
    let range = |len| {
        end += len;
        end - len..end
    };
    lens.into_iter().map(range).collect()
}

impl CompressedAttention {
    pub fn new(wiring: &mut Wiring, name: &str, config: &ModelConfig, layer: usize, rotary: &Rotary) -> Self {
        let Attention::Compressed { heads, head_dim: dim, rope_dim, groups, window, .. } = config.attention else {
            panic!("entries of {:?}", config.attention)
        };
        let entries = config.entries(layer);
        let mut parts = Parts::default();
        let layout = parts.rows(dim, 1);
        let mut compressor = |wiring: &mut Wiring, part: &str, dim: usize| {
            let of = compression(entries, dim)?;
            let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}"));
            Some(Compressor {
                of,
                kv: weight(&format!("{part}.kv_proj.weight")),
                gate: weight(&format!("{part}.gate_proj.weight")),
                bias: weight(&format!("{part}.position_bias")),
                norm: weight(&format!("{part}.kv_norm.weight")),
                rope_dim,
                rotary: rotary.clone(),
                eps: config.norm_eps,
                layouts: parts.compressor(of),
            })
        };
        let own = compressor(wiring, "compressor", dim);
        let indexer = config.indexer.filter(|_| matches!(entries, Entries::Chosen { .. })).map(|of| EntryIndexer {
            of,
            compressor: compressor(wiring, "compressor.indexer", of.dim).expect("entries of a layer that chooses some"),
            q: wiring.weight(&format!("{name}.compressor.indexer.q_b_proj.weight")),
            weights: wiring.weight(&format!("{name}.compressor.indexer.scorer.weights_proj.weight")),
        });
        let mut weight = |part: &str| wiring.weight(&format!("{name}.{part}"));
        CompressedAttention {
            q_a: weight("q_a_proj.weight"),
            q_norm: weight("q_a_norm.weight"),
            q_b: weight("q_b_proj.weight"),
            kv: weight("kv_proj.weight"),
            kv_norm: weight("kv_norm.weight"),
            o_a: weight("o_a_proj.weight"),
            o_b: weight("o_b_proj.weight"),
            sinks: weight("sinks"),
            entries: own,
            indexer,
            of: EntryAttention { heads, dim, scale: config.softmax_scale, window, rate: entries.rate() },
            groups,
            rope_dim,
            rotary: rotary.clone(),
            eps: config.norm_eps,
            layout,
        }
    }

    /// `[T, D]` to `[T, D]`.
    pub fn forward(&self, g: &mut Graph, h: &Var) -> Var {
        let (precision, EntryAttention { heads, dim, .. }) = (g.precision(), self.of);
        let columns = |heads| last_columns(dim, self.rope_dim, heads);
        let [c_q, kv] = linears(g, precision, h, [self.q_a, self.kv]);
        let c_q = rms_norm(g, &c_q, self.q_norm, self.eps);
        let q = linear(g, precision, &c_q, self.q_b);
        let q = plain_norm_heads(g, q, heads, self.eps);
        let q = rope(g, q, &self.rotary, columns(heads));
        let kv = rms_norm(g, &kv, self.kv_norm, self.eps);
        let kv = rope(g, kv, &self.rotary, columns(1));

        let reaches = reaches(g);
        let entries = self.entries.as_ref().and_then(|compressor| compressor.forward(g, h, &reaches));
        let (rows, row_ranges) = self.rows(g, kv, &reaches);
        let counts = reaches.iter().map(|reach| reach.end().checked_div(self.of.rate).unwrap_or(0));
        let queries = packed(reaches.iter().map(|reach| reach.new)).into_iter();
        let spans = queries.zip(row_ranges).zip(packed(counts)).zip(&reaches);
        let span = |(((queries, rows), entries), reach): (_, &Reach)| Span { queries, past: reach.past, rows, entries };
        let spans: Vec<Span> = spans.map(span).collect();

        let indexer = self.indexer.as_ref();
        let choice = indexer.and_then(|indexer| indexer.choose(g, h, &c_q, &reaches, &spans));
        let out = attend_entries(g, self.of, EntryParts { q, rows, entries, choice, sinks: self.sinks, spans });
        let out = rope_back(g, out, &self.rotary, columns(heads));
        let out = grouped_linear(g, out, self.o_a, self.groups);
        linear(g, precision, &out, self.o_b)
    }

    /// The rows of all tokens that windows reach, and where each sequence's are.
    fn rows(&self, g: &mut Graph, kv: Var, reaches: &[Reach]) -> (Var, Vec<Range<usize>>) {
        if g.paging().is_none() {
            return (kv, packed(reaches.iter().map(|reach| reach.new)));
        }
        let new: Vec<Range<usize>> = reaches.iter().map(|reach| reach.past..reach.end()).collect();
        let within: Vec<Range<usize>> = reaches.iter().map(|reach| reach.within(self.of.window)).collect();
        keep_rows(g, self.layout, &new, &kv);
        (kept_rows(g, self.layout, &within), packed(within.iter().map(Range::len)))
    }
}

/// The last part of each head, which turns.
fn last_columns(dim: usize, rope_dim: usize, heads: usize) -> RotaryColumns {
    RotaryColumns { offset: dim - rope_dim, head_stride: dim, heads }
}

impl Compressor {
    /// The entries `[E, d]` of all sequences, if there are any, of the states h `[T, D]` of new tokens.
    fn forward(&self, g: &mut Graph, h: &Var, reaches: &[Reach]) -> Option<Var> {
        let Compression { rate, overlap, .. } = self.of;
        let precision = g.precision();
        let [kv, gate] = linears(g, precision, h, [self.kv, self.gate]);
        let [of_kv, of_gate, of_entries] = self.layouts;
        // Windows that the new tokens fill, and the first that is looked at for them.
        let filled: Vec<Range<usize>> = reaches.iter().map(|reach| reach.past / rate..reach.end() / rate).collect();
        let first = |filled: &Range<usize>| filled.start.saturating_sub(usize::from(overlap));
        let (raw, rows) = if g.paging().is_some() {
            let new: Vec<Range<usize>> = reaches.iter().map(|reach| reach.past..reach.end()).collect();
            keep_rows(g, of_kv, &new, &kv);
            keep_rows(g, of_gate, &new, &gate);
            let of =
                |filled: &Range<usize>| if filled.is_empty() { 0..0 } else { first(filled) * rate..filled.end * rate };
            let needed: Vec<Range<usize>> = filled.iter().map(of).collect();
            let raw = [of_kv, of_gate].map(|layout| kept_rows(g, layout, &needed));
            (raw, packed(needed.iter().map(Range::len)))
        } else {
            ([kv, gate], packed(reaches.iter().map(|reach| reach.new)))
        };
        let behind = |filled: &Range<usize>| !filled.is_empty() && first(filled) < filled.start;
        let stretches = rows.into_iter().zip(&filled).map(|(rows, filled)| Stretch { rows, behind: behind(filled) });
        let new = self.entries(g, stretches.collect(), raw, &filled);
        if g.paging().is_none() {
            return new;
        }
        if let Some(new) = new {
            keep_rows(g, of_entries, &filled, &new);
        }
        let all: Vec<Range<usize>> = filled.iter().map(|filled| 0..filled.end).collect();
        all.iter().any(|all| !all.is_empty()).then(|| kept_rows(g, of_entries, &all))
    }

    /// The entries of windows `filled` of each sequence.
    fn entries(&self, g: &mut Graph, stretches: Vec<Stretch>, raw: [Var; 2], filled: &[Range<usize>]) -> Option<Var> {
        if self.of.entries(&stretches) == 0 {
            return None;
        }
        let entries = compress(g, self.of, stretches, raw, self.bias);
        let entries = rms_norm(g, &entries, self.norm, self.eps);
        let places: Vec<u32> = filled.iter().cloned().flatten().map(|window| (window * self.of.rate) as u32).collect();
        let columns = last_columns(self.of.dim, self.rope_dim, 1);
        Some(rope_at(g, entries, &self.rotary, columns, places.into()))
    }
}

impl EntryIndexer {
    /// The entries that queries attend to, if there are any. Nothing that it reads learns by it.
    fn choose(&self, g: &mut Graph, h: &Var, c_q: &Var, reaches: &[Reach], spans: &[Span]) -> Option<EntryChoice> {
        let [h, c_q] = [h, c_q].map(|x| g.constant(Tensor::clone(x)));
        let precision = g.precision();
        let k = self.compressor.forward(g, &h, reaches)?;
        let q = linear(g, precision, &c_q, self.q);
        let columns = last_columns(self.of.dim, self.compressor.rope_dim, self.of.heads);
        let q = rope(g, q, &self.compressor.rotary, columns);
        let w = linear(g, Precision::F32, &h, self.weights);
        Some(choose_entries(g, self.of, self.compressor.of.rate, spans, [q, w, k]))
    }
}

//! Compressed keys, and attention over a window of tokens and entries of what is further away.
//!
//! `compress`: entries `[E, d]` of kv and gate `[T, c·d]` and a bias `[m, c·d]`. `attend_entries`: out `[T, H·d]` of q
//! `[T, H·d]`, rows `[R, d]` and entries, each key and value at once, and sinks `[H]`. Saved: the operands, entries,
//! out, and for each token and head the maximum score and 1/Σ. To choose entries has no gradient; the indexer learns by
//! a loss of its own, as in `choose`. Formulas and backward parts: `wels_kernels::compress` and
//! `attention::compressed`. Source: DeepSeek-V4 report, §2.3.
//!
//! With pages (`crate::paged`) rows, what entries are made of and entries lie in the pages of their tokens.

use super::choose::and_back;
use super::streams::compressed;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use std::ops::Range;
use std::sync::Arc;
use wels_device::{
    Chosen, Compression, EntryAttention, EntryOperands, EntryResults, IndexOperands, Indexer, PageRows, RowLayout,
    ScoreGradients, Span, Stretch, Tensor,
};

/// `entries[E, d]` of whole windows of some stretches of rows.
pub fn compress(g: &mut Graph, of: Compression, stretches: Vec<Stretch>, [kv, gate]: [Var; 2], bias: Weight) -> Var {
    let mut entries = g.tensor(of.entries(&stretches), of.dim);
    compressed(g.device()).compress(of, &stretches, [&kv, &gate, g.weight(bias)], &mut entries);
    let kept = Tensor::clone(&entries);
    g.record("compress", entries, move |back, d_entries| {
        let device = compressed(back.device());
        let [mut d_kv, mut d_gate] = [&kv, &gate].map(|var| back.like(var.gradient()));
        let operands = [&*kv, &*gate, back.weight(bias)];
        let gradients = [&mut d_kv, &mut d_gate];
        device.compress_backward(of, &stretches, operands, [&kept, &d_entries], gradients);
        back.parameter(bias, |d, start| device.compress_bias_backward(of, &stretches, &d_gate, (d, start)));
        back.give(gate.gradient(), d_gate);
        back.give(kv.gradient(), d_kv);
    })
}

/// Which entries queries attend to, and what they were chosen by.
pub struct EntryChoice {
    chosen: Arc<Chosen>,
    of: Indexer,
    /// Queries, weights of heads, keys.
    by: [Var; 3],
}

/// The entries, of `rate` tokens each, that queries q `[T, H·d]` attend to by weights w `[T, H]` and keys k `[E, d]`.
pub fn choose_entries(g: &Graph, of: Indexer, rate: usize, spans: &[Span], [q, w, k]: [Var; 3]) -> EntryChoice {
    let chosen = compressed(g.device()).choose_entries(of, rate, spans, IndexOperands { q: &q, w: &w, k: &k });
    EntryChoice { chosen: Arc::new(chosen), of, by: [q, w, k] }
}

/// What [`attend_entries`] is between.
pub struct EntryParts {
    /// `[T, H·d]`.
    pub q: Var,
    /// `[R, d]`.
    pub rows: Var,
    /// `[E, d]`, if there are any.
    pub entries: Option<Var>,
    /// The entries that queries attend to, if not to all.
    pub choice: Option<EntryChoice>,
    /// `[H]`.
    pub sinks: Weight,
    /// Where each sequence's are.
    pub spans: Vec<Span>,
}

impl EntryParts {
    fn operands<'a>(&'a self, sinks: &'a Tensor) -> EntryOperands<'a> {
        let EntryParts { q, rows, entries, choice, .. } = self;
        let chosen = choice.as_ref().map(|choice| &*choice.chosen);
        EntryOperands { q, rows, entries: entries.as_deref(), chosen, sinks }
    }
}

/// `out[T, H·d]`.
pub fn attend_entries(g: &mut Graph, of: EntryAttention, parts: EntryParts) -> Var {
    let tokens = parts.q.rows();
    let mut out = g.tensor(tokens, of.heads * of.dim);
    let mut stats = g.tensor(tokens, of.heads * 2);
    let operands = parts.operands(g.weight(parts.sinks));
    compressed(g.device()).attend_entries(of, &parts.spans, operands, &mut out, &mut stats);
    let learning = Learning::by(g, of, &parts, &stats);
    let kept_out = Tensor::clone(&out);
    let out = g.record("attention", out, move |back, d_out| {
        let (device, sequences, sinks) = (back.device(), back.sequences(), back.weight(parts.sinks));
        let EntryParts { q, rows, entries, .. } = &parts;
        let [mut dq, mut d_rows] = [q, rows].map(|var| back.like(var.gradient()));
        let mut d_entries = entries.as_ref().map(|entries| back.like(entries.gradient()));
        let results = EntryResults { out: &kept_out, stats: &stats, d_out: &d_out };
        let (operands, into) = (parts.operands(sinks), [&mut dq, &mut d_rows]);
        compressed(device).attend_entries_backward(of, &parts.spans, operands, results, into, d_entries.as_mut());
        let mut terms = back.tensor(tokens, of.heads);
        device.sink_terms(sinks, &kept_out, &stats, &d_out, &mut terms);
        back.parameter(parts.sinks, |d, start| device.bias_backward(&terms, &sequences.starts, d, start));
        back.give(q.gradient(), dq);
        back.give(rows.gradient(), d_rows);
        if let (Some(entries), Some(gradient)) = (entries, d_entries) {
            back.give(entries.gradient(), gradient);
        }
    });
    match learning {
        Some(learning) => learning.record(g, out),
        None => out,
    }
}

/// What an indexer of entries learns by attention to those that it chose: a share of the objective that goes back when
/// attention does, as of `choose`.
struct Learning {
    chosen: Arc<Chosen>,
    of: Indexer,
    by: [Var; 3],
    spans: Vec<Span>,
    scores: ScoreGradients,
}

impl Learning {
    /// If it learns in this pass; tells the graph its losses.
    fn by(g: &mut Graph, of: EntryAttention, parts: &EntryParts, stats: &Tensor) -> Option<Self> {
        let choice = parts.choice.as_ref().filter(|_| g.context.indexer_coefficient != 0.0)?;
        let mut losses = g.tensor(stats.rows(), 1);
        let operands = parts.operands(g.weight(parts.sinks));
        let scores = compressed(g.device()).entry_losses(of, &parts.spans, operands, stats, &mut losses);
        g.index_losses.push(losses);
        let EntryChoice { chosen, of, by } = choice;
        Some(Learning { chosen: chosen.clone(), of: *of, by: by.clone(), spans: parts.spans.clone(), scores })
    }

    /// The same variable, whose backward part is also the indexer's.
    fn record(self, g: &mut Graph, out: Var) -> Var {
        let factor = g.context.indexer_coefficient;
        let Learning { chosen, of, by, spans, scores } = self;
        and_back(g, out, by, move |back, operands, gradients| {
            let scores = (&scores, factor);
            compressed(back.device()).choose_entries_backward(of, &chosen, &spans, scores, operands, gradients);
        })
    }
}

/// Writes rows of each sequence to the pages of the layer under way, where `layout` says how they lie in its part.
///
/// # Panics
/// If there are no pages.
pub fn keep_rows(g: &mut Graph, layout: RowLayout, rows: &[Range<usize>], x: &Tensor) {
    let (layer, device) = (g.layer(), g.device());
    let (pages, at) = g.paging().expect("pages").rows(layer);
    let layout = RowLayout { offset: at.offset + layout.offset, ..layout };
    compressed(device).put_rows(pages, PageRows { layout, sequences: at.sequences, rows }, x);
}

/// Reads what [`keep_rows`] has written: rows of each sequence, one below the other.
///
/// # Panics
/// If there are no pages.
pub fn kept_rows(g: &mut Graph, layout: RowLayout, rows: &[Range<usize>]) -> Var {
    let mut all = g.tensor(rows.iter().map(Range::len).sum(), layout.width);
    let (layer, device) = (g.layer(), g.device());
    let (pages, at) = g.paging().expect("pages").rows(layer);
    let layout = RowLayout { offset: at.offset + layout.offset, ..layout };
    compressed(device).take_rows(pages, PageRows { layout, sequences: at.sequences, rows }, &mut all);
    g.constant(all)
}

//! Compressed keys and several residual streams.

use wels_device::{
    CachePages, Chosen, Compressed, Compression, Dispatch, EntryAttention, EntryOperands, EntryResults, Ids,
    IndexOperands, Indexer, Mixing, PageRows, Router, ScoreGradients, Span, Start, Stretch, Tensor,
};
use wels_kernels::attention::compressed::{self, Given, Gradients, Operands};
use wels_kernels::attention::paged::SequenceRows;
use wels_kernels::attention::{index, index_loss};
use wels_kernels::{compress, router, streams};

use crate::Cpu;
use crate::attention::{pages, pages_mut};
use crate::experts::dispatch;
use crate::memory::{slice, slice_mut};
use crate::sparse::{chosen, of_list};

/// The rows of each sequence.
fn sequences<'a>(at: &PageRows<'a>) -> Vec<SequenceRows<'a>> {
    let rows = |(sequence, rows): (&wels_device::Sequence<'a>, &std::ops::Range<usize>)| SequenceRows {
        pages: sequence.pages,
        rows: rows.clone(),
    };
    at.sequences.iter().zip(at.rows).map(rows).collect()
}

fn slices<'a>(of: &EntryOperands<'a>) -> Operands<'a> {
    let &EntryOperands { q, rows, entries, chosen: few, sinks } = of;
    Operands {
        q: slice(q),
        rows: slice(rows),
        entries: entries.map_or(&[], slice),
        chosen: few.map(chosen),
        sinks: slice(sinks),
    }
}

impl Compressed for Cpu {
    fn weigh_streams(&self, of: Mixing, raw: &Tensor, base: &Tensor, scale: &Tensor, weights: &mut Tensor) {
        streams::weigh(of, slice(raw), slice(base), slice(scale), slice_mut(weights));
    }

    fn weigh_streams_backward(
        &self,
        of: Mixing,
        operands: [&Tensor; 3],
        d_weights: &Tensor,
        gradients: [&mut Tensor; 3],
    ) {
        streams::weigh_backward(of, operands.map(slice), slice(d_weights), gradients.map(slice_mut));
    }

    fn collapse(&self, of: Mixing, x: &Tensor, weights: &Tensor, y: &mut Tensor) {
        let d = y.cols();
        streams::collapse(of, slice(x), slice(weights), slice_mut(y), d);
    }

    fn collapse_backward(
        &self,
        of: Mixing,
        dy: &Tensor,
        operands: [&Tensor; 2],
        (dx, start): (&mut Tensor, Start),
        d_weights: &mut Tensor,
    ) {
        let (dx, d_weights) = ((slice_mut(dx), start), slice_mut(d_weights));
        streams::collapse_backward(of, slice(dy), operands.map(slice), dx, d_weights, dy.cols());
    }

    fn expand(&self, of: Mixing, x: &Tensor, y: &Tensor, weights: &Tensor, out: &mut Tensor) {
        streams::expand(of, slice(x), slice(y), slice(weights), slice_mut(out), y.cols());
    }

    fn expand_backward(
        &self,
        of: Mixing,
        d_out: &Tensor,
        operands: [&Tensor; 3],
        (dx, start): (&mut Tensor, Start),
        dy: &mut Tensor,
        d_weights: &mut Tensor,
    ) {
        let (dx, dy, d_weights) = ((slice_mut(dx), start), slice_mut(dy), slice_mut(d_weights));
        streams::expand_backward(of, slice(d_out), operands.map(slice), dx, dy, d_weights);
    }

    fn compress(&self, of: Compression, stretches: &[Stretch], operands: [&Tensor; 3], entries: &mut Tensor) {
        let [kv, gate, bias] = operands.map(slice);
        compress::compress(of, stretches, kv, gate, bias, slice_mut(entries));
    }

    fn compress_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        operands: [&Tensor; 3],
        entries: [&Tensor; 2],
        gradients: [&mut Tensor; 2],
    ) {
        let (operands, entries) = (operands.map(slice), entries.map(slice));
        compress::compress_backward(of, stretches, operands, entries, gradients.map(slice_mut));
    }

    fn compress_bias_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        d_gate: &Tensor,
        (d_bias, start): (&mut Tensor, Start),
    ) {
        let d_bias = slice_mut(d_bias);
        if start == Start::Zero {
            d_bias.fill(0.0);
        }
        compress::bias_backward(of, stretches, slice(d_gate), d_bias);
    }

    fn choose_entries(&self, of: Indexer, rate: usize, spans: &[Span], operands: IndexOperands) -> Chosen {
        let IndexOperands { q, w, k } = operands;
        of_list(index::choose_entries(of, rate, spans, slice(q), slice(w), slice(k)))
    }

    fn entry_losses(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        stats: &Tensor,
        losses: &mut Tensor,
    ) -> ScoreGradients {
        let gradients = index_loss::entry_losses(of, spans, slices(&operands), slice(stats), slice_mut(losses));
        ScoreGradients { memory: Box::new(gradients) }
    }

    fn choose_entries_backward(
        &self,
        of: Indexer,
        among: &Chosen,
        spans: &[Span],
        (scores, factor): (&ScoreGradients, f32),
        operands: IndexOperands,
        gradients: [&mut Tensor; 3],
    ) {
        let scores: &Vec<f32> = scores.memory.downcast_ref().expect("gradients of the processor's");
        let IndexOperands { q, w, k } = operands;
        let operands = index_loss::IndexOperands { q: slice(q), w: slice(w), k: slice(k) };
        index_loss::entry_backward(of, chosen(among), spans, (scores, factor), operands, gradients.map(slice_mut));
    }

    fn attend_entries(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        compressed::forward(of, spans, slices(&operands), slice_mut(out), slice_mut(stats));
    }

    fn attend_entries_backward(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        results: EntryResults,
        gradients: [&mut Tensor; 2],
        d_entries: Option<&mut Tensor>,
    ) {
        let EntryResults { out, stats, d_out } = results;
        let given = Given { out: slice(out), stats: slice(stats), d_out: slice(d_out) };
        let [q, rows] = gradients.map(slice_mut);
        let into = Gradients { q, rows, entries: d_entries.map_or(&mut [], slice_mut) };
        compressed::backward(of, spans, slices(&operands), given, into);
    }

    fn route_by_table(
        &self,
        router: &Router,
        logits: &Tensor,
        (table, ids): (&Tensor, &Ids),
        scores: &mut Tensor,
        weights: &mut Tensor,
    ) -> Dispatch {
        let mut chosen = vec![0; logits.rows() * router.top_k];
        let (table, scores, weights) = ((slice(table), &ids[..]), slice_mut(scores), slice_mut(weights));
        router::forward_by_table(router, slice(logits), table, scores, &mut chosen, weights);
        dispatch(router, logits.rows(), chosen)
    }

    fn put_rows(&self, to: &mut CachePages, at: PageRows, x: &Tensor) {
        pages_mut(to).put_rows(at.layout, &sequences(&at), slice(x));
    }

    fn take_rows(&self, from: &CachePages, at: PageRows, y: &mut Tensor) {
        pages(from).take_rows(at.layout, &sequences(&at), slice_mut(y));
    }
}

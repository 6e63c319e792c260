//! Compressed keys and several residual streams.

use wels_device::{
    CachePages, Chosen, Compressed, Compression, Dispatch, EntryAttention, EntryOperands, EntryResults, Ids,
    IndexOperands, Indexer, Mixing, PageRows, Router, ScoreGradients, Span, Start, Stretch, Tensor,
};
use wels_kernels::attention::compressed::{Given, Gradients, Operands};
use wels_kernels::attention::index_loss;
use wels_kernels::reference::{compress, compressed, index, router, streams};

use super::attention::{pages, pages_mut};
use super::rest::dispatch;
use super::sparse::{Gradients as OfScores, chosen, of_list};
use super::{Naive, values, values_mut};

fn slices<'a>(of: &EntryOperands<'a>) -> Operands<'a> {
    let &EntryOperands { q, rows, entries, chosen: few, sinks } = of;
    Operands {
        q: values(q),
        rows: values(rows),
        entries: entries.map_or(&[], values),
        chosen: few.map(chosen),
        sinks: values(sinks),
    }
}

impl Compressed for Naive {
    fn weigh_streams(&self, of: Mixing, raw: &Tensor, base: &Tensor, scale: &Tensor, weights: &mut Tensor) {
        streams::weigh(of, values(raw), values(base), values(scale), values_mut(weights));
    }

    fn weigh_streams_backward(
        &self,
        of: Mixing,
        operands: [&Tensor; 3],
        d_weights: &Tensor,
        gradients: [&mut Tensor; 3],
    ) {
        streams::weigh_backward(of, operands.map(values), values(d_weights), gradients.map(values_mut));
    }

    fn collapse(&self, of: Mixing, x: &Tensor, weights: &Tensor, y: &mut Tensor) {
        let d = y.cols();
        streams::collapse(of, values(x), values(weights), values_mut(y), d);
    }

    fn collapse_backward(
        &self,
        of: Mixing,
        dy: &Tensor,
        operands: [&Tensor; 2],
        (dx, start): (&mut Tensor, Start),
        d_weights: &mut Tensor,
    ) {
        let (dx, d_weights) = ((values_mut(dx), start), values_mut(d_weights));
        streams::collapse_backward(of, values(dy), operands.map(values), dx, d_weights, dy.cols());
    }

    fn expand(&self, of: Mixing, x: &Tensor, y: &Tensor, weights: &Tensor, out: &mut Tensor) {
        streams::expand(of, values(x), values(y), values(weights), values_mut(out), y.cols());
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
        let (dx, dy, d_weights) = ((values_mut(dx), start), values_mut(dy), values_mut(d_weights));
        streams::expand_backward(of, values(d_out), operands.map(values), dx, dy, d_weights);
    }

    fn compress(&self, of: Compression, stretches: &[Stretch], operands: [&Tensor; 3], entries: &mut Tensor) {
        let [kv, gate, bias] = operands.map(values);
        compress::compress(of, stretches, kv, gate, bias, values_mut(entries));
    }

    fn compress_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        operands: [&Tensor; 3],
        entries: [&Tensor; 2],
        gradients: [&mut Tensor; 2],
    ) {
        let (operands, entries) = (operands.map(values), entries.map(values));
        compress::compress_backward(of, stretches, operands, entries, gradients.map(values_mut));
    }

    fn compress_bias_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        d_gate: &Tensor,
        (d_bias, start): (&mut Tensor, Start),
    ) {
        let d_bias = values_mut(d_bias);
        if start == Start::Zero {
            d_bias.fill(0.0);
        }
        compress::bias_backward(of, stretches, values(d_gate), d_bias);
    }

    fn choose_entries(&self, of: Indexer, rate: usize, spans: &[Span], operands: IndexOperands) -> Chosen {
        let IndexOperands { q, w, k } = operands;
        of_list(index::choose_entries(of, rate, spans, values(q), values(w), values(k)))
    }

    fn entry_losses(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        stats: &Tensor,
        losses: &mut Tensor,
    ) -> ScoreGradients {
        let gradients = index::entry_losses(of, spans, slices(&operands), values(stats), values_mut(losses));
        ScoreGradients { memory: Box::new(OfScores(gradients)) }
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
        let OfScores(scores) = scores.memory.downcast_ref().expect("gradients of the naive device's");
        let IndexOperands { q, w, k } = operands;
        let operands = index_loss::IndexOperands { q: values(q), w: values(w), k: values(k) };
        index::entry_backward(of, chosen(among), spans, (scores, factor), operands, gradients.map(values_mut));
    }

    fn attend_entries(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        compressed::forward(of, spans, slices(&operands), values_mut(out), values_mut(stats));
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
        let given = Given { out: values(out), stats: values(stats), d_out: values(d_out) };
        let [q, rows] = gradients.map(values_mut);
        let into = Gradients { q, rows, entries: d_entries.map_or(&mut [], values_mut) };
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
        let (table, scores, weights) = ((values(table), &ids[..]), values_mut(scores), values_mut(weights));
        router::forward_by_table(router, values(logits), table, scores, &mut chosen, weights);
        dispatch(router, logits.rows(), chosen)
    }

    fn put_rows(&self, to: &mut CachePages, at: PageRows, x: &Tensor) {
        let mut x = values(x).chunks_exact(at.layout.width);
        for (sequence, rows) in at.sequences.iter().zip(at.rows) {
            for row in rows.clone() {
                let (page, start) = at.layout.place(row);
                pages_mut(to).set(sequence.pages[page], start, x.next().expect("a row of x"));
            }
        }
    }

    fn take_rows(&self, from: &CachePages, at: PageRows, y: &mut Tensor) {
        let mut y = values_mut(y).chunks_exact_mut(at.layout.width);
        for (sequence, rows) in at.sequences.iter().zip(at.rows) {
            for row in rows.clone() {
                let (page, start) = at.layout.place(row);
                let width = at.layout.width;
                y.next().expect("a row of y").copy_from_slice(pages(from).get(sequence.pages[page], start, width));
            }
        }
    }
}

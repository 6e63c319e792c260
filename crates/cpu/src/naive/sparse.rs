//! Attention to chosen keys; a layer's part of a page holds the index keys of its tokens, one after the other.

use wels_device::{
    AttentionInputs, AttentionShape, CachePages, Chosen, Ids, IndexOperands, Indexer, PagedSequences, ScoreGradients,
    SparseAttention, Tensor,
};
use wels_kernels::attention::{self, index_loss};
use wels_kernels::reference::index;

use super::attention::{heads, keys, pages, pages_mut};
use super::{Naive, values, values_mut};

/// The list of a choice.
struct List(attention::Chosen);

pub(super) fn chosen(chosen: &Chosen) -> &attention::Chosen {
    let List(list) = chosen.memory.downcast_ref().expect("a choice of the naive device's");
    list
}

pub(super) fn of_list(list: attention::Chosen) -> Chosen {
    Chosen { queries: list.queries(), memory: Box::new(List(list)) }
}

/// Of scores.
pub(super) struct Gradients(pub(super) Vec<f32>);

impl SparseAttention for Naive {
    fn choose(&self, of: Indexer, starts: &Ids, operands: IndexOperands) -> Chosen {
        let IndexOperands { q, w, k } = operands;
        of_list(index::choose(of, starts, values(q), values(w), values(k)))
    }

    fn append_index(&self, to: &mut CachePages, at: PagedSequences, k: &Tensor) {
        let to = pages_mut(to);
        let tokens = at.sequences.iter().flat_map(|it| (it.past..it.past + it.new).map(move |token| (it, token)));
        for ((sequence, token), row) in tokens.zip(values(k).chunks_exact(k.cols())) {
            to.set_row(sequence, token, at.offset, row);
        }
    }

    fn choose_cached(&self, among: &CachePages, at: PagedSequences, of: Indexer, q: &Tensor, w: &Tensor) -> Chosen {
        let (mut first, mut parts) = (0, Vec::new());
        for sequence in at.sequences {
            let rows = first..first + sequence.new;
            let [q, w] = [q, w].map(|x| &values(x)[rows.start * x.cols()..rows.end * x.cols()]);
            let k = pages(among).rows(sequence, at.offset, of.dim);
            parts.push(index::choose_cached(of, sequence.new, q, w, &k));
            first = rows.end;
        }
        of_list(attention::Chosen::joined(&parts))
    }

    fn index_losses(
        &self,
        shape: AttentionShape,
        of: &Chosen,
        starts: &Ids,
        inputs: AttentionInputs,
        stats: &Tensor,
        losses: &mut Tensor,
    ) -> ScoreGradients {
        let (q, k, losses) = (heads(inputs.q), keys(&inputs), values_mut(losses));
        let gradients = index::losses(shape, chosen(of), starts, q, k, values(stats), losses);
        ScoreGradients { memory: Box::new(Gradients(gradients)) }
    }

    fn index_backward(
        &self,
        of: Indexer,
        among: &Chosen,
        starts: &Ids,
        (scores, factor): (&ScoreGradients, f32),
        operands: IndexOperands,
        gradients: [&mut Tensor; 3],
    ) {
        let Gradients(scores) = scores.memory.downcast_ref().expect("gradients of the naive device's");
        let IndexOperands { q, w, k } = operands;
        let operands = index_loss::IndexOperands { q: values(q), w: values(w), k: values(k) };
        index::backward(of, chosen(among), starts, (scores, factor), operands, gradients.map(values_mut));
    }
}

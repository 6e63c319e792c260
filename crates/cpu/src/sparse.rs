//! Attention to chosen keys.

use wels_device::{
    AttentionInputs, AttentionShape, CachePages, Chosen, Ids, IndexOperands, Indexer, PagedSequences, ScoreGradients,
    SparseAttention, Tensor,
};
use wels_kernels::attention::{self, index, index_loss};

use crate::Cpu;
use crate::attention::{heads, keys, pages, pages_mut};
use crate::memory::{slice, slice_mut};

/// The list of a choice.
pub(crate) fn chosen(chosen: &Chosen) -> &attention::Chosen {
    chosen.memory.downcast_ref().expect("a choice of the processor's")
}

pub(crate) fn of_list(list: attention::Chosen) -> Chosen {
    Chosen { queries: list.queries(), memory: Box::new(list) }
}

impl SparseAttention for Cpu {
    fn choose(&self, of: Indexer, starts: &Ids, operands: IndexOperands) -> Chosen {
        let IndexOperands { q, w, k } = operands;
        of_list(index::choose(of, starts, slice(q), slice(w), slice(k)))
    }

    fn append_index(&self, to: &mut CachePages, at: PagedSequences, k: &Tensor) {
        pages_mut(to).append_index(at.offset, k.cols(), at.sequences, slice(k));
    }

    fn choose_cached(&self, among: &CachePages, at: PagedSequences, of: Indexer, q: &Tensor, w: &Tensor) -> Chosen {
        of_list(pages(among).choose(at.offset, of, at.sequences, slice(q), slice(w)))
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
        let (q, k, losses) = (heads(inputs.q), keys(&inputs), slice_mut(losses));
        let gradients = index_loss::losses(shape, chosen(of), starts, q, k, slice(stats), losses);
        ScoreGradients { memory: Box::new(gradients) }
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
        let scores: &Vec<f32> = scores.memory.downcast_ref().expect("gradients of the processor's");
        let IndexOperands { q, w, k } = operands;
        let operands = index_loss::IndexOperands { q: slice(q), w: slice(w), k: slice(k) };
        index_loss::backward(of, chosen(among), starts, (scores, factor), operands, gradients.map(slice_mut));
    }
}

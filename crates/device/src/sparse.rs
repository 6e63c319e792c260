//! Attention to chosen keys (DeepSeek Sparse Attention): what chooses them, and what that learns by.

use std::fmt;

use crate::{AttentionInputs, AttentionShape, CachePages, Ids, Indexer, Memory, PagedSequences, Tensor};

/// Which keys each query attends to; the device has the list.
pub struct Chosen {
    /// T.
    pub queries: usize,
    /// The device's.
    pub memory: Memory,
}

impl fmt::Debug for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Chosen[keys of {} queries]", self.queries)
    }
}

/// The gradients of an indexer's scores; the device has them.
pub struct ScoreGradients {
    /// The device's.
    pub memory: Memory,
}

/// What an indexer scores by.
#[derive(Clone, Copy, Debug)]
pub struct IndexOperands<'a> {
    /// `[T, H·d]`: queries.
    pub q: &'a Tensor,
    /// `[T, H]`: weights of the heads.
    pub w: &'a Tensor,
    /// `[T, d]`: keys.
    pub k: &'a Tensor,
}

/// Operations of indexers; see `wels_kernels::attention::index` and `index_loss` for formulas and orders of sums. What
/// they choose is an operand of [`Attention`](crate::Attention).
pub trait SparseAttention {
    /// The keys of packed sequences' queries.
    fn choose(&self, of: Indexer, starts: &Ids, operands: IndexOperands) -> Chosen;

    /// Writes the new tokens' index keys `k[T, d]` to their pages.
    fn append_index(&self, pages: &mut CachePages, at: PagedSequences, k: &Tensor);

    /// The keys of the new tokens' queries, among all that their sequences' pages hold up to them.
    fn choose_cached(&self, pages: &CachePages, at: PagedSequences, of: Indexer, q: &Tensor, w: &Tensor) -> Chosen;

    /// `losses[T, 1]`: how far the scores' softmax is from the weights of an attention to the chosen keys, which has
    /// left `stats`.
    fn index_losses(
        &self,
        shape: AttentionShape,
        chosen: &Chosen,
        starts: &Ids,
        inputs: AttentionInputs,
        stats: &Tensor,
        losses: &mut Tensor,
    ) -> ScoreGradients;

    /// The gradients of the operands, in their order, from `factor` times those of the scores.
    fn index_backward(
        &self,
        of: Indexer,
        chosen: &Chosen,
        starts: &Ids,
        scores: (&ScoreGradients, f32),
        operands: IndexOperands,
        gradients: [&mut Tensor; 3],
    );
}

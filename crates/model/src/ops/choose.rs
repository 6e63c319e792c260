//! The keys that queries attend to, chosen by an indexer (DeepSeek Sparse Attention), and what it learns by.
//!
//! q `[T, H·d]` and k `[T, d]` with their rotary parts turned, w `[T, H]`. To choose has no gradient. The indexer
//! learns to choose what attention weighs: by the divergence of its scores' softmax from attention's weights, over the
//! chosen keys, summed over the tokens. Saved for that: q, w, k, the choice, and the gradient of each score. Backward:
//! see `wels_kernels::attention::index_loss`; attention itself learns nothing by it. Source: DeepSeek-V3.2 report
//! (arXiv 2512.02556), eq. 1 to 4.
//!
//! With pages (`crate::paged`) the keys are appended to them, and queries choose among all of them, to the same bits.

use super::attention::Parts;
use crate::tape::{Backward, Graph, Var};
use std::sync::Arc;
use wels_device::{AttentionShape, Chosen, Device, IndexOperands, Indexer, ScoreGradients, SparseAttention, Tensor};

/// Which keys queries attend to, and what it was chosen by.
#[derive(Clone)]
pub struct Choice {
    /// The keys.
    pub chosen: Arc<Chosen>,
    of: Indexer,
    q: Var,
    w: Var,
    k: Var,
}

/// # Panics
/// If the device has none, which opening a model has refused.
fn sparse(device: &dyn Device) -> &dyn SparseAttention {
    device.sparse_attention().expect("a device with attention to chosen keys")
}

/// The keys of queries `q[T, H·d]`, with weights `w[T, H]` and keys `k[T, d]`.
pub fn choose(g: &mut Graph, of: Indexer, [q, w, k]: [Var; 3]) -> Choice {
    let (layer, device) = (g.layer(), sparse(g.device()));
    let chosen = match g.paging() {
        Some(paging) => {
            let (pages, at) = paging.index(layer);
            device.append_index(pages, at, &k);
            device.choose_cached(pages, at, of, &q, &w)
        }
        None => device.choose(of, &g.context.sequences.starts, IndexOperands { q: &q, w: &w, k: &k }),
    };
    Choice { chosen: Arc::new(chosen), of, q, w, k }
}

impl Choice {
    /// What the indexer learns by an attention to these keys, which has left `stats`, if it learns in this pass; tells
    /// the graph its losses.
    pub(super) fn learning(
        &self,
        g: &mut Graph,
        shape: AttentionShape,
        parts: &Parts,
        stats: &Tensor,
    ) -> Option<Learning> {
        if g.context.indexer_coefficient == 0.0 {
            return None;
        }
        let mut losses = g.tensor(stats.rows(), 1);
        let (starts, inputs) = (&g.context.sequences.starts, parts.inputs(None));
        let scores = sparse(g.device()).index_losses(shape, &self.chosen, starts, inputs, stats, &mut losses);
        g.index_losses.push(losses);
        Some(Learning { choice: self.clone(), scores })
    }
}

/// A share of the objective that is nobody's result: it goes back when attention does.
pub(super) struct Learning {
    choice: Choice,
    scores: ScoreGradients,
}

impl Learning {
    /// The same variable, whose backward part is also the indexer's.
    pub fn record(self, g: &mut Graph, out: Var) -> Var {
        let factor = g.context.indexer_coefficient;
        let Learning { choice: Choice { chosen, of, q, w, k }, scores } = self;
        and_back(g, out, [q, w, k], move |back, operands, gradients| {
            let starts = &back.context.sequences.starts;
            sparse(back.device()).index_backward(of, &chosen, starts, (&scores, factor), operands, gradients);
        })
    }
}

/// The same variable; when its gradient goes back, so do those of what an indexer chose by, which `write` sets.
pub(super) fn and_back(
    g: &mut Graph,
    out: Var,
    by: [Var; 3],
    write: impl FnOnce(&Backward, IndexOperands, [&mut Tensor; 3]) + 'static,
) -> Var {
    let d_out = out.gradient();
    g.record("index_loss", out.into_value(), move |back, d| {
        let mut gradients = by.each_ref().map(|x| back.like(x.gradient()));
        let [q, w, k] = &by;
        write(back, IndexOperands { q, w, k }, gradients.each_mut());
        by.iter().zip(gradients).for_each(|(x, gradient)| back.give(x.gradient(), gradient));
        back.give(d_out, d);
    })
}

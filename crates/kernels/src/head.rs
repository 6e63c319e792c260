//! The output head fused with cross-entropy: logits of a block of tokens at a time, never of all of them.
//!
//! **Order of sums.** Logits are chains over the width; log p = l_target − max − log Σ exp(l − max), the sum by 16 partial sums over
//! the vocabulary and the fixed tree. `dx` is a chain over the vocabulary, `dw` one chain over the tokens.

use crate::gemm::{Precision, Start};
use crate::reference;

/// A target that counts for nothing: log-probability 0, gradient 0.
pub const IGNORE: u32 = u32::MAX;

/// Where the gradients go.
pub struct Gradients<'a> {
    /// `[T, D]`, overwritten.
    pub dx: &'a mut [f32],
    /// `[V, D]`.
    pub dw: &'a mut [f32],
    /// Whether `dw` goes on from what it holds.
    pub dw_start: Start,
}

/// `logp[t]` = log p(`targets[t]`) under softmax(`x[T,D] · w[V,D]ᵀ`).
///
/// With gradients, the second part gives for a token and its log-probability −∂loss/∂logp, so that
/// ∂loss/∂logits = coefficient · (p − onehot): 1/N for a mean cross-entropy, an advantage for policy gradients.
pub fn loss(
    p: Precision,
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    d: usize,
    v: usize,
    logp: &mut [f32],
    gradients: Option<(Gradients, &(dyn Fn(usize, f32) -> f32 + Sync))>,
) {
    reference::head::loss(p, x, w, targets, d, v, logp, gradients);
}

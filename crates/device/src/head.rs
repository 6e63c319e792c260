//! The output head with its loss: logits `[T, V]` never exist.

use crate::{Coefficient, Divergence, Ids, Precision, Start, Tensor, WeightRef};

/// Where the gradients of the loss go.
pub struct HeadGradients<'a> {
    /// `[T, D]`.
    pub dx: &'a mut Tensor,
    /// `[V, D]`; `None` where the weights are not learnt.
    pub dw: Option<(&'a mut Tensor, Start)>,
    /// As in [`Products::linear_dw`](crate::Products::linear_dw).
    pub sequences: &'a Ids,
    /// The loss.
    pub coefficient: Coefficient<'a>,
}

/// The teacher of a distillation: what its head makes logits of, and how they are compared.
#[derive(Clone, Copy)]
pub struct TeacherHead<'a> {
    /// `[T, D of the teacher]`: what its head reads.
    pub states: &'a Tensor,
    /// Its head `[V, D of the teacher]`.
    pub head: WeightRef<'a>,
    /// What its logits are softly capped at.
    pub cap: Option<f32>,
    /// Which way the divergence is taken.
    pub divergence: Divergence,
    /// Of both softmaxes.
    pub temperature: f32,
    /// The share of the cross-entropy in the loss.
    pub cross_entropy: f32,
}

/// Log-probabilities and losses.
pub trait Head {
    /// `logp[t] = log softmax(x[t] · wᵀ)[targets[t]]`, 0 for [`IGNORE`](crate::IGNORE); with gradients, those of the
    /// loss that their coefficient stands for: of a packed w dx alone, as in
    /// [`Products::linear_dx`](crate::Products::linear_dx). With a cap, logits are capped as by
    /// [`Rows::soft_cap`](crate::Rows::soft_cap).
    fn head_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: WeightRef,
        cap: Option<f32>,
        targets: &[u32],
        logp: &mut Tensor,
        gradients: Option<HeadGradients>,
    );

    /// [`Head::head_loss`] of a student; `divergence[T]` gets each token's divergence from its teacher.
    fn distil_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: &Tensor,
        cap: Option<f32>,
        targets: &[u32],
        teacher: &TeacherHead,
        seen: [&mut Tensor; 2],
        gradients: HeadGradients,
    );
}

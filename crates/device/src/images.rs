//! What models of images need besides the operations of text models.

use crate::{Activation, Tensor};

/// Operations of the towers that see and draw; see `wels_kernels::images` for formulas and orders of sums.
pub trait Images {
    /// `y[T, D] = (x − mean)·rstd ⊙ w + b`, over each row.
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor);

    /// The same over all rows of each of `groups` equal groups of columns, and what follows it.
    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        w: &Tensor,
        b: &Tensor,
        eps: f32,
        activation: Activation,
        y: &mut Tensor,
    );

    /// `y = x·Φ(x)`.
    fn gelu(&self, x: &Tensor, y: &mut Tensor);

    /// Replaces each row of y by the softmax of `scale` > 0 times it.
    fn softmax(&self, scale: f32, y: &mut Tensor);
}

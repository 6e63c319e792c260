//! What models of images need besides the operations of text models.

use crate::{Pictures, Start, Tensor};

/// What the backward part of a LayerNorm is computed from; its gradients are those of x, w and b.
#[derive(Clone, Copy)]
pub struct LayerNormOperands<'a> {
    /// `[T, D]`.
    pub dy: &'a Tensor,
    /// `[T, D]`.
    pub x: &'a Tensor,
    /// `[1, D]`.
    pub w: &'a Tensor,
    pub eps: f32,
}

/// Operations of the towers that see and draw; see `wels_kernels::images` for formulas and orders of sums.
pub trait Images: Pictures {
    /// `y[T, D] = (x − mean)·rstd ⊙ w + b`, over each row.
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor);

    /// `y = x·Φ(x)`.
    fn gelu(&self, x: &Tensor, y: &mut Tensor);

    /// Backward of [`Images::layer_norm`] for dy `[T, D]`: `dw` and `db` are chains over the rows. See
    /// `wels_kernels::image_gradients`.
    fn layer_norm_backward(&self, of: LayerNormOperands, gradients: [(&mut Tensor, Start); 3]);

    /// Backward of [`Images::gelu`].
    fn gelu_backward(&self, dy: &Tensor, x: &Tensor, dx: (&mut Tensor, Start));
}

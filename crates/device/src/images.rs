//! What models of images need besides the operations of text models.

use crate::{Pictures, Tensor};

/// Operations of the towers that see and draw; see `wels_kernels::images` for formulas and orders of sums.
pub trait Images: Pictures {
    /// `y[T, D] = (x − mean)·rstd ⊙ w + b`, over each row.
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor);

    /// `y = x·Φ(x)`.
    fn gelu(&self, x: &Tensor, y: &mut Tensor);
}

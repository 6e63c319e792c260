//! What convolutions and attention without a mask need, forward and backward, besides products.

use crate::{GroupNorm, Precision, Start, Tensor, Windows};

/// Operations of networks of pictures; each names the module of `wels_kernels` with formula and order of sums.
pub trait Pictures {
    /// Replaces each row of y by the softmax of `scale` > 0 times it (`softmax`).
    fn softmax(&self, scale: f32, y: &mut Tensor);

    /// Replaces each row of dy, the gradient of a softmax's result `p`, by that of what it was made of.
    fn softmax_backward(&self, p: &Tensor, scale: f32, dy: &mut Tensor);

    /// `y[P·N, C]` and, for backward, `stats[2·P, C]` (`group_norm`).
    fn group_norm(&self, of: GroupNorm, x: &Tensor, w: &Tensor, b: &Tensor, y: &mut Tensor, stats: &mut Tensor);

    /// Backward of [`Pictures::group_norm`]; `dw` and `db` are chains over the pictures.
    fn group_norm_backward(
        &self,
        of: GroupNorm,
        dy: &Tensor,
        x: &Tensor,
        w_b: [&Tensor; 2],
        stats: &Tensor,
        dx: &mut Tensor,
        dw: (&mut Tensor, Start),
        db: (&mut Tensor, Start),
    );

    /// `y[P·side_out², N] = windows(x)·w[N, 9·C]ᵀ` (`gemm::conv`).
    fn conv(&self, precision: Precision, of: Windows, x: &Tensor, w: &Tensor, y: &mut Tensor);

    /// `dx[P·side², C]`, of weights that [`Pictures::turn_windows`] has turned over.
    fn conv_dx(&self, precision: Precision, of: Windows, dy: &Tensor, turned: &Tensor, dx: &mut Tensor);

    /// `turned[C, 9·N]` of `w[N, 9·C]` (`windows`).
    fn turn_windows(&self, w: &Tensor, turned: &mut Tensor);

    /// `y[R, 9·C]`: the windows of the outputs from `first` on.
    fn windows(&self, of: Windows, x: &Tensor, first: usize, y: &mut Tensor);

    /// Each pixel of pictures of `side` as two by two.
    fn double(&self, side: usize, x: &Tensor, y: &mut Tensor);

    /// Backward of [`Pictures::double`].
    fn double_backward(&self, side: usize, dy: &Tensor, dx: &mut Tensor);

    /// `y = x/|x|`, row by row, and `lengths[T]` (`unit`).
    fn unit_rows(&self, x: &Tensor, y: &mut Tensor, lengths: &mut Tensor);

    /// Backward of [`Pictures::unit_rows`].
    fn unit_rows_backward(&self, dy: &Tensor, y: &Tensor, lengths: &Tensor, dx: (&mut Tensor, Start));

    /// `y = factor·(a − b)`.
    fn differences(&self, a: &Tensor, b: &Tensor, factor: f32, y: &mut Tensor);
}

//! LayerNorm and GELU of models of images.

use wels_device::{Images, LayerNormOperands, Start, Tensor};
use wels_kernels::image_gradients::{self, LayerNorm};
use wels_kernels::images;

use crate::Cpu;
use crate::memory::{slice, slice_mut};

impl Images for Cpu {
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor) {
        images::layer_norm(slice(x), slice(w), slice(b), eps, slice_mut(y));
    }

    fn gelu(&self, x: &Tensor, y: &mut Tensor) {
        images::gelu(slice(x), slice_mut(y));
    }

    fn layer_norm_backward(&self, of: LayerNormOperands, gradients: [(&mut Tensor, Start); 3]) {
        let of = LayerNorm { dy: slice(of.dy), x: slice(of.x), w: slice(of.w), eps: of.eps };
        let [dx, dw, db] = gradients.map(|(gradient, start)| (slice_mut(gradient), start));
        image_gradients::layer_norm_backward(of, dx, dw, db);
    }

    fn gelu_backward(&self, dy: &Tensor, x: &Tensor, (dx, start): (&mut Tensor, Start)) {
        image_gradients::gelu_backward(slice(dy), slice(x), slice_mut(dx), start);
    }
}

//! What models of images need.

use wels_device::{Images, LayerNormOperands, Start, Tensor};
use wels_kernels::image_gradients::LayerNorm;
use wels_kernels::reference::{image_gradients, images};

use super::{Naive, values, values_mut};

impl Images for Naive {
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor) {
        images::layer_norm(values(x), values(w), values(b), eps, values_mut(y));
    }

    fn gelu(&self, x: &Tensor, y: &mut Tensor) {
        images::gelu(values(x), values_mut(y));
    }

    fn layer_norm_backward(&self, of: LayerNormOperands, gradients: [(&mut Tensor, Start); 3]) {
        let of = LayerNorm { dy: values(of.dy), x: values(of.x), w: values(of.w), eps: of.eps };
        let [dx, dw, db] = gradients.map(|(gradient, start)| (values_mut(gradient), start));
        image_gradients::layer_norm_backward(of, dx, dw, db);
    }

    fn gelu_backward(&self, dy: &Tensor, x: &Tensor, (dx, start): (&mut Tensor, Start)) {
        image_gradients::gelu_backward(values(dy), values(x), values_mut(dx), start);
    }
}

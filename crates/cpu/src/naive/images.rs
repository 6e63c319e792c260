//! What models of images need.

use wels_device::{Activation, Images, Tensor};
use wels_kernels::reference::images;

use super::{Naive, values, values_mut};

impl Images for Naive {
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor) {
        images::layer_norm(values(x), values(w), values(b), eps, values_mut(y));
    }

    fn group_norm(
        &self,
        x: &Tensor,
        groups: usize,
        w: &Tensor,
        b: &Tensor,
        eps: f32,
        activation: Activation,
        y: &mut Tensor,
    ) {
        images::group_norm(values(x), groups, values(w), values(b), eps, activation, values_mut(y));
    }

    fn gelu(&self, x: &Tensor, y: &mut Tensor) {
        images::gelu(values(x), values_mut(y));
    }

    fn softmax(&self, scale: f32, y: &mut Tensor) {
        let n = y.cols();
        images::softmax(values_mut(y), scale, n);
    }
}

//! What models of images need.

use wels_device::{Images, Tensor};
use wels_kernels::reference::images;

use super::{Naive, values, values_mut};

impl Images for Naive {
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor) {
        images::layer_norm(values(x), values(w), values(b), eps, values_mut(y));
    }

    fn gelu(&self, x: &Tensor, y: &mut Tensor) {
        images::gelu(values(x), values_mut(y));
    }
}

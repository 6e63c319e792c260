//! LayerNorm and GELU of models of images.

use wels_device::{Images, Tensor};
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
}

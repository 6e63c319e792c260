//! Norms, GELU and softmax of models of images.

use wels_device::{Activation, Images, Tensor};
use wels_kernels::images;

use crate::Cpu;
use crate::memory::{slice, slice_mut};

impl Images for Cpu {
    fn layer_norm(&self, x: &Tensor, w: &Tensor, b: &Tensor, eps: f32, y: &mut Tensor) {
        images::layer_norm(slice(x), slice(w), slice(b), eps, slice_mut(y));
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
        images::group_norm(slice(x), groups, slice(w), slice(b), eps, activation, slice_mut(y));
    }

    fn gelu(&self, x: &Tensor, y: &mut Tensor) {
        images::gelu(slice(x), slice_mut(y));
    }

    fn softmax(&self, scale: f32, y: &mut Tensor) {
        let n = y.cols();
        images::softmax(slice_mut(y), scale, n);
    }
}

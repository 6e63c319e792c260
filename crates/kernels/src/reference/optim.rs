//! AdamW and the norm of gradients, as plain loops.

use super::dot;
use crate::optim::{AdamW, SQUARES_CHUNK};

/// Reference of [`crate::optim::adamw`].
pub fn adamw(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], adamw: &AdamW, grad_scale: f32) {
    let c = adamw.coefficients(grad_scale);
    for i in 0..params.len() {
        let g = grads[i] * c.grad_scale;
        m[i] = c.one_minus_beta1.mul_add(g - m[i], m[i]);
        v[i] = c.one_minus_beta2.mul_add(g.mul_add(g, -v[i]), v[i]);
        let root = v[i].sqrt().mul_add(c.root_correction, c.eps);
        params[i] = c.minus_rate.mul_add(m[i] / root, params[i].mul_add(c.minus_decay, params[i]));
    }
}

/// Reference of [`crate::optim::blend`].
pub fn blend(alpha: f32, x: &[f32], beta: f32, y: &mut [f32]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = alpha.mul_add(*x, *y * beta));
}

/// Reference of [`crate::optim::sum_of_squares`].
pub fn sum_of_squares(x: &[f32]) -> f64 {
    x.chunks(SQUARES_CHUNK).map(|x| f64::from(dot(x, x))).sum()
}

/// Reference of [`crate::optim::first_non_finite`].
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    x.iter().position(|x| !x.is_finite())
}

//! SwiGLU, as plain loops.

use super::math;

/// Reference of [`crate::swiglu::forward`].
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] = math::silu(gate[i]) * up[i];
    }
}

/// Reference of [`crate::swiglu::backward`].
pub fn backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for i in 0..dy.len() {
        let s = math::sigmoid(gate[i]);
        dup[i] = dy[i] * (gate[i] * s);
        dgate[i] = dy[i] * up[i] * (s * gate[i].mul_add(1.0 - s, 1.0));
    }
}

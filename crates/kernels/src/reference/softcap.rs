//! Soft caps, as plain loops.

use super::math;

/// Capped x, and the slope there.
pub(super) fn capped(x: f32, cap: f32) -> (f32, f32) {
    let tanh = math::tanh(x / cap);
    (tanh * cap, (0.0 - tanh).mul_add(tanh, 1.0))
}

/// Reference of [`crate::softcap::forward`].
pub fn forward(cap: f32, x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = capped(*x, cap).0);
}

/// Reference of [`crate::softcap::forward_with_slopes`].
pub fn forward_with_slopes(cap: f32, x: &mut [f32], slopes: &mut [f32]) {
    x.iter_mut().zip(slopes).for_each(|(x, slope)| (*x, *slope) = capped(*x, cap));
}

/// Reference of [`crate::softcap::backward`].
pub fn backward(slopes: &[f32], d: &mut [f32]) {
    d.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= slope);
}

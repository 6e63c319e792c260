//! Weights to sample by, as plain loops.

use super::{dot, math};

/// Reference of [`crate::sample::weights`].
pub fn weights(logits: &[f32], inverse_temperature: f32, out: &mut [f32]) -> (f32, f32) {
    let max = logits.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
    for (out, l) in out.iter_mut().zip(logits) {
        *out = math::exp((l - max) * inverse_temperature);
    }
    (max, dot(out, &vec![1.0; out.len()]))
}

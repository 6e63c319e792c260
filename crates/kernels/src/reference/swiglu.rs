//! Gated linear units, as plain loops.

use super::math;
use crate::swiglu::{GELU, Gating};

fn least(x: f32, limit: f32) -> f32 {
    if x > limit { limit } else { x }
}

fn clamp(x: f32, limit: f32) -> f32 {
    if x < -limit { -limit } else { least(x, limit) }
}

/// Reference of [`crate::swiglu::forward`].
pub fn forward(gating: Gating, gate: &[f32], up: &[f32], y: &mut [f32]) {
    for i in 0..y.len() {
        y[i] = match gating {
            Gating::Silu => math::silu(gate[i]) * up[i],
            Gating::Clamped { alpha, limit } => {
                let (g, u) = (least(gate[i], limit), clamp(up[i], limit));
                g * math::sigmoid(g * alpha) * (u + 1.0)
            }
            Gating::Limited { limit } => math::silu(least(gate[i], limit)) * clamp(up[i], limit),
            Gating::GeluTanh => {
                let ratio = (gate[i] * gate[i]).mul_add(GELU[1], GELU[0]);
                gate[i] * math::sigmoid(gate[i] * ratio) * up[i]
            }
        };
    }
}

/// Reference of [`crate::swiglu::backward`].
pub fn backward(gating: Gating, dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    for i in 0..dy.len() {
        let g = gate[i];
        match gating {
            Gating::Silu => {
                let s = math::sigmoid(g);
                dup[i] = dy[i] * (g * s);
                dgate[i] = dy[i] * up[i] * (s * g.mul_add(1.0 - s, 1.0));
            }
            Gating::Clamped { alpha, limit } => {
                let (inner, u) = (least(g, limit), clamp(up[i], limit));
                let scaled = inner * alpha;
                let s = math::sigmoid(scaled);
                dup[i] = if up[i].abs() <= limit { dy[i] * (inner * s) } else { 0.0 };
                let slope = s * scaled.mul_add(1.0 - s, 1.0);
                dgate[i] = if g <= limit { dy[i] * (u + 1.0) * slope } else { 0.0 };
            }
            Gating::Limited { limit } => {
                let (inner, u) = (least(g, limit), clamp(up[i], limit));
                let s = math::sigmoid(inner);
                dup[i] = if up[i].abs() <= limit { dy[i] * (inner * s) } else { 0.0 };
                dgate[i] = if g <= limit { dy[i] * u * (s * inner.mul_add(1.0 - s, 1.0)) } else { 0.0 };
            }
            Gating::GeluTanh => {
                let s = math::sigmoid(g * (g * g).mul_add(GELU[1], GELU[0]));
                let steep = (g * g).mul_add(3.0 * GELU[1], GELU[0]);
                dup[i] = dy[i] * (g * s);
                dgate[i] = dy[i] * up[i] * (s * (g * steep).mul_add(1.0 - s, 1.0));
            }
        }
    }
}

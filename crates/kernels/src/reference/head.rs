//! Output head and cross-entropy, as plain loops.

use super::{dot, math, softcap};
use crate::gemm::{Precision, Start};
use crate::head::{Coefficient, Gradients, IGNORE};
use crate::reference::gemm;

/// Reference of [`crate::head::loss`].
pub fn loss(
    p: Precision,
    x: &[f32],
    w: &[f32],
    cap: Option<f32>,
    targets: &[u32],
    d: usize,
    v: usize,
    logp: &mut [f32],
    gradients: Option<(Gradients, Coefficient)>,
) {
    let tokens = targets.len();
    let mut logits = vec![0.0; tokens * v];
    gemm::linear(p, x, w, &mut logits, d, v);
    let slopes = capped(cap, &mut logits);
    for t in 0..tokens {
        let row = &mut logits[t * v..(t + 1) * v];
        let max = row.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
        let exps: Vec<f32> = row.iter().map(|l| math::exp(l - max)).collect();
        let sum = dot(&exps, &vec![1.0; v]);
        let target = targets[t];
        logp[t] = if target == IGNORE { 0.0 } else { row[target as usize] - max - math::log(sum) };
        let Some((_, coefficient)) = &gradients else { continue };
        let c = if target == IGNORE { 0.0 } else { coefficient(t, logp[t]) };
        let inverse = 1.0 / sum;
        for (j, l) in row.iter_mut().enumerate() {
            let hit = if j as u32 == target { 1.0 } else { 0.0 };
            *l = (exps[j] * inverse - hit) * c;
        }
    }
    if let Some((g, _)) = gradients {
        slopes.iter().for_each(|slopes| softcap::backward(slopes, &mut logits));
        gemm::linear_dx(p, &logits, w, g.dx, d, v, Start::Zero);
        if let Some((dw, start)) = g.dw {
            gemm::linear_dw(p, &logits, x, dw, d, v, start);
        }
    }
}

/// Caps logits; gives the slopes.
pub(super) fn capped(cap: Option<f32>, logits: &mut [f32]) -> Option<Vec<f32>> {
    let mut slopes = vec![0.0; logits.len()];
    softcap::forward_with_slopes(cap?, logits, &mut slopes);
    Some(slopes)
}

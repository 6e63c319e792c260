//! Output head and divergence from a teacher, as plain loops.

use super::{dot, head::capped, math, softcap};
use crate::distil::{Divergence, Teacher, TokenLosses};
use crate::gemm::{Precision, Start};
use crate::head::{Coefficient, Gradients, IGNORE};
use crate::reference::gemm;

/// Reference of [`crate::distil::loss`].
pub fn loss(
    p: Precision,
    x: &[f32],
    w: &[f32],
    cap: Option<f32>,
    targets: &[u32],
    teacher: &Teacher,
    d: usize,
    v: usize,
    losses: TokenLosses,
    gradients: Gradients,
    coefficient: Coefficient,
) {
    let tokens = targets.len();
    let (mut logits, mut taught) = (vec![0.0; tokens * v], vec![0.0; tokens * v]);
    gemm::linear(p, x, w, &mut logits, d, v);
    let slopes = capped(cap, &mut logits);
    (teacher.logits)(0..tokens, &mut taught);
    for t in 0..tokens {
        let (row, taught) = (&mut logits[t * v..(t + 1) * v], &taught[t * v..(t + 1) * v]);
        (losses.logp[t], losses.divergence[t]) = match targets[t] {
            IGNORE => {
                row.fill(0.0);
                (0.0, 0.0)
            }
            target => token(row, taught, target as usize, teacher, |logp| coefficient(t, logp)),
        };
    }
    slopes.iter().for_each(|slopes| softcap::backward(slopes, &mut logits));
    gemm::linear_dx(p, &logits, w, gradients.dx, d, v, Start::Zero);
    if let Some((dw, start)) = gradients.dw {
        gemm::linear_dw(p, &logits, x, dw, d, v, start);
    }
}

/// One token: its log-probability and divergence; `row` becomes its gradient.
fn token(
    row: &mut [f32],
    taught: &[f32],
    target: usize,
    teacher: &Teacher,
    coefficient: impl Fn(f32) -> f32,
) -> (f32, f32) {
    let (inverse, share) = (1.0 / teacher.temperature, teacher.cross_entropy);
    let (_, plain, plain_log_sum) = softmax(row, 1.0);
    let (s, student, student_log_sum) = softmax(row, inverse);
    let (t, taught, taught_log_sum) = softmax(taught, inverse);
    let between = student_log_sum - taught_log_sum;
    let ratio: Vec<f32> = s.iter().zip(&t).map(|(s, t)| (s - t) - between).collect();
    let mean = |weight: &[f32]| {
        let terms: Vec<f32> = weight.iter().zip(&ratio).map(|(weight, ratio)| weight * ratio).collect();
        dot(&terms, &vec![1.0; terms.len()])
    };
    let divergence = match teacher.divergence {
        Divergence::Forward => -mean(&taught),
        Divergence::Reverse => mean(&student),
    };
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
    let logp = row[target] - max - plain_log_sum;
    let c = coefficient(logp);
    let (kl, ce) = (c * ((1.0 - share) * teacher.temperature), c * share);
    for j in 0..row.len() {
        let pull = match teacher.divergence {
            Divergence::Forward => student[j] - taught[j],
            Divergence::Reverse => student[j] * (ratio[j] - divergence),
        };
        row[j] = pull * kl;
        if share > 0.0 {
            row[j] += plain[j] * ce;
        }
    }
    if share > 0.0 {
        row[target] -= ce;
    }
    (logp, divergence)
}

/// (l − max)/τ, exp of it divided by the sum, and the logarithm of the sum.
fn softmax(row: &[f32], inverse: f32) -> (Vec<f32>, Vec<f32>, f32) {
    let max = row.iter().fold(f32::NEG_INFINITY, |m, &l| if l > m { l } else { m });
    let scaled: Vec<f32> = row.iter().map(|l| (l - max) * inverse).collect();
    let exps: Vec<f32> = scaled.iter().map(|l| math::exp(*l)).collect();
    let sum = dot(&exps, &vec![1.0; exps.len()]);
    let inverse_sum = 1.0 / sum;
    (scaled, exps.iter().map(|e| e * inverse_sum).collect(), math::log(sum))
}

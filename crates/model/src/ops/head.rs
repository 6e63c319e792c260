//! The output head: logits, or directly log-probabilities of targets with their gradients.
//!
//! `logp[t] = log softmax(x[t] · wᵀ)[targets[t]]`. x `[T, D]`, w `[V, D]`. The loss is the end of every pass, so its
//! gradients are computed along with it, block by block; the `[T, V]` logits never exist. Saved: nothing but `dx`.
//! The logits of `logits` are the same chains, so a sampler's log-probabilities are the trainer's.
//!
//! Its products are bf16 where the others are bf16, and f32 otherwise: the head is among what DeepSeek-V3 keeps in
//! BF16 or FP32 (report, §3.3.1).

use super::product::{product, single};
use crate::params::{Stored, Weight};
use crate::tape::{Graph, Var};
use crate::tensor::Tensor;
use std::ops::Range;
use wels_kernels::distil::{self, Divergence, Seen};
use wels_kernels::gemm::{self, Precision};
use wels_kernels::head::{self, Gradients};
use wels_kernels::quant::{self, QuantMatrix};

pub use wels_kernels::head::Coefficient;

/// The log-probability of each target (0 for `head::IGNORE`). While recording, seeds the backward pass with the
/// gradients of the loss that `coefficient` stands for.
pub fn head_loss(g: &mut Graph, x: &Var, w: Weight, targets: &[u32], coefficient: Coefficient) -> Vec<f32> {
    let (d, v) = (w.cols, w.rows);
    assert_eq!(x.cols(), d, "head_loss: x is [{}, {}], w is [{v}, {d}]", x.rows(), x.cols());
    let mut logp = vec![0.0; targets.len()];
    let (precision, weight) = match g.stored(w) {
        Stored::F32(weight) => (precision(g), weight),
        Stored::Packed(w) => {
            packed_loss(g, x, single(w), targets, &mut logp);
            g.inspect("log-probabilities", &logp);
            return logp;
        }
    };
    match g.recording() {
        None => head::loss(precision, x, weight, targets, d, v, &mut logp, None),
        Some(back) => {
            let mut dx = back.tensor(x.rows(), d);
            back.parameter(w, |dw, dw_start| {
                let gradients = Gradients { dx: &mut dx, dw, dw_start };
                head::loss(precision, x, weight, targets, d, v, &mut logp, Some((gradients, coefficient)));
            });
            back.give(x.gradient(), dx);
        }
    }
    g.inspect("log-probabilities", &logp);
    logp
}

/// What a teacher makes of the same tokens.
pub struct Taught<'a> {
    /// `[T, D of the teacher]`: what its head reads.
    pub states: &'a Tensor,
    /// Its head `[V, D of the teacher]`.
    pub head: Stored<'a>,
    /// Which way the divergence is taken.
    pub divergence: Divergence,
    /// Of both softmaxes.
    pub temperature: f32,
    /// The share of the cross-entropy in the loss.
    pub cross_entropy: f32,
}

/// [`head_loss`] with the divergence from a teacher: the log-probability of each target, and each token's divergence.
/// The loss is that of `wels_kernels::distil`.
///
/// # Panics
/// If nothing is recorded.
pub fn distil_loss(
    g: &mut Graph,
    x: &Var,
    w: Weight,
    targets: &[u32],
    teacher: &Taught,
    coefficient: Coefficient,
) -> (Vec<f32>, Vec<f32>) {
    let (d, v, precision) = (w.cols, w.rows, precision(g));
    assert_eq!(x.cols(), d, "distil_loss: x is [{}, {}], w is [{v}, {d}]", x.rows(), x.cols());
    let weight = g.weight(w);
    let (states, width) = (teacher.states, teacher.states.cols());
    let logits = |rows: Range<usize>, logits: &mut [f32]| {
        let x = &states[rows.start * width..rows.end * width];
        match teacher.head {
            Stored::F32(head) => gemm::linear(precision, x, head, logits, width, v),
            Stored::Packed(head) => quant::linear(&quant::quantise_rows(x, width), single(head), logits),
        }
    };
    let Taught { divergence, temperature, cross_entropy, .. } = *teacher;
    let rule = distil::Teacher { logits: &logits, divergence, temperature, cross_entropy };
    let (mut logp, mut diverged) = (vec![0.0; targets.len()], vec![0.0; targets.len()]);
    let back = g.recording().expect("a pass that records");
    let mut dx = back.tensor(x.rows(), d);
    back.parameter(w, |dw, dw_start| {
        let seen = Seen { logp: &mut logp, divergence: &mut diverged };
        let gradients = Gradients { dx: &mut dx, dw, dw_start };
        distil::loss(precision, x, weight, targets, &rule, d, v, seen, gradients, coefficient);
    });
    back.give(x.gradient(), dx);
    (logp, diverged)
}

/// The log-probability of each target, from logits of a block of tokens at a time.
fn packed_loss(g: &Graph, x: &Var, w: &QuantMatrix, targets: &[u32], logp: &mut [f32]) {
    let (d, v) = (x.cols(), w.rows());
    let mut logits = g.tensor(BLOCK.min(targets.len()), v);
    let blocks = x.chunks(BLOCK * d).zip(targets.chunks(BLOCK)).zip(logp.chunks_mut(BLOCK));
    for ((x, targets), logp) in blocks {
        let logits = &mut logits[..targets.len() * v];
        quant::linear(&quant::quantise_rows(x, d), w, logits);
        head::log_probabilities(logits, targets, v, logp);
    }
}

/// Tokens whose logits are held at a time.
const BLOCK: usize = 64;

/// `[T, V] = x[T, D] · w[V, D]ᵀ`.
pub fn logits(g: &mut Graph, x: &Var, w: Weight) -> Tensor {
    let mut y = g.tensor(x.rows(), w.rows);
    product(precision(g), x, g.stored(w), &mut y);
    y
}

fn precision(g: &Graph) -> Precision {
    match g.precision() {
        Precision::Bf16 => Precision::Bf16,
        Precision::F32 | Precision::F16 => Precision::F32,
    }
}

//! The output head: logits, or directly log-probabilities of targets with their gradients.
//!
//! `logp[t] = log softmax(x[t] · wᵀ)[targets[t]]`. x `[T, D]`, w `[V, D]`. The loss is the end of every pass, so its
//! gradients are computed along with it, block by block; the `[T, V]` logits never exist. Saved: nothing but `dx`.
//! The logits of `logits` are the same chains, so a sampler's log-probabilities are the trainer's.
//!
//! Its products are bf16 where the others are bf16, and f32 otherwise: the head is among what DeepSeek-V3 keeps in
//! BF16 or FP32 (report, §3.3.1).

use crate::params::Weight;
use crate::tape::{Graph, Var};
use crate::tensor::Tensor;
use wels_kernels::gemm::{self, Precision};
use wels_kernels::head::{self, Gradients};

pub use wels_kernels::head::Coefficient;

/// The log-probability of each target (0 for `head::IGNORE`). While recording, seeds the backward pass with the
/// gradients of the loss that `coefficient` stands for.
pub fn head_loss(g: &mut Graph, x: &Var, w: Weight, targets: &[u32], coefficient: Coefficient) -> Vec<f32> {
    let (d, v) = (w.cols, w.rows);
    assert_eq!(x.cols(), d, "head_loss: x is [{}, {}], w is [{v}, {d}]", x.rows(), x.cols());
    let (weight, precision) = (g.weight(w), precision(g));
    let mut logp = vec![0.0; targets.len()];
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

/// `[T, V] = x[T, D] · w[V, D]ᵀ`.
pub fn logits(g: &mut Graph, x: &Var, w: Weight) -> Tensor {
    let mut y = g.tensor(x.rows(), w.rows);
    gemm::linear(precision(g), x, g.weight(w), &mut y, w.cols, w.rows);
    y
}

fn precision(g: &Graph) -> Precision {
    match g.precision() {
        Precision::Bf16 => Precision::Bf16,
        Precision::F32 | Precision::F16 => Precision::F32,
    }
}

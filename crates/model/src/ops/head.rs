//! The output head: logits, or directly log-probabilities of targets with their gradients.
//!
//! `logp[t] = log softmax(x[t] · wᵀ)[targets[t]]`, in some families of capped logits. x `[T, D]`, w `[V, D]`. The
//! loss is the end of every pass, so its gradients are computed along with it, block by block; the `[T, V]` logits
//! never exist. Saved: nothing but `dx`. The logits of `logits` are the same chains, so a sampler's log-probabilities
//! are the trainer's.
//!
//! Its products are bf16 where the others are bf16, and f32 otherwise: the head is among what DeepSeek-V3 keeps in
//! BF16 or FP32 (report, §3.3.1).

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Coefficient, HeadGradients, Ids, Precision, TeacherHead, Tensor};

/// The matrix `[V, D]` of a head, and what its logits are softly capped at.
#[derive(Clone, Copy)]
pub struct Head {
    pub weight: Weight,
    pub cap: Option<f32>,
}

/// `logp[T, 1]`: the log-probability of each target (0 for [`IGNORE`](wels_device::IGNORE)). While recording, seeds the
/// backward pass with the gradients of the loss that `coefficient` stands for.
pub fn head_loss(g: &mut Graph, x: &Var, head: Head, targets: &[u32], coefficient: Coefficient) -> Tensor {
    let starts = g.context.sequences.starts.clone();
    head_loss_of_rows(g, x, head, targets, coefficient, &starts)
}

/// [`head_loss`] of rows that need not be those of the batch: sequence i has `starts[i]..starts[i + 1]` of them.
pub fn head_loss_of_rows(
    g: &mut Graph,
    x: &Var,
    head: Head,
    targets: &[u32],
    coefficient: Coefficient,
    starts: &Ids,
) -> Tensor {
    let Head { weight: w, cap } = head;
    let (d, v) = (w.cols, w.rows);
    assert_eq!(x.cols(), d, "head_loss: x is [{}, {}], w is [{v}, {d}]", x.rows(), x.cols());
    let mut logp = g.tensor(targets.len(), 1);
    let (precision, weight, device) = (precision(g), g.stored(w), g.device());
    match g.recording() {
        None => device.head_loss(precision, x, weight, cap, targets, &mut logp, None),
        Some(back) => {
            let mut dx = back.like(x.gradient());
            back.parameter_if_any(w, |dw| {
                let gradients = HeadGradients { dx: &mut dx, dw, sequences: starts, coefficient };
                device.head_loss(precision, x, weight, cap, targets, &mut logp, Some(gradients));
            });
            back.give(x.gradient(), dx);
        }
    }
    g.inspect("log-probabilities", &logp);
    logp
}

/// [`head_loss`] with the divergence from a teacher: `[T, 1]` each, the log-probability of each target, and each
/// token's divergence. The loss is that of `wels_kernels::distil`.
///
/// # Panics
/// If nothing is recorded.
pub fn distil_loss(
    g: &mut Graph,
    x: &Var,
    head: Head,
    targets: &[u32],
    teacher: &TeacherHead,
    coefficient: Coefficient,
) -> [Tensor; 2] {
    let Head { weight: w, cap } = head;
    let (d, v, precision, device) = (w.cols, w.rows, precision(g), g.device());
    assert_eq!(x.cols(), d, "distil_loss: x is [{}, {}], w is [{v}, {d}]", x.rows(), x.cols());
    let (mut logp, mut diverged) = (g.tensor(targets.len(), 1), g.tensor(targets.len(), 1));
    let back = g.recording().expect("a pass that records");
    let (mut dx, sequences, weight) = (back.like(x.gradient()), back.sequences(), back.unpacked(w));
    back.parameter_if_any(w, |dw| {
        let gradients = HeadGradients { dx: &mut dx, dw, sequences: &sequences.starts, coefficient };
        device.distil_loss(precision, x, &weight, cap, targets, teacher, [&mut logp, &mut diverged], gradients);
    });
    back.give(x.gradient(), dx);
    [logp, diverged]
}

/// `[T, V] = x[T, D] · w[V, D]ᵀ`, capped if the head is.
pub fn logits(g: &mut Graph, x: &Var, head: Head) -> Tensor {
    let Head { weight: w, cap } = head;
    let mut y = g.tensor(x.rows(), w.rows);
    g.device().linear(precision(g), x, &mut [(g.stored(w), &mut y)]);
    if let Some(cap) = cap {
        g.device().soft_cap(&mut y, cap);
    }
    y
}

fn precision(g: &Graph) -> Precision {
    match g.precision() {
        Precision::Bf16 => Precision::Bf16,
        Precision::F32 | Precision::F16 => Precision::F32,
    }
}

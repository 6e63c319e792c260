//! The output head with its loss.

use std::ops::Range;

use wels_device::{Coefficient, Head, HeadGradients, Packed, Precision, TeacherHead, Tensor, WeightRef};
use wels_kernels::distil::{self, TokenLosses};
use wels_kernels::gemm;
use wels_kernels::head::{self, Gradients};
use wels_kernels::memory::Buffer;
use wels_kernels::quant;
use wels_kernels::softcap;

use crate::Cpu;
use crate::memory::{slice, slice_mut};
use crate::weights::{part, single};

impl Head for Cpu {
    fn head_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: WeightRef,
        cap: Option<f32>,
        targets: &[u32],
        logp: &mut Tensor,
        gradients: Option<HeadGradients>,
    ) {
        let (d, logp) = (x.cols(), slice_mut(logp));
        let (w, v) = match w {
            WeightRef::Plain(w) => (head::Matrix::Plain(slice(w)), w.rows()),
            WeightRef::Packed(w) if w.takes_whole_rows() => (head::Matrix::Packed(single(w)), w.rows()),
            WeightRef::Packed(w) => {
                assert!(gradients.is_none(), "gradients of packed weights");
                return self.packed_loss(slice(x), w, cap, targets, logp);
            }
        };
        match gradients {
            None => head::loss_of(precision, slice(x), w, cap, targets, d, v, logp, None),
            Some(HeadGradients { dx, dw, coefficient, .. }) => {
                let gradients = Gradients { dx: slice_mut(dx), dw: dw.map(|(dw, start)| (slice_mut(dw), start)) };
                let coefficient = |row: usize, logp: f32| coefficient.at(row, logp);
                head::loss_of(precision, slice(x), w, cap, targets, d, v, logp, Some((gradients, &coefficient)));
            }
        }
    }

    fn distil_loss(
        &self,
        precision: Precision,
        x: &Tensor,
        w: &Tensor,
        cap: Option<f32>,
        targets: &[u32],
        teacher: &TeacherHead,
        [logp, divergence]: [&mut Tensor; 2],
        gradients: HeadGradients,
    ) {
        let (d, v) = (x.cols(), w.rows());
        let (states, width) = (slice(teacher.states), teacher.states.cols());
        let logits = |rows: Range<usize>, logits: &mut [f32]| {
            let x = &states[rows.start * width..rows.end * width];
            match teacher.head {
                WeightRef::Plain(head) => gemm::linear(precision, x, slice(head), logits, width, v),
                WeightRef::Packed(head) if head.takes_whole_rows() => {
                    quant::linear(&quant::whole_rows(x, width), single(head), logits);
                }
                WeightRef::Packed(head) => quant::linear(&quant::quantise_rows(x, width), single(head), logits),
            }
            teacher.cap.into_iter().for_each(|cap| softcap::forward(cap, logits));
        };
        let TeacherHead { divergence: way, temperature, cross_entropy, .. } = *teacher;
        let rule = distil::Teacher { logits: &logits, divergence: way, temperature, cross_entropy };
        let losses = TokenLosses { logp: slice_mut(logp), divergence: slice_mut(divergence) };
        let HeadGradients { dx, dw, coefficient, .. } = gradients;
        let gradients = Gradients { dx: slice_mut(dx), dw: dw.map(|(dw, start)| (slice_mut(dw), start)) };
        let coefficient = |row: usize, logp: f32| Coefficient::at(&coefficient, row, logp);
        distil::loss(precision, slice(x), slice(w), cap, targets, &rule, d, v, losses, gradients, &coefficient);
    }
}

/// Tokens whose logits are held at a time.
const BLOCK: usize = 64;

impl Cpu {
    /// The log-probability of each target, from logits of a block of tokens at a time.
    fn packed_loss(&self, x: &[f32], w: &Packed, cap: Option<f32>, targets: &[u32], logp: &mut [f32]) {
        let (d, v) = (w.cols(), w.rows());
        let mut logits = Buffer::zeros(BLOCK.min(targets.len()) * v);
        let blocks = x.chunks(BLOCK * d).zip(targets.chunks(BLOCK)).zip(logp.chunks_mut(BLOCK));
        for ((x, targets), logp) in blocks {
            let logits = &mut logits[..targets.len() * v];
            match (&self.ranks, part(w)) {
                (Some(ranks), Some(part)) => ranks.linear(x, d, &mut [(part, &mut *logits)], || {}),
                _ => quant::linear(&quant::quantise_rows(x, d), single(w), logits),
            }
            cap.into_iter().for_each(|cap| softcap::forward(cap, logits));
            head::log_probabilities(logits, targets, v, logp);
        }
    }
}

//! AdamW (I. Loshchilov and F. Hutter, 2017; the formula of PyTorch's `torch.optim.AdamW`), sums of two with factors,
//! of which other rules are made, and what is asked of gradients before: their norm, and whether they are finite.

use crate::lanes::{LANES, Lanes, dispatch};
use crate::par::{self, SharedMut, TASK};
use crate::span::spans;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What a step needs to know. `step` counts from 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the mean of squares.
    pub eps: f64,
    /// Decoupled weight decay, multiplied by the learning rate.
    pub weight_decay: f64,
    /// This step's number, from 1.
    pub step: u64,
}

/// The numbers of a step as the lanes take them, computed in f64 and rounded once.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients {
    /// Factor of the gradients.
    pub grad_scale: f32,
    /// 1 − β1
    pub one_minus_beta1: f32,
    /// 1 − β2
    pub one_minus_beta2: f32,
    /// 1/√(1 − β2^step)
    pub root_correction: f32,
    /// As in the rule.
    pub eps: f32,
    /// −lr/(1 − β1^step)
    pub minus_rate: f32,
    /// −lr·weight_decay
    pub minus_decay: f32,
}

impl AdamW {
    /// The numbers of this step, for gradients times `grad_scale`.
    pub fn coefficients(&self, grad_scale: f32) -> Coefficients {
        assert!(self.step > 0, "steps count from 1");
        let correction1 = 1.0 - libm::pow(self.beta1, self.step as f64);
        let correction2 = 1.0 - libm::pow(self.beta2, self.step as f64);
        Coefficients {
            grad_scale,
            one_minus_beta1: (1.0 - self.beta1) as f32,
            one_minus_beta2: (1.0 - self.beta2) as f32,
            root_correction: (1.0 / correction2.sqrt()) as f32,
            eps: self.eps as f32,
            minus_rate: (-self.lr / correction1) as f32,
            minus_decay: (-self.lr * self.weight_decay) as f32,
        }
    }
}

/// One step, in one pass over parameters, gradients and the two means. With g = grad·grad_scale (clipping):
/// m += (1 − β1)·(g − m), v += (1 − β2)·(g² − v), p −= p·lr·weight_decay, then
/// p −= lr/(1 − β1^step) · m/(√v/√(1 − β2^step) + eps).
///
/// Written with differences from 1 throughout: factors like 1 − lr·weight_decay lose most of lr·weight_decay in f32 (at
/// 1e-5 the decay would be wrong by up to 0.3%).
pub fn adamw(params: &mut [f32], grads: &[f32], m: &mut [f32], v: &mut [f32], adamw: &AdamW, grad_scale: f32) {
    let len = params.len();
    assert_eq!(grads.len(), len, "gradients of {len} parameters");
    assert_eq!((m.len(), v.len()), (len, len), "means of {len} parameters");
    let c = adamw.coefficients(grad_scale);
    let (m, v) = (SharedMut::new(m), SharedMut::new(v));
    par::chunks_mut(params, TASK, |task, p| {
        let at = task * TASK;
        let g = &grads[at..at + p.len()];
        // SAFETY: each piece is one task's.
        let (m, v) = unsafe { (m.slice(at, p.len()), v.slice(at, p.len())) };
        // SAFETY: the pieces of g, m and v were cut to the length of p.
        unsafe { dispatch!(adamw_piece(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients)) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn adamw_piece<L: Lanes>(p: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], c: Coefficients) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(p.len(), |s| {
            let g = s.load::<L>(g).mul(L::splat(c.grad_scale));
            let old_m = s.load::<L>(m);
            let new_m = L::splat(c.one_minus_beta1).fma(g.sub(old_m), old_m);
            let old_v = s.load::<L>(v);
            let new_v = L::splat(c.one_minus_beta2).fma(g.fma(g, L::splat(0.0).sub(old_v)), old_v);
            let root = new_v.sqrt().fma(L::splat(c.root_correction), L::splat(c.eps));
            let old_p = s.load::<L>(p);
            let new_p = L::splat(c.minus_rate).fma(new_m.div(root), old_p.fma(L::splat(c.minus_decay), old_p));
            s.store(new_m, m);
            s.store(new_v, v);
            s.store(new_p, p);
        });
    }
}

/// y = α·x + β·y: β·y rounded, then a fused multiply-add.
pub fn blend(alpha: f32, x: &[f32], beta: f32, y: &mut [f32]) {
    assert_eq!(x.len(), y.len(), "x and y have one length");
    par::chunks_mut(y, TASK, |task, y| {
        let x = &x[task * TASK..][..y.len()];
        // SAFETY: the piece of x was cut to the length of y.
        unsafe { dispatch!(blend_piece(alpha: f32, x: &[f32], beta: f32, y: &mut [f32])) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn blend_piece<L: Lanes>(alpha: f32, x: &[f32], beta: f32, y: &mut [f32]) {
    // SAFETY: spans of one length lie in both slices; instructions by this function's contract.
    unsafe {
        spans!(x.len(), |s| {
            s.store(L::splat(alpha).fma(s.load::<L>(x), s.load::<L>(y).mul(L::splat(beta))), y);
        });
    }
}

/// Elements of one f32 sum in [`sum_of_squares`].
pub const SQUARES_CHUNK: usize = 4096;

/// Σ x²: each chunk of 4096 elements in f32 (16 partial sums of fused multiply-adds and the fixed tree), the chunks'
/// sums added in f64 in order.
pub fn sum_of_squares(x: &[f32]) -> f64 {
    squares_of_chunks(x).iter().map(|&sum| f64::from(sum)).sum()
}

/// The f32 sums of [`sum_of_squares`], one for each chunk.
pub fn squares_of_chunks(x: &[f32]) -> Vec<f32> {
    let mut sums = vec![0.0f32; x.len().div_ceil(SQUARES_CHUNK)];
    par::chunks_mut(&mut sums, TASK / SQUARES_CHUNK, |task, sums| {
        for (sum, x) in sums.iter_mut().zip(x[task * TASK..].chunks(SQUARES_CHUNK)) {
            // SAFETY: spans are of x alone, which is all that is read.
            *sum = unsafe { dispatch!(squares(x: &[f32]) -> f32) };
        }
    });
    sums
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn squares<L: Lanes>(x: &[f32]) -> f32 {
    // SAFETY: spans lie in x; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(x.len(), |s| {
            let x = s.load::<L>(x);
            sum = x.fma(x, sum);
        });
        sum.sum()
    }
}

/// The place of the first element that is infinite or NaN.
pub fn first_non_finite(x: &[f32]) -> Option<usize> {
    let first = AtomicUsize::new(usize::MAX);
    par::run(x.len().div_ceil(TASK), |task| {
        let at = task * TASK;
        let piece = &x[at..(at + TASK).min(x.len())];
        // Without an early exit, so that the compiler can take many elements at once; the search itself is for the rare
        // case.
        if piece.chunks(LANES).any(|x| x.iter().fold(false, |found, x| found | !x.is_finite())) {
            let place = piece.iter().position(|x| !x.is_finite()).expect("the fold has found one");
            first.fetch_min(at + place, Ordering::Relaxed);
        }
    });
    Some(first.into_inner()).filter(|&place| place != usize::MAX)
}

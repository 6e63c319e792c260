//! The output head fused with cross-entropy: logits of a block of tokens at a time, never of all of them.
//!
//! **Order of sums.** Logits are chains over the width; log p = l_target − max − log Σ exp(l − max), the sum by 16
//! partial sums over the vocabulary and the fixed tree. `dx` is a chain over the vocabulary, `dw` one chain over the
//! tokens. Capped logits are `softcap`'s of these, and the gradients of the chains those of the capped ones times the
//! slopes.

use crate::gemm::{self, Precision, Start};
use crate::lanes::Lanes;
use crate::math;
use crate::par::{self, SharedMut};
use crate::quant::{self, QuantMatrix};
use crate::scratch;
use crate::softcap;

/// A target that counts for nothing: log-probability 0, gradient 0.
pub const IGNORE: u32 = u32::MAX;

/// Where the gradients go.
pub struct Gradients<'a> {
    /// `[T, D]`, overwritten.
    pub dx: &'a mut [f32],
    /// `[V, D]`, and whether it goes on from what it holds; `None` where the weights are not learnt.
    pub dw: Option<(&'a mut [f32], Start)>,
}

/// −∂loss/∂logp of a token, given its row and its log-probability: 1/N for the mean cross-entropy over N tokens.
pub type Coefficient<'a> = &'a (dyn Fn(usize, f32) -> f32 + Sync);

/// The weights `[V, D]` of a head.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    Plain(&'a [f32]),
    /// Which products in f32 take for the numbers that it stands for.
    Packed(&'a QuantMatrix),
}

impl Matrix<'_> {
    fn len(self) -> usize {
        match self {
            Matrix::Plain(w) => w.len(),
            Matrix::Packed(w) => w.rows() * w.columns(),
        }
    }

    fn forward(self, p: Precision, x: &[f32], logits: &mut [f32], d: usize, v: usize) {
        match self {
            Matrix::Plain(w) => gemm::linear(p, x, w, logits, d, v),
            Matrix::Packed(w) => quant::linear(&quant::whole_rows(x, d), w, logits),
        }
    }

    fn backward(self, p: Precision, dlogits: &[f32], dx: &mut [f32], d: usize, v: usize) {
        match self {
            Matrix::Plain(w) => gemm::linear_dx(p, dlogits, w, dx, d, v, Start::Zero),
            Matrix::Packed(w) => quant::linear_dx(dlogits, w, dx, Start::Zero),
        }
    }
}

/// `logp[t]` = log p(`targets[t]`) under softmax(`x[T,D] · w[V,D]ᵀ`), or with a cap of the logits.
///
/// With gradients, the second part gives for a token and its log-probability −∂loss/∂logp, so that
/// ∂loss/∂logits = coefficient · (p − onehot): 1/N for a mean cross-entropy, an advantage for policy gradients.
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
    loss_of(p, x, Matrix::Plain(w), cap, targets, d, v, logp, gradients);
}

/// [`loss`] of weights however they are stored; packed ones have no gradient of their own.
pub fn loss_of(
    p: Precision,
    x: &[f32],
    w: Matrix,
    cap: Option<f32>,
    targets: &[u32],
    d: usize,
    v: usize,
    logp: &mut [f32],
    gradients: Option<(Gradients, Coefficient)>,
) {
    let tokens = targets.len();
    for (name, len, expected) in [("x", x.len(), tokens * d), ("w", w.len(), v * d), ("logp", logp.len(), tokens)] {
        assert!(len == expected, "{name} has {len} elements instead of {expected}");
    }
    let out_of_range = targets.iter().find(|&&t| t != IGNORE && t as usize >= v);
    assert!(out_of_range.is_none(), "target {out_of_range:?} of a vocabulary of {v}");
    let (mut gradients, coefficient) = gradients.map_or((None, None), |(g, c)| (Some(g), Some(c)));
    let block = block_tokens(v).min(tokens);
    let mut logits = scratch::buffer(block * v);
    let mut caps = Caps::new(cap, if gradients.is_some() { block * v } else { 0 });
    for first in (0..tokens).step_by(block.max(1)) {
        let block = first..(first + block).min(tokens);
        let x = &x[block.start * d..block.end * d];
        let logits = &mut logits[..block.len() * v];
        w.forward(p, x, logits, d, v);
        caps.forward(logits);
        softmax_rows(logits, &targets[block.clone()], v, &mut logp[block.clone()], |t, logp| {
            coefficient.map(|coefficient| coefficient(first + t, logp))
        });
        if let Some(g) = &mut gradients {
            caps.backward(logits);
            w.backward(p, logits, &mut g.dx[block.start * d..block.end * d], d, v);
            g.weights(p, logits, x, d, v);
        }
    }
    if let (0, Some(mut g)) = (tokens, gradients) {
        g.weights(p, &[], &[], d, v);
    }
}

impl Gradients<'_> {
    /// Adds a block's part of `dw`: the gradients of its logits, and its rows of x.
    pub(crate) fn weights(&mut self, p: Precision, logits: &[f32], x: &[f32], d: usize, v: usize) {
        if let Some((dw, start)) = &mut self.dw {
            gemm::linear_dw(p, logits, x, dw, d, v, *start);
            *start = Start::Continue;
        }
    }
}

/// The cap of the logits, if there is one, and its slopes where they are wanted.
pub(crate) struct Caps {
    cap: Option<f32>,
    slopes: scratch::Buffer,
}

impl Caps {
    /// With room for `slopes` slopes.
    pub fn new(cap: Option<f32>, slopes: usize) -> Self {
        Caps { cap, slopes: scratch::buffer(if cap.is_some() { slopes } else { 0 }) }
    }

    pub fn forward(&mut self, logits: &mut [f32]) {
        match self.cap {
            None => {}
            Some(cap) if self.slopes.is_empty() => softcap::forward(cap, logits),
            Some(cap) => softcap::forward_with_slopes(cap, logits, &mut self.slopes[..logits.len()]),
        }
    }

    pub fn backward(&self, gradients: &mut [f32]) {
        if self.cap.is_some() {
            softcap::backward(&self.slopes[..gradients.len()], gradients);
        }
    }
}

/// `logp[t]` = log p(`targets[t]`) under softmax(`logits[T,V]`), as [`loss`] has it from the same logits, which are
/// overwritten.
pub fn log_probabilities(logits: &mut [f32], targets: &[u32], v: usize, logp: &mut [f32]) {
    assert!(logits.len() == targets.len() * v, "logits has {} elements, {} targets", logits.len(), targets.len());
    assert!(logp.len() == targets.len(), "logp has {} elements, {} targets", logp.len(), targets.len());
    let out_of_range = targets.iter().find(|&&t| t != IGNORE && t as usize >= v);
    assert!(out_of_range.is_none(), "target {out_of_range:?} of a vocabulary of {v}");
    softmax_rows(logits, targets, v, logp, |_, _| None);
}

/// Tokens whose logits are held at a time: 8 MiB of them, which stay in the last cache, but enough rows to be worth
/// packing the weights for. Even, so that pairs of bf16 terms stay together.
pub(crate) fn block_tokens(v: usize) -> usize {
    (2 * 1024 * 1024 / v).clamp(64, 1024) / 2 * 2
}

/// Log-probabilities of the targets; where there is a coefficient, the logits become their gradients.
fn softmax_rows(
    logits: &mut [f32],
    targets: &[u32],
    v: usize,
    logp: &mut [f32],
    coefficient: impl Fn(usize, f32) -> Option<f32> + Sync,
) {
    let logp = SharedMut::new(logp);
    const ROWS: usize = 8;
    par::chunks_mut(logits, ROWS * v, |chunk, rows| {
        for (r, row) in rows.chunks_exact_mut(v).enumerate() {
            let t = chunk * ROWS + r;
            let target = targets[t];
            let counts = target != IGNORE;
            let before = if counts { row[target as usize] } else { 0.0 };
            // SAFETY: whole vectors of the row, then what is left of it.
            let (max, sum) = unsafe { crate::lanes::dispatch!(exponentials(row: &mut [f32]) -> (f32, f32)) };
            let result = if counts { before - max - math::scalar::log(sum) } else { 0.0 };
            // SAFETY: one element for each row.
            unsafe { logp.slice(t, 1)[0] = result };
            let Some(c) = coefficient(t, result) else { continue };
            let c = if counts { c } else { 0.0 };
            let inverse = 1.0 / sum;
            let hit = counts.then(|| (row[target as usize] * inverse - 1.0) * c);
            // SAFETY: whole vectors of the row, then what is left of it.
            unsafe { crate::lanes::dispatch!(scale(row: &mut [f32], inverse: f32, c: f32)) };
            if let Some(hit) = hit {
                row[target as usize] = hit;
            }
        }
    });
}

/// Replaces a row by exp(l − max); the maximum, and the sum by 16 partial sums and the fixed tree.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn exponentials<L: Lanes>(row: &mut [f32]) -> (f32, f32) {
    let whole = row.len() / 16 * 16;
    let rest = row.len() - whole;
    // SAFETY: whole vectors lie in the row, and what is left of it is read and written as such; instructions by this
    // function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for l in row.as_chunks::<16>().0 {
            max = L::load(l.as_ptr()).max(max);
        }
        let max = row[whole..].iter().fold(max.max_lane(), |m, &l| if l > m { l } else { m });
        let mut sum = L::splat(0.0);
        for l in row.as_chunks_mut::<16>().0 {
            let e = math::exp(L::load(l.as_ptr()).sub(L::splat(max)));
            sum = sum.add(e);
            e.store(l.as_mut_ptr());
        }
        if rest > 0 {
            let last = row[whole..].as_mut_ptr();
            math::exp(L::load_first(last, rest).sub(L::splat(max))).store_first(last, rest);
            sum = sum.add(L::load_first(last, rest));
        }
        (max, sum.sum())
    }
}

/// `row = (row · inverse) · c`.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn scale<L: Lanes>(row: &mut [f32], inverse: f32, c: f32) {
    let whole = row.len() / 16 * 16;
    let rest = row.len() - whole;
    // SAFETY: whole vectors lie in the row, and what is left of it is read and written as such; instructions by this
    // function's contract.
    unsafe {
        let (inverse, c) = (L::splat(inverse), L::splat(c));
        for l in row.as_chunks_mut::<16>().0 {
            L::load(l.as_ptr()).mul(inverse).mul(c).store(l.as_mut_ptr());
        }
        if rest > 0 {
            let last = row[whole..].as_mut_ptr();
            L::load_first(last, rest).mul(inverse).mul(c).store_first(last, rest);
        }
    }
}

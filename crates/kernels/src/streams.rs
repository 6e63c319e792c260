//! Manifold-constrained hyper-connections (DeepSeek-V4 report, §2.2; Xie et al., 2026): n residual streams in place of
//! one, `x[T, n·D]`, what a layer reads of them, and how they and what it gives become the next ones.
//!
//! A linear map of the normed streams gives each token `raw[M]`, M = (2 + n)·n, from which come, with a learnt scale
//! for each of the three parts and a learnt base for each number, z = fma(raw, scale, base), and
//!
//! ```text
//! pre_i  = sigmoid(z_i) + ε          the layer reads  Σ_i pre_i·x_i
//! post_k = 2·sigmoid(z_k)            the next stream k is  post_k·y + Σ_j comb[j, k]·x_j
//! comb   = Sinkhorn(softmax of each row of z + ε)
//! ```
//! Sinkhorn divides columns by their sums + ε, then `iterations − 1` times rows and columns, so that all add up to 1
//! nearly. Without a layer behind them (before the head) M = n, of which all are `pre`.
//!
//! **Order of sums.** Sums over streams are chains in their order; those over D are 16 partial sums and the fixed tree.
//! Saved: x, y, raw and the weights.

use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::math::scalar;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// How streams are mixed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mixing {
    /// n.
    pub streams: usize,
    /// How often columns are divided by their sums.
    pub iterations: usize,
    /// ε.
    pub eps: f32,
    /// Whether the weights are those of a layer, or only of what reads the streams.
    pub whole: bool,
}

/// The most streams.
pub const MAX_STREAMS: usize = 8;
const MAX_SQUARE: usize = MAX_STREAMS * MAX_STREAMS;

impl Mixing {
    /// M: numbers of a token.
    pub fn width(&self) -> usize {
        if self.whole { (2 + self.streams) * self.streams } else { self.streams }
    }

    /// Learnt scales: one for each part.
    pub fn scales(&self) -> usize {
        if self.whole { 3 } else { 1 }
    }

    fn check(&self) {
        let Mixing { streams, iterations, .. } = *self;
        assert!((1..=MAX_STREAMS).contains(&streams) && iterations > 0, "{self:?}");
    }

    /// The part that number `i` belongs to.
    fn part(&self, i: usize) -> usize {
        (i / self.streams).min(2)
    }

    /// A token's weights `[M]`.
    pub(crate) fn weigh(&self, raw: &[f32], base: &[f32], scale: &[f32], weights: &mut [f32]) {
        let n = self.streams;
        for (i, weight) in weights.iter_mut().enumerate() {
            let z = raw[i].mul_add(scale[self.part(i)], base[i]);
            *weight = match self.part(i) {
                0 => scalar::sigmoid(z) + self.eps,
                1 => 2.0 * scalar::sigmoid(z),
                _ => z,
            };
        }
        if self.whole {
            let square = &mut weights[2 * n..];
            self.softmax(square);
            square.iter_mut().for_each(|weight| *weight += self.eps);
            for step in 0..2 * self.iterations - 1 {
                self.divide(step, square, &mut [0.0; MAX_STREAMS]);
            }
        }
    }

    fn softmax(&self, square: &mut [f32]) {
        for row in square.chunks_exact_mut(self.streams) {
            let max = row.iter().fold(f32::NEG_INFINITY, |max, z| if *z > max { *z } else { max });
            row.iter_mut().for_each(|z| *z = scalar::exp(*z - max));
            let sum = row.iter().fold(0.0, |sum, e| sum + e);
            row.iter_mut().for_each(|e| *e /= sum);
        }
    }

    /// Elements of line `line`: of a column in even steps, of a row in odd ones.
    fn line(&self, step: usize, line: usize) -> impl Iterator<Item = usize> + use<> {
        let n = self.streams;
        (0..n).map(move |i| if step.is_multiple_of(2) { i * n + line } else { line * n + i })
    }

    /// Divides lines by their sums + ε, which it leaves in `sums`.
    fn divide(&self, step: usize, square: &mut [f32], sums: &mut [f32; MAX_STREAMS]) {
        for (line, sum) in sums.iter_mut().enumerate().take(self.streams) {
            *sum = self.line(step, line).fold(0.0, |sum, i| sum + square[i]) + self.eps;
            self.line(step, line).for_each(|i| square[i] /= *sum);
        }
    }

    /// The gradients of a token's `raw` and of its z, of those of its weights, and what it adds to those of the scales.
    pub(crate) fn weigh_backward(
        &self,
        [raw, base, scale]: [&[f32]; 3],
        d_weights: &[f32],
        [d_raw, d_z, terms]: [&mut [f32]; 3],
    ) {
        let n = self.streams;
        for i in 0..self.width().min(2 * n) {
            let s = scalar::sigmoid(raw[i].mul_add(scale[self.part(i)], base[i]));
            let factor = if self.part(i) == 0 { 1.0 } else { 2.0 };
            d_z[i] = factor * d_weights[i] * (s * (1.0 - s));
        }
        if self.whole {
            let of_square = [&raw[2 * n..], &base[2 * n..]];
            self.square_backward(of_square, scale[2], &d_weights[2 * n..], &mut d_z[2 * n..]);
        }
        terms.fill(0.0);
        for i in 0..self.width() {
            d_raw[i] = d_z[i] * scale[self.part(i)];
            terms[self.part(i)] = d_z[i].mul_add(raw[i], terms[self.part(i)]);
        }
    }

    fn square_backward(&self, [raw, base]: [&[f32]; 2], scale: f32, d_square: &[f32], d_z: &mut [f32]) {
        let (n, steps) = (self.streams, 2 * self.iterations - 1);
        // What each step gave, and by what it divided.
        let mut given = vec![[0.0; MAX_SQUARE]; steps + 1];
        let mut sums = vec![[0.0; MAX_STREAMS]; steps];
        let square = &mut given[0][..n * n];
        square.iter_mut().enumerate().for_each(|(i, z)| *z = raw[i].mul_add(scale, base[i]));
        self.softmax(square);
        let mut probabilities = [0.0; MAX_SQUARE];
        probabilities[..n * n].copy_from_slice(square);
        square.iter_mut().for_each(|weight| *weight += self.eps);
        for step in 0..steps {
            given[step + 1] = given[step];
            self.divide(step, &mut given[step + 1][..n * n], &mut sums[step]);
        }
        let mut d = [0.0; MAX_SQUARE];
        d[..n * n].copy_from_slice(d_square);
        for step in (0..steps).rev() {
            let y = &given[step + 1];
            for (line, sum) in sums[step].iter().enumerate().take(n) {
                let dot = self.line(step, line).fold(0.0f32, |dot, i| d[i].mul_add(y[i], dot));
                self.line(step, line).for_each(|i| d[i] = (d[i] - dot) / sum);
            }
        }
        for row in (0..n * n).step_by(n) {
            let dot = (row..row + n).fold(0.0f32, |dot, i| d[i].mul_add(probabilities[i], dot));
            (row..row + n).for_each(|i| d_z[i] = (d[i] - dot) * probabilities[i]);
        }
    }

    /// T of `x[T, n·D]`, checked with `weights[T, M]`.
    fn tokens(&self, x: &[f32], weights: &[f32], d: usize) -> usize {
        self.check();
        let tokens = weights.len() / self.width();
        assert_eq!(weights.len(), tokens * self.width(), "weights are [T, M] with M = {}", self.width());
        assert_eq!(x.len(), tokens * self.streams * d, "streams are [T, n·D] with T = {tokens}, D = {d}: {self:?}");
        tokens
    }
}

/// `weights[T, M]` of `raw[T, M]`, `base[M]` and `scale[scales]`.
pub fn weigh(of: Mixing, raw: &[f32], base: &[f32], scale: &[f32], weights: &mut [f32]) {
    of.check();
    let width = of.width();
    assert_eq!((raw.len(), base.len(), scale.len()), (weights.len(), width, of.scales()), "operands of {of:?}");
    let rows = par::rows_per_task(raw.len() / width, 16 * width * of.iterations);
    par::chunks_mut(weights, rows * width, |task, weights| {
        let raw = &raw[task * rows * width..];
        for (raw, weights) in raw.chunks_exact(width).zip(weights.chunks_exact_mut(width)) {
            of.weigh(raw, base, scale, weights);
        }
    });
}

/// Backward of [`weigh`]: the gradients of `raw[T, M]` and of `z[T, M]`, whose sum over the tokens is the base's, and
/// `terms[T, scales]`, whose sums are the scales'.
pub fn weigh_backward(of: Mixing, [raw, base, scale]: [&[f32]; 3], d_weights: &[f32], gradients: [&mut [f32]; 3]) {
    of.check();
    let (width, scales) = (of.width(), of.scales());
    let tokens = raw.len() / width;
    let [d_raw, d_z, terms] = gradients;
    assert_eq!((base.len(), scale.len(), d_weights.len()), (width, scales, raw.len()), "operands of {of:?}");
    assert_eq!((d_raw.len(), d_z.len(), terms.len()), (raw.len(), raw.len(), tokens * scales), "gradients");
    let [d_z, terms] = [d_z, terms].map(SharedMut::new);
    let rows = par::rows_per_task(tokens, 32 * width * of.iterations);
    par::chunks_mut(d_raw, rows * width, |task, d_raw| {
        for (i, d_raw) in d_raw.chunks_exact_mut(width).enumerate() {
            let t = task * rows + i;
            let at = t * width..(t + 1) * width;
            // SAFETY: each token is one task's.
            let (d_z, terms) = unsafe { (d_z.slice(at.start, width), terms.slice(t * scales, scales)) };
            of.weigh_backward([&raw[at.clone()], base, scale], &d_weights[at], [d_raw, d_z, terms]);
        }
    });
}

/// `y[T, D]`: the sums of the streams `x[T, n·D]` with weights `pre`.
pub fn collapse(of: Mixing, x: &[f32], weights: &[f32], y: &mut [f32], d: usize) {
    let tokens = of.tokens(x, weights, d);
    assert_eq!(y.len(), tokens * d, "y is [T, D] with T = {tokens}, D = {d}");
    let (n, rows) = (of.streams, par::rows_per_task(tokens, of.streams * d));
    par::chunks_mut(y, rows * d, |task, y| {
        for (i, y) in y.chunks_exact_mut(d).enumerate() {
            let t = task * rows + i;
            let (x, pre) = (&x[t * n * d..][..n * d], &weights[t * of.width()..][..n]);
            // SAFETY: a stream of x is as long as y, and there are as many as weights.
            unsafe { dispatch!(collapse_row(x: &[f32], pre: &[f32], y: &mut [f32])) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`; x has as many rows of y's length as there are weights.
#[inline(always)]
unsafe fn collapse_row<L: Lanes>(x: &[f32], pre: &[f32], y: &mut [f32]) {
    let d = y.len();
    // SAFETY: spans of y's length lie in all rows; instructions by this function's contract.
    unsafe {
        spans!(d, |s| {
            let mut sum = s.load::<L>(x).mul(L::splat(pre[0]));
            for (i, weight) in pre.iter().enumerate().skip(1) {
                sum = s.load::<L>(&x[i * d..]).fma(L::splat(*weight), sum);
            }
            s.store(sum, y);
        });
    }
}

/// Backward of [`collapse`]: `dx[T, n·D]`, set or added to, and `d_weights[T, M]`, of which
/// those of `post` and `comb` are 0.
pub fn collapse_backward(
    of: Mixing,
    dy: &[f32],
    [x, weights]: [&[f32]; 2],
    (dx, start): (&mut [f32], Start),
    d_weights: &mut [f32],
    d: usize,
) {
    let tokens = of.tokens(x, weights, d);
    assert_eq!((dy.len(), dx.len(), d_weights.len()), (tokens * d, x.len(), weights.len()), "gradients");
    let (n, width, rows) = (of.streams, of.width(), par::rows_per_task(tokens, 2 * of.streams * d));
    let d_weights = SharedMut::new(d_weights);
    par::chunks_mut(dx, rows * n * d, |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(n * d).enumerate() {
            let t = task * rows + i;
            let (dy, x, pre) = (&dy[t * d..][..d], &x[t * n * d..][..n * d], &weights[t * width..][..n]);
            // SAFETY: each token is one task's.
            let (d_pre, others) = unsafe { d_weights.slice(t * width, width) }.split_at_mut(n);
            others.fill(0.0);
            // SAFETY: a stream is as long as dy, and there are as many as weights.
            unsafe {
                dispatch!(collapse_row_backward(
                    dy: &[f32], x: &[f32], pre: &[f32], dx: &mut [f32], start: Start, d_pre: &mut [f32]
                ))
            };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`; x and dx have as many rows of dy's length as there are weights.
#[inline(always)]
unsafe fn collapse_row_backward<L: Lanes>(
    dy: &[f32],
    x: &[f32],
    pre: &[f32],
    dx: &mut [f32],
    start: Start,
    d_pre: &mut [f32],
) {
    let streams = x.chunks_exact(dy.len()).zip(dx.chunks_exact_mut(dy.len()));
    for ((x, dx), (weight, d_weight)) in streams.zip(pre.iter().zip(d_pre)) {
        // SAFETY: all rows have dy's length; instructions by this function's contract.
        unsafe {
            let mut dot = L::splat(0.0);
            spans!(dy.len(), |s| {
                let dy = s.load::<L>(dy);
                dot = dy.fma(s.load(x), dot);
                let own = dy.mul(L::splat(*weight));
                s.store(if start == Start::Zero { own } else { s.load::<L>(dx).add(own) }, dx);
            });
            *d_weight = dot.sum();
        }
    }
}

/// `out[T, n·D]`: the next streams, of `x[T, n·D]` and what the layer gives, `y[T, D]`.
pub fn expand(of: Mixing, x: &[f32], y: &[f32], weights: &[f32], out: &mut [f32], d: usize) {
    let tokens = of.tokens(x, weights, d);
    assert!(of.whole, "{of:?} has no weights of what a layer gives");
    assert_eq!((y.len(), out.len()), (tokens * d, x.len()), "y is [T, D], out [T, n·D] with T = {tokens}, D = {d}");
    let (n, width, rows) = (of.streams, of.width(), par::rows_per_task(tokens, of.streams * of.streams * d));
    par::chunks_mut(out, rows * n * d, |task, out| {
        for (i, out) in out.chunks_exact_mut(n * d).enumerate() {
            let t = task * rows + i;
            let (x, y) = (&x[t * n * d..][..n * d], &y[t * d..][..d]);
            let (post, comb) = weights[t * width..][..width][n..].split_at(n);
            // SAFETY: streams are as long as y, as many as `post` has weights.
            unsafe { dispatch!(expand_row(x: &[f32], y: &[f32], post: &[f32], comb: &[f32], out: &mut [f32])) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`; x and out have as many rows of y's length as `post` has weights, `comb`
/// its square.
#[inline(always)]
unsafe fn expand_row<L: Lanes>(x: &[f32], y: &[f32], post: &[f32], comb: &[f32], out: &mut [f32]) {
    let (n, d) = (post.len(), y.len());
    // SAFETY: spans of y's length lie in all rows; instructions by this function's contract.
    unsafe {
        for (k, out) in out.chunks_exact_mut(d).enumerate() {
            spans!(d, |s| {
                let mut sum = s.load::<L>(y).mul(L::splat(post[k]));
                for j in 0..n {
                    sum = s.load::<L>(&x[j * d..]).fma(L::splat(comb[j * n + k]), sum);
                }
                s.store(sum, out);
            });
        }
    }
}

/// Backward of [`expand`]: `dx[T, n·D]`, set or added to, `dy[T, D]`, and `d_weights[T, M]`, of which those of `pre`
/// are 0.
pub fn expand_backward(
    of: Mixing,
    d_out: &[f32],
    [x, y, weights]: [&[f32]; 3],
    (dx, start): (&mut [f32], Start),
    dy: &mut [f32],
    d_weights: &mut [f32],
) {
    let d = y.len() / (weights.len() / of.width()).max(1);
    let tokens = of.tokens(x, weights, d);
    assert_eq!((d_out.len(), dx.len()), (x.len(), x.len()), "gradients of {tokens} tokens' streams");
    assert_eq!((dy.len(), d_weights.len()), (y.len(), weights.len()), "gradients of {tokens} tokens");
    let (n, width, rows) = (of.streams, of.width(), par::rows_per_task(tokens, 2 * of.streams * of.streams * d));
    let [dy, d_weights] = [dy, d_weights].map(SharedMut::new);
    par::chunks_mut(dx, rows * n * d, |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(n * d).enumerate() {
            let t = task * rows + i;
            let streams = t * n * d..(t + 1) * n * d;
            let (d_out, x, y) = (&d_out[streams.clone()], &x[streams], &y[t * d..][..d]);
            let weights = &weights[t * width..][..width];
            // SAFETY: each token is one task's.
            let (dy, d_weights) = unsafe { (dy.slice(t * d, d), d_weights.slice(t * width, width)) };
            // SAFETY: streams are as long as y, as many as the weights are of.
            unsafe {
                dispatch!(expand_row_backward(
                    d_out: &[f32],
                    x: &[f32],
                    y: &[f32],
                    weights: &[f32],
                    dx: &mut [f32],
                    start: Start,
                    dy: &mut [f32],
                    d_weights: &mut [f32]
                ))
            };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`; x, d_out and dx have n rows of y's length, weights and their gradients
/// (2 + n)·n numbers.
#[inline(always)]
unsafe fn expand_row_backward<L: Lanes>(
    d_out: &[f32],
    x: &[f32],
    y: &[f32],
    weights: &[f32],
    dx: &mut [f32],
    start: Start,
    dy: &mut [f32],
    d_weights: &mut [f32],
) {
    let d = y.len();
    let n = x.len() / d;
    let (post, comb) = weights[n..].split_at(n);
    let (d_pre, of_layer) = d_weights.split_at_mut(n);
    let (d_post, d_comb) = of_layer.split_at_mut(n);
    d_pre.fill(0.0);
    // SAFETY: spans of y's length lie in all rows; instructions by this function's contract.
    unsafe {
        spans!(d, |s| {
            let mut sum = s.load::<L>(d_out).mul(L::splat(post[0]));
            for k in 1..n {
                sum = s.load::<L>(&d_out[k * d..]).fma(L::splat(post[k]), sum);
            }
            s.store(sum, dy);
        });
        for (j, dx) in dx.chunks_exact_mut(d).enumerate() {
            spans!(d, |s| {
                let mut sum = s.load::<L>(d_out).mul(L::splat(comb[j * n]));
                for k in 1..n {
                    sum = s.load::<L>(&d_out[k * d..]).fma(L::splat(comb[j * n + k]), sum);
                }
                s.store(if start == Start::Zero { sum } else { s.load::<L>(dx).add(sum) }, dx);
            });
        }
        for (k, d_out) in d_out.chunks_exact(d).enumerate() {
            d_post[k] = dot::<L>(y, d_out);
            for (j, x) in x.chunks_exact(d).enumerate() {
                d_comb[j * n + k] = dot::<L>(x, d_out);
            }
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: spans of one length lie in both; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(a.len(), |s| {
            sum = s.load::<L>(a).fma(s.load(b), sum);
        });
        sum.sum()
    }
}

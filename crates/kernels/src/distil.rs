//! The output head of a student fused with its divergence from a teacher: logits of a block of tokens at a time, never
//! of all of them.
//!
//! ```text
//! p = softmax(s/τ), q = softmax(t/τ), r = log p − log q    s, t: a token's logits, of the student and of the teacher
//! D = −Σ q r                                               forward KL(q‖p): the student covers all that q does
//! D =  Σ p r                                               reverse KL(p‖q): the student keeps to what q does most
//! loss     = c · [ (1 − a) τ² D          − a log softmax(s)[target]     ]
//! ∂loss/∂s = c · [ (1 − a) τ (p − q)     + a (softmax(s) − onehot)      ]   forward
//!          = c · [ (1 − a) τ p (r − D)   + a (softmax(s) − onehot)      ]   reverse
//! ```
//! τ² keeps the size of the gradients whatever the temperature (Hinton, Vinyals, Dean, arXiv 1503.02531, §2). Forward
//! and reverse, on given answers and on the student's own: Agarwal et al. (GKD), arXiv 2306.13649; reverse: Gu et al.
//! (MiniLLM), arXiv 2306.08543.
//!
//! **Order of sums.** As in [`head`](crate::head); D by 16 partial sums over the vocabulary and the fixed tree.

use std::ops::Range;

use crate::gemm::{self, Precision, Start};
use crate::head::{Caps, Coefficient, Gradients, IGNORE, block_tokens};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::par::{self, SharedMut};
use crate::scratch;

/// Which way the divergence is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// KL(teacher‖student).
    Forward,
    /// KL(student‖teacher).
    Reverse,
}

/// What the student is drawn to, and how.
#[derive(Clone, Copy)]
pub struct Teacher<'a> {
    /// Writes the teacher's logits `[rows, V]` of a range of rows.
    pub logits: &'a (dyn Fn(Range<usize>, &mut [f32]) + Sync),
    /// Which way.
    pub divergence: Divergence,
    /// τ of both softmaxes, above 0.
    pub temperature: f32,
    /// a: the share of the cross-entropy with the target in the loss, 0 to 1.
    pub cross_entropy: f32,
}

/// Losses of each token, 0 where the target is [`IGNORE`].
pub struct TokenLosses<'a> {
    /// `[T]`: log p(target) of the student at temperature 1, to the bits of [`head::loss`](crate::head::loss).
    pub logp: &'a mut [f32],
    /// `[T]`: D, nats.
    pub divergence: &'a mut [f32],
}

/// Draws the student of logits `x[T,D] · w[V,D]ᵀ`, capped if there is a cap, to its teacher. `coefficient` gives
/// c of a token from its row and the log-probability of its target: 1/N for a mean over N tokens.
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
    mut gradients: Gradients,
    coefficient: Coefficient,
) {
    let (tokens, TokenLosses { logp, divergence }) = (targets.len(), losses);
    let lengths = [
        ("x", x.len(), tokens * d),
        ("w", w.len(), v * d),
        ("logp", logp.len(), tokens),
        ("divergence", divergence.len(), tokens),
    ];
    for (name, len, expected) in lengths {
        assert!(len == expected, "{name} has {len} elements instead of {expected}");
    }
    let out_of_range = targets.iter().find(|&&t| t != IGNORE && t as usize >= v);
    assert!(out_of_range.is_none(), "target {out_of_range:?} of a vocabulary of {v}");
    assert!(teacher.temperature > 0.0, "a temperature of {}", teacher.temperature);
    let block = block_tokens(v).min(tokens);
    let (mut logits, mut taught) = (scratch::buffer(block * v), scratch::buffer(block * v));
    let mut caps = Caps::new(cap, block * v);
    for first in (0..tokens).step_by(block.max(1)) {
        let block = first..(first + block).min(tokens);
        let x = &x[block.start * d..block.end * d];
        let (logits, taught) = (&mut logits[..block.len() * v], &mut taught[..block.len() * v]);
        gemm::linear(p, x, w, logits, d, v);
        caps.forward(logits);
        (teacher.logits)(block.clone(), taught);
        let losses = TokenLosses { logp: &mut logp[block.clone()], divergence: &mut divergence[block.clone()] };
        rows(logits, taught, &targets[block.clone()], teacher, v, losses, |t, logp| coefficient(first + t, logp));
        caps.backward(logits);
        gemm::linear_dx(p, logits, w, &mut gradients.dx[block.start * d..block.end * d], d, v, Start::Zero);
        gradients.weights(p, logits, x, d, v);
    }
    if tokens == 0 {
        gradients.weights(p, &[], &[], d, v);
    }
}

/// The student's logits become the gradients of the loss.
fn rows(
    logits: &mut [f32],
    taught: &[f32],
    targets: &[u32],
    teacher: &Teacher,
    v: usize,
    losses: TokenLosses,
    coefficient: impl Fn(usize, f32) -> f32 + Sync,
) {
    let (logps, divergences) = (SharedMut::new(losses.logp), SharedMut::new(losses.divergence));
    let Teacher { divergence: way, temperature, cross_entropy: share, .. } = *teacher;
    let inverse = 1.0 / temperature;
    const ROWS: usize = 8;
    par::chunks_mut(logits, ROWS * v, |chunk, rows| {
        for (i, s) in rows.chunks_exact_mut(v).enumerate() {
            let row = chunk * ROWS + i;
            let (t, target) = (&taught[row * v..(row + 1) * v], targets[row]);
            // SAFETY: one element for each row.
            let (logp, d) = unsafe { (&mut logps.slice(row, 1)[0], &mut divergences.slice(row, 1)[0]) };
            if target == IGNORE {
                (*logp, *d) = (0.0, 0.0);
                s.fill(0.0);
                continue;
            }
            let at_one = statistics(s, 1.0);
            *logp = s[target as usize] - at_one.max - at_one.log_sum;
            let pair = Pair {
                way,
                inverse,
                student: if inverse == 1.0 { at_one } else { statistics(s, inverse) },
                teacher: statistics(t, inverse),
            };
            let (read, pair) = (&*s, &pair);
            // SAFETY: student's and teacher's row have v elements.
            *d = unsafe { crate::lanes::dispatch!(divergence(read: &[f32], t: &[f32], pair: &Pair) -> f32) };
            let c = coefficient(row, *logp);
            let terms = GradientTerms { d: *d, kl: c * ((1.0 - share) * temperature), ce: c * share, at_one };
            let terms = &terms;
            // SAFETY: student's and teacher's row have v elements.
            unsafe { crate::lanes::dispatch!(gradient(s: &mut [f32], t: &[f32], pair: &Pair, terms: &GradientTerms)) };
            if share > 0.0 {
                s[target as usize] -= terms.ce;
            }
        }
    });
}

/// A row's softmax at some temperature: exp((l − max)/τ) / sum.
#[derive(Clone, Copy)]
struct Softmax {
    max: f32,
    inverse_sum: f32,
    log_sum: f32,
}

fn statistics(row: &[f32], inverse: f32) -> Softmax {
    // SAFETY: whole vectors of the row, then what is left of it.
    let (max, sum) = unsafe { crate::lanes::dispatch!(max_and_sum(row: &[f32], inverse: f32) -> (f32, f32)) };
    Softmax { max, inverse_sum: 1.0 / sum, log_sum: math::scalar::log(sum) }
}

/// What p, q and r of a token are made of.
struct Pair {
    way: Divergence,
    /// 1/τ.
    inverse: f32,
    student: Softmax,
    teacher: Softmax,
}

/// What a token's gradient is made of besides p, q and r.
struct GradientTerms {
    d: f32,
    /// c (1 − a) τ.
    kl: f32,
    /// c a.
    ce: f32,
    /// The student's softmax at temperature 1.
    at_one: Softmax,
}

/// `n` elements of a row from `i` on: sixteen, or at its end fewer.
///
/// # Safety
/// The machine has the instruction set of `L`, and the row has `n` elements from `i` on.
#[inline(always)]
unsafe fn load<L: Lanes>(row: &[f32], i: usize, n: usize) -> L {
    // SAFETY: n elements from i on by this function's contract.
    unsafe { if n == LANES { L::load(row.as_ptr().add(i)) } else { L::load_first(row.as_ptr().add(i), n) } }
}

/// Σ over a row of what `term` gives for the `n` elements from index `i` on, inside of `unsafe`. A macro and not a
/// function that takes a closure: the term must be compiled inside of the function that has the instruction set.
macro_rules! total {
    ($L:ident, $len:expr, |$i:ident, $n:ident| $term:expr) => {{
        let whole = $len / LANES * LANES;
        let rest = $len - whole;
        let mut sum = $L::splat(0.0);
        for $i in (0..whole).step_by(LANES) {
            let $n = LANES;
            sum = sum.add($term);
        }
        if rest > 0 {
            let ($i, $n) = (whole, rest);
            let mut last = [0.0; LANES];
            $term.store_first(last.as_mut_ptr(), rest);
            sum = sum.add($L::load(last.as_ptr()));
        }
        sum.sum()
    }};
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn max_and_sum<L: Lanes>(row: &[f32], inverse: f32) -> (f32, f32) {
    // SAFETY: whole vectors of the row, then what is left of it; instructions by this function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        let (whole, rest) = row.as_chunks::<LANES>();
        for l in whole {
            max = L::load(l.as_ptr()).max(max);
        }
        let max = rest.iter().fold(max.max_lane(), |m, &l| if l > m { l } else { m });
        let (least, k) = (L::splat(max), L::splat(inverse));
        (max, total!(L, row.len(), |i, n| math::exp(load::<L>(row, i, n).sub(least).mul(k))))
    }
}

/// log of a softmax without its last term: (l − max)/τ.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn scaled<L: Lanes>(l: L, softmax: &Softmax, inverse: f32) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { l.sub(L::splat(softmax.max)).mul(L::splat(inverse)) }
}

/// exp((l − max)/τ) / sum.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn probability<L: Lanes>(scaled: L, softmax: &Softmax) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { math::exp(scaled).mul(L::splat(softmax.inverse_sum)) }
}

/// D.
///
/// # Safety
/// The machine has the instruction set of `L`; s and t have one length.
#[inline(always)]
unsafe fn divergence<L: Lanes>(s: &[f32], t: &[f32], pair: &Pair) -> f32 {
    let between = pair.student.log_sum - pair.teacher.log_sum;
    // SAFETY: i and n are of the length that both rows have; instructions by this function's contract.
    unsafe {
        let sum = total!(L, s.len(), |i, n| {
            let s = scaled(load::<L>(s, i, n), &pair.student, pair.inverse);
            let t = scaled(load::<L>(t, i, n), &pair.teacher, pair.inverse);
            let weight = match pair.way {
                Divergence::Forward => probability(t, &pair.teacher),
                Divergence::Reverse => probability(s, &pair.student),
            };
            weight.mul(s.sub(t).sub(L::splat(between)))
        });
        match pair.way {
            Divergence::Forward => -sum,
            Divergence::Reverse => sum,
        }
    }
}

/// The gradient, but for the target's part of the cross-entropy.
#[inline(always)]
unsafe fn gradient<L: Lanes>(s: &mut [f32], t: &[f32], pair: &Pair, terms: &GradientTerms) {
    let (whole, rest) = (s.len() / LANES * LANES, s.len() % LANES);
    // SAFETY: both rows have one length, in which all loads and stores lie; instructions by `dispatch!`.
    unsafe {
        for i in (0..whole).step_by(LANES) {
            gradient_of(load::<L>(s, i, LANES), load(t, i, LANES), pair, terms).store(s.as_mut_ptr().add(i));
        }
        if rest > 0 {
            let last = gradient_of(load::<L>(s, whole, rest), load(t, whole, rest), pair, terms);
            last.store_first(s.as_mut_ptr().add(whole), rest);
        }
    }
}

/// [`gradient`] of sixteen logits.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn gradient_of<L: Lanes>(logits: L, t: L, pair: &Pair, terms: &GradientTerms) -> L {
    let between = pair.student.log_sum - pair.teacher.log_sum;
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe {
        let s = scaled(logits, &pair.student, pair.inverse);
        let t = scaled(t, &pair.teacher, pair.inverse);
        let p = probability(s, &pair.student);
        let kl = match pair.way {
            Divergence::Forward => p.sub(probability(t, &pair.teacher)),
            Divergence::Reverse => p.mul(s.sub(t).sub(L::splat(between)).sub(L::splat(terms.d))),
        };
        let kl = kl.mul(L::splat(terms.kl));
        if terms.ce == 0.0 {
            return kl;
        }
        kl.add(probability(scaled(logits, &terms.at_one, 1.0), &terms.at_one).mul(L::splat(terms.ce)))
    }
}

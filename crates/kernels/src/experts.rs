//! Dispatch and combination in a mixture of experts: which expert computes which token, and the weighted sum of what
//! they compute.
//!
//! Slots are the rows of the experts' grouped products: T·K of them, those of expert 0 first, and within an expert in
//! the order of the tokens (so that weight gradients are chains over tokens in order). A token's choices are sorted by
//! expert, and all sums over a token's experts are chains in that order.

use crate::elementwise;
use crate::gemm::Start;
use crate::lanes::{Lanes, dispatch};
use crate::par::{self, SharedMut};
use crate::span::spans;

/// Where each choice of each token goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dispatch {
    // Not public: the kernels rely on each choice having a slot of its own.
    offsets: Vec<u32>,
    rows: Vec<u32>,
    slots: Vec<u32>,
    /// [T·K]: the choice of each slot.
    choices: Vec<u32>,
    top_k: usize,
}

impl Dispatch {
    /// From the experts [T, K] that the router chose, by counting; stable.
    pub fn new(experts: &[u32], tokens: usize, top_k: usize, expert_count: usize) -> Self {
        assert_eq!(experts.len(), tokens * top_k, "choices are [T, K] with T = {tokens}, K = {top_k}");
        assert!(
            u32::try_from(experts.len()).is_ok(),
            "{tokens} tokens times {top_k} experts are too many for one call"
        );
        let mut offsets = vec![0u32; expert_count + 1];
        for &e in experts {
            assert!((e as usize) < expert_count, "expert {e} of {expert_count}");
            offsets[e as usize + 1] += 1;
        }
        for e in 0..expert_count {
            offsets[e + 1] += offsets[e];
        }
        let mut next = offsets.clone();
        let mut choices = vec![0; experts.len()];
        let slots: Vec<u32> = (experts.iter().enumerate())
            .map(|(choice, &e)| {
                let slot = next[e as usize];
                next[e as usize] += 1;
                choices[slot as usize] = choice as u32;
                slot
            })
            .collect();
        let rows = choices.iter().map(|choice| choice / top_k as u32).collect();
        Dispatch { offsets, rows, slots, choices, top_k }
    }

    /// [E + 1]: slots `offsets[e]..offsets[e + 1]` are expert e's.
    pub fn offsets(&self) -> &[u32] {
        &self.offsets
    }

    /// [T·K]: the token of each slot.
    pub fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// [T, K]: the slot of each choice.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    /// Experts of each token, K.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// T.
    pub fn tokens(&self) -> usize {
        self.slots.len() / self.top_k
    }

    /// How many tokens each expert gets.
    pub fn loads(&self) -> impl Iterator<Item = u32> + '_ {
        self.offsets.windows(2).map(|w| w[1] - w[0])
    }
}

/// `y[s] += bias[e(s)]` for each slot s of y [S, n]; bias is [E, n].
pub fn add_bias(bias: &[f32], dispatch: &Dispatch, y: &mut [f32]) {
    let n = check_bias(bias.len(), dispatch, y.len());
    for (bias, slots) in bias.chunks_exact(n.max(1)).zip(dispatch.offsets.windows(2)) {
        elementwise::add_bias(bias, &mut y[slots[0] as usize * n..slots[1] as usize * n]);
    }
}

/// dbias [E, n] (+)= Σ over an expert's slots of dy [S, n]: chains of additions over the slots in order.
pub fn bias_grad(dy: &[f32], dispatch: &Dispatch, dbias: &mut [f32], start: Start) {
    let n = check_bias(dbias.len(), dispatch, dy.len());
    for (dbias, slots) in dbias.chunks_exact_mut(n.max(1)).zip(dispatch.offsets.windows(2)) {
        elementwise::bias_grad(&dy[slots[0] as usize * n..slots[1] as usize * n], dbias, start);
    }
}

/// The width of a bias.
fn check_bias(len: usize, dispatch: &Dispatch, of_slots: usize) -> usize {
    let (experts, slots) = (dispatch.offsets.len() - 1, dispatch.slots.len());
    let n = len / experts;
    assert_eq!(len, experts * n, "bias is [E, n] with E = {experts}");
    assert_eq!(of_slots, slots * n, "y is [S, n] with S = {slots}, n = {n}");
    n
}

/// `y[t] = base[t]` + Σ over the token's choices of `weights[t, k]·h[slot]`: a chain of fused multiply-adds that starts
/// with the base (zero without one). y and base are [T, d], h is [T·K, d], weights is [T, K].
pub fn combine(h: &[f32], weights: &[f32], dispatch: &Dispatch, base: Option<&[f32]>, y: &mut [f32], d: usize) {
    let (tokens, top_k) = (dispatch.tokens(), dispatch.top_k);
    assert_eq!(h.len(), tokens * top_k * d, "h is [T·K, d] with T = {tokens}, K = {top_k}, d = {d}");
    assert_eq!(weights.len(), tokens * top_k, "weights is [T, K] with T = {tokens}, K = {top_k}");
    assert_eq!(y.len(), tokens * d, "y is [T, d] with T = {tokens}, d = {d}");
    assert!(base.is_none_or(|base| base.len() == y.len()), "base has the shape of y");
    let rows = par::rows_per_task(tokens, d * top_k);
    par::chunks_mut(y, rows * d, |task, y| {
        for (i, y) in y.chunks_exact_mut(d).enumerate() {
            let t = task * rows + i;
            match base {
                Some(base) => y.copy_from_slice(&base[t * d..(t + 1) * d]),
                None => y.fill(0.0),
            }
            let choices = t * top_k..(t + 1) * top_k;
            let (slots, weights) = (&dispatch.slots[choices.clone()], &weights[choices]);
            // SAFETY: slots are below T·K, and h was checked to have a row of y's length for each.
            unsafe { dispatch!(combine_row(h: &[f32], weights: &[f32], slots: &[u32], y: &mut [f32])) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn combine_row<L: Lanes>(h: &[f32], weights: &[f32], slots: &[u32], y: &mut [f32]) {
    // SAFETY: rows of h are cut to the length of y; instructions by this function's contract.
    unsafe {
        spans!(y.len(), |s| {
            let mut sum = s.load::<L>(y);
            for (&slot, &weight) in slots.iter().zip(weights) {
                let h = &h[slot as usize * y.len()..(slot as usize + 1) * y.len()];
                sum = s.load::<L>(h).fma(L::splat(weight), sum);
            }
            s.store(sum, y);
        });
    }
}

/// The gradients of [`combine`]: `dh[slot] = weight·dy[t]` and `dweights[t, k] = dy[t]·h[slot]` (16 partial sums of
/// fused multiply-adds and the fixed tree). The base's gradient is dy itself.
pub fn combine_backward(
    dy: &[f32],
    h: &[f32],
    weights: &[f32],
    dispatch: &Dispatch,
    dh: &mut [f32],
    dweights: &mut [f32],
    d: usize,
) {
    let (tokens, top_k) = (dispatch.tokens(), dispatch.top_k);
    assert_eq!(dy.len(), tokens * d, "dy is [T, d] with T = {tokens}, d = {d}");
    assert_eq!(h.len(), tokens * top_k * d, "h is [T·K, d] with T = {tokens}, K = {top_k}, d = {d}");
    assert_eq!(dh.len(), h.len(), "dh has the shape of h");
    assert_eq!((weights.len(), dweights.len()), (tokens * top_k, tokens * top_k), "weights and dweights are [T, K]");
    // In the order of slots: h and dh, the greatest buffers, are read and written from front to back.
    let slots_per_task = par::rows_per_task(tokens * top_k, d);
    let dweights = SharedMut::new(dweights);
    par::chunks_mut(dh, slots_per_task * d, |task, dh| {
        for (i, dh) in dh.chunks_exact_mut(d).enumerate() {
            let slot = task * slots_per_task + i;
            let (t, choice) = (dispatch.rows[slot] as usize, dispatch.choices[slot] as usize);
            let (dy, h, weight) = (&dy[t * d..(t + 1) * d], &h[slot * d..(slot + 1) * d], weights[choice]);
            // SAFETY: each slot has its own choice.
            let dweight = unsafe { dweights.slice(choice, 1) };
            // SAFETY: dy, h and dh are rows of d elements.
            dweight[0] =
                unsafe { dispatch!(backward_choice(dy: &[f32], h: &[f32], weight: f32, dh: &mut [f32]) -> f32) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn backward_choice<L: Lanes>(dy: &[f32], h: &[f32], weight: f32, dh: &mut [f32]) -> f32 {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        spans!(dy.len(), |s| {
            let dy = s.load::<L>(dy);
            sum = dy.fma(s.load(h), sum);
            s.store(dy.mul(L::splat(weight)), dh);
        });
        sum.sum()
    }
}

/// `dx[t]` (+)= Σ over the token's choices of `dslots[slot]`, a chain of additions: the gradient of reading x through
/// [`Dispatch::rows`]. dslots is [T·K, d], dx is [T, d].
pub fn scatter_dx(dslots: &[f32], dispatch: &Dispatch, dx: &mut [f32], start: Start, d: usize) {
    let (tokens, top_k) = (dispatch.tokens(), dispatch.top_k);
    assert_eq!(dslots.len(), tokens * top_k * d, "dslots is [T·K, d] with T = {tokens}, K = {top_k}, d = {d}");
    assert_eq!(dx.len(), tokens * d, "dx is [T, d] with T = {tokens}, d = {d}");
    let rows = par::rows_per_task(tokens, d * top_k);
    par::chunks_mut(dx, rows * d, |task, dx| {
        for (i, dx) in dx.chunks_exact_mut(d).enumerate() {
            let t = task * rows + i;
            let slots = &dispatch.slots[t * top_k..(t + 1) * top_k];
            // SAFETY: slots are below T·K, and dslots was checked to have a row of dx's length for each.
            unsafe { dispatch!(scatter_row(dslots: &[f32], slots: &[u32], dx: &mut [f32], start: Start)) };
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn scatter_row<L: Lanes>(dslots: &[f32], slots: &[u32], dx: &mut [f32], start: Start) {
    // SAFETY: rows of dslots are cut to the length of dx; instructions by this function's contract.
    unsafe {
        spans!(dx.len(), |s| {
            let mut sum = if start == Start::Zero { L::splat(0.0) } else { s.load::<L>(dx) };
            for &slot in slots {
                sum = sum.add(s.load(&dslots[slot as usize * dx.len()..(slot as usize + 1) * dx.len()]));
            }
            s.store(sum, dx);
        });
    }
}

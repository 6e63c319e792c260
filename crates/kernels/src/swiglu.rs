//! Gated linear units (N. Shazeer, 2020), element by element, any shape. Saved for backward: gate and up.
//!
//! | [`Gating`] | y |
//! |---|---|
//! | `Silu` | silu(gate)·up, silu(x) = x·sigmoid(x) |
//! | `Clamped` | (g·sigmoid(αg))·(u + 1), g = min(gate, limit), u = min(max(up, −limit), limit) (gpt-oss) |
//! | `Limited` | silu(g)·u, with g and u as in `Clamped` (DeepSeek-V4) |
//! | `GeluTanh` | gelu(gate)·up, gelu(x) = x·sigmoid(x·(2c + 2c·0.044715·x²)), c = √(2/π): the tanh form (Gemma) |
//!
//! Backward of `Silu`, with s = sigmoid(gate): dup = dy·(gate·s), dgate = (dy·up)·(s·(1 + gate·(1 − s))). Of `Clamped`,
//! with s = sigmoid(αg): dup = dy·(g·s), dgate = (dy·(u + 1))·(s·(1 + αg·(1 − s))), each 0 beyond its limit. Of
//! `Limited` as of `Silu` with g and u, each 0 beyond its limit. Of `GeluTanh`, with z the argument of s = sigmoid(z):
//! dup = dy·(gate·s), dgate = (dy·up)·(s·(1 + (1 − s)·gate·z′)), z′ = 2c + 6c·0.044715·gate².

use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut, TASK};
use crate::span::spans;

/// How a gate acts on what it gates.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Gating {
    /// SwiGLU.
    #[default]
    Silu,
    /// SwiGLU of gpt-oss: operands are limited, and `up` is one more.
    Clamped {
        /// Factor inside the sigmoid.
        alpha: f32,
        /// Greatest gate, and greatest size of `up`.
        limit: f32,
    },
    /// SwiGLU of DeepSeek-V4: operands are limited.
    Limited {
        /// Greatest gate, and greatest size of `up`.
        limit: f32,
    },
    /// GEGLU with the tanh form of GELU.
    GeluTanh,
}

/// 2·√(2/π) and that times 0.044715.
pub(crate) const GELU: [f32; 2] = [1.595_769, 0.071_354_814];

/// y of gate and up.
pub fn forward(gating: Gating, gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert_eq!(gate.len(), y.len(), "gate and y");
    assert_eq!(up.len(), y.len(), "up and y");
    let len = par::task_len(y.len());
    par::chunks_mut(y, len, |task, y| {
        let at = task * len;
        let (gate, up) = (&gate[at..at + y.len()], &up[at..at + y.len()]);
        // SAFETY: the pieces of gate and up were cut to the length of y.
        unsafe { dispatch!(forward_piece(gating: Gating, gate: &[f32], up: &[f32], y: &mut [f32])) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn forward_piece<L: Lanes>(gating: Gating, gate: &[f32], up: &[f32], y: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        match gating {
            Gating::Silu => spans!(y.len(), |s| {
                s.store(math::silu(s.load::<L>(gate)).mul(s.load(up)), y);
            }),
            Gating::Clamped { alpha, limit } => spans!(y.len(), |s| {
                let (gate, up) = (L::splat(limit).min(s.load::<L>(gate)), clamp(s.load::<L>(up), limit));
                let open = gate.mul(math::sigmoid(gate.mul(L::splat(alpha))));
                s.store(open.mul(up.add(L::splat(1.0))), y);
            }),
            Gating::Limited { limit } => spans!(y.len(), |s| {
                let (gate, up) = (L::splat(limit).min(s.load::<L>(gate)), clamp(s.load::<L>(up), limit));
                s.store(math::silu(gate).mul(up), y);
            }),
            Gating::GeluTanh => spans!(y.len(), |s| {
                let gate = s.load::<L>(gate);
                s.store(gate.mul(gelu_sigmoid(gate).0).mul(s.load(up)), y);
            }),
        }
    }
}

/// The numbers from −limit to limit that are nearest to x.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn clamp<L: Lanes>(x: L, limit: f32) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract. In this order limits let NaN pass.
    unsafe { L::splat(-limit).max(L::splat(limit).min(x)) }
}

/// sigmoid(z) of GELU, and z divided by x.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn gelu_sigmoid<L: Lanes>(x: L) -> (L, L) {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe {
        let ratio = x.mul(x).fma(L::splat(GELU[1]), L::splat(GELU[0]));
        (math::sigmoid(x.mul(ratio)), ratio)
    }
}

/// dgate and dup of dy, with forward's gate and up.
pub fn backward(gating: Gating, dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    let len = dy.len();
    assert_eq!((gate.len(), up.len()), (len, len), "gate and up have the length of dy");
    assert_eq!((dgate.len(), dup.len()), (len, len), "dgate and dup have the length of dy");
    let dup = SharedMut::new(dup);
    par::chunks_mut(dgate, TASK, |task, dgate| {
        let at = task * TASK;
        let end = at + dgate.len();
        let (dy, gate, up) = (&dy[at..end], &gate[at..end], &up[at..end]);
        // SAFETY: each piece is written by one task.
        let dup = unsafe { dup.slice(at, dgate.len()) };
        // SAFETY: all five pieces were cut to the length of dgate.
        unsafe {
            dispatch!(backward_piece(
                gating: Gating, dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]
            ))
        };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn backward_piece<L: Lanes>(
    gating: Gating,
    dy: &[f32],
    gate: &[f32],
    up: &[f32],
    dgate: &mut [f32],
    dup: &mut [f32],
) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let one = L::splat(1.0);
        match gating {
            Gating::Silu => spans!(dy.len(), |s| {
                let (dy, gate, up) = (s.load::<L>(dy), s.load::<L>(gate), s.load::<L>(up));
                let sigmoid = math::sigmoid(gate);
                let slope = sigmoid.mul(gate.fma(one.sub(sigmoid), one));
                s.store(dy.mul(gate.mul(sigmoid)), dup);
                s.store(dy.mul(up).mul(slope), dgate);
            }),
            Gating::Clamped { alpha, limit } => spans!(dy.len(), |s| {
                let (dy, gate, up) = (s.load::<L>(dy), s.load::<L>(gate), s.load::<L>(up));
                let inner = L::splat(limit).min(gate);
                let scaled = inner.mul(L::splat(alpha));
                let sigmoid = math::sigmoid(scaled);
                let slope = sigmoid.mul(scaled.fma(one.sub(sigmoid), one));
                let of_up = dy.mul(inner.mul(sigmoid));
                let of_gate = dy.mul(clamp(up, limit).add(one)).mul(slope);
                s.store(within(of_up, up, limit), dup);
                s.store(below(of_gate, gate, limit), dgate);
            }),
            Gating::Limited { limit } => spans!(dy.len(), |s| {
                let (dy, gate, up) = (s.load::<L>(dy), s.load::<L>(gate), s.load::<L>(up));
                let inner = L::splat(limit).min(gate);
                let sigmoid = math::sigmoid(inner);
                let slope = sigmoid.mul(inner.fma(one.sub(sigmoid), one));
                let of_gate = dy.mul(clamp(up, limit)).mul(slope);
                s.store(within(dy.mul(inner.mul(sigmoid)), up, limit), dup);
                s.store(below(of_gate, gate, limit), dgate);
            }),
            Gating::GeluTanh => spans!(dy.len(), |s| {
                let (dy, gate, up) = (s.load::<L>(dy), s.load::<L>(gate), s.load::<L>(up));
                let (sigmoid, _) = gelu_sigmoid(gate);
                let steep = gate.mul(gate).fma(L::splat(3.0 * GELU[1]), L::splat(GELU[0]));
                let slope = sigmoid.mul(gate.mul(steep).fma(one.sub(sigmoid), one));
                s.store(dy.mul(gate.mul(sigmoid)), dup);
                s.store(dy.mul(up).mul(slope), dgate);
            }),
        }
    }
}

/// Those of `values` of which `x` is at most `limit`; 0 for the others.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn below<L: Lanes>(values: L, x: L, limit: f32) -> L {
    // SAFETY: no memory is touched but arrays; instructions by this function's contract.
    unsafe {
        let (values, x) = (values.to_array(), x.to_array());
        let kept: [f32; 16] = std::array::from_fn(|i| if x[i] <= limit { values[i] } else { 0.0 });
        L::load(kept.as_ptr())
    }
}

/// Those of `values` of which `x` is at most `limit` in size; 0 for the others.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn within<L: Lanes>(values: L, x: L, limit: f32) -> L {
    // SAFETY: no memory is touched but arrays; instructions by this function's contract.
    unsafe {
        let (values, x) = (values.to_array(), x.to_array());
        let kept: [f32; 16] = std::array::from_fn(|i| if x[i].abs() <= limit { values[i] } else { 0.0 });
        L::load(kept.as_ptr())
    }
}

//! SwiGLU (N. Shazeer, 2020): y = silu(gate)·up, silu(x) = x·sigmoid(x). Element by element, any shape.
//! Saved for backward: gate and up. Backward, with s = sigmoid(gate):
//! dup = dy·(gate·s), dgate = (dy·up)·(s·(1 + gate·(1 − s))).

use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut, TASK};
use crate::span::spans;

/// y of gate and up.
pub fn forward(gate: &[f32], up: &[f32], y: &mut [f32]) {
    assert_eq!(gate.len(), y.len(), "gate and y");
    assert_eq!(up.len(), y.len(), "up and y");
    let len = par::task_len(y.len());
    par::chunks_mut(y, len, |task, y| {
        let at = task * len;
        let (gate, up) = (&gate[at..at + y.len()], &up[at..at + y.len()]);
        // SAFETY: the pieces of gate and up were cut to the length of y.
        unsafe { dispatch!(forward_piece(gate: &[f32], up: &[f32], y: &mut [f32])) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn forward_piece<L: Lanes>(gate: &[f32], up: &[f32], y: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        spans!(y.len(), |s| {
            s.store(math::silu(s.load::<L>(gate)).mul(s.load(up)), y);
        });
    }
}

/// dgate and dup of dy, with forward's gate and up.
pub fn backward(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
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
        unsafe { dispatch!(backward_piece(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32])) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and all slices have one length.
#[inline(always)]
unsafe fn backward_piece<L: Lanes>(dy: &[f32], gate: &[f32], up: &[f32], dgate: &mut [f32], dup: &mut [f32]) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        let one = L::splat(1.0);
        spans!(dy.len(), |s| {
            let (dy, gate, up) = (s.load::<L>(dy), s.load::<L>(gate), s.load::<L>(up));
            let sigmoid = math::sigmoid(gate);
            let slope = sigmoid.mul(gate.fma(one.sub(sigmoid), one));
            s.store(dy.mul(gate.mul(sigmoid)), dup);
            s.store(dy.mul(up).mul(slope), dgate);
        });
    }
}

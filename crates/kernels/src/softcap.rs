//! Soft caps: `y = cap·tanh(x / cap)`, which keeps x below `cap` in size and changes small x little, of attention's
//! scores and of logits. Its slope is 1 − tanh². Source: Gemma 2 report (arXiv 2408.00118), §2.

use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::spans;

/// `x = cap·tanh(x / cap)`.
pub fn forward(cap: f32, x: &mut [f32]) {
    let len = par::task_len(x.len());
    par::chunks_mut(x, len, |_, x| {
        // SAFETY: spans lie in the piece.
        unsafe { dispatch!(forward_piece(cap: f32, x: &mut [f32])) };
    });
}

/// As [`forward`]; `slopes`, of which there are as many, get ∂y/∂x.
pub fn forward_with_slopes(cap: f32, x: &mut [f32], slopes: &mut [f32]) {
    assert_eq!(x.len(), slopes.len(), "x and slopes");
    let slopes = SharedMut::new(slopes);
    let len = par::task_len(x.len());
    par::chunks_mut(x, len, |task, x| {
        // SAFETY: each piece is written by one task.
        let slopes = unsafe { slopes.slice(task * len, x.len()) };
        // SAFETY: both pieces have one length.
        unsafe { dispatch!(slopes_piece(cap: f32, x: &mut [f32], slopes: &mut [f32])) };
    });
}

/// Backward: `d = d·slopes`.
pub fn backward(slopes: &[f32], d: &mut [f32]) {
    assert_eq!(d.len(), slopes.len(), "d and slopes");
    let len = par::task_len(d.len());
    par::chunks_mut(d, len, |task, d| {
        let slopes = &slopes[task * len..][..d.len()];
        d.iter_mut().zip(slopes).for_each(|(d, slope)| *d *= slope);
    });
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn forward_piece<L: Lanes>(cap: f32, x: &mut [f32]) {
    spans!(x.len(), |s| {
        // SAFETY: the span lies in x; instructions by this function's contract.
        unsafe { s.store(capped(tanh_of(s.load::<L>(x), cap), cap), x) };
    });
}

/// # Safety
/// The machine has the instruction set of `L`, and both slices have one length.
#[inline(always)]
unsafe fn slopes_piece<L: Lanes>(cap: f32, x: &mut [f32], slopes: &mut [f32]) {
    spans!(x.len(), |s| {
        // SAFETY: the span lies in both; instructions by this function's contract.
        unsafe {
            let tanh = tanh_of(s.load::<L>(x), cap);
            s.store(slope(tanh), slopes);
            s.store(capped(tanh, cap), x);
        }
    });
}

/// From products q·k to capped scores.
///
/// # Safety
/// The machine has the instruction set of `L`; the row's length is a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn cap_products<L: Lanes>(row: &mut [f32], scale: f32, cap: f32) {
    for s in row.as_chunks_mut::<16>().0 {
        // SAFETY: `as_chunks_mut` gives whole vectors; instructions by this function's contract.
        unsafe { capped(tanh_of(L::load(s.as_ptr()).mul(L::splat(scale)), cap), cap).store(s.as_mut_ptr()) };
    }
}

/// From products q·k and g·v of a row to weights p and gradients ds of the products.
///
/// # Safety
/// The machine has the instruction set of `L`; both rows have one length, a multiple of 16.
#[inline(always)]
pub(crate) unsafe fn weight_gradients<L: Lanes>(
    p: &mut [f32],
    ds: &mut [f32],
    scale: f32,
    cap: f32,
    (max, inverse): (f32, f32),
    delta: f32,
) {
    for (p, ds) in p.as_chunks_mut::<16>().0.iter_mut().zip(ds.as_chunks_mut::<16>().0) {
        // SAFETY: whole vectors; instructions by this function's contract.
        unsafe {
            let tanh = tanh_of(L::load(p.as_ptr()).mul(L::splat(scale)), cap);
            let weight = math::exp(capped(tanh, cap).sub(L::splat(max))).mul(L::splat(inverse));
            weight.store(p.as_mut_ptr());
            let difference = L::load(ds.as_ptr()).sub(L::splat(delta));
            weight.mul(difference).mul(L::splat(scale)).mul(slope(tanh)).store(ds.as_mut_ptr());
        }
    }
}

/// tanh(x / cap).
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn tanh_of<L: Lanes>(x: L, cap: f32) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { math::tanh(x.div(L::splat(cap))) }
}

/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn capped<L: Lanes>(tanh: L, cap: f32) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { tanh.mul(L::splat(cap)) }
}

/// 1 − tanh².
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn slope<L: Lanes>(tanh: L) -> L {
    // SAFETY: no memory is touched; instructions by this function's contract.
    unsafe { L::splat(0.0).sub(tanh).fma(tanh, L::splat(1.0)) }
}

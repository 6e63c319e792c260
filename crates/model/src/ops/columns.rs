//! Columns of a matrix taken apart and put side by side.
//!
//! `split`: x `[T, M + N]` to `[T, M]` and `[T, N]`. `beside`: `[T, M]` and `[T, N]` to `[T, M + N]`. Each is the
//! other's backward part. Saved: nothing.

use crate::tape::{GradientOf, Graph, Var};
use wels_device::{Device, Tensor};

/// The first `m` columns of `x[T, M + N]`, and the others.
pub fn split(g: &mut Graph, x: Var, m: usize) -> (Var, Var) {
    let dx = x.gradient();
    let (mut left, mut right) = (g.tensor_of(x.dtype(), x.rows(), m), g.tensor_of(x.dtype(), x.rows(), x.cols() - m));
    take_apart(g.device(), &x, &mut left, &mut right);
    let right = g.variable(right);
    let d_right = right.gradient();
    let left = g.record("split", left, move |back, d_left| {
        let d_right = back.take(d_right).expect("both halves of a split are used");
        let mut whole = back.like(dx);
        put_together(back.device(), &d_left, &d_right, &mut whole);
        back.give(dx, whole);
    });
    (left, right)
}

/// `[left | right]`.
pub fn beside(g: &mut Graph, left: Var, right: Var) -> Var {
    let halves: [GradientOf; 2] = [left.gradient(), right.gradient()];
    let mut whole = g.tensor_of(left.dtype(), left.rows(), left.cols() + right.cols());
    put_together(g.device(), &left, &right, &mut whole);
    g.record("beside", whole, move |back, d_whole| {
        let [mut d_left, mut d_right] = halves.map(|half| back.like(half));
        take_apart(back.device(), &d_whole, &mut d_left, &mut d_right);
        back.give(halves[0], d_left);
        back.give(halves[1], d_right);
    })
}

fn take_apart(device: &dyn Device, whole: &Tensor, left: &mut Tensor, right: &mut Tensor) {
    let (m, n) = (left.cols(), right.cols());
    device.copy_columns(whole, 0, left, 0, m);
    device.copy_columns(whole, m, right, 0, n);
}

fn put_together(device: &dyn Device, left: &Tensor, right: &Tensor, whole: &mut Tensor) {
    let (m, n) = (left.cols(), right.cols());
    device.copy_columns(left, 0, whole, 0, m);
    device.copy_columns(right, 0, whole, m, n);
}

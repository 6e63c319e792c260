//! Columns of a matrix taken apart and put side by side.
//!
//! `split`: x `[T, M + N]` to `[T, M]` and `[T, N]`. `beside`: `[T, M]` and `[T, N]` to `[T, M + N]`. Each is the
//! other's backward part. Saved: nothing.

use crate::tape::{GradientOf, Graph, Var};
use crate::tensor::Tensor;
use wels_kernels::elementwise::{self, Columns};

/// The first `m` columns of `x[T, M + N]`, and the others.
pub fn split(g: &mut Graph, x: Var, m: usize) -> (Var, Var) {
    let dx = x.gradient();
    let (mut left, mut right) = (g.tensor(x.rows(), m), g.tensor(x.rows(), x.cols() - m));
    take_apart(&x, &mut left, &mut right);
    let right = g.variable(right);
    let d_right = right.gradient();
    let left = g.record("split", left, move |back, d_left| {
        let d_right = back.take(d_right).expect("both halves of a split are used");
        let mut whole = back.tensor(dx.rows, dx.cols);
        put_together(&d_left, &d_right, &mut whole);
        back.give(dx, whole);
    });
    (left, right)
}

/// `[left | right]`.
pub fn beside(g: &mut Graph, left: Var, right: Var) -> Var {
    let halves: [GradientOf; 2] = [left.gradient(), right.gradient()];
    let mut whole = g.tensor(left.rows(), left.cols() + right.cols());
    put_together(&left, &right, &mut whole);
    g.record("beside", whole, move |back, d_whole| {
        let [mut d_left, mut d_right] = halves.map(|half| back.tensor(half.rows, half.cols));
        take_apart(&d_whole, &mut d_left, &mut d_right);
        back.give(halves[0], d_left);
        back.give(halves[1], d_right);
    })
}

fn take_apart(whole: &Tensor, left: &mut Tensor, right: &mut Tensor) {
    let at = |stride, offset| Columns { stride, offset };
    let (stride, m, n, rows) = (whole.cols(), left.cols(), right.cols(), whole.rows());
    elementwise::copy_columns(whole, at(stride, 0), left, at(m, 0), m, rows);
    elementwise::copy_columns(whole, at(stride, m), right, at(n, 0), n, rows);
}

fn put_together(left: &Tensor, right: &Tensor, whole: &mut Tensor) {
    let at = |stride, offset| Columns { stride, offset };
    let (stride, m, n, rows) = (whole.cols(), left.cols(), right.cols(), whole.rows());
    elementwise::copy_columns(left, at(m, 0), whole, at(stride, 0), m, rows);
    elementwise::copy_columns(right, at(n, 0), whole, at(stride, m), n, rows);
}

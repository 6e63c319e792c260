//! GroupNorm of pictures and what follows it: formula, order of sums and backward part in `wels_kernels::group_norm`.
//!
//! x, y `[P·N, C]`, w, b `[C]`. Saved: x, and two numbers a picture and column.

use crate::ops::pictures;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::GroupNorm;

/// `y[P·N, C]` of `x[P·N, C]`.
///
/// # Panics
/// If the device has no operations of images.
pub fn group_norm(g: &mut Graph, x: &Var, w: Weight, b: Weight, of: GroupNorm) -> Var {
    assert_eq!((x.cols(), x.cols()), (w.cols, b.cols), "group_norm: columns of x, w and b");
    let mut y = g.tensor(x.rows(), x.cols());
    let mut stats = g.tensor(2 * of.pictures, x.cols());
    pictures(g.device()).group_norm(of, x, g.weight(w), g.weight(b), &mut y, &mut stats);
    let x = x.clone();
    g.record("group_norm", y, move |back, dy| {
        let device = back.device();
        let weights = [back.weight(w), back.weight(b)];
        let mut dx = back.like(x.gradient());
        back.parameters(&[w, b], |gradients| {
            let [dw, db]: [_; 2] = gradients.try_into().expect("two gradients of two");
            pictures(device).group_norm_backward(of, &dy, &x, weights, &stats, &mut dx, dw, db);
        });
        back.give(x.gradient(), dx);
    })
}

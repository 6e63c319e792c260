//! Each pixel of pictures as two by two: nearest up-sampling.
//!
//! x `[P·side², C]`, y `[P·4·side², C]`. Saved: nothing. Backward: the sum of the four.

use crate::ops::pictures;
use crate::tape::{Graph, Var};

/// `y` of pictures of `side` pixels a side.
///
/// # Panics
/// If the device has no operations of images.
pub fn double(g: &mut Graph, x: &Var, side: usize) -> Var {
    let mut y = g.tensor(4 * x.rows(), x.cols());
    pictures(g.device()).double(side, x, &mut y);
    let dx = x.gradient();
    g.record("double", y, move |back, dy| {
        let mut d = back.like(dx);
        pictures(back.device()).double_backward(side, &dy, &mut d);
        back.give(dx, d);
    })
}

//! LayerNorm: `y = (x − mean)·rstd ⊙ w + b`, over each row (Ba, Kiros and Hinton 2016).
//!
//! x, y `[R, D]`, w, b `[D]`. Saved: x. Backward: see `wels_kernels::image_gradients`; dw and db are chains over the
//! rows.

use crate::params::{Weight, Wiring};
use crate::tape::{Graph, Var};
use wels_device::LayerNormOperands;

/// Weight and bias, `[1, D]` each.
#[derive(Clone, Copy, Debug)]
pub struct Affine {
    pub w: Weight,
    pub b: Weight,
}

impl Affine {
    /// The parameters `NAME.weight` and `NAME.bias`.
    pub(crate) fn named(wiring: &mut Wiring, name: &str) -> Affine {
        Affine { w: wiring.weight(&format!("{name}.weight")), b: wiring.weight(&format!("{name}.bias")) }
    }
}

/// `y[R, D]` of `x[R, D]`.
///
/// # Panics
/// If x is not as wide as w, or the device has no operations of images.
pub fn layer_norm(g: &mut Graph, x: &Var, Affine { w, b }: Affine, eps: f32) -> Var {
    assert_eq!(x.cols(), w.cols, "layer_norm: x is [{}, {}], w is [{}]", x.rows(), x.cols(), w.cols);
    let mut y = g.tensor(x.rows(), x.cols());
    let images = g.device().images().expect("a device with the operations of images");
    images.layer_norm(x, g.weight(w), g.weight(b), eps, &mut y);
    let x = x.clone();
    g.record("layer_norm", y, move |back, dy| {
        let (images, weight) = (back.device().images().expect("the device of the forward pass"), back.weight(w));
        let (mut dx, start) = back.begin(x.gradient());
        back.parameters(&[w, b], |gradients| {
            let [dw, db] = gradients.try_into().unwrap_or_else(|_| unreachable!("two gradients of two parameters"));
            let of = LayerNormOperands { dy: &dy, x: &x, w: weight, eps };
            images.layer_norm_backward(of, [(&mut dx, start), dw, db]);
        });
        back.put(x.gradient(), dx);
    })
}

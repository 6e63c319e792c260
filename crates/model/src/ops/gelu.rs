//! GELU: `y = x·Φ(x)` (Hendrycks and Gimpel 2016).
//!
//! x, y of any shape. Saved: x. Backward: see `wels_kernels::image_gradients`.

use crate::tape::{Graph, Var};

/// `x·Φ(x)`.
///
/// # Panics
/// If the device has no operations of images.
pub fn gelu(g: &mut Graph, x: &Var) -> Var {
    let mut y = g.tensor(x.rows(), x.cols());
    g.device().images().expect("a device with the operations of images").gelu(x, &mut y);
    let x = x.clone();
    g.record("gelu", y, move |back, dy| {
        let images = back.device().images().expect("the device of the forward pass");
        back.accumulate(x.gradient(), |dx, start| images.gelu_backward(&dy, &x, (dx, start)));
    })
}

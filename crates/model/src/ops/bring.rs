//! A variable of another device: the same values where the pass computes now; on one device nothing happens.
//!
//! x, y `[T, N]`. The values cross by the host. For inference alone: nothing is saved.

use crate::tape::{Graph, Var};
use wels_device::Dtype;

/// Activations, kept as this device keeps them.
pub fn bring(g: &mut Graph, x: Var) -> Var {
    let dtype = g.activations();
    bring_as(g, x, dtype)
}

/// What is f32 on every device: router logits.
pub fn bring_f32(g: &mut Graph, x: Var) -> Var {
    bring_as(g, x, Dtype::F32)
}

/// # Panics
/// If a pass records whose parts are on several devices.
fn bring_as(g: &mut Graph, x: Var, dtype: Dtype) -> Var {
    if std::ptr::addr_eq(&raw const **x.device(), g.device()) {
        return x;
    }
    assert!(g.recording().is_none(), "a model on several devices is trained");
    let mut here = g.tensor_of(dtype, x.rows(), x.cols());
    here.set(0, &x.to_host());
    g.variable(here)
}

//! The weighted sum of what a token's experts computed, on top of the shared expert:
//! `y[t] = base[t] + Σ_k weights[t, k] · h[slot(t, k)]`, a chain in expert order.
//!
//! h `[S, D]`, weights `[T, K]`, base and y `[T, D]`. Saved: h and weights. Backward: `dh[s] = weight · dy[t]`,
//! `dweights[t, k] = dy[t] · h[s]`, `dbase = dy`. Source: DeepSeek-V3 report, eq. 12.

use crate::tape::{Graph, Var};
use std::sync::Arc;
use wels_device::Dispatch;

/// `y[T, D]` from the experts' results `h[S, D]`.
pub fn combine(g: &mut Graph, h: Var, weights: Var, base: Option<Var>, dispatch: &Arc<Dispatch>) -> Var {
    let d = h.cols();
    let mut y = g.tensor_of(h.dtype(), weights.rows(), d);
    g.device().combine(&h, &weights, dispatch, base.as_deref(), &mut y);
    let d_base = base.map(|base| base.gradient());
    let dispatch = dispatch.clone();
    g.record("combine", y, move |back, dy| {
        let (mut dh, mut d_weights) = (back.like(h.gradient()), back.like(weights.gradient()));
        back.device().combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut d_weights);
        back.give(h.gradient(), dh);
        back.give(weights.gradient(), d_weights);
        if let Some(d_base) = d_base {
            back.give(d_base, dy);
        }
    })
}

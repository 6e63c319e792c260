//! RMSNorm: `y = w ⊙ x / √(mean(x²) + ε)`, in some families with 1 + w in place of w.
//!
//! x, y `[T, D]`, w `[D]`. The sum 1 + w is made anew in each pass: kept, it would lose bits of a small w.
//! Saved: x and `1/√(mean(x²) + ε)`, one number a token.
//! Backward: see `wels_kernels::norm`; dw is a chain over the tokens. Source: Zhang and Sennrich 2019, eq. 4.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Ids, Start, Tensor};

/// `y[T, D] = rms_norm(x[T, D]) ⊙ w[D]`.
pub fn rms_norm(g: &mut Graph, x: &Var, w: Weight, eps: f32) -> Var {
    let d = w.cols;
    assert_eq!(x.cols(), d, "rms_norm: x is [{}, {}], w is [{d}]", x.rows(), x.cols());
    let mut y = g.tensor_of(x.dtype(), x.rows(), d);
    let mut rstd = g.tensor(x.rows(), 1);
    let one_more = one_more(g, w);
    g.device().rms_norm(x, one_more.as_ref().unwrap_or(g.weight(w)), eps, &mut y, &mut rstd);
    let x = x.clone();
    g.record("rms_norm", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let weight = one_more.as_ref().unwrap_or(back.weight(w));
        let (mut dx, dx_start) = back.begin(x.gradient());
        let mut spare = back.tensor(1, w.cols);
        back.parameter_if_any(w, |dw| {
            let dw = dw.unwrap_or((&mut spare, Start::Zero));
            device.rms_norm_backward(&dy, &x, weight, &rstd, &sequences.starts, (&mut dx, dx_start), dw);
        });
        back.put(x.gradient(), dx);
    })
}

/// 1 + w, if that is what the norm multiplies with.
fn one_more(g: &Graph, w: Weight) -> Option<Tensor> {
    if !w.one_more {
        return None;
    }
    let mut sum = g.tensor(1, w.cols);
    g.device().fill(&mut sum, 1.0);
    g.device().add(g.weight(w), &mut sum);
    Some(sum)
}

/// [`rms_norm`] of each of the `heads` equal parts of a row on its own, all with one weight: `y[T, H·d]` of `x[T, H·d]`
/// and `w[d]`. Saved: x, and one number a token and head; dw is a chain over the tokens and, within one, its heads.
pub fn rms_norm_heads(g: &mut Graph, x: Var, heads: usize, w: Weight, eps: f32) -> Var {
    let (tokens, cols, d) = (x.rows(), x.cols(), w.cols);
    assert_eq!(cols, heads * d, "rms_norm_heads: x is [{tokens}, {cols}], w is [{d}] for {heads} heads");
    let dx = x.gradient();
    let x = x.into_value().reshaped(tokens * heads, d);
    let mut y = g.tensor_of(x.dtype(), tokens * heads, d);
    let mut rstd = g.tensor(tokens * heads, 1);
    let one_more = one_more(g, w);
    g.device().rms_norm(&x, one_more.as_ref().unwrap_or(g.weight(w)), eps, &mut y, &mut rstd);
    g.record("rms_norm_heads", y.reshaped(tokens, cols), move |back, dy| {
        let (device, weight) = (back.device(), one_more.as_ref().unwrap_or(back.weight(w)));
        let rows: Ids = back.sequences().starts.iter().map(|start| start * heads as u32).collect::<Vec<_>>().into();
        let dy = dy.reshaped(tokens * heads, d);
        let (whole, dx_start) = back.begin(dx);
        let mut parts = whole.reshaped(tokens * heads, d);
        let mut spare = back.tensor(1, w.cols);
        back.parameter_if_any(w, |dw| {
            let dw = dw.unwrap_or((&mut spare, Start::Zero));
            device.rms_norm_backward(&dy, &x, weight, &rstd, &rows, (&mut parts, dx_start), dw);
        });
        back.put(dx, parts.reshaped(tokens, cols));
    })
}

/// [`rms_norm_heads`] without a weight: `y[T, H·d]` of `x[T, H·d]`.
pub fn plain_norm_heads(g: &mut Graph, x: Var, heads: usize, eps: f32) -> Var {
    let (tokens, cols) = (x.rows(), x.cols());
    let (rows, d) = (tokens * heads, cols / heads);
    assert_eq!(cols, heads * d, "plain_norm_heads: x is [{tokens}, {cols}] for {heads} heads");
    let dx = x.gradient();
    let x = x.into_value().reshaped(rows, d);
    let mut y = g.tensor_of(x.dtype(), rows, d);
    let (mut rstd, mut ones) = (g.tensor(rows, 1), g.tensor(1, d));
    g.device().fill(&mut ones, 1.0);
    g.device().rms_norm(&x, &ones, eps, &mut y, &mut rstd);
    g.record("norm", y.reshaped(tokens, cols), move |back, dy| {
        let (device, sequences) = (back.device(), Ids::from(vec![0, rows as u32]));
        let dy = dy.reshaped(rows, d);
        let (whole, start) = back.begin(dx);
        let mut parts = whole.reshaped(rows, d);
        let mut spare = back.tensor(1, d);
        let (into, of_ones) = ((&mut parts, start), (&mut spare, Start::Zero));
        device.rms_norm_backward(&dy, &x, &ones, &rstd, &sequences, into, of_ones);
        back.put(dx, parts.reshaped(tokens, cols));
    })
}

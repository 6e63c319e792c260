//! Linear maps of groups of columns: `y_i = x_i · w_iᵀ` for each of G equal parts x_i of a row.
//!
//! x `[T, G·K]`, w `[G·N, K]` with a matrix for each group, y `[T, G·N]`. Saved: x. Backward as of `linear`, group by
//! group. Source: DeepSeek-V4 report, §2.3.1, "grouped output projection".

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Groups, Precision, Start, Tensor};

/// `y[T, G·N]`, in f32.
pub fn grouped_linear(g: &mut Graph, x: Var, w: Weight, groups: usize) -> Var {
    let (tokens, k, n) = (x.rows(), w.cols, w.rows / groups);
    assert_eq!(x.cols(), groups * k, "grouped_linear: x is [{tokens}, {}], w is [{}, {k}]", x.cols(), w.rows);
    let device = g.device();
    let mut parts = g.tensor(groups * tokens, k);
    device.split_heads(&x, groups, 0, k, &mut parts);
    let dx = x.gradient();
    drop(x);
    let mut results = g.tensor(groups * tokens, n);
    let product = &mut [(g.stored(w), &mut results)];
    device.grouped(Precision::F32, &parts, Groups::Equal(groups), product);
    let mut y = g.tensor(tokens, groups * n);
    device.join_heads(&results, groups, &mut y);
    g.record("grouped_linear", y, move |back, dy| {
        let (device, sequences) = (back.device(), back.sequences());
        let dispatch = device.in_order(&vec![tokens as u32; groups]);
        let mut d_results = back.tensor(groups * tokens, n);
        device.split_heads(&dy, groups, 0, n, &mut d_results);
        let mut d_parts: Tensor = back.tensor(groups * tokens, k);
        let terms = [(&d_results, back.context.params.stored(w))];
        device.grouped_dx(Precision::F32, &dispatch, &terms, (&mut d_parts, Start::Zero));
        back.parameter(w, |dw, start| {
            let gradients = &mut [(&d_results, (dw, start))];
            device.grouped_dw(Precision::F32, &parts, Groups::Slots(&dispatch), &sequences.starts, gradients);
        });
        let mut whole = back.like(dx);
        device.join_heads(&d_parts, groups, &mut whole);
        back.give(dx, whole);
    })
}

//! Residual streams and what mixes them (manifold-constrained hyper-connections).
//!
//! x `[T, n·D]`: n streams side by side. raw `[T, M]` is a linear map of the normed streams, weights `[T, M]` what
//! `wels_kernels::streams` makes of it with a base `[M]` and a scale for each part. `collapse` is what a layer reads, y
//! `[T, D]`; `expand` joins what it gives, `[T, D]`, to the streams. Saved: x, y, raw and weights. Source: DeepSeek-V4
//! report, §2.2; Xie et al. 2026.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Compressed, Device, Mixing};

/// # Panics
/// If the device has none, which opening a model has refused.
pub(super) fn compressed(device: &dyn Device) -> &dyn Compressed {
    device.compressed().expect("a device with compressed keys")
}

/// `[T, n·D]`: x in each stream.
pub fn spread_streams(g: &mut Graph, x: &Var, n: usize) -> Var {
    let d = x.cols();
    let mut streams = g.tensor_of(x.dtype(), x.rows(), n * d);
    (0..n).for_each(|i| g.device().copy_columns(x, 0, &mut streams, i * d, d));
    let dx = x.gradient();
    g.record("streams", streams, move |back, d_streams| {
        for i in 0..n {
            let mut own = back.like(dx);
            back.device().copy_columns(&d_streams, i * d, &mut own, 0, d);
            back.give(dx, own);
        }
    })
}

/// `weights[T, M]` of raw `[T, M]`.
pub fn weigh_streams(g: &mut Graph, of: Mixing, raw: Var, base: Weight, scale: Weight) -> Var {
    let (rows, width, scales) = (raw.rows(), of.width(), of.scales());
    assert_eq!((raw.cols(), base.cols, scale.cols), (width, width, scales), "weights of {of:?}");
    let mut weights = g.tensor(rows, width);
    compressed(g.device()).weigh_streams(of, &raw, g.weight(base), g.weight(scale), &mut weights);
    g.record("stream_weights", weights, move |back, d_weights| {
        let (device, sequences) = (back.device(), back.sequences());
        let operands = [&*raw, back.weight(base), back.weight(scale)];
        let [mut d_raw, mut d_base, mut d_scale] = [width, width, scales].map(|cols| back.tensor(rows, cols));
        let gradients = [&mut d_raw, &mut d_base, &mut d_scale];
        compressed(device).weigh_streams_backward(of, operands, &d_weights, gradients);
        for (weight, terms) in [(base, d_base), (scale, d_scale)] {
            back.parameter(weight, |d, start| device.bias_backward(&terms, &sequences.starts, d, start));
        }
        back.give(raw.gradient(), d_raw);
    })
}

/// `y[T, D]`: what a layer reads of the streams.
pub fn collapse(g: &mut Graph, of: Mixing, x: &Var, weights: &Var) -> Var {
    let mut y = g.tensor(x.rows(), x.cols() / of.streams);
    compressed(g.device()).collapse(of, x, weights, &mut y);
    let (x, weights) = (x.clone(), weights.clone());
    g.record("collapse", y, move |back, dy| {
        let device = compressed(back.device());
        let (mut dx, start) = back.begin(x.gradient());
        let mut d_weights = back.like(weights.gradient());
        device.collapse_backward(of, &dy, [&x, &weights], (&mut dx, start), &mut d_weights);
        back.put(x.gradient(), dx);
        back.give(weights.gradient(), d_weights);
    })
}

/// `[T, n·D]`: the streams behind a layer that gives `y`.
pub fn expand(g: &mut Graph, of: Mixing, x: &Var, y: Var, weights: &Var) -> Var {
    let mut out = g.tensor(x.rows(), x.cols());
    compressed(g.device()).expand(of, x, &y, weights, &mut out);
    let (x, weights) = (x.clone(), weights.clone());
    g.record("expand", out, move |back, d_out| {
        let device = compressed(back.device());
        let (mut dx, start) = back.begin(x.gradient());
        let [mut dy, mut d_weights] = [&y, &weights].map(|var| back.like(var.gradient()));
        device.expand_backward(of, &d_out, [&x, &y, &weights], (&mut dx, start), &mut dy, &mut d_weights);
        back.put(x.gradient(), dx);
        back.give(y.gradient(), dy);
        back.give(weights.gradient(), d_weights);
    })
}

//! Convolution of pictures: `y = windows(x)·wᵀ + b`, or of single pixels `y = x·wᵀ + b`.
//!
//! x `[P·side², C]`, w `[N, 9·C]` (a pixel of the window after the other) or `[N, C]`, b `[N]`, y `[P·side_out², N]`.
//! Saved: x. `dx` is a product of windows of dy with the weights turned over (`wels_kernels::windows`). For
//! `dw = dyᵀ·windows(x)` windows are gathered in strips of rows, which changes no chain: dw is a chain over the rows
//! that each strip goes on with.

use crate::ops::pictures;
use crate::params::Weight;
use crate::tape::{Backward, Graph, Var};
use wels_device::{Ids, Tensor, Windows};

/// Windows that are there at a time.
const STRIP: usize = 1024;

/// What to convolve with.
#[derive(Clone, Copy, Debug)]
pub struct Convolution {
    pub w: Weight,
    pub b: Weight,
    /// None: of single pixels.
    pub windows: Option<Windows>,
}

/// `y[P·side_out², N]` of `x[P·side², C]`.
///
/// # Panics
/// If the device has no operations of images, or the shapes do not fit.
pub fn conv(g: &mut Graph, x: &Var, of: Convolution) -> Var {
    let Convolution { w, b, windows } = of;
    let taps = if windows.is_some() { 9 } else { 1 };
    assert_eq!(w.cols, taps * x.cols(), "conv: x is [{}, {}], w [{}, {}]", x.rows(), x.cols(), w.rows, w.cols);
    let (device, precision) = (g.device(), g.precision());
    let mut y = g.tensor(windows.map_or(x.rows(), |windows| windows.outputs()), w.rows);
    match windows {
        None => device.linear(precision, x, &mut [(g.stored(w), &mut y)]),
        Some(windows) => pictures(device).conv(precision, windows, x, g.weight(w), &mut y),
    }
    device.add_bias(g.weight(b), &mut y);
    let x = x.clone();
    g.record("conv", y, move |back, dy| {
        let (device, all) = (back.device(), Ids::from(vec![0, dy.rows() as u32]));
        back.parameter(b, |db, start| device.bias_backward(&dy, &all, db, start));
        match windows {
            None => {
                back.parameter(w, |dw, start| device.linear_dw(precision, &x, &all, &mut [(&dy, (dw, start))]));
                let weight = back.context.params.stored(w);
                back.accumulate(x.gradient(), |dx, start| {
                    device.linear_dx(precision, &[(&dy, weight)], (dx, start));
                });
            }
            Some(windows) => {
                weights_backward(back, of, windows, &x, &dy);
                if x.gradient().is_wanted() {
                    let dx = pixels_backward(back, w, windows, &dy);
                    back.give(x.gradient(), dx);
                }
            }
        }
    })
}

fn weights_backward(
    back: &mut Backward,
    Convolution { w, .. }: Convolution,
    windows: Windows,
    x: &Tensor,
    dy: &Tensor,
) {
    let (device, precision) = (back.device(), back.context.execution.precision);
    for first in (0..dy.rows()).step_by(STRIP) {
        let rows = STRIP.min(dy.rows() - first);
        let (mut gathered, mut part) = (back.tensor(rows, w.cols), back.tensor(rows, w.rows));
        pictures(device).windows(windows, x, first, &mut gathered);
        device.copy_rows(dy, first, &mut part, 0, rows);
        let one = Ids::from(vec![0, rows as u32]);
        back.parameter(w, |dw, start| device.linear_dw(precision, &gathered, &one, &mut [(&part, (dw, start))]));
    }
}

fn pixels_backward(back: &Backward, w: Weight, windows: Windows, dy: &Tensor) -> Tensor {
    let (device, precision, channels) = (back.device(), back.context.execution.precision, w.cols / 9);
    let mut turned = back.tensor(channels, 9 * w.rows);
    pictures(device).turn_windows(back.weight(w), &mut turned);
    let mut dx = back.tensor(windows.inputs(), channels);
    pictures(device).conv_dx(precision, windows, dy, &turned, &mut dx);
    dx
}

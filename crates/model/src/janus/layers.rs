//! The layers of the towers that see and draw. A picture inside them is `[pixels, channels]`, row by row of a square,
//! so a convolution of one pixel is a linear map, and one of more is a linear map of gathered rows.

use std::sync::Arc;

use super::config::NORM_GROUPS;
use crate::tape::Execution;
use crate::weights::Files;
use wels_device::{Activation, Device, Ids, Images, Start, Tensor, WeightRef};

/// Numbers of gathered rows that are there at a time: 32 MiB.
const GATHERED: usize = 8 << 20;

/// Tensors of checked files, onto a device.
pub struct Source<'a> {
    pub files: &'a Files,
    pub device: &'a Arc<dyn Device>,
}

impl Source<'_> {
    /// A tensor as a matrix with so many columns.
    pub fn matrix(&self, name: &str, cols: usize) -> Tensor {
        let values = self.files.values(name);
        Tensor::of(self.device, values.len() / cols, cols, &values)
    }

    fn vector(&self, name: &str) -> Tensor {
        let values = self.files.values(name);
        Tensor::of(self.device, 1, values.len(), &values)
    }
}

/// The operations on images of what computes.
///
/// # Panics
/// If it has none, which opening a model has refused.
fn images(execution: &Execution) -> &dyn Images {
    execution.device().images().expect("a device with the operations of images")
}

/// A linear map, `[T, inputs]` to `[T, outputs]`.
pub struct Linear {
    w: Tensor,
    b: Option<Tensor>,
}

impl Linear {
    /// With a bias if the files have one.
    pub fn new(source: &Source, name: &str, inputs: usize) -> Linear {
        let bias = format!("{name}.bias");
        Linear {
            w: source.matrix(&format!("{name}.weight"), inputs),
            b: source.files.has(&bias).then(|| source.vector(&bias)),
        }
    }

    /// `[T, outputs]` of `[T, inputs]`.
    pub fn run(&self, execution: &Execution, x: &Tensor) -> Tensor {
        let mut y = execution.pool.tensor(x.rows(), self.w.rows());
        let device = execution.device();
        device.linear(execution.precision, x, &mut [(WeightRef::Plain(&self.w), &mut y)]);
        if let Some(b) = &self.b {
            device.add_bias(b, &mut y);
        }
        y
    }
}

/// Linear maps with GELU between them.
pub struct Aligner(Vec<Linear>);

impl Aligner {
    /// Of `layers` maps, the first of `inputs` columns, those after it of `width`.
    pub fn new(source: &Source, name: &str, inputs: usize, width: usize, layers: usize) -> Aligner {
        let first = Linear::new(source, &format!("{name}.fc1"), inputs);
        let others = (0..layers - 1).map(|i| Linear::new(source, &format!("{name}.hidden_layers.{i}"), width));
        Aligner(std::iter::once(first).chain(others).collect())
    }

    /// `[T, width]` of `[T, inputs]`.
    pub fn run(&self, execution: &Execution, x: &Tensor) -> Tensor {
        let (first, others) = self.0.split_first().expect("at least one map");
        others.iter().fold(first.run(execution, x), |x, map| map.run(execution, &gelu(execution, &x)))
    }
}

/// `x·Φ(x)`, of any shape.
pub fn gelu(execution: &Execution, x: &Tensor) -> Tensor {
    let mut y = execution.pool.tensor(x.rows(), x.cols());
    images(execution).gelu(x, &mut y);
    y
}

/// `x + y`, in the memory of y.
pub fn add(execution: &Execution, x: &Tensor, mut y: Tensor) -> Tensor {
    execution.device().add(x, &mut y);
    y
}

/// Weight and bias of a norm.
pub struct Norm {
    w: Tensor,
    b: Tensor,
}

impl Norm {
    /// From the tensors `NAME.weight` and `NAME.bias`.
    pub fn new(source: &Source, name: &str) -> Norm {
        Norm { w: source.vector(&format!("{name}.weight")), b: source.vector(&format!("{name}.bias")) }
    }

    /// Over each row.
    pub fn of_rows(&self, execution: &Execution, x: &Tensor, eps: f32) -> Tensor {
        let mut y = execution.pool.tensor(x.rows(), x.cols());
        images(execution).layer_norm(x, &self.w, &self.b, eps, &mut y);
        y
    }

    /// Over all of each group of channels, with the ε of `JanusVQVAEResnetBlock`.
    pub fn of_groups(&self, execution: &Execution, x: &Tensor, activation: Activation) -> Tensor {
        let mut y = execution.pool.tensor(x.rows(), x.cols());
        images(execution).group_norm(x, NORM_GROUPS, &self.w, &self.b, 1e-6, activation, &mut y);
        y
    }
}

/// What attention of every row to every row takes: `[T, H·width]` each.
pub struct Heads<'a> {
    pub q: &'a Tensor,
    pub k: &'a Tensor,
    pub v: &'a Tensor,
    /// H.
    pub heads: usize,
}

/// softmax(q·kᵀ/√width)·v of each head, `[T, H·width]`: a product, a softmax and a product.
pub fn attention(execution: &Execution, Heads { q, k, v, heads }: Heads) -> Tensor {
    let (device, pool, rows) = (execution.device(), &execution.pool, q.rows());
    let width = q.cols() / heads;
    let mut out = pool.tensor(rows, q.cols());
    let mut scores = pool.tensor(rows, rows);
    let mut one = pool.tensor(rows, width);
    for head in 0..heads {
        let [q, k, v] = [q, k, v].map(|x| {
            let mut part = pool.tensor(rows, width);
            device.copy_columns(x, head * width, &mut part, 0, width);
            part
        });
        device.linear(execution.precision, &q, &mut [(WeightRef::Plain(&k), &mut scores)]);
        images(execution).softmax(1.0 / (width as f32).sqrt(), &mut scores);
        device.linear_dx(execution.precision, &[(&scores, &v)], (&mut one, Start::Zero));
        device.copy_columns(&one, 0, &mut out, head * width, width);
    }
    out
}

/// A square picture: `[side², channels]`.
pub struct Picture {
    pub pixels: Tensor,
    pub side: usize,
}

/// Where a convolution's window lies.
#[derive(Clone, Copy)]
pub enum Window {
    /// On that pixel alone.
    Pixel,
    /// Three by three around each pixel, zeros beyond the edges.
    Around,
    /// Three by three from every second pixel on, zeros beyond the right and lower edges: half the side.
    Halving,
}

/// A convolution with a bias.
pub struct Conv {
    /// `[outputs, side²·inputs]`, a pixel of the window after the other.
    map: Linear,
    window: Window,
}

impl Conv {
    /// From the tensors `NAME.weight`, `[outputs, inputs, height, width]`, and `NAME.bias`.
    pub fn new(source: &Source, name: &str, inputs: usize, window: Window) -> Conv {
        let taps = if let Window::Pixel = window { 1 } else { 9 };
        let values = source.files.values(&format!("{name}.weight"));
        // From [outputs, inputs, taps] to [outputs, taps, inputs].
        let mut turned = Vec::with_capacity(values.len());
        for output in values.chunks_exact(inputs * taps) {
            (0..taps).for_each(|tap| turned.extend(output[tap..].iter().step_by(taps)));
        }
        let w = Tensor::of(source.device, turned.len() / (inputs * taps), inputs * taps, &turned);
        Conv { map: Linear { w, b: Some(source.vector(&format!("{name}.bias"))) }, window }
    }

    /// `[side², outputs]` of `[side², inputs]`, at half the side where the window halves it.
    pub fn run(&self, execution: &Execution, x: &Picture) -> Picture {
        let side = match self.window {
            Window::Pixel => return Picture { pixels: self.map.run(execution, &x.pixels), side: x.side },
            Window::Around => x.side,
            // One is cut off where the side is odd.
            Window::Halving => x.side / 2,
        };
        let device = execution.device();
        let (channels, outputs) = (x.pixels.cols(), self.map.w.rows());
        let padded = with_zero_row(execution, &x.pixels);
        let mut y = execution.pool.tensor(side * side, outputs);
        let strip = (GATHERED / (9 * channels)).max(1);
        for first in (0..side * side).step_by(strip) {
            let rows = strip.min(side * side - first);
            let ids = (first..first + rows).flat_map(|pixel| self.taps(pixel / side, pixel % side, x.side));
            let mut gathered = execution.pool.tensor(9 * rows, channels);
            device.gather(WeightRef::Plain(&padded), &Ids::from(ids.collect::<Vec<u32>>()), &mut gathered);
            let part = self.map.run(execution, &gathered.reshaped(rows, 9 * channels));
            device.copy_rows(&part, 0, &mut y, first, rows);
        }
        Picture { pixels: y, side }
    }

    /// The nine pixels of the window of an output, `side²` standing for zeros.
    fn taps(&self, row: usize, column: usize, side: usize) -> impl Iterator<Item = u32> {
        let (first_row, first_column) = match self.window {
            Window::Halving => (2 * row, 2 * column),
            Window::Pixel | Window::Around => (row.wrapping_sub(1), column.wrapping_sub(1)),
        };
        (0..9).map(move |tap| {
            let (row, column) = (first_row.wrapping_add(tap / 3), first_column.wrapping_add(tap % 3));
            let within = row < side && column < side;
            (if within { row * side + column } else { side * side }) as u32
        })
    }
}

/// A row of zeros after the rows.
fn with_zero_row(execution: &Execution, x: &Tensor) -> Tensor {
    let mut padded = execution.pool.tensor(x.rows() + 1, x.cols());
    execution.device().copy_rows(x, 0, &mut padded, 0, x.rows());
    padded.set(x.len(), &vec![0.0; x.cols()]);
    padded
}

/// Each pixel as two by two.
pub fn doubled(execution: &Execution, x: &Picture) -> Picture {
    let side = 2 * x.side;
    let ids = (0..side * side).map(|pixel| (pixel / side / 2 * x.side + pixel % side / 2) as u32);
    let mut pixels = execution.pool.tensor(side * side, x.pixels.cols());
    let ids = Ids::from(ids.collect::<Vec<u32>>());
    execution.device().gather(WeightRef::Plain(&x.pixels), &ids, &mut pixels);
    Picture { pixels, side }
}

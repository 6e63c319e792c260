//! The layers of the tower that sees, of aligners and of heads.

use std::sync::Arc;

use crate::inference::{Quantise, exact};
use crate::names::ParamKind;
use crate::tape::Execution;
use crate::weights::Files;
use wels_device::{Device, Images, Packed, Source as Numbers, Start, Tensor, WeightRef};

/// Tensors of checked files, onto a device.
pub struct Source<'a> {
    pub files: &'a Files,
    pub device: &'a Arc<dyn Device>,
    /// Number formats of matrices.
    pub quantise: Quantise,
}

/// Columns from which on a matrix is packed: a block's.
const PACKED_COLS: usize = 32;

impl Source<'_> {
    /// A tensor as a matrix with so many columns.
    pub fn matrix(&self, name: &str, cols: usize) -> Tensor {
        let values = self.files.values(name);
        Tensor::of(self.device, values.len() / cols, cols, &values)
    }

    /// A matrix of products with these values, `[rows, cols]`; what is not quantised is held in the narrowest format
    /// that has the same numbers, and its products have the same bits.
    pub fn weight(&self, values: &[f32], cols: usize, kind: ParamKind) -> Matrix {
        let rows = values.len() / cols;
        match self.quantise.target(kind, exact(values)) {
            Some(to) if cols >= PACKED_COLS => {
                let matrix = self.device.pack(Numbers::Values { values, to }, rows, cols);
                Matrix::Packed(self.device.stack(vec![matrix]))
            }
            _ => Matrix::Plain(Tensor::of(self.device, rows, cols, values)),
        }
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

/// A matrix of products.
pub enum Matrix {
    Plain(Tensor),
    Packed(Packed),
}

impl Matrix {
    /// `[T, rows]` of `[T, cols]`.
    pub fn product(&self, execution: &Execution, x: &Tensor) -> Tensor {
        let (w, rows) = match self {
            Matrix::Plain(w) => (WeightRef::Plain(w), w.rows()),
            Matrix::Packed(w) => (WeightRef::Packed(w), w.rows()),
        };
        let mut y = execution.pool.tensor(x.rows(), rows);
        execution.device().linear(execution.precision, x, &mut [(w, &mut y)]);
        y
    }
}

/// A linear map, `[T, inputs]` to `[T, outputs]`.
pub struct Linear {
    w: Matrix,
    b: Option<Tensor>,
}

impl Linear {
    /// With a bias if the files have one.
    pub fn new(source: &Source, name: &str, inputs: usize) -> Linear {
        let bias = format!("{name}.bias");
        Linear {
            w: source.weight(&source.files.values(&format!("{name}.weight")), inputs, ParamKind::Matrix),
            b: source.files.has(&bias).then(|| source.vector(&bias)),
        }
    }

    /// `[T, outputs]` of `[T, inputs]`.
    pub fn run(&self, execution: &Execution, x: &Tensor) -> Tensor {
        let mut y = self.w.product(execution, x);
        if let Some(b) = &self.b {
            execution.device().add_bias(b, &mut y);
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
        device.linear_dx(execution.precision, &[(&scores, (&v).into())], (&mut one, Start::Zero));
        device.copy_columns(&one, 0, &mut out, head * width, width);
    }
    out
}

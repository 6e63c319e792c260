//! Codes of a VQ tokenizer: rows of length 1, and the rows of a table in place of those near them.
//!
//! `unit_rows`: y = x/|x|, x, y `[T, D]`. Saved: y and the lengths.
//!
//! `quantize`: y = table\[ids\], z `[T, D]` what the ids were chosen for. The gradient of y goes to z as it is
//! (straight-through; van den Oord et al. 2017, §3.1). The losses of its eq. 3, means over all T·D numbers of a batch,
//! are only felt in the backward part: codebook |sg(z) − y|² moves the table, β·|z − sg(y)|² moves z. The table's row i
//! is a chain over the rows with id i. Saved: z, y and ids.

use crate::ops::pictures;
use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::{Ids, Tensor, WeightRef};

/// `y[T, D]`: the rows of `x[T, D]` at length 1.
///
/// # Panics
/// If the device has no operations of images.
pub fn unit_rows(g: &mut Graph, x: &Var) -> Var {
    let (mut y, mut lengths) = (g.tensor(x.rows(), x.cols()), g.tensor(x.rows(), 1));
    pictures(g.device()).unit_rows(x, &mut y, &mut lengths);
    let (dx, kept) = (x.gradient(), y.clone());
    g.record("unit_rows", y, move |back, dy| {
        let device = back.device();
        back.accumulate(dx, |dx, start| pictures(device).unit_rows_backward(&dy, &kept, &lengths, (dx, start)));
    })
}

/// Factors of a whole batch's losses of codes, each divided by the number of its latents' elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pull {
    /// Of the codes to the latents.
    pub codebook: f32,
    /// β, of the latents to the codes.
    pub commitment: f32,
    /// Whether the gradient of y goes to z. If not, z only learns to be what its id says.
    pub straight_through: bool,
}

/// `y[T, D]` = `table[ids]`.
///
/// # Panics
/// If the device has no operations of images.
pub fn quantize(g: &mut Graph, z: &Var, table: Weight, ids: &Ids, pull: Pull) -> Var {
    let y = chosen(g, g.weight(table), ids);
    let (z, kept, ids) = (z.clone(), y.clone(), ids.clone());
    g.record("quantize", y, move |back, dy| {
        let device = back.device();
        let mut difference = back.like(z.gradient());
        pictures(device).differences(&kept, &z, 2.0 * pull.codebook, &mut difference);
        back.parameter(table, |d, start| device.gather_backward(&difference, &ids, d, start));
        pictures(device).differences(&z, &kept, 2.0 * pull.commitment, &mut difference);
        if pull.straight_through {
            back.give(z.gradient(), dy);
        }
        back.give(z.gradient(), difference);
    })
}

/// `table[ids]`, which passes no gradient on.
pub fn chosen(g: &Graph, table: &Tensor, ids: &Ids) -> Tensor {
    let mut y = g.tensor(ids.len(), table.cols());
    g.device().gather(WeightRef::Plain(table), ids, &mut y);
    y
}

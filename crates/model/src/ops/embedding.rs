//! Token embedding: `y[t] = table[ids[t]]`, in some families times a factor.
//!
//! table `[V, D]`, ids `[T]`, y `[T, D]`. Saved: ids. Backward: row i of the table's gradient is a chain of additions
//! over the tokens with id i, of gradients times the factor.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::Ids;

/// `y[T, D]`: the rows `ids[T]` of the table `[V, D]`, times `factor` if there is one.
pub fn embedding(g: &mut Graph, table: Weight, ids: &Ids, factor: Option<f32>) -> Var {
    let mut y = g.tensor_of(g.activations(), ids.len(), table.cols);
    g.device().gather(g.stored(table), ids, &mut y);
    if let Some(factor) = factor {
        g.device().scale(&mut y, factor);
    }
    let ids = ids.clone();
    g.record("embedding", y, move |back, mut dy| {
        let device = back.device();
        if let Some(factor) = factor {
            dy = dy.into_unshared();
            device.scale(&mut dy, factor);
        }
        back.parameter(table, |dtable, start| device.gather_backward(&dy, &ids, dtable, start));
    })
}

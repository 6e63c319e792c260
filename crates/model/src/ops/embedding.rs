//! Token embedding: `y[t] = table[ids[t]]`.
//!
//! table `[V, D]`, ids `[T]`, y `[T, D]`. Saved: ids. Backward: row i of the table's gradient is a chain of additions
//! over the tokens with id i.

use crate::params::Weight;
use crate::tape::{Graph, Var};
use wels_device::Ids;

/// `y[T, D]`: the rows `ids[T]` of the table `[V, D]`.
pub fn embedding(g: &mut Graph, table: Weight, ids: &Ids) -> Var {
    let mut y = g.tensor_of(g.activations(), ids.len(), table.cols);
    g.device().gather(g.stored(table), ids, &mut y);
    let ids = ids.clone();
    g.record("embedding", y, move |back, dy| {
        let device = back.device();
        back.parameter(table, |dtable, start| device.gather_backward(&dy, &ids, dtable, start));
    })
}

//! Token embedding: `y[t] = table[ids[t]]`.
//!
//! table `[V, D]`, ids `[T]`, y `[T, D]`. Saved: ids. Backward: row i of the table's gradient is a chain of additions
//! over the tokens with id i.

use super::product::single;
use crate::params::{Stored, Weight};
use crate::tape::{Graph, Var};
use wels_kernels::embedding;

/// `y[T, D]`: the rows `ids[T]` of the table `[V, D]`.
pub fn embedding(g: &mut Graph, table: Weight, ids: &[u32]) -> Var {
    let d = table.cols;
    let mut y = g.tensor(ids.len(), d);
    match g.stored(table) {
        Stored::F32(table) => embedding::gather(table, ids, &mut y, d),
        Stored::Packed(table) => single(table).rows_of(ids, &mut y),
    }
    let ids: Box<[u32]> = if g.recording().is_some() { ids.into() } else { Box::default() };
    g.record("embedding", y, move |back, dy| {
        back.parameter(table, |dtable, start| embedding::gather_backward(&dy, &ids, dtable, start, d));
    })
}

//! Some rows of a matrix, and a matrix put together from rows.
//!
//! `rows`: x `[T, D]` to its rows ids `[R]`. `from_rows`: parts `[R_i, D]` with ids `[R_i]` to `[T, D]`. Each is the
//! other's backward part. Saved: the ids.

use crate::tape::{Graph, Var};
use wels_device::{Ids, Start, WeightRef};

/// `y[i] = x[ids[i]]`.
pub fn rows(g: &mut Graph, x: &Var, ids: &Ids) -> Var {
    let mut y = g.tensor_of(x.dtype(), ids.len(), x.cols());
    g.device().gather(WeightRef::Plain(x), ids, &mut y);
    let (dx, ids) = (x.gradient(), ids.clone());
    g.record("rows", y, move |back, dy| {
        let device = back.device();
        back.accumulate(dx, |dx, start| device.gather_backward(&dy, &ids, dx, start));
    })
}

/// `y[ids[i]] = x[i]` of each part.
///
/// # Panics
/// If there is no part, or the ids of all are not as many as the rows.
pub fn from_rows(g: &mut Graph, parts: Vec<(Var, Ids)>, rows: usize) -> Var {
    let given: usize = parts.iter().map(|(_, ids)| ids.len()).sum();
    assert_eq!(given, rows, "from_rows: parts with {given} rows for {rows}");
    let mut y = g.tensor_of(parts[0].0.dtype(), rows, parts[0].0.cols());
    let mut start = Start::Zero;
    for (x, ids) in &parts {
        g.device().gather_backward(x, ids, &mut y, start);
        start = Start::Continue;
    }
    let gradients: Vec<_> = parts.into_iter().map(|(x, ids)| (x.gradient(), ids)).collect();
    g.record("from_rows", y, move |back, dy| {
        for (dx, ids) in gradients {
            let mut part = back.like(dx);
            back.device().gather(WeightRef::Plain(&dy), &ids, &mut part);
            back.give(dx, part);
        }
    })
}

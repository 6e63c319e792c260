//! What a low-rank adapter adds to a linear map: `y += (s · x · Aᵀ) · Bᵀ`, in the buffer of y.
//!
//! x `[T, K]`, A `[r, K]`, B `[N, r]`, y `[T, N]`. Saved: x, and `h = s · x · Aᵀ`. Backward: `dB = dyᵀ · h`,
//! `dh = dy · B`, `dA = (s · dh)ᵀ · x`, `dx += (s · dh) · A`; dA and dB are chains over the tokens, as in `linear`.
//! An adapter of some rows alone adds to these the same numbers, whatever the other rows are: its products are of their
//! rows, and those are chains of their own. Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3.

use crate::params::{LowRank, Weight};
use crate::tape::{AdaptedRows, Graph, Var};
use wels_device::{Ids, Precision, Start, Tensor, WeightRef};

/// `y[T, N]` of the map `w` on `x[T, K]`, with what adapters add to it.
pub fn low_rank(g: &mut Graph, precision: Precision, x: &Var, y: Var, w: Weight) -> Var {
    let y = match g.context.params.low_rank(w) {
        Some(pair) => learnt(g, precision, x, y, pair),
        None => y,
    };
    let adapted = g.context.adapted.clone();
    adapted.iter().fold(y, |y, rows| of_rows(g, precision, x, y, (rows, w)))
}

/// Of the adapter among the parameters.
fn learnt(g: &mut Graph, precision: Precision, x: &Var, y: Var, LowRank { a, b, scale }: LowRank) -> Var {
    let dy = y.gradient();
    let h = down(g, precision, x, g.stored(a), (a.rows, scale));
    let y = up(g, precision, &h, g.stored(b), y.into_value().into_unshared());
    let x = x.clone();
    g.record("low_rank", y, move |back, d| {
        let (device, sequences) = (back.device(), back.sequences());
        back.parameter(b, |db, start| {
            device.linear_dw(precision, &h, &sequences.starts, &mut [(&d, (db, start))]);
        });
        let mut dh = back.tensor_of(h.dtype(), h.rows(), h.cols());
        device.linear_dx(precision, &[(&d, back.weight(b))], (&mut dh, Start::Zero));
        device.scale(&mut dh, scale);
        back.parameter(a, |da, start| {
            device.linear_dw(precision, &x, &sequences.starts, &mut [(&dh, (da, start))]);
        });
        let weight = back.weight(a);
        back.accumulate(x.gradient(), |dx, start| device.linear_dx(precision, &[(&dh, weight)], (dx, start)));
        back.give(dy, d);
    })
}

/// Of an adapter of some rows; nothing is recorded.
fn of_rows(g: &mut Graph, precision: Precision, x: &Var, y: Var, (of, w): (&AdaptedRows, Weight)) -> Var {
    let Some(pair) = of.adapter.pair(w.param()) else { return y };
    assert!(g.recording().is_none(), "an adapter of some rows is for inference");
    let (rank, scale) = (of.adapter.config().rank, of.adapter.config().scale());
    let mut y = y.into_value().into_unshared();
    if of.all {
        let h = down(g, precision, x, WeightRef::Plain(&pair.a), (rank, scale));
        let y = up(g, precision, &h, WeightRef::Plain(&pair.b), y);
        return g.variable(y);
    }
    let (x, own) = (picked(g, x, &of.rows), picked(g, &y, &of.rows));
    let h = down(g, precision, &x, WeightRef::Plain(&pair.a), (rank, scale));
    let own = up(g, precision, &h, WeightRef::Plain(&pair.b), own);
    put_back(g, &own, &of.rows, &mut y);
    g.variable(y)
}

/// `h = s · x · Aᵀ`.
fn down(g: &Graph, precision: Precision, x: &Tensor, a: WeightRef, (rank, scale): (usize, f32)) -> Tensor {
    let mut h = g.tensor_of(x.dtype(), x.rows(), rank);
    g.device().linear(precision, x, &mut [(a, &mut h)]);
    g.device().scale(&mut h, scale);
    h
}

/// `y + h · Bᵀ`.
fn up(g: &Graph, precision: Precision, h: &Tensor, b: WeightRef, mut y: Tensor) -> Tensor {
    let mut more = g.tensor_of(y.dtype(), y.rows(), y.cols());
    g.device().linear(precision, h, &mut [(b, &mut more)]);
    g.device().add(&more, &mut y);
    y
}

/// These rows, one below the other.
pub(super) fn picked(g: &Graph, of: &Tensor, rows: &Ids) -> Tensor {
    let mut picked = g.tensor_of(of.dtype(), rows.len(), of.cols());
    g.device().gather(WeightRef::Plain(of), rows, &mut picked);
    picked
}

/// The inverse of [`picked`]: `own` in the places of these rows of `of`.
pub(super) fn put_back(g: &Graph, own: &Tensor, rows: &Ids, of: &mut Tensor) {
    let mut from = 0;
    for run in rows.chunk_by(|row, next| row + 1 == *next) {
        g.device().copy_rows(own, from, of, run[0] as usize, run.len());
        from += run.len();
    }
}

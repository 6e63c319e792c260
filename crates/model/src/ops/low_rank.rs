//! What a low-rank adapter adds to a linear map: `y += (s · x · Aᵀ) · Bᵀ`, in the buffer of y.
//!
//! x `[T, K]`, A `[r, K]`, B `[N, r]`, y `[T, N]`. Saved: x, and `h = s · x · Aᵀ`. Backward: `dB = dyᵀ · h`,
//! `dh = dy · B`, `dA = (s · dh)ᵀ · x`, `dx += (s · dh) · A`; dA and dB are chains over the tokens, as in `linear`.
//! An adapter of some rows alone adds to these the same numbers, whatever the other rows are: its products are of their
//! rows, and those are chains of their own. Source: Hu et al. 2021 (arXiv 2106.09685), eq. 3.

use crate::params::{LowRank, Weight};
use crate::tape::{AdaptedRows, Graph, Var};
use wels_device::{Dtype, Ids, LowRankRows, Precision, Start, Tensor, WeightRef};

/// `y[T, N]` of the map `w` on `x[T, K]`, with what adapters add to it.
pub fn low_rank(g: &mut Graph, precision: Precision, x: &Var, y: Var, w: Weight) -> Var {
    let [y] = low_ranks(g, precision, x, [y], [w]);
    y
}

/// [`low_rank`] of several maps on one x.
pub fn low_ranks<const N: usize>(
    g: &mut Graph,
    precision: Precision,
    x: &Var,
    ys: [Var; N],
    weights: [Weight; N],
) -> [Var; N] {
    let mut all = weights.into_iter();
    let ys = ys.map(|y| match g.context.params.low_rank(all.next().expect("one a result")) {
        Some(pair) => learnt(g, precision, x, y, pair),
        None => y,
    });
    let adapted = g.context.adapted.clone();
    match adapted.is_empty() {
        true => ys,
        false => of_all_rows(g, precision, x, ys, (&adapted[..], weights)),
    }
}

/// With what adapters of some rows add; of all of them at once, where the device does that.
fn of_all_rows<const N: usize>(
    g: &mut Graph,
    precision: Precision,
    x: &Var,
    ys: [Var; N],
    (adapted, weights): (&[AdaptedRows], [Weight; N]),
) -> [Var; N] {
    let pairs = |w: Weight| adapted.iter().filter(move |of| of.adapter.pair(w.param()).is_some());
    let at_once = precision == Precision::F32
        && x.dtype() == Dtype::F32
        && weights.iter().all(|w| pairs(*w).all(|of| of.adapter.packed(w.param()).is_some()));
    if !at_once {
        let mut weights = weights.into_iter();
        return ys.map(|y| {
            let w = weights.next().expect("one a result");
            adapted.iter().fold(y, |y, rows| of_rows(g, precision, x, y, (rows, w)))
        });
    }
    assert!(g.recording().is_none(), "adapters of some rows are for inference");
    let mut ys = ys.map(|y| y.into_value().into_unshared());
    let of_weight = |(y, w): (_, Weight)| {
        let rows = pairs(w).map(|of| {
            let packed = of.adapter.packed(w.param()).expect("looked at above");
            LowRankRows { rows: &of.rows, packed, scale: of.adapter.config().scale() }
        });
        (y, rows.collect())
    };
    let mut products: Vec<(&mut Tensor, Vec<LowRankRows>)> = ys.iter_mut().zip(weights).map(of_weight).collect();
    if products.iter().any(|(_, rows)| !rows.is_empty()) {
        g.device().add_low_rank(x, &mut products);
    }
    drop(products);
    ys.map(|y| g.variable(y))
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
        device.linear_dx(precision, &[(&d, back.context.params.stored(b))], (&mut dh, Start::Zero));
        device.scale(&mut dh, scale);
        back.parameter(a, |da, start| {
            device.linear_dw(precision, &x, &sequences.starts, &mut [(&dh, (da, start))]);
        });
        let weight = back.context.params.stored(a);
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

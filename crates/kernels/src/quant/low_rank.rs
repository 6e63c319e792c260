//! What low-rank adapters of some rows add to products of the same x: `y[t] += (s · x[t] · Aᵀ) · Bᵀ`, all adapters and
//! all y at once.
//!
//! An element of `h = x · Aᵀ` is one chain over k, s times it is rounded, an element of `h · Bᵀ` is one chain over the
//! rank, and one addition brings it to y: the bits of these operations one by one, with A and B in f32.

use super::QuantMatrix;
use super::activations::whole_rows;
use super::product::{Division, Product, run};
use crate::par::{self, SharedMut};
use crate::scratch;

/// What one adapter adds to rows of one y.
pub struct AdaptedRows<'a> {
    /// Which, each one once among all adapters of the y.
    pub rows: &'a [u32],
    /// `[r, K]`.
    pub a: &'a QuantMatrix,
    /// `[N, r]`.
    pub b: &'a QuantMatrix,
    /// What x · Aᵀ is multiplied with before B.
    pub scale: f32,
}

/// Adds to each y `[T, N]` of x `[T, K]` what its adapters make of their rows.
///
/// # Panics
/// If the shapes do not fit.
pub fn add_low_rank(x: &[f32], k: usize, targets: &mut [(&mut [f32], Vec<AdaptedRows>)]) {
    let ranks = targets.iter().flat_map(|(_, all)| all).map(|adapted| adapted.a.rows());
    let mut ranks: Vec<usize> = ranks.collect();
    ranks.sort_unstable();
    ranks.dedup();
    for rank in ranks {
        of_rank(x, k, rank, targets);
    }
}

/// A part of h, and what it is for.
struct Piece {
    target: usize,
    adapted: usize,
    /// Its first row in h.
    slot: usize,
}

fn of_rank(x: &[f32], k: usize, rank: usize, targets: &mut [(&mut [f32], Vec<AdaptedRows>)]) {
    let (mut pieces, mut slots) = (Vec::new(), 0);
    for (target, (_, all)) in targets.iter().enumerate() {
        for (adapted, it) in all.iter().enumerate().filter(|(_, it)| it.a.rows() == rank) {
            assert_eq!(it.b.columns(), rank, "columns of B");
            pieces.push(Piece { target, adapted, slot: slots });
            slots += it.rows.len();
        }
    }
    let of = |piece: &Piece| &targets[piece.target].1[piece.adapted];
    let mut h = scratch::buffer(slots * rank);
    let to = SharedMut::new(&mut h);
    let x = whole_rows(x, k);
    let down = |piece: &Piece| {
        let it = of(piece);
        Product::new(&x, it.a, it.rows, to, piece.slot..piece.slot + it.rows.len())
    };
    run(&x, &pieces.iter().map(down).collect::<Vec<_>>(), Division::ByWeights);
    for piece in &pieces {
        let it = of(piece);
        h[piece.slot * rank..][..it.rows.len() * rank].iter_mut().for_each(|h| *h *= it.scale);
    }
    let (all, h) = ((0..slots as u32).collect::<Vec<u32>>(), whole_rows(&h, rank));
    // Each piece's results behind the other's, since they are of different widths.
    let places: Vec<usize> = pieces
        .iter()
        .scan(0, |end, piece| {
            let begin = *end;
            *end += of(piece).rows.len() * of(piece).b.rows();
            Some(begin)
        })
        .collect();
    let total = pieces.iter().map(|piece| of(piece).rows.len() * of(piece).b.rows()).sum();
    let mut more = scratch::buffer(total);
    {
        let mut rest = &mut more[..];
        let mut products = Vec::with_capacity(pieces.len());
        for piece in &pieces {
            let it = of(piece);
            let own = rest.split_off_mut(..it.rows.len() * it.b.rows()).expect("room for all");
            let rows = &all[piece.slot..piece.slot + it.rows.len()];
            products.push(Product::new(&h, it.b, rows, SharedMut::new(own), 0..it.rows.len()));
        }
        run(&h, &products, Division::ByWeights);
    }
    for (piece, place) in pieces.iter().zip(places) {
        let (y, all) = &mut targets[piece.target];
        let it = &all[piece.adapted];
        let n = it.b.rows();
        let (y, more) = (SharedMut::new(y), &more[place..][..it.rows.len() * n]);
        let few = it.rows.len() * n < SMALL;
        let add = |i: usize| {
            // SAFETY: rows are each named once.
            let row = unsafe { y.slice(it.rows[i] as usize * n, n) };
            row.iter_mut().zip(&more[i * n..][..n]).for_each(|(y, more)| *y += more);
        };
        match few {
            true => (0..it.rows.len()).for_each(add),
            false => par::run(it.rows.len(), add),
        }
    }
}

/// Additions that are not worth handing to other threads.
const SMALL: usize = 1 << 15;

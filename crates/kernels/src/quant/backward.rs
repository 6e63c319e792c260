//! The gradient of x of products with [`whole_rows`](super::whole_rows): `dx[T,K] = dy[T,N] · w[N,K]`, with the numbers
//! that w stands for.
//!
//! An element is one chain over n, as that of [`gemm::linear_dx`] with these numbers in f32, in every bit. Rows of
//! w are decoded a slab at a time, by which the chains go on.

use std::borrow::Borrow;

use super::matrix::QuantMatrix;
use crate::gemm::{self, Precision, Start, check_groups};
use crate::par;
use crate::scratch;

/// Rows of w that are decoded at a time: whole panels. Chosen, not measured.
const SLAB: usize = 512;

/// `dx[T,K] = dy[T,N] · w[N,K]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear_dx(dy: &[f32], w: &QuantMatrix, dx: &mut [f32], mut start: Start) {
    let (k, n) = (w.columns(), w.rows());
    assert!(dy.len().is_multiple_of(n), "dy has {} elements, rows have {n}", dy.len());
    let slab = SLAB.min(n);
    let mut numbers = scratch::buffer(slab * k);
    let mut of_slab = scratch::buffer(if slab < n { dy.len() / n * slab } else { 0 });
    for first in (0..n).step_by(SLAB) {
        let rows = first..n.min(first + SLAB);
        let numbers = &mut numbers[..rows.len() * k];
        w.numbers(rows.clone(), numbers);
        let dy = match rows.len() == n {
            true => dy,
            false => {
                let of_slab = &mut of_slab[..dy.len() / n * rows.len()];
                par::chunks_mut(of_slab, rows.len(), |t, to| to.copy_from_slice(&dy[t * n..][rows.clone()]));
                of_slab
            }
        };
        gemm::linear_dx(Precision::F32, dy, numbers, dx, k, rows.len(), start);
        start = Start::Continue;
    }
}

/// [`linear_dx`] for each expert, of slots `offsets[e]..offsets[e+1]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn grouped_linear_dx<W: Borrow<QuantMatrix>>(
    dy: &[f32],
    offsets: &[u32],
    experts: &[W],
    dx: &mut [f32],
    start: Start,
) {
    let (k, n) = experts.first().map_or((1, 1), |w| (w.borrow().columns(), w.borrow().rows()));
    let slots = check_groups(offsets, None, dy.len() / n);
    assert_eq!(experts.len() + 1, offsets.len(), "experts and their offsets");
    assert_eq!((dy.len(), dx.len()), (slots * n, slots * k), "dy and dx are [{slots}, {n}] and [{slots}, {k}]");
    for (w, bounds) in experts.iter().zip(offsets.windows(2)) {
        let slots = bounds[0] as usize..bounds[1] as usize;
        if !slots.is_empty() {
            let (dy, dx) = (&dy[slots.start * n..slots.end * n], &mut dx[slots.start * k..slots.end * k]);
            linear_dx(dy, w.borrow(), dx, start);
        }
    }
}

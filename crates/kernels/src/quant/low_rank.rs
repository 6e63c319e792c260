//! What low-rank adapters of some rows add to products of the same x: `y[t] += (s · x[t] · Aᵀ) · Bᵀ`, all adapters and
//! all y at once.
//!
//! An element of `h = x · Aᵀ` is one chain over k, s times it is rounded, an element of `h · Bᵀ` is one chain over the
//! rank, and one addition brings it to y: the bits of these operations one by one, with the numbers of A and B in f32.
//! A thread takes rows through all of it, so that h and what is added never leave its caches.

use std::mem;

use super::QuantMatrix;
use super::blocks::BlockType;
use super::dots::{Dots, Set, dispatch_dots};
use super::kernel::{self, Out};
use super::pack::ROWS;
use super::product::wanted_tasks;
use super::wide;
use crate::par::{self, SharedMut};
use crate::scratch;

/// What one adapter adds to rows of one y.
pub struct AdaptedRows<'a> {
    /// Which, each one once among all adapters of the y.
    pub rows: &'a [u32],
    /// `[r, K]`, in f32.
    pub a: &'a QuantMatrix,
    /// `[N, r]`, the same.
    pub b: &'a QuantMatrix,
    /// What x · Aᵀ is multiplied with before B.
    pub scale: f32,
}

/// Adds to each y `[T, N]` of x `[T, K]` what its adapters make of their rows.
///
/// # Panics
/// If the shapes do not fit, A or B are not in f32, or a row has two adapters.
pub fn add_low_rank(x: &[f32], k: usize, targets: &mut [(&mut [f32], Vec<AdaptedRows>)]) {
    let groups = groups(x.len() / k, k, targets);
    let total = groups.iter().map(Group::cost).sum();
    let wanted = wanted_tasks(total, par::threads());
    let most_rows = Set::active().tile_and_wide_zero().0;
    let mut tasks = Vec::new();
    for group in &groups {
        let pieces = (group.cost() * wanted).div_ceil(total.max(1)).max(1);
        let height = group.rows.len().div_ceil(pieces).next_multiple_of(most_rows);
        let blocks = group.rows.len().div_ceil(height);
        let parts = (pieces / blocks).clamp(1, par::threads());
        for row in (0..group.rows.len()).step_by(height) {
            let rows = &group.rows[row..group.rows.len().min(row + height)];
            tasks.extend((0..parts).map(|part| Task { x, k, rows, adapted: &group.adapted, part, parts }));
        }
    }
    par::run(tasks.len(), |i| {
        let task = &tasks[i];
        // SAFETY: rows are rows of x and of each y, and no two tasks have the same row and part of a y.
        unsafe { dispatch_dots!(add(task: &Task)) };
    });
}

/// Rows that have the same adapter, of all y that it adds to.
struct Group<'a> {
    rows: &'a [u32],
    adapted: Vec<Adapted<'a>>,
}

struct Adapted<'a> {
    a: &'a QuantMatrix,
    b: &'a QuantMatrix,
    scale: f32,
    y: SharedMut<'a, f32>,
}

impl Group<'_> {
    /// The terms of its products, and reading the weights as those of a few rows.
    fn cost(&self) -> usize {
        let terms = |it: &Adapted| it.a.rows() * (it.a.columns() + it.b.rows());
        self.adapted.iter().map(terms).sum::<usize>() * (self.rows.len() + 4)
    }
}

/// What has the same rows, together, after a look at the shapes and rows.
fn groups<'a>(t: usize, k: usize, targets: &'a mut [(&mut [f32], Vec<AdaptedRows>)]) -> Vec<Group<'a>> {
    let mut groups: Vec<Group> = Vec::new();
    let mut has_adapter = vec![false; t];
    for (y, all) in targets {
        let y = SharedMut::new(y);
        has_adapter.fill(false);
        for it in all.iter().filter(|it| !it.rows.is_empty()) {
            let (a, b) = (it.a, it.b);
            assert_eq!((a.columns(), b.columns()), (k, a.rows()), "A is [r, K] and B [N, r]");
            for it in [a, b] {
                assert_eq!(it.block_type(), BlockType::F32, "A and B are in f32");
            }
            assert!(y.len() == t * b.rows(), "y has {} elements instead of {}", y.len(), t * b.rows());
            assert!(it.rows.iter().all(|row| (*row as usize) < t), "rows of x, which has {t}");
            for row in it.rows {
                assert!(!mem::replace(&mut has_adapter[*row as usize], true), "row {row} has two adapters");
            }
            let adapted = Adapted { a, b, scale: it.scale, y };
            match groups.iter_mut().find(|group| std::ptr::eq(group.rows, it.rows)) {
                Some(group) => group.adapted.push(adapted),
                None => groups.push(Group { rows: it.rows, adapted: vec![adapted] }),
            }
        }
    }
    groups
}

/// What one thread adds: to some of a group's rows, of each y a part of the columns. Each part makes h again.
struct Task<'a> {
    x: &'a [f32],
    k: usize,
    rows: &'a [u32],
    adapted: &'a [Adapted<'a>],
    part: usize,
    parts: usize,
}

/// Panels of B whose products stay in the first-level cache until they are added.
const CHUNK: usize = 8;

/// # Safety
/// The machine has D's instructions; the rows are rows of x and of each y, and nobody else has the part of these.
#[inline(always)]
unsafe fn add<D: Dots>(task: &Task) {
    let Task { x, k, rows, adapted, part, parts } = *task;
    let rank = adapted.iter().map(|it| it.a.rows()).max().unwrap_or(0);
    let mut tile = scratch::buffer(k * D::TILE);
    let (mut h, mut scaled) = (scratch::buffer(rank * D::TILE), scratch::buffer(rank * D::TILE));
    let mut more = scratch::buffer(CHUNK * ROWS * D::TILE);
    let mut rest = rows;
    while !rest.is_empty() {
        let m = kernel::tile_rows(rest.len(), D::TILE);
        let rows = rest.split_off(..m).expect("a tile has no more rows than are left");
        wide::lay_tile(x, k, rows, scratch::words_mut(&mut tile[..k * m]));
        for Adapted { a, b, scale, y } in adapted {
            let (rank, n) = (a.rows(), b.rows());
            let out = Out { at: h.as_mut_ptr(), stride: rank, columns: rank };
            let panels = a.panel(0..a.panels(), &mut [], &mut []);
            // SAFETY: the panels of A and the tile are of k terms, and h has room for m rows of it.
            unsafe { wide::panels::<D, wide::F32>(m, k, panels.terms, a.panels(), tile.as_ptr(), out) };
            for (r, terms) in scaled[..rank * m].chunks_exact_mut(m).enumerate() {
                terms.iter_mut().enumerate().for_each(|(i, term)| *term = h[i * rank + r] * scale);
            }
            let own = b.panels() * part / parts..b.panels() * (part + 1) / parts;
            for first in own.clone().step_by(CHUNK) {
                let count = CHUNK.min(own.end - first);
                let columns = (n - first * ROWS).min(count * ROWS);
                let out = Out { at: more.as_mut_ptr(), stride: CHUNK * ROWS, columns };
                let panels = b.panel(first..first + count, &mut [], &mut []);
                // SAFETY: the panels of B and the tile of h are of `rank` terms, and there is room for m rows.
                unsafe { wide::panels::<D, wide::F32>(m, rank, panels.terms, count, scaled.as_ptr(), out) };
                for (row, more) in rows.iter().zip(more.chunks_exact(CHUNK * ROWS)) {
                    // SAFETY: nobody else has these columns of the row.
                    let y = unsafe { y.slice(*row as usize * n + first * ROWS, columns) };
                    y.iter_mut().zip(more).for_each(|(y, more)| *y += more);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "row 1 has two adapters")]
    fn no_row_has_two_adapters() {
        let matrix = QuantMatrix::quantise(&[1.0; 4], 2, 2, BlockType::F32);
        let of = |rows| AdaptedRows { rows, a: &matrix, b: &matrix, scale: 1.0 };
        let mut y = [0.0; 4];
        add_low_rank(&[1.0; 4], 2, &mut [(&mut y[..], vec![of(&[0, 1]), of(&[1])])]);
    }
}

//! Right operands of attention's products, packed.

use std::ops::Range;

use super::{Heads, Keys};
use crate::lanes::Lanes;
use crate::micro::{self, LeftWords, Out, Words};
use crate::pack::{self, Matrix};
use crate::scratch::{self, Buffer};

/// A right operand in panels of 16 columns, `terms` vectors each.
pub(super) struct Panels {
    data: Buffer,
    terms: usize,
}

impl Panels {
    /// Of `rows[terms, columns]`.
    ///
    /// # Safety
    /// The machine has the instruction set of `L`.
    #[inline(always)]
    pub unsafe fn of_rows<L: Lanes>(rows: &[f32], columns: usize) -> Self {
        let terms = rows.len() / columns;
        let mut data = scratch::buffer(terms * columns.next_multiple_of(16));
        let matrix = Matrix { data: rows, stride: columns, rows: None };
        let block = pack::Block { k0: 0, k: terms, j0: 0, columns };
        // SAFETY: `data` has whole panels for the rows; instructions by this function's contract.
        unsafe { pack::panels_of_rows::<L>(matrix, block, Words::Numbers, scratch::words_mut(&mut data)) };
        Panels { data, terms }
    }

    /// Of the transpose of `rows[columns, terms]`.
    ///
    /// # Safety
    /// The machine has the instruction set of `L`.
    #[inline(always)]
    pub unsafe fn of_columns<L: Lanes>(rows: &[f32], terms: usize) -> Self {
        let columns = rows.len() / terms;
        let mut data = scratch::buffer(terms * columns.next_multiple_of(16));
        let matrix = Matrix { data: rows, stride: terms, rows: None };
        let block = pack::Block { k0: 0, k: terms, j0: 0, columns };
        // SAFETY: `data` has whole panels for the columns; instructions by this function's contract.
        unsafe { pack::panels_of_columns::<L>(matrix, block, Words::Numbers, scratch::words_mut(&mut data)) };
        Panels { data, terms }
    }

    /// Extends chains by the product of `left` with the terms `range`, of the columns from `first` on, which is a
    /// multiple of 16.
    ///
    /// # Safety
    /// As for [`micro::product`].
    #[inline(always)]
    pub unsafe fn multiply<L: Lanes>(&self, rows: usize, first: usize, range: Range<usize>, left: LeftWords, out: Out) {
        let panels = scratch::words(&self.data)[first * self.terms + 16 * range.start..].as_ptr();
        // SAFETY: `data` has whole panels of `terms` terms, of which the slice begins with those of `range`; the
        // addresses in `left` and `out` go on as they came.
        unsafe { micro::product::<L, micro::F32>(rows, range.len(), left, panels, 16 * self.terms, out) }
    }
}

/// Rows of one head as a matrix of their own.
pub(super) fn gather(h: &Heads, first: usize, len: usize, head: usize) -> Buffer {
    let mut rows = scratch::buffer(len * h.dim);
    for (t, row) in rows.chunks_exact_mut(h.dim).enumerate() {
        row.copy_from_slice(h.row(first + t, head));
    }
    rows
}

/// The keys of one head, own part and shared part together.
pub(super) fn gather_keys(k: &Keys, first: usize, len: usize, head: usize) -> Buffer {
    let Some(shared) = &k.shared else { return gather(&k.own, first, len, head) };
    let mut rows = scratch::buffer(len * (k.own.dim + shared.dim));
    for (t, row) in rows.chunks_exact_mut(k.own.dim + shared.dim).enumerate() {
        row[..k.own.dim].copy_from_slice(k.own.row(first + t, head));
        row[k.own.dim..].copy_from_slice(shared.row(first + t, 0));
    }
    rows
}

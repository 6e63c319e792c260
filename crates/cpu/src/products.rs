//! Products with parameters, however these are stored.
//!
//! With quantised parameters x is quantised too, in blocks of 32 of a row (`wels_kernels::quant`), once for all
//! matrices that it is multiplied with. The precision is that of products with parameters that are not packed.

use std::borrow::Cow;

use wels_device::{Dispatch, Groups, Ids, Precision, Products, Start, Tensor, WeightGradient, WeightRef};
use wels_kernels::{gemm, quant};

use crate::Cpu;
use crate::experts::tables;
use crate::memory::{slice, slice_mut};
use crate::ranks::Grouped;
use crate::weights::{matrices, part, single};

impl Products for Cpu {
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]) {
        let (k, x) = (x.cols(), slice(x));
        let (mut plain, mut packed, mut spread) = (Vec::new(), Vec::new(), Vec::new());
        for (w, y) in products {
            match w {
                WeightRef::Plain(w) => plain.push((slice(w), y.cols(), slice_mut(y))),
                WeightRef::Packed(w) => match part(w) {
                    Some(part) => spread.push((part, slice_mut(y))),
                    None => packed.push((single(w), slice_mut(y))),
                },
            }
        }
        let here = || {
            for (w, n, y) in plain {
                gemm::linear(precision, x, w, y, k, n);
            }
            if !packed.is_empty() {
                quant::linear_many(&quant::quantise_rows(x, k), &mut packed);
            }
        };
        match &self.ranks {
            Some(ranks) if !spread.is_empty() => ranks.linear(x, k, &mut spread, here),
            _ => here(),
        }
    }

    fn linear_dx(&self, precision: Precision, terms: &[(&Tensor, &Tensor)], (dx, mut start): (&mut Tensor, Start)) {
        for (dy, w) in terms {
            let (k, n) = (dx.cols(), dy.cols());
            gemm::linear_dx(precision, slice(dy), slice(w), slice_mut(dx), k, n, start);
            start = Start::Continue;
        }
    }

    fn linear_dw(&self, precision: Precision, x: &Tensor, _: &Ids, gradients: &mut [WeightGradient]) {
        for (dy, (dw, start)) in gradients {
            gemm::linear_dw(precision, slice(dy), slice(x), slice_mut(dw), x.cols(), dy.cols(), *start);
        }
    }

    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]) {
        let (rows, offsets) = parts(groups, x.rows());
        let (k, x) = (x.cols(), slice(x));
        let (mut words, mut spread) = (None, Vec::new());
        for (w, y) in products {
            let n = y.cols();
            match w {
                WeightRef::Plain(w) => {
                    gemm::grouped_linear(precision, x, rows, &offsets, slice(w), slice_mut(y), k, n);
                }
                WeightRef::Packed(w) => match part(w) {
                    Some(part) => spread.push((part, slice_mut(y))),
                    None => {
                        let x = words.get_or_insert_with(|| quant::quantise_rows(x, k));
                        quant::grouped_linear(x, rows, &offsets, matrices(w), slice_mut(y));
                    }
                },
            }
        }
        if let Some(ranks) = self.ranks.as_ref().filter(|_| !spread.is_empty()) {
            ranks.grouped(&Grouped { offsets, rows: rows.map(Cow::from), k, x: x.into() }, &mut spread);
        }
    }

    fn grouped_dx(
        &self,
        precision: Precision,
        dispatch: &Dispatch,
        terms: &[(&Tensor, &Tensor)],
        (dx, mut start): (&mut Tensor, Start),
    ) {
        let offsets = tables(dispatch).offsets();
        for (dy, w) in terms {
            let (k, n) = (dx.cols(), dy.cols());
            gemm::grouped_linear_dx(precision, slice(dy), offsets, slice(w), slice_mut(dx), k, n, start);
            start = Start::Continue;
        }
    }

    fn grouped_dw(&self, precision: Precision, x: &Tensor, groups: Groups, _: &Ids, gradients: &mut [WeightGradient]) {
        for (dy, (dw, start)) in gradients {
            let (rows, offsets) = parts(groups, dy.rows());
            let (k, n, rows) = (x.cols(), dy.cols(), rows);
            gemm::grouped_linear_dw(precision, slice(dy), slice(x), rows, &offsets, slice_mut(dw), k, n, *start);
        }
    }
}

/// Of an operand with `rows` rows: the row of each slot, where they are not the slots themselves, and where the parts
/// begin.
fn parts(groups: Groups<'_>, rows: usize) -> (Option<&[u32]>, Cow<'_, [u32]>) {
    match groups {
        Groups::Slots(dispatch) => (None, tables(dispatch).offsets().into()),
        Groups::Tokens(dispatch) => (Some(tables(dispatch).rows()), tables(dispatch).offsets().into()),
        Groups::Equal(parts) => (None, (0..=parts).map(|part| (part * (rows / parts)) as u32).collect()),
    }
}

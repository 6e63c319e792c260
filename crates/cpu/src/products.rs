//! Products with parameters, however these are stored.
//!
//! With quantised parameters x is quantised too, in blocks of 32 of a row (`wels_kernels::quant`), once for all
//! matrices that it is multiplied with; not with those that take whole rows. The precision is that of products with
//! parameters that are not packed.

use std::borrow::Cow;

use wels_device::{
    BlockType, Dispatch, Groups, Ids, LowRankRows, Memory, Packed, Precision, Products, Start, Tensor, WeightGradient,
    WeightRef,
};
use wels_kernels::quant::{AdaptedRows, QuantMatrix};
use wels_kernels::{gemm, quant};

use crate::Cpu;
use crate::experts::tables;
use crate::memory::{slice, slice_mut};
use crate::ranks::Grouped;
use crate::weights::{matrices, part, single};

impl Products for Cpu {
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]) {
        let (k, x) = (x.cols(), slice(x));
        let (mut plain, mut packed, mut whole, mut spread) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (w, y) in products {
            match w {
                WeightRef::Plain(w) => plain.push((slice(w), y.cols(), slice_mut(y))),
                WeightRef::Packed(w) => match part(w) {
                    Some(part) => spread.push((part, slice_mut(y))),
                    None if w.takes_whole_rows() => whole.push((single(w), slice_mut(y))),
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
            if !whole.is_empty() {
                quant::linear_many(&quant::whole_rows(x, k), &mut whole);
            }
        };
        match &self.ranks {
            Some(ranks) if !spread.is_empty() => ranks.linear(x, k, &mut spread, here),
            _ => here(),
        }
    }

    fn linear_dx(&self, precision: Precision, terms: &[(&Tensor, WeightRef)], (dx, mut start): (&mut Tensor, Start)) {
        for (dy, w) in terms {
            let (k, n) = (dx.cols(), dy.cols());
            match w {
                WeightRef::Plain(w) => gemm::linear_dx(precision, slice(dy), slice(w), slice_mut(dx), k, n, start),
                WeightRef::Packed(w) => quant::linear_dx(slice(dy), single(whole(w)), slice_mut(dx), start),
            }
            start = Start::Continue;
        }
    }

    fn linear_dw(&self, precision: Precision, x: &Tensor, _: &Ids, gradients: &mut [WeightGradient]) {
        for (dy, (dw, start)) in gradients {
            gemm::linear_dw(precision, slice(dy), slice(x), slice_mut(dw), x.cols(), dy.cols(), *start);
        }
    }

    /// Over several ranks the first one computes all of what an adapter adds, and nothing is packed for it.
    fn pack_low_rank(&self, a: &Tensor, b: &Tensor) -> Option<Memory> {
        let packed = |m: &Tensor| QuantMatrix::quantise(slice(m), m.rows(), m.cols(), BlockType::F32);
        self.ranks.is_none().then(|| Box::new([packed(a), packed(b)]) as Memory)
    }

    fn add_low_rank(&self, x: &Tensor, products: &mut [(&mut Tensor, Vec<LowRankRows>)]) {
        let mut targets: Vec<_> =
            products.iter_mut().map(|(y, all)| (slice_mut(y), all.iter().map(adapted).collect())).collect();
        quant::add_low_rank(slice(x), x.cols(), &mut targets);
    }

    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]) {
        let (rows, offsets) = parts(groups, x.rows());
        let (k, x) = (x.cols(), slice(x));
        let (mut words, mut spread) = ([None, None], Vec::new());
        for (w, y) in products {
            let n = y.cols();
            match w {
                WeightRef::Plain(w) => {
                    gemm::grouped_linear(precision, x, rows, &offsets, slice(w), slice_mut(y), k, n);
                }
                WeightRef::Packed(w) => match part(w) {
                    Some(part) => spread.push((part, slice_mut(y))),
                    None => {
                        let of = if w.takes_whole_rows() { quant::whole_rows } else { quant::quantise_rows };
                        let x = words[usize::from(w.takes_whole_rows())].get_or_insert_with(|| of(x, k));
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
        terms: &[(&Tensor, WeightRef)],
        (dx, mut start): (&mut Tensor, Start),
    ) {
        let offsets = tables(dispatch).offsets();
        for (dy, w) in terms {
            let (k, n, dy, dx) = (dx.cols(), dy.cols(), slice(dy), slice_mut(dx));
            match w {
                WeightRef::Plain(w) => gemm::grouped_linear_dx(precision, dy, offsets, slice(w), dx, k, n, start),
                WeightRef::Packed(w) => quant::grouped_linear_dx(dy, offsets, matrices(whole(w)), dx, start),
            }
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

/// What an adapter adds, as the kernel takes it.
fn adapted<'a>(of: &LowRankRows<'a>) -> AdaptedRows<'a> {
    let [a, b]: &[QuantMatrix; 2] = of.packed.downcast_ref().expect("an adapter that the processor packed");
    AdaptedRows { rows: of.rows, a, b, scale: of.scale }
}

/// One that is multiplied as the numbers that it stands for, as its gradients are.
fn whole(packed: &Packed) -> &Packed {
    assert!(packed.takes_whole_rows(), "gradients of {packed:?}, which products quantise x for");
    packed
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

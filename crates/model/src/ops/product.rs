//! Products with parameters, however these are stored.
//!
//! With quantised parameters x is quantised too, in blocks of 32 of a row (`wels_kernels::quant`), once for all
//! matrices that it is multiplied with. The precision is that of products with parameters that are not packed.

use crate::params::Stored;
use crate::tensor::Tensor;
use wels_kernels::gemm::{self, Precision};
use wels_kernels::quant::{self, QuantMatrix};

/// `y[T, N] = x[T, K] · w[N, K]ᵀ`.
pub(super) fn product(precision: Precision, x: &Tensor, w: Stored, y: &mut Tensor) {
    products(precision, x, &mut [(w, y)]);
}

/// [`product`] of several matrices with one x.
pub(super) fn products(precision: Precision, x: &Tensor, all: &mut [(Stored, &mut Tensor)]) {
    let mut packed = Vec::with_capacity(all.len());
    for (w, y) in all {
        match w {
            Stored::F32(w) => {
                let n = y.cols();
                gemm::linear(precision, x, w, y, x.cols(), n);
            }
            Stored::Packed(w) => packed.push((single(w), &mut y[..])),
        }
    }
    if !packed.is_empty() {
        quant::linear_many(&quant::quantise_rows(x, x.cols()), &mut packed);
    }
}

/// [`products`] of each expert over its slots: see `wels_kernels::gemm::grouped_linear`.
pub(super) fn grouped_products(
    precision: Precision,
    x: &Tensor,
    rows: Option<&[u32]>,
    offsets: &[u32],
    all: &mut [(Stored, &mut Tensor)],
) {
    let mut words = None;
    for (w, y) in all {
        match w {
            Stored::F32(w) => {
                let n = y.cols();
                gemm::grouped_linear(precision, x, rows, offsets, w, y, x.cols(), n);
            }
            Stored::Packed(w) => {
                let x = words.get_or_insert_with(|| quant::quantise_rows(x, x.cols()));
                quant::grouped_linear(x, rows, offsets, w, y);
            }
        }
    }
}

/// The only matrix of a parameter that is not one of experts.
pub(super) fn single(matrices: &[QuantMatrix]) -> &QuantMatrix {
    assert_eq!(matrices.len(), 1, "a parameter of one matrix");
    &matrices[0]
}

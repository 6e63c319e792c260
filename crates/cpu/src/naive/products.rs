//! Products, with plain and with packed weights.

use std::borrow::Cow;

use wels_device::{
    BlockType, Dispatch, Groups, Ids, Packed, PackedMatrix, Precision, Products, Source, Start, Tensor, WeightGradient,
    WeightRef, Weights,
};
use wels_kernels::quant::blocks;
use wels_kernels::reference::{gemm, quant};

use super::rest::tables;
use super::{Naive, values, values_mut};

/// A matrix as the blocks of its rows, each row filled up to whole blocks.
pub(super) struct Matrix {
    block_type: BlockType,
    rows: usize,
    cols: usize,
    bytes: Vec<u8>,
}

impl Matrix {
    fn padded(&self) -> usize {
        self.cols.next_multiple_of(self.block_type.len())
    }

    pub fn row(&self, i: usize) -> Vec<f32> {
        let row_bytes = self.bytes.len() / self.rows;
        let mut row = vec![0.0; self.padded()];
        blocks::decode(self.block_type, &self.bytes[i * row_bytes..][..row_bytes], &mut row);
        row.truncate(self.cols);
        row
    }

    /// All rows.
    pub fn numbers(&self) -> Vec<f32> {
        (0..self.rows).flat_map(|i| self.row(i)).collect()
    }

    /// `y[T, N] = x[T, K] · wᵀ`, with x as it is or quantised as w is.
    pub fn product(&self, whole_rows: bool, x: &[f32], y: &mut [f32]) {
        if whole_rows || !self.block_type.is_quantised() {
            return gemm::linear(Precision::F32, x, &self.numbers(), y, self.cols, self.rows);
        }
        let pad = |x: &[f32]| x.iter().copied().chain(std::iter::repeat_n(0.0, self.padded() - self.cols)).collect();
        let x: Vec<f32> = x.chunks_exact(self.cols).flat_map(|x| -> Vec<f32> { pad(x) }).collect();
        quant::linear(&x, self.block_type, &self.bytes, y, self.padded(), self.rows);
    }
}

fn matrices(packed: &Packed) -> &[Matrix] {
    packed.matrices().downcast_ref::<Vec<Matrix>>().expect("matrices that the naive device packed")
}

pub(super) fn single(packed: &Packed) -> &Matrix {
    let [matrix] = matrices(packed) else { panic!("{packed:?} where one matrix is expected") };
    matrix
}

/// The numbers of a parameter, however it is stored.
pub(super) fn numbers(w: WeightRef<'_>) -> Cow<'_, [f32]> {
    match w {
        WeightRef::Plain(w) => values(w).into(),
        WeightRef::Packed(w) => matrices(w).iter().flat_map(Matrix::numbers).collect::<Vec<_>>().into(),
    }
}

impl Weights for Naive {
    fn pack(&self, source: Source, rows: usize, cols: usize) -> PackedMatrix {
        let (block_type, bytes) = match source {
            Source::Blocks { block_type, bytes } => (block_type, bytes.to_vec()),
            Source::Mapped { block_type, owner, range, .. } => (block_type, (*owner).as_ref()[range].to_vec()),
            Source::Values { values, to } => {
                let padded = cols.next_multiple_of(to.len());
                let mut bytes = vec![0; rows * padded / to.len() * to.bytes()];
                let row_bytes = padded / to.len() * to.bytes();
                for (values, bytes) in values.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes)) {
                    let mut row = vec![0.0; padded];
                    row[..cols].copy_from_slice(values);
                    blocks::encode(to, &row, bytes);
                }
                (to, bytes)
            }
        };
        PackedMatrix { rows, cols, block_type, memory: Box::new(Matrix { block_type, rows, cols, bytes }) }
    }

    fn stack(&self, matrices: Vec<PackedMatrix>) -> Packed {
        let like: Vec<_> = matrices.iter().map(|m| (m.rows, m.cols, m.block_type)).collect();
        let own = |matrix: PackedMatrix| *matrix.memory.downcast().expect("a matrix that the naive device packed");
        let matrices: Vec<Matrix> = matrices.into_iter().map(own).collect();
        Packed::new(&like, Box::new(matrices))
    }

    fn keeps_fp8(&self) -> bool {
        true
    }

    fn unpack(&self, packed: &Packed) -> Vec<f32> {
        matrices(packed).iter().flat_map(Matrix::numbers).collect()
    }

    fn packed_bytes(&self, packed: &Packed) -> usize {
        matrices(packed).iter().map(|matrix| matrix.bytes.len()).sum()
    }
}

impl Products for Naive {
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]) {
        for (w, y) in products {
            let n = y.cols();
            match w {
                WeightRef::Plain(w) => gemm::linear(precision, values(x), values(w), values_mut(y), x.cols(), n),
                WeightRef::Packed(w) => single(w).product(w.takes_whole_rows(), values(x), values_mut(y)),
            }
        }
    }

    fn linear_dx(&self, precision: Precision, terms: &[(&Tensor, WeightRef)], (dx, mut start): (&mut Tensor, Start)) {
        for (dy, w) in terms {
            let (k, n) = (dx.cols(), dy.cols());
            gemm::linear_dx(precision, values(dy), &numbers(*w), values_mut(dx), k, n, start);
            start = Start::Continue;
        }
    }

    fn linear_dw(&self, precision: Precision, x: &Tensor, _: &Ids, gradients: &mut [WeightGradient]) {
        for (dy, (dw, start)) in gradients {
            gemm::linear_dw(precision, values(dy), values(x), values_mut(dw), x.cols(), dy.cols(), *start);
        }
    }

    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]) {
        let (rows, offsets) = parts(groups, x.rows());
        for (w, y) in products {
            let (k, n) = (x.cols(), y.cols());
            let (x, rows, y) = (values(x), rows.as_deref(), values_mut(y));
            let packed = match w {
                WeightRef::Plain(w) => {
                    gemm::grouped_linear(precision, x, rows, &offsets, values(w), y, k, n);
                    continue;
                }
                WeightRef::Packed(packed) => packed,
            };
            for (matrix, ends) in matrices(packed).iter().zip(offsets.windows(2)) {
                for slot in ends[0] as usize..ends[1] as usize {
                    let row = rows.map_or(slot, |rows| rows[slot] as usize);
                    matrix.product(packed.takes_whole_rows(), &x[row * k..][..k], &mut y[slot * n..][..n]);
                }
            }
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
            let (k, n) = (dx.cols(), dy.cols());
            gemm::grouped_linear_dx(precision, values(dy), offsets, &numbers(*w), values_mut(dx), k, n, start);
            start = Start::Continue;
        }
    }

    fn grouped_dw(&self, precision: Precision, x: &Tensor, groups: Groups, _: &Ids, gradients: &mut [WeightGradient]) {
        for (dy, (dw, start)) in gradients {
            let (rows, offsets) = parts(groups, dy.rows());
            let (k, n, rows) = (x.cols(), dy.cols(), rows.as_deref());
            gemm::grouped_linear_dw(precision, values(dy), values(x), rows, &offsets, values_mut(dw), k, n, *start);
        }
    }
}

/// The row of each slot, where these are not the slots themselves, and where the parts of `rows` rows begin.
fn parts(groups: Groups, rows: usize) -> (Option<Vec<u32>>, Vec<u32>) {
    match groups {
        Groups::Slots(dispatch) => (None, tables(dispatch).offsets().to_vec()),
        Groups::Tokens(dispatch) => (Some(tables(dispatch).rows().to_vec()), tables(dispatch).offsets().to_vec()),
        Groups::Equal(parts) => (None, (0..=parts).map(|part| (part * (rows / parts)) as u32).collect()),
    }
}

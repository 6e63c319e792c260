//! E4M3 weights with one f32 scale for each block of 128×128: `W[i,j] = q[i,j] · scale[i/128, j/128]`.
//!
//! The scales are called `weight_scale_inv`; despite the name they multiply. Blocks at the right and lower edge are
//! smaller. (DeepSeek-V3, README_WEIGHTS and `inference/kernel.py`.)

use std::ops::Range;

use wels_device::BlockType;
use wels_device::host::convert;

/// Rows and columns of a block.
pub const BLOCK: usize = 128;

/// Largest finite E4M3 number.
const E4M3_MAX: f32 = 448.0;

/// A matrix as a file has it.
pub(crate) struct Fp8Matrix<'a> {
    /// E4M3, `[rows, cols]`.
    pub bytes: &'a [u8],
    /// Of blocks, as [`scale_shape`] says.
    pub scales: Vec<f32>,
    pub cols: usize,
}

impl Fp8Matrix<'_> {
    /// Some of its rows in [`BlockType::E4m3`].
    pub fn rows(&self, rows: Range<usize>) -> Vec<u8> {
        let mut blocks = Vec::with_capacity(rows.len() * self.cols.div_ceil(BLOCK) * BlockType::E4m3.bytes());
        for row in rows {
            for (i, bytes) in self.bytes[row * self.cols..][..self.cols].chunks(BLOCK).enumerate() {
                push_block(&mut blocks, self.scale(row, i * BLOCK), bytes.iter().copied());
            }
        }
        blocks
    }

    /// The transpose of some of its rows in [`BlockType::E4m3`].
    ///
    /// # Panics
    /// If the rows do not begin where blocks do.
    pub fn transposed(&self, rows: Range<usize>) -> Vec<u8> {
        assert!(rows.start.is_multiple_of(BLOCK), "row {} is within a block", rows.start);
        let mut blocks = Vec::with_capacity(self.cols * rows.len().div_ceil(BLOCK) * BlockType::E4m3.bytes());
        for col in 0..self.cols {
            for first in rows.clone().step_by(BLOCK) {
                let column = self.bytes[first * self.cols + col..].iter().step_by(self.cols);
                push_block(&mut blocks, self.scale(first, col), column.take(rows.end - first).take(BLOCK).copied());
            }
        }
        blocks
    }

    fn scale(&self, row: usize, col: usize) -> f32 {
        self.scales[row / BLOCK * self.cols.div_ceil(BLOCK) + col / BLOCK]
    }
}

/// A block of [`BlockType::E4m3`], filled up with zeros.
fn push_block(blocks: &mut Vec<u8>, scale: f32, numbers: impl Iterator<Item = u8>) {
    let end = blocks.len() + BlockType::E4m3.bytes();
    blocks.extend(scale.to_le_bytes());
    blocks.extend(numbers);
    blocks.resize(end, 0);
}

/// Shape of the scales of a matrix.
pub fn scale_shape(rows: usize, cols: usize) -> [usize; 2] {
    [rows.div_ceil(BLOCK), cols.div_ceil(BLOCK)]
}

/// Number of scales of a matrix.
pub fn scale_count(rows: usize, cols: usize) -> usize {
    let [down, across] = scale_shape(rows, cols);
    down * across
}

/// `values` [rows, cols] times their block's scale, in place.
pub fn apply_scales(values: &mut [f32], scales: &[f32], cols: usize) {
    let across = cols.div_ceil(BLOCK);
    for (row, values) in values.chunks_exact_mut(cols).enumerate() {
        let scales = &scales[row / BLOCK * across..][..across];
        for (block, scale) in values.chunks_mut(BLOCK).zip(scales) {
            block.iter_mut().for_each(|value| *value *= scale);
        }
    }
}

/// The scales at which each block's largest magnitude in `values` [rows, cols] becomes 448.
pub fn scales(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    let across = cols.div_ceil(BLOCK);
    let mut scales = vec![0f32; scale_count(rows, cols)];
    for (row, values) in values.chunks_exact(cols).enumerate() {
        let largest = &mut scales[row / BLOCK * across..][..across];
        for (block, largest) in values.chunks(BLOCK).zip(largest) {
            *largest = block.iter().fold(*largest, |largest, value| largest.max(value.abs()));
        }
    }
    // A block of zeros, or one so small that its scale would be subnormal, keeps scale 1.
    scales.iter_mut().for_each(|scale| *scale = if *scale >= 1e-30 { *scale / E4M3_MAX } else { 1.0 });
    scales
}

/// The E4M3 bytes of `values` [rows, cols] at these scales.
pub fn quantize(values: &[f32], scales: &[f32], cols: usize) -> Vec<u8> {
    let mut scaled = values.to_vec();
    let inverse: Vec<f32> = scales.iter().map(|scale| 1.0 / scale).collect();
    apply_scales(&mut scaled, &inverse, cols);
    let mut bytes = vec![0u8; values.len()];
    convert::to_e4m3s(&scaled, &mut bytes);
    bytes
}

#[cfg(test)]
mod tests {
    use wels_device::host::blocks;

    use super::*;

    #[test]
    fn blocks_at_the_edge_have_their_own_scales() {
        let (rows, cols) = (130, 257);
        assert_eq!(scale_shape(rows, cols), [2, 3]);
        // The value names its block; the scales are powers of two, so that the products are exact.
        let mut values = vec![1f32; rows * cols];
        let scales: Vec<f32> = (0..6).map(|i| (1 << i) as f32).collect();
        apply_scales(&mut values, &scales, cols);
        for (i, value) in values.iter().enumerate() {
            let (row, col) = (i / cols, i % cols);
            assert_eq!(*value, scales[row / 128 * 3 + col / 128], "element {row},{col}");
        }
    }

    #[test]
    fn rows_and_columns_are_the_same_numbers() {
        let (rows, cols) = (300, 140);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0).collect();
        let scales = scales(&values, cols);
        let bytes = quantize(&values, &scales, cols);
        let mut expected = vec![0.0; rows * cols];
        convert::from_e4m3s(&bytes, &mut expected);
        apply_scales(&mut expected, &scales, cols);
        let matrix = Fp8Matrix { bytes: &bytes, scales, cols };
        let some = blocks::decode_rows(BlockType::E4m3, &matrix.rows(100..rows), cols);
        assert_eq!(some, expected[100 * cols..]);
        for range in [0..rows, 128..rows, 128..200, 0..1] {
            let turned = blocks::decode_rows(BlockType::E4m3, &matrix.transposed(range.clone()), range.len());
            for (i, value) in turned.iter().enumerate() {
                let (col, row) = (i / range.len(), range.start + i % range.len());
                assert_eq!(*value, expected[row * cols + col], "{row}, {col} of {range:?}");
            }
        }
    }

    #[test]
    fn quantizing_what_was_quantized_changes_nothing() {
        let (rows, cols) = (140, 150);
        let values: Vec<f32> = (0..rows * cols).map(|i| ((i * 2654435761) % 1000) as f32 / 500.0 - 1.0).collect();
        let dequantize = |bytes: &[u8], scales: &[f32]| {
            let mut values = vec![0.0; bytes.len()];
            convert::from_e4m3s(bytes, &mut values);
            apply_scales(&mut values, scales, cols);
            values
        };
        let scales_once = scales(&values, cols);
        let bytes = quantize(&values, &scales_once, cols);
        let once = dequantize(&bytes, &scales_once);
        for (value, rounded) in values.iter().zip(&once) {
            // 3 bits of mantissa: half a unit in the last place is 1/16 of the value; below 2^-6·scale it is absolute.
            assert!((value - rounded).abs() <= value.abs() / 16.0 + 2f32.powi(-10) / 448.0, "{value} became {rounded}");
        }
        assert_eq!(bytes, quantize(&once, &scales(&once, cols), cols));
        assert_eq!(scales(&[0.0; 4], 2), [1.0]);
        assert_eq!(quantize(&[0.0; 4], &[1.0], 2), [0; 4]);
    }
}

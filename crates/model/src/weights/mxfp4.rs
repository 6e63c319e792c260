//! Experts in MXFP4 as gpt-oss is published: for each 32 numbers of a row of a linear map 16 bytes of two codes of
//! E2M1, the first in the lower bits, in a tensor NAME`_blocks` [E, rows, cols/32, 16], and a byte of a power of two
//! (E8M0) in NAME`_scales` [E, rows, cols/32]. Source: `transformers`, `integrations/mxfp4.py`,
//! `convert_moe_packed_tensors`.
//!
//! They become blocks of [`BlockType::Mxfp4`], whose bytes have codes i and i + 16, without a number changed.

use wels_device::BlockType;

use crate::names::HfTensor;

/// What a tensor's name is followed by to name its codes.
pub const BLOCKS: &str = "_blocks";
/// The same for its powers of two.
pub const SCALES: &str = "_scales";

/// Numbers that share a scale.
const BLOCK: usize = 32;

/// The shapes of blocks and scales of the tensor [E, cols, rows] that holds `tensor`; none if it has no such form.
pub fn shapes(tensor: &HfTensor) -> Option<[Vec<usize>; 2]> {
    let [experts, cols, rows] = tensor.shape[..] else { return None };
    let blocks = cols.is_multiple_of(BLOCK).then_some(cols / BLOCK)?;
    Some([vec![experts, rows, blocks, BLOCK / 2], vec![experts, rows, blocks]])
}

/// The rows of `tensor` as blocks of [`BlockType::Mxfp4`], from all bytes of both tensors.
pub fn rows(tensor: &HfTensor, blocks: &[u8], scales: &[u8]) -> Vec<u8> {
    let wide = tensor.shape[2];
    let of_row = tensor.cols / BLOCK;
    // The tensor that is described is the transpose of what these hold.
    let first = tensor.place.start / (wide * tensor.cols) * wide + tensor.place.start % wide;
    let mut bytes = Vec::with_capacity(tensor.rows * of_row * BlockType::Mxfp4.bytes());
    for row in (0..tensor.rows).map(|r| first + r * tensor.place.row) {
        let (scales, blocks) = (&scales[row * of_row..][..of_row], &blocks[row * of_row * 16..][..of_row * 16]);
        for (scale, pairs) in scales.iter().zip(blocks.as_chunks::<16>().0) {
            bytes.push(*scale);
            let code = |i: usize| pairs[i / 2] >> (i % 2 * 4) & 15;
            bytes.extend((0..16).map(|i| code(i) | code(i + 16) << 4));
        }
    }
    bytes
}

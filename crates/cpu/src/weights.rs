//! Parameters packed in panels, or read where their file is mapped.

use wels_device::host::blocks;
use wels_device::{BlockType, Packed, PackedMatrix, Source, Weights};
use wels_kernels::quant::QuantMatrix;

use crate::Cpu;

/// The matrices of a parameter.
pub(crate) fn matrices(packed: &Packed) -> &[QuantMatrix] {
    packed.matrices().downcast_ref::<Vec<QuantMatrix>>().expect("matrices that the processor packed")
}

/// The only matrix of a parameter that is not one of experts.
pub(crate) fn single(packed: &Packed) -> &QuantMatrix {
    let matrices = matrices(packed);
    assert_eq!(matrices.len(), 1, "a parameter of one matrix");
    &matrices[0]
}

impl Weights for Cpu {
    fn pack(&self, source: Source, rows: usize, cols: usize) -> PackedMatrix {
        let matrix = match source {
            Source::Blocks { block_type: BlockType::E4m3, bytes } => {
                let values = blocks::decode_rows(BlockType::E4m3, bytes, cols);
                QuantMatrix::quantise(&values, rows, cols, BlockType::F32)
            }
            Source::Blocks { block_type, bytes } => QuantMatrix::from_blocks(block_type, bytes, rows, cols),
            Source::Mapped { block_type, owner, range, budget } => {
                QuantMatrix::mapped(block_type, owner, range, rows, cols, budget)
            }
            Source::Values { values, to } => QuantMatrix::quantise(values, rows, cols, to),
        };
        PackedMatrix { rows, cols, block_type: matrix.block_type(), memory: Box::new(matrix) }
    }

    fn stack(&self, matrices: Vec<PackedMatrix>) -> Packed {
        let like: Vec<_> = matrices.iter().map(|m| (m.rows, m.cols, m.block_type)).collect();
        let own = |matrix: PackedMatrix| *matrix.memory.downcast().expect("a matrix that the processor packed");
        let matrices: Vec<QuantMatrix> = matrices.into_iter().map(own).collect();
        Packed::new(&like, Box::new(matrices))
    }

    fn keeps_fp8(&self) -> bool {
        false
    }

    fn unpack(&self, packed: &Packed) -> Vec<f32> {
        let mut values = vec![0.0; packed.rows() * packed.cols()];
        let mut rest = &mut values[..];
        for matrix in matrices(packed) {
            let (of_matrix, others) = rest.split_at_mut(matrix.rows() * matrix.columns());
            let rows: Vec<u32> = (0..matrix.rows() as u32).collect();
            matrix.rows_of(&rows, of_matrix);
            rest = others;
        }
        values
    }

    fn packed_bytes(&self, packed: &Packed) -> usize {
        matrices(packed).iter().map(QuantMatrix::bytes).sum()
    }
}

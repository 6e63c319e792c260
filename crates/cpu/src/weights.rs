//! Parameters packed in panels, or read where their file is mapped; over several ranks, each rank's part of them.

use std::ops::Range;
use std::sync::Arc;

use wels_device::host::blocks;
use wels_device::{BlockType, Packed, PackedMatrix, Source, WeightRef, Weights};
use wels_kernels::quant::QuantMatrix;

use crate::Cpu;
use crate::ranks::{Kept, Part, Piece};

/// A parameter as it is kept.
pub(crate) enum Stored {
    /// All of its matrices; none on a rank that has nothing to do with it.
    Here(Vec<QuantMatrix>),
    /// This rank's part.
    Spread(Arc<Part>),
}

pub(crate) fn stored(packed: &Packed) -> &Stored {
    packed.matrices().downcast_ref().expect("matrices that the processor packed")
}

/// The matrices of a parameter.
///
/// # Panics
/// If ranks have parts of it.
pub(crate) fn matrices(packed: &Packed) -> &[QuantMatrix] {
    match stored(packed) {
        Stored::Here(matrices) => matrices,
        Stored::Spread(_) => panic!("{packed:?} is in parts where all of it is needed"),
    }
}

/// The only matrix of a parameter that is not one of experts.
pub(crate) fn single(packed: &Packed) -> &QuantMatrix {
    let matrices = matrices(packed);
    assert_eq!(matrices.len(), 1, "a parameter of one matrix");
    &matrices[0]
}

/// The part of a parameter that ranks have parts of.
pub(crate) fn part(packed: &Packed) -> Option<&Part> {
    match stored(packed) {
        Stored::Here(_) => None,
        Stored::Spread(part) => Some(part),
    }
}

/// The same where an operation may be given one that is not packed.
pub(crate) fn part_of<'a>(w: WeightRef<'a>) -> Option<&'a Part> {
    match w {
        WeightRef::Plain(_) => None,
        WeightRef::Packed(packed) => part(packed),
    }
}

/// Packs `rows` of a matrix `[_, cols]` where they are stored, reading no others.
fn pack_rows(source: Source, rows: Range<usize>, cols: usize) -> QuantMatrix {
    let count = rows.len();
    let of = |block_type: BlockType| {
        let row_bytes = block_type.row_bytes(cols).expect("rows of whole blocks");
        rows.start * row_bytes..rows.end * row_bytes
    };
    match source {
        Source::Blocks { block_type: BlockType::E4m3, bytes } => {
            let values = blocks::decode_rows(BlockType::E4m3, &bytes[of(BlockType::E4m3)], cols);
            QuantMatrix::quantise(&values, count, cols, BlockType::F32)
        }
        Source::Blocks { block_type, bytes } => {
            QuantMatrix::from_blocks(block_type, &bytes[of(block_type)], count, cols)
        }
        Source::Mapped { block_type, owner, range, budget } => {
            let of = of(block_type);
            let range = range.start + of.start..range.start + of.end;
            QuantMatrix::mapped(block_type, owner, range, count, cols, budget)
        }
        Source::Values { values, to } => {
            QuantMatrix::quantise(&values[rows.start * cols..rows.end * cols], count, cols, to)
        }
    }
}

/// The number format that a matrix is kept in.
fn format_of(source: &Source) -> BlockType {
    match source {
        Source::Blocks { block_type: BlockType::E4m3, .. } => BlockType::F32,
        Source::Blocks { block_type, .. } | Source::Mapped { block_type, .. } => *block_type,
        Source::Values { to, .. } => *to,
    }
}

impl Weights for Cpu {
    fn pack(&self, source: Source, rows: usize, cols: usize) -> PackedMatrix {
        self.pack_one_of(source, rows, cols, 0, 1)
    }

    fn pack_one_of(&self, source: Source, rows: usize, cols: usize, which: usize, count: usize) -> PackedMatrix {
        let block_type = format_of(&source);
        let packed = |source, rows: Range<usize>| (!rows.is_empty()).then(|| pack_rows(source, rows, cols));
        let piece = match &self.ranks {
            None => Piece::Small(packed(source, 0..rows)),
            Some(ranks) => {
                let bytes = cols.div_ceil(block_type.len()) * block_type.bytes() * rows * count;
                match ranks.keep(rows, bytes, count) {
                    Kept::Small { here: true } => Piece::Small(packed(source, 0..rows)),
                    Kept::Small { here: false } => Piece::Small(None),
                    Kept::Rows(own) => Piece::Kept(packed(source, own)),
                    Kept::Matrices(own) => Piece::Kept(own.contains(&which).then(|| pack_rows(source, 0..rows, cols))),
                }
            }
        };
        PackedMatrix { rows, cols, block_type, memory: Box::new(piece) }
    }

    fn stack(&self, matrices: Vec<PackedMatrix>) -> Packed {
        let like: Vec<_> = matrices.iter().map(|m| (m.rows, m.cols, m.block_type)).collect();
        let (mut here, mut kept) = (Vec::new(), Vec::new());
        for matrix in matrices {
            match *matrix.memory.downcast::<Piece>().expect("a matrix that the processor packed") {
                Piece::Small(matrix) => here.extend(matrix),
                Piece::Kept(matrix) => kept.push(matrix),
            }
        }
        let stored = match &self.ranks {
            Some(ranks) if !kept.is_empty() => {
                assert_eq!(kept.len(), like.len(), "a parameter that is partly in parts");
                Stored::Spread(ranks.register(kept, like[0].0, like.len()))
            }
            _ => Stored::Here(here),
        };
        Packed::new(&like, Box::new(stored))
    }

    fn keeps_fp8(&self) -> bool {
        false
    }

    /// Over several ranks, all of them call it, while they load.
    fn unpack(&self, packed: &Packed) -> Vec<f32> {
        let own = match stored(packed) {
            Stored::Here(matrices) => values(matrices),
            Stored::Spread(part) => values(part.pieces()),
        };
        match (&self.ranks, part(packed)) {
            (None, _) => own,
            (Some(ranks), None) => ranks.gather_all(&own).swap_remove(0),
            (Some(ranks), Some(part)) => part.whole(&ranks.gather_all(&own), packed.cols()),
        }
    }

    /// Over several ranks, those of this one's part.
    fn packed_bytes(&self, packed: &Packed) -> usize {
        match stored(packed) {
            Stored::Here(matrices) => matrices.iter().map(QuantMatrix::bytes).sum(),
            Stored::Spread(part) => part.bytes(),
        }
    }
}

/// The values of matrices, one below the other.
fn values(matrices: &[QuantMatrix]) -> Vec<f32> {
    let mut values = vec![0.0; matrices.iter().map(|matrix| matrix.rows() * matrix.columns()).sum()];
    let mut rest = &mut values[..];
    for matrix in matrices {
        let own = rest.split_off_mut(..matrix.rows() * matrix.columns()).expect("room for all of them");
        let rows: Vec<u32> = (0..matrix.rows() as u32).collect();
        matrix.rows_of(&rows, own);
    }
    values
}

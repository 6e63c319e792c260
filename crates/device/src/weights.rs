//! Parameters as products read them: plain, or packed by the device from any number format.

use std::any::Any;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::{BlockType, Memory, MemoryBudget, Tensor};

/// A parameter as operations read it.
#[derive(Clone, Copy)]
pub enum WeightRef<'a> {
    /// `[rows, cols]`.
    Plain(&'a Tensor),
    /// One matrix, or one for each expert or head, stacked by rows; for inference alone.
    Packed(&'a Packed),
}

/// Where a matrix `[rows, cols]` to be packed comes from.
pub enum Source<'a> {
    /// Blocks of a file's number format, row by row.
    Blocks { block_type: BlockType, bytes: &'a [u8] },
    /// Blocks that may stay where they are, as in a mapped file: a device packs them when a product first reads them,
    /// while `budget` lasts.
    Mapped {
        block_type: BlockType,
        /// Who has the bytes.
        owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
        /// Which of them.
        range: Range<usize>,
        /// Memory that is left for packing.
        budget: &'a Arc<MemoryBudget>,
    },
    /// Values to be brought to a number format.
    Values {
        /// `[rows, cols]`.
        values: &'a [f32],
        to: BlockType,
    },
}

/// A matrix as its device packed it.
pub struct PackedMatrix {
    /// N.
    pub rows: usize,
    /// K.
    pub cols: usize,
    /// Its number format.
    pub block_type: BlockType,
    /// The device's.
    pub memory: Memory,
}

/// Packed matrices of equal width, stacked by rows: a parameter. Clones share it.
#[derive(Clone)]
pub struct Packed(Arc<Stack>);

struct Stack {
    rows: usize,
    cols: usize,
    count: usize,
    block_type: BlockType,
    matrices: Box<dyn Any + Send + Sync>,
}

impl Packed {
    /// For a device's [`Weights::stack`]: `matrices` is what it keeps of those whose number and shape these are.
    ///
    /// # Panics
    /// If there are none, or they differ in width.
    pub fn new(like: &[(usize, usize, BlockType)], matrices: Memory) -> Self {
        let &(_, cols, block_type) = like.first().expect("at least one matrix");
        assert!(like.iter().all(|(_, other, _)| *other == cols), "stacked matrices of different widths: {like:?}");
        let rows = like.iter().map(|(rows, ..)| rows).sum();
        Packed(Arc::new(Stack { rows, cols, count: like.len(), block_type, matrices }))
    }

    /// Of all matrices.
    pub fn rows(&self) -> usize {
        self.0.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.0.cols
    }

    /// How many matrices.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// The number format of the first.
    pub fn block_type(&self) -> BlockType {
        self.0.block_type
    }

    /// For the device.
    pub fn matrices(&self) -> &(dyn Any + Send + Sync) {
        &*self.0.matrices
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stack { rows, cols, count, block_type, .. } = &*self.0;
        write!(f, "{count} × {}, together [{rows}, {cols}]", block_type.name())
    }
}

/// Packing.
pub trait Weights {
    /// Packs a matrix `[rows, cols]`, or remembers where it is.
    fn pack(&self, source: Source, rows: usize, cols: usize) -> PackedMatrix;

    /// [`Weights::pack`] of number `which` of `count` matrices of one size that make a parameter: a device that is
    /// several ranks' has each of them keep some.
    fn pack_one_of(&self, source: Source, rows: usize, cols: usize, which: usize, count: usize) -> PackedMatrix {
        assert!(which < count, "matrix {which} of {count}");
        self.pack(source, rows, cols)
    }

    /// Makes a parameter of matrices.
    fn stack(&self, matrices: Vec<PackedMatrix>) -> Packed;

    /// Whether it keeps [`BlockType::E4m3`] as that is; else it keeps the numbers in f32.
    fn keeps_fp8(&self) -> bool;

    /// The values `[rows, cols]`, on the host.
    fn unpack(&self, packed: &Packed) -> Vec<f32>;

    /// Bytes that a product with all of it reads.
    fn packed_bytes(&self, packed: &Packed) -> usize;
}

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
    /// One matrix, or one for each expert or head, stacked by rows; it is not learnt.
    Packed(&'a Packed),
}

impl<'a> From<&'a Tensor> for WeightRef<'a> {
    fn from(w: &'a Tensor) -> Self {
        WeightRef::Plain(w)
    }
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
pub struct Packed {
    stack: Arc<Stack>,
    whole_rows: bool,
}

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
        let stack = Arc::new(Stack { rows, cols, count: like.len(), block_type, matrices });
        Packed { stack, whole_rows: false }
    }

    /// The same for products that quantise nothing: x as it is, times the numbers that these stand for, in f32, as if
    /// they were plain ones, in every bit. So they are held while something is learnt beside them.
    pub fn with_whole_rows(self) -> Packed {
        Packed { whole_rows: true, ..self }
    }

    /// Whether products take it so.
    pub fn takes_whole_rows(&self) -> bool {
        self.whole_rows
    }

    /// Of all matrices.
    pub fn rows(&self) -> usize {
        self.stack.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.stack.cols
    }

    /// How many matrices.
    pub fn count(&self) -> usize {
        self.stack.count
    }

    /// The number format of the first.
    pub fn block_type(&self) -> BlockType {
        self.stack.block_type
    }

    /// For the device.
    pub fn matrices(&self) -> &(dyn Any + Send + Sync) {
        &*self.stack.matrices
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Stack { rows, cols, count, block_type, .. } = &*self.stack;
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

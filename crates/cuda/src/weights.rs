//! Packed weights: the blocks of a file's number format in the card's memory, just as they are; and as tiles where they
//! are multiplied with activations in bf16.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use wels_device::host::blocks;
use wels_device::{BlockType, Packed, PackedMatrix, Source, Weights};

use crate::Cuda;
use crate::launch::Buffer;
use crate::memory::{done, download};
use crate::quantised::Tiles;

/// A matrix on its way into a [`Stack`]: rows filled up to whole blocks.
struct Matrix {
    blocks: Buffer,
    bytes: usize,
}

/// The matrices of a parameter, one behind the other.
pub(crate) struct Stack {
    /// Of each matrix.
    pub formats: Vec<BlockType>,
    /// Rows of each matrix, and where it begins.
    places: Vec<(usize, usize)>,
    /// Numbers in a row, filled up to whole blocks.
    pub padded: usize,
    layouts: Mutex<Layouts>,
    bytes: usize,
    /// For each matrix its format as kernels know it, and where it begins.
    pub table: Buffer,
}

/// What the matrices are kept as: their bytes in the file's order, tiles, or both where both are used.
struct Layouts {
    blocks: Option<Arc<Buffer>>,
    tiles: Option<Arc<Tiles>>,
    /// Somebody reads the blocks again and again.
    keeps_blocks: bool,
}

impl Stack {
    fn layouts(&self) -> MutexGuard<'_, Layouts> {
        self.layouts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether all matrices are quantised.
    ///
    /// # Panics
    /// If some are and some are not.
    pub fn is_quantised(&self) -> bool {
        let quantised = self.formats.iter().filter(|format| format.is_quantised()).count();
        let even = quantised == 0 || quantised == self.formats.len();
        assert!(even, "matrices of one parameter of which some are quantised and some are not");
        quantised > 0
    }

    /// Whether tensor cores take all matrices from tiles.
    pub fn is_unpacked(&self) -> bool {
        self.formats.iter().all(|format| format.shares_scales())
    }

    /// The blocks of all matrices, made of tiles where there are only these.
    fn blocks(&self, cuda: &Cuda) -> Arc<Buffer> {
        let layouts = self.layouts();
        match (&layouts.blocks, &layouts.tiles) {
            (Some(blocks), _) => blocks.clone(),
            (None, Some(tiles)) => {
                let end = self.formats.iter().zip(&self.places).next_back().map_or(0, |(format, (rows, place))| {
                    place + rows * format.row_bytes(self.padded).expect("whole blocks")
                });
                let mut blocks = done(Buffer::new(&cuda.driver, end.next_multiple_of(16)));
                cuda.tiles_to_blocks(tiles, self.padded, &self.formats, &self.places, &mut blocks);
                Arc::new(blocks)
            }
            (None, None) => unreachable!("matrices are kept as something"),
        }
    }

    /// The same for who reads them again and again: from now on they are kept.
    pub fn kept(&self, cuda: &Cuda) -> Arc<Buffer> {
        let blocks = self.blocks(cuda);
        let mut layouts = self.layouts();
        layouts.keeps_blocks = true;
        layouts.blocks.get_or_insert(blocks).clone()
    }

    /// The matrices, which are quantised, as tiles. Made at the first call, when the blocks are given up unless they
    /// are kept.
    pub fn tiles(&self, cuda: &Cuda) -> Arc<Tiles> {
        let mut layouts = self.layouts();
        let Layouts { blocks, tiles, keeps_blocks } = &mut *layouts;
        let tiles = tiles.get_or_insert_with(|| {
            let blocks = blocks.as_ref().expect("blocks where there are no tiles");
            Arc::new(cuda.blocks_to_tiles((blocks, self.padded), &self.formats, &self.places))
        });
        if !*keeps_blocks {
            *blocks = None;
        }
        tiles.clone()
    }

    /// All matrices in bf16 as one of `cols` columns, if that is what they are.
    pub fn in_bf16(&self, cols: usize) -> Option<Arc<Buffer>> {
        let together = self.places.iter().scan(0, |end, (rows, place)| {
            let follows = *place == *end;
            *end += rows * cols * 2;
            Some(follows)
        });
        let all = self.formats.iter().all(|format| *format == BlockType::Bf16) && self.padded == cols;
        let whole = all && together.into_iter().all(|follows| follows);
        self.layouts().blocks.clone().filter(|_| whole)
    }
}

/// What the device keeps of a parameter.
///
/// # Panics
/// If another device packed it.
pub(crate) fn stack(packed: &Packed) -> &Stack {
    packed.matrices().downcast_ref().expect("matrices that a CUDA device packed")
}

fn padded(format: BlockType, cols: usize) -> usize {
    cols.next_multiple_of(format.len())
}

/// The number by which kernels know a format.
pub(crate) fn code(format: BlockType) -> i64 {
    KNOWN.iter().position(|other| *other == format).expect("a format that kernels know") as i64
}

/// Formats that kernels know, in the order of their numbers.
const KNOWN: [BlockType; 14] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::Bf16,
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q4_1,
    BlockType::Q5_0,
    BlockType::Q5_1,
    BlockType::Q2K,
    BlockType::Q3K,
    BlockType::Q4K,
    BlockType::Q5K,
    BlockType::Q6K,
    BlockType::E4m3,
];

fn encoded(values: &[f32], to: BlockType, cols: usize) -> Vec<u8> {
    let padded = padded(to, cols);
    let row_bytes = to.row_bytes(padded).expect("whole blocks");
    let mut bytes = vec![0; values.len() / cols * row_bytes];
    if padded == cols {
        blocks::encode(to, values, &mut bytes);
        return bytes;
    }
    let mut row = vec![0.0; padded];
    for (values, bytes) in values.chunks_exact(cols).zip(bytes.chunks_exact_mut(row_bytes)) {
        row[..cols].copy_from_slice(values);
        blocks::encode(to, &row, bytes);
    }
    bytes
}

impl Cuda {
    /// `y[t]`: row `ids[t]` of a parameter of one matrix, `len` numbers in rows of `d`.
    pub(crate) fn gather_packed(&self, table: &Packed, ids: &Buffer, y: &mut Buffer, d: usize, len: usize) {
        let stack = stack(table);
        assert_eq!(stack.formats.len(), 1, "{table:?} where one matrix is expected");
        let blocks = stack.kept(self);
        let launch = self.launch("gather_packed").over(len).read(&blocks).read(&stack.table).read(ids);
        launch.write(y).int(d).int(stack.padded).long(len).run();
    }
}

impl Weights for Cuda {
    fn pack(&self, source: Source, rows: usize, cols: usize) -> PackedMatrix {
        let own;
        let (block_type, bytes): (_, &[u8]) = match &source {
            Source::Blocks { block_type, bytes } => (*block_type, bytes),
            Source::Mapped { block_type, owner, range, .. } => (*block_type, &(**owner).as_ref()[range.clone()]),
            Source::Values { values, to } => {
                own = encoded(values, *to, cols);
                (*to, &own)
            }
        };
        if !KNOWN.contains(&block_type) {
            // Rounded to what products in bf16 would take of them anyway.
            let values = &blocks::decode_rows(block_type, bytes, cols);
            return self.pack(Source::Values { values, to: BlockType::Bf16 }, rows, cols);
        }
        let expected = block_type.row_bytes(padded(block_type, cols)).map(|row| row * rows);
        assert_eq!(Some(bytes.len()), expected, "bytes of a [{rows}, {cols}] matrix of {}", block_type.name());
        let memory = Box::new(Matrix { blocks: self.upload(bytes), bytes: bytes.len() });
        PackedMatrix { rows, cols, block_type, memory }
    }

    fn stack(&self, matrices: Vec<PackedMatrix>) -> Packed {
        let like: Vec<_> = matrices.iter().map(|m| (m.rows, m.cols, m.block_type)).collect();
        let own = |matrix: PackedMatrix| *matrix.memory.downcast().expect("a matrix that a CUDA device packed");
        let matrices: Vec<Matrix> = matrices.into_iter().map(own).collect();
        let padded = like.iter().map(|(_, cols, format)| padded(*format, *cols)).max().unwrap_or(0);
        let even =
            like.iter().all(|(_, cols, format)| !format.is_quantised() || self::padded(*format, *cols) == padded);
        assert!(even, "matrices of one parameter whose rows are filled up to different lengths: {like:?}");
        // Where a matrix begins is a place for words of 32 bits.
        let (mut places, mut table, mut bytes) = (Vec::new(), Vec::new(), 0);
        for ((rows, _, format), matrix) in like.iter().zip(&matrices) {
            places.push((*rows, bytes));
            table.extend([code(*format), bytes as i64]);
            bytes += matrix.bytes.next_multiple_of(16);
        }
        let mut all = done(Buffer::new(&self.driver, bytes));
        for (matrix, (_, place)) in matrices.iter().zip(&places) {
            done(all.copy_from(*place, &matrix.blocks, 0, matrix.bytes));
        }
        let formats = like.iter().map(|(.., format)| *format).collect();
        let total = matrices.iter().map(|matrix| matrix.bytes).sum();
        let table = self.upload(&table);
        let layouts = Mutex::new(Layouts { blocks: Some(Arc::new(all)), tiles: None, keeps_blocks: false });
        Packed::new(&like, Box::new(Stack { formats, places, padded, layouts, bytes: total, table }))
    }

    fn keeps_fp8(&self) -> bool {
        true
    }

    fn unpack(&self, packed: &Packed) -> Vec<f32> {
        let (stack, cols) = (stack(packed), packed.cols());
        let blocks = stack.blocks(self);
        let bytes: Vec<u8> = download(&blocks, blocks.bytes());
        let mut values = Vec::with_capacity(packed.rows() * cols);
        for (format, (rows, place)) in stack.formats.iter().zip(&stack.places) {
            let row_bytes = format.row_bytes(padded(*format, cols)).expect("whole blocks");
            values.extend(blocks::decode_rows(*format, &bytes[*place..][..rows * row_bytes], cols));
        }
        values
    }

    fn packed_bytes(&self, packed: &Packed) -> usize {
        stack(packed).bytes
    }
}

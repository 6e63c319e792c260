//! Products of activations in bf16 with weights that share scales, quantised or in E4M3, on tensor cores.
//!
//! Weights become numbers of bf16 (`kernels/products/unpack.cuh` says which) and are multiplied as such. On Hopper in
//! segments of k, to the same bits by two kernels: few rows by one that unpacks weights in registers and reads a file's
//! bytes once; many rows from a copy of the matrix in bf16, which lasts as long as the product. On other cards, and
//! where columns are not whole pieces of 16 bytes, from such a copy always, by the kernel of all products in bf16.

use std::sync::{Mutex, MutexGuard, PoisonError};

use wels_device::{BlockType, Dtype, Start};

use crate::Cuda;
use crate::launch::Buffer;
use crate::memory::{Numbers, done};
use crate::parts::Parts;
use crate::tensor_cores::{BOX, Hopper, Output, Product, Rows};
use crate::weights::{Stack, code};

/// Columns of a segment.
const SEGMENT: usize = 512;
/// Rows of w, or columns of y, of a block of the kernels for few rows.
const COLUMNS: usize = 64;
/// Rows of x that the widest kernel for few rows takes at once.
const FEW: usize = 64;
/// Rows of a piece of tiles.
const PIECE: usize = 16;

const MANY: Hopper = Hopper { kernel: "segments_y", rows: 128, width: 128, stages: 6, cost: 60 };

/// Quantised matrices of a parameter as products take them: `kernels/products/unpack.cuh`.
pub(crate) struct Tiles {
    bytes: Buffer,
    /// For each matrix its format as kernels know it, and where it begins.
    table: Buffer,
    /// Of all of them, where it is the same.
    format: Option<BlockType>,
}

/// Zeros that kernels count up from and leave as zeros.
#[derive(Default)]
pub(crate) struct Counts(Mutex<Option<Buffer>>);

impl Counts {
    fn of<'a>(&'a self, cuda: &Cuda, words: usize) -> MutexGuard<'a, Option<Buffer>> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counts.as_ref().is_none_or(|counts| counts.bytes() < words * 4) {
            let mut zeros = cuda.temporary(words);
            done(zeros.fill(0, words));
            *counts = Some(zeros);
        }
        counts
    }
}

/// Bytes of the tiles of a matrix of so many rows, and numbers in a row.
fn tile_bytes(format: BlockType, rows: usize, padded: usize) -> usize {
    let chunk = format.len().max(64);
    let row = format.row_bytes(padded.next_multiple_of(chunk)).expect("whole blocks");
    row * rows.next_multiple_of(PIECE)
}

/// Shared memory of a warp for few rows: 16 rows of a segment, and coefficients of 256 columns of them.
fn warp_bytes(format: BlockType) -> usize {
    let (group, each) = match format {
        BlockType::Q2K | BlockType::Q3K => (16, 8),
        BlockType::Q6K => (16, 16),
        BlockType::E4m3 => (128, 16),
        BlockType::Q5_0 | BlockType::Q5_1 | BlockType::Q5K | BlockType::Q8_0 => (32, 16),
        _ => (32, 8),
    };
    tile_bytes(format, PIECE, SEGMENT) + 256 / group * PIECE * each
}

impl Cuda {
    /// The blocks of matrices as tiles; `places` has the rows of each, and where its blocks begin.
    pub(crate) fn blocks_to_tiles(
        &self,
        (blocks, padded): (&Buffer, usize),
        formats: &[BlockType],
        places: &[(usize, usize)],
    ) -> Tiles {
        let (mut table, mut end) = (Vec::new(), 0);
        for (format, (rows, _)) in formats.iter().zip(places) {
            table.extend([code(*format), end as i64]);
            end += tile_bytes(*format, *rows, padded);
        }
        let mut bytes = done(Buffer::new(&self.driver, end));
        for ((format, (rows, place)), at) in formats.iter().zip(places).zip(table.iter().skip(1).step_by(2)) {
            let words = tile_bytes(*format, *rows, padded) / 4;
            let launch = self.launch("to_tiles").over(words).read_at(blocks, *place);
            let launch = launch.write_at(&mut bytes, *at as usize).int(code(*format) as usize);
            launch.int(*rows).int(padded).long(words).run();
        }
        let format = formats.first().copied().filter(|first| formats.iter().all(|format| format == first));
        Tiles { bytes, table: self.upload(&table), format }
    }

    /// Mirror of [`Cuda::blocks_to_tiles`].
    pub(crate) fn tiles_to_blocks(
        &self,
        tiles: &Tiles,
        padded: usize,
        formats: &[BlockType],
        places: &[(usize, usize)],
        blocks: &mut Buffer,
    ) {
        let mut at = 0;
        for (format, (rows, place)) in formats.iter().zip(places) {
            let count = rows * padded / format.len();
            let launch = self.launch("from_tiles").over(count).read_at(&tiles.bytes, at).write_at(blocks, *place);
            launch.int(code(*format) as usize).int(padded).long(count).run();
            at += tile_bytes(*format, *rows, padded);
        }
    }

    /// `y[S, N] = x · w[part]ᵀ` of x in bf16 and weights that all share scales.
    pub(crate) fn forward_tiles(&self, x: (&Numbers, usize), parts: Parts, stack: &Stack, y: (&mut Numbers, usize)) {
        let (k, n) = (x.1, y.1);
        let tiles = stack.tiles(self);
        if !self.has_wgmma(k, n) {
            let w = self.dequantised(&tiles, parts.count(), (n, k), stack.padded);
            let product = Product { w: &w, y: Output::all(y.0, Start::Zero), n };
            return self.tensor_y(x, parts, vec![product]);
        }
        // Of experts each has some of the rows.
        if let Some(format) = tiles.format.filter(|_| parts.slots() <= FEW * parts.count()) {
            return self.few_rows(x, parts, (&tiles, format, stack.padded), y);
        }
        let w = self.dequantised(&tiles, parts.count(), (n, k), stack.padded);
        self.many_rows(x, parts, &w, y);
    }

    /// The weights as matrices `[n, k]` of bf16, one behind the other.
    fn dequantised(&self, tiles: &Tiles, parts: usize, (n, k): (usize, usize), padded: usize) -> Buffer {
        let mut w = self.temporary((parts * n * k).div_ceil(2));
        let launch = self.launch("dequantise").blocks(k.div_ceil(128), n.div_ceil(PIECE), parts);
        let launch = launch.read(&tiles.bytes).read(&tiles.table).write(&mut w);
        launch.int(n).int(k).int(padded).run();
        w
    }

    fn many_rows(&self, (x, k): (&Numbers, usize), parts: Parts, w: &Buffer, (y, n): (&mut Numbers, usize)) {
        let rows = self.rows_of(&parts);
        let a = self.operand(x, parts.rows(), rows.rows, k);
        let (a_map, b_map) = (self.map(&a, rows.rows, k, MANY.rows), self.map(w, rows.parts * n, k, MANY.width));
        let y = Output::all(y, Start::Zero);
        let launch = self.hopper(
            &y.kernel(MANY.kernel),
            &MANY,
            (rows.tiles(MANY.rows) * n.div_ceil(MANY.width)).min(self.driver.processors()),
        );
        let launch = launch.map(a_map, &a).map(b_map, w).write(&mut y.numbers.buffer);
        rows.arguments(launch).int(n).int(k).run();
    }

    fn few_rows(
        &self,
        (x, k): (&Numbers, usize),
        parts: Parts,
        (tiles, format, padded): (&Tiles, BlockType, usize),
        (y, n): (&mut Numbers, usize),
    ) {
        let rows: Rows = self.rows_of(&parts);
        let a = self.operand(x, parts.rows(), rows.rows, k);
        let each = rows.rows.div_ceil(rows.parts);
        let width = each.next_power_of_two().clamp(8, FEW);
        let kernel = format!("packed_{}_{width}", format.name().to_ascii_lowercase());
        let (segments, across) = (k.div_ceil(SEGMENT), n.div_ceil(COLUMNS));
        let mut partial = self.temporary(if segments > 1 { segments * rows.rows * n } else { 1 });
        let mut counts = self.counts.of(self, rows.parts * across);
        let counts = counts.as_mut().expect("zeros that were made");
        let half = usize::from(y.dtype == Dtype::Bf16);
        let shared = SEGMENT / BOX * width * 128 + 4 * warp_bytes(format) + 32;
        let launch = self.launch(&kernel).threads(128).blocks(segments, across, rows.parts).shared(shared);
        let launch = launch.map(self.map(&a, rows.rows, k, width), &a).read(&tiles.bytes).read(&tiles.table);
        let launch = launch.write(&mut y.buffer).write(&mut partial).write(counts).read_if(rows.offsets.as_deref());
        launch.int(rows.rows).int(n).int(k).int(padded).int(half).run();
    }
}

//! Products of operands that are rounded to bf16, into f32, on tensor cores: y and dx, whose elements each depend on
//! one row and one column. Weight gradients are chains that micro-batches may cut anywhere, and tensor cores add sixteen
//! terms at once, so those are not here.
//!
//! On Hopper by wgmma and TMA where rows are whole pieces of 16 bytes, else by mma.sync. Which one depends on columns
//! alone, never on the number of rows: the two do not have the same bits, and a row's result is not to depend on its
//! batch.

use wels_device::{Precision, Start};

use crate::Cuda;
use crate::launch::{Buffer, Launch, MapShape, TensorMap};
use crate::memory::done;
use crate::products::Parts;
use crate::rows::goes_on;

/// Rows of a tile.
const TILE: usize = 128;
/// Terms that TMA copies at a time, and the most columns of its boxes.
const BOX: usize = 64;
/// Blocks that stay on a card, each for many tiles: as many as an H100 has processors.
const RESIDENT: usize = 132;
/// Shared memory of the kernels of `hopper.cu`: stages of both tiles, and their barriers.
const HOPPER_SHARED: [(usize, usize); 2] =
    [(256, 4 * (TILE + 256) * BOX * 2 + 4 * 16), (128, 6 * 2 * TILE * BOX * 2 + 6 * 16)];
/// Shared memory of those of `ampere.cu`.
const AMPERE_SHARED: usize = 4 * 2 * TILE * 32 * 2;

/// Rows by part, as the kernels take them.
struct Rows<'a> {
    offsets: Option<&'a Buffer>,
    parts: usize,
    rows: usize,
}

impl<'a> Rows<'a> {
    fn arguments<'l>(&self, launch: Launch<'l>) -> Launch<'l>
    where
        'a: 'l,
    {
        launch.read_if(self.offsets).int(self.parts).int(self.rows)
    }

    /// Tiles at most, with `columns` tiles across.
    fn blocks(&self, columns: usize) -> usize {
        ((self.rows.div_ceil(TILE) + self.parts - 1) * columns).min(RESIDENT)
    }
}

impl Cuda {
    /// Whether a product is for the kernels of this module.
    pub(crate) fn takes(precision: Precision, parts: &Parts) -> bool {
        precision == Precision::Bf16 && !matches!(parts, Parts::Equal(2.., _))
    }

    /// `y[S, N] = x · w[part]ᵀ`, w in f32.
    pub(crate) fn tensor_y(&self, (x, k): (&Buffer, usize), parts: Parts, w: &Buffer, (y, n): (&mut Buffer, usize)) {
        let rows = self.rows_of(&parts);
        let a = self.rounded(x, parts.rows(), rows.rows, k);
        let b = self.rounded(w, None, rows.parts * n, k);
        if !self.has_wgmma(k, n) {
            let launch = self.launch("mma_y").blocks(rows.blocks(n.div_ceil(TILE)), 1, 1).shared(AMPERE_SHARED);
            return rows.arguments(launch.read(&a).read(&b).write(y)).int(n).int(k).int(0).run();
        }
        let (width, shared) = HOPPER_SHARED[usize::from(n < 256)];
        let (of_a, of_b) = (self.map(&a, rows.rows, k, TILE), self.map(&b, rows.parts * n, k, width));
        let kernel = if width == 256 { "wgmma_y_256" } else { "wgmma_y_128" };
        let launch = self.launch(kernel).threads(384).blocks(rows.blocks(n.div_ceil(width)), 1, 1).shared(shared);
        let launch = launch.map(of_a, &a).map(of_b, &b).write(y);
        rows.arguments(launch).int(n).int(k).int(0).run();
    }

    /// `dx[S, K] = [dx] + dy[S, N] · w[part]`, w in f32.
    pub(crate) fn tensor_dx(
        &self,
        (dy, n): (&Buffer, usize),
        parts: Parts,
        w: &Buffer,
        (dx, k, start): (&mut Buffer, usize, Start),
        dx_offset: usize,
    ) {
        let rows = self.rows_of(&parts);
        let a = self.rounded(dy, None, rows.rows, n);
        let b = self.rounded(w, None, rows.parts * n, k);
        if !self.has_wgmma(k, n) {
            let launch = self.launch("mma_dx").blocks(rows.blocks(k.div_ceil(TILE)), 1, 1).shared(AMPERE_SHARED);
            let launch = rows.arguments(launch.read(&a).read(&b).write_at(dx, dx_offset));
            return launch.int(k).int(n).int(goes_on(start)).run();
        }
        let (width, shared) = HOPPER_SHARED[usize::from(k < 256)];
        let (of_a, of_b) = (self.map(&a, rows.rows, n, TILE), self.map(&b, rows.parts * n, k, BOX));
        let kernel = if width == 256 { "wgmma_dx_256" } else { "wgmma_dx_128" };
        let launch = self.launch(kernel).threads(384).blocks(rows.blocks(k.div_ceil(width)), 1, 1).shared(shared);
        let launch = launch.map(of_a, &a).map(of_b, &b).write_at(dx, dx_offset);
        rows.arguments(launch).int(k).int(n).int(goes_on(start)).run();
    }

    fn rows_of<'a>(&self, parts: &Parts<'a>) -> Rows<'a> {
        match *parts {
            Parts::Slots(tables, _) => {
                Rows { offsets: Some(&tables.offsets), parts: tables.experts, rows: tables.slots_len }
            }
            Parts::Equal(parts, rows) => Rows { offsets: None, parts, rows },
        }
    }

    fn has_wgmma(&self, k: usize, n: usize) -> bool {
        self.driver.capability() == (9, 0) && k.is_multiple_of(8) && n.is_multiple_of(8)
    }

    /// `[rows, columns]` in bf16; of the rows that `chosen` names where it is there.
    fn rounded(&self, x: &Buffer, chosen: Option<&Buffer>, rows: usize, columns: usize) -> Buffer {
        let elements = rows * columns;
        let mut rounded = self.temporary(elements.div_ceil(2));
        let launch = self.launch("round_rows").over(elements).read(x).read_if(chosen).write(&mut rounded);
        launch.int(columns).long(elements).run();
        rounded
    }

    /// A matrix of bf16, for TMA, in boxes of so many rows.
    fn map(&self, of: &Buffer, rows: usize, cols: usize, box_rows: usize) -> TensorMap {
        let [rows, cols, box_rows] =
            [rows, cols, box_rows].map(|size| u32::try_from(size).expect("a size of a matrix that fits 32 bits"));
        done(of.map(MapShape { rows, cols, stride: cols, box_rows, box_cols: BOX as u32 }))
    }
}

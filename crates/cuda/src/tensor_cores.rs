//! Products of operands that are rounded to bf16, into f32, on tensor cores.
//!
//! On Hopper by wgmma and TMA where rows are whole pieces of 16 bytes, else by mma.sync. Which one depends on columns
//! alone, never on the number of rows: each has bits of its own, and a row's result is not to depend on its batch. How
//! wide a tile is changes no bit.
//!
//! Tensor cores add sixteen terms at once. In y and dx these are of one row and one column. In a weight gradient they
//! are rows, so it goes run by run, a run being a sequence's rows or those of them that went to an expert:
//! micro-batches are whole sequences, and wherever they cut, the same rows are added together.

use wels_device::{Ids, Precision, Start};

use crate::Cuda;
use crate::experts::Tables;
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
/// Shared memory of the kernels of `ampere.cu`.
const AMPERE_SHARED: usize = 4 * 2 * TILE * 32 * 2;

/// A kernel of `hopper.cu`.
struct Hopper {
    kernel: &'static str,
    /// Of a tile.
    rows: usize,
    width: usize,
    stages: usize,
}

/// By the width of a tile.
const Y: [Hopper; 3] = [
    Hopper { kernel: "wgmma_y_256", rows: 128, width: 256, stages: 4 },
    Hopper { kernel: "wgmma_y_128", rows: 128, width: 128, stages: 6 },
    Hopper { kernel: "wgmma_y_32", rows: 64, width: 32, stages: 12 },
];
const DX: [Hopper; 2] = [
    Hopper { kernel: "wgmma_dx_256", rows: 128, width: 256, stages: 4 },
    Hopper { kernel: "wgmma_dx_128", rows: 128, width: 128, stages: 6 },
];
const DW: [Hopper; 2] = [
    Hopper { kernel: "wgmma_dw_256", rows: 128, width: 256, stages: 4 },
    Hopper { kernel: "wgmma_dw_128", rows: 128, width: 128, stages: 6 },
];

impl Hopper {
    /// A producer warpgroup, and one for each 64 rows.
    fn threads(&self) -> usize {
        128 + 2 * self.rows
    }

    /// The stages of both tiles, and two barriers each.
    fn shared(&self) -> usize {
        self.stages * ((self.rows + self.width) * BOX * 2 + 16)
    }
}

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

    /// Blocks for all tiles of so many rows, of which there are `across` side by side.
    fn blocks(&self, rows: usize, across: usize) -> usize {
        ((self.rows.div_ceil(rows) + self.parts - 1) * across).min(RESIDENT)
    }
}

impl Cuda {
    /// Whether a product is for the kernels of this module. TMA knows no matrix without rows.
    pub(crate) fn takes(precision: Precision, parts: &Parts) -> bool {
        precision == Precision::Bf16 && !matches!(parts, Parts::Equal(2.., _)) && parts.slots() > 0
    }

    /// `y[S, N] = x · w[part]ᵀ`, w in f32.
    pub(crate) fn tensor_y(&self, (x, k): (&Buffer, usize), parts: Parts, w: &Buffer, (y, n): (&mut Buffer, usize)) {
        let rows = self.rows_of(&parts);
        let a = self.rounded(x, parts.rows(), rows.rows, k);
        let b = self.rounded(w, None, rows.parts * n, k);
        if !self.has_wgmma(k, n) {
            let launch = self.launch("mma_y").blocks(rows.blocks(TILE, n.div_ceil(TILE)), 1, 1).shared(AMPERE_SHARED);
            return rows.arguments(launch.read(&a).read(&b).write(y)).int(n).int(k).run();
        }
        // Few rows, as in decoding: narrow tiles, so that every processor has some of w to read.
        let few = rows.parts == 1 && rows.rows <= 64;
        let kernel = &Y[if few { 2 } else { usize::from(n < 256) }];
        let a_map = self.map(&a, rows.rows, k, kernel.rows);
        let b_map = self.map(&b, rows.parts * n, k, kernel.width);
        let launch = self.hopper(kernel, rows.blocks(kernel.rows, n.div_ceil(kernel.width)));
        rows.arguments(launch.map(a_map, &a).map(b_map, &b).write(y)).int(n).int(k).run();
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
            let launch = self.launch("mma_dx").blocks(rows.blocks(TILE, k.div_ceil(TILE)), 1, 1).shared(AMPERE_SHARED);
            let launch = rows.arguments(launch.read(&a).read(&b).write_at(dx, dx_offset));
            return launch.int(k).int(n).int(goes_on(start)).run();
        }
        let kernel = &DX[usize::from(k < 256)];
        let (a_map, b_map) = (self.map(&a, rows.rows, n, kernel.rows), self.map(&b, rows.parts * n, k, BOX));
        let launch = self.hopper(kernel, rows.blocks(kernel.rows, k.div_ceil(kernel.width)));
        let launch = launch.map(a_map, &a).map(b_map, &b).write_at(dx, dx_offset);
        rows.arguments(launch).int(k).int(n).int(goes_on(start)).run();
    }

    /// `dw[part] = [dw] + dyᵀ · x` over the rows of each part, sequence by sequence.
    pub(crate) fn tensor_dw(
        &self,
        (dy, n): (&Buffer, usize),
        (x, k): (&Buffer, usize),
        parts: Parts,
        sequences: &Ids,
        (dw, start): (&mut Buffer, Start),
    ) {
        let (rows, count) = (self.rows_of(&parts), sequences.len() - 1);
        let starts = &self.ids(sequences).list;
        let of_experts = match parts {
            Parts::Slots(tables, _) => Some(self.runs_of(tables, starts, count)),
            Parts::Equal(_, rows) => {
                assert_eq!(sequences[count] as usize, rows, "rows of the sequences {sequences:?}");
                None
            }
        };
        let (offsets, part_runs) = of_experts.as_ref().map_or((starts, None), |(runs, first)| (runs, Some(first)));
        let (a, b) = (self.rounded(dy, None, rows.rows, n), self.rounded(x, parts.rows(), rows.rows, k));
        let launch = match self.has_wgmma(k, n) {
            false => {
                let tiles = rows.parts * n.div_ceil(TILE) * k.div_ceil(TILE);
                let launch = self.launch("mma_dw").blocks(tiles.min(RESIDENT), 1, 1).shared(AMPERE_SHARED);
                launch.read(&a).read(&b)
            }
            true => {
                let kernel = &DW[usize::from(k < 256)];
                let tiles = rows.parts * n.div_ceil(kernel.rows) * k.div_ceil(kernel.width);
                let (a_map, b_map) = (self.map(&a, rows.rows, n, BOX), self.map(&b, rows.rows, k, BOX));
                self.hopper(kernel, tiles.min(RESIDENT)).map(a_map, &a).map(b_map, &b)
            }
        };
        let launch = launch.write(dw).read(offsets).read_if(part_runs).int(rows.parts).int(count);
        launch.int(n).int(k).int(goes_on(start)).run();
    }

    fn hopper(&self, kernel: &Hopper, blocks: usize) -> Launch<'_> {
        self.launch(kernel.kernel).threads(kernel.threads()).blocks(blocks, 1, 1).shared(kernel.shared())
    }

    /// Where the slots of each sequence's tokens begin, expert by expert, and each expert's first of these places.
    fn runs_of(&self, tables: &Tables, starts: &Buffer, sequences: usize) -> (Buffer, Buffer) {
        let places = tables.experts * sequences + 1;
        let (mut runs, mut first) = (self.temporary(places), self.temporary(tables.experts + 1));
        let launch = self.launch("expert_runs").over(places).read(&tables.offsets).read(&tables.rows).read(starts);
        launch.write(&mut runs).write(&mut first).int(tables.experts).int(sequences).run();
        (runs, first)
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

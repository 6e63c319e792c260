//! Products of operands in bf16, into f32 or bf16, on tensor cores. Operands in f32 are rounded first; of weights the
//! rounded copy is kept until they change.
//!
//! On Hopper by wgmma and TMA where rows are whole pieces of 16 bytes, else by mma.sync. Which one depends on columns
//! alone, never on the number of rows: each has bits of its own, and a row's result is not to depend on its batch. How
//! wide a tile is changes no bit.
//!
//! Tensor cores add sixteen terms at once. In y and dx these are of one row and one column. In a weight gradient they
//! are rows, so it goes run by run, a run being a sequence's rows or those of them that went to an expert:
//! micro-batches are whole sequences, and wherever they cut, the same rows are added together.

use std::ops::Deref;

use wels_device::{Dtype, Precision, Start};

use crate::Cuda;
use crate::experts::Tables;
use crate::launch::{Buffer, Launch, MapShape, TensorMap};
use crate::memory::{Numbers, done};
use crate::products::Parts;
use crate::rows::goes_on;

/// Rows of a tile.
const TILE: usize = 128;
/// Terms that TMA copies at a time, and the most columns of its boxes.
pub(crate) const BOX: usize = 64;
/// Blocks that stay on a card, each for many tiles: as many as an H100 has processors.
const RESIDENT: usize = 132;
/// Shared memory of the kernels of `ampere.cu`.
const AMPERE_SHARED: usize = 4 * 2 * TILE * 32 * 2;

/// A kernel of `hopper.cu`.
pub(crate) struct Hopper {
    pub kernel: &'static str,
    /// Of a tile.
    pub rows: usize,
    pub width: usize,
    pub stages: usize,
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
pub(crate) struct Rows<'a> {
    pub offsets: Option<Operand<'a>>,
    pub parts: usize,
    pub rows: usize,
}

impl Rows<'_> {
    pub fn arguments<'l>(&'l self, launch: Launch<'l>) -> Launch<'l> {
        launch.read_if(self.offsets.as_deref()).int(self.parts).int(self.rows)
    }

    /// Blocks for all tiles of so many rows, of which there are `across` side by side.
    pub fn blocks(&self, rows: usize, across: usize) -> usize {
        ((self.rows.div_ceil(rows) + self.parts - 1) * across).min(RESIDENT)
    }
}

/// What a kernel reads: as it was, or made for it.
pub(crate) enum Operand<'a> {
    There(&'a Buffer),
    Made(Buffer),
}

impl Deref for Operand<'_> {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        match self {
            Operand::There(buffer) => buffer,
            Operand::Made(buffer) => buffer,
        }
    }
}

/// Where a product goes: its numbers, from which byte on, and whether it goes on from what they are.
pub(crate) struct Output<'a> {
    pub numbers: &'a mut Numbers,
    pub offset: usize,
    pub start: Start,
}

impl<'a> Output<'a> {
    /// All of a tensor's numbers.
    pub fn all(numbers: &'a mut Numbers, start: Start) -> Output<'a> {
        Output { numbers, offset: 0, start }
    }

    /// The kernel that writes such numbers.
    pub fn kernel(&self, name: &str) -> String {
        let suffix = match self.numbers.dtype {
            Dtype::F32 => "",
            Dtype::Bf16 => "_bf16",
        };
        format!("{name}{suffix}")
    }
}

/// Of a product with few rows, as in decoding: narrow tiles, so that every processor has some of w to read.
const FEW: usize = 64;

impl Cuda {
    /// Whether a product is for the kernels of this module: where it is asked for, or activations are in bf16. TMA
    /// knows no matrix without rows.
    pub(crate) fn on_tensor_cores(precision: Precision, activations: Dtype, parts: &Parts) -> bool {
        (precision == Precision::Bf16 || activations == Dtype::Bf16) && parts.slots() > 0
    }

    /// `y[S, N] = x · w[part]ᵀ`.
    pub(crate) fn tensor_y(&self, x: (&Numbers, usize), parts: Parts, w: &Numbers, (y, n): (&mut Numbers, usize)) {
        let w = self.weights(w, parts.count() * n, x.1);
        self.tensor_y_of(x, parts, w, (Output::all(y, Start::Zero), n));
    }

    /// [`Cuda::tensor_y`] with w in bf16.
    pub(crate) fn tensor_y_of(&self, (x, k): (&Numbers, usize), parts: Parts, b: &Buffer, (y, n): (Output, usize)) {
        let (rows, goes_on) = (self.rows_of(&parts), goes_on(y.start));
        let a = self.operand(x, parts.rows(), rows.rows, k);
        if !self.has_wgmma(k, n) {
            let launch = self.launch(&y.kernel("mma_y")).blocks(rows.blocks(TILE, n.div_ceil(TILE)), 1, 1);
            let launch = launch.shared(AMPERE_SHARED).read(&a).read(b).write_at(&mut y.numbers.buffer, y.offset);
            return rows.arguments(launch).int(n).int(k).int(goes_on).run();
        }
        let few = rows.parts == 1 && rows.rows <= FEW;
        let kernel = &Y[if few { 2 } else { usize::from(n < 256) }];
        let a_map = self.map(&a, rows.rows, k, kernel.rows);
        let b_map = self.map(b, rows.parts * n, k, kernel.width);
        let blocks = rows.blocks(kernel.rows, n.div_ceil(kernel.width));
        let launch = self.hopper(&y.kernel(kernel.kernel), kernel, blocks).map(a_map, &a).map(b_map, b);
        let launch = rows.arguments(launch.write_at(&mut y.numbers.buffer, y.offset));
        launch.int(n).int(k).int(goes_on).run();
    }

    /// `y[T, N] = x · wᵀ` of x in bf16 as if w were not rounded: three products, with the three bf16 numbers that a
    /// weight in f32 is the sum of. For routers, whose choices hang on small differences.
    pub(crate) fn tensor_y_exact(
        &self,
        (x, k): (&Numbers, usize),
        rows: usize,
        w: &Numbers,
        (y, n): (&mut Numbers, usize),
    ) {
        let elements = n * k;
        let mut thirds = [(); 3].map(|()| self.temporary(elements.div_ceil(2)));
        let launch = self.launch("split_f32").over(elements).read(&w.buffer);
        thirds.iter_mut().fold(launch, Launch::write).long(elements).run();
        for (number, third) in thirds.iter().enumerate() {
            let start = if number == 0 { Start::Zero } else { Start::Continue };
            self.tensor_y_of((x, k), Parts::one(rows), third, (Output::all(y, start), n));
        }
    }

    /// `dx[S, K] = [dx] + dy[S, N] · w[part]`.
    pub(crate) fn tensor_dx(&self, (dy, n): (&Numbers, usize), parts: Parts, w: &Numbers, (dx, k): (Output, usize)) {
        let (rows, goes_on) = (self.rows_of(&parts), goes_on(dx.start));
        let a = self.operand(dy, None, rows.rows, n);
        let b = self.weights(w, rows.parts * n, k);
        if !self.has_wgmma(k, n) {
            let launch = self.launch(&dx.kernel("mma_dx")).blocks(rows.blocks(TILE, k.div_ceil(TILE)), 1, 1);
            let launch = launch.shared(AMPERE_SHARED).read(&a).read(b).write_at(&mut dx.numbers.buffer, dx.offset);
            return rows.arguments(launch).int(k).int(n).int(goes_on).run();
        }
        let kernel = &DX[usize::from(k < 256)];
        let (a_map, b_map) = (self.map(&a, rows.rows, n, kernel.rows), self.map(b, rows.parts * n, k, BOX));
        let blocks = rows.blocks(kernel.rows, k.div_ceil(kernel.width));
        let launch = self.hopper(&dx.kernel(kernel.kernel), kernel, blocks).map(a_map, &a).map(b_map, b);
        let launch = rows.arguments(launch.write_at(&mut dx.numbers.buffer, dx.offset));
        launch.int(k).int(n).int(goes_on).run();
    }

    /// `dw[part] = [dw] + dyᵀ · x` over the rows of each part, sequence by sequence; `starts` has the first row of
    /// each of the `sequences`, and the end.
    pub(crate) fn tensor_dw(
        &self,
        (dy, n): (&Numbers, usize),
        (x, k): (&Numbers, usize),
        parts: Parts,
        (starts, sequences): (&Buffer, usize),
        (dw, start): (&mut Buffer, Start),
    ) {
        let rows = self.rows_of(&parts);
        let of_experts = match parts {
            Parts::Slots(tables, _) => Some(self.runs_of(tables, starts, sequences)),
            Parts::Equal(..) => None,
        };
        let (offsets, part_runs) = of_experts.as_ref().map_or((starts, None), |(runs, first)| (runs, Some(first)));
        let (a, b) = (self.operand(dy, None, rows.rows, n), self.operand(x, parts.rows(), rows.rows, k));
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
                self.hopper(kernel.kernel, kernel, tiles.min(RESIDENT)).map(a_map, &a).map(b_map, &b)
            }
        };
        let launch = launch.write(dw).read(offsets).read_if(part_runs).int(rows.parts).int(sequences);
        launch.int(n).int(k).int(goes_on(start)).run();
    }

    pub(crate) fn hopper(&self, name: &str, kernel: &Hopper, blocks: usize) -> Launch<'_> {
        self.launch(name).threads(kernel.threads()).blocks(blocks, 1, 1).shared(kernel.shared())
    }

    /// Where the slots of each sequence's tokens begin, expert by expert, and each expert's first of these places.
    fn runs_of(&self, tables: &Tables, starts: &Buffer, sequences: usize) -> (Buffer, Buffer) {
        let places = tables.experts * sequences + 1;
        let (mut runs, mut first) = (self.temporary(places), self.temporary(tables.experts + 1));
        let launch = self.launch("expert_runs").over(places).read(&tables.offsets).read(&tables.rows).read(starts);
        launch.write(&mut runs).write(&mut first).int(tables.experts).int(sequences).run();
        (runs, first)
    }

    pub(crate) fn rows_of<'a>(&self, parts: &Parts<'a>) -> Rows<'a> {
        match *parts {
            Parts::Slots(tables, _) => {
                let offsets = Some(Operand::There(&tables.offsets));
                Rows { offsets, parts: tables.experts, rows: tables.slots_len }
            }
            Parts::Equal(1, rows) => Rows { offsets: None, parts: 1, rows },
            Parts::Equal(parts, rows) => {
                let offsets: Vec<u32> = (0..=parts).map(|part| (part * rows) as u32).collect();
                Rows { offsets: Some(Operand::Made(self.upload(&offsets))), parts, rows: parts * rows }
            }
        }
    }

    pub(crate) fn has_wgmma(&self, k: usize, n: usize) -> bool {
        self.driver.capability() == (9, 0) && k.is_multiple_of(8) && n.is_multiple_of(8)
    }

    /// `[rows, columns]` in bf16; of the rows that `chosen` names where it is there.
    pub(crate) fn operand<'a>(
        &self,
        x: &'a Numbers,
        chosen: Option<&Buffer>,
        rows: usize,
        columns: usize,
    ) -> Operand<'a> {
        match (x.dtype, chosen) {
            (Dtype::Bf16, None) => Operand::There(&x.buffer),
            (Dtype::Bf16, Some(_)) => Operand::Made(self.in_bf16("choose_rows", &x.buffer, chosen, rows, columns)),
            (Dtype::F32, _) => Operand::Made(self.in_bf16("round_rows", &x.buffer, chosen, rows, columns)),
        }
    }

    /// Weights in bf16.
    fn weights<'a>(&self, w: &'a Numbers, rows: usize, columns: usize) -> &'a Buffer {
        w.rounded(|w| self.in_bf16("round_rows", w, None, rows, columns))
    }

    /// The rows of f32 rounded to bf16.
    pub(crate) fn rounded(&self, x: &Buffer, rows: usize, columns: usize) -> Numbers {
        Numbers::of(Dtype::Bf16, self.in_bf16("round_rows", x, None, rows, columns))
    }

    /// f32 rounded to bf16 where it is to be.
    pub(crate) fn round_to(&self, x: &Buffer, rows: usize, columns: usize, y: &mut Buffer) {
        self.to_bf16("round_rows", x, None, (rows, columns), y);
    }

    fn in_bf16(&self, kernel: &str, x: &Buffer, chosen: Option<&Buffer>, rows: usize, columns: usize) -> Buffer {
        let mut made = self.temporary((rows * columns).div_ceil(2));
        self.to_bf16(kernel, x, chosen, (rows, columns), &mut made);
        made
    }

    fn to_bf16(
        &self,
        kernel: &str,
        x: &Buffer,
        chosen: Option<&Buffer>,
        (rows, columns): (usize, usize),
        y: &mut Buffer,
    ) {
        let elements = rows * columns;
        let each = if columns.is_multiple_of(8) { 8 } else { 1 };
        let launch = self.launch(kernel).over(elements.div_ceil(each)).read(x).read_if(chosen).write(y);
        launch.int(columns).long(elements).run();
    }

    /// A matrix of bf16, for TMA, in boxes of so many rows.
    pub(crate) fn map(&self, of: &Buffer, rows: usize, cols: usize, box_rows: usize) -> TensorMap {
        let [rows, cols, box_rows] =
            [rows, cols, box_rows].map(|size| u32::try_from(size).expect("a size of a matrix that fits 32 bits"));
        done(of.map(MapShape { rows, cols, stride: cols, box_rows, box_cols: BOX as u32 }))
    }
}

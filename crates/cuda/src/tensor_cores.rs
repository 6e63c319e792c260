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

use std::collections::HashMap;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

use wels_device::{Dtype, Precision, Start};

use crate::Cuda;
use crate::experts::Tables;
use crate::launch::{Buffer, Launch, MapShape, TensorMap};
use crate::memory::{Numbers, done};
use crate::parts::Parts;
use crate::rows::goes_on;

/// Whose instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Generation {
    Hopper,
    Ampere,
}

/// Rows of a tile.
const TILE: usize = 128;
/// Terms that TMA copies at a time, and the most columns of its boxes.
pub(crate) const BOX: usize = 64;
/// Products that a launch makes at most.
const JOINT: usize = 3;
/// Shared memory of the kernels of `ampere.cu`.
const AMPERE_SHARED: usize = 4 * 2 * TILE * 32 * 2;

/// Shared memory of a processor of sm_90, and what it takes for itself for each block.
const PROCESSOR_SHARED: usize = 228 << 10;
const BLOCK_SHARED: usize = 1 << 10;

/// A kernel of `hopper.cu`.
pub(crate) struct Hopper {
    pub kernel: &'static str,
    /// Of a tile.
    pub rows: usize,
    pub width: usize,
    pub stages: usize,
    /// What a tile takes, in hundredths of the time of the widest: guesses, of which only speed hangs.
    pub cost: usize,
}

/// By the width of a tile; the last is for few rows.
const Y: [Hopper; 3] = [
    Hopper { kernel: "wgmma_y_256", rows: 128, width: 256, stages: 4, cost: 100 },
    Hopper { kernel: "wgmma_y_128", rows: 128, width: 128, stages: 6, cost: 60 },
    Hopper { kernel: "wgmma_y_32", rows: 64, width: 32, stages: 12, cost: 0 },
];
const DX: [Hopper; 2] = [
    Hopper { kernel: "wgmma_dx_256", rows: 128, width: 256, stages: 4, cost: 100 },
    Hopper { kernel: "wgmma_dx_128", rows: 128, width: 128, stages: 6, cost: 60 },
];
const DW: [Hopper; 3] = [
    Hopper { kernel: "wgmma_dw_256", rows: 128, width: 256, stages: 4, cost: 100 },
    Hopper { kernel: "wgmma_dw_192", rows: 128, width: 192, stages: 5, cost: 79 },
    Hopper { kernel: "wgmma_dw_128", rows: 128, width: 128, stages: 6, cost: 60 },
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

    /// The same where a's boxes have fewer rows than a tile, of which the last stage has all.
    fn shared_of(&self, a_box: usize) -> usize {
        self.shared() - (self.stages - 1) * (self.rows - a_box) * BOX * 2
    }
}

/// Rows by part, as the kernels take them.
pub(crate) struct Rows<'a> {
    pub offsets: Option<Operand<'a>>,
    pub parts: usize,
    pub rows: usize,
    /// The most that a part may have.
    most: usize,
    /// Whether parts have so few that loading their matrices is what takes time.
    few: bool,
}

impl Rows<'_> {
    pub fn arguments<'l>(&'l self, launch: Launch<'l>) -> Launch<'l> {
        launch.read_if(self.offsets.as_deref()).int(self.parts).int(self.rows)
    }

    /// Tiles of so many rows, at most.
    pub fn tiles(&self, rows: usize) -> usize {
        let parts = self.parts.min(self.rows);
        (self.rows + parts * (rows - 1)) / rows
    }
}

/// Runs by part, as the kernels take them.
struct Runs<'a> {
    offsets: &'a Buffer,
    part_runs: Option<&'a Buffer>,
    parts: usize,
    sequences: usize,
}

impl Runs<'_> {
    fn arguments<'l>(&'l self, launch: Launch<'l>) -> Launch<'l> {
        launch.read(self.offsets).read_if(self.part_runs).int(self.parts).int(self.sequences)
    }
}

/// A product with x: of which matrix `[parts·N, K]` in bf16, and its result.
pub(crate) struct Product<'a> {
    pub w: &'a Buffer,
    pub y: Output<'a>,
    pub n: usize,
}

/// A part of a sum `dx = Σ dy · w`: dy `[S, N]`, w `[parts·N, K]`.
#[derive(Clone, Copy)]
pub(crate) struct Term<'a> {
    pub dy: &'a Numbers,
    pub w: &'a Numbers,
    pub n: usize,
}

/// A weight gradient `[parts·N, K]` from x and dy `[S, N]`.
pub(crate) struct Gradient<'a> {
    pub dy: &'a Numbers,
    pub n: usize,
    pub dw: &'a mut Buffer,
    pub start: Start,
}

/// The sizes of products that are made together; 0 where there is none.
fn sizes<T>(of: &[T], size: impl Fn(&T) -> usize) -> [usize; JOINT] {
    std::array::from_fn(|number| of.get(number).map_or(0, &size))
}

/// A bit for each of some products that goes on.
fn bits(starts: impl Iterator<Item = Start>) -> usize {
    starts.enumerate().map(|(number, start)| goes_on(start) << number).sum()
}

/// The maps of products that are made together, the last one's for those that are missing.
fn with_maps<'l>(launch: Launch<'l>, maps: &[(TensorMap, &'l Buffer)]) -> Launch<'l> {
    (0..JOINT).map(|number| maps[number.min(maps.len() - 1)]).fold(launch, |launch, (map, of)| launch.map(map, of))
}

/// What a kernel reads: as it was, or made for it.
pub(crate) enum Operand<'a> {
    There(&'a Buffer),
    Made(Buffer),
    Shared(Arc<Buffer>),
}

impl Deref for Operand<'_> {
    type Target = Buffer;

    fn deref(&self) -> &Buffer {
        match self {
            Operand::There(buffer) => buffer,
            Operand::Made(buffer) => buffer,
            Operand::Shared(buffer) => buffer,
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

/// Rows of a product, as in decoding, for narrow tiles, so that every processor has some of w to read; half as many of
/// each expert, of which some have more.
const FEW: usize = 64;

/// Where parts of as many rows begin, for the numbers of parts and rows that have come.
#[derive(Default)]
pub(crate) struct EqualParts(Mutex<HashMap<[usize; 2], Arc<Buffer>>>);

impl EqualParts {
    /// Lists that are kept: prompts in all lengths would have as many.
    const MOST: usize = 1024;

    fn of(&self, cuda: &Cuda, parts: usize, rows: usize) -> Arc<Buffer> {
        let mut lists = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lists.len() == EqualParts::MOST && !lists.contains_key(&[parts, rows]) {
            lists.clear();
        }
        let make = || {
            let begins: Vec<u32> = (0..=parts).map(|part| (part * rows) as u32).collect();
            Arc::new(cuda.upload(&begins))
        };
        lists.entry([parts, rows]).or_insert_with(make).clone()
    }
}

impl Cuda {
    /// Whether a product is for the kernels of this module: where it is asked for, or activations are in bf16. TMA
    /// knows no matrix without rows.
    pub(crate) fn on_tensor_cores(precision: Precision, activations: Dtype, parts: &Parts) -> bool {
        (precision == Precision::Bf16 || activations == Dtype::Bf16) && parts.slots() > 0
    }

    /// `y[S, N] = x · w[part]ᵀ` for several w.
    pub(crate) fn tensor_y(&self, (x, k): (&Numbers, usize), parts: Parts, products: Vec<Product>) {
        if products.is_empty() {
            return;
        }
        let rows = self.rows_of(&parts);
        let a = self.operand(x, parts.rows(), rows.rows, k);
        let (mut joint, alone): (Vec<_>, Vec<_>) = products.into_iter().partition(|it| self.has_wgmma(k, it.n));
        for Product { w, y, n } in alone {
            let blocks = rows.tiles(TILE) * n.div_ceil(TILE);
            let launch = self.ampere(&y.kernel("mma_y"), blocks);
            let launch = launch.read(&a).read(w).write_at(&mut y.numbers.buffer, y.offset);
            rows.arguments(launch).int(n).int(k).int(goes_on(y.start)).run();
        }
        for alike in joint.chunk_by_mut(|one, other| one.y.numbers.dtype == other.y.numbers.dtype) {
            alike.chunks_mut(JOINT).for_each(|products| self.wgmma_y((&a, k), &rows, products));
        }
    }

    fn wgmma_y(&self, (a, k): (&Buffer, usize), rows: &Rows, products: &mut [Product]) {
        let sizes = sizes(products, |it| it.n);
        let across = |kernel: &Hopper| sizes.iter().map(|n| n.div_ceil(kernel.width)).sum::<usize>();
        let kernels = if rows.few { &Y[2..] } else { &Y[..2] };
        let tiles = |kernel: &Hopper| rows.tiles(kernel.rows) * across(kernel);
        let (kernel, mut blocks) = self.choose(kernels, tiles);
        let a_box = rows.most.next_multiple_of(8).min(kernel.rows);
        let mut shared = kernel.shared();
        if rows.few {
            shared = kernel.shared_of(a_box);
            blocks = tiles(kernel).min(self.driver.processors() * (PROCESSOR_SHARED / (shared + BLOCK_SHARED)));
        }
        let a_map = self.map(a, rows.rows, k, a_box);
        let b_maps: Vec<_> =
            products.iter().map(|it| (self.map(it.w, rows.parts * it.n, k, kernel.width), it.w)).collect();
        let starts = bits(products.iter().map(|it| it.y.start));
        let launch = self.hopper(&products[0].y.kernel(kernel.kernel), kernel, blocks).shared(shared).map(a_map, a);
        let outputs = products.iter_mut().map(|it| (&mut it.y.numbers.buffer, it.y.offset));
        let launch = with_maps(launch, &b_maps).write_some(outputs, JOINT);
        rows.arguments(launch).ints(sizes).int(k).int(starts).int(a_box).run();
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
            self.tensor_y((x, k), Parts::one(rows), vec![Product { w: third, y: Output::all(y, start), n }]);
        }
    }

    /// `dx[S, K] = [dx] + Σ dy[S, N] · w[part]`, in the order of the terms.
    pub(crate) fn tensor_dx(&self, parts: Parts, terms: &[Term], (mut dx, k): (Output, usize)) {
        let rows = self.rows_of(&parts);
        let joint = terms.iter().all(|it| self.has_wgmma(k, it.n));
        for terms in terms.chunks(if joint { JOINT } else { 1 }) {
            let a: Vec<_> = terms.iter().map(|it| self.operand(it.dy, None, rows.rows, it.n)).collect();
            let b: Vec<_> = terms.iter().map(|it| self.weights(it.w, rows.parts * it.n, k)).collect();
            let (n, goes_on) = (sizes(terms, |it| it.n), goes_on(dx.start));
            let launch = if self.has_wgmma(k, n[0]) {
                let (kernel, blocks) = self.choose(&DX, |kernel| rows.tiles(kernel.rows) * k.div_ceil(kernel.width));
                let of_a = a.iter().zip(n).map(|(a, n)| (self.map(a, rows.rows, n, kernel.rows), &**a));
                let of_b = b.iter().zip(n).map(|(b, n)| (self.map(b, rows.parts * n, k, BOX), *b));
                let launch = self.hopper(&dx.kernel(kernel.kernel), kernel, blocks);
                with_maps(with_maps(launch, &of_a.collect::<Vec<_>>()), &of_b.collect::<Vec<_>>())
            } else {
                self.ampere(&dx.kernel("mma_dx"), rows.tiles(TILE) * k.div_ceil(TILE)).read(&a[0]).read(b[0])
            };
            let launch = rows.arguments(launch.write_at(&mut dx.numbers.buffer, dx.offset)).int(k);
            let launch = if self.has_wgmma(k, n[0]) { launch.ints(n) } else { launch.int(n[0]) };
            launch.int(goes_on).run();
            dx.start = Start::Continue;
        }
    }

    /// `dw[part] = [dw] + dyᵀ · x` over the rows of each part, sequence by sequence, for several dy; `starts` has the
    /// first row of each of the `sequences`, and the end.
    pub(crate) fn tensor_dw(
        &self,
        (x, k): (&Numbers, usize),
        parts: Parts,
        (starts, sequences): (&Buffer, usize),
        gradients: Vec<Gradient>,
    ) {
        if gradients.is_empty() {
            return;
        }
        let (rows, b) = (self.rows_of(&parts), self.operand(x, parts.rows(), parts.slots(), k));
        let of_experts = match parts {
            Parts::Slots(tables, _) => Some(self.runs_of(tables, starts, sequences)),
            Parts::Equal(..) => None,
        };
        let (offsets, part_runs) = of_experts.as_ref().map_or((starts, None), |(runs, first)| (runs, Some(first)));
        let runs = Runs { offsets, part_runs, parts: rows.parts, sequences };
        let (mut joint, alone): (Vec<_>, Vec<_>) = gradients.into_iter().partition(|it| self.has_wgmma(k, it.n));
        for Gradient { dy, n, dw, start } in alone {
            let a = self.operand(dy, None, rows.rows, n);
            let launch = self.ampere("mma_dw", rows.parts * n.div_ceil(TILE) * k.div_ceil(TILE)).read(&a).read(&b);
            runs.arguments(launch.write(dw)).int(n).int(k).int(goes_on(start)).run();
        }
        for gradients in joint.chunks_mut(JOINT) {
            let n = sizes(gradients, |it| it.n);
            let down = |kernel: &Hopper| n.iter().map(|n| n.div_ceil(kernel.rows)).sum::<usize>();
            let (kernel, blocks) = self.choose(&DW, |kernel| rows.parts * down(kernel) * k.div_ceil(kernel.width));
            let a: Vec<_> = gradients.iter().map(|it| self.operand(it.dy, None, rows.rows, it.n)).collect();
            let a_maps: Vec<_> = a.iter().zip(n).map(|(a, n)| (self.map(a, rows.rows, n, BOX), &**a)).collect();
            let starts = bits(gradients.iter().map(|it| it.start));
            let launch = with_maps(self.hopper(kernel.kernel, kernel, blocks), &a_maps);
            let launch = launch.map(self.map(&b, rows.rows, k, BOX), &b);
            let launch = launch.write_some(gradients.iter_mut().map(|it| (&mut *it.dw, 0)), JOINT);
            runs.arguments(launch).ints(n).int(k).int(starts).run();
        }
    }

    /// The kernel whose tiles take the least time, which hangs on sizes alone, and its blocks: as many as the card has
    /// processors, each for many tiles.
    fn choose<'k>(&self, kernels: &'k [Hopper], tiles: impl Fn(&Hopper) -> usize) -> (&'k Hopper, usize) {
        let processors = self.driver.processors();
        let time = |kernel: &&Hopper| tiles(kernel).div_ceil(processors) * kernel.cost;
        let kernel = kernels.iter().min_by_key(time).expect("there are kernels");
        (kernel, tiles(kernel).min(processors))
    }

    pub(crate) fn hopper(&self, name: &str, kernel: &Hopper, blocks: usize) -> Launch<'_> {
        self.launch(name).threads(kernel.threads()).blocks(blocks, 1, 1).shared(kernel.shared())
    }

    fn ampere(&self, name: &str, tiles: usize) -> Launch<'_> {
        self.launch(name).blocks(tiles.min(self.driver.processors()), 1, 1).shared(AMPERE_SHARED)
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
                let (offsets, rows) = (Some(Operand::There(&tables.offsets)), tables.slots_len);
                let few = rows <= FEW / 2 * tables.experts;
                Rows { offsets, parts: tables.experts, rows, most: rows, few }
            }
            Parts::Equal(parts, most) => {
                let offsets = (parts > 1).then(|| Operand::Shared(self.equal_parts.of(self, parts, most)));
                Rows { offsets, parts, rows: parts * most, most, few: most <= FEW }
            }
        }
    }

    /// Whose kernels this card runs.
    pub(crate) fn generation(&self) -> Generation {
        if self.driver.capability() == (9, 0) { Generation::Hopper } else { Generation::Ampere }
    }

    /// Whether TMA and wgmma take matrices of so many columns.
    pub(crate) fn has_wgmma(&self, k: usize, n: usize) -> bool {
        self.generation() == Generation::Hopper && k.is_multiple_of(8) && n.is_multiple_of(8)
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
    pub(crate) fn weights<'a>(&self, w: &'a Numbers, rows: usize, columns: usize) -> &'a Buffer {
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

//! Products of rows of x with matrices of weights, cut into tasks.

use std::borrow::Borrow;
use std::ops::Range;

use super::activations::Activations;
use super::blocks::BlockType;
use super::codebooks::Codes;
use super::decode;
use super::dots::{Dots, Set, dispatch_dots};
use super::kernel::{self, Out};
use super::matrix::{self, QuantMatrix};
use super::pack::{Form, Kind, Panel, ROWS};
use super::wide::{self, Width};
use crate::gemm::check_groups;
use crate::par::{self, SharedMut};
use crate::scratch;

/// `y[T,N] = x[T,K] · w[N,K]ᵀ`.
///
/// # Panics
/// If the shapes do not fit.
pub fn linear(x: &Activations, w: &QuantMatrix, y: &mut [f32]) {
    linear_many(x, &mut [(w, y)]);
}

/// [`linear`] of several matrices with the same x, at once.
///
/// # Panics
/// As [`linear`].
pub fn linear_many(x: &Activations, products: &mut [(&QuantMatrix, &mut [f32])]) {
    let rows: Vec<u32> = (0..x.rows() as u32).collect();
    let mut all = Vec::with_capacity(products.len());
    for (w, y) in products {
        all.push(Product::new(x, w, &rows, SharedMut::new(y), 0..x.rows()));
    }
    for product in &all {
        let (expected, len) = (x.rows() * product.w.rows(), product.y.len());
        assert!(len == expected, "y has {len} elements instead of {expected}");
    }
    if x.rows() <= AT_THE_PACE_OF_MEMORY {
        par::begin_product(all.iter().map(|product| product.w.terms()));
    }
    run(x, &all, Division::ByRows);
}

/// [`linear`] for each expert: slots `offsets[e]..offsets[e+1]` are rows for expert e with weights `experts[e]`;
/// `rows` names each slot's row of `x`, which is in slot order already where there is none. y is [slots, N].
///
/// # Panics
/// If the shapes do not fit, offsets do not ascend, or `rows` names a row that is not there.
pub fn grouped_linear<W: Borrow<QuantMatrix>>(
    x: &Activations,
    rows: Option<&[u32]>,
    offsets: &[u32],
    experts: &[W],
    y: &mut [f32],
) {
    let slots = check_groups(offsets, rows, x.rows());
    assert_eq!(experts.len() + 1, offsets.len(), "experts and their offsets");
    let n = experts.first().map_or(0, |w| w.borrow().rows());
    assert_eq!(y.len(), slots * n, "y is [{slots}, {n}]");
    let all: Vec<u32>;
    let rows = match rows {
        Some(rows) => rows,
        None => {
            all = (0..slots as u32).collect();
            &all
        }
    };
    let y = SharedMut::new(y);
    let mut products = Vec::with_capacity(experts.len());
    for (w, bounds) in experts.iter().zip(offsets.windows(2)) {
        let (w, slots) = (w.borrow(), bounds[0] as usize..bounds[1] as usize);
        assert_eq!(w.rows(), n, "experts have equal shapes");
        if !slots.is_empty() {
            products.push(Product::new(x, w, &rows[slots.clone()], y, slots));
        }
    }
    run(x, &products, Division::ByWeights);
}

/// Rows up to which a product takes as long as reading its weights.
const AT_THE_PACE_OF_MEMORY: usize = 4;

/// The product of some rows of x with a matrix, to rows `slots` of y.
struct Product<'a> {
    w: &'a QuantMatrix,
    /// As what w is multiplied.
    kind: Kind,
    rows: &'a [u32],
    y: SharedMut<'a, f32>,
    slots: Range<usize>,
}

impl<'a> Product<'a> {
    fn new(x: &Activations, w: &'a QuantMatrix, rows: &'a [u32], y: SharedMut<'a, f32>, slots: Range<usize>) -> Self {
        assert_eq!(x.columns(), w.columns(), "columns of x and of w");
        let kind = if x.are_whole() { Kind::Wide } else { w.kind() };
        Product { w, kind, rows, y, slots }
    }

    /// Words of a row of x in a tile.
    fn row_words(&self) -> usize {
        match self.kind {
            Kind::Quantised(form) => self.w.records() * form.blocks() * kernel::block_words(form),
            Kind::Wide => self.w.columns(),
        }
    }
}

/// A part of a product that one thread computes, with the place of the product's tiles.
struct Task<'a> {
    product: &'a Product<'a>,
    tiles: &'a [u32],
    panels: Range<usize>,
    /// Of the product's rows.
    rows: Range<usize>,
}

/// How the rows of x are divided among threads.
#[derive(Clone, Copy)]
enum Division {
    /// Each thread has rows of its own as far as they go, in this kernel and in those before and after: what one core
    /// has written is slow for another to read, all the more where the two share no cache.
    ByRows,
    /// Each thread has weights of its own.
    ByWeights,
}

/// Rows of x in a task of a product of many.
const TASK_ROWS: usize = 48;
/// Fewest rows of x for which a thread reads weights that another one reads too.
const OWN_ROWS: usize = 8;

impl Division {
    /// Rows of x in a task, of `rows` that there are, where tiles are of up to `most` rows.
    fn height(self, rows: usize, most: usize) -> usize {
        let threads = par::threads();
        match self {
            Division::ByRows if threads > 1 && rows >= threads * OWN_ROWS => {
                let pieces = (rows / TASK_ROWS).max(threads);
                let whole_tiles = if rows >= threads * TASK_ROWS { most } else { 4 };
                rows.div_ceil(pieces).next_multiple_of(whole_tiles)
            }
            _ => rows.max(1),
        }
    }
}

/// Computes the products, each of rows of `x`, whose outputs nobody else has.
fn run(x: &Activations, products: &[Product], division: Division) {
    matrix::pack_where_room_is(products.iter().map(|product| product.w));
    let (most_rows, wide_zero) = Set::active().tile_and_wide_zero();
    let (places, layouts, words) = layouts(products);
    let mut tiles = scratch::buffer(words);
    let tiles = scratch::words_mut(&mut tiles);
    lay_tiles(x, &layouts, division, (most_rows, wide_zero), tiles);
    let mut tasks = Vec::new();
    let total: usize = products.iter().map(cost).sum();
    let wanted = wanted_tasks(total, par::threads());
    for (product, &place) in products.iter().zip(&places) {
        let pieces = (cost(product) * wanted).div_ceil(total.max(1)).max(1);
        let (rows, panels) = (product.rows.len(), product.w.panels());
        let height = division.height(rows, most_rows);
        let side_by_side = if product.kind == Kind::Wide { 2 } else { 1 };
        let panel_pieces = pieces.div_ceil(rows.div_ceil(height).max(1));
        let width = panels.div_ceil(panel_pieces).next_multiple_of(side_by_side).max(1);
        let tiles = &tiles[place..][..rows * product.row_words()];
        for row in (0..rows).step_by(height) {
            for first in (0..panels).step_by(width) {
                let rows = row..rows.min(row + height);
                tasks.push(Task { product, tiles, panels: first..panels.min(first + width), rows });
            }
        }
    }
    // In the order of the rows, since threads take tasks from either end.
    tasks.sort_by_key(|task| task.product.slots.start + task.rows.start);
    par::run(tasks.len(), |i| {
        let task = &tasks[i];
        // SAFETY: the tiles were laid for the product's rows and form; y was checked to have its slots, and each task
        // has rows and panels of its own.
        unsafe { dispatch_dots!(compute(task: &Task)) };
    });
}

/// A product's time: its terms, and reading the weights as that of a few rows.
fn cost(product: &Product) -> usize {
    product.w.rows() * product.w.columns() * (product.rows.len() + 4)
}

/// Enough tasks that threads of unequal speed end together, none so small that handing it out shows: from some 30 KiB
/// of weights for one row.
pub(super) fn wanted_tasks(total: usize, threads: usize) -> usize {
    if threads == 1 {
        return 1;
    }
    (total >> 22).max((total >> 18).min(2 * threads)).clamp(1, 16 * threads)
}

/// Rows of x as tiles of one kind, and where these begin.
struct Layout<'a> {
    rows: &'a [u32],
    kind: Kind,
    row_words: usize,
    place: usize,
}

/// Where the tiles of each product begin, what to lay there, and the words of all. Products of the same rows and kind
/// share them.
fn layouts<'a>(products: &[Product<'a>]) -> (Vec<usize>, Vec<Layout<'a>>, usize) {
    let (mut places, mut layouts, mut words) = (Vec::with_capacity(products.len()), Vec::<Layout>::new(), 0);
    for product in products {
        let same = |of: &&Layout| std::ptr::eq(of.rows, product.rows) && of.kind == product.w.kind();
        let place = layouts.iter().find(same).map(|layout| layout.place).unwrap_or_else(|| {
            let (row_words, place) = (product.row_words(), words);
            words += product.rows.len() * row_words;
            layouts.push(Layout { rows: product.rows, kind: product.kind, row_words, place });
            place
        });
        places.push(place);
    }
    (places, layouts, words)
}

/// Tiles that are laid in one task, in words.
const LAY_TASK: usize = 16 * 1024;

fn lay_tiles(
    x: &Activations,
    layouts: &[Layout],
    division: Division,
    (most_rows, wide_zero): (usize, u8),
    tiles: &mut [u32],
) {
    let by_rows = || layouts.chunk_by(|a, b| std::ptr::eq(a.rows, b.rows));
    let quantises = layouts.iter().any(|layout| layout.kind != Kind::Wide);
    // Rows that several experts take are quantised once for all, others where they are laid.
    let gathered = quantises && by_rows().map(|same| same[0].rows.len()).sum::<usize>() > x.rows();
    let all = gathered.then(|| x.quantised());
    let mut todo = Vec::new();
    for same in by_rows() {
        let count = same[0].rows.len();
        let height = match division {
            Division::ByRows => division.height(count, most_rows),
            Division::ByWeights => (LAY_TASK / same[0].row_words).next_multiple_of(most_rows).max(most_rows),
        };
        todo.extend((0..count).step_by(height).map(|row| (same, row..count.min(row + height))));
    }
    let tiles = SharedMut::new(tiles);
    let first: Vec<u32> = (0..most_rows as u32).collect();
    par::run(todo.len(), |i| {
        let (same, all_rows) = &todo[i];
        let mut row = all_rows.start;
        while row < all_rows.end {
            let m = kernel::tile_rows(all_rows.end - row, most_rows);
            let rows = &same[0].rows[row..row + m];
            let mut own = None;
            for &Layout { kind, row_words, place, .. } in *same {
                // SAFETY: each tile is written by one task.
                let tile = unsafe { tiles.slice(place + row * row_words, m * row_words) };
                match kind {
                    Kind::Quantised(form) => {
                        let zero = if form.is_wide() { wide_zero } else { form.zero };
                        let (quantised, rows) = match all {
                            Some(all) => (all, rows),
                            None => (&*own.get_or_insert_with(|| x.quantised_rows(rows)), &first[..m]),
                        };
                        kernel::lay_tile(quantised, rows, form, zero, tile);
                    }
                    Kind::Wide => wide::lay_tile(x.x(), x.columns(), rows, tile),
                }
            }
            row += m;
        }
    });
}

/// Bytes of the weights that a task holds in the second-level cache while rows of x pass by.
const CHUNK: usize = 256 * 1024;

fn chunk_panels(task: &Task, most_rows: usize) -> usize {
    let (w, kind, rows) = (task.product.w, task.product.kind, task.rows.len());
    let one_tile = kernel::tile_rows(rows, most_rows) == rows;
    match w.is_packed() {
        true if one_tile && kind == w.kind() => task.panels.len(),
        false if rows <= most_rows && kind != Kind::Wide => 1, // packed, it is read from the first-level cache
        _ => {
            let bytes = match kind {
                Kind::Wide => 4 * ROWS * w.columns(), // as tiles read them
                Kind::Quantised(_) => 4 * w.panel_terms() + w.panel_scales(),
            };
            (CHUNK / bytes).max(1)
        }
    }
}

/// For each chunk of a task's panels, and each tile of its rows of x: `panels!(rows of the tile, begin of the chunk,
/// panels of the chunk, tile, place of the output)`, where `begin!(panels as they are, their number)` is what all tiles
/// read.
macro_rules! chunks {
    ($D:ident, $task:expr, $begin:ident, $panels:ident) => {{
        let Task { product, tiles, panels, rows } = $task;
        let Product { w, y, slots, .. } = product;
        let (chunk, row_words) = (chunk_panels($task, $D::TILE), product.row_words());
        let room = if w.is_packed() { 0 } else { chunk };
        let mut terms = scratch::buffer(room * w.panel_terms());
        let mut scales = scratch::buffer(room * w.panel_scales() / 4);
        for first in panels.clone().step_by(chunk) {
            let chunk = first..panels.end.min(first + chunk);
            let begin = $begin!(w.panel(chunk.clone(), &mut terms, &mut scales), chunk.len());
            let mut row = rows.start;
            while row < rows.end {
                let m = kernel::tile_rows(rows.end - row, $D::TILE);
                let tile = tiles[row * row_words..][..m * row_words].as_ptr();
                let at = y.at((slots.start + row) * w.rows() + first * ROWS);
                let out = Out { at, stride: w.rows(), columns: w.rows() - first * ROWS };
                $panels!(m, begin, chunk.len(), tile, out);
                row += m;
            }
        }
    }};
}

/// # Safety
/// The machine has D's instructions; the task's tiles were laid for its product, whose output has its slots, and no
/// other task has these rows and panels.
#[inline(always)]
unsafe fn compute<D: Dots>(task: &Task) {
    macro_rules! of_form {
        ($bits:literal, $halves:literal, $minima:literal, $factors:literal) => {
            of_form!($bits, $halves, $minima, $factors, 0)
        };
        ($bits:literal, $halves:literal, $minima:literal, $factors:literal, $codes:literal) => {
            // SAFETY: the match below gives the form's constants; the task goes on as it came.
            unsafe { of_form::<D, $bits, $halves, $minima, $factors, $codes>(task) }
        };
    }
    let Kind::Quantised(Form { bits, halves, minima, factors, codes, .. }) = task.product.kind else {
        // SAFETY: each width is that of its type; the task goes on as it came.
        return unsafe {
            match task.product.w.block_type() {
                BlockType::F16 => of_width::<D, wide::F16>(task),
                BlockType::Bf16 => of_width::<D, wide::Bf16>(task),
                BlockType::F32 => of_width::<D, wide::F32>(task),
                _ => of_numbers::<D>(task),
            }
        };
    };
    match (codes, bits, halves, minima, factors) {
        (Codes::Iq4, .., false) => return of_form!(4, 1, false, false, 1),
        (Codes::Iq4, .., true) => return of_form!(4, 1, false, true, 1),
        (Codes::E2m1, ..) => return of_form!(4, 1, false, false, 2),
        (Codes::None, ..) => {}
    }
    match (bits, halves, minima, factors) {
        (8, 1, false, true) => of_form!(8, 1, false, true),
        (8, 2, false, true) => of_form!(8, 2, false, true),
        (8, 1, false, false) => of_form!(8, 1, false, false),
        (4, 1, false, false) => of_form!(4, 1, false, false),
        (4, 1, true, false) => of_form!(4, 1, true, false),
        (5, 1, false, false) => of_form!(5, 1, false, false),
        (5, 1, true, false) => of_form!(5, 1, true, false),
        (4, 2, true, true) => of_form!(4, 2, true, true),
        (4, 2, false, true) => of_form!(4, 2, false, true),
        (4, 1, true, true) => of_form!(4, 1, true, true),
        (5, 1, true, true) => of_form!(5, 1, true, true),
        (6, 2, false, true) => of_form!(6, 2, false, true),
        form => unreachable!("no block type has the form {form:?}"),
    }
}

/// # Safety
/// As for [`compute`], with the constants of the product's form.
#[inline(always)]
unsafe fn of_form<
    D: Dots,
    const BITS: usize,
    const HALVES: usize,
    const MINIMA: bool,
    const FACTORS: bool,
    const CODES: usize,
>(
    task: &Task,
) {
    let w = task.product.w;
    let (term_bytes, scale_bytes, records) = (4 * w.panel_terms(), w.panel_scales(), w.records());
    // A closure would not be compiled with the set's instructions.
    macro_rules! panels {
        ($m:expr, $begin:expr, $panels:expr, $tile:expr, $out:expr) => {{
            let (m, begin, tile, mut out): (usize, Panel, *const u32, Out) = ($m, $begin, $tile, $out);
            for i in 0..$panels {
                let panel = Panel { terms: begin.terms.add(i * term_bytes), scales: begin.scales.add(i * scale_bytes) };
                kernel::panel::<D, BITS, HALVES, MINIMA, FACTORS, CODES>(m, records, panel, tile, out);
                out.at = out.at.wrapping_add(ROWS);
                out.columns = out.columns.saturating_sub(ROWS);
            }
        }};
    }
    macro_rules! as_it_is {
        ($begin:expr, $panels:expr) => {
            $begin
        };
    }
    // SAFETY: the panels of a chunk lie one after the other; the output has a row for each slot.
    unsafe { chunks!(D, task, as_it_is, panels) }
}

/// Tiles from which on a chunk of 16-bit numbers is widened once for all, and not by each.
const MANY_TILES: usize = 4;

/// # Safety
/// As for [`compute`], with the width of the product's type.
#[inline(always)]
unsafe fn of_width<D: Dots, W: Width>(task: &Task) {
    let columns = task.product.w.columns();
    let many = W::BYTES < size_of::<f32>() && task.rows.len() >= MANY_TILES * D::TILE;
    let room = if many { chunk_panels(task, D::TILE).min(task.panels.len()) } else { 0 };
    let mut widened = scratch::buffer(room * columns * ROWS);
    macro_rules! begin {
        ($begin:expr, $panels:expr) => {{
            let begin: Panel = $begin;
            match many {
                true => {
                    Panel { terms: wide::widen::<D, W>(begin.terms, &mut widened[..$panels * columns * ROWS]), ..begin }
                }
                false => begin,
            }
        }};
    }
    macro_rules! panels {
        ($m:expr, $begin:expr, $panels:expr, $tile:expr, $out:expr) => {
            match many {
                true => wide::panels::<D, wide::F32>($m, columns, $begin.terms, $panels, $tile.cast(), $out),
                false => wide::panels::<D, W>($m, columns, $begin.terms, $panels, $tile.cast(), $out),
            }
        };
    }
    // SAFETY: the panels of a chunk lie one after the other, where they are or widened into a buffer that has room for
    // a whole chunk; the output has a row for each slot.
    unsafe { chunks!(D, task, begin, panels) }
}

/// With the numbers of quantised weights, decoded a chunk of panels at a time.
///
/// # Safety
/// As for [`compute`], of a product with whole rows of x.
#[inline(always)]
unsafe fn of_numbers<D: Dots>(task: &Task) {
    let w = task.product.w;
    let (columns, room) = (w.columns(), chunk_panels(task, D::TILE).min(task.panels.len()));
    let mut numbers = scratch::buffer(room * columns * ROWS);
    macro_rules! begin {
        ($begin:expr, $panels:expr) => {{
            let begin: Panel = $begin;
            for (i, numbers) in numbers.chunks_exact_mut(columns * ROWS).take($panels).enumerate() {
                let panel = Panel {
                    terms: begin.terms.add(4 * i * w.panel_terms()),
                    scales: begin.scales.add(i * w.panel_scales()),
                };
                decode::panel::<D>(w.block_type(), panel, numbers);
            }
            Panel { terms: numbers.as_ptr().cast(), ..begin }
        }};
    }
    macro_rules! panels {
        ($m:expr, $begin:expr, $panels:expr, $tile:expr, $out:expr) => {
            wide::panels::<D, wide::F32>($m, columns, $begin.terms, $panels, $tile.cast(), $out)
        };
    }
    // SAFETY: the panels of a chunk lie one after the other, each of as many records as a row has blocks; the buffer
    // has room for the numbers of a whole chunk; the output has a row for each slot.
    unsafe { chunks!(D, task, begin, panels) }
}

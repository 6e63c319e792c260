//! Products. [`Cuda::forward`], [`Cuda::backward_x`] and [`Cuda::backward_w`] are the three places where a kernel is
//! chosen: a faster one for some precision, shape or card goes there.

use wels_device::{Dispatch, Groups, Ids, Precision, Products, Start, Tensor, WeightRef};

use crate::Cuda;
use crate::experts::{self, TILE};
use crate::launch::{Buffer, Launch};
use crate::memory::{f32s, f32s_mut};
use crate::rows::goes_on;
use crate::weights::{self, Stack};

/// Which rows each part of a stacked matrix is multiplied with.
#[derive(Clone, Copy)]
pub(crate) enum Parts<'a> {
    /// Slots of experts, and the row of x of each slot where x has those of the tokens.
    Slots(&'a experts::Tables, Option<&'a Buffer>),
    /// Parts of as many rows: how many parts, and rows of each.
    Equal(usize, usize),
}

impl<'a> Parts<'a> {
    /// A dense product.
    pub fn one(rows: usize) -> Parts<'a> {
        Parts::Equal(1, rows)
    }

    fn of(groups: Groups<'a>, rows: usize) -> Parts<'a> {
        match groups {
            Groups::Slots(dispatch) => Parts::Slots(experts::tables(dispatch), None),
            Groups::Tokens(dispatch) => {
                let tables = experts::tables(dispatch);
                Parts::Slots(tables, Some(&tables.rows))
            }
            Groups::Equal(parts) => {
                assert!(rows.is_multiple_of(parts), "{rows} rows in {parts} equal parts");
                Parts::Equal(parts, rows / parts)
            }
        }
    }

    fn count(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.experts,
            Parts::Equal(parts, _) => *parts,
        }
    }

    /// Tiles of rows that a grid has to have, at most.
    pub fn tiles(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.tiles_max,
            Parts::Equal(parts, rows) => parts * rows.div_ceil(TILE),
        }
    }

    pub fn slots(&self) -> usize {
        match self {
            Parts::Slots(tables, _) => tables.slots_len,
            Parts::Equal(parts, rows) => parts * rows,
        }
    }

    /// The row of x of each slot.
    pub fn rows(&self) -> Option<&'a Buffer> {
        match self {
            Parts::Slots(_, rows) => *rows,
            Parts::Equal(..) => None,
        }
    }

    /// The arguments `tiles` and `equal`.
    pub fn with_tiles<'l>(&self, launch: Launch<'l>) -> Launch<'l>
    where
        'a: 'l,
    {
        match *self {
            Parts::Slots(tables, _) => launch.read(&tables.tiles).int(0),
            Parts::Equal(_, rows) => launch.read_if(None).int(rows),
        }
    }

    /// The arguments `begins` and `equal`.
    fn with_begins<'l>(&self, launch: Launch<'l>) -> Launch<'l>
    where
        'a: 'l,
    {
        match *self {
            Parts::Slots(tables, _) => launch.read(&tables.offsets).int(0),
            Parts::Equal(_, rows) => launch.read_if(None).int(rows),
        }
    }
}

/// Shared memory of `tile_product`.
const SHARED: usize = 2 * 16 * 68 * 4;

/// Whether operands are rounded to bf16. Half precision, which the processor has for speed, is computed as f32 here.
fn rounds(precision: Precision) -> usize {
    usize::from(precision == Precision::Bf16)
}

impl Cuda {
    /// `y[S, N] = x · w[part]ᵀ`; where w is packed, `stack` has its number formats and places.
    pub(crate) fn forward(
        &self,
        precision: Precision,
        (x, k): (&Buffer, usize),
        parts: Parts,
        (w, table): (&Buffer, Option<&Buffer>),
        (y, n): (&mut Buffer, usize),
    ) {
        if table.is_none() && Cuda::takes(precision, &parts) {
            return self.tensor_y((x, k), parts, w, (y, n));
        }
        let launch = self.launch("product_y").shared(SHARED).blocks(n.div_ceil(TILE), parts.tiles(), 1);
        let launch = launch.read(x).read_if(parts.rows()).read(w).read_if(table);
        parts.with_tiles(launch).write(y).int(k).int(n).int(rounds(precision)).run();
    }

    /// `dx[S, K] = dy[S, N] · w[part]`.
    pub(crate) fn backward_x(
        &self,
        precision: Precision,
        (dy, n): (&Buffer, usize),
        parts: Parts,
        w: &Buffer,
        (dx, k, start): (&mut Buffer, usize, Start),
        dx_offset: usize,
    ) {
        if Cuda::takes(precision, &parts) {
            return self.tensor_dx((dy, n), parts, w, (dx, k, start), dx_offset);
        }
        let launch = self.launch("product_dx").shared(SHARED).blocks(k.div_ceil(TILE), parts.tiles(), 1);
        let launch = parts.with_tiles(launch.read(dy).read(w)).write_at(dx, dx_offset);
        launch.int(k).int(n).int(goes_on(start)).int(rounds(precision)).run();
    }

    /// `dw[part] = dyᵀ · x` over the rows of each part.
    pub(crate) fn backward_w(
        &self,
        precision: Precision,
        (dy, n): (&Buffer, usize),
        (x, k, x_offset): (&Buffer, usize, usize),
        parts: Parts,
        (dw, start): (&mut Buffer, Start),
    ) {
        let blocks = (k.div_ceil(TILE), n.div_ceil(TILE), parts.count());
        let launch = self.launch("product_dw").shared(SHARED).blocks(blocks.0, blocks.1, blocks.2);
        let launch = launch.read(dy).read_at(x, x_offset).read_if(parts.rows());
        let launch = parts.with_begins(launch).write(dw);
        launch.int(k).int(n).int(goes_on(start)).int(rounds(precision)).run();
    }

    /// A product of whole numbers with quantised weights; x is quantised first.
    fn forward_quantised(
        &self,
        (x, rows, k): (&Buffer, usize, usize),
        parts: Parts,
        stack: &Stack,
        (y, n): (&mut Buffer, usize),
    ) {
        let padded = stack.padded;
        let scales_len = rows * padded / 32;
        let (mut whole, mut scales) = (self.temporary((rows * padded).div_ceil(4)), self.temporary(scales_len));
        let launch = self.launch("quantise_rows").over(scales_len).read(x).write(&mut whole).write(&mut scales);
        launch.int(k).int(padded).long(scales_len).run();
        let launch = self.launch("quantised_y").threads(64).blocks(n.div_ceil(64), parts.tiles(), TILE / 4);
        let launch = launch.read(&whole).read(&scales).read_if(parts.rows()).read(&stack.blocks).read(&stack.table);
        parts.with_tiles(launch).write(y).int(padded).int(n).run();
    }

    /// A product of f32 rows with packed weights of any kind.
    pub(crate) fn forward_packed(
        &self,
        x: (&Buffer, usize, usize),
        parts: Parts,
        stack: &Stack,
        y: (&mut Buffer, usize),
    ) {
        let formats = stack.formats.iter().map(|format| format.is_quantised());
        let quantised = formats.clone().filter(|quantised| *quantised).count();
        match quantised {
            0 => self.forward(Precision::F32, (x.0, x.2), parts, (&stack.blocks, Some(&stack.table)), y),
            all if all == stack.formats.len() => self.forward_quantised(x, parts, stack, y),
            _ => panic!("matrices of one parameter of which some are quantised and some are not"),
        }
    }

    fn any_forward(&self, precision: Precision, x: &Tensor, parts: Parts, (w, y): (WeightRef, &mut Tensor)) {
        let (k, n) = (x.cols(), y.cols());
        let (rows, cols) = match w {
            WeightRef::Plain(w) => (w.rows(), w.cols()),
            WeightRef::Packed(w) => (w.rows(), w.cols()),
        };
        assert_eq!((rows, cols), (parts.count() * n, k), "{} matrices for {x:?} to {y:?}", parts.count());
        assert_eq!(parts.slots(), y.rows(), "rows of {y:?}");
        assert!(parts.rows().is_some() || x.rows() == y.rows(), "rows of {x:?} and {y:?}");
        match w {
            WeightRef::Plain(w) => {
                self.forward(precision, (f32s(x), k), parts, (f32s(w), None), (f32s_mut(y), n));
            }
            WeightRef::Packed(w) => {
                let stack = weights::stack(w);
                self.forward_packed((f32s(x), x.rows(), k), parts, stack, (f32s_mut(y), n));
            }
        }
    }
}

impl Products for Cuda {
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]) {
        for (w, y) in products {
            self.any_forward(precision, x, Parts::one(x.rows()), (*w, y));
        }
    }

    fn linear_dx(&self, precision: Precision, dy: &Tensor, w: &Tensor, (dx, start): (&mut Tensor, Start)) {
        let (k, n) = (dx.cols(), dy.cols());
        assert_eq!((w.rows(), w.cols(), dx.rows()), (n, k, dy.rows()), "{dy:?} · {w:?} to {dx:?}");
        let dx = (f32s_mut(dx), k, start);
        self.backward_x(precision, (f32s(dy), n), Parts::one(dy.rows()), f32s(w), dx, 0);
    }

    fn linear_dw(
        &self,
        precision: Precision,
        dy: &Tensor,
        x: &Tensor,
        sequences: &Ids,
        (dw, start): (&mut Tensor, Start),
    ) {
        let (k, n) = (x.cols(), dy.cols());
        assert_eq!((dw.rows(), dw.cols(), dy.rows()), (n, k, x.rows()), "{dy:?}ᵀ · {x:?} to {dw:?}");
        let parts = Parts::one(x.rows());
        let dw = (f32s_mut(dw), start);
        match Cuda::takes(precision, &parts) {
            true => self.tensor_dw((f32s(dy), n), (f32s(x), k), parts, sequences, dw),
            false => self.backward_w(precision, (f32s(dy), n), (f32s(x), k, 0), parts, dw),
        }
    }

    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]) {
        for (w, y) in products {
            self.any_forward(precision, x, Parts::of(groups, y.rows()), (*w, y));
        }
    }

    fn grouped_dx(
        &self,
        precision: Precision,
        dy: &Tensor,
        dispatch: &Dispatch,
        w: &Tensor,
        (dx, start): (&mut Tensor, Start),
    ) {
        let (k, n, parts) = (dx.cols(), dy.cols(), Parts::of(Groups::Slots(dispatch), dy.rows()));
        assert_eq!((w.rows(), w.cols()), (parts.count() * n, k), "{dy:?} · {w:?} to {dx:?}");
        assert_eq!((dy.rows(), dx.rows()), (parts.slots(), parts.slots()), "slots of {dispatch:?}");
        self.backward_x(precision, (f32s(dy), n), parts, f32s(w), (f32s_mut(dx), k, start), 0);
    }

    fn grouped_dw(
        &self,
        precision: Precision,
        dy: &Tensor,
        x: &Tensor,
        groups: Groups,
        sequences: &Ids,
        (dw, start): (&mut Tensor, Start),
    ) {
        let (k, n, parts) = (x.cols(), dy.cols(), Parts::of(groups, dy.rows()));
        assert_eq!((dw.rows(), dw.cols()), (parts.count() * n, k), "{dy:?}ᵀ · {x:?} to {dw:?}");
        assert_eq!(parts.slots(), dy.rows(), "rows of {dy:?}");
        assert!(parts.rows().is_some() || x.rows() == dy.rows(), "rows of {x:?} and {dy:?}");
        let dw = (f32s_mut(dw), start);
        match Cuda::takes(precision, &parts) {
            true => self.tensor_dw((f32s(dy), n), (f32s(x), k), parts, sequences, dw),
            false => self.backward_w(precision, (f32s(dy), n), (f32s(x), k, 0), parts, dw),
        }
    }
}

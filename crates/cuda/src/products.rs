//! Products. [`Cuda::forward`], [`Cuda::backward_x`] and [`Cuda::backward_w`] are the three places where a kernel is
//! chosen: a faster one for some precision, shape or card goes there.

use wels_device::{Dispatch, Dtype, Groups, Ids, Precision, Products, Start, Tensor, WeightGradient, WeightRef};

use crate::Cuda;
use crate::experts::TILE;
use crate::launch::Buffer;
use crate::memory::{Numbers, f32s_mut, numbers, numbers_mut};
use crate::parts::Parts;
use crate::rows::goes_on;
use crate::tensor_cores::{Gradient, Operand, Output, Product, Term};
use crate::weights::{self, Stack};

/// What x is multiplied with.
#[derive(Clone, Copy)]
pub(crate) enum Matrix<'a> {
    Plain(&'a Numbers),
    Packed(&'a Stack),
}

impl<'a> Matrix<'a> {
    /// Its memory, rows, and columns.
    pub fn of(w: WeightRef<'a>) -> (Matrix<'a>, usize, usize) {
        match w {
            WeightRef::Plain(w) => (Matrix::Plain(numbers(w)), w.rows(), w.cols()),
            WeightRef::Packed(w) => (Matrix::Packed(weights::stack(w)), w.rows(), w.cols()),
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
    /// `y[S, N] = x · w[part]ᵀ`, w in f32.
    pub(crate) fn forward(
        &self,
        precision: Precision,
        (x, k): (&Numbers, usize),
        parts: Parts,
        w: &Numbers,
        (y, n): (&mut Numbers, usize),
    ) {
        match (Cuda::on_tensor_cores(precision, x.dtype, &parts), precision) {
            (false, _) => self.plain_y(precision, (&x.buffer, k), parts, (&w.buffer, None), (&mut y.buffer, n)),
            (true, Precision::Bf16) => {
                let w = self.weights(w, parts.count() * n, k);
                self.tensor_y((x, k), parts, vec![Product { w, y: Output::all(y, Start::Zero), n }]);
            }
            (true, _) => self.tensor_y_exact((x, k), parts.slots(), w, (y, n)),
        }
    }

    /// The same of f32 by plain loops; where w is packed, `table` has its number formats and places.
    fn plain_y(
        &self,
        precision: Precision,
        (x, k): (&Buffer, usize),
        parts: Parts,
        (w, table): (&Buffer, Option<&Buffer>),
        (y, n): (&mut Buffer, usize),
    ) {
        let launch = self.launch("product_y").shared(SHARED).blocks(n.div_ceil(TILE), parts.tiles(), 1);
        let launch = launch.read(x).read_if(parts.rows()).read(w).read_if(table);
        parts.with_tiles(launch).write(y).int(k).int(n).int(rounds(precision)).run();
    }

    /// `dx[S, K] = [dx] + Σ dy[S, N] · w[part]`, in the order of the terms.
    pub(crate) fn backward_x(&self, precision: Precision, parts: Parts, terms: &[Term], (mut dx, k): (Output, usize)) {
        if Cuda::on_tensor_cores(precision, dx.numbers.dtype, &parts) {
            return self.tensor_dx(parts, terms, (dx, k));
        }
        for Term { dy, w, n } in terms {
            let launch = self.launch("product_dx").shared(SHARED).blocks(k.div_ceil(TILE), parts.tiles(), 1);
            let launch = parts.with_tiles(launch.read(&dy.buffer).read(&w.buffer));
            let launch = launch.write_at(&mut dx.numbers.buffer, dx.offset);
            launch.int(k).int(*n).int(goes_on(dx.start)).int(rounds(precision)).run();
            dx.start = Start::Continue;
        }
    }

    /// `dw[part] = [dw] + dyᵀ · x` over the rows of each part, for several dy.
    pub(crate) fn backward_w(
        &self,
        precision: Precision,
        (x, k): (&Numbers, usize),
        parts: Parts,
        starts: (&Buffer, usize),
        gradients: Vec<Gradient>,
    ) {
        if Cuda::on_tensor_cores(precision, x.dtype, &parts) {
            return self.tensor_dw((x, k), parts, starts, gradients);
        }
        for Gradient { dy, n, dw, start } in gradients {
            let blocks = (k.div_ceil(TILE), n.div_ceil(TILE), parts.count());
            let launch = self.launch("product_dw").shared(SHARED).blocks(blocks.0, blocks.1, blocks.2);
            let launch = launch.read(&dy.buffer).read(&x.buffer).read_if(parts.rows());
            let launch = parts.with_begins(launch).write(dw);
            launch.int(k).int(n).int(goes_on(start)).int(rounds(precision)).run();
        }
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
        let blocks = stack.kept(self);
        let launch = launch.read(&whole).read(&scales).read_if(parts.rows()).read(&blocks).read(&stack.table);
        parts.with_tiles(launch).write(y).int(padded).int(n).run();
    }

    /// A product with packed weights of any kind, which are not bf16 where activations are: of activations in bf16 with
    /// weights in blocks that share scales on tensor cores, all others of numbers in f32.
    fn forward_packed(
        &self,
        (x, rows, k): (&Numbers, usize, usize),
        parts: Parts,
        stack: &Stack,
        (y, n): (&mut Numbers, usize),
    ) {
        if x.dtype == Dtype::F32 {
            return self.forward_blocks((&x.buffer, rows, k), parts, stack, (&mut y.buffer, n));
        }
        if stack.is_unpacked() && parts.slots() > 0 {
            return self.forward_tiles((x, k), parts, stack, (y, n));
        }
        let wide = self.wide(&x.buffer, rows * k);
        if y.dtype == Dtype::F32 {
            return self.forward_blocks((&wide, rows, k), parts, stack, (&mut y.buffer, n));
        }
        let mut wide_y = self.temporary(parts.slots() * n);
        self.forward_blocks((&wide, rows, k), parts, stack, (&mut wide_y, n));
        self.round_to(&wide_y, parts.slots(), n, &mut y.buffer);
    }

    /// A product of f32 with the blocks of a file.
    fn forward_blocks(&self, x: (&Buffer, usize, usize), parts: Parts, stack: &Stack, y: (&mut Buffer, usize)) {
        if stack.is_quantised() {
            return self.forward_quantised(x, parts, stack, y);
        }
        self.plain_y(Precision::F32, (x.0, x.2), parts, (&stack.kept(self), Some(&stack.table)), y);
    }

    /// Where sequences begin, and how many they are.
    fn starts<'a>(&self, sequences: &'a Ids) -> (&'a Buffer, usize) {
        (&self.ids(sequences).list, sequences.len() - 1)
    }

    /// Products of one x with matrices however they are stored: those of bf16 together, all others one by one.
    pub(crate) fn forward_all(
        &self,
        precision: Precision,
        (x, rows, k): (&Numbers, usize, usize),
        parts: Parts,
        products: Vec<(Matrix, &mut Numbers, usize)>,
    ) {
        let mut joint = Vec::with_capacity(products.len());
        for (w, y, n) in products {
            match (self.in_bf16_of(precision, x, &parts, w, n, k), w) {
                (Some(w), _) => joint.push((w, y, n)),
                (None, Matrix::Plain(w)) => self.forward(precision, (x, k), parts, w, (y, n)),
                (None, Matrix::Packed(stack)) => self.forward_packed((x, rows, k), parts, stack, (y, n)),
            }
        }
        let product = |(w, y, n)| Product { w, y: Output::all(y, Start::Zero), n };
        self.tensor_y((x, k), parts, joint.iter_mut().map(|(w, y, n)| product((&**w, y, *n))).collect());
    }

    /// A matrix in bf16, where a product with it is of bf16.
    fn in_bf16_of<'a>(
        &self,
        precision: Precision,
        x: &Numbers,
        parts: &Parts,
        w: Matrix<'a>,
        n: usize,
        k: usize,
    ) -> Option<Operand<'a>> {
        let on_tensor_cores = Cuda::on_tensor_cores(precision, x.dtype, parts);
        match w {
            Matrix::Plain(w) if on_tensor_cores && precision == Precision::Bf16 => {
                Some(Operand::There(self.weights(w, parts.count() * n, k)))
            }
            Matrix::Packed(stack) if x.dtype == Dtype::Bf16 && parts.slots() > 0 => {
                stack.in_bf16(k).map(Operand::Shared)
            }
            _ => None,
        }
    }

    fn any_forward(&self, precision: Precision, x: &Tensor, parts: Parts, products: &mut [(WeightRef, &mut Tensor)]) {
        let k = x.cols();
        let checked = products.iter_mut().map(|(w, y)| {
            let (w, rows, cols) = Matrix::of(*w);
            let n = y.cols();
            assert_eq!((rows, cols), (parts.count() * n, k), "{} matrices for {x:?} to {y:?}", parts.count());
            assert_eq!(parts.slots(), y.rows(), "rows of {y:?}");
            assert!(parts.rows().is_some() || x.rows() == y.rows(), "rows of {x:?} and {y:?}");
            (w, numbers_mut(y), n)
        });
        let products = checked.collect();
        self.forward_all(precision, (numbers(x), x.rows(), k), parts, products);
    }
}

impl Cuda {
    fn any_dx(
        &self,
        precision: Precision,
        parts: Parts,
        terms: &[(&Tensor, WeightRef)],
        (dx, start): (&mut Tensor, Start),
    ) {
        let k = dx.cols();
        assert_eq!(dx.rows(), parts.slots(), "rows of {dx:?}");
        let checked = terms.iter().map(|(dy, w)| {
            let WeightRef::Plain(w) = w else { panic!("gradients of packed weights") };
            let n = dy.cols();
            assert_eq!((w.rows(), w.cols()), (parts.count() * n, k), "{dy:?} · {w:?} to {dx:?}");
            assert_eq!(dy.rows(), parts.slots(), "rows of {dy:?}");
            Term { dy: numbers(dy), w: numbers(w), n }
        });
        let terms: Vec<Term> = checked.collect();
        self.backward_x(precision, parts, &terms, (Output::all(numbers_mut(dx), start), k));
    }

    fn any_dw(
        &self,
        precision: Precision,
        x: &Tensor,
        parts: Parts,
        sequences: &Ids,
        gradients: &mut [WeightGradient],
    ) {
        let k = x.cols();
        let checked = gradients.iter_mut().map(|(dy, (dw, start))| {
            let n = dy.cols();
            assert_eq!((dw.rows(), dw.cols()), (parts.count() * n, k), "{dy:?}ᵀ · {x:?} to {dw:?}");
            assert_eq!(dy.rows(), parts.slots(), "rows of {dy:?}");
            assert!(parts.rows().is_some() || x.rows() == dy.rows(), "rows of {x:?} and {dy:?}");
            Gradient { dy: numbers(dy), n, dw: f32s_mut(dw), start: *start }
        });
        let gradients = checked.collect();
        self.backward_w(precision, (numbers(x), k), parts, self.starts(sequences), gradients);
    }
}

impl Products for Cuda {
    fn linear(&self, precision: Precision, x: &Tensor, products: &mut [(WeightRef, &mut Tensor)]) {
        self.any_forward(precision, x, Parts::one(x.rows()), products);
    }

    fn linear_dx(&self, precision: Precision, terms: &[(&Tensor, WeightRef)], dx: (&mut Tensor, Start)) {
        self.any_dx(precision, Parts::one(dx.0.rows()), terms, dx);
    }

    fn linear_dw(&self, precision: Precision, x: &Tensor, sequences: &Ids, gradients: &mut [WeightGradient]) {
        assert_eq!(sequences.last().map(|end| *end as usize), Some(x.rows()), "rows of the sequences {sequences:?}");
        self.any_dw(precision, x, Parts::one(x.rows()), sequences, gradients);
    }

    fn grouped(&self, precision: Precision, x: &Tensor, groups: Groups, products: &mut [(WeightRef, &mut Tensor)]) {
        let Some((_, y)) = products.first() else { return };
        self.any_forward(precision, x, Parts::of(groups, y.rows()), products);
    }

    fn grouped_dx(
        &self,
        precision: Precision,
        dispatch: &Dispatch,
        terms: &[(&Tensor, WeightRef)],
        dx: (&mut Tensor, Start),
    ) {
        self.any_dx(precision, Parts::of(Groups::Slots(dispatch), dx.0.rows()), terms, dx);
    }

    fn grouped_dw(
        &self,
        precision: Precision,
        x: &Tensor,
        groups: Groups,
        sequences: &Ids,
        gradients: &mut [WeightGradient],
    ) {
        let Some((dy, _)) = gradients.first() else { return };
        self.any_dw(precision, x, Parts::of(groups, dy.rows()), sequences, gradients);
    }
}

//! What turns convolutions of three by three pixels into products: windows side by side, and pixels doubled.
//!
//! A batch is P square pictures `[P·side², C]`, row by row. A convolution is a product of gathered windows `[R, 9·C]`
//! with weights `[N, 9·C]`. Its gradient with respect to the pixels is again one: of the windows of the outputs'
//! gradient ([`gather_backward`]) with the weights turned over ([`turn`]). So it has no scattered sums: an element is
//! one chain over the nine places, and over the outputs in each. Numbers are copied; only [`double_backward`] adds.

use crate::par;

/// From which pixels windows go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Around each pixel, zeros beyond the edges.
    One,
    /// From every second pixel on, zeros beyond the right and lower edges: half the side, rounded down.
    Two,
}

/// The windows of a batch of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Windows {
    /// P.
    pub pictures: usize,
    /// In pixels.
    pub side: usize,
    pub step: Step,
}

impl Windows {
    /// Windows on a side of a picture.
    pub fn side_out(&self) -> usize {
        match self.step {
            Step::One => self.side,
            Step::Two => self.side / 2,
        }
    }

    /// Of all pictures.
    pub fn outputs(&self) -> usize {
        self.pictures * self.side_out().pow(2)
    }

    /// Of all pictures.
    pub fn inputs(&self) -> usize {
        self.pictures * self.side.pow(2)
    }
}

/// Of a place in 0.., and an offset of 0, 1 or 2 from it, the place that it is copied from, if that is below the limit.
type Source = fn(usize, usize, usize) -> Option<usize>;

fn around(place: usize, offset: usize, limit: usize) -> Option<usize> {
    (place + offset).checked_sub(1).filter(|from| *from < limit)
}

fn doubling(place: usize, offset: usize, limit: usize) -> Option<usize> {
    Some(2 * place + offset).filter(|from| *from < limit)
}

/// The output in whose window the place is the last, the middle, the first.
fn halving(place: usize, offset: usize, limit: usize) -> Option<usize> {
    let twice = (place + offset).checked_sub(2)?;
    Some(twice / 2).filter(|from| twice.is_multiple_of(2) && *from < limit)
}

/// y `[R, 9·C]`: the windows of the outputs from `first` on, pixel by pixel, of x `[P·side², C]`.
pub fn gather(of: Windows, x: &[f32], first: usize, y: &mut [f32], c: usize) {
    copy(&Gathered::forward(of, x, c), first, y);
}

/// y `[R, 9·N]`: of the inputs from `first` on, dy `[P·side_out², N]` of the outputs in whose windows each is the last,
/// the one before, … the first pixel; zeros where there is none.
pub fn gather_backward(of: Windows, dy: &[f32], first: usize, y: &mut [f32], n: usize) {
    copy(&Gathered::backward(of, dy, n), first, y);
}

fn copy(of: &Gathered, first: usize, y: &mut [f32]) {
    let width = of.width();
    assert!(first * width + y.len() <= of.rows() * width, "windows from {first} on");
    let rows = par::rows_per_task(y.len() / width, width);
    par::chunks_mut(y, rows * width, |task, y| {
        for (i, window) in y.chunks_exact_mut(width).enumerate() {
            of.terms(first + task * rows + i, 0, window);
        }
    });
}

/// A matrix whose rows are windows, and which is nowhere in memory.
#[derive(Clone, Copy)]
pub(crate) struct Gathered<'a> {
    pixels: &'a [f32],
    /// Channels of a pixel.
    c: usize,
    pictures: usize,
    /// The sides of the pictures that are read, and of those whose pixels have the windows.
    from: usize,
    to: usize,
    source: Source,
}

impl<'a> Gathered<'a> {
    /// What [`gather`] has.
    pub fn forward(of: Windows, x: &'a [f32], c: usize) -> Self {
        assert_eq!(x.len(), of.inputs() * c, "x is {of:?} of {c} channels");
        let source = if of.step == Step::One { around } else { doubling };
        Gathered { pixels: x, c, pictures: of.pictures, from: of.side, to: of.side_out(), source }
    }

    /// What [`gather_backward`] has.
    pub fn backward(of: Windows, dy: &'a [f32], n: usize) -> Self {
        assert_eq!(dy.len(), of.outputs() * n, "dy is of {of:?} and {n} outputs");
        let source = if of.step == Step::One { around } else { halving };
        Gathered { pixels: dy, c: n, pictures: of.pictures, from: of.side_out(), to: of.side, source }
    }

    /// Windows.
    pub fn rows(&self) -> usize {
        self.pictures * self.to.pow(2)
    }

    /// Numbers of a window.
    pub fn width(&self) -> usize {
        9 * self.c
    }

    /// The numbers of a window from `begin` on.
    #[inline]
    pub fn terms(&self, window: usize, begin: usize, terms: &mut [f32]) {
        let Gathered { pixels, c, from, to, source, .. } = *self;
        let (picture, row, column) = (window / (to * to), window / to % to, window % to);
        let columns = [0, 1, 2].map(|offset| source(column, offset, from));
        let (mut at, mut rest) = (begin, terms);
        while !rest.is_empty() {
            let (line, within) = (at / (3 * c), at % (3 * c));
            let (part, after) = rest.split_at_mut(rest.len().min(3 * c - within));
            at += part.len();
            rest = after;
            let Some(row) = source(row, line, from) else {
                part.fill(0.0);
                continue;
            };
            copy_line(&pixels[(picture * from + row) * from * c..][..from * c], columns, within, part, c);
        }
    }
}

/// A part of three pixels of a row, from one of their numbers on.
#[inline]
fn copy_line(row: &[f32], columns: [Option<usize>; 3], begin: usize, part: &mut [f32], c: usize) {
    if let [Some(first), Some(middle), Some(_)] = columns
        && middle == first + 1
    {
        part.copy_from_slice(&row[first * c + begin..][..part.len()]);
        return;
    }
    let (mut at, mut rest) = (begin, part);
    while !rest.is_empty() {
        let (pixel, after) = rest.split_at_mut(rest.len().min(c - at % c));
        match columns[at / c] {
            Some(column) => pixel.copy_from_slice(&row[column * c + at % c..][..pixel.len()]),
            None => pixel.fill(0.0),
        }
        at += pixel.len();
        rest = after;
    }
}

/// The weights `[C, 9·N]` that [`gather_backward`]'s windows are multiplied with, of w `[N, 9·C]`: the places in
/// reverse, inputs and outputs exchanged.
pub fn turn(w: &[f32], turned: &mut [f32], c: usize) {
    assert_eq!((w.len(), w.len() % (9 * c)), (turned.len(), 0), "weights of {c} channels");
    let n = w.len() / (9 * c);
    for (output, w) in w.chunks_exact(9 * c).enumerate() {
        for (place, w) in w.chunks_exact(c).enumerate() {
            for (input, w) in w.iter().enumerate() {
                turned[(input * 9 + 8 - place) * n + output] = *w;
            }
        }
    }
}

/// y `[P·(2·side)², C]`: each pixel of x `[P·side², C]` as two by two.
pub fn double(side: usize, x: &[f32], y: &mut [f32], c: usize) {
    assert_eq!((4 * x.len(), x.len() % (side * side * c)), (y.len(), 0), "x is pictures of {side} pixels a side");
    par::chunks_mut(y, 2 * side * c, |row, y| {
        for (pixel, x) in y.chunks_exact_mut(2 * c).zip(x[row / 2 * side * c..].chunks_exact(c)) {
            pixel[..c].copy_from_slice(x);
            pixel[c..].copy_from_slice(x);
        }
    });
}

/// dx `[P·side², C]` of dy `[P·(2·side)², C]`: the sum of the four, the upper left one first, then the upper right one.
pub fn double_backward(side: usize, dy: &[f32], dx: &mut [f32], c: usize) {
    assert_eq!((4 * dx.len(), dx.len() % (side * side * c)), (dy.len(), 0), "dx is pictures of {side} pixels a side");
    par::chunks_mut(dx, side * c, |row, dx| {
        let (upper, lower) = dy[row * 4 * side * c..][..4 * side * c].split_at(2 * side * c);
        for (column, dx) in dx.chunks_exact_mut(c).enumerate() {
            let at = 2 * column * c;
            for (i, dx) in dx.iter_mut().enumerate() {
                *dx = upper[at + i] + upper[at + c + i] + lower[at + i] + lower[at + c + i];
            }
        }
    });
}

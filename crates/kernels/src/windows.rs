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
    assert_eq!(x.len(), of.inputs() * c, "x is {of:?} of {c} channels");
    assert!(first * 9 * c + y.len() <= of.outputs() * 9 * c, "windows from {first} on");
    let source = if of.step == Step::One { around } else { doubling };
    copy(x, of.side, of.side_out(), source, first, y, c);
}

/// y `[R, 9·N]`: of the inputs from `first` on, dy `[P·side_out², N]` of the outputs in whose windows each is the last,
/// the one before, … the first pixel; zeros where there is none.
pub fn gather_backward(of: Windows, dy: &[f32], first: usize, y: &mut [f32], n: usize) {
    assert_eq!(dy.len(), of.outputs() * n, "dy is of {of:?} and {n} outputs");
    assert!(first * 9 * n + y.len() <= of.inputs() * 9 * n, "pixels from {first} on");
    let source = if of.step == Step::One { around } else { halving };
    copy(dy, of.side_out(), of.side, source, first, y, n);
}

fn copy(x: &[f32], from: usize, to: usize, source: Source, first: usize, y: &mut [f32], c: usize) {
    let rows = par::rows_per_task(y.len() / (9 * c), 9 * c);
    par::chunks_mut(y, rows * 9 * c, |task, y| {
        for (i, window) in y.chunks_exact_mut(9 * c).enumerate() {
            let pixel = first + task * rows + i;
            let (picture, row, column) = (pixel / (to * to), pixel / to % to, pixel % to);
            let columns = [0, 1, 2].map(|offset| source(column, offset, from));
            for (offset, line) in window.chunks_exact_mut(3 * c).enumerate() {
                match source(row, offset, from) {
                    Some(row) => copy_line(&x[(picture * from + row) * from * c..][..from * c], columns, line, c),
                    None => line.fill(0.0),
                }
            }
        }
    });
}

/// Three pixels of a row.
fn copy_line(row: &[f32], columns: [Option<usize>; 3], line: &mut [f32], c: usize) {
    if let [Some(first), Some(middle), Some(_)] = columns
        && middle == first + 1
    {
        line.copy_from_slice(&row[first * c..][..3 * c]);
        return;
    }
    for (pixel, column) in line.chunks_exact_mut(c).zip(columns) {
        match column {
            Some(column) => pixel.copy_from_slice(&row[column * c..][..c]),
            None => pixel.fill(0.0),
        }
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

//! Windows of convolutions and doubled pixels, number by number.

use crate::windows::{Step, Windows};

/// Where a window's pixel lies on one axis, counted from one before the edge.
fn input(step: Step, output: usize, offset: usize) -> usize {
    match step {
        Step::One => output + offset,
        Step::Two => 2 * output + offset + 1,
    }
}

/// Reference of [`crate::windows::gather`].
pub fn gather(of: Windows, x: &[f32], first: usize, y: &mut [f32], c: usize) {
    let (side, out) = (of.side, of.side_out());
    for (i, y) in y.iter_mut().enumerate() {
        let (window, place, channel) = (first + i / (9 * c), i / c % 9, i % c);
        let row = input(of.step, window / out % out, place / 3);
        let column = input(of.step, window % out, place % 3);
        let within = (1..=side).contains(&row) && (1..=side).contains(&column);
        let pixel = || (window / (out * out) * side + row - 1) * side + column - 1;
        *y = if within { x[pixel() * c + channel] } else { 0.0 };
    }
}

/// Reference of [`crate::windows::gather_backward`].
pub fn gather_backward(of: Windows, dy: &[f32], first: usize, y: &mut [f32], n: usize) {
    let (side, out) = (of.side, of.side_out());
    for (i, y) in y.iter_mut().enumerate() {
        let (pixel, place, channel) = (first + i / (9 * n), 8 - i / n % 9, i % n);
        let output = |at: usize, offset| (0..out).find(|output| input(of.step, *output, offset) == at + 1);
        let place = output(pixel / side % side, place / 3).zip(output(pixel % side, place % 3));
        let window = |(row, column)| (pixel / (side * side) * out + row) * out + column;
        *y = place.map_or(0.0, |place| dy[window(place) * n + channel]);
    }
}

/// Reference of [`crate::windows::turn`].
pub fn turn(w: &[f32], turned: &mut [f32], c: usize) {
    let n = w.len() / (9 * c);
    for (i, turned) in turned.iter_mut().enumerate() {
        let (input, place, output) = (i / (9 * n), i / n % 9, i % n);
        *turned = w[(output * 9 + 8 - place) * c + input];
    }
}

/// Reference of [`crate::windows::double`].
pub fn double(side: usize, x: &[f32], y: &mut [f32], c: usize) {
    for (i, y) in y.iter_mut().enumerate() {
        let (row, column, channel) = (i / c / (2 * side), i / c % (2 * side), i % c);
        *y = x[(row / 2 * side + column / 2) * c + channel];
    }
}

/// Reference of [`crate::windows::double_backward`].
pub fn double_backward(side: usize, dy: &[f32], dx: &mut [f32], c: usize) {
    for (i, dx) in dx.iter_mut().enumerate() {
        let (row, column, channel) = (i / c / side, i / c % side, i % c);
        let of = |down: usize, right: usize| dy[((2 * row + down) * 2 * side + 2 * column + right) * c + channel];
        *dx = of(0, 0) + of(0, 1) + of(1, 0) + of(1, 1);
    }
}

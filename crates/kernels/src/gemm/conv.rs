//! Convolutions of three by three pixels (`crate::windows`): products whose left operand is windows. They are gathered
//! tile by tile as the product reads them, so that the ninefold copy of the pixels is never in memory.
//!
//! The chains are those of [`super::linear`] with the gathered windows: over the nine pixels, and the channels of each.

use super::{Left, Order, Precision, Product, Right, Size, Start, check, linear, run};
use crate::pack::Matrix;
use crate::par::SharedMut;
use crate::scratch;
use crate::windows::{Gathered, Windows};

/// `y[P·side_out², N] = windows(x)·w[N, 9·C]ᵀ` of x `[P·side², C]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv(p: Precision, of: Windows, x: &[f32], w: &[f32], y: &mut [f32], c: usize, n: usize) {
    product(p, &Gathered::forward(of, x, c), w, y, n);
}

/// `dx[P·side², C]` of dy `[P·side_out², N]` and the weights as [`crate::windows::turn`] has them, `[C, 9·N]`.
///
/// # Panics
/// If the shapes do not fit.
pub fn conv_dx(p: Precision, of: Windows, dy: &[f32], turned: &[f32], dx: &mut [f32], c: usize, n: usize) {
    product(p, &Gathered::backward(of, dy, n), turned, dx, c);
}

/// Windows that are gathered together where f16 prepares whole rows.
const STRIP: usize = 1024;

fn product(p: Precision, windows: &Gathered, w: &[f32], y: &mut [f32], n: usize) {
    let (m, k) = (windows.rows(), windows.width());
    check("w", w, n * k);
    check("y", y, m * n);
    if p == Precision::F16 {
        for (strip, y) in y.chunks_mut(STRIP * n).enumerate() {
            let mut gathered = scratch::buffer(y.len() / n * k);
            let rows = gathered.chunks_exact_mut(k).enumerate();
            rows.for_each(|(i, row)| windows.terms(strip * STRIP + i, 0, row));
            linear(p, &gathered, w, y, k, n);
        }
        return;
    }
    let left = Left { data: &[], stride: k, order: Order::Windows(windows) };
    let right = Right::Columns(Matrix { data: w, stride: k, rows: None });
    run(p, &[Product { size: Size { m, n, k }, left, right, out: 0 }], SharedMut::new(y), Start::Zero);
}

//! Products, as plain loops: each element is one chain of fused multiply-adds.

use crate::gemm::{Precision, Start};

/// `a[m,k] · b[k,n]` with elements read through functions, which is all that the products differ in.
fn product(
    precision: Precision,
    (m, k, n): (usize, usize, usize),
    a: impl Fn(usize, usize) -> f32,
    b: impl Fn(usize, usize) -> f32,
    c: &mut [f32],
    start: Start,
) {
    for i in 0..m {
        for j in 0..n {
            let c = &mut c[i * n + j];
            let first = if start == Start::Zero { 0.0 } else { *c };
            let pairs = (0..k).map(|k| (a(i, k), b(k, j)));
            *c = match precision {
                Precision::F32 => pairs.fold(first, |acc, (a, b)| a.mul_add(b, acc)),
                Precision::Bf16 => pairs.fold(first, |acc, (a, b)| flush(round_bf16(a).mul_add(round_bf16(b), acc))),
            };
        }
    }
}

/// To the nearest bf16, ties to even; subnormal numbers become zero, as the hardware's products take them.
pub fn round_bf16(x: f32) -> f32 {
    flush(half::bf16::from_f32(flush(x)).to_f32())
}

/// Zero, with the sign kept, for a subnormal number.
pub fn flush(x: f32) -> f32 {
    if x.is_subnormal() { 0.0f32.copysign(x) } else { x }
}

/// Reference of [`crate::gemm::linear`].
pub fn linear(p: Precision, x: &[f32], w: &[f32], y: &mut [f32], k: usize, n: usize) {
    product(p, (x.len() / k, k, n), |i, l| x[i * k + l], |l, j| w[j * k + l], y, Start::Zero);
}

/// Reference of [`crate::gemm::linear_dx`].
pub fn linear_dx(p: Precision, dy: &[f32], w: &[f32], dx: &mut [f32], k: usize, n: usize, start: Start) {
    product(p, (dy.len() / n, n, k), |i, l| dy[i * n + l], |l, j| w[l * k + j], dx, start);
}

/// Reference of [`crate::gemm::linear_dw`].
pub fn linear_dw(p: Precision, dy: &[f32], x: &[f32], dw: &mut [f32], k: usize, n: usize, start: Start) {
    product(p, (n, dy.len() / n, k), |i, t| dy[t * n + i], |t, j| x[t * k + j], dw, start);
}

/// Reference of [`crate::gemm::grouped_linear`].
pub fn grouped_linear(
    p: Precision,
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    w: &[f32],
    y: &mut [f32],
    k: usize,
    n: usize,
) {
    let x = gathered(x, rows, k);
    for (e, slots) in groups(offsets) {
        let (w, y) = (&w[e * n * k..(e + 1) * n * k], &mut y[slots.start * n..slots.end * n]);
        linear(p, &x[slots.start * k..slots.end * k], w, y, k, n);
    }
}

/// Reference of [`crate::gemm::grouped_linear_dx`].
pub fn grouped_linear_dx(
    p: Precision,
    dy: &[f32],
    offsets: &[u32],
    w: &[f32],
    dx: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    for (e, slots) in groups(offsets) {
        let (w, dx) = (&w[e * n * k..(e + 1) * n * k], &mut dx[slots.start * k..slots.end * k]);
        linear_dx(p, &dy[slots.start * n..slots.end * n], w, dx, k, n, start);
    }
}

/// Reference of [`crate::gemm::grouped_linear_dw`].
pub fn grouped_linear_dw(
    p: Precision,
    dy: &[f32],
    x: &[f32],
    rows: Option<&[u32]>,
    offsets: &[u32],
    dw: &mut [f32],
    k: usize,
    n: usize,
    start: Start,
) {
    let x = gathered(x, rows, k);
    for (e, slots) in groups(offsets) {
        let dw = &mut dw[e * n * k..(e + 1) * n * k];
        linear_dw(p, &dy[slots.start * n..slots.end * n], &x[slots.start * k..slots.end * k], dw, k, n, start);
    }
}

fn groups(offsets: &[u32]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    offsets.windows(2).map(|w| w[0] as usize..w[1] as usize).enumerate()
}

fn gathered(x: &[f32], rows: Option<&[u32]>, k: usize) -> Vec<f32> {
    match rows {
        None => x.to_vec(),
        Some(rows) => rows.iter().flat_map(|&r| x[r as usize * k..][..k].iter().copied()).collect(),
    }
}

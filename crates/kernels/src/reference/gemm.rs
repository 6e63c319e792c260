//! Products, as plain loops: each element is one chain of fused multiply-adds.

use crate::gemm::{Precision, Start, half};

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
            if precision == Precision::F16 {
                *c = f16_element(k, |k| a(i, k), |k| b(k, j), first);
                continue;
            }
            let pairs = (0..k).map(|k| (a(i, k), b(k, j)));
            *c = match precision {
                Precision::F32 | Precision::F16 => pairs.fold(first, |acc, (a, b)| a.mul_add(b, acc)),
                Precision::Bf16 => {
                    pairs.fold(flush(first), |acc, (a, b)| fma_flushed(round_bf16(a), round_bf16(b), acc))
                }
            };
        }
    }
}

/// One element in f16: scaled blocks, runs in f16, their sums in f32.
fn f16_element(k: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32, first: f32) -> f32 {
    let mut sum = first;
    for block in 0..k.div_ceil(half::BLOCK) {
        let terms = block * half::BLOCK..k.min((block + 1) * half::BLOCK);
        let (a_inverse, b_inverse) = (inverse_scale(terms.clone().map(&a)), inverse_scale(terms.clone().map(&b)));
        for run in terms.clone().step_by(half::RUN) {
            let mut run_sum = 0.0;
            for k in run..terms.end.min(run + half::RUN) {
                run_sum = fma_f16(round_f16(a(k) / a_inverse), round_f16(b(k) / b_inverse), run_sum);
            }
            sum = run_sum.mul_add(a_inverse * b_inverse, sum);
        }
    }
    sum
}

/// The greatest power of two up to the greatest magnitude, at least the least normal number; NaN if one is not finite.
fn inverse_scale(factors: impl Iterator<Item = f32> + Clone) -> f32 {
    if !factors.clone().all(f32::is_finite) {
        return f32::NAN;
    }
    let most = factors.fold(0.0f32, |most, x| most.max(x.abs()));
    let mut power = 1.0f32;
    while power > most && power > f32::MIN_POSITIVE {
        power /= 2.0;
    }
    while 2.0 * power <= most {
        power *= 2.0;
    }
    power
}

fn round_f16(x: f32) -> f32 {
    ::half::f16::from_f32(x).to_f32()
}

/// `ab + c` of f16 values rounded once to f16, in whole multiples of 2^-48, of which every product is one.
pub fn fma_f16(a: f32, b: f32, c: f32) -> f32 {
    let whole = |x: f32| (f64::from(x) * 2f64.powi(24)) as i128;
    let exact = whole(a) * whole(b) + (whole(c) << 24);
    let size = exact.unsigned_abs();
    // Eleven bits stay, fewer where the last one would count less than 2^-24.
    let dropped = (128 - size.leading_zeros()).saturating_sub(11).max(24);
    let (kept, rest, tie) = (size >> dropped, size & ((1 << dropped) - 1), 1 << (dropped - 1));
    let up = rest > tie || (rest == tie && kept % 2 == 1);
    let rounded = (((kept + u128::from(up)) << dropped) as f64 * 2f64.powi(-48)) as f32;
    if exact < 0 { -rounded } else { rounded }
}

/// To the nearest bf16, ties to even; subnormal numbers become zero, as the hardware's products take them.
pub fn round_bf16(x: f32) -> f32 {
    flush(::half::bf16::from_f32(flush(x)).to_f32())
}

/// `ab + c` of numbers that are not subnormal, rounded once to 24 bits however small it is, and zero, with its sign, if
/// it is then below the least normal number.
pub fn fma_flushed(a: f32, b: f32, c: f32) -> f32 {
    let sum = a.mul_add(b, c);
    if sum == 0.0 || sum.is_nan() || sum.abs() > f32::MIN_POSITIVE {
        return sum;
    }
    let scale = 2f32.powi(64);
    let scaled = (a * scale).mul_add(b, c * scale);
    if scaled.abs() < f32::MIN_POSITIVE * scale { 0.0f32.copysign(sum) } else { sum }
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
    let p = if p == Precision::F16 { Precision::F32 } else { p };
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

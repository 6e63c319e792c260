//! Hyper-connections, as plain loops.

use super::dot;
use crate::gemm::Start;
use crate::streams::Mixing;

/// Reference of [`crate::streams::weigh`].
pub fn weigh(of: Mixing, raw: &[f32], base: &[f32], scale: &[f32], weights: &mut [f32]) {
    let width = of.width();
    for (raw, weights) in raw.chunks(width).zip(weights.chunks_mut(width)) {
        of.weigh(raw, base, scale, weights);
    }
}

/// Reference of [`crate::streams::weigh_backward`].
pub fn weigh_backward(of: Mixing, [raw, base, scale]: [&[f32]; 3], d_weights: &[f32], gradients: [&mut [f32]; 3]) {
    let (width, scales) = (of.width(), of.scales());
    let [d_raw, d_z, terms] = gradients;
    for t in 0..raw.len() / width {
        let at = t * width..(t + 1) * width;
        let into = [&mut d_raw[at.clone()], &mut d_z[at.clone()], &mut terms[t * scales..(t + 1) * scales]];
        of.weigh_backward([&raw[at.clone()], base, scale], &d_weights[at], into);
    }
}

/// Reference of [`crate::streams::collapse`].
pub fn collapse(of: Mixing, x: &[f32], weights: &[f32], y: &mut [f32], d: usize) {
    let n = of.streams;
    for (t, y) in y.chunks_mut(d).enumerate() {
        let (x, pre) = (&x[t * n * d..], &weights[t * of.width()..]);
        for (c, y) in y.iter_mut().enumerate() {
            *y = (1..n).fold(x[c] * pre[0], |sum, i| x[i * d + c].mul_add(pre[i], sum));
        }
    }
}

/// `own`, or what is there and `own`.
fn begun(start: Start, at: &mut f32, own: f32) {
    *at = if start == Start::Zero { own } else { *at + own };
}

/// Reference of [`crate::streams::collapse_backward`].
pub fn collapse_backward(
    of: Mixing,
    dy: &[f32],
    [x, weights]: [&[f32]; 2],
    (dx, start): (&mut [f32], Start),
    d_weights: &mut [f32],
    d: usize,
) {
    let (n, width) = (of.streams, of.width());
    d_weights.fill(0.0);
    for (t, dy) in dy.chunks(d).enumerate() {
        for i in 0..n {
            let at = (t * n + i) * d;
            d_weights[t * width + i] = dot(dy, &x[at..at + d]);
            dx[at..at + d].iter_mut().zip(dy).for_each(|(dx, dy)| begun(start, dx, dy * weights[t * width + i]));
        }
    }
}

/// Reference of [`crate::streams::expand`].
pub fn expand(of: Mixing, x: &[f32], y: &[f32], weights: &[f32], out: &mut [f32], d: usize) {
    let (n, width) = (of.streams, of.width());
    for (t, y) in y.chunks(d).enumerate() {
        let (post, comb) = weights[t * width + n..(t + 1) * width].split_at(n);
        for (k, out) in out[t * n * d..(t + 1) * n * d].chunks_mut(d).enumerate() {
            for (c, out) in out.iter_mut().enumerate() {
                let x = |j: usize| x[(t * n + j) * d + c];
                *out = (0..n).fold(y[c] * post[k], |sum, j| x(j).mul_add(comb[j * n + k], sum));
            }
        }
    }
}

/// Reference of [`crate::streams::expand_backward`].
pub fn expand_backward(
    of: Mixing,
    d_out: &[f32],
    [x, y, weights]: [&[f32]; 3],
    (dx, start): (&mut [f32], Start),
    dy: &mut [f32],
    d_weights: &mut [f32],
) {
    let (n, width) = (of.streams, of.width());
    let d = y.len() / (weights.len() / width).max(1);
    d_weights.fill(0.0);
    for t in 0..y.len() / d.max(1) {
        let (post, comb) = weights[t * width + n..(t + 1) * width].split_at(n);
        let stream = |all: &'_ [f32], i: usize| all[(t * n + i) * d..(t * n + i + 1) * d].to_vec();
        let of_out: Vec<Vec<f32>> = (0..n).map(|k| stream(d_out, k)).collect();
        let mixed = |weights: &dyn Fn(usize) -> f32, c: usize| {
            (1..n).fold(of_out[0][c] * weights(0), |sum, k| of_out[k][c].mul_add(weights(k), sum))
        };
        for c in 0..d {
            dy[t * d + c] = mixed(&|k| post[k], c);
            for j in 0..n {
                begun(start, &mut dx[(t * n + j) * d + c], mixed(&|k| comb[j * n + k], c));
            }
        }
        let (d_post, d_comb) = d_weights[t * width + n..(t + 1) * width].split_at_mut(n);
        for k in 0..n {
            d_post[k] = dot(&y[t * d..(t + 1) * d], &of_out[k]);
            (0..n).for_each(|j| d_comb[j * n + k] = dot(&stream(x, j), &of_out[k]));
        }
    }
}

//! Backward of LayerNorm and GELU, as plain loops.

use super::images::sum;
use super::{dot, math};
use crate::gemm::Start;
use crate::image_gradients::LayerNorm;

/// Reference of [`crate::image_gradients::layer_norm_backward`].
pub fn layer_norm_backward(
    of: LayerNorm,
    (dx, dx_start): (&mut [f32], Start),
    (dw, dw_start): (&mut [f32], Start),
    (db, db_start): (&mut [f32], Start),
) {
    let (d, n) = (of.w.len(), of.w.len() as f32);
    for (sum, start) in [(&mut *dw, dw_start), (&mut *db, db_start)] {
        if start == Start::Zero {
            sum.fill(0.0);
        }
    }
    for ((dy, x), dx) in of.dy.chunks(d).zip(of.x.chunks(d)).zip(dx.chunks_mut(d)) {
        let mean = sum(x) / n;
        let centred: Vec<f32> = x.iter().map(|x| x - mean).collect();
        let rstd = 1.0 / (dot(&centred, &centred) / n + of.eps).sqrt();
        let normal: Vec<f32> = centred.iter().map(|x| x * rstd).collect();
        let g: Vec<f32> = dy.iter().zip(of.w).map(|(dy, w)| dy * w).collect();
        let (mean_g, mean_product) = (sum(&g) / n, dot(&g, &normal) / n);
        for i in 0..d {
            let first = if dx_start == Start::Zero { 0.0 } else { dx[i] };
            dx[i] = first + normal[i].mul_add(-mean_product, g[i] - mean_g) * rstd;
            dw[i] = dy[i].mul_add(normal[i], dw[i]);
            db[i] += dy[i];
        }
    }
}

/// Reference of [`crate::image_gradients::gelu_backward`].
pub fn gelu_backward(dy: &[f32], x: &[f32], dx: &mut [f32], start: Start) {
    for i in 0..dx.len() {
        let first = if start == Start::Zero { 0.0 } else { dx[i] };
        dx[i] = first + dy[i] * math::gelu_slope(x[i]);
    }
}

//! RMSNorm, as plain loops.

use super::dot;
use crate::gemm::Start;

/// Reference of [`crate::norm::rms_norm`].
pub fn rms_norm(x: &[f32], w: &[f32], eps: f32, y: &mut [f32], rstd: &mut [f32], d: usize) {
    for (t, rstd) in rstd.iter_mut().enumerate() {
        let row = &x[t * d..(t + 1) * d];
        *rstd = 1.0 / (dot(row, row) / d as f32 + eps).sqrt();
        for i in 0..d {
            y[t * d + i] = row[i] * *rstd * w[i];
        }
    }
}

/// Reference of [`crate::norm::rms_norm_backward`].
pub fn rms_norm_backward(
    dy: &[f32],
    x: &[f32],
    w: &[f32],
    rstd: &[f32],
    dx: &mut [f32],
    dx_start: Start,
    dw: &mut [f32],
    dw_start: Start,
    d: usize,
) {
    if dw_start == Start::Zero {
        dw.fill(0.0);
    }
    for (t, &rstd) in rstd.iter().enumerate() {
        let row = t * d..(t + 1) * d;
        let (dy, dx) = (&dy[row.clone()], &mut dx[row.clone()]);
        let normal: Vec<f32> = x[row].iter().map(|x| x * rstd).collect();
        let g: Vec<f32> = dy.iter().zip(w).map(|(dy, w)| dy * w).collect();
        let mean = dot(&g, &normal) / d as f32;
        for i in 0..d {
            let first = if dx_start == Start::Zero { 0.0 } else { dx[i] };
            dx[i] = first + normal[i].mul_add(-mean, g[i]) * rstd;
            dw[i] = dy[i].mul_add(normal[i], dw[i]);
        }
    }
}

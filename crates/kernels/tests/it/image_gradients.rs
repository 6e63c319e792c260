//! Backward of LayerNorm and GELU against their plain loops, and against differences of the forward.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::gemm::Start;
use wels_kernels::image_gradients::{self, LayerNorm};
use wels_kernels::reference::{image_gradients as reference, images};

const STARTS: [Start; 2] = [Start::Zero, Start::Continue];

#[test]
fn layer_norm_backward_has_the_bits_of_its_reference() {
    for (rows, d) in [(0, 5), (1, 1), (3, 7), (5, 16), (9, 33), (70, 1024)] {
        let (dy, x, w) = (numbers(1, rows * d), numbers(2, rows * d), numbers(3, d));
        let of = LayerNorm { dy: &dy, x: &x, w: &w, eps: 1e-6 };
        for start in STARTS {
            let before = [numbers(4, rows * d), numbers(5, d), numbers(6, d)];
            let mut expected = before.clone();
            let [dx, dw, db] = &mut expected;
            reference::layer_norm_backward(of, (dx, start), (dw, start), (db, start));
            everywhere(|place| {
                let mut found = before.clone();
                let [dx, dw, db] = &mut found;
                image_gradients::layer_norm_backward(of, (dx, start), (dw, start), (db, start));
                for ((found, expected), name) in found.iter().zip(&expected).zip(["dx", "dw", "db"]) {
                    assert_same(&format!("{name} of [{rows}, {d}], {start:?}, {place}"), found, expected);
                }
            });
        }
    }
}

#[test]
fn gelu_backward_has_the_bits_of_its_reference() {
    for n in [0, 1, 15, 16, 245, 40 * 576] {
        let (dy, x) = (numbers(1, n), numbers(2, n).iter().map(|x| 6.0 * x).collect::<Vec<f32>>());
        for start in STARTS {
            let before = numbers(3, n);
            let mut expected = before.clone();
            reference::gelu_backward(&dy, &x, &mut expected, start);
            everywhere(|place| {
                let mut dx = before.clone();
                image_gradients::gelu_backward(&dy, &x, &mut dx, start);
                assert_same(&format!("dx of {n}, {start:?}, {place}"), &dx, &expected);
            });
        }
    }
}

/// Σ of dy·layer_norm, in f64.
fn objective(dy: &[f32], x: &[f64], w: &[f64], b: &[f64], eps: f64) -> f64 {
    let d = w.len();
    let row = |(x, dy): (&[f64], &[f32])| {
        let mean = x.iter().sum::<f64>() / d as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / d as f64;
        let y = |i: usize| (x[i] - mean) / (variance + eps).sqrt() * w[i] + b[i];
        (0..d).map(|i| f64::from(dy[i]) * y(i)).sum::<f64>()
    };
    x.chunks(d).zip(dy.chunks(d)).map(row).sum()
}

#[test]
fn layer_norm_backward_is_the_slope_of_the_forward() {
    let (rows, d, eps) = (3, 10, 1e-3);
    let (dy, x, w) = (numbers(1, rows * d), numbers(2, rows * d), numbers(3, d));
    let mut found = [vec![0.0; rows * d], vec![0.0; d], vec![0.0; d]];
    let [dx, dw, db] = &mut found;
    let of = LayerNorm { dy: &dy, x: &x, w: &w, eps };
    reference::layer_norm_backward(of, (dx, Start::Zero), (dw, Start::Zero), (db, Start::Zero));
    let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<f64>>();
    let at = [wide(&x), wide(&w), vec![0.0; d]];
    for (operand, found) in found.iter().enumerate() {
        for (i, found) in found.iter().enumerate() {
            let moved = |by: f64| {
                let mut at = at.clone();
                at[operand][i] += by;
                objective(&dy, &at[0], &at[1], &at[2], f64::from(eps))
            };
            let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((f64::from(*found) - slope).abs() < 1e-5, "operand {operand}, element {i}: {found} for {slope}");
        }
    }
}

#[test]
fn gelu_backward_is_the_slope_of_the_forward() {
    // The forward is off by up to 5e-7, so over 2⁻⁵ the differences are by 3e-5, and the third derivative adds 4e-4·h².
    let x: Vec<f32> = (-512..=512).map(|i| i as f32 / 64.0).collect();
    let step = 1.0 / 64.0;
    let moved = |by: f32| {
        let at: Vec<f32> = x.iter().map(|x| x + by).collect();
        let mut y = vec![0.0; at.len()];
        images::gelu(&at, &mut y);
        y
    };
    let (above, below) = (moved(step), moved(-step));
    let mut dx = vec![0.0; x.len()];
    reference::gelu_backward(&vec![1.0; x.len()], &x, &mut dx, Start::Zero);
    for i in 0..x.len() {
        let slope = (above[i] - below[i]) / (2.0 * step);
        assert!((dx[i] - slope).abs() < 2e-4, "at {}: {} for {slope}", x[i], dx[i]);
    }
}

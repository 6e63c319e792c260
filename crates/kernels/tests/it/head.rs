//! The fused head and cross-entropy against plain loops: every bit, over several blocks of tokens.

use crate::{assert_same, everywhere, numbers};
use wels_kernels::gemm::{Precision, Start};
use wels_kernels::head::{self, Gradients, IGNORE};
use wels_kernels::reference::head as reference;

/// Tokens, width, vocabulary: the last needs several blocks of tokens.
const SIZES: [(usize, usize, usize); 4] = [(1, 3, 5), (9, 16, 100), (33, 24, 131), (70, 4, 40_000)];

fn targets(tokens: usize, v: usize) -> Vec<u32> {
    (0..tokens).map(|t| if t % 7 == 3 { IGNORE } else { ((t * 37) % v) as u32 }).collect()
}

#[test]
fn loss_and_gradients_equal_the_reference() {
    let coefficient = |t: usize, logp: f32| 0.1 + t as f32 * 0.01 + logp * 1e-3;
    for p in [Precision::F32, Precision::Bf16, Precision::F16] {
        for (t, d, v) in SIZES {
            let (x, w, targets) = (numbers(1, t * d), numbers(2, v * d), targets(t, v));
            let run = |kernel: Kernel, dw_start| {
                let (mut logp, mut dx, mut dw) = (vec![f32::NAN; t], vec![f32::NAN; t * d], numbers(3, v * d));
                let gradients = Gradients { dx: &mut dx, dw: &mut dw, dw_start };
                kernel(p, &x, &w, &targets, d, v, &mut logp, Some((gradients, &coefficient)));
                let mut only = vec![f32::NAN; t];
                kernel(p, &x, &w, &targets, d, v, &mut only, None);
                [logp, dx, dw, only]
            };
            for start in [Start::Zero, Start::Continue] {
                let expected = run(reference::loss, start);
                everywhere(|isa| {
                    let got = run(head::loss, start);
                    for (what, (got, expected)) in
                        ["logp", "dx", "dw", "logp alone"].iter().zip(got.iter().zip(&expected))
                    {
                        assert_same(&format!("{what} {p:?} {t}×{d}×{v} {isa}"), got, expected);
                    }
                });
            }
        }
    }
}

type Kernel = fn(
    Precision,
    &[f32],
    &[f32],
    &[u32],
    usize,
    usize,
    &mut [f32],
    Option<(Gradients, &(dyn Fn(usize, f32) -> f32 + Sync))>,
);

#[test]
fn probabilities_sum_to_one() {
    let (d, v) = (8, 50);
    let (x, w) = (numbers(1, d), numbers(2, v * d));
    let total: f64 = (0..v as u32)
        .map(|target| {
            let mut logp = [0.0];
            head::loss(Precision::F32, &x, &w, &[target], d, v, &mut logp, None);
            (logp[0] as f64).exp()
        })
        .sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}

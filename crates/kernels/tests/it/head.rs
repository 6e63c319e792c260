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
    let kinds = [(Precision::F32, None), (Precision::Bf16, None), (Precision::F16, None), (Precision::F32, Some(0.7))];
    for (p, cap) in kinds {
        for (t, d, v) in SIZES {
            let (x, w, targets) = (numbers(1, t * d), numbers(2, v * d), targets(t, v));
            let run = |kernel: Kernel, dw_start| {
                let (mut logp, mut dx, mut dw) = (vec![f32::NAN; t], vec![f32::NAN; t * d], numbers(3, v * d));
                let gradients = Gradients { dx: &mut dx, dw: Some((&mut dw, dw_start)) };
                kernel(p, &x, &w, cap, &targets, d, v, &mut logp, Some((gradients, &coefficient)));
                let mut only = vec![f32::NAN; t];
                kernel(p, &x, &w, cap, &targets, d, v, &mut only, None);
                [logp, dx, dw, only]
            };
            for start in [Start::Zero, Start::Continue] {
                let expected = run(reference::loss, start);
                everywhere(|isa| {
                    let got = run(head::loss, start);
                    for (what, (got, expected)) in
                        ["logp", "dx", "dw", "logp alone"].iter().zip(got.iter().zip(&expected))
                    {
                        assert_same(&format!("{what} {p:?} {cap:?} {t}×{d}×{v} {isa}"), got, expected);
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
    Option<f32>,
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
            head::loss(Precision::F32, &x, &w, None, &[target], d, v, &mut logp, None);
            (logp[0] as f64).exp()
        })
        .sum();
    assert!((total - 1.0).abs() < 1e-5, "{total}");
}

/// The gradients with a cap are the slopes of the loss, and a cap far away changes next to nothing.
#[test]
fn capped_logits_have_the_gradients_of_their_loss() {
    let (d, v, cap) = (6, 11, 0.8);
    let (x, w) = (numbers(1, d), numbers(2, v * d));
    let run = |x: &[f32], cap| {
        let (mut logp, mut dx, mut dw) = ([0.0], vec![0.0; d], vec![0.0; v * d]);
        let gradients = Gradients { dx: &mut dx, dw: Some((&mut dw, Start::Zero)) };
        head::loss(Precision::F32, x, &w, cap, &[4], d, v, &mut logp, Some((gradients, &|_, _| 1.0)));
        (f64::from(-logp[0]), dx)
    };
    let (_, dx) = run(&x, Some(cap));
    for i in 0..d {
        let at = |step: f32| {
            let mut x = x.clone();
            x[i] += step;
            run(&x, Some(cap)).0
        };
        let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
        assert!((f64::from(dx[i]) - slope).abs() < 2e-4, "dx[{i}] is {}, the slope {slope}", dx[i]);
    }
    let (far, none) = (run(&x, Some(1e4)).0, run(&x, None).0);
    assert!((far - none).abs() < 1e-5 && (run(&x, Some(cap)).0 - none).abs() > 1e-2, "{far} and {none}");
}

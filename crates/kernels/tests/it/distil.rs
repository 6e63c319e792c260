//! The fused head and divergence from a teacher: every bit of the plain loops, over several blocks of tokens; the
//! gradients are those of the loss.

use std::ops::Range;

use crate::{assert_same, everywhere, numbers};
use wels_kernels::distil::{self, Divergence, Teacher, TokenLosses};
use wels_kernels::gemm::{Precision, Start};
use wels_kernels::head::{self, Coefficient, Gradients, IGNORE};
use wels_kernels::reference::distil as reference;

/// Tokens, width, vocabulary: the last needs several blocks of tokens.
const SIZES: [(usize, usize, usize); 4] = [(1, 3, 5), (9, 16, 100), (33, 24, 131), (70, 4, 40_000)];

/// Way, temperature, share of the cross-entropy.
const RULES: [(Divergence, f32, f32); 6] = [
    (Divergence::Forward, 1.0, 0.0),
    (Divergence::Forward, 2.5, 0.3),
    (Divergence::Reverse, 1.0, 0.0),
    (Divergence::Reverse, 0.7, 0.5),
    (Divergence::Forward, 1.0, 1.0),
    (Divergence::Reverse, 2.0, 0.0),
];

fn targets(tokens: usize, v: usize) -> Vec<u32> {
    (0..tokens).map(|t| if t % 7 == 3 { IGNORE } else { ((t * 37) % v) as u32 }).collect()
}

type Kernel =
    fn(Precision, &[f32], &[f32], Option<f32>, &[u32], &Teacher, usize, usize, TokenLosses, Gradients, Coefficient);

#[test]
fn loss_and_gradients_equal_the_reference() {
    let coefficient = |t: usize, logp: f32| 0.1 + t as f32 * 0.01 + logp * 1e-3;
    for (p, (divergence, temperature, cross_entropy)) in
        [Precision::F32, Precision::Bf16, Precision::F16].into_iter().flat_map(|p| RULES.map(|rule| (p, rule)))
    {
        for (t, d, v) in SIZES {
            // All rules on the large vocabulary would take long.
            if v > 1000 && (p != Precision::F32 || temperature != 0.7) {
                continue;
            }
            let cap = (p == Precision::F32 && cross_entropy == 0.5).then_some(0.9);
            let (x, w, targets, teacher_logits) =
                (numbers(1, t * d), numbers(2, v * d), targets(t, v), numbers(4, t * v));
            let logits = |rows: Range<usize>, out: &mut [f32]| {
                out.iter_mut().zip(&teacher_logits[rows.start * v..rows.end * v]).for_each(|(out, t)| *out = 5.0 * t);
            };
            let teacher = Teacher { logits: &logits, divergence, temperature, cross_entropy };
            let run = |kernel: Kernel, dw_start| {
                let (mut logp, mut kl) = (vec![f32::NAN; t], vec![f32::NAN; t]);
                let (mut dx, mut dw) = (vec![f32::NAN; t * d], numbers(3, v * d));
                let losses = TokenLosses { logp: &mut logp, divergence: &mut kl };
                let gradients = Gradients { dx: &mut dx, dw: Some((&mut dw, dw_start)) };
                kernel(p, &x, &w, cap, &targets, &teacher, d, v, losses, gradients, &coefficient);
                [logp, kl, dx, dw]
            };
            let mut plain = vec![f32::NAN; t];
            head::loss(p, &x, &w, cap, &targets, d, v, &mut plain, None);
            for start in [Start::Zero, Start::Continue] {
                let expected = run(reference::loss, start);
                everywhere(|isa| {
                    let got = run(distil::loss, start);
                    let case =
                        format!("{p:?} {divergence:?} τ={temperature} a={cross_entropy} {cap:?} {t}×{d}×{v} {isa}");
                    for (what, (got, expected)) in
                        ["logp", "divergence", "dx", "dw"].iter().zip(got.iter().zip(&expected))
                    {
                        assert_same(&format!("{what} {case}"), got, expected);
                    }
                    assert_same(&format!("logp of the plain head {case}"), &got[0], &plain);
                });
            }
        }
    }
}

#[test]
fn gradients_are_those_of_the_loss() {
    let (t, d, v) = (5, 6, 11);
    let (w, targets, teacher_logits) = (numbers(2, v * d), targets(t, v), numbers(4, t * v));
    let logits = |rows: Range<usize>, out: &mut [f32]| {
        out.iter_mut().zip(&teacher_logits[rows.start * v..rows.end * v]).for_each(|(out, t)| *out = 3.0 * t);
    };
    for (divergence, temperature, cross_entropy) in RULES {
        let teacher = Teacher { logits: &logits, divergence, temperature, cross_entropy };
        let run = |x: &[f32]| {
            let (mut logp, mut kl) = (vec![0.0; t], vec![0.0; t]);
            let (mut dx, mut dw) = (vec![0.0; t * d], vec![0.0; v * d]);
            let losses = TokenLosses { logp: &mut logp, divergence: &mut kl };
            let gradients = Gradients { dx: &mut dx, dw: Some((&mut dw, Start::Zero)) };
            distil::loss(Precision::F32, x, &w, Some(0.8), &targets, &teacher, d, v, losses, gradients, &|_, _| 1.0);
            let (share, tau) = (f64::from(cross_entropy), f64::from(temperature));
            let token =
                |(logp, kl): (&f32, &f32)| (1.0 - share) * tau * tau * f64::from(*kl) - share * f64::from(*logp);
            (logp.iter().zip(&kl).map(token).sum::<f64>(), kl, dx)
        };
        let x = numbers(1, t * d);
        let (_, kl, dx) = run(&x);
        let counted = kl.iter().zip(&targets).filter(|(_, target)| **target != IGNORE);
        assert!(counted.clone().count() == 4 && counted.into_iter().all(|(kl, _)| *kl > 0.0), "{kl:?}");
        for i in 0..x.len() {
            let at = |step: f32| {
                let mut x = x.clone();
                x[i] += step;
                run(&x).0
            };
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            let (got, case) = (f64::from(dx[i]), format!("{divergence:?} τ={temperature} a={cross_entropy}"));
            assert!((got - slope).abs() < 2e-4 * (1.0 + slope.abs()), "{case}: dx[{i}] is {got}, the slope {slope}");
        }
    }
}

#[test]
fn a_student_that_is_its_teacher_stands_still() {
    let (t, d, v) = (4, 8, 50);
    let (x, w) = (numbers(1, t * d), numbers(2, v * d));
    let mut own = vec![0.0; t * v];
    wels_kernels::gemm::linear(Precision::F32, &x, &w, &mut own, d, v);
    let logits = |rows: Range<usize>, out: &mut [f32]| out.copy_from_slice(&own[rows.start * v..rows.end * v]);
    for divergence in [Divergence::Forward, Divergence::Reverse] {
        let teacher = Teacher { logits: &logits, divergence, temperature: 1.0, cross_entropy: 0.0 };
        let (mut logp, mut kl, mut dx, mut dw) = (vec![1.0; t], vec![1.0; t], vec![1.0; t * d], vec![1.0; v * d]);
        let losses = TokenLosses { logp: &mut logp, divergence: &mut kl };
        let gradients = Gradients { dx: &mut dx, dw: Some((&mut dw, Start::Zero)) };
        distil::loss(Precision::F32, &x, &w, None, &[0, 1, 2, 3], &teacher, d, v, losses, gradients, &|_, _| 1.0);
        assert!(kl.iter().chain(&dx).chain(&dw).all(|x| *x == 0.0), "{kl:?}");
    }
}

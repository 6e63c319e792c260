//! The output head with its losses.

use wels_device::{
    Coefficient, Device, Divergence, HeadGradients, IGNORE, Ids, Policy, PolicyTerm, Precision, Start, TeacherHead,
    WeightRef,
};

use std::sync::Arc;

use wels_cpu::naive::Naive;

use crate::lab::{Outputs, activation, empty, empty_activation, near_in_bf16, numbers, rounds, same, tensor, values};

fn targets(tokens: usize, v: usize) -> Vec<u32> {
    (0..tokens).map(|t| if t % 5 == 3 { IGNORE } else { (t * t * 13 % v) as u32 }).collect()
}

fn terms(tokens: usize) -> Vec<PolicyTerm> {
    let x = numbers(9, tokens * 2);
    let term = |t: usize| PolicyTerm { advantage: x[2 * t], weight: 0.1, old: -3.0 + x[2 * t + 1], reference: -3.5 };
    (0..tokens).map(term).collect()
}

#[test]
fn cross_entropy_and_policies() {
    for (tokens, d, v) in [(1, 3, 2), (9, 20, 70), (70, 16, 601)] {
        let (each, terms, whole) = (numbers(8, tokens), terms(tokens), Ids::from(vec![0, tokens as u32]));
        let policy = |kl| Coefficient::Policy(Policy { terms: &terms, clip_low: 0.8, clip_high: 1.28, kl });
        for coefficient in [Coefficient::Uniform(0.125), Coefficient::PerToken(&each), policy(0.0), policy(0.04)] {
            let cap = matches!(coefficient, Coefficient::PerToken(_)).then_some(0.8);
            same(&format!("head {tokens} {d} {v}"), |device| {
                let (x, w, targets) = (tensor(device, 1, tokens, d), tensor(device, 2, v, d), targets(tokens, v));
                let (mut alone, mut logp, mut dx) =
                    (empty(device, tokens, 1), empty(device, tokens, 1), empty(device, tokens, d));
                device.head_loss(Precision::F32, &x, WeightRef::Plain(&w), cap, &targets, &mut alone, None);
                let mut out = vec![("logp alone", values(&alone))];
                for start in [Start::Zero, Start::Continue] {
                    let mut dw = tensor(device, 3, v, d);
                    let gradients =
                        HeadGradients { dx: &mut dx, dw: Some((&mut dw, start)), sequences: &whole, coefficient };
                    let w = WeightRef::Plain(&w);
                    device.head_loss(Precision::F32, &x, w, cap, &targets, &mut logp, Some(gradients));
                    out.extend([("logp", values(&logp)), ("dx", values(&dx)), ("dw", values(&dw))]);
                }
                out
            });
        }
    }
}

#[test]
fn divergence_from_a_teacher() {
    for (divergence, temperature, cross_entropy) in
        [(Divergence::Forward, 1.0, 0.0), (Divergence::Forward, 2.0, 0.3), (Divergence::Reverse, 1.5, 0.5)]
    {
        same(&format!("{divergence:?}"), |device| {
            let (tokens, d, v) = (13, 24, 301);
            let (x, w, targets) = (tensor(device, 1, tokens, d), tensor(device, 2, v, d), targets(tokens, v));
            let (states, head) = (tensor(device, 3, tokens, 2 * d), tensor(device, 4, v, 2 * d));
            let (head, cap) = (WeightRef::Plain(&head), (temperature == 2.0).then_some(0.9));
            let taught = TeacherHead { states: &states, head, cap, divergence, temperature, cross_entropy };
            let (mut logp, mut seen) = (empty(device, tokens, 1), empty(device, tokens, 1));
            let (mut dx, mut dw) = (empty(device, tokens, d), tensor(device, 5, v, d));
            let (coefficient, whole) = (Coefficient::Uniform(1.0 / 16.0), Ids::from(vec![0, tokens as u32]));
            let gradients =
                HeadGradients { dx: &mut dx, dw: Some((&mut dw, Start::Continue)), sequences: &whole, coefficient };
            device.distil_loss(
                Precision::F32,
                &x,
                &w,
                cap.map(|cap| 2.0 * cap),
                &targets,
                &taught,
                [&mut logp, &mut seen],
                gradients,
            );
            vec![("logp", values(&logp)), ("divergence", values(&seen)), ("dx", values(&dx)), ("dw", values(&dw))]
        });
    }
}

/// More logits than shared memory keeps, whole pieces of 16 bytes or not.
#[test]
fn more_logits_than_are_kept() {
    for v in [31_000, 26_883] {
        let work = |device: &Arc<dyn Device>| {
            let (x, w, targets) = (tensor(device, 1, 2, 1), tensor(device, 2, v, 1), [30, v as u32 - 5]);
            let (mut logp, mut dx, mut dw) = (empty(device, 2, 1), empty(device, 2, 1), empty(device, v, 1));
            let (coefficient, whole) = (Coefficient::Uniform(0.5), Ids::from(vec![0, 2]));
            let gradients =
                HeadGradients { dx: &mut dx, dw: Some((&mut dw, Start::Zero)), sequences: &whole, coefficient };
            device.head_loss(Precision::F32, &x, WeightRef::Plain(&w), None, &targets, &mut logp, Some(gradients));
            vec![("logp", values(&logp)), ("dx", values(&dx)), ("dw", values(&dw))]
        };
        let expected = work(&(Naive::new() as Arc<dyn Device>));
        assert_eq!(rounds().first().map(work), Some(expected), "{v} logits");
    }
}

/// Of activations in bf16: as the plain loops, and the same bits whatever the micro-batches.
#[test]
fn activations_in_bf16() {
    let (tokens, d, v) = (150, 24, 136);
    let targets = targets(tokens, v);
    let work = |device: &Arc<dyn Device>, cuts: &[u32]| {
        let (x, w) = (activation(device, 1, tokens, d), tensor(device, 2, v, d));
        let mut dw = tensor(device, 3, v, d);
        let (mut all_logp, mut all_dx) = (Vec::new(), Vec::new());
        for piece in cuts.windows(2) {
            let (first, rows) = (piece[0] as usize, (piece[1] - piece[0]) as usize);
            let mut part = empty_activation(device, rows, d);
            device.copy_rows(&x, first, &mut part, 0, rows);
            let (mut dx, mut logp) = (empty_activation(device, rows, d), empty(device, rows, 1));
            let sequences: Ids = if rows == tokens { vec![0, 9, 80, 150] } else { vec![0, rows as u32] }.into();
            let coefficient = Coefficient::Uniform(0.25);
            let gradients =
                HeadGradients { dx: &mut dx, dw: Some((&mut dw, Start::Continue)), sequences: &sequences, coefficient };
            let targets = &targets[first..first + rows];
            device.head_loss(Precision::Bf16, &part, WeightRef::Plain(&w), None, targets, &mut logp, Some(gradients));
            all_logp.extend(values(&logp));
            all_dx.extend(values(&dx));
        }
        vec![("logp", all_logp), ("dx", all_dx), ("dw", values(&dw))]
    };
    near_in_bf16("head", |device| work(device, &[0, 150]));
    for device in rounds().iter().take(1) {
        assert_eq!(work(device, &[0, 9, 80, 150]), work(device, &[0, 150]), "micro-batches");
    }
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    let (x, w, targets) = (tensor(device, 1, 9, 8), tensor(device, 2, 700, 8), targets(9, 700));
    let mut logp = empty(device, 9, 1);
    device.head_loss(Precision::F32, &x, WeightRef::Plain(&w), None, &targets, &mut logp, None);
    vec![("logp", values(&logp))]
}

//! Products: dense, by expert, by equal parts.

use std::sync::Arc;

use wels_device::{Device, Dispatch, Groups, Ids, Precision, Router, Scoring, Start, WeightRef};

use crate::lab::{Outputs, empty, same, tensor, values};

/// T, K, N.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (1, 70, 130), (5, 33, 64), (64, 16, 64), (65, 17, 66), (130, 80, 3)];

/// The rows of a batch of one sequence.
fn one_sequence(rows: usize) -> Ids {
    [0, rows as u32][..].into()
}

#[test]
fn dense() {
    for (t, k, n) in SHAPES {
        // Those of bf16 are in `tensor_cores`.
        same(&format!("dense {t} {k} {n}"), |device| {
            let (x, w, w2) = (tensor(device, 1, t, k), tensor(device, 2, n, k), tensor(device, 3, n + 1, k));
            let (dy, mut y, mut y2) = (tensor(device, 4, t, n), empty(device, t, n), empty(device, t, n + 1));
            let mut products = [(WeightRef::Plain(&w), &mut y), (WeightRef::Plain(&w2), &mut y2)];
            device.linear(Precision::F32, &x, &mut products);
            let mut out = vec![("y", values(&y)), ("second y", values(&y2))];
            for start in [Start::Zero, Start::Continue] {
                let (mut dx, mut dw) = (tensor(device, 5, t, k), tensor(device, 6, n, k));
                device.linear_dx(Precision::F32, &[(&dy, (&w).into())], (&mut dx, start));
                device.linear_dw(Precision::F32, &x, &one_sequence(t), &mut [(&dy, (&mut dw, start))]);
                out.extend([("dx", values(&dx)), ("dw", values(&dw))]);
            }
            out
        });
    }
}

/// A dispatch of T tokens; experts 0 and 5 get few, if any.
pub fn routed(device: &Arc<dyn Device>, tokens: usize, experts: usize, top_k: usize) -> Dispatch {
    let router =
        Router { scoring: Scoring::Sigmoid, experts, top_k, groups: 1, top_groups: 1, normalize: true, scale: 2.5 };
    let logits = tensor(device, 77, tokens, experts);
    let mut bias = vec![0.0; experts];
    bias[0] = -9.0;
    bias[experts / 2] = -9.0;
    let bias = wels_device::Tensor::of(device, 1, experts, &bias);
    let (mut scores, mut weights) = (empty(device, tokens, experts), empty(device, tokens, top_k));
    device.route(&router, &logits, Some(&bias), &mut scores, &mut weights)
}

#[test]
fn by_expert() {
    for (tokens, k, n, experts, top_k) in [(1, 5, 9, 4, 1), (90, 20, 70, 7, 3), (150, 33, 12, 4, 2)] {
        same(&format!("grouped {tokens} {k} {n}"), |device| {
            let dispatch = routed(device, tokens, experts, top_k);
            let slots = dispatch.slots();
            let (x, w) = (tensor(device, 1, tokens, k), tensor(device, 2, experts * n, k));
            let (h, dy) = (tensor(device, 3, slots, k), tensor(device, 4, slots, n));
            let (mut of_tokens, mut of_slots) = (empty(device, slots, n), empty(device, slots, n));
            let p = Precision::F32;
            device.grouped(p, &x, Groups::Tokens(&dispatch), &mut [(WeightRef::Plain(&w), &mut of_tokens)]);
            device.grouped(p, &h, Groups::Slots(&dispatch), &mut [(WeightRef::Plain(&w), &mut of_slots)]);
            let loads = device.loads(&dispatch).iter().map(|load| *load as f32).collect();
            let mut out = vec![("of tokens", values(&of_tokens)), ("of slots", values(&of_slots)), ("loads", loads)];
            for start in [Start::Zero, Start::Continue] {
                let (mut dx, mut dw) = (tensor(device, 5, slots, k), tensor(device, 6, experts * n, k));
                device.grouped_dx(p, &dispatch, &[(&dy, (&w).into())], (&mut dx, start));
                device.grouped_dw(
                    p,
                    &h,
                    Groups::Slots(&dispatch),
                    &one_sequence(tokens),
                    &mut [(&dy, (&mut dw, start))],
                );
                out.extend([("dx", values(&dx)), ("dw", values(&dw))]);
                device.grouped_dw(
                    p,
                    &x,
                    Groups::Tokens(&dispatch),
                    &one_sequence(tokens),
                    &mut [(&dy, (&mut dw, start))],
                );
                out.push(("dw of tokens", values(&dw)));
            }
            out
        });
    }
}

#[test]
fn by_equal_parts() {
    for (parts, rows, k, n) in [(1, 3, 4, 5), (3, 70, 9, 20), (4, 1, 16, 65)] {
        same(&format!("equal parts {parts} {rows}"), |device| {
            let (x, w) = (tensor(device, 1, parts * rows, k), tensor(device, 2, parts * n, k));
            let (dy, mut y) = (tensor(device, 3, parts * rows, n), empty(device, parts * rows, n));
            device.grouped(Precision::F32, &x, Groups::Equal(parts), &mut [(WeightRef::Plain(&w), &mut y)]);
            let mut dw = tensor(device, 4, parts * n, k);
            device.grouped_dw(
                Precision::F32,
                &x,
                Groups::Equal(parts),
                &one_sequence(rows),
                &mut [(&dy, (&mut dw, Start::Continue))],
            );
            vec![("y", values(&y)), ("dw", values(&dw))]
        });
    }
}

/// A weight gradient is one chain over the rows, whether they come at once or in two parts.
#[test]
fn micro_batches_continue_chains() {
    same("micro-batches", |device| {
        let (x, dy) = (tensor(device, 1, 90, 20), tensor(device, 2, 90, 30));
        let mut whole = empty(device, 30, 20);
        device.linear_dw(Precision::F32, &x, &one_sequence(90), &mut [(&dy, (&mut whole, Start::Zero))]);
        let mut chained = empty(device, 30, 20);
        for (first, rows, start) in [(0, 37, Start::Zero), (37, 53, Start::Continue)] {
            let (mut part_x, mut part_dy) = (empty(device, rows, 20), empty(device, rows, 30));
            device.copy_rows(&x, first, &mut part_x, 0, rows);
            device.copy_rows(&dy, first, &mut part_dy, 0, rows);
            device.linear_dw(Precision::F32, &part_x, &one_sequence(rows), &mut [(&part_dy, (&mut chained, start))]);
        }
        assert_eq!(values(&whole), values(&chained));
        vec![("dw", values(&whole))]
    });
}

/// For the planted bugs.
pub fn some(device: &Arc<dyn Device>) -> Outputs {
    let (parts, rows, k, n) = (3, 70, 40, 21);
    let (x, w) = (tensor(device, 1, parts * rows, k), tensor(device, 2, parts * n, k));
    let mut y = empty(device, parts * rows, n);
    device.grouped(Precision::F32, &x, Groups::Equal(parts), &mut [(WeightRef::Plain(&w), &mut y)]);
    let (dy, first) = (tensor(device, 3, parts * rows, n), tensor(device, 4, n, k));
    let mut dx = tensor(device, 5, parts * rows, k);
    device.linear_dx(Precision::F32, &[(&dy, (&first).into())], (&mut dx, Start::Zero));
    vec![("y", values(&y)), ("dx", values(&dx))]
}

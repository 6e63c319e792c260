//! Routing, and what joins the experts' results.

use wels_device::{Device, Ids, Router, Scoring, Start, Tensor};

use std::sync::Arc;

use crate::lab::{
    Outputs, activation, empty, empty_activation, near_rounded, numbers, rounds, same, same_rounded, tensor, values,
};

fn routers() -> Vec<Router> {
    let router = |scoring, experts, top_k, groups, top_groups, normalize| Router {
        scoring,
        experts,
        top_k,
        groups,
        top_groups,
        normalize,
        scale: 2.5,
    };
    vec![
        router(Scoring::Sigmoid, 8, 2, 1, 1, true),
        router(Scoring::Sigmoid, 48, 6, 8, 3, true),
        router(Scoring::Sigmoid, 5, 5, 5, 5, false),
        router(Scoring::Softmax, 40, 6, 4, 2, false),
        router(Scoring::Softmax, 3, 1, 1, 1, true),
    ]
}

#[test]
fn routing_and_its_gradients() {
    for router in routers() {
        for tokens in [1, 7, 50] {
            same(&format!("{router:?}, {tokens} tokens"), |device| {
                let Router { experts, top_k, .. } = router;
                let mut logits = numbers(1, tokens * experts);
                // Ties, and what is not finite.
                logits[0] = f32::NAN;
                let last = logits.len() - 1;
                logits[last] = logits[last - 1];
                let logits = Tensor::of(device, tokens, experts, &logits);
                let bias = tensor(device, 2, 1, experts);
                let (mut scores, mut weights) = (empty(device, tokens, experts), empty(device, tokens, top_k));
                let dispatch = device.route(&router, &logits, Some(&bias), &mut scores, &mut weights);
                let dweights = tensor(device, 3, tokens, top_k);
                let mut dlogits = empty(device, tokens, experts);
                device.route_backward(&router, &scores, &dispatch, &dweights, None, &mut dlogits);
                let loads = device.loads(&dispatch).iter().map(|load| *load as f32).collect();
                let mut out = vec![
                    ("scores", values(&scores)),
                    ("weights", values(&weights)),
                    ("dlogits", values(&dlogits)),
                    ("loads", loads),
                ];
                let starts: Ids = vec![0, tokens as u32 / 3, tokens as u32 / 3, tokens as u32].into();
                let balance = device.balance(&router, &scores, &dispatch, &starts);
                let mut dscores = empty(device, tokens, experts);
                device.balance_backward(&router, &scores, &starts, &balance, 0.01, &mut dscores);
                device.route_backward(&router, &scores, &dispatch, &dweights, Some(&dscores), &mut dlogits);
                out.extend([("losses", device.balance_losses(&balance)), ("dscores", values(&dscores))]);
                out.push(("dlogits of both", values(&dlogits)));
                out
            });
        }
    }
}

#[test]
fn combination() {
    for (tokens, d, experts, top_k) in [(1, 3, 4, 1), (37, 40, 6, 3), (300, 16, 8, 2)] {
        same(&format!("combination of {tokens}"), |device| {
            let dispatch = crate::products::routed(device, tokens, experts, top_k);
            let (h, weights) = (tensor(device, 1, dispatch.slots(), d), tensor(device, 2, tokens, top_k));
            let (base, dy) = (tensor(device, 3, tokens, d), tensor(device, 4, tokens, d));
            let (mut y, mut on_base) = (empty(device, tokens, d), empty(device, tokens, d));
            device.combine(&h, &weights, &dispatch, None, &mut y);
            device.combine(&h, &weights, &dispatch, Some(&base), &mut on_base);
            let (mut dh, mut dweights) = (empty(device, dispatch.slots(), d), empty(device, tokens, top_k));
            device.combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut dweights);
            let mut out = vec![
                ("y", values(&y)),
                ("y on a base", values(&on_base)),
                ("dh", values(&dh)),
                ("dweights", values(&dweights)),
            ];
            for start in [Start::Zero, Start::Continue] {
                let mut dx = tensor(device, 5, tokens, d);
                device.gather_slots(&h, &dispatch, (&mut dx, start));
                out.push(("dx", values(&dx)));
            }
            out
        });
    }
}

/// Tokens, columns, experts, and how many a token has; two experts have no token where there is room.
const COMBINATIONS: [(usize, usize, usize, usize); 5] =
    [(1, 3, 4, 1), (37, 40, 6, 3), (300, 16, 8, 2), (9, 37, 16, 13), (2, 2056, 5, 2)];

#[test]
fn combination_in_bf16() {
    for (tokens, d, experts, top_k) in COMBINATIONS {
        same_rounded(&format!("combination of {tokens} in bf16"), |device| {
            let dispatch = crate::products::routed(device, tokens, experts, top_k);
            let (h, weights) = (activation(device, 1, dispatch.slots(), d), tensor(device, 2, tokens, top_k));
            let (base, dy) = (activation(device, 3, tokens, d), activation(device, 4, tokens, d));
            let (mut y, mut on_base) = (empty_activation(device, tokens, d), empty_activation(device, tokens, d));
            device.combine(&h, &weights, &dispatch, None, &mut y);
            device.combine(&h, &weights, &dispatch, Some(&base), &mut on_base);
            let (mut dh, mut dweights) = (empty_activation(device, dispatch.slots(), d), empty(device, tokens, top_k));
            device.combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut dweights);
            let mut out = vec![("y", values(&y)), ("y on a base", values(&on_base)), ("dh", values(&dh))];
            for start in [Start::Zero, Start::Continue] {
                let mut dx = activation(device, 5, tokens, d);
                device.gather_slots(&h, &dispatch, (&mut dx, start));
                out.push(("dx", values(&dx)));
            }
            out
        });
        near_rounded(&format!("gradients of {tokens} tokens' weights in bf16"), |device| {
            let dispatch = crate::products::routed(device, tokens, experts, top_k);
            let (h, weights) = (activation(device, 1, dispatch.slots(), d), tensor(device, 2, tokens, top_k));
            let dy = activation(device, 4, tokens, d);
            let (mut dh, mut dweights) = (empty_activation(device, dispatch.slots(), d), empty(device, tokens, top_k));
            device.combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut dweights);
            vec![("dweights", values(&dweights))]
        });
    }
}

/// More chunks of choices than a block scans at a time, more tokens than a balance loss adds at a time, more experts
/// than a block has; in two orders, as the emulator takes a second for each.
#[test]
fn many_tokens() {
    for (experts, top_k, tokens) in [(4, 3, 45_000), (40, 2, 700)] {
        let router = Router { experts, top_k, ..routers()[0] };
        let work = |device: &Arc<dyn Device>| {
            let logits = tensor(device, 1, tokens, experts);
            let (mut scores, mut weights) = (empty(device, tokens, experts), empty(device, tokens, top_k));
            let dispatch = device.route(&router, &logits, None, &mut scores, &mut weights);
            let (dslots, mut dx) = (tensor(device, 2, tokens * top_k, 1), empty(device, tokens, 1));
            device.gather_slots(&dslots, &dispatch, (&mut dx, Start::Zero));
            let starts: Ids = vec![0, 224, 225, 225, tokens as u32].into();
            let balance = device.balance(&router, &scores, &dispatch, &starts);
            let loads = device.loads(&dispatch).iter().map(|load| *load as f32).collect();
            vec![("dx", values(&dx)), ("losses", device.balance_losses(&balance)), ("loads", loads)]
        };
        let naive: Arc<dyn Device> = wels_cpu::naive::Naive::new();
        let expected = work(&naive);
        for device in rounds().iter().take(2) {
            assert_eq!(work(device), expected, "{tokens} tokens of {experts} experts");
        }
    }
}

/// For the planted bugs: more choices than a block has threads.
pub fn many(device: &Arc<dyn Device>) -> Outputs {
    let dispatch = crate::products::routed(device, 500, 6, 2);
    let (h, weights) = (tensor(device, 1, dispatch.slots(), 4), tensor(device, 2, 500, 2));
    let mut y = empty(device, 500, 4);
    device.combine(&h, &weights, &dispatch, None, &mut y);
    vec![("y", values(&y))]
}

/// For the planted bugs: more tokens than a balance loss adds at a time.
pub fn long_sequence(device: &Arc<dyn Device>) -> Outputs {
    let router = routers()[0];
    let logits = tensor(device, 1, 300, router.experts);
    let (mut scores, mut weights) = (empty(device, 300, router.experts), empty(device, 300, router.top_k));
    let dispatch = device.route(&router, &logits, None, &mut scores, &mut weights);
    let balance = device.balance(&router, &scores, &dispatch, &vec![0, 300].into());
    vec![("losses", device.balance_losses(&balance))]
}

/// For the planted bugs: experts of equal scores.
pub fn ties(device: &Arc<dyn Device>) -> Outputs {
    let router = routers()[0];
    let logits = Tensor::zeros(device, 5, router.experts);
    let (mut scores, mut weights) = (empty(device, 5, router.experts), empty(device, 5, router.top_k));
    let dispatch = device.route(&router, &logits, None, &mut scores, &mut weights);
    vec![("loads", device.loads(&dispatch).iter().map(|load| *load as f32).collect())]
}

/// For the planted bugs: more experts a token than loads are under way at a time.
pub fn in_bf16(device: &Arc<dyn Device>) -> Outputs {
    let mut out = Vec::new();
    for (tokens, d, experts, top_k) in COMBINATIONS {
        let dispatch = crate::products::routed(device, tokens, experts, top_k);
        let (h, weights) = (activation(device, 1, dispatch.slots(), d), tensor(device, 2, tokens, top_k));
        let (dy, mut y) = (activation(device, 4, tokens, d), activation(device, 5, tokens, d));
        let (mut dh, mut dweights) = (empty_activation(device, dispatch.slots(), d), empty(device, tokens, top_k));
        device.combine_backward(&dy, &h, &weights, &dispatch, &mut dh, &mut dweights);
        device.gather_slots(&h, &dispatch, (&mut y, Start::Continue));
        out.extend([("dh", values(&dh)), ("dweights", values(&dweights)), ("dx", values(&y))]);
    }
    out
}

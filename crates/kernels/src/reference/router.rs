//! Routing and the balance loss, as plain loops.

use super::{dot, math};
use crate::router::{Balance, Router, Scoring, sqrt_softplus, sqrt_softplus_slope};

fn total(x: &[f32]) -> f32 {
    dot(x, &vec![1.0; x.len()])
}

/// The indices of the `count` greatest values, of equals the first, NaN as −∞; ascending.
fn greatest(values: &[f32], count: usize) -> Vec<usize> {
    let key = |i: usize| if values[i].is_nan() { f32::NEG_INFINITY } else { values[i] };
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| key(b).partial_cmp(&key(a)).expect("no NaN is left"));
    order.truncate(count);
    order.sort();
    order
}

fn scores_of(router: &Router, logits: &[f32]) -> Vec<f32> {
    if router.scoring == Scoring::Sigmoid {
        return logits.iter().map(|&l| math::sigmoid(l)).collect();
    }
    if router.scoring == Scoring::SqrtSoftplus {
        return logits.iter().map(|&l| sqrt_softplus(l)).collect();
    }
    let max = logits.iter().fold(f32::NEG_INFINITY, |max, &l| if l > max { l } else { max });
    let exps: Vec<f32> = logits.iter().map(|l| math::exp(l - max)).collect();
    let sum = total(&exps);
    exps.iter().map(|e| e / sum).collect()
}

/// A token's experts by its biased scores.
fn choose(router: &Router, biased: &[f32]) -> Vec<usize> {
    let size = router.experts / router.groups;
    let group_score = |group: &[f32]| {
        let best = if router.scoring != Scoring::Softmax { greatest(group, 2) } else { greatest(group, 1) };
        let finite = best.iter().map(|&i| group[i]).filter(|&a| a > f32::NEG_INFINITY);
        finite.reduce(|a, b| a + b).unwrap_or(f32::NEG_INFINITY)
    };
    let group_scores: Vec<f32> = biased.chunks(size).map(group_score).collect();
    let kept = greatest(&group_scores, router.top_groups);
    let reachable: Vec<usize> = kept.iter().flat_map(|g| g * size..(g + 1) * size).collect();
    let values: Vec<f32> = reachable.iter().map(|&e| biased[e]).collect();
    greatest(&values, router.top_k).into_iter().map(|i| reachable[i]).collect()
}

/// Reference of [`crate::router::forward`].
pub fn forward(
    router: &Router,
    logits: &[f32],
    bias: Option<&[f32]>,
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let listed = |_: usize, s: &[f32]| {
        let biased: Vec<f32> = s.iter().enumerate().map(|(i, s)| s + bias.map_or(0.0, |bias| bias[i])).collect();
        choose(router, &biased)
    };
    forward_by(router, logits, &listed, scores, experts, weights);
}

/// Reference of [`crate::router::forward_by_table`].
pub fn forward_by_table(
    router: &Router,
    logits: &[f32],
    (table, ids): (&[f32], &[u32]),
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let k = router.top_k;
    let listed = |t: usize, _: &[f32]| {
        let row = &table[ids[t] as usize * k..(ids[t] as usize + 1) * k];
        let mut chosen: Vec<usize> = row.iter().map(|expert| *expert as usize).collect();
        chosen.sort();
        chosen
    };
    forward_by(router, logits, &listed, scores, experts, weights);
}

fn forward_by(
    router: &Router,
    logits: &[f32],
    list: &dyn Fn(usize, &[f32]) -> Vec<usize>,
    scores: &mut [f32],
    experts: &mut [u32],
    weights: &mut [f32],
) {
    let (e, k) = (router.experts, router.top_k);
    for (t, logits) in logits.chunks(e).enumerate() {
        let s = scores_of(router, logits);
        let chosen = list(t, &s);
        let sum = chosen.iter().fold(0.0, |sum, &i| sum + s[i]) + 1e-20;
        for (j, &i) in chosen.iter().enumerate() {
            experts[t * k + j] = i as u32;
            weights[t * k + j] = if router.normalize { s[i] / sum * router.scale } else { s[i] * router.scale };
        }
        scores[t * e..(t + 1) * e].copy_from_slice(&s);
    }
}

/// Reference of [`crate::router::backward`].
pub fn backward(
    router: &Router,
    scores: &[f32],
    experts: &[u32],
    dweights: &[f32],
    dscores: Option<&[f32]>,
    dlogits: &mut [f32],
) {
    let (e, k) = (router.experts, router.top_k);
    for (t, s) in scores.chunks(e).enumerate() {
        let mut ds = dscores.map_or(vec![0.0; e], |ds| ds[t * e..(t + 1) * e].to_vec());
        let chosen = &experts[t * k..(t + 1) * k];
        let dw = &dweights[t * k..(t + 1) * k];
        let sum = chosen.iter().fold(0.0, |sum, &i| sum + s[i as usize]) + 1e-20;
        let mean = (0..k).fold(0.0f32, |dot, j| s[chosen[j] as usize].mul_add(dw[j], dot)) / sum;
        for (j, &i) in chosen.iter().enumerate() {
            let part = if router.normalize { (dw[j] - mean) / sum } else { dw[j] };
            ds[i as usize] += part * router.scale;
        }
        let product = dot(&ds, s);
        for i in 0..e {
            dlogits[t * e + i] = match router.scoring {
                Scoring::Sigmoid => ds[i] * (s[i] * (1.0 - s[i])),
                Scoring::Softmax => (ds[i] - product) * s[i],
                Scoring::SqrtSoftplus => ds[i] * sqrt_softplus_slope(s[i]),
            };
        }
    }
}

/// Reference of [`crate::router::balance`].
pub fn balance(router: &Router, scores: &[f32], experts: &[u32], starts: &[u32]) -> Balance {
    let (e, k) = (router.experts, router.top_k);
    let mut balance = Balance { losses: vec![], shares: vec![] };
    for span in starts.windows(2) {
        let tokens = (span[1] - span[0]) as f32;
        let (mut shares, mut means) = (vec![0.0f32; e], vec![0.0f32; e]);
        for t in span[0] as usize..span[1] as usize {
            let s = &scores[t * e..(t + 1) * e];
            let counted = match router.scoring {
                Scoring::Sigmoid | Scoring::SqrtSoftplus => greatest(s, k),
                Scoring::Softmax => experts[t * k..(t + 1) * k].iter().map(|&i| i as usize).collect(),
            };
            counted.iter().for_each(|&i| shares[i] += 1.0);
            let sum = if router.scoring != Scoring::Softmax { total(s) } else { 1.0 };
            (0..e).for_each(|i| means[i] += s[i] / sum);
        }
        if tokens > 0.0 {
            shares.iter_mut().for_each(|f| *f *= e as f32 / (k as f32 * tokens));
            means.iter_mut().for_each(|p| *p /= tokens);
        }
        balance.losses.push(dot(&shares, &means));
        balance.shares.extend(shares);
    }
    balance
}

/// Reference of [`crate::router::balance_backward`].
pub fn balance_backward(
    router: &Router,
    scores: &[f32],
    starts: &[u32],
    balance: &Balance,
    coefficients: &[f32],
    dscores: &mut [f32],
) {
    let e = router.experts;
    for (sequence, span) in starts.windows(2).enumerate() {
        let shares = &balance.shares[sequence * e..(sequence + 1) * e];
        for t in span[0] as usize..span[1] as usize {
            let s = &scores[t * e..(t + 1) * e];
            let (mut mean, mut factor) = (0.0, coefficients[sequence] / (span[1] - span[0]) as f32);
            if router.scoring != Scoring::Softmax {
                mean = dot(shares, s) / total(s);
                factor /= total(s);
            }
            for i in 0..e {
                dscores[t * e + i] = (shares[i] - mean) * factor;
            }
        }
    }
}

//! Attention, as plain loops.

use super::{dot, math, softcap};
use crate::attention::{Chosen, Heads, HeadsMut, Keys, Shape};

fn key(k: &Keys, t: usize, head: usize) -> Vec<f32> {
    let own = (0..k.own.dim).map(|i| k.own.get(t, head, i));
    let shared = k.shared.iter().flat_map(|s| (0..s.dim).map(|i| s.get(t, 0, i)));
    own.chain(shared).collect()
}

fn row(h: &Heads, t: usize, head: usize) -> Vec<f32> {
    (0..h.dim).map(|i| h.get(t, head, i)).collect()
}

fn chain(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |acc, (a, b)| a.mul_add(*b, acc))
}

/// The score of a product, and the slope of its cap there.
fn score(shape: &Shape, product: f32) -> (f32, f32) {
    let scaled = product * shape.scale;
    shape.cap.map_or((scaled, 1.0), |cap| softcap::capped(scaled, cap))
}

/// One query's weights over `keys`, before division by their sum; with the row maximum and one over the sum, to which
/// the sink belongs. Keys that are not seen have weight 0.
fn weights(
    shape: &Shape,
    sink: f32,
    q: &[f32],
    keys: &[Vec<f32>],
    seen: impl Fn(usize) -> bool,
) -> (Vec<f32>, f32, f32) {
    let score = |(j, k): (usize, &Vec<f32>)| if seen(j) { score(shape, chain(q, k)).0 } else { f32::NEG_INFINITY };
    let scores: Vec<f32> = keys.iter().enumerate().map(score).collect();
    let max = scores.iter().chain([&sink]).fold(f32::NEG_INFINITY, |m, &s| if s > m { s } else { m });
    let p: Vec<f32> = scores.iter().map(|s| math::exp(s - max)).collect();
    let ones = vec![1.0; p.len()];
    let inverse = 1.0 / (dot(&p, &ones) + math::exp(sink - max));
    (p, max, inverse)
}

/// Whether a query in its place of a sequence sees key j of it: in its window, and among the chosen ones.
fn sees(shape: &Shape, chosen: Option<&[u32]>, place: usize, j: usize) -> bool {
    j >= shape.first_key(place) && chosen.is_none_or(|chosen| chosen.contains(&(j as u32)))
}

/// One query of head `head` over the keys `first..=last`, or the chosen of them; gives the row maximum and one over the
/// sum.
fn attend(
    shape: &Shape,
    sinks: Option<&[f32]>,
    chosen: Option<&[u32]>,
    query: &[f32],
    head: usize,
    first: usize,
    last: usize,
    k: &Keys,
    v: &Heads,
    out: &mut [f32],
) -> (f32, f32) {
    let kv = head / (shape.heads / shape.kv_heads);
    let keys: Vec<_> = (first..=last).map(|j| key(k, j, kv)).collect();
    let (p, max, inverse) =
        weights(shape, sink_of(sinks, head), query, &keys, |j| sees(shape, chosen, last - first, j));
    for (i, out) in out.iter_mut().enumerate() {
        let values = (first..=last).map(|j| v.get(j, kv, i));
        let sum = p.iter().zip(values).fold(0.0f32, |acc, (p, v)| p.mul_add(v, acc));
        *out = sum * inverse;
    }
    (max, inverse)
}

fn sink_of(sinks: Option<&[f32]>, head: usize) -> f32 {
    sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head])
}

/// Reference of [`crate::attention::forward`].
pub fn forward(
    shape: Shape,
    sinks: Option<&[f32]>,
    chosen: Option<&Chosen>,
    starts: &[u32],
    q: Heads,
    k: Keys,
    v: Heads,
    out: &mut [f32],
    stats: &mut [f32],
) {
    for seq in starts.windows(2) {
        for t in seq[0] as usize..seq[1] as usize {
            for h in 0..shape.heads {
                let at = t * shape.heads + h;
                let out = &mut out[at * v.dim..][..v.dim];
                let chosen = chosen.map(|chosen| chosen.of(t));
                let (max, inverse) = attend(&shape, sinks, chosen, &row(&q, t, h), h, seq[0] as usize, t, &k, &v, out);
                stats[at * 2] = max;
                stats[at * 2 + 1] = inverse;
            }
        }
    }
}

/// Reference of attention over a cache: the newest `n` queries of a sequence of `len` tokens, to the bits of
/// [`forward`].
pub fn cached(
    shape: Shape,
    sinks: Option<&[f32]>,
    chosen: Option<&Chosen>,
    q: Heads,
    n: usize,
    k: Keys,
    v: Heads,
    len: usize,
    out: &mut [f32],
) {
    for t in 0..n {
        for h in 0..shape.heads {
            let out = &mut out[(t * shape.heads + h) * v.dim..][..v.dim];
            let chosen = chosen.map(|chosen| chosen.of(t));
            attend(&shape, sinks, chosen, &row(&q, t, h), h, 0, len - n + t, &k, &v, out);
        }
    }
}

/// Reference of [`crate::attention::sink_terms`].
pub fn sink_terms(sinks: &[f32], out: &[f32], stats: &[f32], d_out: &[f32], terms: &mut [f32]) {
    let width = out.len() / terms.len().max(1);
    for (i, term) in terms.iter_mut().enumerate() {
        let product = dot(&out[i * width..][..width], &d_out[i * width..][..width]);
        *term = -(math::exp(sinks[i % sinks.len()] - stats[2 * i]) * stats[2 * i + 1] * product);
    }
}

fn check_gradients(shape: &Shape, tokens: usize, [dq, dk, dv]: [&HeadsMut; 3], dk_shared: Option<&HeadsMut>) {
    for (gradient, heads) in [(dq, shape.heads), (dk, shape.kv_heads), (dv, shape.kv_heads)] {
        gradient.check("a gradient", heads, tokens);
    }
    dk_shared.iter().for_each(|shared| shared.check("dk_shared", 1, tokens));
}

/// Reference of [`crate::attention::backward`].
#[allow(clippy::needless_range_loop)]
pub fn backward(
    shape: Shape,
    chosen: Option<&Chosen>,
    starts: &[u32],
    q: Heads,
    k: Keys,
    v: Heads,
    out: &[f32],
    stats: &[f32],
    d_out: &[f32],
    mut dq: HeadsMut,
    mut dk: HeadsMut,
    mut dk_shared: Option<HeadsMut>,
    mut dv: HeadsMut,
) {
    let (group, qk, tokens) = (shape.heads / shape.kv_heads, q.dim, starts.last().map_or(0, |&end| end as usize));
    check_gradients(&shape, tokens, [&dq, &dk, &dv], dk_shared.as_ref());
    for seq in starts.windows(2) {
        let (first, end) = (seq[0] as usize, seq[1] as usize);
        let len = end - first;
        let mut dk_shared_sum = vec![0.0f32; len * (qk - k.own.dim)];
        for kv in 0..shape.kv_heads {
            let (mut dkey, mut dvalue) = (vec![0.0f32; len * qk], vec![0.0f32; len * v.dim]);
            for h in kv * group..(kv + 1) * group {
                for t in first..end {
                    let at = t * shape.heads + h;
                    let (max, inverse) = (stats[at * 2], stats[at * 2 + 1]);
                    let (o, g) = (&out[at * v.dim..][..v.dim], &d_out[at * v.dim..][..v.dim]);
                    let (query, delta) = (row(&q, t, h), dot(o, g));
                    let mut dquery = vec![0.0f32; qk];
                    for j in (0..=t - first).filter(|j| sees(&shape, chosen.map(|of| of.of(t)), t - first, *j)) {
                        let (key, value) = (key(&k, first + j, kv), row(&v, first + j, kv));
                        let (score, slope) = score(&shape, chain(&query, &key));
                        let p = math::exp(score - max) * inverse;
                        let ds = p * (chain(g, &value) - delta) * shape.scale * slope;
                        for i in 0..v.dim {
                            dvalue[j * v.dim + i] = p.mul_add(g[i], dvalue[j * v.dim + i]);
                        }
                        for i in 0..qk {
                            dquery[i] = ds.mul_add(key[i], dquery[i]);
                            dkey[j * qk + i] = ds.mul_add(query[i], dkey[j * qk + i]);
                        }
                    }
                    for i in 0..qk {
                        dq.set(t, h, i, dquery[i]);
                    }
                }
            }
            for j in 0..len {
                for i in 0..v.dim {
                    dv.set(first + j, kv, i, dvalue[j * v.dim + i]);
                }
                for i in 0..k.own.dim {
                    dk.set(first + j, kv, i, dkey[j * qk + i]);
                }
                for i in k.own.dim..qk {
                    dk_shared_sum[j * (qk - k.own.dim) + i - k.own.dim] += dkey[j * qk + i];
                }
            }
        }
        if let Some(shared) = &mut dk_shared {
            let dim = qk - k.own.dim;
            for j in 0..len {
                for i in 0..dim {
                    shared.set(first + j, 0, i, dk_shared_sum[j * dim + i]);
                }
            }
        }
    }
}

//! Attention over a window and compressed entries, as plain loops.

use super::{dot, math};
use crate::attention::compressed::{Compressed, Given, Gradients, Operands, Span};

/// The keys of a query: whether they are entries, and which rows.
fn keys(of: Compressed, span: &Span, operands: &Operands, t: usize) -> Vec<(bool, usize)> {
    let rows = of.rows(span, t).map(|row| (false, row));
    rows.chain(of.entries(span, operands.chosen, t).map(|entry| (true, entry))).collect()
}

fn key<'a>(of: Compressed, operands: &Operands<'a>, (is_entry, row): (bool, usize)) -> &'a [f32] {
    let all = if is_entry { operands.entries } else { operands.rows };
    &all[row * of.dim..(row + 1) * of.dim]
}

/// Reference of [`crate::attention::compressed::forward`].
pub fn forward(of: Compressed, spans: &[Span], operands: Operands, out: &mut [f32], stats: &mut [f32]) {
    for span in spans {
        for t in span.queries.clone() {
            let keys = keys(of, span, &operands, t);
            for h in 0..of.heads {
                let at = (t * of.heads + h) * of.dim;
                let score = |it: &(bool, usize)| dot(&operands.q[at..at + of.dim], key(of, &operands, *it)) * of.scale;
                let scores: Vec<f32> = keys.iter().map(score).collect();
                let max = scores.iter().fold(operands.sinks[h], |max, s| if *s > max { *s } else { max });
                let weights: Vec<f32> = scores.iter().map(|s| math::exp(s - max)).collect();
                let sum = weights.iter().fold(0.0, |sum, w| sum + w) + math::exp(operands.sinks[h] - max);
                for c in 0..of.dim {
                    let term = |sum: f32, (w, it): (&f32, &(bool, usize))| w.mul_add(key(of, &operands, *it)[c], sum);
                    out[at + c] = weights.iter().zip(&keys).fold(0.0, term) * (1.0 / sum);
                }
                stats[(t * of.heads + h) * 2] = max;
                stats[(t * of.heads + h) * 2 + 1] = 1.0 / sum;
            }
        }
    }
}

/// Reference of [`crate::attention::compressed::backward`].
pub fn backward(of: Compressed, spans: &[Span], operands: Operands, given: Given, gradients: Gradients) {
    let Gradients { q: dq, rows: d_rows, entries: d_entries } = gradients;
    d_rows.fill(0.0);
    d_entries.fill(0.0);
    for span in spans {
        for t in span.queries.clone() {
            let keys = keys(of, span, &operands, t);
            for h in 0..of.heads {
                let at = (t * of.heads + h) * of.dim;
                let row = |x: &'_ [f32]| x[at..at + of.dim].to_vec();
                let (q, out, d_out) = (row(operands.q), row(given.out), row(given.d_out));
                let stats = &given.stats[(t * of.heads + h) * 2..][..2];
                let delta = dot(&d_out, &out);
                dq[at..at + of.dim].fill(0.0);
                for it in &keys {
                    let key = key(of, &operands, *it);
                    let p = math::exp(dot(&q, key) * of.scale - stats[0]) * stats[1];
                    let ds = p * (dot(&d_out, key) - delta) * of.scale;
                    let d_key = if it.0 { &mut *d_entries } else { &mut *d_rows };
                    for c in 0..of.dim {
                        dq[at + c] = ds.mul_add(key[c], dq[at + c]);
                        let sum = &mut d_key[it.1 * of.dim + c];
                        *sum = p.mul_add(d_out[c], ds.mul_add(q[c], *sum));
                    }
                }
            }
        }
    }
}

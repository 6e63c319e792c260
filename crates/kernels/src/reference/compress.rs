//! Compression of keys, as plain loops.

use super::math;
use crate::compress::{Compression, Stretch};

/// Of number `c` of an entry: its terms as places in `kv`, and their exponentials.
fn exponentials(of: Compression, place: (usize, bool), c: usize, gate: &[f32], bias: &[f32]) -> Vec<(usize, f32)> {
    let gates: Vec<(usize, f32)> = of.terms(place).map(|(row, at)| (row + c, gate[row + c] + bias[at + c])).collect();
    let max = gates.iter().fold(f32::NEG_INFINITY, |max, (_, g)| if *g > max { *g } else { max });
    gates.into_iter().map(|(row, g)| (row, math::exp(g - max))).collect()
}

/// Reference of [`crate::compress::compress`].
pub fn compress(of: Compression, stretches: &[Stretch], kv: &[f32], gate: &[f32], bias: &[f32], entries: &mut [f32]) {
    for (place, entry) in of.places(stretches).into_iter().zip(entries.chunks_mut(of.dim)) {
        for (c, entry) in entry.iter_mut().enumerate() {
            let terms = exponentials(of, place, c, gate, bias);
            let sum = terms.iter().fold(0.0, |sum, (_, e)| sum + e);
            *entry = terms.iter().fold(0.0f32, |sum, (row, e)| e.mul_add(kv[*row], sum)) / sum;
        }
    }
}

/// Reference of [`crate::compress::compress_backward`].
pub fn compress_backward(
    of: Compression,
    stretches: &[Stretch],
    [kv, gate, bias]: [&[f32]; 3],
    [entries, d_entries]: [&[f32]; 2],
    [d_kv, d_gate]: [&mut [f32]; 2],
) {
    d_kv.fill(0.0);
    d_gate.fill(0.0);
    for (e, place) in of.places(stretches).into_iter().enumerate() {
        for c in 0..of.dim {
            let terms = exponentials(of, place, c, gate, bias);
            let sum = terms.iter().fold(0.0, |sum, (_, e)| sum + e);
            let (entry, d_entry) = (entries[e * of.dim + c], d_entries[e * of.dim + c]);
            for (row, exp) in terms {
                d_kv[row] = exp / sum * d_entry;
                d_gate[row] = d_kv[row] * (kv[row] - entry);
            }
        }
    }
}

/// Reference of [`crate::compress::bias_backward`].
pub fn bias_backward(of: Compression, stretches: &[Stretch], d_gate: &[f32], d_bias: &mut [f32]) {
    let len = of.rate * of.cols();
    for stretch in stretches {
        for window in 0..stretch.rows.len() / of.rate {
            let at = stretch.rows.start * of.cols() + window * len;
            d_bias.iter_mut().zip(&d_gate[at..at + len]).for_each(|(sum, d)| *sum += d);
        }
    }
}

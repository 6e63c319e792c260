//! Sinks: a score for each head that every query has beside those of its keys, whose share of the weights goes to no
//! value (gpt-oss; Xiao et al. 2023, arXiv 2309.17453, for the idea).

use super::{Shape, dot};
use crate::lanes::Lanes;
use crate::math;
use crate::par;

pub(super) fn check_sinks(shape: &Shape, sinks: Option<&[f32]>) {
    let count = sinks.map_or(shape.heads, <[f32]>::len);
    assert!(count == shape.heads, "{count} sinks for {} heads", shape.heads);
}

/// The sink of a head; −∞, which has weight 0, where there are none.
#[inline]
pub(super) fn sink_of(sinks: Option<&[f32]>, head: usize) -> f32 {
    sinks.map_or(f32::NEG_INFINITY, |sinks| sinks[head])
}

/// `terms[T, heads]`: of each query the gradient of its head's sink, −exp(s − max)·inverse·(out·d_out), with the
/// maximum and 1/sum that `forward` has left. Products of outputs are summed as there.
pub fn sink_terms(sinks: &[f32], out: &[f32], stats: &[f32], d_out: &[f32], terms: &mut [f32]) {
    let heads = sinks.len();
    assert!(heads > 0 && terms.len().is_multiple_of(heads), "{} terms of {heads} heads", terms.len());
    assert!(stats.len() == 2 * terms.len(), "stats has {} elements", stats.len());
    assert!(out.len() == d_out.len() && out.len().is_multiple_of(terms.len().max(1)), "outputs of {}", out.len());
    let width = out.len() / terms.len().max(1);
    let task_len = par::rows_per_task(terms.len() / heads, heads * width) * heads;
    par::chunks_mut(terms, task_len, |task, terms| {
        let first = task * task_len;
        let (rows, stats) = (first * width..(first + terms.len()) * width, &stats[2 * first..]);
        let (out, d_out) = (&out[rows.clone()], &d_out[rows]);
        // SAFETY: outputs were cut to as many heads as there are terms.
        unsafe {
            crate::lanes::dispatch!(sink_rows(
                sinks: &[f32], width: usize, out: &[f32], stats: &[f32], d_out: &[f32], terms: &mut [f32]
            ))
        }
    });
}

/// # Safety
/// The machine has the instruction set of `L`; both outputs have `width` numbers for each of the terms.
#[inline(always)]
unsafe fn sink_rows<L: Lanes>(
    sinks: &[f32],
    width: usize,
    out: &[f32],
    stats: &[f32],
    d_out: &[f32],
    terms: &mut [f32],
) {
    let outputs = out.chunks_exact(width).zip(d_out.chunks_exact(width));
    for (i, (term, (out, d_out))) in terms.iter_mut().zip(outputs).enumerate() {
        // SAFETY: two rows of one length; instructions by this function's contract.
        let product = unsafe { dot::<L>(out, d_out) };
        *term = -(math::scalar::exp(sinks[i % sinks.len()] - stats[2 * i]) * stats[2 * i + 1] * product);
    }
}

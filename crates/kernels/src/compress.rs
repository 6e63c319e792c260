//! Compression of keys (DeepSeek-V4 report, §2.3): one entry of m tokens, the mean of what they give, weighted by
//! softmax for each of its d numbers.
//!
//! Tokens give `kv[R, c·d]` and `gate[R, c·d]`. Without overlap c = 1, and entry w is of window w, tokens m·w..m·(w +
//! 1): with g_j = gate_j + bias_j, the bias of the token's place in the window, `entry = Σ_j exp(g_j − max)·kv_j / Σ_j
//! exp(g_j − max)`. With overlap c = 2, and an entry is of two windows: of the one before the first d numbers of each
//! token, of its own the other d. The first of a sequence has no window before. Tokens that fill no window give
//! nothing.
//!
//! **Order of sums.** Over a window's tokens in order, the earlier window first: a chain for the denominator, a chain
//! of fused multiply-adds for the numerator. Saved: kv, gate and the entries.

use std::ops::Range;

use crate::lanes::{Lanes, dispatch};
use crate::math;
use crate::par::{self, SharedMut};
use crate::span::Span;

/// How tokens become entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    /// m.
    pub rate: usize,
    /// d.
    pub dim: usize,
    /// Whether an entry is of two windows.
    pub overlap: bool,
}

/// Rows of one sequence's tokens, whole windows of which become entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stretch {
    pub rows: Range<usize>,
    /// Whether the first window is there for the second's entry alone.
    pub behind: bool,
}

impl Compression {
    /// c·d.
    pub fn cols(&self) -> usize {
        if self.overlap { 2 * self.dim } else { self.dim }
    }

    /// How many entries some stretches give.
    pub fn entries(&self, stretches: &[Stretch]) -> usize {
        stretches.iter().map(|stretch| self.windows(stretch).len()).sum()
    }

    /// The windows of a stretch that have an entry.
    fn windows(&self, stretch: &Stretch) -> Range<usize> {
        let all = stretch.rows.len() / self.rate;
        usize::from(stretch.behind).min(all)..all
    }

    /// Of each entry the first row of its window, and whether there is a window before.
    pub(crate) fn places(&self, stretches: &[Stretch]) -> Vec<(usize, bool)> {
        let of = |stretch: &Stretch| {
            let first = stretch.rows.start;
            self.windows(stretch).map(move |w| (first + w * self.rate, self.overlap && w > 0)).collect::<Vec<_>>()
        };
        stretches.iter().flat_map(of).collect()
    }

    /// Where the numbers of an entry's terms begin in `kv` and in the bias, in the order of the sums.
    pub(crate) fn terms(&self, (first, before): (usize, bool)) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Compression { rate, dim, overlap } = *self;
        let cols = self.cols();
        let own = if overlap { dim } else { 0 };
        let earlier = if before { 0..rate } else { 0..0 };
        let earlier = earlier.map(move |j| ((first - rate + j) * cols, j * cols));
        earlier.chain((0..rate).map(move |j| ((first + j) * cols + own, j * cols + own)))
    }

    fn check(&self, kv: &[f32], gate: &[f32], bias: &[f32], stretches: &[Stretch]) {
        let Compression { rate, dim, .. } = *self;
        assert!(rate > 0 && dim > 0, "{self:?}");
        assert_eq!((gate.len(), bias.len()), (kv.len(), rate * self.cols()), "kv, gate and bias of {self:?}");
        let rows = kv.len() / self.cols();
        assert!(stretches.iter().all(|stretch| stretch.rows.end <= rows), "{stretches:?} of {rows} rows");
    }
}

/// `entries[E, d]` of `kv[R, c·d]`, `gate[R, c·d]` and `bias[m, c·d]`.
pub fn compress(of: Compression, stretches: &[Stretch], kv: &[f32], gate: &[f32], bias: &[f32], entries: &mut [f32]) {
    of.check(kv, gate, bias, stretches);
    let places = of.places(stretches);
    assert_eq!(entries.len(), places.len() * of.dim, "entries are [E, d] with E = {}", places.len());
    par::chunks_mut(entries, of.dim, |e, entry| {
        let place = places[e];
        let job = Job { of, place, kv, gate, bias };
        // SAFETY: terms of a place have d numbers, as `check` has seen; so has an entry.
        unsafe { dispatch!(entry_of(job: Job, entry: &mut [f32])) };
    });
}

#[derive(Clone, Copy)]
struct Job<'a> {
    of: Compression,
    place: (usize, bool),
    kv: &'a [f32],
    gate: &'a [f32],
    bias: &'a [f32],
}

impl Job<'_> {
    /// g of a term.
    ///
    /// # Safety
    /// The machine has the instruction set of `L`; the term has as many numbers as the span was made for.
    #[inline(always)]
    unsafe fn gate<L: Lanes>(&self, s: Span, (row, bias): (usize, usize)) -> L {
        // SAFETY: by this function's contract.
        unsafe { s.load::<L>(&self.gate[row..]).add(s.load(&self.bias[bias..])) }
    }

    /// Greatest g, and Σ exp(g − greatest).
    ///
    /// # Safety
    /// As for [`Job::gate`].
    #[inline(always)]
    unsafe fn sums<L: Lanes>(&self, s: Span) -> (L, L) {
        // SAFETY: by this function's contract.
        unsafe {
            let (mut max, mut sum) = (L::splat(f32::NEG_INFINITY), L::splat(0.0));
            for term in self.of.terms(self.place) {
                max = self.gate::<L>(s, term).max(max);
            }
            for term in self.of.terms(self.place) {
                sum = sum.add(math::exp(self.gate::<L>(s, term).sub(max)));
            }
            (max, sum)
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`; the job's terms have as many numbers as `entry`.
#[inline(always)]
unsafe fn entry_of<L: Lanes>(job: Job, entry: &mut [f32]) {
    // SAFETY: spans of the entry lie in all terms; instructions by this function's contract.
    unsafe {
        crate::span::spans!(entry.len(), |s| {
            let (max, sum) = job.sums::<L>(s);
            let mut of_terms = L::splat(0.0);
            for term in job.of.terms(job.place) {
                let e = math::exp(job.gate::<L>(s, term).sub(max));
                of_terms = e.fma(s.load(&job.kv[term.0..]), of_terms);
            }
            s.store(of_terms.div(sum), entry);
        });
    }
}

/// Backward of [`compress`]: `d_kv[R, c·d]` and `d_gate[R, c·d]`, all of which are set. What the bias gets of an entry
/// is what the gates get: [`bias_backward`]. Each row is in one stretch at most.
pub fn compress_backward(
    of: Compression,
    stretches: &[Stretch],
    [kv, gate, bias]: [&[f32]; 3],
    [entries, d_entries]: [&[f32]; 2],
    [d_kv, d_gate]: [&mut [f32]; 2],
) {
    of.check(kv, gate, bias, stretches);
    check_disjoint(stretches);
    let places = of.places(stretches);
    let len = places.len() * of.dim;
    assert_eq!((entries.len(), d_entries.len()), (len, len), "entries are [E, d] with E = {}", places.len());
    assert_eq!((d_kv.len(), d_gate.len()), (kv.len(), kv.len()), "gradients of kv and gate");
    d_kv.fill(0.0);
    d_gate.fill(0.0);
    let [d_kv, d_gate] = [d_kv, d_gate].map(SharedMut::new);
    par::run(places.len(), |e| {
        let job = Job { of, place: places[e], kv, gate, bias };
        let (entry, d_entry) = (&entries[e * of.dim..][..of.dim], &d_entries[e * of.dim..][..of.dim]);
        for term in of.terms(job.place) {
            // SAFETY: a term is of one entry, as stretches do not overlap, and each entry is one task's.
            let (d_kv, d_gate) = unsafe { (d_kv.slice(term.0, of.dim), d_gate.slice(term.0, of.dim)) };
            // SAFETY: all slices have d numbers, as have the job's terms.
            unsafe {
                dispatch!(term_backward(
                    job: Job,
                    term: (usize, usize),
                    entry: &[f32],
                    d_entry: &[f32],
                    d_kv: &mut [f32],
                    d_gate: &mut [f32]
                ))
            };
        }
    });
}

fn check_disjoint(stretches: &[Stretch]) {
    let rows = stretches.iter().map(|stretch| &stretch.rows).filter(|rows| !rows.is_empty());
    let mut rows: Vec<&Range<usize>> = rows.collect();
    rows.sort_unstable_by_key(|rows| rows.start);
    assert!(rows.windows(2).all(|pair| pair[0].end <= pair[1].start), "stretches overlap: {stretches:?}");
}

/// # Safety
/// The machine has the instruction set of `L`; all slices and the job's terms have one length.
#[inline(always)]
unsafe fn term_backward<L: Lanes>(
    job: Job,
    term: (usize, usize),
    entry: &[f32],
    d_entry: &[f32],
    d_kv: &mut [f32],
    d_gate: &mut [f32],
) {
    // SAFETY: spans of one length lie in all slices; instructions by this function's contract.
    unsafe {
        crate::span::spans!(entry.len(), |s| {
            let (max, sum) = job.sums::<L>(s);
            let share = math::exp(job.gate::<L>(s, term).sub(max)).div(sum);
            let of_kv = share.mul(s.load(d_entry));
            s.store(of_kv, d_kv);
            s.store(of_kv.mul(s.load::<L>(&job.kv[term.0..]).sub(s.load(entry))), d_gate);
        });
    }
}

/// Adds to `d_bias[m, c·d]` what the windows of the stretches have in `d_gate[R, c·d]`: a chain over the windows.
pub fn bias_backward(of: Compression, stretches: &[Stretch], d_gate: &[f32], d_bias: &mut [f32]) {
    let cols = of.cols();
    assert_eq!(d_bias.len(), of.rate * cols, "bias is [m, c·d] of {of:?}");
    par::chunks_mut(d_bias, cols, |j, d_bias| {
        for stretch in stretches {
            for window in 0..stretch.rows.len() / of.rate {
                let row = (stretch.rows.start + window * of.rate + j) * cols;
                d_bias.iter_mut().zip(&d_gate[row..row + cols]).for_each(|(sum, d)| *sum += d);
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "stretches overlap")]
    fn stretches_that_overlap_have_no_gradients() {
        let of = Compression { rate: 2, dim: 1, overlap: false };
        let stretches = [0..4, 2..6].map(|rows| Stretch { rows, behind: false });
        let (rows, bias, entries) = ([0.0; 6], [0.0; 2], [0.0; 4]);
        let [mut d_kv, mut d_gate] = [[0.0; 6]; 2];
        compress_backward(of, &stretches, [&rows, &rows, &bias], [&entries, &entries], [&mut d_kv, &mut d_gate]);
    }
}

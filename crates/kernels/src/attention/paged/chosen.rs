//! Attention over chosen keys: pages without one are left out, and in the others keys that were not chosen have weight
//! 0. A page is as long as the rows of partial sums, so these are the sums over all keys without terms that are 0.

use super::{
    Brain, CacheDtype, Element, FirstKeys, Half, Job, LANES, PAGE, Sums, TILE, head_of, scores_of_rows, softmax,
    sums_of_rows,
};
use crate::attention::Chosen;
use crate::lanes::Lanes;
use crate::micro;
use crate::par;
use crate::scratch;

/// Queries of one sequence that follow each other.
struct Tile {
    /// The first one's row in the call's operands.
    token: usize,
    /// Where it stands in its sequence.
    place: usize,
    rows: usize,
    /// Which of the sequence's pages have keys of theirs, ascending.
    which: Vec<u32>,
    /// These pages.
    pages: Vec<u32>,
}

pub(super) fn attend(dtype: CacheDtype, job: &Job, chosen: &Chosen) {
    let tiles = tiles(job, chosen);
    let heads = job.shape.heads;
    par::run(tiles.len() * heads, |i| {
        let (tile, head) = (&tiles[i / heads], i % heads);
        // SAFETY: pages, part, operands and choice were checked; each task has a head of tokens of its own in `out`;
        // the pages hold what `dtype` says.
        unsafe {
            match dtype {
                CacheDtype::F32 => {
                    crate::lanes::dispatch!(attend_f32(job: &Job, chosen: &Chosen, tile: &Tile, head: usize))
                }
                CacheDtype::F16 => {
                    crate::lanes::dispatch!(attend_f16(job: &Job, chosen: &Chosen, tile: &Tile, head: usize))
                }
                CacheDtype::Bf16 => {
                    crate::lanes::dispatch!(attend_bf16(job: &Job, chosen: &Chosen, tile: &Tile, head: usize))
                }
            }
        }
    });
}

fn tiles(job: &Job, chosen: &Chosen) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let mut first = 0;
    for of in job.sequences {
        for from in (0..of.new).step_by(TILE) {
            let (token, rows) = (first + from, TILE.min(of.new - from));
            let keys = (token..token + rows).flat_map(|query| chosen.of(query));
            let mut which: Vec<u32> = keys.map(|key| key / PAGE as u32).collect();
            which.sort_unstable();
            which.dedup();
            let pages = which.iter().map(|page| of.pages[*page as usize]).collect();
            tiles.push(Tile { token, place: of.past + from, rows, which, pages });
        }
        first += of.new;
    }
    tiles
}

/// # Safety
/// As for [`attend_tile`], of pages of f32.
#[inline(always)]
unsafe fn attend_f32<L: Lanes>(job: &Job, chosen: &Chosen, tile: &Tile, head: usize) {
    // SAFETY: f32 is what these pages hold; the rest goes on as it came.
    unsafe { attend_tile::<L, f32>(job, chosen, tile, head) }
}

/// # Safety
/// As for [`attend_tile`], of pages of f16.
#[inline(always)]
unsafe fn attend_f16<L: Lanes>(job: &Job, chosen: &Chosen, tile: &Tile, head: usize) {
    // SAFETY: `Half` is a number of pages of f16; the rest goes on as it came.
    unsafe { attend_tile::<L, Half>(job, chosen, tile, head) }
}

/// # Safety
/// As for [`attend_tile`], of pages of bf16.
#[inline(always)]
unsafe fn attend_bf16<L: Lanes>(job: &Job, chosen: &Chosen, tile: &Tile, head: usize) {
    // SAFETY: `Brain` is a number of pages of bf16; the rest goes on as it came.
    unsafe { attend_tile::<L, Brain>(job, chosen, tile, head) }
}

/// # Safety
/// The machine has the instruction set of `L`; the pages exist and hold numbers of type E; operands and choice were
/// checked; no other task has this head of these tokens.
#[inline(always)]
unsafe fn attend_tile<L: Lanes, E: Element>(job: &Job, chosen: &Chosen, tile: &Tile, head: usize) {
    let Job { layout, shape, q, out, .. } = job;
    let Tile { token, rows, which, pages, .. } = tile;
    let width = PAGE * pages.len();
    let mut scores = scratch::buffer(rows * width);
    let (mut queries, mut outs) = ([std::ptr::null(); TILE], [std::ptr::null_mut(); TILE]);
    for r in 0..*rows {
        queries[r] = q.row(token + r, head).as_ptr();
        outs[r] = out.at(((token + r) * shape.heads + head) * layout.v);
    }
    // SAFETY: scores have whole pages of room for each row; pages and operands by this function's contract.
    unsafe {
        scores_of_rows::<L, E>(job, (pages, head), &queries[..*rows], scores.as_mut_ptr(), width);
        let (mut inverses, mut weights) = ([0.0; TILE], [std::ptr::null(); TILE]);
        for r in 0..*rows {
            let row = &mut scores[r * width..][..width];
            chosen.keep_in_pages(token + r, which, row, f32::NEG_INFINITY);
            inverses[r] = softmax::<L>(row, 0..width, shape, f32::NEG_INFINITY).1;
            weights[r] = row.as_ptr();
        }
        if *rows == 1 {
            let (keys, weights, inverse, out) = (chosen.of(*token), &scores[..], inverses[0], outs[0]);
            return sum_of_chosen::<L, E>(job, tile, OneQuery { head, keys, weights, inverse, out });
        }
        let sums = Sums { weights: &weights[..*rows], inverses: &inverses[..*rows], outs: &outs[..*rows] };
        // Of the sequence's last page the slots that were written.
        let last = tile.place + rows - 1;
        let behind =
            if which.last().is_some_and(|page| *page as usize == last / PAGE) { PAGE - 1 - last % PAGE } else { 0 };
        sums_of_rows::<L, E>(job, (pages, head, width - behind), sums, &mut FirstKeys::of(job, None));
    }
}

/// The weighted sum of one query's chosen values, which alone are read.
///
/// # Safety
/// As for [`attend_tile`]; there is a weight for each slot of the tile's pages.
#[inline(always)]
unsafe fn sum_of_chosen<L: Lanes, E: Element>(job: &Job, tile: &Tile, of: OneQuery) {
    let vectors = job.layout.v_stride() / LANES;
    // SAFETY: as this function's contract says, and first + V or the last vectors are there.
    unsafe {
        let mut first = 0;
        while first < vectors {
            first += match (L::TILE.1 == 2, vectors - first) {
                (true, 8..) => vectors_of_chosen::<L, E, 8>(job, tile, of, first),
                (_, 4..) => vectors_of_chosen::<L, E, 4>(job, tile, of, first),
                _ => vectors_of_chosen::<L, E, 1>(job, tile, of, first),
            };
        }
    }
}

/// A tile's only query.
#[derive(Clone, Copy)]
struct OneQuery<'a> {
    head: usize,
    keys: &'a [u32],
    weights: &'a [f32],
    inverse: f32,
    out: *mut f32,
}

/// V vectors of the sum from the `first` on; gives V.
///
/// # Safety
/// As for [`sum_of_chosen`]; the values have so many vectors.
#[inline(always)]
unsafe fn vectors_of_chosen<L: Lanes, E: Element, const V: usize>(
    job: &Job,
    tile: &Tile,
    of: OneQuery,
    first: usize,
) -> usize {
    let (layout, stride) = (job.layout, job.layout.v_stride());
    let mut page = 0;
    // SAFETY: pages, vectors and output are there by this function's contract.
    unsafe {
        let mut acc = [L::splat(0.0); V];
        for key in of.keys {
            while tile.which[page] != key / PAGE as u32 {
                page += 1;
            }
            let slot = *key as usize % PAGE;
            let values = head_of::<E>(job, of.head, tile.pages[page]).add(PAGE * layout.own + slot * stride);
            let weight = L::splat(of.weights[PAGE * page + slot]);
            for (v, acc) in acc.iter_mut().enumerate() {
                *acc = weight.fma(E::load::<L>(values.add(LANES * (first + v))), *acc);
            }
        }
        for (v, acc) in acc.into_iter().enumerate() {
            let column = LANES * (first + v);
            micro::store(acc.mul(L::splat(of.inverse)), of.out.add(column), layout.v - column);
        }
    }
    V
}

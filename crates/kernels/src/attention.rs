//! Causal attention over packed sequences: softmax(scale · q·k) v for each head, with key and value widths of their
//! own.
//!
//! **Order of sums.** Scores are chains of fused multiply-adds over the head's dimensions (own part, then the shared
//! rotary part), times `scale`; the row maximum; weights `exp(score − max)`; their sum by 16 partial sums over the keys
//! from the sequence's first, and the fixed tree; outputs are chains over the keys, divided by multiplying with 1/sum.
//! A row depends on its query and on the keys of its own sequence up to itself: not on what it is packed, batched or
//! cached with. With a window, keys further away have weight 0 in these sums. With a sink, a number s for each head,
//! the maximum is also over s, and exp(s − max) is added to the sum last: as a key of score s whose value is 0. With a
//! cap c, a score is c·tanh(score / c) (Gemma 2 report, arXiv 2408.00118, §2), a pass of its own over a row's scores.
//! Where keys are [`Chosen`], the others have weight 0 in these sums, as beyond a window: with all chosen the bits are
//! those of attention over all.
//!
//! Backward recomputes the weights from the saved maximum and 1/sum (FlashAttention-2, algorithm 2, without its
//! blockwise rescaling): p = exp(s − max)·inverse, ds = p·(g·v − g·out)·scale, with a cap times 1 − tanh²; dk and dv
//! are chains over the queries, of a group's heads one after the other; the shared key's gradient adds the heads in
//! order.

mod chosen;
pub mod compressed;
pub mod index;
pub mod index_loss;
pub mod latent;
pub mod paged;
mod panels;
mod sinks;

pub use chosen::Chosen;
pub use sinks::sink_terms;

use std::ops::Range;

use crate::lanes::Lanes;
use crate::math;
use crate::micro::{LeftWords, Out};
use crate::par::{self, SharedMut};
use crate::scratch;
use crate::softcap;
use panels::{Panels, gather, gather_keys};
use sinks::{check_sinks, sink_of};

/// Heads and the factor on their scores.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves heads / kv_heads query heads.
    pub kv_heads: usize,
    /// Factor on the scores, usually 1/√dim.
    pub scale: f32,
    /// How many keys a query attends to, the one at its own place and those before it; `None` for all.
    pub window: Option<usize>,
    /// What scores are kept below in size, smoothly.
    pub cap: Option<f32>,
}

impl Shape {
    /// The first key that the query at a place of its sequence attends to.
    #[inline]
    pub(crate) fn first_key(&self, place: usize) -> usize {
        self.window.map_or(0, |window| (place + 1).saturating_sub(window))
    }

    /// The same, with the keys before it that stand in one vector with it.
    #[inline]
    fn first_vector(&self, place: usize) -> usize {
        self.first_key(place) / 16 * 16
    }

    /// Checks where keys are chosen, of tokens at `places` of their sequences.
    fn check_chosen(&self, sinks: Option<&[f32]>, chosen: &Chosen, places: impl Iterator<Item = usize>) {
        let Shape { heads, kv_heads, window, cap, .. } = *self;
        assert!(heads == kv_heads, "keys are chosen for {heads} heads over {kv_heads}");
        let others = window.is_none() && cap.is_none() && sinks.is_none();
        assert!(others, "chosen keys with a window, a cap or sinks: {self:?}");
        chosen.check(places);
    }

    /// Checks what scores are made with.
    fn check_scores(&self) {
        assert!(self.scale > 0.0, "scale {}", self.scale);
        assert!(self.window != Some(0), "a window of no keys");
        assert!(self.cap.is_none_or(|cap| cap > 0.0), "a cap of {:?}", self.cap);
    }
}

/// The heads of one projection: element (t, h, i) is `data[t * row_stride + offset + h * head_stride + i]`.
#[derive(Clone, Copy)]
pub struct Heads<'a> {
    /// The rows of all tokens.
    pub data: &'a [f32],
    /// From one token to the next.
    pub row_stride: usize,
    /// Where the first head begins in a row.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// Width of a head.
    pub dim: usize,
}

impl<'a> Heads<'a> {
    /// Heads side by side in rows of their own.
    pub fn contiguous(data: &'a [f32], heads: usize, dim: usize) -> Self {
        Heads { data, row_stride: heads * dim, offset: 0, head_stride: dim, dim }
    }

    /// Head h of token t.
    #[inline]
    pub fn row(&self, t: usize, h: usize) -> &'a [f32] {
        &self.data[t * self.row_stride + self.offset + h * self.head_stride..][..self.dim]
    }

    /// Checks that `rows` rows of `heads` heads are there.
    fn check(&self, name: &str, heads: usize, rows: usize) {
        let row = self.offset + (heads - 1) * self.head_stride + self.dim;
        let needed = if rows == 0 { 0 } else { (rows - 1) * self.row_stride + row };
        assert!(self.data.len() >= needed, "{name} has {} of {needed} elements", self.data.len());
    }

    /// Element i of head h of token t.
    #[inline]
    pub fn get(&self, t: usize, h: usize, i: usize) -> f32 {
        self.data[t * self.row_stride + self.offset + h * self.head_stride + i]
    }
}

/// As [`Heads`], to be written. What it writes to is borrowed, and no other view has the same elements: it is made of a
/// buffer alone, or with another one as [interleaved parts](HeadsMut::pair_like) of one buffer.
pub struct HeadsMut<'a> {
    data: SharedMut<'a, f32>,
    row_stride: usize,
    offset: usize,
    head_stride: usize,
    dim: usize,
    /// What a head has to itself, from `offset` on or before: `dim`, or with another view of the buffer `head_stride`.
    width: usize,
}

impl<'a> HeadsMut<'a> {
    /// Heads that lie in `data` as those of `like` do in theirs, such as gradients.
    pub fn like(data: &'a mut [f32], like: &Heads) -> Self {
        Self::of(SharedMut::new(data), like, like.dim)
    }

    /// Two parts of the heads in one buffer, such as the gradients of keys and values that one product made.
    ///
    /// # Panics
    /// If rows or heads of the two have different strides, or their parts of a head overlap.
    pub fn pair_like(data: &'a mut [f32], first: &Heads, second: &Heads) -> (Self, Self) {
        let strides = |heads: &Heads| (heads.row_stride, heads.head_stride);
        assert!(strides(first) == strides(second), "strides {:?} and {:?}", strides(first), strides(second));
        let (low, high) = if first.offset <= second.offset { (first, second) } else { (second, first) };
        let apart = low.offset + low.dim <= high.offset && high.offset + high.dim <= low.offset + low.head_stride;
        assert!(apart, "{} numbers at {} and {} at {} overlap", low.dim, low.offset, high.dim, high.offset);
        let data = SharedMut::new(data);
        (Self::of(data, first, first.head_stride), Self::of(data, second, second.head_stride))
    }

    fn of(data: SharedMut<'a, f32>, like: &Heads, width: usize) -> Self {
        let Heads { row_stride, offset, head_stride, dim, .. } = *like;
        HeadsMut { data, row_stride, offset, head_stride, dim, width }
    }

    /// Checks that `rows` rows of `heads` heads are there and that no two share an element, with another view of the
    /// buffer or without: what [`HeadsMut::row`] relies on.
    pub(crate) fn check(&self, name: &str, heads: usize, rows: usize) {
        let HeadsMut { row_stride, offset, head_stride, dim, width, .. } = *self;
        let (last_head, last_row) = (heads.saturating_sub(1) * head_stride, rows.saturating_sub(1) * row_stride);
        let needed = if rows == 0 || heads == 0 { 0 } else { last_row + offset + last_head + dim };
        assert!(self.data.len() >= needed, "{name} has {} of {needed} elements", self.data.len());
        let rows_apart = (heads <= 1 || head_stride >= width) && (rows <= 1 || row_stride >= last_head + width);
        // Or all rows of the first head, then those of the second.
        let alone = width == dim;
        let heads_apart = alone && (rows <= 1 || row_stride >= dim) && (heads <= 1 || head_stride >= last_row + dim);
        assert!(rows_apart || heads_apart, "heads of {name} overlap: {dim} wide, {head_stride} apart in {row_stride}");
    }

    /// Head h of token t.
    ///
    /// # Safety
    /// The view was [checked](HeadsMut::check) for more rows than t and more heads than h, and nobody else uses this
    /// head of this token at the same time.
    #[inline]
    #[allow(clippy::mut_from_ref)]
    unsafe fn row(&self, t: usize, h: usize) -> &mut [f32] {
        // SAFETY: of the elements of one view, those of a head and token are no others' (checked), and of one buffer's
        // views each has its own (`pair_like`); so this piece is used by nobody but who calls for this t and h.
        unsafe { self.data.slice(t * self.row_stride + self.offset + h * self.head_stride, self.dim) }
    }

    /// Writes element i of head h of token t, of a view that was [checked](HeadsMut::check) for them.
    #[inline]
    pub(crate) fn set(&mut self, t: usize, h: usize, i: usize, value: f32) {
        // SAFETY: the view is borrowed alone, and no other has its elements.
        unsafe { self.row(t, h)[i] = value }
    }
}

/// Keys: each head's own part, then (in MLA) one rotary part a token that all heads share.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// The part of each head.
    pub own: Heads<'a>,
    /// The part shared by all heads; its `head_stride` is not used.
    pub shared: Option<Heads<'a>>,
}

/// `out[T, heads·v]` and, for the backward pass, `stats[T, heads, 2]`: row maximum and 1/sum.
/// `starts` holds where each sequence begins, and T at its end; `sinks` has one for each head; keys that are not among
/// the chosen ones, if there are such, have no weight.
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
    let tokens = check_sequences(starts);
    check_operands(&shape, (&q, tokens), (&k, &v, tokens));
    check_sinks(&shape, sinks);
    if let Some(chosen) = chosen {
        shape.check_chosen(sinks, chosen, places(starts));
    }
    assert!(out.len() == tokens * shape.heads * v.dim, "out has {} elements", out.len());
    assert!(stats.len() == tokens * shape.heads * 2, "stats has {} elements", stats.len());
    let results = Results { out: SharedMut::new(out), stats: SharedMut::new(stats) };
    for_each_head(&shape, starts, |first, len, kv| {
        forward_task(&shape, sinks, chosen, Span { first, len }, kv, &q, &k, &v, results);
    });
}

/// Sets the gradients of q, k and v from that of the output.
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
    dq: HeadsMut,
    dk: HeadsMut,
    dk_shared: Option<HeadsMut>,
    dv: HeadsMut,
) {
    let tokens = check_sequences(starts);
    check_operands(&shape, (&q, tokens), (&k, &v, tokens));
    if let Some(chosen) = chosen {
        shape.check_chosen(None, chosen, places(starts));
    }
    for (name, data) in [("out", out), ("d_out", d_out)] {
        assert!(data.len() == tokens * shape.heads * v.dim, "{name} has {} elements", data.len());
    }
    assert!(stats.len() == tokens * shape.heads * 2, "stats has {} elements", stats.len());
    for (name, h, heads) in [("dq", &dq, shape.heads), ("dk", &dk, shape.kv_heads), ("dv", &dv, shape.kv_heads)] {
        h.check(name, heads, tokens);
    }
    assert!((dq.dim, dk.dim, dv.dim) == (q.dim, k.own.dim, v.dim), "gradients are as wide as what they are of");
    let shared_dim = k.shared.map_or(0, |shared| shared.dim);
    if let Some(dk_shared) = &dk_shared {
        dk_shared.check("dk_shared", 1, tokens);
        assert!(dk_shared.dim == shared_dim, "dk_shared is {} wide, not {shared_dim}", dk_shared.dim);
    }
    let mut shared_parts = vec![0.0; shape.kv_heads * tokens * shared_dim];
    let gradients = Gradients { dq, dk, dv, shared: SharedMut::new(&mut shared_parts), tokens };
    let forward = Forward { chosen, q, k, v, out, stats, d_out };
    for_each_head(&shape, starts, |first, len, kv| {
        backward_task(&shape, Span { first, len }, kv, &forward, &gradients);
    });
    if let Some(dk_shared) = dk_shared {
        par::run(tokens.div_ceil(64), |block| {
            for t in block * 64..(block * 64 + 64).min(tokens) {
                // SAFETY: checked above for one head of all tokens; this task alone has this block of them.
                let row = unsafe { dk_shared.row(t, 0) };
                row.fill(0.0);
                for part in shared_parts.chunks_exact(tokens * shared_dim) {
                    row.iter_mut().zip(&part[t * shared_dim..]).for_each(|(sum, part)| *sum += part);
                }
            }
        });
    }
}

/// The tokens of one sequence.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    len: usize,
}

#[derive(Clone, Copy)]
struct Results<'a> {
    out: SharedMut<'a, f32>,
    stats: SharedMut<'a, f32>,
}

/// What the backward pass reads.
struct Forward<'a> {
    chosen: Option<&'a Chosen>,
    q: Heads<'a>,
    k: Keys<'a>,
    v: Heads<'a>,
    out: &'a [f32],
    stats: &'a [f32],
    d_out: &'a [f32],
}

/// What the backward pass writes; the shared key's gradient by heads, `[KV, tokens, shared]`.
struct Gradients<'a> {
    dq: HeadsMut<'a>,
    dk: HeadsMut<'a>,
    dv: HeadsMut<'a>,
    shared: SharedMut<'a, f32>,
    tokens: usize,
}

fn check_sequences(starts: &[u32]) -> usize {
    assert!(starts.first() == Some(&0) && starts.is_sorted(), "sequence starts {starts:?} do not ascend from 0");
    starts[starts.len() - 1] as usize
}

/// Where each token stands in its sequence.
fn places(starts: &[u32]) -> impl Iterator<Item = usize> {
    starts.windows(2).flat_map(|ends| 0..(ends[1] - ends[0]) as usize)
}

fn check_operands(shape: &Shape, (q, queries): (&Heads, usize), (k, v, keys): (&Keys, &Heads, usize)) {
    let Shape { heads, kv_heads, .. } = *shape;
    assert!(kv_heads > 0 && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads} key-value heads");
    shape.check_scores();
    let shared = k.shared.map_or(0, |shared| shared.dim);
    assert!(q.dim == k.own.dim + shared, "query width {}, key width {} + {shared}", q.dim, k.own.dim);
    q.check("q", heads, queries);
    k.own.check("k", kv_heads, keys);
    v.check("v", kv_heads, keys);
    if let Some(shared) = &k.shared {
        shared.check("shared k", 1, keys);
    }
}

/// Calls `task(first token, length, kv head)` for each sequence and head.
fn for_each_head(shape: &Shape, starts: &[u32], task: impl Fn(usize, usize, usize) + Sync) {
    par::run((starts.len() - 1) * shape.kv_heads, |i| {
        let (sequence, kv) = (i / shape.kv_heads, i % shape.kv_heads);
        let (first, end) = (starts[sequence] as usize, starts[sequence + 1] as usize);
        if first < end {
            task(first, end - first, kv);
        }
    });
}

fn forward_task(
    shape: &Shape,
    sinks: Option<&[f32]>,
    chosen: Option<&Chosen>,
    span: Span,
    kv: usize,
    q: &Heads,
    k: &Keys,
    v: &Heads,
    results: Results,
) {
    // SAFETY: the operands were checked; each task has a sequence and a key-value head of its own, and so rows of its
    // own in the results.
    unsafe {
        crate::lanes::dispatch!(forward_head(
            shape: &Shape,
            sinks: Option<&[f32]>,
            chosen: Option<&Chosen>,
            span: Span,
            kv: usize,
            q: &Heads,
            k: &Keys,
            v: &Heads,
            results: Results
        ))
    }
}

fn backward_task(shape: &Shape, span: Span, kv: usize, forward: &Forward, gradients: &Gradients) {
    // SAFETY: the operands were checked; each task has a sequence and a key-value head of its own, and so rows of its
    // own in the gradients.
    unsafe {
        crate::lanes::dispatch!(backward_head(
            shape: &Shape, span: Span, kv: usize, forward: &Forward, gradients: &Gradients
        ))
    }
}

/// Rows of a tile of scores.
const TILE: usize = 12;
/// Queries whose weights the backward pass holds at a time: the terms by which a chain of key gradients grows at once.
const BLOCK: usize = 4 * TILE;

fn addresses<'a>(rows: usize, row: impl Fn(usize) -> &'a [f32]) -> [*const u32; TILE] {
    std::array::from_fn(|r| if r < rows { row(r).as_ptr().cast() } else { std::ptr::null() })
}

/// A place in the output to be written anew.
fn fresh(at: *mut f32, stride: usize, columns: usize) -> Out {
    Out { at, stride, columns, continues: false }
}

/// # Safety
/// The machine has the instruction set of `L`; the operands were checked; no other task has this head of this
/// sequence.
#[inline(always)]
unsafe fn forward_head<L: Lanes>(
    shape: &Shape,
    sinks: Option<&[f32]>,
    chosen: Option<&Chosen>,
    span: Span,
    kv: usize,
    q: &Heads,
    k: &Keys,
    v: &Heads,
    to: Results,
) {
    let Span { first, len } = span;
    let width = len.next_multiple_of(16);
    let mut scores = scratch::buffer(TILE * width);
    let group = shape.heads / shape.kv_heads;
    // SAFETY: `scores` has a tile's rows, each padded to whole vectors of keys; the operands were checked for all
    // tokens of the sequence, and this head's part of the results is this task's, as this function's contract asks.
    unsafe {
        let keys = Panels::of_columns::<L>(&gather_keys(k, first, len, kv), q.dim);
        let values = Panels::of_rows::<L>(&gather(v, first, len, kv), v.dim);
        for h in kv * group..(kv + 1) * group {
            for i in (0..len).step_by(TILE) {
                let rows = TILE.min(len - i);
                let seen = |r: usize| shape.first_key(i + r)..i + r + 1;
                // The scores are those of the keys from `from` on.
                let (from, end) = (shape.first_vector(i), seen(rows - 1).end);
                let padded = end.next_multiple_of(16) - from;
                let at = |r: usize| (first + i + r) * shape.heads + h;

                let tile = addresses(rows, |r| q.row(first + i + r, h));
                let out = fresh(scores.as_mut_ptr(), width, padded);
                keys.multiply::<L>(rows, from, 0..q.dim, LeftWords::Rows(&tile), out);
                let mut inverses = [0.0; TILE];
                for (r, kept) in inverses[..rows].iter_mut().enumerate() {
                    let seen = seen(r).start - from..seen(r).end - from;
                    let row = &mut scores[r * width..][..padded];
                    if let Some(chosen) = chosen {
                        chosen.keep(first + i + r, row, f32::NEG_INFINITY);
                    }
                    let (max, inverse) = softmax::<L>(row, seen, shape, sink_of(sinks, h));
                    *kept = inverse;
                    to.stats.slice(2 * at(r), 2).copy_from_slice(&[max, inverse]);
                }
                let tile = addresses(rows, |r| &scores[r * width..]);
                let out = fresh(to.out.at(at(0) * v.dim), shape.heads * v.dim, v.dim);
                values.multiply::<L>(rows, 0, from..end, LeftWords::Rows(&tile), out);
                for (r, inverse) in inverses[..rows].iter().enumerate() {
                    to.out.slice(at(r) * v.dim, v.dim).iter_mut().for_each(|o| *o *= inverse);
                }
            }
        }
    }
}

/// Turns a row of products into weights that are not yet divided by their sum; those not seen become 0. Gives the
/// maximum and one over the sum, both with the sink's.
///
/// # Safety
/// The machine has the instruction set of `L`; the row's length is a multiple of 16.
#[inline(always)]
unsafe fn softmax<L: Lanes>(row: &mut [f32], seen: Range<usize>, shape: &Shape, sink: f32) -> (f32, f32) {
    let scale = match shape.cap {
        None => shape.scale,
        Some(cap) => {
            // SAFETY: the row's length and instructions by this function's contract.
            unsafe { softcap::cap_products::<L>(row, shape.scale, cap) };
            1.0
        }
    };
    row[..seen.start].fill(f32::NEG_INFINITY);
    row[seen.end..].fill(f32::NEG_INFINITY);
    // SAFETY: `as_chunks_mut` gives whole vectors; instructions by this function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for s in row.as_chunks_mut::<16>().0 {
            let scaled = L::load(s.as_ptr()).mul(L::splat(scale));
            max = scaled.max(max);
            scaled.store(s.as_mut_ptr());
        }
        let max = max.max_lane();
        let max = if sink > max { sink } else { max };
        let mut sum = L::splat(0.0);
        for s in row.as_chunks_mut::<16>().0 {
            let p = math::exp(L::load(s.as_ptr()).sub(L::splat(max)));
            sum = sum.add(p);
            p.store(s.as_mut_ptr());
        }
        (max, 1.0 / (sum.sum() + math::scalar::exp(sink - max)))
    }
}

/// # Safety
/// The machine has the instruction set of `L`; the operands were checked; no other task has this head of this
/// sequence.
#[inline(always)]
unsafe fn backward_head<L: Lanes>(shape: &Shape, span: Span, kv: usize, forward: &Forward, to: &Gradients) {
    let Span { first, len } = span;
    let Forward { q, k, v, .. } = forward;
    let group = shape.heads / shape.kv_heads;
    let mut dk = scratch::zeros(len * q.dim);
    let mut dv = scratch::zeros(len * v.dim);
    // SAFETY: the buffers have all rows of the sequence; the operands were checked for all its tokens, and this head's
    // part of the gradients is this task's, as this function's contract asks.
    unsafe {
        let (key_rows, value_rows) = (gather_keys(k, first, len, kv), gather(v, first, len, kv));
        let right = BackwardPanels {
            keys_down: Panels::of_columns::<L>(&key_rows, q.dim),
            values_down: Panels::of_columns::<L>(&value_rows, v.dim),
            keys: Panels::of_rows::<L>(&key_rows, q.dim),
        };
        for h in kv * group..(kv + 1) * group {
            for start in (0..len).step_by(BLOCK) {
                let block = start..(start + BLOCK).min(len);
                backward_block::<L>(shape, first, block, h, forward, &right, (&mut dk, &mut dv), to);
            }
        }
    }
    for t in 0..len {
        let (own, shared) = dk[t * q.dim..][..q.dim].split_at(k.own.dim);
        // SAFETY: the views were checked; this task alone has this head of this sequence's tokens.
        unsafe {
            to.dk.row(first + t, kv).copy_from_slice(own);
            to.dv.row(first + t, kv).copy_from_slice(&dv[t * v.dim..][..v.dim]);
            to.shared.slice((kv * to.tokens + first + t) * shared.len(), shared.len()).copy_from_slice(shared);
        }
    }
}

/// The right operands of a head's backward products.
struct BackwardPanels {
    /// Terms: the dimensions of a key; columns: the keys.
    keys_down: Panels,
    values_down: Panels,
    /// Terms: the keys; columns: their dimensions.
    keys: Panels,
}

/// The share of a block of queries in the gradients of one head.
///
/// # Safety
/// As for [`backward_head`].
#[inline(always)]
unsafe fn backward_block<L: Lanes>(
    shape: &Shape,
    first: usize,
    block: Range<usize>,
    h: usize,
    forward: &Forward,
    right: &BackwardPanels,
    (dk, dv): (&mut [f32], &mut [f32]),
    to: &Gradients,
) {
    let Forward { chosen, q, v, out, stats, d_out, .. } = *forward;
    // Weights are those of the keys from `from` on.
    let from = shape.first_vector(block.start);
    let width = block.end.next_multiple_of(16) - from;
    let mut p = scratch::buffer(block.len() * width);
    let mut ds = scratch::buffer(block.len() * width);
    let at = |i: usize| (first + i) * shape.heads + h;
    let d_out_row = |i: usize| &d_out[at(i) * v.dim..][..v.dim];
    // SAFETY: a block's rows of p and ds are as wide as whole tiles of keys; operands and places by the contract of
    // `backward_head`.
    unsafe {
        for tile in block.clone().step_by(TILE).map(|i| i..(i + TILE).min(block.end)) {
            let (i, rows, padded) = (tile.start, tile.len(), tile.end.next_multiple_of(16) - from);
            let top = (i - block.start) * width;
            let queries = addresses(rows, |r| q.row(first + i + r, h));
            let scores = fresh(p[top..].as_mut_ptr(), width, padded);
            right.keys_down.multiply::<L>(rows, from, 0..q.dim, LeftWords::Rows(&queries), scores);
            let d_outs = addresses(rows, |r| d_out_row(i + r));
            let dp = fresh(ds[top..].as_mut_ptr(), width, padded);
            right.values_down.multiply::<L>(rows, from, 0..v.dim, LeftWords::Rows(&d_outs), dp);
            for r in 0..rows {
                let (p, ds) = (&mut p[top + r * width..][..width], &mut ds[top + r * width..][..width]);
                let delta = dot::<L>(&out[at(i + r) * v.dim..][..v.dim], d_out_row(i + r));
                let stats = (stats[2 * at(i + r)], stats[2 * at(i + r) + 1]);
                let seen = shape.first_key(i + r) - from..i + r + 1 - from;
                weight_gradients::<L>(p, ds, seen, shape, stats, delta);
                if let Some(chosen) = chosen {
                    [p, ds].into_iter().for_each(|row| chosen.keep(first + i + r, row, 0.0));
                }
            }
            let ds_rows = addresses(rows, |r| &ds[top + r * width..]);
            // The address in the whole buffer, since a tile writes to more rows than the first.
            let at = (first + i) * to.dq.row_stride + to.dq.offset + h * to.dq.head_stride;
            let dq = fresh(to.dq.data.at(at), to.dq.row_stride, q.dim);
            right.keys.multiply::<L>(rows, 0, from..tile.end, LeftWords::Rows(&ds_rows), dq);
        }
        let q_panels = Panels::of_rows::<L>(&gather(&q, first + block.start, block.len(), h), q.dim);
        let d_out_heads = Heads::contiguous(d_out, shape.heads, v.dim);
        let d_out_panels = Panels::of_rows::<L>(&gather(&d_out_heads, first + block.start, block.len(), h), v.dim);
        for j in (from..block.end).step_by(TILE) {
            // Queries before the tile's first key have weight 0.
            let r = j.saturating_sub(block.start);
            let rows = TILE.min(block.end - j);
            let column = |weights: &[f32]| LeftWords::Columns {
                first: weights[r * width + j - from..].as_ptr().cast(),
                stride: width,
            };
            let grow = |at: *mut f32, columns| Out { at, stride: columns, columns, continues: true };
            let (dv, dk) = (grow(dv[j * v.dim..].as_mut_ptr(), v.dim), grow(dk[j * q.dim..].as_mut_ptr(), q.dim));
            d_out_panels.multiply::<L>(rows, 0, r..block.len(), column(&p), dv);
            q_panels.multiply::<L>(rows, 0, r..block.len(), column(&ds), dk);
        }
    }
}

/// From products q·k and g·v of a row to weights p and gradients ds of the products; those not seen become 0.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn weight_gradients<L: Lanes>(
    p: &mut [f32],
    ds: &mut [f32],
    seen: Range<usize>,
    shape: &Shape,
    (max, inverse): (f32, f32),
    delta: f32,
) {
    let padded = seen.end.next_multiple_of(16);
    if let Some(cap) = shape.cap {
        // SAFETY: both rows are cut to `padded` elements, whole vectors; instructions by this function's contract.
        unsafe {
            softcap::weight_gradients::<L>(&mut p[..padded], &mut ds[..padded], shape.scale, cap, (max, inverse), delta)
        };
        return zero_unseen([p, ds], seen);
    }
    let scale = shape.scale;
    // SAFETY: both rows are cut to `padded` elements, whole vectors; instructions by this function's contract.
    unsafe {
        for (p, ds) in p[..padded].as_chunks_mut::<16>().0.iter_mut().zip(ds[..padded].as_chunks_mut::<16>().0) {
            let scaled = L::load(p.as_ptr()).mul(L::splat(scale));
            let weight = math::exp(scaled.sub(L::splat(max))).mul(L::splat(inverse));
            weight.store(p.as_mut_ptr());
            let difference = L::load(ds.as_ptr()).sub(L::splat(delta));
            weight.mul(difference).mul(L::splat(scale)).store(ds.as_mut_ptr());
        }
    }
    zero_unseen([p, ds], seen);
}

fn zero_unseen(rows: [&mut [f32]; 2], seen: Range<usize>) {
    for row in rows {
        row[..seen.start].fill(0.0);
        row[seen.end..].fill(0.0);
    }
}

/// Σ a·b by 16 partial sums and the fixed tree.
///
/// # Safety
/// The machine has the instruction set of `L`; a and b have one length.
#[inline(always)]
unsafe fn dot<L: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: whole vectors of both, then what is left; instructions by this function's contract.
    unsafe {
        let mut sum = L::splat(0.0);
        let whole = a.len() / 16 * 16;
        for i in (0..whole).step_by(16) {
            sum = L::load(a[i..].as_ptr()).fma(L::load(b[i..].as_ptr()), sum);
        }
        let rest = a.len() - whole;
        if rest > 0 {
            let (a, b) = (&a[whole..], &b[whole..]);
            sum = L::load_first(a.as_ptr(), rest).fma(L::load_first(b.as_ptr(), rest), sum);
        }
        sum.sum()
    }
}

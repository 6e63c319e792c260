//! Causal attention over packed sequences: softmax(scale · q·k) v for each head, with key and value widths of their own.
//!
//! **Order of sums.** Scores are chains of fused multiply-adds over the head's dimensions (own part, then the shared rotary
//! part), times `scale`; the row maximum; weights `exp(score − max)`; their sum by 16 partial sums over the keys from the
//! sequence's first, and the fixed tree; outputs are chains over the keys, divided by multiplying with 1/sum. A row depends on its
//! query and on the keys of its own sequence up to itself: not on what it is packed, batched or cached with.
//!
//! Backward recomputes the weights from the saved maximum and 1/sum (FlashAttention-2, algorithm 2, without its
//! blockwise rescaling): p = exp(s − max)·inverse, ds = p·(g·v − g·out)·scale; dk and dv are chains over
//! the queries, of a group's heads one after the other; the shared key's gradient adds the heads in order.

use crate::par::SharedMut;
use crate::reference;

/// Heads and the factor on their scores.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Query heads.
    pub heads: usize,
    /// Key-value heads; each serves heads / kv_heads query heads.
    pub kv_heads: usize,
    /// Factor on the scores, usually 1/√dim.
    pub scale: f32,
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

    /// Element i of head h of token t.
    #[inline]
    pub fn get(&self, t: usize, h: usize, i: usize) -> f32 {
        self.data[t * self.row_stride + self.offset + h * self.head_stride + i]
    }
}

/// As [`Heads`], to be written. Several may be interleaved parts of one buffer.
#[derive(Clone, Copy)]
pub struct HeadsMut {
    /// The rows of all tokens.
    pub data: SharedMut<f32>,
    /// From one token to the next.
    pub row_stride: usize,
    /// Where the first head begins in a row.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// Width of a head.
    pub dim: usize,
}

impl HeadsMut {
    /// Writes element i of head h of token t.
    #[inline]
    pub fn set(&self, t: usize, h: usize, i: usize, value: f32) {
        // SAFETY: one element; tasks of a kernel write to disjoint heads and sequences.
        unsafe { self.data.slice(t * self.row_stride + self.offset + h * self.head_stride + i, 1)[0] = value }
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
/// `starts` holds where each sequence begins, and T at its end.
pub fn forward(shape: Shape, starts: &[u32], q: Heads, k: Keys, v: Heads, out: &mut [f32], stats: &mut [f32]) {
    reference::attention::forward(shape, starts, q, k, v, out, stats);
}

/// Sets the gradients of q, k and v from that of the output.
pub fn backward(
    shape: Shape,
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
    reference::attention::backward(shape, starts, q, k, v, out, stats, d_out, dq, dk, dk_shared, dv);
}

/// [`forward`] for the last `n` tokens of one sequence of `len`, whose keys and values are all there: `q` and
/// `out[n, heads·v]` have n rows, `k` and `v` have len.
pub fn cached(shape: Shape, q: Heads, n: usize, k: Keys, v: Heads, len: usize, out: &mut [f32]) {
    assert!(n <= len, "{n} new tokens in a sequence of {len}");
    reference::attention::cached(shape, q, n, k, v, len, out);
}

//! What models with compressed keys and several residual streams need (DeepSeek-V4).

use std::ops::Range;

use crate::{
    CachePages, Chosen, Compression, Dispatch, EntryAttention, Ids, IndexOperands, Indexer, Mixing, Router, RowLayout,
    ScoreGradients, Sequence, Span, Start, Stretch, Tensor,
};

/// Queries, keys and values of attention over a window and entries.
#[derive(Clone, Copy, Debug)]
pub struct EntryOperands<'a> {
    /// `[T, H·d]`.
    pub q: &'a Tensor,
    /// `[R, d]`: keys and values of tokens.
    pub rows: &'a Tensor,
    /// `[E, d]`: of entries; none where there are no entries.
    pub entries: Option<&'a Tensor>,
    /// The entries that queries attend to, if not to all.
    pub chosen: Option<&'a Chosen>,
    /// `[H]`.
    pub sinks: &'a Tensor,
}

/// What attention has given, and the gradient of its output.
#[derive(Clone, Copy, Debug)]
pub struct EntryResults<'a> {
    /// `[T, H·d]`.
    pub out: &'a Tensor,
    /// `[T, H·2]`, as [`Attention::attention`](crate::Attention::attention) leaves them.
    pub stats: &'a Tensor,
    /// `[T, H·d]`.
    pub d_out: &'a Tensor,
}

/// Rows of each of some sequences, in their order.
#[derive(Clone, Copy, Debug)]
pub struct PageRows<'a> {
    pub layout: RowLayout,
    pub sequences: &'a [Sequence<'a>],
    /// Which rows of each.
    pub rows: &'a [Range<usize>],
}

/// Operations of models with compressed keys; see `wels_kernels::streams`, `compress` and `attention::compressed` for
/// formulas and orders of sums.
pub trait Compressed {
    /// `weights[T, M]` of `raw[T, M]`, `base[M]` and the scales.
    fn weigh_streams(&self, of: Mixing, raw: &Tensor, base: &Tensor, scale: &Tensor, weights: &mut Tensor);

    /// Backward of [`Compressed::weigh_streams`] for `operands`, raw, base and scales: the gradients of raw `[T, M]`,
    /// and what each token adds to that of base `[T, M]` and to those of the scales.
    fn weigh_streams_backward(
        &self,
        of: Mixing,
        operands: [&Tensor; 3],
        d_weights: &Tensor,
        gradients: [&mut Tensor; 3],
    );

    /// `y[T, D]`: what a layer reads of the streams `x[T, n·D]`.
    fn collapse(&self, of: Mixing, x: &Tensor, weights: &Tensor, y: &mut Tensor);

    /// Backward of [`Compressed::collapse`] for `operands`, x and weights.
    fn collapse_backward(
        &self,
        of: Mixing,
        dy: &Tensor,
        operands: [&Tensor; 2],
        dx: (&mut Tensor, Start),
        d_weights: &mut Tensor,
    );

    /// `out[T, n·D]`: the next streams, of `x[T, n·D]` and what a layer gives, `y[T, D]`.
    fn expand(&self, of: Mixing, x: &Tensor, y: &Tensor, weights: &Tensor, out: &mut Tensor);

    /// Backward of [`Compressed::expand`] for `operands`, x, y and weights.
    fn expand_backward(
        &self,
        of: Mixing,
        d_out: &Tensor,
        operands: [&Tensor; 3],
        dx: (&mut Tensor, Start),
        dy: &mut Tensor,
        d_weights: &mut Tensor,
    );

    /// `entries[E, d]` of `operands`, kv and gate `[R, c·d]` and bias `[m, c·d]`.
    fn compress(&self, of: Compression, stretches: &[Stretch], operands: [&Tensor; 3], entries: &mut Tensor);

    /// Backward of [`Compressed::compress`], from the entries and their gradient: of kv and gate.
    fn compress_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        operands: [&Tensor; 3],
        entries: [&Tensor; 2],
        gradients: [&mut Tensor; 2],
    );

    /// The bias's gradient from that of gate: a chain over the windows.
    fn compress_bias_backward(
        &self,
        of: Compression,
        stretches: &[Stretch],
        d_gate: &Tensor,
        d_bias: (&mut Tensor, Start),
    );

    /// The entries that queries attend to; keys are the entries'.
    fn choose_entries(&self, of: Indexer, rate: usize, spans: &[Span], operands: IndexOperands) -> Chosen;

    /// `losses[T, 1]`: how far the scores' softmax is from the weights of an attention, which has left `stats`, to the
    /// chosen of its entries.
    fn entry_losses(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        stats: &Tensor,
        losses: &mut Tensor,
    ) -> ScoreGradients;

    /// The gradients of what entries were chosen by, in their order, from `factor` times those of the scores.
    fn choose_entries_backward(
        &self,
        of: Indexer,
        chosen: &Chosen,
        spans: &[Span],
        scores: (&ScoreGradients, f32),
        operands: IndexOperands,
        gradients: [&mut Tensor; 3],
    );

    /// `out[T, H·d]` and `stats[T, H·2]`.
    fn attend_entries(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        out: &mut Tensor,
        stats: &mut Tensor,
    );

    /// Backward of [`Compressed::attend_entries`], but for the sinks: of queries, rows and, where there are any,
    /// entries.
    fn attend_entries_backward(
        &self,
        of: EntryAttention,
        spans: &[Span],
        operands: EntryOperands,
        results: EntryResults,
        gradients: [&mut Tensor; 2],
        d_entries: Option<&mut Tensor>,
    );

    /// [`Experts::route`](crate::Experts::route) where `table[V, K]` says for each id which experts its tokens go to.
    fn route_by_table(
        &self,
        router: &Router,
        logits: &Tensor,
        table: (&Tensor, &Ids),
        scores: &mut Tensor,
        weights: &mut Tensor,
    ) -> Dispatch;

    /// Writes rows `x[R, width]` to pages.
    fn put_rows(&self, pages: &mut CachePages, at: PageRows, x: &Tensor);

    /// Reads rows `y[R, width]` from pages.
    fn take_rows(&self, pages: &CachePages, at: PageRows, y: &mut Tensor);
}

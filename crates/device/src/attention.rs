//! Causal attention over packed sequences and over the pages of a KV cache.
//!
//! Operands are f32, or all bf16 on devices that have it: then outputs and gradients are bf16 too, pages are those of
//! [`CacheDtype::Bf16`], and attention over pages has the bits of [`Attention::attention`] as in f32.

use std::ops::Range;

use crate::{AttentionShape, CacheDtype, Chosen, Dtype, Ids, KvLayout, LatentLayout, Memory, Sequence, Tensor};

/// The heads that lie in the columns `offset + h·head_stride ..+ dim` of a tensor's rows.
#[derive(Clone, Copy, Debug)]
pub struct ColumnHeads<'a> {
    /// Rows of all tokens.
    pub of: &'a Tensor,
    /// First column of the first head.
    pub offset: usize,
    /// From one head to the next.
    pub head_stride: usize,
    /// Width of a head.
    pub dim: usize,
}

/// Queries, keys and values of one attention.
#[derive(Clone, Copy, Debug)]
pub struct AttentionInputs<'a> {
    /// Queries, as wide as a key with its shared part.
    pub q: ColumnHeads<'a>,
    /// Each head's own part of the keys.
    pub k: ColumnHeads<'a>,
    /// The part that all heads' keys share (MLA's rotary key), after their own.
    pub k_shared: Option<ColumnHeads<'a>>,
    /// Values; may lie in the same tensor as the keys.
    pub v: ColumnHeads<'a>,
    /// `[H]` in f32: for each head a score that every query has beside those of the keys, for nothing.
    pub sinks: Option<&'a Tensor>,
    /// The keys that queries attend to, if not to all: only on a device with
    /// [`SparseAttention`](crate::SparseAttention).
    pub chosen: Option<&'a Chosen>,
}

/// Where the gradients go: tensors of the shapes of the inputs' tensors, in the same columns.
pub struct AttentionGradients<'a> {
    /// Of the queries.
    pub q: &'a mut Tensor,
    /// Of the keys, and of the values where these lie in the same tensor.
    pub k: &'a mut Tensor,
    /// Of the shared part, if there is one.
    pub k_shared: Option<&'a mut Tensor>,
    /// Of the values, where they lie in a tensor of their own.
    pub v: Option<&'a mut Tensor>,
}

/// The number format of a KV cache that keeps keys and values as they were computed.
pub fn exact_cache(activations: Dtype) -> CacheDtype {
    match activations {
        Dtype::F32 => CacheDtype::F32,
        Dtype::Bf16 => CacheDtype::Bf16,
    }
}

/// Memory for the pages of a KV cache.
pub struct CachePages {
    pub count: usize,
    /// The device's.
    pub memory: Memory,
}

/// New tokens of some sequences, and a layer's part of their pages.
#[derive(Clone, Copy, Debug)]
pub struct PagedSequences<'a> {
    /// Where the layer's part of a page begins.
    pub offset: usize,
    pub sequences: &'a [Sequence<'a>],
}

/// Queries over pages of expanded keys and values.
#[derive(Clone, Copy, Debug)]
pub struct ExpandedQuery<'a> {
    /// Heads and scale.
    pub shape: AttentionShape,
    /// Queries.
    pub q: ColumnHeads<'a>,
    /// As in [`AttentionInputs`].
    pub sinks: Option<&'a Tensor>,
    /// As in [`AttentionInputs`].
    pub chosen: Option<&'a Chosen>,
}

/// Queries over pages of latents.
#[derive(Clone, Copy, Debug)]
pub struct LatentQuery<'a> {
    /// H.
    pub heads: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// `[H·T, latent]`, the heads one below the other: queries times the keys' up-projection.
    pub absorbed: &'a Tensor,
    /// The queries' rotary parts.
    pub rotary: ColumnHeads<'a>,
    /// As in [`AttentionInputs`].
    pub chosen: Option<&'a Chosen>,
}

/// Attention.
pub trait Attention {
    /// `out[T, H·v]`, and `stats[T, H·2]`, f32 of the device's choice, for the backward pass.
    fn attention(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &mut Tensor,
        stats: &mut Tensor,
    );

    /// Backward of [`Attention::attention`], but for the sinks. All columns of the gradients are written.
    fn attention_backward(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &Tensor,
        stats: &Tensor,
        d_out: &Tensor,
        gradients: AttentionGradients,
    );

    /// `terms[T, H]` in f32: what each query adds to the gradients of `sinks[H]`, from what [`Attention::attention`]
    /// has left.
    fn sink_terms(&self, sinks: &Tensor, out: &Tensor, stats: &Tensor, d_out: &Tensor, terms: &mut Tensor);

    /// Memory for `count` pages of `page_len` numbers, given by the system as it is touched.
    fn pages(&self, dtype: CacheDtype, count: usize, page_len: usize) -> CachePages;

    /// Takes the memory of some pages from the system before it is touched.
    fn populate(&self, pages: &CachePages, which: Range<usize>);

    /// Copies page `from` over page `to`.
    fn copy_page(&self, pages: &mut CachePages, from: u32, to: u32);

    /// Writes the new tokens' keys and values to their pages.
    fn append(&self, pages: &mut CachePages, at: PagedSequences, layout: KvLayout, inputs: AttentionInputs);

    /// `out[T, H·v]` of the new tokens over everything in their sequences' pages.
    fn attend(&self, pages: &CachePages, at: PagedSequences, layout: KvLayout, query: ExpandedQuery, out: &mut Tensor);

    /// Writes the new tokens' latents `[T, latent]` and rotary keys `[T, rotary]` to their pages.
    fn append_latent(
        &self,
        pages: &mut CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    );

    /// `out[H·T, latent]` of the new tokens, the heads one below the other: the weighted sums of the latents.
    fn attend_latent(
        &self,
        pages: &CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        query: LatentQuery,
        out: &mut Tensor,
    );
}

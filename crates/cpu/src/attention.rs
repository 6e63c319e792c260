//! Causal attention over packed sequences and over the pages of a KV cache.

use std::ops::Range;

use wels_device::{
    Attention, AttentionGradients, AttentionInputs, AttentionShape, CacheDtype, CachePages, ColumnHeads, ExpandedQuery,
    Ids, KvLayout, LatentLayout, LatentQuery, PagedSequences, Tensor,
};
use wels_kernels::attention::paged::Pages;
use wels_kernels::attention::{self, Heads, HeadsMut, Keys};

use crate::Cpu;
use crate::memory::{slice, slice_mut};
use crate::sparse::chosen;

pub(crate) fn heads(part: ColumnHeads<'_>) -> Heads<'_> {
    let ColumnHeads { of, offset, head_stride, dim } = part;
    Heads { data: slice(of), row_stride: of.cols(), offset, head_stride, dim }
}

fn heads_mut<'a>(like: ColumnHeads, data: &'a mut Tensor) -> HeadsMut<'a> {
    HeadsMut::like(slice_mut(data), &heads(like))
}

pub(crate) fn keys<'a>(inputs: &AttentionInputs<'a>) -> Keys<'a> {
    Keys { own: heads(inputs.k), shared: inputs.k_shared.map(heads) }
}

pub(crate) fn pages(pages: &CachePages) -> &Pages {
    pages.memory.downcast_ref().expect("pages of the processor's")
}

pub(crate) fn pages_mut(pages: &mut CachePages) -> &mut Pages {
    pages.memory.downcast_mut().expect("pages of the processor's")
}

impl Attention for Cpu {
    fn attention(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        let (q, v, sinks) = (heads(inputs.q), heads(inputs.v), inputs.sinks.map(slice));
        let (chosen, out, stats) = (inputs.chosen.map(chosen), slice_mut(out), slice_mut(stats));
        attention::forward(shape, sinks, chosen, starts, q, keys(&inputs), v, out, stats);
    }

    fn attention_backward(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &Tensor,
        stats: &Tensor,
        d_out: &Tensor,
        gradients: AttentionGradients,
    ) {
        let AttentionInputs { q, k, k_shared, v, .. } = inputs;
        let (dk, dv) = match gradients.v {
            Some(dv) => (heads_mut(k, gradients.k), heads_mut(v, dv)),
            None => HeadsMut::pair_like(slice_mut(gradients.k), &heads(k), &heads(v)),
        };
        let d_shared = k_shared.zip(gradients.k_shared);
        attention::backward(
            shape,
            inputs.chosen.map(chosen),
            starts,
            heads(q),
            keys(&inputs),
            heads(v),
            slice(out),
            slice(stats),
            slice(d_out),
            heads_mut(q, gradients.q),
            dk,
            d_shared.map(|(part, d)| heads_mut(part, d)),
            dv,
        );
    }

    fn sink_terms(&self, sinks: &Tensor, out: &Tensor, stats: &Tensor, d_out: &Tensor, terms: &mut Tensor) {
        attention::sink_terms(slice(sinks), slice(out), slice(stats), slice(d_out), slice_mut(terms));
    }

    fn pages(&self, dtype: CacheDtype, count: usize, page_len: usize) -> CachePages {
        CachePages { count, memory: Box::new(Pages::new(dtype, count, page_len)) }
    }

    fn populate(&self, of: &CachePages, which: Range<usize>) {
        pages(of).populate(which);
    }

    fn copy_page(&self, of: &mut CachePages, from: u32, to: u32) {
        pages_mut(of).copy(from, to);
    }

    fn append(&self, to: &mut CachePages, at: PagedSequences, layout: KvLayout, inputs: AttentionInputs) {
        pages_mut(to).append(at.offset, layout, at.sequences, keys(&inputs), heads(inputs.v));
    }

    fn attend(&self, over: &CachePages, at: PagedSequences, layout: KvLayout, query: ExpandedQuery, out: &mut Tensor) {
        let ExpandedQuery { shape, q, sinks, chosen: of } = query;
        let (sinks, of) = (sinks.map(slice), of.map(chosen));
        pages(over).attend(at.offset, layout, shape, sinks, of, at.sequences, heads(q), slice_mut(out));
    }

    fn append_latent(
        &self,
        to: &mut CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        pages_mut(to).append_latent(at.offset, layout, at.sequences, slice(latent), slice(rotary));
    }

    fn attend_latent(
        &self,
        over: &CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        query: LatentQuery,
        out: &mut Tensor,
    ) {
        let LatentQuery { heads: count, scale, absorbed, rotary, chosen: of } = query;
        let (row_stride, head_stride) = (layout.latent, absorbed.rows() / count * layout.latent);
        let own = Heads { data: slice(absorbed), row_stride, offset: 0, head_stride, dim: layout.latent };
        let to = HeadsMut::like(slice_mut(out), &own);
        let (rotary, of) = (heads(rotary), of.map(chosen));
        pages(over).attend_latent(at.offset, layout, count, scale, of, at.sequences, own, rotary, to);
    }
}

//! Attention; pages as a list of the rows of their tokens.

use std::ops::Range;

use wels_device::{
    Attention, AttentionGradients, AttentionInputs, AttentionShape, CacheDtype, CachePages, ColumnHeads, ExpandedQuery,
    Ids, KvLayout, LatentLayout, LatentQuery, PAGE, PagedSequences, Sequence, Tensor,
};
use wels_kernels::attention::{Heads, HeadsMut, Keys};
use wels_kernels::reference::{attention, convert};

use super::sparse::chosen;
use super::{Naive, POISON, values, values_mut};

/// Pages of `page_len` cells. A layer's part holds the rows of its tokens, one after the other.
pub(super) struct Pages {
    dtype: CacheDtype,
    page_len: usize,
    cells: Vec<f32>,
}

impl Pages {
    fn row(&self, sequence: &Sequence, token: usize, offset: usize, width: usize) -> &[f32] {
        &self.cells[self.place(sequence, token, offset, width)..][..width]
    }

    fn place(&self, sequence: &Sequence, token: usize, offset: usize, width: usize) -> usize {
        sequence.pages[token / PAGE] as usize * self.page_len + offset + token % PAGE * width
    }

    pub(super) fn set_row(&mut self, sequence: &Sequence, token: usize, offset: usize, row: &[f32]) {
        self.set_at(self.place(sequence, token, offset, row.len()), row);
    }

    /// Writes to a page from its cell `start` on.
    pub(super) fn set(&mut self, page: u32, start: usize, row: &[f32]) {
        self.set_at(page as usize * self.page_len + start, row);
    }

    /// Numbers of a page from its cell `start` on.
    pub(super) fn get(&self, page: u32, start: usize, width: usize) -> &[f32] {
        &self.cells[page as usize * self.page_len + start..][..width]
    }

    fn set_at(&mut self, at: usize, row: &[f32]) {
        let dtype = self.dtype;
        let kept = |value: f32| match dtype {
            CacheDtype::F32 => value,
            // To the nearest f16, those beyond its range to its greatest.
            CacheDtype::F16 => convert::from_f16(convert::to_f16(value.clamp(-65504.0, 65504.0))),
            CacheDtype::Bf16 => convert::from_bf16(convert::to_bf16(value)),
        };
        self.cells[at..].iter_mut().zip(row).for_each(|(cell, value)| *cell = kept(*value));
    }

    /// All rows of a sequence up to its newest token.
    pub(super) fn rows(&self, sequence: &Sequence, offset: usize, width: usize) -> Vec<f32> {
        let tokens = sequence.past + sequence.new;
        (0..tokens).flat_map(|token| self.row(sequence, token, offset, width)).copied().collect()
    }
}

pub(super) fn pages(pages: &CachePages) -> &Pages {
    pages.memory.downcast_ref().expect("pages of the naive device's")
}

pub(super) fn pages_mut(pages: &mut CachePages) -> &mut Pages {
    pages.memory.downcast_mut().expect("pages of the naive device's")
}

pub(super) fn heads(part: ColumnHeads<'_>) -> Heads<'_> {
    let ColumnHeads { of, offset, head_stride, dim } = part;
    Heads { data: values(of), row_stride: of.cols(), offset, head_stride, dim }
}

fn heads_mut<'a>(like: ColumnHeads, data: &'a mut Tensor) -> HeadsMut<'a> {
    HeadsMut::like(values_mut(data), &heads(like))
}

pub(super) fn keys<'a>(inputs: &AttentionInputs<'a>) -> Keys<'a> {
    Keys { own: heads(inputs.k), shared: inputs.k_shared.map(heads) }
}

/// Heads in the columns of rows.
fn in_rows(data: &[f32], width: usize, offset: usize, dim: usize) -> Heads<'_> {
    Heads { data, row_stride: width, offset, head_stride: dim, dim }
}

/// The queries from row `first` on.
fn queries_from(q: Heads<'_>, first: usize) -> Heads<'_> {
    Heads { data: &q.data[first * q.row_stride..], ..q }
}

/// Numbers of a token's row: keys of all heads, the shared part, values of all heads.
fn row_width(layout: &KvLayout) -> usize {
    layout.kv_heads * (layout.own + layout.v) + layout.shared
}

impl Attention for Naive {
    fn attention(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        let (q, v, sinks) = (heads(inputs.q), heads(inputs.v), inputs.sinks.map(values));
        let (chosen, out, stats) = (inputs.chosen.map(chosen), values_mut(out), values_mut(stats));
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
            None => HeadsMut::pair_like(values_mut(gradients.k), &heads(k), &heads(v)),
        };
        attention::backward(
            shape,
            inputs.chosen.map(chosen),
            starts,
            heads(q),
            keys(&inputs),
            heads(v),
            values(out),
            values(stats),
            values(d_out),
            heads_mut(q, gradients.q),
            dk,
            k_shared.zip(gradients.k_shared).map(|(part, d)| heads_mut(part, d)),
            dv,
        );
    }

    fn sink_terms(&self, sinks: &Tensor, out: &Tensor, stats: &Tensor, d_out: &Tensor, terms: &mut Tensor) {
        attention::sink_terms(values(sinks), values(out), values(stats), values(d_out), values_mut(terms));
    }

    fn pages(&self, dtype: CacheDtype, count: usize, page_len: usize) -> CachePages {
        let cells = vec![f32::from_bits(POISON); count * page_len];
        CachePages { count, memory: Box::new(Pages { dtype, page_len, cells }) }
    }

    fn populate(&self, of: &CachePages, which: Range<usize>) {
        assert!(which.end <= of.count, "pages {which:?} of {}", of.count);
    }

    fn copy_page(&self, of: &mut CachePages, from: u32, to: u32) {
        let pages = pages_mut(of);
        let from = from as usize * pages.page_len;
        pages.cells.copy_within(from..from + pages.page_len, to as usize * pages.page_len);
    }

    fn append(&self, to: &mut CachePages, at: PagedSequences, layout: KvLayout, inputs: AttentionInputs) {
        let (k, v, to) = (keys(&inputs), heads(inputs.v), pages_mut(to));
        let mut t = 0;
        for sequence in at.sequences {
            for token in sequence.past..sequence.past + sequence.new {
                let mut row: Vec<f32> = (0..layout.kv_heads).flat_map(|h| k.own.row(t, h)).copied().collect();
                row.extend(k.shared.iter().flat_map(|shared| shared.row(t, 0)));
                row.extend((0..layout.kv_heads).flat_map(|h| v.row(t, h)));
                assert_eq!(row.len(), row_width(&layout), "keys and values of a token");
                to.set_row(sequence, token, at.offset, &row);
                t += 1;
            }
        }
    }

    fn attend(&self, over: &CachePages, at: PagedSequences, layout: KvLayout, query: ExpandedQuery, out: &mut Tensor) {
        let (width, v_at) = (row_width(&layout), layout.kv_heads * layout.own + layout.shared);
        let row = query.shape.heads * layout.v;
        let mut first = 0;
        for sequence in at.sequences {
            let rows = pages(over).rows(sequence, at.offset, width);
            let shared_at = layout.kv_heads * layout.own;
            let shared = (layout.shared > 0).then(|| in_rows(&rows, width, shared_at, layout.shared));
            let k = Keys { own: in_rows(&rows, width, 0, layout.own), shared };
            let (v, len) = (in_rows(&rows, width, v_at, layout.v), sequence.past + sequence.new);
            let q = queries_from(heads(query.q), first);
            let out = &mut values_mut(out)[first * row..][..sequence.new * row];
            let chosen = query.chosen.map(|of| chosen(of).part(first..first + sequence.new));
            let (sinks, chosen) = (query.sinks.map(values), chosen.as_ref());
            attention::cached(query.shape, sinks, chosen, q, sequence.new, k, v, len, out);
            first += sequence.new;
        }
    }

    fn append_latent(
        &self,
        to: &mut CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        let to = pages_mut(to);
        let tokens = at.sequences.iter().flat_map(|it| (it.past..it.past + it.new).map(move |token| (it, token)));
        for (t, (sequence, token)) in tokens.enumerate() {
            let mut row = values(latent)[t * layout.latent..][..layout.latent].to_vec();
            row.extend(&values(rotary)[t * layout.rotary..][..layout.rotary]);
            to.set_row(sequence, token, at.offset, &row);
        }
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
        let (tokens, latent, width) = (absorbed.rows() / count, layout.latent, layout.latent + layout.rotary);
        let shape = AttentionShape { heads: 1, kv_heads: 1, scale, window: None, cap: None };
        let turned = heads(rotary);
        let mut first = 0;
        for sequence in at.sequences {
            let rows = pages(over).rows(sequence, at.offset, width);
            let (k, v) = (in_rows(&rows, width, 0, width), in_rows(&rows, width, 0, latent));
            let len = sequence.past + sequence.new;
            let chosen = of.map(|of| chosen(of).part(first..first + sequence.new));
            for h in 0..count {
                let own = &values(absorbed)[(h * tokens + first) * latent..][..sequence.new * latent];
                let query = own.chunks_exact(latent).enumerate();
                let q: Vec<f32> =
                    query.flat_map(|(t, own)| own.iter().chain(turned.row(first + t, h))).copied().collect();
                let to = &mut values_mut(out)[(h * tokens + first) * latent..][..sequence.new * latent];
                let (q, k) = (Heads::contiguous(&q, 1, width), Keys { own: k, shared: None });
                attention::cached(shape, None, chosen.as_ref(), q, sequence.new, k, v, len, to);
            }
            first += sequence.new;
        }
    }
}

//! Attention over the pages of a cache: what is checked, and where its kernels are chosen. Pages have rows of tokens:
//! keys of all heads, the shared part, values of all heads; or a latent and its rotary key.
//!
//! Queries in f32 go to `plain`, over pages of any format. Queries in bf16 are for pages of bf16, and go to
//! `tensor_cores` or, of other widths, through f32 to `plain`, as in [`crate::attention`]: the bits are those of the
//! forward pass over packed sequences.

mod plain;
mod tensor_cores;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use wels_device::{
    Attention, AttentionGradients, AttentionInputs, AttentionShape, CacheDtype, CachePages, ColumnHeads, Dtype,
    ExpandedQuery, Ids, KvLayout, LatentLayout, LatentQuery, PAGE, PagedSequences, Sequence, Tensor,
};

use crate::Cuda;
use crate::attention::{Widened, Widths, check, dtype_of};
use crate::launch::Buffer;
use crate::memory::done;

/// Pages of `page_len` numbers.
struct Pages {
    numbers: CacheDtype,
    page_len: usize,
    memory: Buffer,
}

fn pages(pages: &CachePages) -> &Pages {
    pages.memory.downcast_ref().expect("pages of a CUDA device's")
}

fn pages_mut(pages: &mut CachePages) -> &mut Pages {
    pages.memory.downcast_mut().expect("pages of a CUDA device's")
}

/// What kernels know of the sequences of a call. Layers of one step have the same, so the last ones are kept.
pub(crate) struct Plan {
    /// What it was made of.
    key: Vec<u32>,
    /// New tokens.
    new: usize,
    plain: OnceLock<plain::Lists>,
    tables: OnceLock<tensor_cores::Tables>,
}

/// Checks that pages exist and suffice, and that no page is written to by two sequences; gives all that a plan is made
/// of as one list.
fn key_of(sequences: &[Sequence], count: usize) -> Vec<u32> {
    let (mut key, mut written) = (Vec::new(), Vec::new());
    for Sequence { pages, past, new } in sequences {
        let used = (past + new).div_ceil(PAGE);
        assert!(used <= pages.len(), "{past} + {new} tokens in {} pages", pages.len());
        let beyond = pages[..used].iter().find(|page| **page as usize >= count);
        assert!(beyond.is_none(), "page {beyond:?} of {count}");
        written.extend_from_slice(&pages[past / PAGE..used.max(past / PAGE)]);
        key.extend([used as u32, *past as u32, *new as u32]);
        key.extend_from_slice(&pages[..used]);
    }
    written.sort_unstable();
    let twice = written.windows(2).find(|pair| pair[0] == pair[1]);
    assert!(twice.is_none(), "page {} is written to by two sequences", twice.unwrap_or(&[0])[0]);
    key
}

impl Cuda {
    fn plan(&self, sequences: &[Sequence], count: usize) -> Arc<Plan> {
        let key = key_of(sequences, count);
        let mut last = self.last_plan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*last {
            Some(plan) if plan.key == key => plan.clone(),
            _ => {
                let new = sequences.iter().map(|sequence| sequence.new).sum();
                last.insert(Arc::new(Plan { key, new, plain: OnceLock::new(), tables: OnceLock::new() })).clone()
            }
        }
    }
}

/// What a layer's kernels work on: its part of the pages, and the call's sequences.
#[derive(Clone, Copy)]
struct Part<'a> {
    plan: &'a Plan,
    at: PagedSequences<'a>,
}

/// Checks that a layer's rows lie inside a page.
fn check_part(pages: &Pages, offset: usize, width: usize) {
    let Pages { page_len, .. } = pages;
    assert!(offset + PAGE * width <= *page_len, "rows of {width} numbers at {offset} of a page of {page_len}");
}

/// Checks that numbers in bf16 meet pages of them.
fn check_bf16(pages: &Pages) {
    let kept = pages.numbers;
    assert_eq!(
        kept,
        CacheDtype::Bf16,
        "attention in bf16 is over a cache of CacheDtype::Bf16, and this is of {kept:?}"
    );
}

fn row_width(layout: &KvLayout) -> usize {
    layout.kv_heads * (layout.own + layout.v) + layout.shared
}

impl Attention for Cuda {
    fn attention(
        &self,
        shape: AttentionShape,
        starts: &Ids,
        inputs: AttentionInputs,
        out: &mut Tensor,
        stats: &mut Tensor,
    ) {
        self.attend_packed(shape, starts, inputs, out, stats);
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
        self.attend_packed_backward(shape, starts, inputs, [out, stats, d_out], gradients);
    }

    fn sink_terms(&self, sinks: &Tensor, out: &Tensor, stats: &Tensor, d_out: &Tensor, terms: &mut Tensor) {
        assert!(out.len() == d_out.len() && stats.len() == 2 * terms.len(), "{out:?}, {d_out:?} and {stats:?}");
        if out.dtype() == Dtype::F32 {
            return self.plain_sink_terms(sinks, [out, stats, d_out], terms);
        }
        let (wide_out, wide_d_out) = (self.widened(out), self.widened(d_out));
        self.plain_sink_terms(sinks, [&wide_out, stats, &wide_d_out], terms);
    }

    fn pages(&self, numbers: CacheDtype, count: usize, page_len: usize) -> CachePages {
        let bytes = count.checked_mul(page_len).and_then(|len| len.checked_mul(numbers.bytes()));
        let bytes = bytes.expect("a cache that fits the address space");
        let memory = done(Buffer::new(&self.driver, bytes));
        CachePages { count, memory: Box::new(Pages { numbers, page_len, memory }) }
    }

    fn populate(&self, of: &CachePages, which: Range<usize>) {
        assert!(which.end <= of.count, "pages {which:?} of {}", of.count);
    }

    fn copy_page(&self, of: &mut CachePages, from: u32, to: u32) {
        assert!((from.max(to) as usize) < of.count, "page {from} to page {to} of {}", of.count);
        let pages = pages_mut(of);
        let bytes = pages.page_len * pages.numbers.bytes();
        if from != to {
            done(pages.memory.copy_within(from as usize * bytes, to as usize * bytes, bytes));
        }
    }

    fn append(&self, to: &mut CachePages, at: PagedSequences, layout: KvLayout, inputs: AttentionInputs) {
        let AttentionInputs { k, k_shared, v, .. } = inputs;
        let inputs = AttentionInputs { q: k, ..inputs }; // queries play no part
        let (plan, to) = (&*self.plan(at.sequences, to.count), pages_mut(to));
        let shared = k_shared.map_or(0, |part| part.dim);
        assert_eq!((k.dim, shared, v.dim), (layout.own, layout.shared, layout.v), "widths of {layout:?}");
        check_part(to, at.offset, row_width(&layout));
        check(&k, layout.kv_heads, plan.new);
        check(&v, layout.kv_heads, plan.new);
        k_shared.iter().for_each(|part| check(part, 1, plan.new));
        let part = Part { plan, at };
        if dtype_of(&inputs) == Dtype::F32 {
            return self.plain_append(to, part, layout, &inputs);
        }
        check_bf16(to);
        match tensor_cores::appends(to, at.offset, layout, &inputs) {
            true => self.tensor_append(to, part, layout, &inputs),
            false => self.plain_append(to, part, layout, &Widened::of(self, &inputs).inputs(&inputs)),
        }
    }

    fn attend(&self, over: &CachePages, at: PagedSequences, layout: KvLayout, query: ExpandedQuery, out: &mut Tensor) {
        let (plan, ExpandedQuery { shape, q, sinks, chosen }) = (&*self.plan(at.sequences, over.count), query);
        assert!(chosen.is_none(), "cards have no attention to chosen keys");
        assert!(sinks.is_none_or(|sinks| sinks.len() == shape.heads), "sinks {sinks:?} of {shape:?}");
        let widths = Widths { own: layout.own, shared: layout.shared, v: layout.v };
        assert_eq!(q.dim, widths.qk(), "queries as wide as the keys of {layout:?}");
        assert_eq!(shape.kv_heads, layout.kv_heads, "heads of {shape:?} and {layout:?}");
        assert_eq!(out.len(), plan.new * shape.heads * layout.v, "{out:?} of {} tokens", plan.new);
        let (over, part) = (pages(over), Part { plan, at });
        check_part(over, at.offset, row_width(&layout));
        check(&q, shape.heads, plan.new);
        if q.of.dtype() == Dtype::F32 {
            return self.plain_attend(over, part, layout, query, out);
        }
        check_bf16(over);
        if sinks.is_none()
            && tensor_cores::reads(over, at.offset)
            && let Some(kernels) = self.attention_kernels(shape, widths, [q].into_iter())
        {
            return self.tensor_attend(kernels, over, part, query, out);
        }
        let (wide, mut wide_out) = (self.widened(q.of), self.wide_like(out));
        let query = ExpandedQuery { q: ColumnHeads { of: &wide, ..q }, ..query };
        self.plain_attend(over, part, layout, query, &mut wide_out);
        self.narrow(&wide_out, out);
    }

    fn append_latent(
        &self,
        to: &mut CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        let (plan, to) = (&*self.plan(at.sequences, to.count), pages_mut(to));
        check_part(to, at.offset, layout.latent + layout.rotary);
        assert_eq!(latent.len(), plan.new * layout.latent, "{latent:?} of {} tokens", plan.new);
        assert_eq!(rotary.len(), plan.new * layout.rotary, "{rotary:?} of {} tokens", plan.new);
        assert_eq!(latent.dtype(), rotary.dtype(), "{latent:?} beside {rotary:?}");
        let part = Part { plan, at };
        if latent.dtype() == Dtype::F32 {
            return self.plain_append_latent(to, part, layout, latent, rotary);
        }
        check_bf16(to);
        match tensor_cores::appends_latent(to, at.offset, layout) {
            true => self.tensor_append_latent(to, part, layout, latent, rotary),
            false => self.plain_append_latent(to, part, layout, &self.widened(latent), &self.widened(rotary)),
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
        let LatentQuery { heads, absorbed, rotary, chosen, .. } = query;
        assert!(chosen.is_none(), "cards have no attention to chosen keys");
        let plan = &*self.plan(at.sequences, over.count);
        let len = heads * plan.new * layout.latent;
        assert_eq!((absorbed.len(), out.len()), (len, len), "{absorbed:?} and {out:?} of {} tokens", plan.new);
        assert_eq!(absorbed.dtype(), rotary.of.dtype(), "{absorbed:?} beside {:?}", rotary.of);
        let (over, part) = (pages(over), Part { plan, at });
        check_part(over, at.offset, layout.latent + layout.rotary);
        check(&rotary, heads, plan.new);
        if absorbed.dtype() == Dtype::F32 {
            return self.plain_attend_latent(over, part, layout, query, out);
        }
        check_bf16(over);
        if tensor_cores::reads(over, at.offset) && self.has_latent_kernel(layout, &rotary) {
            return self.tensor_attend_latent(over, part, query, out);
        }
        let (wide, turned, mut wide_out) = (self.widened(absorbed), self.widened(rotary.of), self.wide_like(out));
        let query = LatentQuery { absorbed: &wide, rotary: ColumnHeads { of: &turned, ..rotary }, ..query };
        self.plain_attend_latent(over, part, layout, query, &mut wide_out);
        self.narrow(&wide_out, out);
    }
}

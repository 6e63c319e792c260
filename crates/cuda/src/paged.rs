//! Attention over the pages of a cache: `kernels/attention/paged.cu`. Pages have rows of tokens.

use std::ops::Range;
use std::sync::Arc;

use wels_device::{
    Attention, AttentionGradients, AttentionInputs, AttentionShape, CacheDtype, CachePages, ExpandedQuery, Ids,
    KvLayout, LatentLayout, LatentQuery, PAGE, PagedSequences, Sequence, Tensor,
};

use crate::Cuda;
use crate::attention::{QUERIES, THREADS, Widths, check, with_heads, with_shared};
use crate::launch::{Buffer, Launch};
use crate::memory::{done, f32s, f32s_mut};

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

impl Pages {
    fn half(&self) -> usize {
        usize::from(self.numbers == CacheDtype::F16)
    }
}

/// What kernels know of the sequences of a call. Layers of one step have the same, so the last ones are kept.
pub(crate) struct Plan {
    /// What it was made of.
    key: Vec<u32>,
    new: usize,
    tiles_len: usize,
    /// All sequences' pages.
    lists: Buffer,
    /// Two numbers for each new token, four for each tile of them: `kernels/attention/paged.cu`.
    tokens: Buffer,
    tiles: Buffer,
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

impl Plan {
    fn of(cuda: &Cuda, key: Vec<u32>, sequences: &[Sequence]) -> Plan {
        let (mut lists, mut tokens, mut tiles, mut first) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for Sequence { pages, past, new } in sequences {
            let list = lists.len();
            lists.extend_from_slice(&pages[..(past + new).div_ceil(PAGE)]);
            tokens.extend((0..*new).flat_map(|at| [list as i32, (past + at) as i32]));
            for at in (0..*new).step_by(QUERIES) {
                let count = (new - at).min(QUERIES);
                tiles.extend([list as i32, (past + at) as i32, (first + at) as i32, count as i32]);
            }
            first += new;
        }
        let (lists, tokens) = (cuda.upload(&lists), cuda.upload(&tokens));
        Plan { key, new: first, tiles_len: tiles.len() / 4, lists, tokens, tiles: cuda.upload(&tiles) }
    }
}

impl Cuda {
    fn plan(&self, sequences: &[Sequence], count: usize) -> Arc<Plan> {
        let key = key_of(sequences, count);
        let mut last = self.last_plan.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        match &*last {
            Some(plan) if plan.key == key => plan.clone(),
            _ => last.insert(Arc::new(Plan::of(self, key, sequences))).clone(),
        }
    }

    /// A launch of a kernel that reads pages: one block for each tile of new tokens and head.
    fn reading_pages<'a>(&'a self, kernel: &str, at: (&'a Pages, usize), plan: &'a Plan, heads: usize) -> Launch<'a> {
        let (pages, offset) = at;
        let launch = self.launch(kernel).threads(THREADS).blocks(plan.tiles_len, heads, 1);
        let launch = launch.read(&pages.memory).read(&plan.lists).read(&plan.tiles);
        launch.long(pages.page_len).long(offset).int(pages.half())
    }

    /// A launch of a kernel that writes pages: one block for each new token.
    fn writing_pages<'a>(&'a self, kernel: &str, to: &'a mut Pages, offset: usize, plan: &'a Plan) -> Launch<'a> {
        let (page_len, half) = (to.page_len, to.half());
        let launch = self.launch(kernel).threads(128).blocks(plan.new, 1, 1).write(&mut to.memory);
        launch.read(&plan.lists).read(&plan.tokens).long(page_len).long(offset).int(half)
    }
}

/// Checks that a layer's rows lie inside a page.
fn check_part(pages: &Pages, offset: usize, width: usize) {
    let Pages { page_len, .. } = pages;
    assert!(offset + PAGE * width <= *page_len, "rows of {width} numbers at {offset} of a page of {page_len}");
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
        let (plan, to) = (self.plan(at.sequences, to.count), pages_mut(to));
        let shared = k_shared.map_or(0, |part| part.dim);
        assert_eq!((k.dim, shared, v.dim), (layout.own, layout.shared, layout.v), "widths of {layout:?}");
        check_part(to, at.offset, row_width(&layout));
        check(&k, layout.kv_heads, plan.new);
        check(&v, layout.kv_heads, plan.new);
        k_shared.iter().for_each(|part| check(part, 1, plan.new));
        let launch = with_heads(self.writing_pages("paged_append", to, at.offset, &plan), k);
        let launch = with_heads(with_shared(launch, k_shared), v).int(layout.kv_heads);
        launch.int(layout.own).int(layout.shared).int(layout.v).run();
    }

    fn attend(&self, over: &CachePages, at: PagedSequences, layout: KvLayout, query: ExpandedQuery, out: &mut Tensor) {
        let (plan, ExpandedQuery { shape, q }) = (self.plan(at.sequences, over.count), query);
        let widths = Widths { own: layout.own, shared: layout.shared, v: layout.v };
        assert_eq!(q.dim, layout.own + layout.shared, "queries as wide as the keys of {layout:?}");
        assert_eq!(out.len(), plan.new * shape.heads * layout.v, "{out:?} of {} tokens", plan.new);
        check_part(pages(over), at.offset, row_width(&layout));
        check(&q, shape.heads, plan.new);
        let launch = self.reading_pages("paged_attend", (pages(over), at.offset), &plan, shape.heads);
        let launch = with_heads(launch.shared(widths.forward_bytes()), q);
        let launch = launch.float(shape.scale).int(shape.heads).int(layout.kv_heads);
        widths.with(launch).write(f32s_mut(out)).run();
    }

    fn append_latent(
        &self,
        to: &mut CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        latent: &Tensor,
        rotary: &Tensor,
    ) {
        let (plan, to) = (self.plan(at.sequences, to.count), pages_mut(to));
        check_part(to, at.offset, layout.latent + layout.rotary);
        assert_eq!(latent.len(), plan.new * layout.latent, "{latent:?} of {} tokens", plan.new);
        assert_eq!(rotary.len(), plan.new * layout.rotary, "{rotary:?} of {} tokens", plan.new);
        let launch = self.writing_pages("paged_append_latent", to, at.offset, &plan);
        launch.read(f32s(latent)).read(f32s(rotary)).int(layout.latent).int(layout.rotary).run();
    }

    fn attend_latent(
        &self,
        over: &CachePages,
        at: PagedSequences,
        layout: LatentLayout,
        query: LatentQuery,
        out: &mut Tensor,
    ) {
        let LatentQuery { heads, scale, absorbed, rotary } = query;
        let plan = self.plan(at.sequences, over.count);
        let widths = Widths { own: layout.latent, shared: layout.rotary, v: layout.latent };
        let len = heads * plan.new * layout.latent;
        assert_eq!((absorbed.len(), out.len()), (len, len), "{absorbed:?} and {out:?} of {} tokens", plan.new);
        check_part(pages(over), at.offset, layout.latent + layout.rotary);
        check(&rotary, heads, plan.new);
        let launch = self.reading_pages("paged_attend_latent", (pages(over), at.offset), &plan, heads);
        let launch = launch.shared(widths.forward_bytes()).read(f32s(absorbed));
        let launch = with_heads(launch, rotary).float(scale).int(plan.new);
        launch.int(layout.latent).int(layout.rotary).write(f32s_mut(out)).run();
    }
}

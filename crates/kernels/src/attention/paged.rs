//! Causal attention over keys and values that lie in pages of a cache.
//!
//! **Order of sums**: that of [`forward`](super::forward), bit for bit, for any cut of a sequence into calls, and
//! whatever else is in a call. Numbers kept as f16 or bf16 are rounded once, when they enter.
//!
//! **Layout.** A page holds [`PAGE`] tokens of all layers, one layer's part after the other. The part of a layer with
//! expanded keys and values has, for each key-value head, its keys as `[dim][PAGE]` and its values as
//! `[PAGE][v rounded up to 16]`, then the keys' shared part as `[dim][PAGE]`: what the innermost loops read, so nothing
//! is packed anew. Latent rows are in [`latent`](super::latent).

mod append;
mod chosen;
mod element;
mod rows;

pub use element::CacheDtype;
pub use rows::{RowLayout, SequenceRows};

use std::ops::Range;

use super::{Chosen, Heads, Shape, check_sinks, sink_of, softmax};
use crate::lanes::{LANES, Lanes};
use crate::memory::{self, Buffer};
use crate::micro;
use crate::par::{self, SharedMut};
use crate::scratch;

pub(super) use append::write_row;
pub(super) use element::{Brain, Element, Half};

/// Tokens in a page.
pub const PAGE: usize = 16;

/// Memory for pages.
pub struct Pages {
    words: Buffer,
    pub(super) dtype: CacheDtype,
    count: usize,
    page_len: usize,
}

/// One sequence of a call: its pages, the tokens that they hold already, and those that come with the call. Its new
/// tokens follow those of the sequence before it in the call's operands.
#[derive(Clone, Copy, Debug)]
pub struct Sequence<'a> {
    /// Pages in the order of the tokens.
    pub pages: &'a [u32],
    /// Tokens in the cache before the call.
    pub past: usize,
    /// Tokens of the call.
    pub new: usize,
}

/// What a layer with expanded keys and values keeps of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Key-value heads.
    pub kv_heads: usize,
    /// Width of a head's own part of a key.
    pub own: usize,
    /// Width of the part that all heads' keys share; 0 for none.
    pub shared: usize,
    /// Width of a value.
    pub v: usize,
}

impl Layout {
    /// Numbers that a page has of a layer.
    pub fn page_len(&self) -> usize {
        self.kv_heads * self.head_len() + PAGE * self.shared
    }

    fn head_len(&self) -> usize {
        PAGE * (self.own + self.v_stride())
    }

    fn v_stride(&self) -> usize {
        self.v.next_multiple_of(LANES)
    }
}

impl Pages {
    /// `count` pages of `page_len` numbers each. The system gives the memory as it is touched.
    pub fn new(dtype: CacheDtype, count: usize, page_len: usize) -> Self {
        let bytes = count.checked_mul(page_len).and_then(|len| len.checked_mul(dtype.bytes()));
        let bytes = bytes.expect("a cache that fits the address space");
        Pages { words: Buffer::reserved(bytes.div_ceil(size_of::<f32>())), dtype, count, page_len }
    }

    pub fn count(&self) -> usize {
        self.count
    }

    /// Takes the memory of some pages from the system before it is touched.
    ///
    /// # Panics
    /// If there are no such pages.
    pub fn populate(&self, pages: Range<usize>) {
        assert!(pages.end <= self.count, "pages {pages:?} of {}", self.count);
        let words = |page: usize| page * self.page_len * self.dtype.bytes() / size_of::<f32>();
        memory::populate(&self.words[words(pages.start)..words(pages.end)]);
    }

    /// Copies page `from` over page `to`.
    ///
    /// # Panics
    /// If there is no such page.
    pub fn copy(&mut self, from: u32, to: u32) {
        let (from, to) = (from as usize, to as usize);
        assert!(from < self.count && to < self.count, "page {from} to page {to} of {}", self.count);
        let bytes = self.page_len * self.dtype.bytes();
        // SAFETY: both pages are inside the memory; `copy` allows them to be one.
        unsafe {
            let start = self.words.as_mut_ptr().cast::<u8>();
            std::ptr::copy(start.add(from * bytes), start.add(to * bytes), bytes);
        }
    }

    /// Checks what unsafe code relies on: pages that exist and suffice, and that no page is written to twice. Gives the
    /// new tokens.
    pub(super) fn check(&self, sequences: &[Sequence]) -> usize {
        let mut written = Vec::new();
        for Sequence { pages, past, new } in sequences {
            let used = (past + new).div_ceil(PAGE);
            assert!(used <= pages.len(), "{past} + {new} tokens in {} pages", pages.len());
            let beyond = pages[..used].iter().find(|page| **page as usize >= self.count);
            assert!(beyond.is_none(), "page {beyond:?} of {}", self.count);
            written.extend_from_slice(&pages[past / PAGE..used.max(past / PAGE)]);
        }
        written.sort_unstable();
        let twice = written.windows(2).find(|pair| pair[0] == pair[1]);
        assert!(twice.is_none(), "page {} is written to by two sequences", twice.unwrap_or(&[0])[0]);
        sequences.iter().map(|sequence| sequence.new).sum()
    }

    /// Checks that a layer's part lies inside a page.
    pub(super) fn check_part(&self, offset: usize, len: usize) {
        assert!(offset + len <= self.page_len, "a part of {len} numbers at {offset} of a page of {}", self.page_len);
    }

    /// `out[T, heads·v]`: the new tokens' queries over all keys of their sequence up to themselves, whose own were
    /// [appended](Pages::append), and over the sink of their head; or over the chosen of these keys, which takes a time
    /// that does not grow with the sequence.
    ///
    /// # Panics
    /// As for [`Pages::append`], and if keys are chosen where heads share them or there is a window, a cap or a sink.
    pub fn attend(
        &self,
        offset: usize,
        layout: Layout,
        shape: Shape,
        sinks: Option<&[f32]>,
        chosen: Option<&Chosen>,
        sequences: &[Sequence],
        q: Heads,
        out: &mut [f32],
    ) {
        check_sinks(&shape, sinks);
        let tokens = self.check(sequences);
        self.check_part(offset, layout.page_len());
        let Shape { heads, kv_heads, .. } = shape;
        assert!(kv_heads == layout.kv_heads && heads.is_multiple_of(kv_heads), "{heads} heads over {kv_heads}");
        shape.check_scores();
        assert!(q.dim == layout.own + layout.shared, "query width {}, {layout:?}", q.dim);
        q.check("q", heads, tokens);
        assert!(out.len() == tokens * heads * layout.v, "out has {} elements", out.len());
        if let Some(chosen) = chosen {
            shape.check_chosen(sinks, chosen, places(sequences));
            let job = Job { place: self.place(offset), layout, shape, sinks, sequences, q, out: SharedMut::new(out) };
            return chosen::attend(self.dtype, &job, chosen);
        }
        let group = heads / kv_heads;
        let mut tasks = Vec::new();
        let mut first = 0;
        for (sequence, Sequence { new, .. }) in sequences.iter().enumerate() {
            for from in (0..new * group).step_by(TASK_ROWS) {
                let rows = TASK_ROWS.min(new * group - from);
                tasks.extend((0..kv_heads).map(|kv| Task { sequence, first, from, rows, kv }));
            }
            first += new;
        }
        let place = self.place(offset);
        let out = SharedMut::new(out);
        let job = &Job { place, layout, shape, sinks, sequences, q, out };
        // In a row a task can fetch for the one after it.
        let waits_for_pages = tasks.iter().all(|task| task.rows <= FEW);
        let in_a_row = if waits_for_pages { tasks.len().div_ceil(4 * par::threads()).clamp(1, 8) } else { 1 };
        par::run(tasks.len().div_ceil(in_a_row), |i| {
            let tasks = &tasks[i * in_a_row..tasks.len().min((i + 1) * in_a_row)];
            // SAFETY: pages, part and operands were checked above; each task has rows of its own in `out`; the pages
            // hold what `dtype` says.
            unsafe {
                match self.dtype {
                    CacheDtype::F32 => crate::lanes::dispatch!(attend_f32(job: &Job, tasks: &[Task])),
                    CacheDtype::F16 => crate::lanes::dispatch!(attend_f16(job: &Job, tasks: &[Task])),
                    CacheDtype::Bf16 => crate::lanes::dispatch!(attend_bf16(job: &Job, tasks: &[Task])),
                }
            }
        });
    }

    /// Where the parts at `offset` are, to be read.
    pub(super) fn place(&self, offset: usize) -> Place {
        Place { start: self.words.as_ptr().cast_mut().cast(), page_len: self.page_len, offset }
    }

    /// Where the parts at `offset` are, to be written.
    pub(super) fn place_mut(&mut self, offset: usize) -> Place {
        Place { start: self.words.as_mut_ptr().cast(), page_len: self.page_len, offset }
    }
}

/// Where a new token goes.
#[derive(Clone, Copy)]
pub(super) struct Slot {
    /// Its row in the call's operands.
    pub token: usize,
    pub page: u32,
    pub slot: usize,
}

/// Where the new tokens stand in their sequences.
pub(super) fn places<'a>(sequences: &'a [Sequence]) -> impl Iterator<Item = usize> + 'a {
    sequences.iter().flat_map(|sequence| sequence.past..sequence.past + sequence.new)
}

/// Calls `write` for each new token.
pub(super) fn for_each_token(sequences: &[Sequence], write: impl Fn(Slot) + Sync) {
    let mut first = 0;
    for Sequence { pages, past, new } in sequences {
        par::run(new.div_ceil(TOKENS_PER_TASK), |block| {
            for i in block * TOKENS_PER_TASK..(block * TOKENS_PER_TASK + TOKENS_PER_TASK).min(*new) {
                write(Slot { token: first + i, page: pages[(past + i) / PAGE], slot: (past + i) % PAGE });
            }
        });
        first += new;
    }
}

/// Tokens whose keys and values one task writes; fewer are written without waking another thread.
const TOKENS_PER_TASK: usize = 32;
/// Rows of the innermost tile: heads of a group, and their queries.
const TILE: usize = 12;
/// Rows in a task: so many that a page's keys are read from a near cache for most of them.
const TASK_ROWS: usize = 8 * TILE;

/// Where a layer's parts of the pages are.
#[derive(Clone, Copy)]
pub(super) struct Place {
    start: *mut u8,
    page_len: usize,
    offset: usize,
}

// SAFETY: an address, which only unsafe code follows: tasks write to disjoint slots, and nobody reads what another task
// of the same call writes.
unsafe impl Send for Place {}
// SAFETY: a shared reference gives the same as a copy, for which the same holds.
unsafe impl Sync for Place {}

impl Place {
    /// # Safety
    /// The pages hold numbers of type E, and `page` exists.
    #[inline(always)]
    pub unsafe fn page<E>(self, page: u32) -> *mut E {
        // SAFETY: page and part lie in the memory, whose numbers are of type E, by this function's contract.
        unsafe { self.start.cast::<E>().add(page as usize * self.page_len + self.offset) }
    }
}

/// Rows `from..from + rows` of one sequence and key-value head; row r is query r / group and head r % group.
struct Task {
    sequence: usize,
    /// The sequence's first token in the call.
    first: usize,
    from: usize,
    rows: usize,
    kv: usize,
}

struct Job<'a> {
    place: Place,
    layout: Layout,
    shape: Shape,
    sinks: Option<&'a [f32]>,
    sequences: &'a [Sequence<'a>],
    q: Heads<'a>,
    out: SharedMut<'a, f32>,
}

/// # Safety
/// As for [`attend`], of pages of f32.
#[inline(always)]
unsafe fn attend_f32<L: Lanes>(job: &Job, tasks: &[Task]) {
    // SAFETY: the pages hold f32; the rest by this function's contract.
    unsafe { attend_all::<L, f32>(job, tasks) }
}

/// # Safety
/// As for [`attend`], of pages of f16.
#[inline(always)]
unsafe fn attend_f16<L: Lanes>(job: &Job, tasks: &[Task]) {
    // SAFETY: the pages hold f16; the rest by this function's contract.
    unsafe { attend_all::<L, Half>(job, tasks) }
}

/// # Safety
/// As for [`attend`], of pages of bf16.
#[inline(always)]
unsafe fn attend_bf16<L: Lanes>(job: &Job, tasks: &[Task]) {
    // SAFETY: the pages hold bf16; the rest by this function's contract.
    unsafe { attend_all::<L, Brain>(job, tasks) }
}

/// # Safety
/// As for [`attend`].
#[inline(always)]
unsafe fn attend_all<L: Lanes, E: Element>(job: &Job, tasks: &[Task]) {
    for (i, task) in tasks.iter().enumerate() {
        // SAFETY: each task is one of the job's, for which the contract of `attend` was answered.
        unsafe { attend::<L, E>(job, task, FirstKeys::of(job, tasks.get(i + 1))) }
    }
}

/// The first keys that a task will read, to be fetched during the one before it.
struct FirstKeys<E> {
    pages: [*const E; FIRST_PAGES],
    lines_of_page: usize,
    /// Those not yet fetched.
    left: Range<usize>,
}

impl<E> FirstKeys<E> {
    /// # Safety
    /// As for [`attend`].
    unsafe fn of(job: &Job, task: Option<&Task>) -> Self {
        let mut pages = [std::ptr::null(); FIRST_PAGES];
        let mut count = 0;
        if let Some(task) = task {
            let Sequence { past, pages: all, .. } = job.sequences[task.sequence];
            let first = job.shape.first_key(past + task.from / (job.shape.heads / job.shape.kv_heads)) / PAGE;
            for (start, page) in pages.iter_mut().zip(&all[first.min(past / PAGE)..=past / PAGE]) {
                // SAFETY: the task's pages exist, as `check` has seen; their type by this function's contract.
                *start = unsafe { head_of::<E>(job, task.kv, *page) };
                count += 1;
            }
        }
        let lines_of_page = PAGE * job.layout.own * size_of::<E>() / CACHE_LINE;
        FirstKeys { pages, lines_of_page, left: 0..count * lines_of_page }
    }

    #[inline(always)]
    fn fetch_line<L: Lanes>(&mut self) {
        if let Some(line) = self.left.next() {
            let page = self.pages[line / self.lines_of_page].cast::<f32>();
            L::prefetch_far(page.wrapping_byte_add(line % self.lines_of_page * CACHE_LINE));
        }
    }
}

/// # Safety
/// The machine has the instruction set of `L`, and the pages hold numbers of type E.
#[inline(always)]
unsafe fn attend<L: Lanes, E: Element>(job: &Job, task: &Task, mut next: FirstKeys<E>) {
    let Job { layout, shape, sinks, sequences, q, out, .. } = job;
    let sequence = &sequences[task.sequence];
    let group = shape.heads / shape.kv_heads;
    let place = |row: usize| sequence.past + row / group;
    let keys_max = place(task.from + task.rows - 1) + 1;
    let width_max = keys_max.next_multiple_of(PAGE) - shape.first_key(place(task.from)) / PAGE * PAGE;
    let mut scores = scratch::buffer(TILE.min(task.rows) * width_max);
    for from in (task.from..task.from + task.rows).step_by(TILE) {
        let rows = TILE.min(task.from + task.rows - from);
        // Scores and weights are those of the keys in the pages from `first` on.
        let first = shape.first_key(place(from)) / PAGE;
        let keys = place(from + rows - 1) + 1 - PAGE * first;
        let width = keys.next_multiple_of(PAGE);
        let pages = &sequence.pages[first..][..keys.div_ceil(PAGE)];
        let head = |r: usize| task.kv * group + (from + r) % group;
        let token = |r: usize| task.first + (from + r) / group;
        let mut queries = [std::ptr::null(); TILE];
        let mut outs = [std::ptr::null_mut(); TILE];
        for r in 0..rows {
            queries[r] = q.row(token(r), head(r)).as_ptr();
            outs[r] = out.at((token(r) * shape.heads + head(r)) * layout.v);
        }
        // SAFETY: the operands were checked; tasks write to rows of their own.
        unsafe {
            scores_of_rows::<L, E>(job, (pages, task.kv), &queries[..rows], scores.as_mut_ptr(), width);
            let mut inverses = [0.0; TILE];
            let mut weights = [std::ptr::null(); TILE];
            for r in 0..rows {
                let row = &mut scores[r * width..][..width];
                let place = place(from + r);
                let seen = shape.first_key(place) - PAGE * first..place + 1 - PAGE * first;
                inverses[r] = softmax::<L>(row, seen, shape, sink_of(*sinks, head(r))).1;
                weights[r] = row.as_ptr();
            }
            let sums = Sums { weights: &weights[..rows], inverses: &inverses[..rows], outs: &outs[..rows] };
            sums_of_rows::<L, E>(job, (pages, task.kv, keys), sums, &mut next);
        }
    }
}

/// Takes `rows` in tiles of as many as there are and registers hold, `$wide` vectors across on AVX-512, or half of 8
/// where `$vectors` are no more, and `$narrow` on the others.
macro_rules! in_tiles {
    ($lanes:ident, $rows:expr, $vectors:expr, |$at:ident, $m:ident, $v:ident| $body:expr) => {{
        let (rows, vectors): (usize, usize) = ($rows, $vectors);
        let mut $at = 0;
        macro_rules! tile {
            ($height:literal, $wide:literal, $narrow:literal) => {{
                const $m: usize = $height;
                if $lanes::TILE.1 != 2 {
                    const $v: usize = $narrow;
                    $body
                } else if $wide == 8 && vectors <= 4 {
                    const $v: usize = 4;
                    $body
                } else {
                    const $v: usize = $wide;
                    $body
                }
                $at += $m;
            }};
        }
        while $at < rows {
            match (rows - $at).min($lanes::TILE.0) {
                12.. => tile!(12, 2, 1),
                6..12 => tile!(6, 4, 1),
                4..6 => tile!(4, 4, 1),
                3 => tile!(3, 8, 2),
                2 => tile!(2, 8, 2),
                _ => tile!(1, 8, 4),
            }
        }
    }};
}

/// Products of the queries with all keys of some pages, `[rows][width]`.
///
/// # Safety
/// As for [`attend`]; `scores` has room.
#[inline(always)]
unsafe fn scores_of_rows<L: Lanes, E: Element>(
    job: &Job,
    (pages, kv): (&[u32], usize),
    queries: &[*const f32],
    scores: *mut f32,
    width: usize,
) {
    let Job { place, layout, .. } = job;
    if queries.len() <= FEW {
        for page in pages.iter().take(FIRST_PAGES) {
            // SAFETY: the sequence's pages exist, as `check` has seen; their type by the contract of `attend`.
            let keys = unsafe { head_of::<E>(job, kv, *page) };
            for byte in (0..PAGE * layout.own * size_of::<E>()).step_by(CACHE_LINE) {
                L::prefetch_far(keys.cast::<f32>().wrapping_byte_add(byte));
            }
        }
    }
    in_tiles!(L, queries.len(), pages.len(), |at, M, V| {
        for first in (0..pages.len()).step_by(V) {
            let count = V.min(pages.len() - first);
            // SAFETY: pages and queries are those of the contract of `attend`, scores have whole pages of room. What
            // has no page of its own does the last one again.
            unsafe {
                let parts: [*const E; V] =
                    std::array::from_fn(|v| place.page::<E>(pages[first + v.min(count - 1)]).cast_const());
                let own = parts.map(|part| part.add(kv * layout.head_len()));
                let shared = parts.map(|part| part.add(layout.kv_heads * layout.head_len()));
                let rows: [*const f32; M] = std::array::from_fn(|i| queries[at + i]);
                // The next keys, and behind the last ones the first values.
                let (next, part) = match pages.get(first + V..).filter(|next| !next.is_empty()) {
                    Some(next) => (next, 0),
                    None => (pages, PAGE * layout.own),
                };
                let ahead = |v: usize| head_of::<E>(job, kv, next[v.min(next.len() - 1)]).wrapping_add(part);
                let ahead = (M <= FEW).then(|| std::array::from_fn(ahead));
                let acc = [[L::splat(0.0); V]; M];
                let acc = extend::<L, E, M, V>(acc, layout.own, rows, own, ahead);
                let acc = extend::<L, E, M, V>(acc, layout.shared, rows.map(|row| row.add(layout.own)), shared, None);
                for (i, row) in acc.iter().enumerate() {
                    for (v, acc) in row.iter().take(count).enumerate() {
                        acc.store(scores.add((at + i) * width + PAGE * (first + v)));
                    }
                }
            }
        }
    });
}

/// Where a page has the keys of a head, which its values follow.
///
/// # Safety
/// As for [`Place::page`].
#[inline(always)]
unsafe fn head_of<E>(job: &Job, kv: usize, page: u32) -> *const E {
    // SAFETY: heads lie one after the other in the layer's part of the page, which exists by this function's
    // contract.
    unsafe { job.place.page::<E>(page).cast_const().add(kv * job.layout.head_len()) }
}

/// Rows up to which a tile waits for pages longer than it computes. What it will read is fetched evenly while it
/// computes, to the second-level cache, which can wait for more lines at a time than the first.
const FEW: usize = 4;
/// Pages whose keys such a tile reads side by side.
const FIRST_PAGES: usize = 8;
/// How many pages ahead it fetches values.
const VALUES_AHEAD: usize = 4;
const CACHE_LINE: usize = 64;

/// Extends chains over `dims` dimensions: rows by panels `[dim][PAGE]`; meanwhile fetches what is `ahead`. Chains come
/// and go by value, and tiles are indexed as the formula is written: borrowed, they would be stored at every step.
///
/// # Safety
/// Rows and panels have as many dimensions; the machine has the instruction set of `L`.
#[inline(always)]
#[allow(clippy::needless_range_loop)]
pub(super) unsafe fn extend<L: Lanes, E: Element, const M: usize, const V: usize>(
    mut acc: [[L; V]; M],
    dims: usize,
    rows: [*const f32; M],
    panels: [*const E; V],
    ahead: Option<[*const E; V]>,
) -> [[L; V]; M] {
    for d in 0..dims {
        if let Some(starts) = &ahead
            && (d * PAGE * size_of::<E>()).is_multiple_of(CACHE_LINE)
        {
            for start in starts {
                L::prefetch_far(start.wrapping_add(d * PAGE).cast());
            }
        }
        // SAFETY: d is below the dimensions that rows and panels have by this function's contract.
        unsafe {
            let mut keys = [L::splat(0.0); V];
            for v in 0..V {
                keys[v] = E::load::<L>(panels[v].add(PAGE * d));
            }
            for i in 0..M {
                let q = L::splat(rows[i].add(d).read());
                for v in 0..V {
                    acc[i][v] = q.fma(keys[v], acc[i][v]);
                }
            }
        }
    }
    acc
}

/// Rows of weights, one over their sums, and where the sums of values go.
struct Sums<'a> {
    weights: &'a [*const f32],
    inverses: &'a [f32],
    outs: &'a [*mut f32],
}

/// The weighted sums of the first `keys` values of some pages.
///
/// # Safety
/// As for [`attend`].
#[inline(always)]
#[allow(clippy::needless_range_loop)] // as in `extend`
unsafe fn sums_of_rows<L: Lanes, E: Element>(
    job: &Job,
    (pages, kv, keys): (&[u32], usize, usize),
    sums: Sums,
    next: &mut FirstKeys<E>,
) {
    let Job { place, layout, .. } = job;
    let stride = layout.v_stride();
    let values = kv * layout.head_len() + PAGE * layout.own;
    in_tiles!(L, sums.outs.len(), stride / LANES, |at, M, V| {
        for first in (0..stride / LANES).step_by(V) {
            let count = V.min(stride / LANES - first);
            // SAFETY: pages, weights and outputs are those of the contract of `attend`. What has no vector of its own
            // does the last one again.
            unsafe {
                let weights: [*const f32; M] = std::array::from_fn(|i| sums.weights[at + i]);
                let columns: [usize; V] = std::array::from_fn(|v| LANES * (first + v.min(count - 1)));
                let mut acc = [[L::splat(0.0); V]; M];
                for (p, page) in pages.iter().enumerate() {
                    let rows = place.page::<E>(*page).cast_const().add(values);
                    let ahead = pages.get(p + VALUES_AHEAD).filter(|_| M <= FEW);
                    let ahead = ahead.map(|page| place.page::<E>(*page).cast_const().add(values));
                    for slot in 0..PAGE.min(keys - PAGE * p) {
                        if M <= FEW {
                            next.fetch_line::<L>();
                        }
                        if let Some(ahead) = ahead {
                            for byte in (0..stride * size_of::<E>()).step_by(CACHE_LINE) {
                                L::prefetch_far(ahead.add(slot * stride).cast::<f32>().wrapping_byte_add(byte));
                            }
                        }
                        let mut row = [L::splat(0.0); V];
                        for v in 0..V {
                            row[v] = E::load::<L>(rows.add(slot * stride + columns[v]));
                        }
                        for i in 0..M {
                            let weight = L::splat(weights[i].add(PAGE * p + slot).read());
                            for v in 0..V {
                                acc[i][v] = weight.fma(row[v], acc[i][v]);
                            }
                        }
                    }
                }
                for (i, row) in acc.iter().enumerate() {
                    let inverse = L::splat(sums.inverses[at + i]);
                    for (v, acc) in row.iter().take(count).enumerate() {
                        let column = LANES * (first + v);
                        micro::store(acc.mul(inverse), sums.outs[at + i].add(column), layout.v - column);
                    }
                }
            }
        }
    });
}

//! Multi-head latent attention in its absorbed form, over latent rows in pages of a KV cache: all heads look at the
//! same keys, a token's latent with its rotary part, and take their values from the latent.
//!
//! With q̃ = W_UKᵀ q_C (DeepSeek-V2 report, appendix C): `score = scale · (q̃·c + q_R·k_R)`,
//! `out = Σ softmax(score) · c`, of which the caller makes W_UV · out.
//!
//! **Order of sums**: that of [`forward`](super::forward) with one key-value head: keys `[c; k_R]`, values c.
//!
//! **Layout.** A page's part of a layer is `[PAGE][latent + rotary]`. Heads lie along the lanes, sixteen at a time, so
//! that a row serves as key and as value just as it is. Of chosen keys the rows are copied side by side.

mod chosen;

use super::paged::{
    Brain, CacheDtype, Element, Half, PAGE, Pages, Place, Sequence, Slot, for_each_token, places, write_row,
};
use super::{Chosen, Heads, HeadsMut, Shape};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::micro::{self, LeftWords, Out, Words};
use crate::pack::{self, Matrix};
use crate::par;
use crate::scratch;
use crate::span::spans;

/// What a layer keeps of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatentLayout {
    /// Width of the latent.
    pub latent: usize,
    /// Width of the rotary part.
    pub rotary: usize,
}

impl LatentLayout {
    /// Numbers that a page has of a layer.
    pub fn page_len(&self) -> usize {
        PAGE * self.width()
    }

    fn width(&self) -> usize {
        self.latent + self.rotary
    }
}

impl Pages {
    /// Writes the new tokens' rows to a layer's part of the pages, which begins at `offset`: `latent[T, latent]` and
    /// `rotary[T, rotary]`.
    ///
    /// # Panics
    /// If pages are missing or shared by two sequences that write to them, or an operand has another size.
    pub fn append_latent(
        &mut self,
        offset: usize,
        layout: LatentLayout,
        sequences: &[Sequence],
        latent: &[f32],
        rotary: &[f32],
    ) {
        let tokens = self.check(sequences);
        self.check_part(offset, layout.page_len());
        assert!(latent.len() == tokens * layout.latent, "latent has {} elements, {tokens} tokens", latent.len());
        assert!(rotary.len() == tokens * layout.rotary, "rotary has {} elements, {tokens} tokens", rotary.len());
        let (place, dtype) = (self.place_mut(offset), self.dtype);
        for_each_token(sequences, |at| {
            let latent = &latent[at.token * layout.latent..][..layout.latent];
            let parts = (latent, &rotary[at.token * layout.rotary..][..layout.rotary]);
            // SAFETY: `check` and `check_part` have seen that the slot's page and the layer's part exist and that no
            // other token has the slot; the pages hold what `dtype` says.
            unsafe {
                match dtype {
                    CacheDtype::F32 => {
                        crate::lanes::dispatch!(append_f32(place: Place, parts: (&[f32], &[f32]), at: Slot))
                    }
                    CacheDtype::F16 => {
                        crate::lanes::dispatch!(append_f16(place: Place, parts: (&[f32], &[f32]), at: Slot))
                    }
                    CacheDtype::Bf16 => {
                        crate::lanes::dispatch!(append_bf16(place: Place, parts: (&[f32], &[f32]), at: Slot))
                    }
                }
            }
        });
    }

    /// The weighted sums of latents of all heads: query (t, h) is `[own(t, h); rotary(t, h)]`, and looks at the rows of
    /// its sequence up to its own, which were [appended](Pages::append_latent), or at the chosen of them.
    ///
    /// # Panics
    /// As for [`Pages::append_latent`].
    pub fn attend_latent(
        &self,
        offset: usize,
        layout: LatentLayout,
        heads: usize,
        scale: f32,
        chosen: Option<&Chosen>,
        sequences: &[Sequence],
        own: Heads,
        rotary: Heads,
        out: HeadsMut,
    ) {
        let tokens = self.check(sequences);
        self.check_part(offset, layout.page_len());
        assert!(scale > 0.0, "scale {scale}");
        assert!((own.dim, rotary.dim) == (layout.latent, layout.rotary), "widths {} and {}", own.dim, rotary.dim);
        assert!(out.dim == layout.latent, "out is {} wide", out.dim);
        own.check("own", heads, tokens);
        rotary.check("rotary", heads, tokens);
        out.check("out", heads, tokens);
        if let Some(chosen) = chosen {
            let shape = Shape { heads, kv_heads: heads, scale, window: None, cap: None };
            shape.check_chosen(None, chosen, places(sequences));
        }
        let blocks = heads.div_ceil(LANES);
        let mut tasks = Vec::with_capacity(tokens * blocks);
        let mut first = 0;
        for sequence in sequences {
            // The last queries see the most keys: they go first.
            for i in (0..sequence.new).rev() {
                let keys = sequence.past + i + 1;
                tasks.extend((0..blocks).map(|block| {
                    let head = LANES * block;
                    let chosen = chosen.map(|chosen| chosen.of(first + i));
                    Task { pages: sequence.pages, keys, chosen, token: first + i, head, count: LANES.min(heads - head) }
                }));
            }
            first += sequence.new;
        }
        let (place, dtype) = (self.place(offset), self.dtype);
        let job = &Job { place, layout, scale, own, rotary, out };
        par::run(tasks.len(), |i| {
            let task = &tasks[i];
            // SAFETY: pages, part and operands were checked above; each task has heads of a token of its own in `out`;
            // the pages hold what `dtype` says.
            unsafe {
                match dtype {
                    CacheDtype::F32 => crate::lanes::dispatch!(attend_f32(job: &Job, task: &Task)),
                    CacheDtype::F16 => crate::lanes::dispatch!(attend_f16(job: &Job, task: &Task)),
                    CacheDtype::Bf16 => crate::lanes::dispatch!(attend_bf16(job: &Job, task: &Task)),
                }
            }
        });
    }
}

/// # Safety
/// As for [`append`], of pages of f32.
#[inline(always)]
unsafe fn append_f32<L: Lanes>(place: Place, parts: (&[f32], &[f32]), at: Slot) {
    // SAFETY: f32 is what these pages hold; place, parts and slot go on as they came.
    unsafe { append::<L, f32>(place, parts, at) }
}

/// # Safety
/// As for [`append`], of pages of f16.
#[inline(always)]
unsafe fn append_f16<L: Lanes>(place: Place, parts: (&[f32], &[f32]), at: Slot) {
    // SAFETY: `Half` is a number of pages of f16; place, parts and slot go on as they came.
    unsafe { append::<L, Half>(place, parts, at) }
}

/// # Safety
/// As for [`append`], of pages of bf16.
#[inline(always)]
unsafe fn append_bf16<L: Lanes>(place: Place, parts: (&[f32], &[f32]), at: Slot) {
    // SAFETY: `Brain` is a number of pages of bf16; place, parts and slot go on as they came.
    unsafe { append::<L, Brain>(place, parts, at) }
}

/// # Safety
/// Page and slot exist and hold numbers of type E, and no other task has this slot; the machine has the instruction set
/// of `L`.
#[inline(always)]
unsafe fn append<L: Lanes, E: Element>(place: Place, (latent, rotary): (&[f32], &[f32]), at: Slot) {
    // SAFETY: the slot's row lies in the layer's part of its page, which both exist and are this task's by this
    // function's contract.
    unsafe {
        let row = place.page::<E>(at.page).add(at.slot * (latent.len() + rotary.len()));
        write_row::<L, E>(latent, row, 1);
        write_row::<L, E>(rotary, row.add(latent.len()), 1);
    }
}

/// One query of up to sixteen heads.
struct Task<'a> {
    pages: &'a [u32],
    keys: usize,
    chosen: Option<&'a [u32]>,
    token: usize,
    head: usize,
    count: usize,
}

struct Job<'a> {
    place: Place,
    layout: LatentLayout,
    scale: f32,
    own: Heads<'a>,
    rotary: Heads<'a>,
    out: HeadsMut<'a>,
}

/// # Safety
/// As for [`attend`], of pages of f32.
#[inline(always)]
unsafe fn attend_f32<L: Lanes>(job: &Job, task: &Task) {
    // SAFETY: f32 is what these pages hold; job and task go on as they came.
    unsafe { attend::<L, f32>(job, task) }
}

/// # Safety
/// As for [`attend`], of pages of f16.
#[inline(always)]
unsafe fn attend_f16<L: Lanes>(job: &Job, task: &Task) {
    // SAFETY: `Half` is a number of pages of f16; job and task go on as they came.
    unsafe { attend::<L, Half>(job, task) }
}

/// # Safety
/// As for [`attend`], of pages of bf16.
#[inline(always)]
unsafe fn attend_bf16<L: Lanes>(job: &Job, task: &Task) {
    // SAFETY: `Brain` is a number of pages of bf16; job and task go on as they came.
    unsafe { attend::<L, Brain>(job, task) }
}

/// # Safety
/// The machine has the instruction set of `L`; the pages exist and hold numbers of type E; the operands were checked;
/// no other task has these heads of this token.
#[inline(always)]
unsafe fn attend<L: Lanes, E: Element>(job: &Job, task: &Task) {
    if let Some(keys) = task.chosen {
        // SAFETY: the same contract, and of the task's keys the chosen ones.
        return unsafe { chosen::attend::<L, E>(job, task, keys) };
    }
    let Job { place, layout, .. } = *job;
    let LatentLayout { latent, rotary } = layout;
    let width = layout.width();
    let mut queries = scratch::buffer(LANES * width);
    let mut weights = scratch::buffer(LANES * task.keys);
    let mut sums = scratch::buffer(LANES * latent);
    let mut wide = scratch::buffer(PAGE * width);
    // SAFETY: the buffers taken above have sixteen heads by all keys and dimensions, and a page by its width; the
    // task's pages exist, its operands were checked, and its heads of the output are its own by this function's
    // contract. A page and `wide` are sixteen rows, so `widened` may round up.
    unsafe {
        let (own_panel, rotary_panel) = queries.split_at_mut(LANES * latent);
        panel::<L>(&job.own, task, own_panel);
        panel::<L>(&job.rotary, task, rotary_panel);
        debug_assert_eq!(rotary_panel.len(), LANES * rotary);
        for (p, page) in task.pages[..task.keys.div_ceil(PAGE)].iter().enumerate() {
            let keys = PAGE.min(task.keys - PAGE * p);
            let rows = widened::<L, E>(place.page(*page), keys * width, &mut wide);
            let rows: [*const u32; PAGE] = std::array::from_fn(|i| rows.wrapping_add(i * width).cast());
            let at = weights[LANES * PAGE * p..].as_mut_ptr();
            let out = Out { at, stride: LANES, columns: LANES, continues: false };
            let panel = scratch::words(&queries).as_ptr();
            micro::product::<L, micro::F32>(keys, width, LeftWords::Rows(&rows[..keys]), panel, 0, out);
        }
        let inverse = softmax::<L>(&mut weights, job.scale);
        for (p, page) in task.pages[..task.keys.div_ceil(PAGE)].iter().enumerate() {
            let keys = PAGE.min(task.keys - PAGE * p);
            let rows = widened::<L, E>(place.page(*page), keys * width, &mut wide);
            let columns = LeftWords::Columns { first: rows.cast(), stride: width };
            let panel = scratch::words(&weights)[LANES * PAGE * p..].as_ptr();
            let out = Out { at: sums.as_mut_ptr(), stride: LANES, columns: LANES, continues: p > 0 };
            micro::product::<L, micro::F32>(latent, keys, columns, panel, 0, out);
        }
        store::<L>(&sums, inverse, task, &job.out);
    }
}

/// Queries of the task's heads as a panel `[dim][LANES]`.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn panel<L: Lanes>(q: &Heads, task: &Task, out: &mut [f32]) {
    let data = &q.data[task.token * q.row_stride + q.offset + task.head * q.head_stride..];
    let matrix = Matrix { data, stride: q.head_stride, rows: None };
    let block = pack::Block { k0: 0, k: q.dim, j0: 0, columns: task.count };
    // SAFETY: a query has `dim` numbers from `data` on, as the operands' check has seen; instructions by this
    // function's contract.
    unsafe { pack::panels_of_columns::<L>(matrix, block, Words::Numbers, scratch::words_mut(out)) };
}

/// A page's rows as f32: where they are, or widened into `room`.
///
/// # Safety
/// The page has `len` elements, rounded up to a multiple of sixteen, and so has `room`; the machine has the instruction
/// set of `L`.
#[inline(always)]
unsafe fn widened<L: Lanes, E: Element>(page: *const E, len: usize, room: &mut [f32]) -> *const f32 {
    if size_of::<E>() == size_of::<f32>() {
        return page.cast();
    }
    assert!(len <= room.len(), "{len} numbers into room for {}", room.len());
    for i in (0..len).step_by(LANES) {
        // SAFETY: i is below `len`, and page and room have sixteen elements from each multiple of sixteen below it on.
        unsafe { E::load::<L>(page.add(i)).store(room.as_mut_ptr().add(i)) };
    }
    room.as_ptr()
}

/// Turns products `[keys][LANES]` into weights that are not yet divided by their sums; gives one over the sums.
///
/// # Safety
/// The machine has the instruction set of `L`.
#[inline(always)]
unsafe fn softmax<L: Lanes>(weights: &mut [f32], scale: f32) -> L {
    let rows = weights.as_chunks_mut::<LANES>().0;
    // SAFETY: `as_chunks_mut` gives whole vectors; instructions by this function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for row in rows.iter_mut() {
            let scaled = L::load(row.as_ptr()).mul(L::splat(scale));
            max = scaled.max(max);
            scaled.store(row.as_mut_ptr());
        }
        // Sixteen partial sums over the keys, and the fixed tree, lane by lane.
        let mut sums = [L::splat(0.0); LANES];
        for rows in rows.chunks_mut(LANES) {
            for (sum, row) in sums.iter_mut().zip(rows) {
                let p = math::exp(L::load(row.as_ptr()).sub(max));
                *sum = sum.add(p);
                p.store(row.as_mut_ptr());
            }
        }
        let mut half = LANES / 2;
        while half > 0 {
            for i in 0..half {
                sums[i] = sums[i].add(sums[i + half]);
            }
            half /= 2;
        }
        L::splat(1.0).div(sums[0])
    }
}

/// Writes sums `[dim][LANES]` times `inverse` to the rows of the task's heads.
///
/// # Safety
/// The machine has the instruction set of `L`; there are `out.dim` rows of sums; `out` was checked for the task's token
/// and heads, which no other task has.
#[inline(always)]
unsafe fn store<L: Lanes>(sums: &[f32], inverse: L, task: &Task, out: &HeadsMut) {
    spans!(out.dim, |s| {
        // SAFETY: row s.at + i of the sums is below `out.dim`; a row of `out` has `dim` elements and is this task's.
        unsafe {
            let mut rows = [L::splat(0.0); LANES];
            for (i, row) in rows.iter_mut().take(s.n).enumerate() {
                *row = L::load(sums.as_ptr().add(LANES * (s.at + i))).mul(inverse);
            }
            for (h, lanes) in L::transpose(rows).into_iter().take(task.count).enumerate() {
                s.store(lanes, out.row(task.token, task.head + h));
            }
        }
    });
}

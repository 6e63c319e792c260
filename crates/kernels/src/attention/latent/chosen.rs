//! Attention over chosen latents: as over all of them, without terms that are 0.

use super::{Job, LatentLayout, Task, panel, store};
use crate::attention::paged::{Element, PAGE};
use crate::lanes::{LANES, Lanes};
use crate::math;
use crate::micro::{self, LeftWords, Out};
use crate::scratch;

/// # Safety
/// As for [`super::attend`]; the chosen keys are among the task's.
#[inline(always)]
pub(super) unsafe fn attend<L: Lanes, E: Element>(job: &Job, task: &Task, chosen: &[u32]) {
    let LatentLayout { latent, .. } = job.layout;
    let width = job.layout.width();
    let mut queries = scratch::buffer(LANES * width);
    let mut weights = scratch::buffer(LANES * chosen.len());
    let mut sums = scratch::buffer(LANES * latent);
    let mut rows = scratch::buffer(PAGE * width);
    // SAFETY: the buffers taken above have sixteen heads by all chosen keys and dimensions, and sixteen rows; the
    // task's pages exist, its operands were checked, and its heads of the output are its own by this function's
    // contract.
    unsafe {
        let (own_panel, rotary_panel) = queries.split_at_mut(LANES * latent);
        panel::<L>(&job.own, task, own_panel);
        panel::<L>(&job.rotary, task, rotary_panel);
        for (i, keys) in chosen.chunks(PAGE).enumerate() {
            gather::<L, E>(job, task, keys, &mut rows);
            let left: [*const u32; PAGE] = std::array::from_fn(|i| rows.as_ptr().wrapping_add(i * width).cast());
            let at = weights[LANES * PAGE * i..].as_mut_ptr();
            let out = Out { at, stride: LANES, columns: LANES, continues: false };
            let panel = scratch::words(&queries).as_ptr();
            micro::product::<L, micro::F32>(keys.len(), width, LeftWords::Rows(&left[..keys.len()]), panel, 0, out);
        }
        let inverse = softmax::<L>(&mut weights, chosen, job.scale);
        for (i, keys) in chosen.chunks(PAGE).enumerate() {
            gather::<L, E>(job, task, keys, &mut rows);
            let columns = LeftWords::Columns { first: rows.as_ptr().cast(), stride: width };
            let panel = scratch::words(&weights)[LANES * PAGE * i..].as_ptr();
            let out = Out { at: sums.as_mut_ptr(), stride: LANES, columns: LANES, continues: i > 0 };
            micro::product::<L, micro::F32>(latent, keys.len(), columns, panel, 0, out);
        }
        store::<L>(&sums, inverse, task, &job.out);
    }
}

/// The rows of some keys, side by side.
///
/// # Safety
/// As for [`attend`]; there is room for the rows.
#[inline(always)]
unsafe fn gather<L: Lanes, E: Element>(job: &Job, task: &Task, keys: &[u32], rows: &mut [f32]) {
    let width = job.layout.width();
    for (key, row) in keys.iter().zip(rows.chunks_exact_mut(width)) {
        // SAFETY: the key's page exists, and has a row of `width` numbers in its slot, by this function's contract.
        unsafe {
            let page = job.place.page::<E>(task.pages[*key as usize / PAGE]).cast_const();
            let from = page.add(*key as usize % PAGE * width);
            let (vectors, rest) = row.as_chunks_mut::<LANES>();
            for (i, to) in vectors.iter_mut().enumerate() {
                E::load::<L>(from.add(LANES * i)).store(to.as_mut_ptr());
            }
            let behind = width - rest.len();
            rest.iter_mut().enumerate().for_each(|(i, to)| *to = from.add(behind + i).read().number());
        }
    }
}

/// As [`super::softmax`]: each of the sixteen partial sums is over the keys that are its own where all are chosen.
///
/// # Safety
/// The machine has the instruction set of `L`; there are weights of as many keys.
#[inline(always)]
unsafe fn softmax<L: Lanes>(weights: &mut [f32], keys: &[u32], scale: f32) -> L {
    let rows = weights.as_chunks_mut::<LANES>().0;
    // SAFETY: `as_chunks_mut` gives whole vectors; instructions by this function's contract.
    unsafe {
        let mut max = L::splat(f32::NEG_INFINITY);
        for row in rows.iter_mut() {
            let scaled = L::load(row.as_ptr()).mul(L::splat(scale));
            max = scaled.max(max);
            scaled.store(row.as_mut_ptr());
        }
        let mut sums = [L::splat(0.0); LANES];
        for (key, row) in keys.iter().zip(rows) {
            let sum = &mut sums[*key as usize % LANES];
            let p = math::exp(L::load(row.as_ptr()).sub(max));
            *sum = sum.add(p);
            p.store(row.as_mut_ptr());
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

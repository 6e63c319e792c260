//! Writing keys and values to pages.

use super::{Brain, CacheDtype, Element, Half, Layout, PAGE, Pages, Place, Sequence, Slot, for_each_token};
use crate::attention::{Heads, Keys, Shape, check_operands};
use crate::lanes::Lanes;
use crate::span::spans;

impl Pages {
    /// Writes the new tokens' keys and values to a layer's part of the pages, which begins at `offset`.
    ///
    /// # Panics
    /// If pages are missing or shared by two sequences that write to them, or an operand is too short.
    pub fn append(&mut self, offset: usize, layout: Layout, sequences: &[Sequence], k: Keys, v: Heads) {
        let tokens = self.check(sequences);
        self.check_part(offset, layout.page_len());
        let Layout { kv_heads, own, shared, v: v_dim } = layout;
        let shape = Shape { heads: kv_heads, kv_heads, scale: 1.0, window: None, cap: None };
        let q = Heads { dim: own + shared, ..k.own };
        check_operands(&shape, (&q, 0), (&k, &v, tokens));
        assert!((k.own.dim, v.dim) == (own, v_dim), "key and value widths {} and {}", k.own.dim, v.dim);
        let (place, dtype, k, v) = (self.place_mut(offset), self.dtype, &k, &v);
        for_each_token(sequences, |at| {
            // SAFETY: `check` and `check_part` have seen that the slot's page and the layer's part exist and that no
            // other token has the slot; k and v were checked; the pages hold what `dtype` says.
            unsafe {
                match dtype {
                    CacheDtype::F32 => {
                        crate::lanes::dispatch!(append_f32(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot))
                    }
                    CacheDtype::F16 => {
                        crate::lanes::dispatch!(append_f16(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot))
                    }
                    CacheDtype::Bf16 => {
                        crate::lanes::dispatch!(
                            append_bf16(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot)
                        )
                    }
                }
            }
        });
    }
}

/// Writes `row` with `stride` elements from one to the next.
///
/// # Safety
/// There is room from `at` on; the machine has the instruction set of `L`.
#[inline(always)]
pub(in crate::attention) unsafe fn write_row<L: Lanes, E: Element>(row: &[f32], at: *mut E, stride: usize) {
    spans!(row.len(), |s| {
        // SAFETY: a span lies inside the row, and as far from `at` there is room by this function's contract.
        unsafe {
            let elements = E::of(s.load::<L>(row));
            for (i, element) in elements.into_iter().take(s.n).enumerate() {
                at.add((s.at + i) * stride).write(element);
            }
        }
    });
}

/// # Safety
/// As for [`append_token`], of pages of f32.
#[inline(always)]
unsafe fn append_f32<L: Lanes>(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot) {
    // SAFETY: the pages hold f32; the rest by this function's contract.
    unsafe { append_token::<L, f32>(place, layout, k, v, at) }
}

/// # Safety
/// As for [`append_token`], of pages of f16.
#[inline(always)]
unsafe fn append_f16<L: Lanes>(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot) {
    // SAFETY: the pages hold f16; the rest by this function's contract.
    unsafe { append_token::<L, Half>(place, layout, k, v, at) }
}

/// # Safety
/// As for [`append_token`], of pages of bf16.
#[inline(always)]
unsafe fn append_bf16<L: Lanes>(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot) {
    // SAFETY: the pages hold bf16; the rest by this function's contract.
    unsafe { append_token::<L, Brain>(place, layout, k, v, at) }
}

/// # Safety
/// Page, slot and token exist, and no other task has this slot; the machine has the instruction set of `L`.
#[inline(always)]
unsafe fn append_token<L: Lanes, E: Element>(place: Place, layout: Layout, k: &Keys, v: &Heads, at: Slot) {
    let Slot { token, page, slot } = at;
    // SAFETY: heads and shared part lie one after the other in the layer's part of the page, in which the slot is
    // this task's by this function's contract.
    unsafe {
        let start = place.page::<E>(page);
        for h in 0..layout.kv_heads {
            let head = start.add(h * layout.head_len());
            write_row::<L, E>(k.own.row(token, h), head.add(slot), PAGE);
            let values = head.add(PAGE * layout.own + slot * layout.v_stride());
            write_row::<L, E>(v.row(token, h), values, 1);
        }
        if let Some(shared) = &k.shared {
            let keys = start.add(layout.kv_heads * layout.head_len());
            write_row::<L, E>(shared.row(token, 0), keys.add(slot), PAGE);
        }
    }
}

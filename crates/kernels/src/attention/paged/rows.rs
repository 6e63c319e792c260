//! Rows of numbers that pages hold as they are: of each token, or of each so manieth.
//!
//! Row i is of the tokens `every·i ..< every·(i + 1)` and lies in the page of the last of them, so that a page holds
//! what follows from its tokens and those before. Its part of a page has `PAGE/every` rows, at least one.

use super::{Brain, CacheDtype, Element, Half, PAGE, Pages, Place, write_row};
use crate::lanes::{LANES, Lanes};
use crate::par::{self, SharedMut};
use crate::span::spans;
use std::ops::Range;

/// Where rows lie in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RowLayout {
    /// Where the first row begins in a page.
    pub offset: usize,
    /// Numbers of a row.
    pub width: usize,
    /// Tokens of a row; divides [`PAGE`] or is a multiple of it.
    pub every: usize,
}

impl RowLayout {
    /// Numbers that a page has of these rows.
    pub fn page_len(&self) -> usize {
        self.width * (PAGE / self.every).max(1)
    }

    /// The page of a sequence that has a row, and where in it the row begins.
    pub fn place(&self, row: usize) -> (usize, usize) {
        let last = (row + 1) * self.every - 1;
        (last / PAGE, self.offset + last % PAGE / self.every * self.width)
    }

    fn check(&self) {
        let every = self.every;
        assert!(every > 0 && (PAGE.is_multiple_of(every) || every.is_multiple_of(PAGE)), "{self:?} in pages of {PAGE}");
    }
}

/// Some rows of one sequence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows<'a> {
    /// Its pages, in the order of the tokens.
    pub pages: &'a [u32],
    /// Which rows.
    pub rows: Range<usize>,
}

impl Pages {
    /// Writes rows of sequences, `x[R, width]`, one sequence's after the other's.
    ///
    /// # Panics
    /// If a page is missing, two sequences write to one, or x has another size.
    pub fn put_rows(&mut self, at: RowLayout, sequences: &[SequenceRows], x: &[f32]) {
        let places = self.places(at, sequences);
        let mut sorted: Vec<_> = places.iter().collect();
        sorted.sort_unstable();
        assert!(sorted.windows(2).all(|pair| pair[0] != pair[1]), "rows of two sequences in one place");
        assert!(x.len() == places.len() * at.width, "{} numbers of {} rows of {}", x.len(), places.len(), at.width);
        let (place, dtype) = (self.place_mut(0), self.dtype);
        par::run(places.len(), |i| {
            let (row, to) = (&x[i * at.width..][..at.width], places[i]);
            // SAFETY: page and row lie in the memory, no other task has the row; the pages hold what `dtype` says.
            unsafe {
                match dtype {
                    CacheDtype::F32 => crate::lanes::dispatch!(put_f32(place: Place, to: (u32, usize), row: &[f32])),
                    CacheDtype::F16 => crate::lanes::dispatch!(put_f16(place: Place, to: (u32, usize), row: &[f32])),
                    CacheDtype::Bf16 => crate::lanes::dispatch!(put_bf16(place: Place, to: (u32, usize), row: &[f32])),
                }
            }
        });
    }

    /// Reads rows of sequences, `y[R, width]`, one sequence's after the other's.
    ///
    /// # Panics
    /// As for [`Pages::put_rows`].
    pub fn take_rows(&self, at: RowLayout, sequences: &[SequenceRows], y: &mut [f32]) {
        let places = self.places(at, sequences);
        assert!(y.len() == places.len() * at.width, "{} numbers of {} rows of {}", y.len(), places.len(), at.width);
        let (place, dtype, y) = (self.place(0), self.dtype, SharedMut::new(y));
        par::run(places.len(), |i| {
            let from = places[i];
            // SAFETY: each row is one task's; page and row lie in the memory; the pages hold what `dtype` says.
            unsafe {
                let row = y.slice(i * at.width, at.width);
                match dtype {
                    CacheDtype::F32 => {
                        crate::lanes::dispatch!(take_f32(place: Place, from: (u32, usize), row: &mut [f32]))
                    }
                    CacheDtype::F16 => {
                        crate::lanes::dispatch!(take_f16(place: Place, from: (u32, usize), row: &mut [f32]))
                    }
                    CacheDtype::Bf16 => {
                        crate::lanes::dispatch!(take_bf16(place: Place, from: (u32, usize), row: &mut [f32]))
                    }
                }
            }
        });
    }

    /// The page of each row, and where in it the row begins.
    fn places(&self, at: RowLayout, sequences: &[SequenceRows]) -> Vec<(u32, usize)> {
        at.check();
        self.check_part(at.offset, at.page_len());
        let place = |pages: &[u32], row: usize| {
            let (page, start) = at.place(row);
            let number = pages.get(page).copied().filter(|page| (*page as usize) < self.count());
            (number.unwrap_or_else(|| panic!("no page {page} of {} for row {row}", pages.len())), start)
        };
        sequences
            .iter()
            .flat_map(|SequenceRows { pages, rows }| rows.clone().map(move |row| place(pages, row)))
            .collect()
    }
}

/// # Safety
/// As for [`put`], of pages of f32.
#[inline(always)]
unsafe fn put_f32<L: Lanes>(place: Place, to: (u32, usize), row: &[f32]) {
    // SAFETY: f32 is what these pages hold; the rest goes on as it came.
    unsafe { put::<L, f32>(place, to, row) }
}

/// # Safety
/// As for [`put`], of pages of f16.
#[inline(always)]
unsafe fn put_f16<L: Lanes>(place: Place, to: (u32, usize), row: &[f32]) {
    // SAFETY: `Half` is a number of pages of f16; the rest goes on as it came.
    unsafe { put::<L, Half>(place, to, row) }
}

/// # Safety
/// As for [`put`], of pages of bf16.
#[inline(always)]
unsafe fn put_bf16<L: Lanes>(place: Place, to: (u32, usize), row: &[f32]) {
    // SAFETY: `Brain` is a number of pages of bf16; the rest goes on as it came.
    unsafe { put::<L, Brain>(place, to, row) }
}

/// # Safety
/// Page and row exist and hold numbers of type E, and no other task has this row; the machine has the instruction set
/// of `L`.
#[inline(always)]
unsafe fn put<L: Lanes, E: Element>(place: Place, (page, start): (u32, usize), row: &[f32]) {
    // SAFETY: the row lies in the page by this function's contract.
    unsafe { write_row::<L, E>(row, place.page::<E>(page).add(start), 1) }
}

/// # Safety
/// As for [`take`], of pages of f32.
#[inline(always)]
unsafe fn take_f32<L: Lanes>(place: Place, from: (u32, usize), row: &mut [f32]) {
    // SAFETY: f32 is what these pages hold; the rest goes on as it came.
    unsafe { take::<L, f32>(place, from, row) }
}

/// # Safety
/// As for [`take`], of pages of f16.
#[inline(always)]
unsafe fn take_f16<L: Lanes>(place: Place, from: (u32, usize), row: &mut [f32]) {
    // SAFETY: `Half` is a number of pages of f16; the rest goes on as it came.
    unsafe { take::<L, Half>(place, from, row) }
}

/// # Safety
/// As for [`take`], of pages of bf16.
#[inline(always)]
unsafe fn take_bf16<L: Lanes>(place: Place, from: (u32, usize), row: &mut [f32]) {
    // SAFETY: `Brain` is a number of pages of bf16; the rest goes on as it came.
    unsafe { take::<L, Brain>(place, from, row) }
}

/// # Safety
/// Page and row exist and hold numbers of type E; the machine has the instruction set of `L`.
#[inline(always)]
unsafe fn take<L: Lanes, E: Element>(place: Place, (page, start): (u32, usize), row: &mut [f32]) {
    // SAFETY: the row lies in the page by this function's contract; only whole vectors of it are loaded at once.
    unsafe {
        let from = place.page::<E>(page).cast_const().add(start);
        spans!(row.len(), |s| {
            if s.n == LANES {
                s.store(E::load::<L>(from.add(s.at)), row);
            } else {
                for (i, number) in row.iter_mut().enumerate().skip(s.at) {
                    *number = from.add(i).read().number();
                }
            }
        });
    }
}

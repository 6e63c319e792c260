//! Buffers that calls of a thread reuse: memory that is new costs a page fault every 4 KiB.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};

use crate::memory;

thread_local!(static FREE: RefCell<Vec<memory::Buffer>> = const { RefCell::new(Vec::new()) });

/// From this length on a buffer has huge pages of its own: a packed operand that is to stay in a second-level cache
/// does not if its small pages happen to share the cache's sets.
const LARGE: usize = memory::HUGE_PAGE / 8 / size_of::<f32>();

/// Numbers with any contents; given back when dropped.
pub(crate) struct Buffer {
    data: memory::Buffer,
    len: usize,
}

/// `len` numbers with any contents.
pub(crate) fn buffer(len: usize) -> Buffer {
    let data = match FREE.with_borrow_mut(|free| free.pop()) {
        Some(data) if data.len() >= len => data,
        _ if len < LARGE => memory::Buffer::zeros(len),
        _ => memory::Buffer::zeros(len.next_multiple_of(memory::HUGE_PAGE / size_of::<f32>())),
    };
    Buffer { data, len }
}

/// `len` zeros.
pub(crate) fn zeros(len: usize) -> Buffer {
    let mut buffer = buffer(len);
    buffer.fill(0.0);
    buffer
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let data = std::mem::replace(&mut self.data, memory::Buffer::zeros(0));
        // A thread that is ending has no use for it.
        let _ = FREE.try_with(|free| free.borrow_mut().push(data));
    }
}

/// The same memory as words of bits.
pub(crate) fn words(data: &[f32]) -> &[u32] {
    // SAFETY: f32 and u32 have the same size and alignment, and any bits are valid.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), data.len()) }
}

/// The same memory as words of bits.
pub(crate) fn words_mut(data: &mut [f32]) -> &mut [u32] {
    // SAFETY: f32 and u32 have the same size and alignment, any bits are valid, and the numbers are borrowed alone.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), data.len()) }
}

/// The same memory as numbers.
pub(crate) fn numbers_mut(words: &mut [u32]) -> &mut [f32] {
    // SAFETY: f32 and u32 have the same size and alignment, any bits are valid, and the words are borrowed alone.
    unsafe { std::slice::from_raw_parts_mut(words.as_mut_ptr().cast(), words.len()) }
}

/// The same memory as bytes.
pub(crate) fn bytes(data: &[f32]) -> &[u8] {
    // SAFETY: any bits are valid bytes, four for each number.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), 4 * data.len()) }
}

/// The same memory as bytes.
pub(crate) fn bytes_mut(data: &mut [f32]) -> &mut [u8] {
    // SAFETY: four bytes for each number, any bits are valid, and the numbers are borrowed alone.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), 4 * data.len()) }
}

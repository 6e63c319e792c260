//! Memory for numbers, in huge pages where the system gives them: a kernel that walks rows of many matrices touches
//! more pages than the processor's tables hold, and each miss in a virtual machine is two walks.

use std::alloc::{self, Layout};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, PoisonError, Weak};

pub(crate) const HUGE_PAGE: usize = 2 * 1024 * 1024;
const CACHE_LINE: usize = 64;
/// Numbers in a chunk that small buffers share.
const CHUNK_LEN: usize = 4 * HUGE_PAGE / size_of::<f32>();

/// `len` numbers that do not move, zero at first.
pub struct Buffer {
    start: *mut f32,
    len: usize,
    memory: Memory,
}

/// What to give back.
enum Memory {
    Nothing,
    /// To the system.
    Own(*mut u8, Layout),
    /// A part of what others have the rest of.
    Shared {
        _chunk: Arc<Buffer>,
    },
}

// SAFETY: a buffer owns its memory as a boxed slice does.
unsafe impl Send for Buffer {}
// SAFETY: a shared reference gives no more than a shared slice.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// Takes memory from the system.
    pub fn zeros(len: usize) -> Self {
        if len == 0 {
            return Buffer { start: std::ptr::NonNull::dangling().as_ptr(), len, memory: Memory::Nothing };
        }
        let layout = Self::layout(len);
        // SAFETY: the layout has a size; what is written is what was taken.
        unsafe {
            let start = alloc::alloc(layout);
            if start.is_null() {
                alloc::handle_alloc_error(layout);
            }
            ask_for_huge_pages(start, layout.size());
            std::ptr::write_bytes(start, 0, layout.size());
            Buffer { start: start.cast(), len, memory: Memory::Own(start, layout) }
        }
    }

    /// As [`Buffer::zeros`], for memory of which perhaps not all will be used: the system gives it as it is touched.
    pub fn reserved(len: usize) -> Self {
        if len * size_of::<f32>() < HUGE_PAGE {
            return Self::zeros(len);
        }
        // Only at the alignment that any memory has are zeros to be had untouched: a huge page more, and begin inside.
        let bytes = len * size_of::<f32>() + HUGE_PAGE;
        let layout = Layout::from_size_align(bytes, align_of::<f32>()).expect("a size in memory");
        // SAFETY: the layout has a size; the start is inside of what was taken, with `len` numbers after it.
        unsafe {
            let taken = alloc::alloc_zeroed(layout);
            if taken.is_null() {
                alloc::handle_alloc_error(layout);
            }
            let start = taken.add(taken.align_offset(HUGE_PAGE));
            ask_for_huge_pages(start, len * size_of::<f32>());
            Buffer { start: start.cast(), len, memory: Memory::Own(taken, layout) }
        }
    }

    /// As [`Buffer::zeros`], for matrices that live and die together: small ones lie in chunks of huge pages, which go
    /// back to the system with the last of them.
    pub fn beside_others(len: usize) -> Self {
        static CHUNK: Mutex<(Weak<Buffer>, usize)> = Mutex::new((Weak::new(), 0));
        let rounded = len.next_multiple_of(CACHE_LINE / size_of::<f32>());
        if len == 0 || rounded > CHUNK_LEN / 4 {
            return Self::zeros(len);
        }
        let mut current = CHUNK.lock().unwrap_or_else(PoisonError::into_inner);
        let (chunk, used) = match current.0.upgrade() {
            Some(chunk) if current.1 + rounded <= CHUNK_LEN => (chunk, current.1),
            _ => (Arc::new(Self::reserved(CHUNK_LEN)), 0),
        };
        *current = (Arc::downgrade(&chunk), used + rounded);
        // No two buffers get the same part, and the chunk, which nobody else writes to, stays while this one is there.
        Buffer { start: chunk.start.wrapping_add(used), len, memory: Memory::Shared { _chunk: chunk } }
    }

    fn layout(len: usize) -> Layout {
        let bytes = len * size_of::<f32>();
        let align = if bytes >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        Layout::from_size_align(bytes, align).expect("a size in memory")
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Memory::Own(taken, layout) = self.memory {
            // SAFETY: `memory` is `Own` only with the start and the layout that the allocator gave, and is dropped
            // once.
            unsafe { alloc::dealloc(taken, layout) }
        }
    }
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `len` numbers of its own, all of which were written.
        unsafe { std::slice::from_raw_parts(self.start, self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: `len` numbers of its own, borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.len) }
    }
}

/// Gives what the allocator keeps of freed memory back to the system: between parts of a program that need memory of
/// different shapes. Does nothing where the allocator is not glibc's.
pub fn give_free_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: glibc's `malloc_trim` has no precondition: it returns free pages of the heap under the heap's own lock.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Has the system give memory now that it would give as it is touched. A hint; what is in it stays.
pub fn populate(part: &[f32]) {
    #[cfg(target_os = "linux")]
    {
        const SMALL_PAGE: usize = 4096;
        let start = part.as_ptr().cast::<u8>();
        let begin = start.align_offset(SMALL_PAGE);
        let whole = size_of_val(part).saturating_sub(begin) / SMALL_PAGE * SMALL_PAGE;
        if whole > 0 {
            // SAFETY: the range is inside the part, and the call changes nothing of what is in it.
            unsafe { libc::madvise(start.wrapping_add(begin).cast_mut().cast(), whole, libc::MADV_POPULATE_WRITE) };
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = part;
}

/// A hint; a system that does not know it goes on with small pages.
#[cfg(target_os = "linux")]
fn ask_for_huge_pages(start: *mut u8, len: usize) {
    let whole = len / HUGE_PAGE * HUGE_PAGE;
    if whole > 0 {
        // SAFETY: the range is ours, and the call changes nothing of what is in it.
        unsafe { libc::madvise(start.cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

#[cfg(not(target_os = "linux"))]
fn ask_for_huge_pages(_start: *mut u8, _len: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_zero_and_aligned() {
        for (len, align) in [(0, 4), (1, CACHE_LINE), (1000, CACHE_LINE), (HUGE_PAGE / 4 + 3, HUGE_PAGE)] {
            let mut buffer = Buffer::zeros(len);
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0));
            assert!(buffer.as_ptr().addr().is_multiple_of(align));
            buffer.fill(1.0);
        }
    }

    #[test]
    fn buffers_beside_others_are_zero_and_do_not_overlap() {
        let lens = [1, 17, 1000, 300_000, 500_000, 500_000, 500_000, 500_000, CHUNK_LEN, 0, 5];
        for _ in 0..2 {
            let mut all: Vec<_> = lens.iter().map(|len| Buffer::beside_others(*len)).collect();
            for (i, (buffer, len)) in all.iter_mut().zip(lens).enumerate() {
                assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0), "buffer {i}");
                assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(CACHE_LINE));
                buffer.fill(i as f32 + 1.0);
            }
            all.remove(3); // its part is not given to another one
            all.push(Buffer::beside_others(300_000));
            assert!(all[10].iter().all(|x| *x == 0.0));
            all.iter().take(10).for_each(|buffer| assert!(buffer.iter().all(|x| *x == buffer[0] && *x > 0.0)));
        }
    }

    #[test]
    fn reserved_buffers_are_zero_and_aligned() {
        for (len, align) in [(0, 4), (1000, CACHE_LINE), (HUGE_PAGE / 4, HUGE_PAGE), (3 * HUGE_PAGE, HUGE_PAGE)] {
            let mut buffer = Buffer::reserved(len);
            assert!(buffer.len() == len && buffer.iter().all(|x| *x == 0.0));
            assert!(buffer.as_ptr().addr().is_multiple_of(align));
            buffer.fill(1.0);
        }
        let mut buffer = Buffer::reserved(HUGE_PAGE);
        buffer[5000] = 1.0;
        populate(&buffer[3..]);
        assert!(buffer.iter().enumerate().all(|(i, x)| *x == f32::from(i == 5000)));
        // Two gigabytes, of which one page is touched.
        assert!(Buffer::reserved(1 << 29)[..10].iter().all(|x| *x == 0.0));
    }
}

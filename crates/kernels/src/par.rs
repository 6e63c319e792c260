//! Dividing a kernel's work among threads. The tasks of a kernel write to disjoint places and each does its sums in the
//! contract's order, so neither the number of threads nor who takes which task changes a bit.

use rayon::prelude::*;

/// Elements in a task of an elementwise kernel: 64 KiB of f32, a few microseconds of work.
pub const TASK: usize = 16 * 1024;

/// Rows of `d` elements in a task of a kernel that goes row by row.
pub fn rows_per_task(d: usize) -> usize {
    (TASK / d.max(1)).max(1)
}

/// How many threads the kernels use. Set once for the whole program with `RAYON_NUM_THREADS` or [`set_threads`].
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// Chooses the number of threads; to be called before the first kernel.
///
/// # Errors
/// If the pool of threads is there already.
pub fn set_threads(threads: usize) -> Result<(), String> {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global().map_err(|error| error.to_string())
}

/// Runs `work` with `threads` threads, whatever the program's number, for tests that compare.
pub fn with_threads<R: Send>(threads: usize, work: impl FnOnce() -> R + Send) -> R {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a small thread pool");
    let isa = crate::isa::active();
    pool.install(|| crate::isa::with(isa, work))
}

/// Calls `task(i)` for every `i < tasks`, on as many threads as there are. Tasks are handed out one by one.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    let isa = crate::isa::active();
    match tasks {
        0 => {}
        1 => task(0),
        _ if threads() == 1 => (0..tasks).for_each(task),
        _ => (0..tasks).into_par_iter().with_max_len(1).for_each(|i| crate::isa::with(isa, || task(i))),
    }
}

/// Cuts `data` into pieces of `len` elements (the last may be shorter) and calls `task(i, piece)` for each.
pub fn chunks_mut<T: Send>(data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let shared = SharedMut::new(data);
    run(data.len().div_ceil(len), |i| {
        let start = i * len;
        let end = (start + len).min(shared.len());
        // SAFETY: pieces of different i do not overlap.
        task(i, unsafe { shared.slice(start, end - start) });
    });
}

/// A slice that several tasks write to at disjoint places, when these are not contiguous pieces.
#[derive(Clone, Copy)]
pub struct SharedMut<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: access goes through `slice`, whose caller promises that pieces in use at the same time are disjoint.
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Shares `data`; the borrow ends with this call, so the caller keeps `data` alive and untouched while it is
    /// shared.
    pub fn new(data: &mut [T]) -> Self {
        SharedMut { start: data.as_mut_ptr(), len: data.len() }
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` elements from `start`.
    ///
    /// # Safety
    /// No other piece that overlaps this one may be in use at the same time, and the shared slice must still be alive.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice<'a>(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start + len <= self.len, "piece {start}+{len} of a slice of {}", self.len);
        // SAFETY: in bounds by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(start), len) }
    }

    /// The address of element `start`, for kernels that write tiles.
    pub fn at(&self, start: usize) -> *mut T {
        assert!(start <= self.len, "element {start} of a slice of {}", self.len);
        self.start.wrapping_add(start)
    }
}

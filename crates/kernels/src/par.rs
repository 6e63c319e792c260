//! Dividing a kernel's work among threads. The tasks of a kernel write to disjoint places and each does its sums in the
//! contract's order, so neither the number of threads nor who takes which task changes a bit.

use std::cell::{RefCell, UnsafeCell};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

/// Elements in a task of an elementwise kernel: 64 KiB of f32, a few microseconds of work.
pub const TASK: usize = 16 * 1024;

/// Rows of `d` elements in a task of a kernel that goes row by row.
pub fn rows_per_task(d: usize) -> usize {
    (TASK / d.max(1)).max(1)
}

/// How many threads the kernels use: of the machine, or what [`set_threads`] chose.
pub fn threads() -> usize {
    with_pool(|pool| pool.workers.len() + 1)
}

/// Chooses the number of threads; to be called before the first kernel.
///
/// # Errors
/// If the threads are there already.
pub fn set_threads(threads: usize) -> Result<(), String> {
    GLOBAL.set(Pool::new(threads)).map_err(|_| "the kernels' threads have started already".to_owned())
}

/// Runs `work` with `threads` threads, whatever the program's number, for tests that compare.
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<Pool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OWN.set(self.0.take());
        }
    }
    let _restore = Restore(OWN.replace(Some(Arc::new(Pool::new(threads)))));
    work()
}

/// Calls `task(i)` for every `i < tasks`, on as many threads as there are. Tasks are handed out one by one. Where the
/// threads are busy with another call, this one's thread does all of its tasks.
///
/// # Panics
/// If a task does.
pub fn run(tasks: usize, task: impl Fn(usize) + Sync) {
    if tasks <= 1 {
        return (0..tasks).for_each(task);
    }
    let isa = crate::isa::active();
    with_pool(|pool| pool.run(tasks, &|i| crate::isa::with(isa, || task(i))));
}

static GLOBAL: OnceLock<Pool> = OnceLock::new();
thread_local!(static OWN: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) });

fn with_pool<R>(work: impl FnOnce(&Pool) -> R) -> R {
    match OWN.with_borrow(Option::clone) {
        Some(own) => work(&own),
        None => work(GLOBAL.get_or_init(|| Pool::new(std::thread::available_parallelism().map_or(1, usize::from)))),
    }
}

/// Threads that wait for the next kernel awake for a while: a kernel takes from some microseconds to milliseconds, one
/// follows the other, and to wake a sleeping thread takes as long as a small one.
struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

struct Shared {
    /// Counts the jobs, so that workers see a new one.
    epoch: AtomicUsize,
    /// Workers in the job, and [`CLOSED`] while there is none to enter.
    inside: AtomicUsize,
    /// The job; written only while it is closed and nobody is inside.
    job: UnsafeCell<Option<Job>>,
    busy: AtomicBool,
    sleeping: AtomicUsize,
    stop: AtomicBool,
}

// SAFETY: `job` is guarded by `inside` as described; the rest is atomic.
unsafe impl Sync for Shared {}
// SAFETY: as above; the pointers of a job are followed only while its caller waits in `Pool::run`.
unsafe impl Send for Shared {}

#[derive(Clone, Copy)]
struct Job {
    task: *const (dyn Fn(usize) + Sync),
    tasks: usize,
    next: *const AtomicUsize,
    panicked: *const AtomicBool,
}

const CLOSED: usize = 1 << (usize::BITS - 1);
/// Looks at the epoch before a worker goes to sleep: some 50 µs.
const LOOKS: usize = 4096;

impl Job {
    /// Does tasks until none is left.
    fn work(self) {
        // SAFETY: the caller of `Pool::run` waits until everybody is out of the job.
        let (task, next) = unsafe { (&*self.task, &*self.next) };
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= self.tasks {
                return;
            }
            task(i);
        }
    }
}

impl Pool {
    fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared {
            epoch: AtomicUsize::new(0),
            inside: AtomicUsize::new(CLOSED),
            job: UnsafeCell::new(None),
            busy: AtomicBool::new(false),
            sleeping: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let worker = |i: usize| {
            let shared = shared.clone();
            let name = format!("kernels-{i}");
            std::thread::Builder::new().name(name).spawn(move || shared.serve()).expect("a thread for the kernels")
        };
        Pool { workers: (1..threads.max(1)).map(worker).collect(), shared: shared.clone() }
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let shared = &*self.shared;
        if self.workers.is_empty() || shared.busy.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(task);
        }
        let (next, panicked) = (AtomicUsize::new(0), AtomicBool::new(false));
        // SAFETY: only the lifetime changes; the job is closed, and left by all, before this function returns.
        let task: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        let job = Job { task, tasks, next: &next, panicked: &panicked };
        // SAFETY: the job is closed and `busy` is ours.
        unsafe { *shared.job.get() = Some(job) };
        let closing = Closing(shared);
        shared.inside.fetch_and(!CLOSED, Ordering::SeqCst);
        shared.epoch.fetch_add(1, Ordering::SeqCst);
        if shared.sleeping.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|worker| worker.thread().unpark());
        }
        job.work();
        drop(closing);
        assert!(!panicked.load(Ordering::Relaxed), "a kernel's task panicked on another thread");
    }
}

/// Closes the job when dropped, also when a task panics, and waits until all workers are out of it.
struct Closing<'a>(&'a Shared);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.inside.fetch_or(CLOSED, Ordering::SeqCst);
        while self.0.inside.load(Ordering::Acquire) != CLOSED {
            std::hint::spin_loop();
        }
        self.0.busy.store(false, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.shared.epoch.fetch_add(1, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// A worker's life.
    fn serve(&self) {
        let mut seen = 0;
        while !self.stop.load(Ordering::SeqCst) {
            self.wait_for_news(seen);
            seen = self.epoch.load(Ordering::SeqCst);
            if self.inside.fetch_add(1, Ordering::SeqCst) & CLOSED == 0 {
                // SAFETY: inside an open job, which nobody changes.
                if let Some(job) = unsafe { *self.job.get() } {
                    let work = std::panic::AssertUnwindSafe(|| job.work());
                    if std::panic::catch_unwind(work).is_err() {
                        // SAFETY: still inside.
                        unsafe { &*job.panicked }.store(true, Ordering::Relaxed);
                    }
                }
            }
            self.inside.fetch_sub(1, Ordering::Release);
        }
    }

    fn wait_for_news(&self, seen: usize) {
        for _ in 0..LOOKS {
            if self.epoch.load(Ordering::SeqCst) != seen {
                return;
            }
            std::hint::spin_loop();
        }
        self.sleeping.fetch_add(1, Ordering::SeqCst);
        while self.epoch.load(Ordering::SeqCst) == seen {
            std::thread::park();
        }
        self.sleeping.fetch_sub(1, Ordering::SeqCst);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_is_done_once() {
        for threads in [1, 2, 5] {
            with_threads(threads, || {
                for tasks in [0, 1, 2, 3, 100, 1000] {
                    let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    run(tasks, |i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1), "{tasks} tasks, {threads} threads");
                }
            });
        }
    }

    #[test]
    fn workers_that_slept_wake_up() {
        with_threads(2, || {
            for _ in 0..5 {
                std::thread::sleep(std::time::Duration::from_millis(3));
                let threads = std::sync::Mutex::new(std::collections::HashSet::new());
                run(20, |_| {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                    threads.lock().unwrap().insert(std::thread::current().id());
                });
                assert_eq!(threads.lock().unwrap().len(), 2);
            }
        });
    }

    #[test]
    fn calls_within_tasks_and_beside_each_other_end() {
        let sum = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        run(8, |_| run(4, |i| _ = sum.fetch_add(i, Ordering::Relaxed)));
                    }
                });
            }
        });
        assert_eq!(sum.into_inner(), 4 * 200 * 8 * 6);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_threads_go_on() {
        with_threads(3, || {
            for _ in 0..20 {
                let fail = || run(50, |i| assert!(i != 17, "seventeen"));
                assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(fail)).is_err());
                let done = AtomicUsize::new(0);
                run(50, |_| _ = done.fetch_add(1, Ordering::Relaxed));
                assert_eq!(done.into_inner(), 50);
            }
        });
    }
}

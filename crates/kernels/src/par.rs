//! The thread pool: dividing a kernel's work among threads. The tasks of a kernel write to disjoint places and each
//! does its sums in the contract's order, so neither the number of threads nor who takes which task changes a bit.

use std::cell::{RefCell, UnsafeCell};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};

use crate::lanes::LANES;
use crate::places::{self, Places};
use crate::prefetch::{self, Share, Spans};

/// Elements in a task of an elementwise kernel: 64 KiB of f32, a few microseconds of work.
pub const TASK: usize = 16 * 1024;

/// Fewest elements for which another thread is called: to call it takes as long.
const TASK_MIN: usize = TASK / 4;

/// Elements in a task of an elementwise kernel over `len`: no more than each thread's share, so that from kernel to
/// kernel it goes on with what is in its cache.
pub fn task_len(len: usize) -> usize {
    len.div_ceil(threads()).next_multiple_of(LANES).clamp(TASK_MIN, TASK)
}

/// Rows in a task of a kernel that goes row by row over `rows` rows of `d` elements.
pub fn rows_per_task(rows: usize, d: usize) -> usize {
    (task_len(rows * d) / d.max(1)).max(1)
}

/// Tells the threads which weights this one goes through now, so that they [fetch the next](prefetch) while they wait.
pub(crate) fn begin_product(weights: impl Iterator<Item = Range<usize>>) {
    with_pool(|pool| {
        if !pool.workers.is_empty() {
            prefetch::begin(weights, &pool.shared.next.0);
        }
    });
}

/// How many threads this process may run at once: the cores that it is bound to, or as many as its group's share of
/// processor time (cgroup) is worth.
pub fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// The cores that this process is bound to, as the system numbers them; none where it does not tell.
pub fn allowed_cores() -> Vec<usize> {
    places::cores()
}

/// How many threads the kernels use: [`cores`], or what [`set_threads`] chose.
pub fn threads() -> usize {
    with_pool(|pool| pool.workers.len() + 1)
}

/// Chooses the number of threads; to be called before the first kernel.
///
/// # Errors
/// If the threads are there already.
pub fn set_threads(threads: usize) -> Result<(), String> {
    GLOBAL.set(Pool::of_program(threads)).map_err(|_| "the kernels' threads have started already".to_owned())
}

/// Runs `work` with `threads` threads, whatever the program's number, for tests that compare.
pub fn with_threads<R>(threads: usize, work: impl FnOnce() -> R) -> R {
    struct Restore(Option<Arc<Pool>>);
    impl Drop for Restore {
        fn drop(&mut self) {
            OWN.set(self.0.take());
        }
    }
    let _restore = Restore(OWN.replace(Some(Arc::new(Pool::new(threads, None)))));
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
    with_pool(|pool| match crate::isa::forced() {
        None => pool.run(tasks, &task),
        Some(isa) => pool.run(tasks, &|i| crate::isa::with(isa, || task(i))),
    });
}

static GLOBAL: OnceLock<Pool> = OnceLock::new();
thread_local!(static OWN: RefCell<Option<Arc<Pool>>> = const { RefCell::new(None) });

fn with_pool<R>(work: impl FnOnce(&Pool) -> R) -> R {
    match OWN.with_borrow(Option::clone) {
        Some(own) => work(&own),
        None => work(GLOBAL.get_or_init(|| Pool::of_program(cores()))),
    }
}

/// Threads that wait for the next kernel awake for a while: a kernel takes from some microseconds to milliseconds, one
/// follows the other, and to wake a sleeping thread takes as long as a small one.
struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

/// What threads tell each other, by how often it changes: a cache line takes some 0.1 µs from one core to another, and
/// a small kernel a few microseconds.
struct Shared {
    queue: CacheLine<TaskQueue>,
    /// Tasks that workers have done.
    done: CacheLine<AtomicUsize>,
    state: CacheLine<State>,
    caller: CacheLine<Caller>,
    /// What waiting threads fetch.
    next: CacheLine<Spans>,
    /// The cores of the program's threads, if these are as many.
    places: Option<Places>,
}

/// Memory that is moved alone; processors fetch lines by pairs.
#[repr(align(128))]
struct CacheLine<T>(T);

/// The tasks that nobody has taken yet, and what they are. A thread that has taken one may read the job, which stays
/// until all that were taken are done.
struct TaskQueue {
    /// The first in the lower half, the end in the upper one. The caller takes from the front and workers from the
    /// back, so that in kernels that follow each other a thread finds what it has left in its cache.
    left: AtomicU64,
    task: UnsafeCell<Option<*const (dyn Fn(usize) + Sync)>>,
}

/// What callers alone write.
#[derive(Default)]
struct Caller {
    /// Whether one has the workers.
    busy: AtomicBool,
    /// See [`Counts`]; counted by the one who has the workers.
    calls: AtomicU64,
    tasks: AtomicU64,
}

/// Calls of [`run`] that were divided among threads, each of which ends with all of them waiting for the last, and
/// their tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    pub calls: u64,
    pub tasks: u64,
}

/// What was divided so far.
pub fn counts() -> Counts {
    with_pool(|pool| {
        let Caller { calls, tasks, .. } = &pool.shared.caller.0;
        Counts { calls: calls.load(Ordering::Relaxed), tasks: tasks.load(Ordering::Relaxed) }
    })
}

struct State {
    sleeping: AtomicUsize,
    /// Whether the caller sleeps until the last task is done.
    caller_sleeps: AtomicBool,
    caller: Mutex<Option<Thread>>,
    stop: AtomicBool,
    panicked: AtomicBool,
}

impl State {
    /// Sleeps until `done`, about which workers call [`State::wake_caller`] each time that it may have changed.
    ///
    /// A worker changes what `done` reads and then reads `caller_sleeps`, the caller writes and reads them the other
    /// way around, all in one order (SeqCst): one of the two sees what the other wrote.
    fn sleep_until(&self, done: impl Fn() -> bool) {
        *self.caller.lock().unwrap_or_else(PoisonError::into_inner) = Some(std::thread::current());
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !done() {
            std::thread::park();
        }
        self.caller_sleeps.store(false, Ordering::Relaxed);
    }

    fn wake_caller(&self) {
        if self.caller_sleeps.load(Ordering::SeqCst)
            && let Some(caller) = &*self.caller.lock().unwrap_or_else(PoisonError::into_inner)
        {
            caller.unpark();
        }
    }
}

// SAFETY: all is atomic but `task`: it is written by the caller who has set `busy`, while no worker has a task, and
// read by those who have taken one, which the caller's release of `left` and their acquire put in this order.
unsafe impl Sync for Shared {}
// SAFETY: nothing belongs to one thread; what `task` points to is followed only while its caller waits in `Pool::run`.
unsafe impl Send for Shared {}

/// Looks at the queue before a worker goes to sleep, and at the tasks that are done before the caller does: some 100
/// µs. Who waits longer waits for a thread that has no core, and [lends](Places) it its own.
const SPINS: usize = 8192;

impl TaskQueue {
    fn left(&self) -> (u32, u32) {
        let left = self.left.load(Ordering::Relaxed);
        (left as u32, (left >> 32) as u32)
    }

    /// A task of those left, chosen and removed by `take`.
    fn take(&self, take: impl Fn(u32, u32) -> (u32, u32, u32)) -> Option<usize> {
        loop {
            let (first, end) = self.left();
            if first >= end {
                return None;
            }
            let (task, new_first, new_end) = take(first, end);
            let (old, new) = (pair(first, end), pair(new_first, new_end));
            // Acquires what the caller wrote before it set the queue.
            if self.left.compare_exchange_weak(old, new, Ordering::Acquire, Ordering::Relaxed).is_ok() {
                return Some(task as usize);
            }
        }
    }

    fn take_first(&self) -> Option<usize> {
        self.take(|first, end| (first, first + 1, end))
    }

    fn take_last(&self) -> Option<usize> {
        self.take(|first, end| (end - 1, first, end - 1))
    }
}

fn pair(first: u32, end: u32) -> u64 {
    u64::from(first) | u64::from(end) << 32
}

impl Pool {
    /// With places of their own, if there are as many threads as cores.
    fn of_program(threads: usize) -> Self {
        Pool::new(threads, Places::new(threads))
    }

    fn new(threads: usize, places: Option<Places>) -> Self {
        let shared = Arc::new(Shared {
            queue: CacheLine(TaskQueue { left: AtomicU64::new(0), task: UnsafeCell::new(None) }),
            done: CacheLine(AtomicUsize::new(0)),
            state: CacheLine(State {
                sleeping: AtomicUsize::new(0),
                caller_sleeps: AtomicBool::new(false),
                caller: Mutex::new(None),
                stop: AtomicBool::new(false),
                panicked: AtomicBool::new(false),
            }),
            caller: CacheLine(Caller::default()),
            next: CacheLine(Spans::none()),
            places,
        });
        let threads = threads.max(1);
        let worker = |i: usize| {
            let shared = shared.clone();
            let name = format!("kernels-{i}");
            let serve = move || shared.serve(i, threads);
            std::thread::Builder::new().name(name).spawn(serve).expect("a thread for the kernels")
        };
        Pool { workers: (1..threads).map(worker).collect(), shared: shared.clone() }
    }

    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let Shared {
            queue: CacheLine(queue),
            done: CacheLine(done),
            state: CacheLine(state),
            caller: CacheLine(caller),
            places,
            ..
        } = &*self.shared;
        let Ok(end) = u32::try_from(tasks) else { return (0..tasks).for_each(task) };
        if self.workers.is_empty() || caller.busy.swap(true, Ordering::Acquire) {
            return (0..tasks).for_each(task);
        }
        places.iter().for_each(Places::begin_call);
        // No two callers are here at once, so nothing is lost between a load and its store.
        caller.calls.store(caller.calls.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        caller.tasks.store(caller.tasks.load(Ordering::Relaxed) + u64::from(end), Ordering::Relaxed);
        done.store(0, Ordering::Relaxed);
        state.panicked.store(false, Ordering::Relaxed);
        // SAFETY: only the lifetime changes; this function returns when all tasks that were taken are done.
        let task_ptr: *const (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(std::ptr::from_ref(task)) };
        // SAFETY: `busy` is ours, and no worker has a task.
        unsafe { *queue.task.get() = Some(task_ptr) };
        let guard = JobGuard { shared: &self.shared, tasks, threads: self.workers.len() + 1 };
        // The first task is this thread's; the others are seen together with what they are.
        queue.left.store(pair(1, end), Ordering::Release);
        let mut mine = Some(0);
        while let Some(i) = mine {
            // A worker that goes to sleep just now may be missed, and is seen at the next task or job.
            if state.sleeping.load(Ordering::Relaxed) > 0 {
                self.workers.iter().for_each(|worker| worker.thread().unpark());
            }
            task(i);
            mine = queue.take_first();
        }
        drop(guard);
        assert!(!state.panicked.load(Ordering::Relaxed), "a kernel's task panicked on another thread");
    }
}

/// When dropped, also when a task panics, leaves nothing to take and waits for the tasks that workers have taken.
struct JobGuard<'a> {
    shared: &'a Shared,
    tasks: usize,
    threads: usize,
}

impl Drop for JobGuard<'_> {
    fn drop(&mut self) {
        let Shared {
            queue: CacheLine(queue),
            done: CacheLine(done),
            state: CacheLine(state),
            caller: CacheLine(caller),
            next: CacheLine(next),
            places,
        } = self.shared;
        while queue.take_first().is_some() {}
        let taken = self.tasks - queue.left().1 as usize;
        let (mut share, mut spins) = (None, 0);
        while done.load(Ordering::Acquire) != taken {
            if spins == SPINS {
                let done = || done.load(Ordering::SeqCst) == taken;
                places.iter().for_each(|places| places.lend(done));
                state.sleep_until(done);
                break;
            }
            share.get_or_insert_with(|| next.share(0, self.threads)).fetch();
            std::hint::spin_loop();
            spins += 1;
        }
        places.iter().for_each(Places::end_call);
        caller.busy.store(false, Ordering::Release);
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.state.0.stop.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of worker `i` of `threads`.
    fn serve(&self, i: usize, threads: usize) {
        let places = self.places.as_ref();
        if let Some(places) = places {
            places.begin_worker(i);
        }
        while let Some(first) = self.wait_for_task(i, || self.next.0.share(i, threads)) {
            if let Some(places) = places {
                places.works(i, true);
            }
            // SAFETY: the task's taker reads the job, which stays until that is done.
            let task = unsafe { &*(*self.queue.0.task.get()).expect("a task of the queue") };
            let mut taken = 0;
            let mut mine = Some(first);
            while let Some(i) = mine {
                taken += 1;
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| task(i))).is_err() {
                    self.state.0.panicked.store(true, Ordering::Relaxed);
                }
                mine = self.queue.0.take_last();
            }
            self.done.0.fetch_add(taken, Ordering::SeqCst);
            self.state.0.wake_caller();
            if let Some(places) = places {
                places.works(i, false);
                places.go_home(i);
            }
        }
    }

    /// A task that worker `i` has taken; none when the pool ends.
    fn wait_for_task(&self, i: usize, share: impl Fn() -> Share) -> Option<usize> {
        let CacheLine(State { sleeping, caller_sleeps, stop, .. }) = &self.state;
        let mut share = share();
        let mut taken = |spins: usize| {
            for _ in 0..spins {
                if let Some(task) = self.queue.0.take_last() {
                    return Some(Some(task));
                }
                if stop.load(Ordering::Relaxed) {
                    return Some(None);
                }
                share.fetch();
                std::hint::spin_loop();
            }
            None
        };
        taken(SPINS).unwrap_or_else(|| {
            if let Some(places) = &self.places {
                places.go_home(i);
                places.change_with_caller(i, || caller_sleeps.load(Ordering::Relaxed));
            }
            sleeping.fetch_add(1, Ordering::SeqCst);
            let task = loop {
                match taken(1) {
                    Some(task) => break task,
                    None => std::thread::park(),
                }
            };
            sleeping.fetch_sub(1, Ordering::SeqCst);
            task
        })
    }
}

/// Cuts `data` into pieces of `len` elements (the last may be shorter) and calls `task(i, piece)` for each.
pub fn chunks_mut<T: Send>(data: &mut [T], len: usize, task: impl Fn(usize, &mut [T]) + Sync) {
    let shared = SharedMut::new(data);
    run(shared.len().div_ceil(len), |i| {
        let start = i * len;
        let end = (start + len).min(shared.len());
        // SAFETY: pieces of different i do not overlap.
        task(i, unsafe { shared.slice(start, end - start) });
    });
}

/// A slice that several tasks write to at disjoint places, when these are not contiguous pieces. It keeps the slice
/// borrowed, so that nobody else can touch or free what is shared.
pub struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    borrowed: PhantomData<&'a mut [T]>,
}

// Not derived, which would ask for a `T` that can be copied.
impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: elements are reached through `slice` and raw pointers alone, both of which are unsafe to use: who does so
// answers for pieces that are disjoint. Elements may then be used on any thread, which `T: Send` allows.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: a shared reference gives the same as a copy, for which the same holds.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    /// Shares `data`, which stays borrowed.
    pub fn new(data: &'a mut [T]) -> Self {
        SharedMut { start: data.as_mut_ptr(), len: data.len(), borrowed: PhantomData }
    }

    /// The number of elements.
    #[allow(clippy::len_without_is_empty)]
    pub fn len(&self) -> usize {
        self.len
    }

    /// `len` elements from `start`.
    ///
    /// # Panics
    /// If the slice has no such elements.
    ///
    /// # Safety
    /// No other piece that overlaps this one may be in use at the same time.
    #[allow(clippy::mut_from_ref)]
    pub unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        let inside = start.checked_add(len).is_some_and(|end| end <= self.len);
        assert!(inside, "piece {start}+{len} of a slice of {}", self.len);
        // SAFETY: in bounds of a slice that is borrowed for 'a; alone, as this function's contract asks.
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
                let divided =
                    if threads > 1 { Counts { calls: 4, tasks: 1105 } } else { Counts { calls: 0, tasks: 0 } };
                for tasks in [0, 1, 2, 3, 100, 1000] {
                    let done: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                    run(tasks, |i| {
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|d| d.load(Ordering::Relaxed) == 1), "{tasks} tasks, {threads} threads");
                }
                assert_eq!(counts(), divided);
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
    fn callers_that_slept_wake_up() {
        for threads in [2, 4] {
            with_threads(threads, || {
                for i in 0..30 {
                    let caller = std::thread::current().id();
                    let done = AtomicUsize::new(0);
                    run(2 * threads, |_| {
                        // Around the time at which the caller goes to sleep, before and behind it.
                        if std::thread::current().id() != caller {
                            std::thread::sleep(std::time::Duration::from_micros(40 * i));
                        }
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                    assert_eq!(done.into_inner(), 2 * threads);
                }
            });
        }
    }

    /// With as many threads as cores, and a neighbour on each, which push aside whoever has a task.
    #[test]
    fn beside_neighbours_every_task_is_done_once_and_callers_stay_free() {
        let (threads, stop) = (cores(), AtomicBool::new(false));
        let has_places = || Places::new(threads).is_some();
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop()
                    }
                });
            }
            let caller = || {
                let (caller, before) = (std::thread::current().id(), has_places());
                OWN.set(Some(Arc::new(Pool::of_program(threads))));
                for round in 0..300 {
                    let done: Vec<AtomicUsize> = (0..8 * threads).map(|_| AtomicUsize::new(0)).collect();
                    run(done.len(), |i| {
                        let begin = std::time::Instant::now();
                        while begin.elapsed() < std::time::Duration::from_micros(20 * (round % 7)) {
                            std::hint::spin_loop();
                        }
                        let is_worker = std::thread::current().id() != caller;
                        assert!(!is_worker || !has_places(), "a worker is bound to one core");
                        done[i].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1), "round {round}");
                }
                // Ends the workers, one of which may just be moving the caller.
                OWN.set(None);
                assert_eq!(has_places(), before, "the caller may use all cores, as before");
            };
            let ended = scope.spawn(caller).join();
            stop.store(true, Ordering::Relaxed);
            ended.unwrap();
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

//! The core that each thread runs on, so that a busy neighbour takes its share of the machine and no more.
//!
//! A system divides a core's time in slices of some milliseconds; kernels take microseconds, and each ends with all
//! threads waiting for the last. Where a neighbour pushes one thread aside in the middle of a task, the others would
//! wait for its next slice, so that two threads beside one neighbour would take more than twice as long. Nor does the
//! system move that thread to a core that sleeps for less than it thinks a move costs, and it wakes a thread where its
//! waker runs. So, where there are as many threads as cores:
//!
//! - workers are bound to a core each, and the caller, which is not bound, goes back to its own if it was moved;
//! - a caller that has waited for long lends its core to a worker that has a task and gets no time, and sleeps; the
//!   worker goes home when the task is done;
//! - a worker without tasks changes places with a caller that gets no time.
//!
//! A thread gets no time if its clock stands still. Two threads beside one neighbour on two cores then take 1.2 to 1.5
//! times as long as alone. Elsewhere than on Linux the system places all threads.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// For how long a clock is looked at.
const LOOK: Duration = Duration::from_micros(20);

/// The places of a pool's threads.
pub(crate) struct Places {
    cores: Vec<usize>,
    caller: Place,
    workers: Vec<Place>,
    /// Whether a worker is changing places with the caller.
    changing: AtomicBool,
}

/// A thread's. Each has cache lines of its own.
#[derive(Default)]
#[repr(align(128))]
struct Place {
    /// As the system names it, 0 before it is known.
    thread: AtomicI32,
    clock: AtomicI32,
    /// The core that it goes back to.
    home: AtomicUsize,
    /// Whether it has tasks, or is a caller whose call has not ended.
    works: AtomicBool,
    /// Whether it has another one's core.
    away: AtomicBool,
}

impl Place {
    /// The calling thread's.
    fn is_of_this_thread(&self) {
        let (thread, clock) = system::this_thread();
        self.clock.store(clock, Ordering::Relaxed);
        self.thread.store(thread, Ordering::Release);
    }

    /// What its clock shows, if it has something to do.
    fn time_at_work(&self) -> Option<u64> {
        if self.thread.load(Ordering::Acquire) == 0 || !self.works.load(Ordering::Acquire) {
            return None;
        }
        system::processor_time(self.clock.load(Ordering::Relaxed))
    }
}

impl Places {
    /// For so many threads; none where they are not as many as the cores that the process may use, or there is one.
    pub fn new(threads: usize) -> Option<Places> {
        let cores = system::cores();
        if threads < 2 || cores.len() != threads {
            return None;
        }
        let at = |&home: &usize| Place { home: AtomicUsize::new(home), ..Place::default() };
        let (caller, workers) = (at(&cores[0]), cores[1..].iter().map(at).collect());
        Some(Places { cores, caller, workers, changing: AtomicBool::new(false) })
    }

    /// Worker `i` (from 1) begins.
    pub fn begin_worker(&self, i: usize) {
        let place = &self.workers[i - 1];
        place.is_of_this_thread();
        system::bind(0, &[place.home.load(Ordering::Relaxed)]);
    }

    /// Worker `i` has a task, or has done all that it could take.
    pub fn works(&self, i: usize, works: bool) {
        self.workers[i - 1].works.store(works, Ordering::Release);
    }

    /// Worker `i` goes back to its core, if it has another one's.
    pub fn go_home(&self, i: usize) {
        let place = &self.workers[i - 1];
        if place.away.load(Ordering::Relaxed) && place.away.swap(false, Ordering::AcqRel) {
            system::bind(0, &[place.home.load(Ordering::Relaxed)]);
        }
    }

    /// The caller begins a call.
    pub fn begin_call(&self) {
        let place = &self.caller;
        match place.thread.load(Ordering::Relaxed) == system::this_thread().0 {
            // Callers that take turns stay where they are.
            false => place.is_of_this_thread(),
            true => {
                let home = place.home.load(Ordering::Relaxed);
                if system::core() != Some(home) {
                    self.free_at(0, home);
                }
            }
        }
        place.works.store(true, Ordering::Release);
    }

    /// The caller's call has ended.
    pub fn end_call(&self) {
        self.caller.works.store(false, Ordering::Release);
    }

    /// The caller, about to sleep until `done`, gives its core to a worker that has a task and gets no time.
    pub fn lend(&self, done: impl Fn() -> bool) {
        let before: Vec<Option<u64>> = self.workers.iter().map(Place::time_at_work).collect();
        if look(done) {
            return;
        }
        let stands_still =
            |(place, before): &(&Place, Option<u64>)| before.is_some() && place.time_at_work() == *before;
        if let Some((place, _)) = self.workers.iter().zip(before).find(stands_still)
            && let Some(core) = system::core()
        {
            place.away.store(true, Ordering::Release);
            system::bind(place.thread.load(Ordering::Relaxed), &[core]);
        }
    }

    /// Worker `i`, about to sleep, changes places with a caller that is in a call and gets no time, unless it `sleeps`
    /// itself.
    pub fn change_with_caller(&self, i: usize, sleeps: impl Fn() -> bool) {
        let (place, caller) = (&self.workers[i - 1], &self.caller);
        let Some(before) = caller.time_at_work() else { return };
        if look(sleeps) || caller.time_at_work() != Some(before) || self.changing.swap(true, Ordering::AcqRel) {
            return;
        }
        let here = place.home.load(Ordering::Relaxed);
        let there = caller.home.swap(here, Ordering::Relaxed);
        place.home.store(there, Ordering::Relaxed);
        self.free_at(caller.thread.load(Ordering::Relaxed), here);
        system::bind(0, &[there]);
        self.changing.store(false, Ordering::Release);
    }

    /// Moves a thread to a core without binding it, since what it starts would be bound too.
    fn free_at(&self, thread: i32, core: usize) {
        system::bind(thread, &[core]);
        system::bind(thread, &self.cores);
    }
}

/// The cores that the process may use, as the system numbers them; none where it does not tell.
pub(crate) fn cores() -> Vec<usize> {
    system::cores()
}

/// Waits for the time that a clock is looked at, or until it need not be: says which.
fn look(needless: impl Fn() -> bool) -> bool {
    let begin = Instant::now();
    while !needless() {
        if begin.elapsed() >= LOOK {
            return false;
        }
        std::hint::spin_loop();
    }
    true
}

/// Linux's calls, where a thread is named by a number, and the calling one by 0. Those that fail do nothing: the thread
/// stays where it is.
#[cfg(target_os = "linux")]
mod system {
    use std::cell::OnceCell;

    /// The cores that the process may use.
    pub fn cores() -> Vec<usize> {
        // SAFETY: all zeros is an empty set, into which the call writes no more than its size.
        let (set, failed) = unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            let failed = libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) != 0;
            (set, failed)
        };
        if failed {
            return Vec::new();
        }
        // SAFETY: the cores are those that a set has room for.
        (0..libc::CPU_SETSIZE as usize).filter(|&core| unsafe { libc::CPU_ISSET(core, &set) }).collect()
    }

    /// The calling thread and its clock.
    pub fn this_thread() -> (i32, i32) {
        thread_local!(static NAMES: OnceCell<(i32, i32)> = const { OnceCell::new() });
        NAMES.with(|names| {
            *names.get_or_init(|| {
                let mut clock = -1;
                // SAFETY: the thread is this one, and the clock is written to a place of its type.
                unsafe {
                    libc::pthread_getcpuclockid(libc::pthread_self(), &raw mut clock);
                    (libc::gettid(), clock)
                }
            })
        })
    }

    /// Nanoseconds of processor time that the thread of this clock has had.
    pub fn processor_time(clock: i32) -> Option<u64> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the time is written to a place of its type; a clock of a thread that has ended is an error.
        let failed = unsafe { libc::clock_gettime(clock, &raw mut time) != 0 };
        (!failed).then(|| time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
    }

    /// The core that the calling thread is on.
    pub fn core() -> Option<usize> {
        // SAFETY: it takes nothing.
        usize::try_from(unsafe { libc::sched_getcpu() }).ok()
    }

    pub fn bind(thread: i32, cores: &[usize]) {
        // SAFETY: all zeros is an empty set; the cores come from one, so that it has room for them.
        unsafe {
            let mut set: libc::cpu_set_t = std::mem::zeroed();
            cores.iter().for_each(|&core| libc::CPU_SET(core, &mut set));
            libc::sched_setaffinity(thread, size_of_val(&set), &raw const set);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    pub fn cores() -> Vec<usize> {
        Vec::new()
    }

    pub fn this_thread() -> (i32, i32) {
        (0, 0)
    }

    pub fn processor_time(_clock: i32) -> Option<u64> {
        None
    }

    pub fn core() -> Option<usize> {
        None
    }

    pub fn bind(_thread: i32, _cores: &[usize]) {}
}

//! A rank among processes, as whoever computes sees it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use thiserror::Error;
use wels_comm::launcher::Launched;
use wels_comm::{Arrival, Comm, Lost, Pending};

use crate::job::{Job, Losses, Outgoing, Route, Started};
use crate::progress;
use crate::watch::{ENDED, SILENCE};

/// What keeps a process from becoming a rank.
#[derive(Debug, Error)]
pub enum JoinError {
    /// MPI cannot be started.
    #[error("MPI cannot be started: {0}")]
    Mpi(String),
    /// MPI sees another world than the launcher.
    #[error("{} started {} processes, of which MPI sees {sees}", launched.by, launched.world)]
    World {
        /// What the launcher says.
        launched: Launched,
        /// How many ranks MPI says there are.
        sees: usize,
    },
}

/// Between two looks at whether a rank is lost that an operation under way may wait for.
const LOOKS: Duration = Duration::from_millis(50);

/// A rank of a world of processes. A rank that is done [leaves](Mpi::leave).
pub struct Mpi {
    losses: Arc<Losses>,
    rank: usize,
    hosts: Vec<String>,
    jobs: Sender<Job>,
    left: Mutex<bool>,
}

/// Becomes a rank of the world that `launched` has started.
///
/// # Errors
/// If MPI does not start, or sees another number of ranks than the launcher: it is then another MPI's launcher.
pub fn join(launched: Launched) -> Result<Mpi, JoinError> {
    let (jobs, work) = channel();
    let (tell, started): (_, Receiver<Result<Started, String>>) = channel();
    let pulse = Arc::new(AtomicU64::new(0));
    let beats = pulse.clone();
    let losses = Arc::new(Losses::default());
    let seen = losses.clone();
    let thread = thread::Builder::new().name("mpi".into());
    let spawned = thread.spawn(move || progress::run(work, &tell, &beats, &seen));
    spawned.map_err(|error| JoinError::Mpi(error.to_string()))?;
    let ended = || JoinError::Mpi("its thread has ended".into());
    let Started { rank, hosts } = started.recv().map_err(|_| ended())?.map_err(JoinError::Mpi)?;
    let mpi = Mpi { losses, rank, hosts, jobs, left: Mutex::new(false) };
    if mpi.world() != launched.world {
        return Err(JoinError::World { launched, sees: mpi.world() });
    }
    let place = mpi.place();
    let guard = thread::Builder::new().name("mpi watch".into()).spawn(move || end_when_stuck(&pulse, &place));
    guard.map_err(|error| JoinError::Mpi(error.to_string()))?;
    Ok(mpi)
}

/// Ends the process when the progress thread does not come back from MPI, as it can do nothing against that itself.
/// Counts turns of its own: a machine that was asleep has lost nothing.
fn end_when_stuck(pulse: &AtomicU64, place: &str) {
    let (mut last, mut missed) = (0, Duration::ZERO);
    let turn = Duration::from_secs(1);
    loop {
        thread::sleep(turn);
        let now = pulse.load(Ordering::Relaxed);
        if now == ENDED {
            return;
        }
        missed = if now == last { missed + turn } else { Duration::ZERO };
        last = now;
        if missed > SILENCE + Duration::from_secs(7) {
            eprintln!("error: {place}: MPI has not come back for {} s, so this rank ends", missed.as_secs());
            std::process::exit(2);
        }
    }
}

impl Mpi {
    /// The machine of a rank.
    pub fn host(&self, rank: usize) -> &str {
        &self.hosts[rank]
    }

    /// Which rank this is and where, for messages.
    pub fn place(&self) -> String {
        format!("rank {} of {} on {}", self.rank, self.hosts.len(), self.hosts[self.rank])
    }

    /// From now on a rank that is silent for `silence` does not end the world: operations, also one under way, fail
    /// with [`Lost`]. After such a loss nothing but the end of the process is left, without MPI's: [`Mpi::leave`] says
    /// that not all have left, and [`Mpi::abort`] ends this process alone.
    pub fn tell_of_losses(&self, silence: Duration) {
        self.losses.tell_after(silence);
    }

    /// Takes no further part: what this rank has sent still arrives, operations that need more of it fail. Returns
    /// whether all ranks have left in good order; if they have not within `patience`, MPI is still running, and
    /// [`abort`](Mpi::abort) ends it.
    pub fn leave(&self, patience: Option<Duration>) -> bool {
        let mut left = self.left.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        // The progress thread may still be at an operation with the lost one.
        if !*left && self.losses.lost().is_none() {
            let (done, ended) = channel();
            *left = self.jobs.send(Job::Leave { patience, done }).is_ok() && ended.recv().unwrap_or(false);
        }
        *left
    }

    /// Ends all ranks, and this process, at once.
    pub fn abort(&self, code: i32) -> ! {
        if self.losses.lost().is_some() {
            std::process::exit(code);
        }
        let _ = self.jobs.send(Job::Abort { code });
        // The launcher ends this process, or it does so itself.
        thread::sleep(Duration::from_secs(5));
        std::process::exit(code);
    }

    /// Operations are done in the order in which they were asked for.
    fn begin_exchange(&self, route: Route, send: Outgoing) -> Pending {
        let (done, result) = channel();
        // Without the progress thread nothing comes, which waiting for it tells.
        let _ = self.jobs.send(Job::Exchange { route, send, done });
        let itself = Lost { rank: self.rank, world: self.hosts.len() };
        Pending::under_way(Awaited { itself, losses: self.losses.clone(), result, came: None })
    }

    fn exchange(&self, route: Route, send: Outgoing) -> Result<Vec<Vec<u8>>, Lost> {
        self.begin_exchange(route, send).wait()
    }
}

/// What the progress thread will have.
struct Awaited {
    /// What is lost without the progress thread.
    itself: Lost,
    losses: Arc<Losses>,
    result: Receiver<Result<Vec<Vec<u8>>, Lost>>,
    came: Option<Result<Vec<Vec<u8>>, Lost>>,
}

impl Awaited {
    fn lost(&self) -> Option<Lost> {
        self.losses.lost().map(|rank| Lost { rank, world: self.itself.world })
    }
}

impl Arrival for Awaited {
    fn has_come(&mut self) -> bool {
        if self.came.is_none() {
            self.came = match self.result.try_recv() {
                Ok(came) => Some(came),
                Err(TryRecvError::Disconnected) => Some(Err(self.itself)),
                Err(TryRecvError::Empty) => self.lost().map(Err),
            };
        }
        self.came.is_some()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Vec<u8>>, Lost> {
        if let Some(came) = self.came {
            return came;
        }
        loop {
            if let Some(lost) = self.lost() {
                return Err(lost);
            }
            match self.result.recv_timeout(LOOKS) {
                Err(RecvTimeoutError::Timeout) => {}
                result => return result.map_err(|_| self.itself)?,
            }
        }
    }
}

impl Comm for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.hosts.len()
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        assert_eq!(send.len(), self.world(), "a message for each rank");
        self.begin_exchange(Route::All, Outgoing::Each(send))
    }

    fn begin_all_gather(&self, mine: Vec<u8>) -> Pending {
        self.begin_exchange(Route::All, Outgoing::Same(mine))
    }

    fn gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, Lost> {
        self.exchange(Route::ToFirst, Outgoing::Same(mine))
    }

    fn scatter(&self, send: Vec<Vec<u8>>) -> Result<Vec<u8>, Lost> {
        let send = if self.rank == 0 { send } else { vec![Vec::new(); self.world()] };
        Ok(self.exchange(Route::FromFirst, Outgoing::Each(send))?.swap_remove(0))
    }

    fn lost(&self) -> Option<Lost> {
        self.losses.lost().map(|rank| Lost { rank, world: self.world() })
    }

    fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>, Lost> {
        Ok(self.exchange(Route::FromFirst, Outgoing::Same(mine))?.swap_remove(0))
    }
}

impl Drop for Mpi {
    fn drop(&mut self) {
        self.leave(Some(Duration::from_secs(5)));
    }
}

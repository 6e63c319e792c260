//! The thread that calls MPI.

use std::cell::OnceCell;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use ferrompi::{Scope, ThreadLevel, scope};
use wels_comm::Lost;

use crate::exchange::exchange;
use crate::job::{Job, Losses, Outgoing, Route, Started};
use crate::watch::{ENDED, Ground, Watch};

/// While nothing is asked for, the time between two turns of the watch.
const IDLE: Duration = Duration::from_millis(20);

/// Starts MPI, tells who this is, and does what is asked for until this rank has left. Adds to `pulse` with each turn.
pub(crate) fn run(jobs: Receiver<Job>, tell: &Sender<Result<Started, String>>, pulse: &AtomicU64, losses: &Losses) {
    let begun = ferrompi::Mpi::init_thread(ThreadLevel::Funneled).and_then(|mpi| {
        let world = mpi.world();
        let (data, control) = (world.duplicate()?, world.duplicate()?);
        let host = world.processor_name()?;
        Ok((mpi, host, Ground { world, data, control, farewell: OnceCell::new(), pulse, losses }))
    });
    let (mpi, host, ground) = match begun {
        Ok(begun) => begun,
        Err(error) => {
            let _ = tell.send(Err(error.to_string()));
            return;
        }
    };
    let left = scope(|scope| Ok(serve(&ground, scope, host, &jobs, tell)));
    drop((ground, mpi));
    pulse.store(ENDED, Ordering::Relaxed);
    if let Ok(Some(done)) = left {
        let _ = done.send(true);
    }
}

/// Until this rank has left; then, whom to tell when MPI is finalized.
fn serve<'s>(
    ground: &'s Ground<'s>,
    scope: &'s Scope<'s, '_>,
    host: String,
    jobs: &Receiver<Job>,
    tell: &Sender<Result<Started, String>>,
) -> Option<Sender<bool>> {
    let mut watch = Watch::new(ground, scope);
    if let Ok(hosts) = exchange(&ground.data, &mut watch, Route::All, Outgoing::Same(host.into_bytes())) {
        watch.hosts = hosts.iter().map(|name| String::from_utf8_lossy(name).into_owned()).collect();
    }
    watch.done += 1;
    let _ = tell.send(Ok(Started { rank: watch.rank, hosts: watch.hosts.clone() }));
    loop {
        match jobs.recv_timeout(IDLE) {
            Err(RecvTimeoutError::Timeout) => {
                watch.turn();
                while watch.given_up().is_some() && watch.drain() {
                    watch.turn();
                }
            }
            Ok(Job::Exchange { route, send, done }) => {
                let result = match watch.given_up() {
                    None => exchange(&ground.data, &mut watch, route, send),
                    Some(rank) => Err(Lost { rank, world: watch.world }),
                };
                if result.is_ok() {
                    watch.done += 1;
                }
                let _ = done.send(result);
            }
            Ok(Job::Leave { patience, done }) => match leave(&mut watch, patience) {
                true => return Some(done),
                false => drop(done.send(false)),
            },
            Ok(Job::Abort { code }) => watch.abort(code),
            // Nobody can ask for anything any more.
            Err(RecvTimeoutError::Disconnected) => watch.abort(2),
        }
    }
}

/// Whether all ranks have left within `patience`.
fn leave(watch: &mut Watch, patience: Option<Duration>) -> bool {
    let begin = Instant::now();
    watch.give_up();
    watch.quit();
    while !watch.is_over() {
        if patience.is_some_and(|patience| begin.elapsed() > patience) {
            return false;
        }
        watch.turn();
        if !watch.drain() {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    true
}

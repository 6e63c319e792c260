//! A server whose model is divided among ranks: processes that `mpirun` or `srun` started, or threads of this one.
//!
//! The first rank is the server; the others have their parts of the weights and are silent. When one is lost, the first
//! answers requests with 503 for [`TELLS`] and ends.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use wels_comm::launcher::launched;
use wels_comm::{Comm, Lost, threads};
use wels_pipeline::meeting::Silenced;
use wels_pipeline::refusal::refuse;
use wels_server::http::Shutdown;

use super::{Args, here};
use crate::over::Over;
use crate::run::for_all;

/// How long a server that has lost a rank tells that to clients.
const TELLS: Duration = Duration::from_secs(5);
/// Between two looks at whether all ranks are there.
const LOOKS: Duration = Duration::from_millis(100);

/// Serves, alone or as a rank.
pub(super) fn serve(args: &Args) -> Result<ExitCode> {
    match launched() {
        Some(launched) if launched.world > 1 && args.ranks.get() > 1 => {
            let message = format!("{} has started {} ranks, and --ranks asks for others", launched.by, launched.world);
            Err(for_all(launched, refuse(message, "leave --ranks out, or start one process")))
        }
        #[cfg(feature = "mpi")]
        Some(launched) if launched.world > 1 => Ok(mpi::serve(args, launched)),
        #[cfg(not(feature = "mpi"))]
        Some(launched) if launched.world > 1 => {
            let message = format!(
                "{} has started {} processes, and this wels is built without MPI: each would be a server of its own",
                launched.by, launched.world
            );
            let hint =
                "build it with `cargo build --release --features mpi` (docs/serving-ranks.md), or start one process";
            Err(for_all(launched, refuse(message, hint)))
        }
        _ if args.ranks.get() > 1 => on_threads(args).map(|()| ExitCode::SUCCESS),
        _ => here(args, None).map(|()| ExitCode::SUCCESS),
    }
}

fn on_threads(args: &Args) -> Result<()> {
    args.models.only()?;
    let mut ranks = threads(args.ranks.get()).into_iter();
    let first = ranks.next().expect("several ranks");
    thread::scope(|scope| {
        for comm in ranks {
            scope.spawn(move || as_rank(args, Arc::new(comm), args.ranks.get()));
        }
        as_rank(args, Arc::new(first), args.ranks.get())
    })
}

/// Serves or follows; `on_machine`: how many ranks this machine has.
fn as_rank(args: &Args, comm: Arc<dyn Comm>, on_machine: usize) -> Result<()> {
    let over = Over::new(comm, on_machine);
    to_the_end(over, || if over.is_first() { here(args, Some(over)) } else { args.models.follow(over) })
}

/// Does a rank's work. However that ends, a panic too, no other rank waits for this one any more.
fn to_the_end(over: &Over, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = catch_unwind(AssertUnwindSafe(work));
    // Threads notice that a rank has left by this alone, so it comes before a panic goes on.
    over.ranks.comm().give_up();
    match result.unwrap_or_else(|panic| Err(lost(panic).into())) {
        Err(error) if !over.is_first() && error.is::<Lost>() => Err(Silenced.into()),
        result => result,
    }
}

fn lost(panic: Box<dyn Any + Send>) -> Lost {
    *panic.downcast::<Lost>().unwrap_or_else(|panic| resume_unwind(panic))
}

/// Ends the server some time after a rank is lost.
pub(super) async fn end_when_lost(over: &Over, shutdown: Shutdown) {
    let lost = loop {
        match over.ranks.lost() {
            Some(lost) => break lost,
            None => tokio::time::sleep(LOOKS).await,
        }
    };
    tracing::error!(seconds = TELLS.as_secs(), "{lost}: all requests are answered with 503, and then the server ends");
    tokio::time::sleep(TELLS).await;
    // Once to finish what is under way, which is nothing, and once to leave.
    shutdown.ask();
    shutdown.ask();
}

/// Lets the other ranks go.
///
/// # Errors
/// The rank that is lost.
pub(super) fn end(over: &Over) -> Result<()> {
    match over.ranks.lost() {
        Some(lost) => Err(lost.into()),
        None => {
            over.ranks.end();
            Ok(())
        }
    }
}

#[cfg(feature = "mpi")]
mod mpi {
    use super::*;
    use crate::interrupt::Interrupt;
    use crate::ranks::among;
    use anyhow::Context;
    use wels_comm::launcher::Launched;

    /// A rank that has not been heard of for so long is lost. Requests are to be told within five seconds.
    const SILENCE: Duration = Duration::from_secs(3);

    pub fn serve(args: &Args, launched: Launched) -> ExitCode {
        among(launched, |mpi| {
            mpi.tell_of_losses(SILENCE);
            // A signal to all processes is for the first one, which lets the others go.
            let _listening = match mpi.rank() {
                0 => None,
                _ => Some(Interrupt::listen().context("cannot listen for Ctrl-C")?),
            };
            let on_machine = (0..mpi.world()).filter(|rank| mpi.host(*rank) == mpi.host(mpi.rank())).count();
            as_rank(args, mpi.clone(), on_machine)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_that_panics_is_lost_to_the_others() {
        let mut ranks = threads(2).into_iter();
        let (first, other) = (ranks.next().unwrap(), ranks.next().unwrap());
        thread::scope(|scope| {
            let other = scope.spawn(move || to_the_end(Over::new(Arc::new(other), 2), || panic!("as planned")));
            let first = Over::new(Arc::new(first), 2);
            let error = to_the_end(first, || {
                first.ranks.comm().barrier()?;
                Ok(())
            });
            assert!(error.is_err_and(|error| error.is::<Lost>()));
            assert!(other.join().is_err(), "the panic goes on");
        });
    }
}

//! A run whose ranks are processes that `mpirun` or `srun` started, joined by MPI.
//!
//! The first rank does and says what `wels run` does alone; the others are silent, unless they fail.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use wels_comm::Comm;
use wels_comm::launcher::Launched;
use wels_mpi::{JoinError, Mpi, join};
use wels_pipeline::forecast::Rates;
use wels_pipeline::meeting::{self, Introduction, Place, Silenced};
use wels_pipeline::ranks;
use wels_pipeline::refusal::refuse;
use wels_pipeline::task::Programs;
use wels_runs::hash::sha256_file;
use wels_runs::machine;

use crate::device::by_name;
use crate::failure;
use crate::interrupt::Interrupt;
use crate::run::{Args, begin, for_all};
use crate::terminal::Terminal;

/// How long a rank that failed waits for the others to leave in good order.
const PATIENCE: Duration = Duration::from_secs(3);

/// Exit code of a bug.
const BUG: i32 = 2;

/// Does what is left of a run, as a rank of the world that was launched.
pub fn run(args: &Args, launched: Launched) -> ExitCode {
    among(launched, |mpi| if mpi.rank() == 0 { first(args, mpi) } else { other(args, mpi) })
}

/// Does some work as a rank of the world that was launched, and says how it ended.
pub fn among(launched: Launched, work: impl Fn(&Arc<Mpi>) -> Result<()>) -> ExitCode {
    let mpi = match join(launched) {
        Ok(mpi) => Arc::new(mpi),
        Err(error) => return failure::report(&for_all(launched, not_joined(&error))),
    };
    name_in_panics(mpi.place());
    let error = match catch_unwind(AssertUnwindSafe(|| work(&mpi))) {
        Ok(Ok(())) => {
            mpi.leave(None);
            return ExitCode::SUCCESS;
        }
        Ok(Err(error)) if error.is::<Silenced>() => error,
        Ok(Err(error)) => error.context(mpi.place()),
        Err(_) => mpi.abort(BUG),
    };
    let exit = failure::report(&error);
    // The others wait for this rank, unless it is the first: without that one they leave.
    let others_leave = mpi.rank() == 0 || error.is::<Silenced>();
    if !others_leave || !mpi.leave(Some(PATIENCE)) {
        mpi.abort(failure::code(&error).into());
    }
    exit
}

fn not_joined(error: &JoinError) -> anyhow::Error {
    let hint = match error {
        JoinError::World { .. } => {
            "use the launcher of the MPI that wels was built with: `ldd wels` shows which; with srun, --mpi=pmix or pmi2"
        }
        JoinError::Mpi(_) => "a program that does nothing but MPI_Init should start in the same way",
    };
    refuse(error.to_string(), hint)
}

/// Has a panic say which rank it is of.
fn name_in_panics(place: String) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("error: {place}: a bug in wels; please report the following message");
        before(panic);
    }));
}

fn first(args: &Args, mpi: &Arc<Mpi>) -> Result<()> {
    let mut terminal = Terminal::listening()?;
    meeting::introduce(&**mpi, &introduction(args, mpi)?)?;
    let (run, device) = begin(args, mpi.world())?;
    let hosts: Vec<String> = (0..mpi.world()).map(|rank| mpi.host(rank).to_string()).collect();
    let place = Place { run: std::path::absolute(run.path())?, device: device.name().into() };
    meeting::lead(&**mpi, place, &hosts)?;
    if mpi.world() > 1 {
        eprintln!("{:>9} {}", "ranks", in_words(&hosts));
    }
    let options = (Programs::Run, Rates::Measured, args.expert_parallel.get());
    ranks::run_as_first(mpi.clone(), run, device, options, &mut terminal)
}

fn other(args: &Args, mpi: &Arc<Mpi>) -> Result<()> {
    // A signal to all processes is for the first one, which saves and ends the run.
    let _listening = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    meeting::introduce(&**mpi, &introduction(args, mpi)?)?;
    let device = meeting::attend(&**mpi, |place| by_name(&place.device))?;
    ranks::follow(mpi.clone(), device, Programs::Run, args.expert_parallel.get())
}

fn introduction(args: &Args, mpi: &Mpi) -> Result<Introduction> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let (program, _) = sha256_file(&program).with_context(|| format!("cannot read {}", program.display()))?;
    Ok(Introduction {
        host: mpi.host(mpi.rank()).into(),
        program,
        recipe: args.recipe_or_run.as_deref().map_or("quickstart".into(), hash_of_recipe),
        threads: wels_kernels::par::threads(),
        expert_parallel: args.expert_parallel.get(),
        clock: machine::unix_time(),
    })
}

fn hash_of_recipe(given: &Path) -> String {
    let file: PathBuf = if given.is_dir() { given.join("recipe.toml") } else { given.into() };
    sha256_file(&file).map_or("no such file".into(), |(hash, _)| hash)
}

/// How many ranks are on which machines.
fn in_words(hosts: &[String]) -> String {
    let mut counted: Vec<(&str, usize)> = Vec::new();
    for host in hosts {
        match counted.iter_mut().find(|(name, _)| name == host) {
            Some((_, count)) => *count += 1,
            None => counted.push((host, 1)),
        }
    }
    let each: Vec<String> = counted.iter().map(|(host, count)| format!("{count} on {host}")).collect();
    format!("{}: {}", hosts.len(), each.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_are_counted_by_machine() {
        assert_eq!(in_words(&["a", "a", "b"].map(String::from)), "3: 2 on a, 1 on b");
    }
}

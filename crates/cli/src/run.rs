//! `wels run [RECIPE.toml | RUN]`: a whole recipe, or what is left of a run; `wels_pipeline::ranks` does it.
//!
//! The same command goes on after a kill, a Ctrl-C or a full disk. Started by `mpirun` or `srun`, each process is a
//! rank (`ranks.rs`).

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::Result;
use wels_comm::launcher::{Launched, launched};
use wels_device::Device;
use wels_pipeline::forecast::Rates;
use wels_pipeline::meeting::Silenced;
use wels_pipeline::ranks::{self, Options};
use wels_pipeline::refusal::refuse;
use wels_pipeline::task::Programs;
use wels_runs::ledger::Ledger;
use wels_runs::recipe::Recipe;
use wels_runs::rundir::RunDir;

use crate::device::{DeviceArgs, for_ranks};
use crate::named::{self, For};
use crate::terminal::Terminal;
use crate::watch::{ADDRESS, listen, watch};

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), or the directory of a run to go on with; the built-in quickstart if left out
    #[arg(value_name = "RECIPE or RUN")]
    pub(crate) recipe_or_run: Option<PathBuf>,
    /// Where runs are kept
    #[arg(long, value_name = "DIR", default_value_os_t = default_runs())]
    runs: PathBuf,
    /// Ranks that train together, as threads of this process, each on a GPU of its own where there are as many; they
    /// divide the recipe's gradient_shards. Changes no bit of a result. Ranks on several machines: docs/cluster.md
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    ranks: NonZeroUsize,
    /// Ranks that share the routed experts of every layer: each holds 1/N of them, and tokens go to those that hold
    /// theirs. Divides the ranks and the experts; 1 has each rank hold all. Changes no bit of a result: docs/cluster.md
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    pub(crate) expert_parallel: NonZeroUsize,
    /// Serve the run's report as a page that follows the run, while it goes on: curves, experts, samples, costs
    #[arg(long, value_name = "HOST:PORT", num_args = 0..=1, require_equals = true, default_missing_value = ADDRESS)]
    pub(crate) watch: Option<String>,
    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

impl Args {
    /// What `wels` alone means.
    pub fn quickstart() -> Args {
        let one = NonZeroUsize::MIN;
        let device = DeviceArgs::default();
        Args { recipe_or_run: None, runs: default_runs(), ranks: one, expert_parallel: one, watch: None, device }
    }
}

/// The directory of runs when the command line names none.
fn default_runs() -> PathBuf {
    PathBuf::from("runs")
}

/// Does what is left of a run. Its recipe is the user's own, so the programs that it names are started.
pub fn run(args: &Args) -> Result<ExitCode> {
    match launched() {
        Some(launched) if launched.world > 1 && args.ranks.get() > 1 => {
            let message = format!("{} has started {} ranks, and --ranks asks for others", launched.by, launched.world);
            Err(for_all(launched, refuse(message, "leave --ranks out, or start one process")))
        }
        #[cfg(feature = "mpi")]
        Some(launched) if args.ranks.get() == 1 => Ok(crate::ranks::run(args, launched)),
        #[cfg(not(feature = "mpi"))]
        Some(launched) if launched.world > 1 => {
            let message = format!(
                "{} has started {} processes, and this wels is built without MPI: each would do the whole run",
                launched.by, launched.world
            );
            let hint = "build it with `cargo build --release --features mpi` (docs/cluster.md); or start one process, \
                        with --ranks N";
            Err(for_all(launched, refuse(message, hint)))
        }
        _ => here(args).map(|()| ExitCode::SUCCESS),
    }
}

/// An error that all processes of a launcher meet, for the first one to tell. The others give it the time: a launcher
/// may end all with the first that ends.
pub(crate) fn for_all(launched: Launched, error: anyhow::Error) -> anyhow::Error {
    if launched.rank == 0 {
        return error;
    }
    thread::sleep(Duration::from_secs(1));
    Silenced.into()
}

/// In this process alone.
fn here(args: &Args) -> Result<()> {
    let mut terminal = Terminal::listening()?;
    let (programs, rates) = (Programs::Run, Rates::Measured);
    let (run, device) = begin(args, args.ranks.get())?;
    let devices = for_ranks(device, args.ranks.get())?;
    let options = Options { programs, rates, devices, expert_parallel: args.expert_parallel.get() };
    ranks::run_on_threads(run, &options, &mut terminal)
}

/// The run that the command line means, for so many ranks, and the device of the first one.
pub(crate) fn begin(args: &Args, ranks: usize) -> Result<(RunDir, Arc<dyn Device>)> {
    let given = args.device.given()?;
    let listener = args.watch.as_deref().map(listen).transpose()?;
    let run = open(args, ranks)?;
    let device = match given {
        Some(device) => device,
        None => args.device.open_for(Ledger::device(run.path()).as_deref())?,
    };
    if let Some(listener) = listener {
        watch(run.path(), listener)?;
    }
    Ok((run, device))
}

fn open(args: &Args, ranks: usize) -> Result<RunDir> {
    let recipe = match &args.recipe_or_run {
        None => Recipe::quickstart(),
        Some(path) if path.is_dir() => {
            let run = RunDir::open(path)?;
            named::fetch(run.recipe(), For::Run)?;
            return Ok(run);
        }
        Some(path) => named::recipe(path, Some(&args.runs), For::Run)?,
    };
    ranks::check(&recipe, ranks, args.expert_parallel.get())?;
    Ok(RunDir::open_or_create(&args.runs, &recipe)?)
}

//! `wels run [RECIPE.toml | RUN]`: a whole recipe, or what is left of a run; `wels_pipeline::ranks` does it.
//!
//! The same command goes on after a kill, a Ctrl-C or a full disk.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use anyhow::Result;
use wels_pipeline::forecast::Rates;
use wels_pipeline::ranks::{self, Options};
use wels_pipeline::task::Programs;
use wels_runs::ledger::Ledger;
use wels_runs::recipe::Recipe;
use wels_runs::rundir::RunDir;

use crate::device::{DeviceArgs, for_ranks};
use crate::named::{self, For};
use crate::terminal::Terminal;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), or the directory of a run to go on with; the built-in quickstart if left out
    #[arg(value_name = "RECIPE or RUN")]
    recipe_or_run: Option<PathBuf>,
    /// Where runs are kept
    #[arg(long, value_name = "DIR", default_value_os_t = default_runs())]
    runs: PathBuf,
    /// Ranks that train together, as threads of this process, each on a GPU of its own where there are as many; they
    /// divide the recipe's gradient_shards. Changes no bit of a result
    #[arg(long, value_name = "N", default_value_t = NonZeroUsize::MIN)]
    ranks: NonZeroUsize,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// What `wels` alone means.
    pub fn quickstart() -> Args {
        Args { recipe_or_run: None, runs: default_runs(), ranks: NonZeroUsize::MIN, device: DeviceArgs::default() }
    }
}

/// The directory of runs when the command line names none.
fn default_runs() -> PathBuf {
    PathBuf::from("runs")
}

/// Does what is left of a run. Its recipe is the user's own, so the programs that it names are started.
pub fn run(args: &Args) -> Result<()> {
    let mut terminal = Terminal::listening()?;
    let (programs, rates) = (Programs::Run, Rates::Measured);
    let given = args.device.given()?;
    let run = open(args)?;
    let device = match given {
        Some(device) => device,
        None => args.device.open_for(Ledger::device(run.path()).as_deref())?,
    };
    let devices = for_ranks(device, args.ranks.get())?;
    ranks::run_on_threads(run, &Options { programs, rates, devices }, &mut terminal)
}

/// The run that the command line means.
fn open(args: &Args) -> Result<RunDir> {
    let recipe = match &args.recipe_or_run {
        None => Recipe::quickstart(),
        Some(path) if path.is_dir() => {
            let run = RunDir::open(path)?;
            named::fetch(run.recipe(), For::Run)?;
            return Ok(run);
        }
        Some(path) => named::recipe(path, Some(&args.runs), For::Run)?,
    };
    ranks::check(&recipe, args.ranks.get())?;
    Ok(RunDir::open_or_create(&args.runs, &recipe)?)
}

//! `wels verify RUN`: whether a run's files are what was written, and whether its steps give what it says: random
//! stretches between checkpoints, of any stage that trains, are done again and compared bit by bit.
//! `wels verify --receipt FILE`: the same from a published receipt and the data alone: the first checkpoints of
//! pretraining, or with `--whole` all that the recipe does.
//!
//! The run may be a stranger's: programs that its recipe names are started with `--run-programs` alone.

use std::path::PathBuf;

use anyhow::Result;
use wels_pipeline::refusal::refuse;
use wels_pipeline::task::Programs;
use wels_pipeline::verify::{Options, Segment, Verdict, verify_receipt, verify_run};
use wels_runs::ledger::Ledger;
use wels_runs::receipt::Receipt;
use wels_runs::recipe::Recipe;
use wels_runs::verify::Findings;

use crate::device::DeviceArgs;
use crate::named::{self, For};
use crate::output;
use crate::terminal::Terminal;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// The directory of a run
    #[arg(value_name = "RUN", required_unless_present = "receipt", conflicts_with = "receipt")]
    run: Option<PathBuf>,
    /// A receipt.json: data is prepared and trained on anew, up to its first checkpoints
    #[arg(long, value_name = "FILE")]
    receipt: Option<PathBuf>,
    /// Files and folders with the data, in place of those that the receipt's recipe names
    #[arg(long, value_name = "PATH", requires = "receipt")]
    data: Vec<PathBuf>,
    /// Do all of the receipt's recipe again, every stage, and compare every checkpoint
    #[arg(long, requires = "receipt")]
    whole: bool,
    #[command(flatten)]
    device: DeviceArgs,
    /// Stretches that are done again; 0 looks at the files alone
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "whole")]
    segments: usize,
    /// Stretches of this stage alone
    #[arg(long, value_name = "NAME", conflicts_with = "receipt")]
    stage: Option<String>,
    /// Which stretches: the same seed chooses the same; by the clock if left out
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Start the programs that the recipe names as judges of answers: they run as you do, outside any jail
    #[arg(long)]
    run_programs: bool,
    /// Where the scratch folder is
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// Verifies.
pub fn verify(args: &Args) -> Result<()> {
    let mut terminal = Terminal::listening()?;
    let begun = match (&args.receipt, &args.run) {
        (Some(receipt), _) => Receipt::read(receipt).ok().and_then(|receipt| receipt.device),
        (None, run) => run.as_deref().and_then(Ledger::device),
    };
    fetch(args)?;
    let device = args.device.open_for(Some(begun.as_deref().unwrap_or("cpu")))?;
    let data: Vec<Vec<PathBuf>> = args.data.iter().map(|path| named::data(path)).collect::<Result<_>>()?;
    let data = data.concat();
    let options = Options {
        segments: args.segments,
        stage: args.stage.as_deref(),
        seed: args.seed,
        scratch: &args.scratch,
        programs: if args.run_programs { Programs::Run } else { Programs::Refuse },
        device: &device,
    };
    let verdict = match (&args.receipt, &args.run) {
        (Some(receipt), _) => verify_receipt(receipt, &data, args.whole, &options, &mut terminal)?,
        (None, Some(run)) => verify_run(run, &options, &mut terminal)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    if args.json {
        output::json(&verdict)?;
    } else {
        print(&verdict)?;
    }
    match verdict.findings.problems.len() {
        0 => Ok(()),
        1 => Err(refuse("one thing is not as it was written", "see the line above; restore the file from a copy")),
        n => Err(refuse(format!("{n} things are not as they were written"), "see the lines above")),
    }
}

/// Fetches what a recipe names on a hub that is done again.
fn fetch(args: &Args) -> Result<()> {
    match (&args.receipt, &args.run) {
        (Some(receipt), _) => {
            let purpose = if args.data.is_empty() { For::Run } else { For::Replay };
            named::fetch(&Receipt::read(receipt)?.recipe()?, purpose)
        }
        // What is wrong with its recipe is found where it is verified.
        (None, Some(run)) if args.segments > 0 => {
            Recipe::load(&run.join("recipe.toml")).map_or(Ok(()), |recipe| named::fetch(&recipe, For::Replay))
        }
        _ => Ok(()),
    }
}

fn print(verdict: &Verdict) -> std::io::Result<()> {
    let Findings { files, ledger_lines, checkpoints, not_covered, problems } = &verdict.findings;
    output::line(&format!("{files} files, {ledger_lines} lines of the ledger, {} checkpoints", checkpoints.len()))?;
    for Segment { stage, from, to } in &verdict.replayed {
        let from = from.map_or("the beginning".to_string(), |from| format!("step {from}"));
        output::line(&format!("{stage}: done again from {from} to step {to}"))?;
    }
    if !not_covered.is_empty() {
        output::line(&printable(&format!("not covered: {}", not_covered.join(", "))))?;
    }
    let problems_in_words = problems.iter().map(|problem| printable(&format!("{}: {}", problem.path, problem.message)));
    problems_in_words.into_iter().try_for_each(|line| output::line(&line))?;
    output::line(if problems.is_empty() { "verified" } else { "NOT verified" })
}

/// A line about a run of somebody else's, in which no name of theirs moves the cursor.
fn printable(line: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(escaped).collect()
}

//! `wels run [RECIPE.toml | RUN]`: a whole recipe, or what is left of a run.
//!
//! ```text
//! recipe → run directory (locked) → plan.json
//! tokenizer/   trained on the corpus, or copied
//! data/        the corpus as shards of tokens
//! pretrain/    steps, metrics.jsonl, checkpoints; the last one is a Hugging Face directory
//! STAGE/       what the recipe's [[stage]]s say, in order: worked examples, reinforcement, samples, scores
//! sample       text from the trained model, to stdout
//! ```
//! Every stage is done once: what is there is kept, so the same command goes on after a kill, a Ctrl-C or a full disk.

mod corpus;

mod pretrain;

mod stage;

mod task;

mod learn;

mod reinforce;

mod samples;

mod sample;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result};
use wels_data::tokenizer::Tokenizer;
use wels_runs::ledger::{Entry, Ledger};
use wels_runs::machine;
use wels_runs::plan;
use wels_runs::recipe::{Recipe, StageSection, Work};
use wels_runs::rundir::RunDir;

use crate::failure::refuse;
use crate::interrupt::Interrupt;
use crate::output::duration;
use crate::plan::plan_in_one_line;

pub(crate) use pretrain::{execution, hyperparameters};

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), or the directory of a run to go on with; the built-in quickstart if left out
    #[arg(value_name = "RECIPE or RUN")]
    recipe_or_run: Option<PathBuf>,
    /// Where runs are kept
    #[arg(long, value_name = "DIR", default_value_os_t = crate::default_runs())]
    runs: PathBuf,
}

impl Args {
    /// What `wels` alone means.
    pub fn quickstart() -> Args {
        Args { recipe_or_run: None, runs: crate::default_runs() }
    }
}

/// A run under way.
struct Session {
    run: RunDir,
    ledger: Ledger,
    interrupt: Interrupt,
    last_entry: Instant,
}

/// How a stage ended.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
}

/// Does what is left of a run.
pub fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    let run = open(args)?;
    let path = run.path().to_path_buf();
    let ledger = Ledger::open(&path.join("ledger.jsonl"))?;
    let mut session = Session { run, ledger, interrupt, last_entry: Instant::now() };
    let recipe = session.run.recipe().clone();
    let began = if session.ledger.entries().is_empty() { "start" } else { "resume" };
    session.record(Entry { event: began.into(), ..Entry::default() })?;
    let expected = plan::of_recipe(&recipe);
    session.run.write_plan(&expected)?;
    eprintln!("{:>9} {}", "run", path.display());
    eprintln!("{:>9} {}", "plan", plan_in_one_line(&expected));

    let tokenizer = corpus::tokenizer(&mut session, &recipe)?;
    let interrupted =
        || Err(refuse("interrupted; the run is saved", format!("go on with: wels run {}", path.display())));
    if recipe.pretrains() {
        let dataset = corpus::shards(&mut session, &recipe, &tokenizer)?;
        if pretrain::pretrain(&mut session, &recipe, &tokenizer, dataset)? == Outcome::Interrupted {
            return interrupted();
        }
    }
    for stage in &recipe.stages {
        if work(&mut session, &tokenizer, stage)? == Outcome::Interrupted {
            return interrupted();
        }
    }
    sample::sample(&session, &recipe, &tokenizer)
}

/// Does what is left of a stage.
fn work(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection) -> Result<Outcome> {
    match &stage.work {
        Work::Pretrain(section) | Work::Sft(section) => learn::learn(session, tokenizer, stage, section),
        Work::Rl(section) => reinforce::reinforce(session, tokenizer, stage, section),
        Work::SampleAndFilter(section) => {
            samples::sample_and_filter(session, tokenizer, stage, section).map(|()| Outcome::Done)
        }
        Work::Score(section) => samples::score(session, tokenizer, stage, section).map(|()| Outcome::Done),
    }
}

/// The run that the command line means.
fn open(args: &Args) -> Result<RunDir> {
    let recipe = match &args.recipe_or_run {
        None => Recipe::quickstart(),
        Some(path) if path.is_dir() => return Ok(RunDir::open(path)?),
        Some(path) => Recipe::load(path)?,
    };
    Ok(RunDir::open_or_create(&args.runs, &recipe)?)
}

impl Session {
    /// Adds a line to the ledger: the caller says what was done, this what it took.
    fn record(&mut self, entry: Entry) -> Result<()> {
        let seconds = self.last_entry.elapsed().as_secs_f64();
        self.last_entry = Instant::now();
        let usd_per_hour = self.run.recipe().run.usd_per_hour;
        self.ledger.append(Entry {
            seconds,
            threads: wels_kernels::par::threads(),
            cost_micro_usd: (seconds / 3600.0 * usd_per_hour * 1e6).round() as u64,
            peak_rss_bytes: machine::peak_rss_bytes().unwrap_or(0),
            wels_version: env!("CARGO_PKG_VERSION").into(),
            ..entry
        })?;
        Ok(())
    }

    /// Time and money of the run so far, in all processes that worked on it.
    fn spent_in_words(&self) -> String {
        let now = self.last_entry.elapsed().as_secs_f64();
        let seconds = now + self.ledger.entries().iter().map(|entry| entry.seconds).sum::<f64>();
        let usd = seconds / 3600.0 * self.run.recipe().run.usd_per_hour;
        let money = if usd > 0.0 { format!(", ${usd:.2}") } else { String::new() };
        format!("{} so far{money}", duration(seconds))
    }

    /// Leaves at once if the user has asked to stop, in stages whose work so far is safe on disk or quickly done again.
    fn leave_if_asked(interrupt: &Interrupt, run: &Path) {
        if interrupt.asked() {
            eprintln!("error: interrupted\nhint: go on with: wels run {}", run.display());
            std::process::exit(1);
        }
    }
}

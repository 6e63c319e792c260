//! `wels run [RECIPE.toml | RUN]`: a whole recipe, or what is left of a run.
//!
//! ```text
//! recipe → run directory (locked) → plan.json
//! tokenizer/   trained on the corpus, or copied
//! data/        the corpus as shards of tokens
//! pretrain/    steps, metrics.jsonl, checkpoints; the last one is a Hugging Face directory
//! STAGE/       what the recipe's [[stage]]s say, in order: worked examples, reinforcement, distillation, samples,
//!              scores
//! sample/      text from the trained model, also to stdout
//! receipt.json, report.html   at the end of each stage, with plan against account
//! ```
//! Every stage is done once: what is there is kept, so the same command goes on after a kill, a Ctrl-C or a full disk.

pub(crate) mod corpus;

pub(crate) mod pretrain;

pub(crate) mod forecast;

mod stage;

mod task;

mod learn;

mod reinforce;

mod distil;

mod samples;

mod sample;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::memory;
use wels_runs::account;
use wels_runs::checkpoint::{Checkpoint, FileRecord};
use wels_runs::ledger::{Entry, Ledger, Totals};
use wels_runs::machine::{self, EnergyMeter};
use wels_runs::plan::RunPlan;
use wels_runs::plan::prices::Prices;
use wels_runs::receipt::{RECEIPT, Receipt};
use wels_runs::recipe::{Answers, Recipe, StageSection, Supervised, Work};
use wels_runs::report::{self, REPORT};
use wels_runs::rundir::{RunDir, write_json};
use wels_runs::verify;
use wels_train::rl::Prompter;

use crate::failure::refuse;
use crate::interrupt::Interrupt;
use crate::output::{self, duration};
use crate::plan::{plan_in_lines, pretraining_in_one_line};
use crate::verify::Replay;

use forecast::{Rates, forecast};
pub(crate) use pretrain::{execution, hyperparameters};
use stage::Again;

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
pub(crate) struct Session {
    run: RunDir,
    ledger: Ledger,
    interrupt: Interrupt,
    energy: EnergyMeter,
    /// The line of this process' start, until there is something to write behind it.
    pending: Option<Entry>,
    /// When the last line of the ledger was written, and the processor time until then.
    last_entry: Instant,
    last_cpu_seconds: f64,
    /// Whether results go to stdout.
    shows: bool,
}

/// Kinds of work in the ledger.
const PREPARE: &str = "prepare";
const TRAIN: &str = "train";
const GENERATE: &str = "generate";

/// How a stage ended.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    Interrupted,
    /// The limit that the next step would go beyond, in words.
    OverBudget(String),
}

/// Does what is left of a run.
pub fn run(args: &Args) -> Result<()> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    carry_out(Session::open(open(args)?, interrupt)?)
}

/// Does what is left of `run`, whose results nobody waits for.
pub(crate) fn repeat(run: RunDir) -> Result<()> {
    let interrupt = Interrupt::listen().context("cannot listen for Ctrl-C")?;
    carry_out(Session { shows: false, ..Session::open(run, interrupt)? })
}

fn carry_out(mut session: Session) -> Result<()> {
    let path = session.run.path().to_path_buf();
    let recipe = session.run.recipe().clone();
    let expected = forecast(&recipe, Some(&path), Rates::Measured);
    session.begin(&expected)?;
    eprintln!("{:>9} {}", "run", path.display());
    let tokenizer = corpus::tokenizer(&mut session, &recipe)?;
    // Now that there is a tokenizer, it is known how long texts are.
    let expected = forecast(&recipe, Some(&path), Rates::Known);
    session.plan_anew(&expected)?;
    let lines = pretraining_in_one_line(&expected).into_iter().chain(plan_in_lines(&expected));
    lines.for_each(|line| eprintln!("{:>9} {line}", "plan"));

    let again = format!("go on with: wels run {}", path.display());
    let go_on = |outcome| match outcome {
        Outcome::Done => Ok(()),
        Outcome::Interrupted => Err(refuse("interrupted; the run is saved", again.clone())),
        Outcome::OverBudget(limit) => {
            let message = format!("the budget of {limit} leaves no room for another step; the run is saved");
            Err(refuse(message, format!("raise it under [budget] in the run's recipe.toml, and {again}")))
        }
    };
    if recipe.pretrains() {
        let dataset = corpus::shards(&mut session, &recipe, &tokenizer)?;
        begin_stage();
        let outcome = pretrain::pretrain(&mut session, &recipe, &tokenizer, dataset)?;
        session.close_stage("pretrain", &expected)?;
        go_on(outcome)?;
    }
    for stage in &recipe.stages {
        begin_stage();
        let outcome = work(&mut session, &tokenizer, stage)?;
        session.close_stage(&stage.name, &expected)?;
        go_on(outcome)?;
    }
    sample::sample(&mut session, &recipe, &tokenizer)?;
    session.close_stage("sample", &expected)?;
    eprintln!("{:>9} {}", "report", path.join(REPORT).display());
    Ok(())
}

/// A stage's memory is its own: what the one before it has freed goes back to the system.
fn begin_stage() {
    memory::give_free_back();
    machine::forget_peak_rss();
}

/// Does what is left of a stage.
fn work(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection) -> Result<Outcome> {
    match &stage.work {
        Work::Pretrain(section) | Work::Sft(section) => learn::learn(session, tokenizer, stage, section, None),
        Work::Rl(section) => reinforce::reinforce(session, tokenizer, stage, section),
        Work::Distil(section) => distil::distil(session, tokenizer, stage, section),
        Work::SampleAndFilter(section) => {
            samples::sample_and_filter(session, tokenizer, stage, section).map(|()| Outcome::Done)
        }
        Work::Score(section) => samples::score(session, tokenizer, stage, section).map(|()| Outcome::Done),
    }
}

/// A stage that trains once more, behind its checkpoint `from` or from its beginning; `scratch` is an empty folder.
pub(crate) fn again<'a>(
    run: &RunDir,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    stage: &StageSection,
    scratch: &Path,
    from: Option<&Checkpoint>,
) -> Result<Box<dyn Replay + 'a>> {
    let (position, scratch) = (stage::position_of(from)?, scratch.to_path_buf());
    let prompter = Prompter { tokenizer, template };
    let lessons = |section: &Supervised, teacher| -> Result<Box<dyn Replay + 'a>> {
        let lessons = learn::Lessons::prepare(run, tokenizer, stage, section, teacher)?;
        let training = lessons.begin(run, tokenizer, section, from)?;
        Ok(Box::new(Again { training, position, tokenizer, scratch: scratch.clone() }))
    };
    match &stage.work {
        Work::Pretrain(section) | Work::Sft(section) => lessons(section, None),
        Work::Rl(section) => {
            let training = reinforce::Reinforcement::begin(run, prompter, stage, section, from)?;
            Ok(Box::new(Again { training, position, tokenizer, scratch }))
        }
        Work::Distil(section) => {
            let teacher = distil::TeacherModel::open(run, tokenizer, section)?;
            match &section.answers {
                Answers::Given(given) => lessons(given, Some(teacher)),
                Answers::Own(own) => {
                    let training = distil::Correction::begin(run, prompter, own, teacher, from)?;
                    Ok(Box::new(Again { training, position, tokenizer, scratch }))
                }
            }
        }
        Work::SampleAndFilter(_) | Work::Score(_) => bail!("the stage {} has no steps", stage.name),
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
    /// Works on `run` from now on.
    pub(crate) fn open(run: RunDir, interrupt: Interrupt) -> Result<Session> {
        let ledger = Ledger::open(&run.path().join("ledger.jsonl"))?;
        Ok(Session {
            run,
            ledger,
            interrupt,
            energy: EnergyMeter::of_this_machine(),
            pending: None,
            last_entry: Instant::now(),
            last_cpu_seconds: machine::cpu_seconds().unwrap_or(0.0),
            shows: true,
        })
    }

    /// A line of results.
    fn show(&self, line: &str) -> Result<()> {
        if self.shows {
            output::line(line)?;
        }
        Ok(())
    }

    /// The plan, and the first line of this process in the ledger: written at once if the run begins or its files have
    /// changed, else with the next line. So a run that is done stays as it is.
    fn begin(&mut self, expected: &RunPlan) -> Result<()> {
        self.run.write_plan(expected)?;
        let before = verify::run_files(self.ledger.entries());
        let event = if before.is_empty() { "start" } else { "resume" };
        let files = ["recipe.toml", "plan.json"].map(|name| Ok((name.to_string(), self.record_of(name)?)));
        let files = files.into_iter().collect::<Result<BTreeMap<_, _>>>()?;
        let unchanged = before == files;
        let entry = self.measured(Entry { event: event.into(), files, ..Entry::default() });
        if unchanged {
            self.pending = Some(entry);
        } else {
            self.ledger.append(entry)?;
        }
        self.write_receipt()
    }

    /// The plan, once more is known; a line in the ledger if it differs.
    fn plan_anew(&mut self, expected: &RunPlan) -> Result<()> {
        self.run.write_plan(expected)?;
        let plan = self.record_of("plan.json")?;
        if verify::run_files(self.ledger.entries()).get("plan.json") != Some(&plan) {
            let files = BTreeMap::from([("plan.json".to_string(), plan)]);
            self.record(Entry { event: "plan".into(), files, ..Entry::default() })?;
        }
        self.write_receipt()
    }

    fn record_of(&self, name: &str) -> Result<FileRecord> {
        corpus::record_of(&self.run.path().join(name))
    }

    fn write_receipt(&self) -> Result<()> {
        let receipt = Receipt::of(self.run.recipe(), self.ledger.entries(), self.ledger.head());
        Ok(write_json(&self.run.path().join(RECEIPT), &receipt)?)
    }

    /// Adds a line to the ledger: the caller says what was done, this what it took.
    fn record(&mut self, entry: Entry) -> Result<()> {
        let entry = self.measured(entry);
        if let Some(begin) = self.pending.take() {
            self.ledger.append(begin)?;
        }
        Ok(self.ledger.append(entry)?)
    }

    /// The entry with what was taken since the last one.
    fn measured(&mut self, entry: Entry) -> Entry {
        let seconds = self.last_entry.elapsed().as_secs_f64();
        self.last_entry = Instant::now();
        let cpu_seconds = machine::cpu_seconds().unwrap_or(0.0);
        let cpu_before = std::mem::replace(&mut self.last_cpu_seconds, cpu_seconds);
        let usd_per_hour = self.run.recipe().run.usd_per_hour;
        Entry {
            time: machine::unix_time(),
            seconds,
            device_seconds: seconds,
            cpu_seconds: (cpu_seconds - cpu_before).max(0.0),
            joules: self.energy.joules(),
            threads: wels_kernels::par::threads(),
            cost_micro_usd: (seconds / 3600.0 * usd_per_hour * 1e6).round() as u64,
            peak_rss_bytes: machine::peak_rss_bytes().unwrap_or(0),
            wels_version: env!("CARGO_PKG_VERSION").into(),
            ..entry
        }
    }

    /// The end of a stage: plan against account on stderr, receipt and report on disk.
    fn close_stage(&mut self, stage: &str, expected: &RunPlan) -> Result<()> {
        let entries = self.ledger.entries();
        if let Some(planned) = expected.stage(stage) {
            let comparison = account::compare(planned, entries);
            for (what, planned, actual) in comparison.rows() {
                eprintln!("{:>9} {stage}: {what} {actual}, planned {planned}", "account");
            }
            comparison.reasons.iter().for_each(|reason| eprintln!("{:>9} {reason}", ""));
        }
        self.write_receipt()?;
        report::write(self.run.path(), &Prices::built_in())?;
        Ok(())
    }

    /// The limit of the budget that one more step would go beyond, after `tokens` that no line of the ledger has yet.
    fn over_budget(&self, tokens: u64, step_tokens: u64, step_seconds: f64) -> Option<String> {
        let spent = Totals::of(self.ledger.entries().iter());
        let trained = self.ledger.entries().iter().filter(|entry| entry.kind == TRAIN).map(|entry| entry.tokens);
        let hours = (spent.seconds + self.last_entry.elapsed().as_secs_f64() + step_seconds) / 3600.0;
        let recipe = self.run.recipe();
        let usd = hours * recipe.run.usd_per_hour;
        recipe.budget.exceeded_by(usd, hours, trained.sum::<u64>() + tokens + step_tokens)
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

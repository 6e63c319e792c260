//! A run under way: its directory and ledger, what was spent of its budget, and whether to stop.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use thiserror::Error;
use wels_runs::account;
use wels_runs::checkpoint::FileRecord;
use wels_runs::hash::sha256_file;
use wels_runs::ledger::{Entry, Ledger, RESUME, STOPPED, Totals};
use wels_runs::machine::{self, EnergyMeter};
use wels_runs::plan::RunPlan;
use wels_runs::plan::prices::Prices;
use wels_runs::receipt::{CHECKPOINT, RECEIPT, Receipt};
use wels_runs::recipe::Recipe;
use wels_runs::report;
use wels_runs::rundir::write_json;
use wels_runs::verify;

use crate::host::{Event, Host};
use crate::rank::Rank;
use crate::words::duration;

/// Kinds of work in the ledger.
pub(crate) const PREPARE: &str = "prepare";
pub(crate) const TRAIN: &str = "train";
pub(crate) const GENERATE: &str = "generate";

/// A run that stopped before its end. All that was done is saved.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{why}; the run is saved")]
pub struct Stopped {
    pub why: StopReason,
    pub run: PathBuf,
}

/// Why a run stopped before its end.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum StopReason {
    /// [`Host::stop_asked`].
    #[error("interrupted")]
    Asked,
    /// With the limit that the next step would go beyond, in words.
    #[error("the budget of {0} leaves no room for another step")]
    OverBudget(String),
}

impl Stopped {
    /// What to do about it.
    pub fn hint(&self) -> String {
        let again = format!("go on with: wels run {}", self.run.display());
        match self.why {
            StopReason::Asked => again,
            StopReason::OverBudget(_) => format!("raise it under [budget] in the run's recipe.toml, and {again}"),
        }
    }
}

/// What was or will be taken of a budget.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spending {
    /// By the clock.
    pub seconds: f64,
    /// Tokens that weights were learnt from.
    pub trained: u64,
    /// Tokens that models wrote.
    pub sampled: u64,
}

impl std::ops::Add for Spending {
    type Output = Spending;

    fn add(self, more: Spending) -> Spending {
        Spending {
            seconds: self.seconds + more.seconds,
            trained: self.trained.saturating_add(more.trained),
            sampled: self.sampled.saturating_add(more.sampled),
        }
    }
}

impl Spending {
    /// What `part` of `all` would take, where all took this.
    pub(crate) fn share(self, part: u64, all: u64) -> Spending {
        let share = part as f64 / all.max(1) as f64;
        let tokens = |tokens: u64| (tokens as f64 * share).ceil() as u64;
        Spending { seconds: self.seconds * share, trained: tokens(self.trained), sampled: tokens(self.sampled) }
    }
}

/// A run under way.
pub struct Session<'h> {
    pub(crate) rank: Rank,
    pub(crate) ledger: Ledger,
    pub(crate) host: &'h mut dyn Host,
    energy: EnergyMeter,
    /// The line of this process' start, until there is something to write behind it.
    pending: Option<Entry>,
    /// When the last line of the ledger was written, and the processor time until then.
    last_entry: Duration,
    last_cpu_seconds: f64,
    /// The device's counter then.
    last_device_joules: Option<f64>,
}

impl<'h> Session<'h> {
    /// Works on a run from now on, as its rank 0.
    ///
    /// # Errors
    /// If the ledger cannot be read.
    pub(crate) fn open(rank: Rank, host: &'h mut dyn Host) -> Result<Session<'h>> {
        let ledger = Ledger::open(&rank.run.path().join("ledger.jsonl"))?;
        let last_device_joules = rank.device.energy_joules();
        Ok(Session {
            rank,
            last_device_joules,
            ledger,
            energy: EnergyMeter::of_this_machine(),
            pending: None,
            last_entry: host.clock(),
            last_cpu_seconds: machine::cpu_seconds().unwrap_or(0.0),
            host,
        })
    }

    /// The run's directory.
    pub fn path(&self) -> &Path {
        self.rank.run.path()
    }

    /// The plan, and the first line of this process in the ledger: written at once if the run begins or its files have
    /// changed, else with the next line. So a run that is done stays as it is.
    pub(crate) fn begin(&mut self, expected: &RunPlan) -> Result<()> {
        self.rank.run.write_plan(expected)?;
        let before = verify::run_files(self.ledger.entries());
        let event = if before.is_empty() { "start" } else { RESUME };
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
    pub(crate) fn plan_anew(&mut self, expected: &RunPlan) -> Result<()> {
        self.rank.run.write_plan(expected)?;
        let plan = self.record_of("plan.json")?;
        if verify::run_files(self.ledger.entries()).get("plan.json") != Some(&plan) {
            let files = BTreeMap::from([("plan.json".to_string(), plan)]);
            self.record(Entry { event: "plan".into(), files, ..Entry::default() })?;
        }
        self.write_receipt()
    }

    fn record_of(&self, name: &str) -> Result<FileRecord> {
        record_of(&self.rank.run.path().join(name))
    }

    fn write_receipt(&self) -> Result<()> {
        let receipt = Receipt::of(self.rank.run.recipe(), self.ledger.entries(), self.ledger.head());
        Ok(write_json(&self.rank.run.path().join(RECEIPT), &receipt)?)
    }

    /// Adds a line to the ledger: the caller says what was done, this what it took.
    pub(crate) fn record(&mut self, entry: Entry) -> Result<()> {
        let entry = self.measured(entry);
        if let Some(begin) = self.pending.take() {
            self.ledger.append(begin)?;
        }
        Ok(self.ledger.append(entry)?)
    }

    /// The entry with what was taken since the last one.
    fn measured(&mut self, entry: Entry) -> Entry {
        let seconds = self.seconds_since_entry();
        self.last_entry = self.host.clock();
        let cpu_seconds = machine::cpu_seconds().unwrap_or(0.0);
        let cpu_before = std::mem::replace(&mut self.last_cpu_seconds, cpu_seconds);
        let device_joules = self.rank.device.energy_joules();
        let joules_before = std::mem::replace(&mut self.last_device_joules, device_joules);
        let usd_per_hour = self.rank.run.recipe().run.usd_per_hour;
        Entry {
            time: machine::unix_time(),
            seconds,
            device_seconds: seconds,
            cpu_seconds: (cpu_seconds - cpu_before).max(0.0),
            joules: self.energy.joules(),
            device_joules: device_joules.zip(joules_before).map(|(now, before)| (now - before).max(0.0)),
            threads: wels_kernels::par::threads(),
            ranks: self.rank.comm.world(),
            expert_parallel: Some(self.rank.expert_parallel).filter(|sharing| *sharing > 1),
            device: self.rank.device.name().into(),
            cost_micro_usd: (seconds / 3600.0 * usd_per_hour * 1e6).round() as u64,
            peak_rss_bytes: machine::peak_rss_bytes().unwrap_or(0),
            wels_version: env!("CARGO_PKG_VERSION").into(),
            ..entry
        }
    }

    fn seconds_since_entry(&self) -> f64 {
        self.host.clock().saturating_sub(self.last_entry).as_secs_f64()
    }

    /// The end of a stage, for now: plan against account for the host, receipt and report on disk.
    pub(crate) fn close_stage(&mut self, stage: &str, expected: &RunPlan) -> Result<()> {
        if let Some(planned) = expected.stage(stage) {
            let comparison = account::compare(planned, self.ledger.entries());
            self.host.event(Event::Account { stage, comparison: &comparison });
        }
        self.write_receipt()?;
        report::write(self.rank.run.path(), &Prices::built_in())?;
        Ok(())
    }

    /// What the run has spent, in all processes that worked on it; since its last line in the ledger, time alone.
    pub fn spent(&self) -> Spending {
        let recipe = self.rank.run.recipe();
        let entered = self.ledger.entries().iter().chain(&self.pending).map(|entry| spending_of(recipe, entry));
        let now = Spending { seconds: self.seconds_since_entry(), ..Spending::default() };
        entered.fold(now, |sum, entry| sum + entry)
    }

    /// Why the run should stop before it spends `next`, having spent `unentered` since its last line in the ledger,
    /// whose seconds are known.
    pub(crate) fn why_stop(&self, unentered: Spending, next: Spending) -> Option<StopReason> {
        if self.host.stop_asked() {
            return Some(StopReason::Asked);
        }
        let Spending { seconds, trained, sampled } = self.spent() + Spending { seconds: 0.0, ..unentered } + next;
        let (recipe, hours) = (self.rank.run.recipe(), seconds / 3600.0);
        let usd = hours * recipe.run.usd_per_hour;
        recipe.budget.exceeded_by(usd, hours, trained, sampled).map(StopReason::OverBudget)
    }

    /// The error that ends a run early.
    pub(crate) fn stopped(&self, why: StopReason) -> anyhow::Error {
        Stopped { why, run: self.rank.run.path().to_path_buf() }.into()
    }

    /// Ends the run early where a stage writes no checkpoint, with a line in the ledger that has what it took.
    pub(crate) fn stop(&mut self, why: StopReason, entry: Entry) -> anyhow::Error {
        match self.record(Entry { event: STOPPED.into(), ..entry }) {
            Ok(()) => self.stopped(why),
            Err(error) => error,
        }
    }

    /// What a step of the stage took when it last wrote a checkpoint; nothing if it never did.
    pub(crate) fn last_step_of(&self, stage: &str) -> Spending {
        let of_stage = |entry: &&Entry| entry.stage == stage && entry.event == CHECKPOINT;
        let mut checkpoints = self.ledger.entries().iter().rev().filter(of_stage);
        let Some(last) = checkpoints.next() else { return Spending::default() };
        let steps = last.step.saturating_sub(checkpoints.next().map_or(0, |before| before.step));
        spending_of(self.rank.run.recipe(), last).share(1, steps)
    }

    /// What the ledger has of a stage that was stopped, since it was last done.
    pub(crate) fn entered_of_undone(&self, stage: &str) -> Totals {
        let of_stage = self.ledger.entries().iter().rev().filter(|entry| entry.stage == stage);
        Totals::of(of_stage.take_while(|entry| entry.event == STOPPED))
    }

    /// Time and money of the run so far, in all processes that worked on it.
    pub(crate) fn spent_in_words(&self) -> String {
        let seconds = self.spent().seconds;
        let usd = seconds / 3600.0 * self.rank.run.recipe().run.usd_per_hour;
        let money = if usd > 0.0 { format!(", ${usd:.2}") } else { String::new() };
        format!("{} so far{money}", duration(seconds))
    }
}

/// What a line of the ledger took of the budget.
fn spending_of(recipe: &Recipe, entry: &Entry) -> Spending {
    let samples = || recipe.stages.iter().any(|stage| stage.name == entry.stage && stage.work.samples());
    let (trained, sampled) = match entry.kind.as_str() {
        TRAIN if samples() => (entry.learned_tokens, entry.tokens),
        TRAIN => (entry.tokens, 0),
        GENERATE => (0, entry.tokens),
        _ => (0, 0),
    };
    Spending { seconds: entry.seconds, trained, sampled }
}

/// Length and hash of a file.
pub(crate) fn record_of(path: &Path) -> Result<FileRecord> {
    let (sha256, bytes) = sha256_file(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(FileRecord { bytes, sha256 })
}

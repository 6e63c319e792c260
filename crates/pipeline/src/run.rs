//! A whole recipe, or what is left of a run.
//!
//! ```text
//! recipe → run directory (locked) → plan.json
//! tokenizer/   trained on the corpus, or copied
//! data/        the corpus as shards of tokens
//! pretrain/    steps, metrics.jsonl, checkpoints; the last one is a Hugging Face directory
//! STAGE/       what the recipe's [[stage]]s say, in order: worked examples, reinforcement, distillation, samples,
//!              scores
//! sample/      text from the trained model, also to the host
//! receipt.json, report.html   at the end of each stage, with plan against account
//! ```
//! Every stage is done once: what is there is kept, so a run goes on after a kill, an interruption or a full disk.

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::memory;
use wels_runs::machine;
use wels_runs::plan::RunPlan;
use wels_runs::recipe::{PRETRAIN, Recipe, StageSection, Work};
use wels_runs::report::REPORT;

use crate::forecast::{Rates, forecast};
use crate::host::{Event, Host, Silent};
use crate::rank::{Command, Rank};
use crate::session::{Session, Stopped};
use crate::{attention, corpus, distil, learn, pictures, pretrain, questions, reinforce, room, sample, samples};

/// Does what is left of a run as its rank 0, and tells `host`; the others [`follow`](crate::ranks::follow). Where
/// `rates` says so, steps of a run that begins are measured first, for its plan.
///
/// # Errors
/// [`Stopped`] if the host asked for it or the budget is spent; whatever a stage meets.
pub(crate) fn run(rank: Rank, rates: Rates, host: &mut dyn Host) -> Result<()> {
    let mut session = Session::open(rank, host)?;
    let path = session.path().to_path_buf();
    // Other processes may have been started in another folder.
    session.rank.tell(&Command::Open { run: std::path::absolute(&path)? })?;
    let recipe = session.rank.run.recipe().clone();
    pictures::check(&session.rank, &recipe)?;
    attention::check(recipe.model.config(), &*session.rank.device)?;
    check_room(&session, &recipe)?;
    let expected = forecast(&recipe, Some(&path), &session.rank.device, rates, session.host);
    session.begin(&expected)?;
    session.host.event(Event::Run(&path));
    let tokenizer = corpus::tokenizer(&mut session, &recipe)?;
    // Now that there is a tokenizer, it is known how long texts are.
    let expected = forecast(&recipe, Some(&path), &session.rank.device, Rates::Known, session.host);
    session.plan_anew(&expected)?;
    session.host.event(Event::Plan { plan: &expected, device: &*session.rank.device });
    if recipe.pretrains() {
        let dataset = corpus::shards(&mut session, &recipe, &tokenizer)?;
        begin_stage();
        let done = pretrain::pretrain(&mut session, &recipe, &tokenizer, dataset);
        session.end_stage(PRETRAIN, &expected, done)?;
    }
    for stage in &recipe.stages {
        begin_stage();
        let done = work(&mut session, &tokenizer, stage);
        session.end_stage(&stage.name, &expected, done)?;
    }
    let done = sample::sample(&mut session, &recipe, &tokenizer);
    session.end_stage("sample", &expected, done)?;
    session.host.event(Event::Report(&path.join(REPORT)));
    Ok(())
}

/// Refuses what the device's memory does not hold, before anything is measured on it. Stages that have run there fit.
fn check_room(session: &Session, recipe: &Recipe) -> Result<()> {
    let device = &session.rank.device;
    if device.memory().is_none() {
        return Ok(());
    }
    let expected = forecast(recipe, Some(session.path()), device, Rates::Known, &mut Silent);
    let ran = |stage: &str| session.ledger.entries().iter().any(|it| it.stage == stage && it.device == device.name());
    room::check(recipe, &expected, &**device, ran)
}

impl Session<'_> {
    /// Closes a stage that is done or has stopped.
    fn end_stage(&mut self, stage: &str, expected: &RunPlan, done: Result<()>) -> Result<()> {
        if done.as_ref().err().is_none_or(|error| error.is::<Stopped>()) {
            self.close_stage(stage, expected)?;
        }
        done
    }
}

/// A stage's memory is its own: what the one before it has freed goes back to the system.
fn begin_stage() {
    memory::give_free_back();
    machine::forget_peak_rss();
}

/// Does what is left of a stage.
fn work(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection) -> Result<()> {
    match &stage.work {
        Work::Pretrain(section) | Work::Sft(section) => learn::learn(session, tokenizer, stage, section, None),
        Work::Rl(section) => reinforce::reinforce(session, tokenizer, stage, section),
        Work::Distil(section) => distil::distil(session, tokenizer, stage, section),
        Work::SampleAndFilter(section) => samples::sample_and_filter(session, tokenizer, stage, section),
        Work::Questions(section) => questions::make(session, tokenizer, stage, section),
        Work::Score(section) => samples::score(session, tokenizer, stage, section),
        Work::Vq(section) => pictures::codes::vq(session, tokenizer, stage, section),
        Work::Janus(section) => pictures::learn::janus(session, tokenizer, stage, section),
        Work::DrawRl(section) => pictures::reinforce::reinforce(session, tokenizer, stage, section),
        Work::DrawScore(section) => pictures::score::score(session, tokenizer, stage, section),
    }
}

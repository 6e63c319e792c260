//! Several ranks that work on one run.
//!
//! Rank 0 does what a single rank does: it decides, writes, and tells people. Before it does what takes all ranks it
//! says so, and the others do the same:
//!
//! ```text
//! opens a stage that trains             Train: begin the same training behind the same checkpoint
//!   does a step                         Step
//!   writes a checkpoint                 Save: give their parts of the optimizer's state
//! opens a stage that samples            Sample: load the same model
//!   answers a part of its items         Answer
//! is over with a stage                  Done
//! ends                                  (it is lost)
//! ```
//! **Failures.** A step fails on all ranks, or on none, so rank 0 alone decides what follows from it. A rank that ends
//! otherwise is lost to the others, whose next operation fails.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::{self, ScopedJoinHandle};

use anyhow::{Context, Result, bail};
use wels_comm::{Comm, threads};
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_device::Device;
use wels_runs::checkpoint;
use wels_runs::recipe::{PRETRAIN, Recipe};
use wels_runs::rundir::RunDir;

use crate::forecast::Rates;
use crate::host::{Host, Silent};
use crate::rank::{Command, Rank};
use crate::refusal::refuse;
use crate::samples::Answerer;
use crate::task::Programs;
use crate::{experts, replay, run};

/// The stack of a rank's thread: that of a process' first one.
const STACK_BYTES: usize = 8 << 20;

/// How a run is done.
pub struct Options {
    /// Whether programs that its recipe names as judges are started.
    pub programs: Programs,
    /// Whether steps of a run that begins are measured first, for its plan.
    pub rates: Rates,
    /// What each rank computes with, a thread of this process; several may share a device. At least one.
    pub devices: Vec<Arc<dyn Device>>,
    /// How many ranks share the routed experts: 1 if each has all.
    pub expert_parallel: usize,
}

/// Does what is left of `run`, and tells `host`.
///
/// # Errors
/// [`Stopped`](crate::session::Stopped) if the host asked for it or the budget is spent; whatever a stage meets, on
/// whichever rank; before anything starts, if the ranks do not divide the recipe's gradient shards.
///
/// # Panics
/// If a rank panics, when all others have ended.
pub fn run_on_threads(run: RunDir, options: &Options, host: &mut dyn Host) -> Result<()> {
    let Options { programs, rates, devices, expert_parallel } = options;
    check(run.recipe(), devices.len(), *expert_parallel)?;
    devices.iter().try_for_each(|device| experts::check_device(&**device, *expert_parallel))?;
    let device = |comm: &dyn Comm| Arc::clone(&devices[comm.rank()]);
    let first = |comm: Arc<dyn Comm>| {
        let device = device(&*comm);
        let rank = Rank { run, programs: *programs, device, comm, expert_parallel: *expert_parallel };
        run::run(rank, *rates, host)
    };
    on_threads(devices.len(), first, |comm| {
        let (device, place) = (device(&*comm), format!("rank {} of {}", comm.rank(), comm.world()));
        follow(comm, device, *programs, *expert_parallel).context(place)
    })
}

/// Does what is left of `run` as rank 0 of a world whose other ranks are other processes, and tells `host`.
///
/// # Errors
/// As [`run_on_threads`], of this rank; another one that fails ends the world itself.
pub fn run_as_first(
    comm: Arc<dyn Comm>,
    run: RunDir,
    device: Arc<dyn Device>,
    options: (Programs, Rates, usize),
    host: &mut dyn Host,
) -> Result<()> {
    let (programs, rates, expert_parallel) = options;
    check(run.recipe(), comm.world(), expert_parallel)?;
    experts::check_device(&*device, expert_parallel)?;
    run::run(Rank { run, programs, device, comm, expert_parallel }, rates, host)
}

/// Rank 0 on this thread and the others on threads of their own, until all have ended. Where another rank failed, its
/// failure counts: the first one says no more than that it is lost.
fn on_threads(
    ranks: usize,
    first: impl FnOnce(Arc<dyn Comm>) -> Result<()>,
    other: impl Fn(Arc<dyn Comm>) -> Result<()> + Sync,
) -> Result<()> {
    thread::scope(|scope| {
        let mut comms = threads(ranks).into_iter();
        let zero = comms.next().expect("a rank or more");
        let mut others = Vec::new();
        for comm in comms {
            let name = format!("rank {}", comm.rank());
            let other = &other;
            let work = move || other(Arc::new(comm));
            let spawned = thread::Builder::new().name(name.clone()).stack_size(STACK_BYTES).spawn_scoped(scope, work);
            others.push(spawned.with_context(|| format!("cannot start a thread for {name}"))?);
        }
        let done = first(Arc::new(zero));
        // A panic counts before what others make of it.
        let ended = |rank: ScopedJoinHandle<Result<()>>| rank.join().unwrap_or_else(|panic| resume_unwind(panic));
        let ends: Vec<Result<()>> = others.into_iter().map(ended).collect();
        ends.into_iter().collect::<Result<()>>().and(done)
    })
}

/// Works as another rank than the first, until that one ends.
///
/// # Errors
/// What keeps this rank from beginning what it is told to; the others then lose it.
pub fn follow(comm: Arc<dyn Comm>, device: Arc<dyn Device>, programs: Programs, expert_parallel: usize) -> Result<()> {
    let Some(Command::Open { run }) = Rank::hear(&*comm) else { return Ok(()) };
    let rank = Rank { run: RunDir::open_beside(&run)?, programs, device, comm, expert_parallel };
    while let Some(command) = Rank::hear(&*rank.comm) {
        match &command {
            Command::Train { stage, behind } => train(&rank, stage, *behind),
            Command::Sample { stage, model } => sample(&rank, stage, model),
            other => bail!("told to {other:?} outside of a stage"),
        }?;
    }
    Ok(())
}

fn train(rank: &Rank, stage: &str, behind: Option<u64>) -> Result<()> {
    let folder = rank.run.path();
    let behind = behind.map(|step| checkpoint::at(&folder.join(stage), step)).transpose()?;
    let tokenizer = Tokenizer::load(&folder.join("tokenizer"))?;
    let template = ChatTemplate::of(&tokenizer)?;
    let mut training = replay::training(rank, &tokenizer, template.as_ref(), stage, behind.as_ref(), &mut Silent)?;
    loop {
        match Rank::hear(&*rank.comm) {
            // The first rank fails with it and says why, or is lost.
            Some(Command::Step) => drop(training.step()),
            Some(Command::Save) => drop(training.join_in_saving()),
            _ => return Ok(()),
        }
    }
}

fn sample(rank: &Rank, stage: &str, model: &str) -> Result<()> {
    let tokenizer = Tokenizer::load(&rank.run.path().join("tokenizer"))?;
    let template = ChatTemplate::of(&tokenizer)?;
    let section = rank.section(stage)?;
    let answerer = Answerer::load(rank, &tokenizer, template.as_ref(), section, model)?;
    while let Some(Command::Answer { first, end }) = Rank::hear(&*rank.comm) {
        drop(answerer.answer(first..end));
    }
    Ok(())
}

/// Fails if a stage's gradient shards cannot be dealt to so many ranks, or groups of `expert_parallel` of them cannot
/// share the experts.
///
/// # Errors
/// With the nearest numbers of ranks that work.
pub fn check(recipe: &Recipe, ranks: usize, expert_parallel: usize) -> Result<()> {
    if let Some(stage) = recipe.stages.iter().find(|stage| ranks > 1 && stage.work.is_of_pictures()) {
        let message = format!("the stage {} is of pictures, which are learnt on one rank", stage.name);
        return Err(refuse(message, "leave --ranks out, and start one process"));
    }
    let pretrain = recipe.pretrains().then_some((PRETRAIN, recipe.pretrain.optimizer.gradient_shards));
    let others = recipe.stages.iter().filter_map(|stage| {
        let shards = stage.work.optimization()?.optimizer.gradient_shards;
        Some((stage.name.as_str(), shards))
    });
    let mut stages = pretrain.into_iter().chain(others);
    let Some((stage, shards)) = stages.find(|(_, shards)| !shards.is_multiple_of(ranks)) else {
        return experts::check(recipe, ranks, expert_parallel);
    };
    // Both are powers of two, or the ranks are none.
    let fewer = shards.min(1 << ranks.ilog2());
    let message = format!("{ranks} ranks do not divide the {shards} gradient shards of the stage {stage}");
    let more = ranks.next_power_of_two();
    let hint = match more <= shards {
        true => format!("{fewer} and {more} ranks do"),
        false => format!("{fewer} do, or gradient_shards = {more} in a recipe of another run.name"),
    };
    Err(refuse(message, hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rank_that_fails_is_the_one_that_is_heard() {
        let meets = |comm: Arc<dyn Comm>| Ok(comm.barrier()?);
        on_threads(4, meets, meets).unwrap();
        let ends = |comm: Arc<dyn Comm>| {
            let _ = comm.barrier();
            Ok(())
        };
        let fails = |comm: Arc<dyn Comm>| if comm.rank() == 2 { bail!("no memory") } else { ends(comm) };
        assert_eq!(on_threads(4, meets, fails).unwrap_err().to_string(), "no memory");
        let first_fails = on_threads(2, |_| bail!("the disk is full"), ends);
        assert_eq!(first_fails.unwrap_err().to_string(), "the disk is full");
    }

    #[test]
    #[should_panic(expected = "as planned")]
    fn a_rank_that_panics_ends_all() {
        let meets = |comm: Arc<dyn Comm>| Ok(comm.barrier()?);
        let _ = on_threads(4, meets, |comm| if comm.rank() == 3 { panic!("as planned") } else { meets(comm) });
    }

    #[test]
    fn ranks_that_do_not_divide_the_shards_are_told_what_does() {
        let mut recipe = Recipe::quickstart();
        let mut refused = |shards: usize, ranks: usize| {
            recipe.pretrain.optimizer.gradient_shards = shards;
            let error = check(&recipe, ranks, 1).unwrap_err();
            let refusal = error.downcast_ref::<crate::refusal::Refusal>().expect("a refusal");
            format!("{error}: {}", refusal.hint())
        };
        assert_eq!(
            refused(8, 3),
            "3 ranks do not divide the 8 gradient shards of the stage pretrain: 2 and 4 ranks do"
        );
        let more = "16 ranks do not divide the 4 gradient shards of the stage pretrain: 4 do, or gradient_shards = 16 \
                    in a recipe of another run.name";
        assert_eq!(refused(4, 16), more);
        assert!(refused(8, 2).contains("the 1 gradient shards of the stage"), "another stage has fewer");
        check(&recipe, 1, 1).unwrap();
    }
}

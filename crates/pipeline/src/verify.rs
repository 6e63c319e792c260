//! Whether a run's files are what was written, and whether its steps give what it says: random stretches between
//! checkpoints, of any stage that trains, are done again and compared bit by bit. The same from a published receipt and
//! the data alone: the first checkpoints of pretraining, or all that the recipe does.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use serde::Serialize;
use wels_comm::Single;
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_device::Device;
use wels_kernels::random::Key;
use wels_runs::checkpoint;
use wels_runs::machine;
use wels_runs::receipt::{CheckpointReceipt, RECEIPT, Receipt};
use wels_runs::recipe::{BudgetSection, PRETRAIN, Recipe};
use wels_runs::rundir::{RunDir, RunError};
use wels_runs::verify::{Expected, Findings, Problem, examine};

use crate::forecast::Rates;
use crate::host::{Event, Host, Outcome};
use crate::rank::Rank;
use crate::refusal::refuse;
pub use crate::replay::Segment;
use crate::replay::{NOT_WHAT_STEPS_GIVE, compare_files, replay_segment, step, training};
use crate::session::{Session, record_of};
use crate::task::Programs;
use crate::{corpus, pretrain, run, task};

/// What is done again, where, and what may be started for it.
pub struct Options<'a> {
    /// Stretches; of a receipt, checkpoints of pretraining.
    pub segments: usize,
    /// Stretches of this stage alone.
    pub stage: Option<&'a str>,
    /// Which stretches: the same seed chooses the same; by the clock if `None`.
    pub seed: Option<u64>,
    /// Where a scratch folder is made, and removed afterwards.
    pub scratch: &'a Path,
    /// Whether programs that the run's recipe names as judges are started.
    pub programs: Programs,
    /// What is computed with.
    pub device: &'a Arc<dyn Device>,
}

/// What was found, and what was done again.
#[derive(Debug, Serialize)]
pub struct Verdict {
    /// What was looked at, and what is wrong.
    #[serde(flatten)]
    pub findings: Findings,
    /// What was done again.
    pub replayed: Vec<Segment>,
}

/// A folder that is removed when it is no longer needed.
struct Scratch(PathBuf);

impl Scratch {
    fn new(within: &Path) -> Result<Scratch> {
        let path = within.join(format!("wels-verify-{}", std::process::id()));
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A host that is shown no results.
struct Quiet<'a>(&'a mut dyn Host);

impl Host for Quiet<'_> {
    fn event(&mut self, event: Event<'_>) {
        self.0.event(event);
    }

    fn result(&mut self, _result: Outcome<'_>) -> io::Result<()> {
        Ok(())
    }

    fn stop_asked(&self) -> bool {
        self.0.stop_asked()
    }

    fn clock(&self) -> Duration {
        self.0.clock()
    }
}

/// Verifies the run at `path`.
///
/// # Errors
/// If it is no run, is in use, or names a program that may not be started; whatever a stage meets.
pub fn verify_run(path: &Path, options: &Options, host: &mut dyn Host) -> Result<Verdict> {
    // Nothing is written in it, by anybody; a run with a broken recipe is examined without that being sure.
    let run = match RunDir::open_read_only(path) {
        Err(RunError::Recipe(_)) => None,
        opened => Some(opened?),
    };
    if let (Some(run), Some(stage)) = (&run, options.stage) {
        let names: Vec<&str> = run.recipe().stages.iter().map(|stage| stage.name.as_str()).collect();
        if stage != PRETRAIN && !names.contains(&stage) {
            let known = format!("its stages are {PRETRAIN}, {}", names.join(", "));
            return Err(refuse(format!("the run has no stage {stage}"), known));
        }
    }
    let expected = run.iter().filter(|run| run.recipe().pretrains()).map(|run| expected_of(run.recipe()));
    let (findings, _) = examine(path, &expected.collect::<Vec<_>>())?;
    let mut verdict = Verdict { findings, replayed: Vec::new() };
    // What is known to be wrong need not be done again, and could not be told from what would be found.
    let segments =
        if verdict.findings.problems.is_empty() { segments_in(&verdict.findings, options) } else { Vec::new() };
    let (Some(run), false) = (run, segments.is_empty()) else { return Ok(verdict) };
    let rank = alone(run, options);
    refuse_programs(rank.run.recipe(), options.programs, |stage| {
        segments.iter().any(|segment| segment.stage == stage)
    })?;
    let scratch = Scratch::new(options.scratch)?;
    let tokenizer = Tokenizer::load(&path.join("tokenizer"))?;
    let template = ChatTemplate::of(&tokenizer)?;
    for segment in choose(segments, options) {
        let folder = scratch.0.join(format!("{}-{}", segment.stage, segment.to));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let from = segment.from.map(|step| checkpoint::at(&path.join(&segment.stage), step)).transpose()?;
        let mut replay = training(&rank, &tokenizer, template.as_ref(), &segment.stage, from.as_ref(), host)?;
        let found = replay_segment(path, &segment, &mut *replay, &folder, host)
            .with_context(|| format!("cannot do the stage {} again", segment.stage))?;
        verdict.findings.problems.extend(found);
        verdict.replayed.push(segment);
        let _ = std::fs::remove_dir_all(&folder); // the next may need its room
    }
    Ok(verdict)
}

/// The only rank of a run.
fn alone(run: RunDir, options: &Options) -> Rank {
    Rank {
        run,
        programs: options.programs,
        device: Arc::clone(options.device),
        comm: Arc::new(Single),
        expert_parallel: 1,
    }
}

/// Fails if one of the stages that `matter` has its answers judged by a program that may not be started, whichever
/// stretches would be drawn.
fn refuse_programs(recipe: &Recipe, programs: Programs, matter: impl Fn(&str) -> bool) -> Result<()> {
    let stages = recipe.stages.iter().filter(|stage| programs == Programs::Refuse && matter(&stage.name));
    let judge = stages.filter_map(|stage| stage.work.answering()).find_map(|answering| answering.task.program());
    judge.map_or(Ok(()), |program| Err(task::refuse_program(program)))
}

fn expected_of(recipe: &Recipe) -> Expected {
    let flops_per_token = pretrain::flops_per_token(recipe);
    let (section, sequence_length) = (recipe.pretrain.clone(), recipe.data.sequence_length);
    let tokens_after =
        move |step: u64| (0..step).fold(0, |tokens, _| tokens + section.batch_tokens_after(tokens, sequence_length));
    Expected { stage: PRETRAIN.into(), tokens_after: Box::new(tokens_after), flops_per_token }
}

/// All stretches of the stages that are asked for.
fn segments_in(findings: &Findings, options: &Options) -> Vec<Segment> {
    let mut stages: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (stage, step) in &findings.checkpoints {
        if options.segments > 0 && options.stage.is_none_or(|wanted| wanted == stage) {
            stages.entry(stage).or_default().push(*step);
        }
    }
    stages.into_iter().flat_map(|(stage, steps)| segments_of(stage, steps)).collect()
}

/// Random stretches, each at most once.
fn choose(mut segments: Vec<Segment>, options: &Options) -> Vec<Segment> {
    let seed = options.seed.unwrap_or_else(|| machine::unix_time() ^ u64::from(std::process::id()));
    let key = Key { seed, stream: 0 };
    let mut chosen = Vec::new();
    while chosen.len() < options.segments && !segments.is_empty() {
        let pick = key.below_at(chosen.len() as u64, segments.len() as u64);
        chosen.push(segments.swap_remove(pick as usize));
    }
    chosen
}

/// The stretches between a stage's checkpoints. From nothing to the first that is kept is one of them only if it is not
/// much longer than the others.
fn segments_of(stage: &str, mut steps: Vec<u64>) -> Vec<Segment> {
    steps.sort_unstable();
    let segment = |from: Option<u64>, to: u64| Segment { stage: stage.into(), from, to };
    let mut segments: Vec<Segment> = steps.windows(2).map(|pair| segment(Some(pair[0]), pair[1])).collect();
    let longest = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
    if let Some(first) = steps.first().filter(|first| longest.is_none_or(|longest| **first <= 4 * longest)) {
        segments.push(segment(None, *first));
    }
    segments
}

/// Verifies a receipt: prepares the data, from `data` if it names any, and trains up to the receipt's first
/// checkpoints, or does all of its recipe if `whole`.
///
/// # Errors
/// As [`verify_run`].
pub fn verify_receipt(
    file: &Path,
    data: &[PathBuf],
    whole: bool,
    options: &Options,
    host: &mut dyn Host,
) -> Result<Verdict> {
    let receipt = Receipt::read(file)?;
    let mut recipe = receipt.recipe()?;
    if !data.is_empty() {
        let absolute = |path: &PathBuf| Ok(std::path::absolute(path)?.display().to_string());
        recipe.data.sources = data.iter().map(absolute).collect::<Result<_>>()?;
    }
    if receipt.wels_version != env!("CARGO_PKG_VERSION") {
        let (theirs, ours) = (&receipt.wels_version, env!("CARGO_PKG_VERSION"));
        host.event(Event::Note(&format!(
            "the receipt was written by wels {theirs}, and this is {ours}: bits may differ for that reason"
        )));
    }
    let scratch = Scratch::new(options.scratch)?;
    recipe.budget = BudgetSection::default();
    if whole {
        refuse_programs(&recipe, options.programs, |_| true)?;
    }
    let run = RunDir::open_or_create(&scratch.0, &recipe)?;
    let folder = run.path().to_path_buf();
    if whole {
        run::run(alone(run, options), Rates::Measured, &mut Quiet(host))?;
        return Ok(compare_receipts(&receipt, &Receipt::read(&folder.join(RECEIPT))?, host));
    }
    let mut session = Session::open(alone(run, options), host)?;
    let tokenizer = corpus::tokenizer(&mut session, &recipe)?;
    corpus::shards(&mut session, &recipe, &tokenizer)?;
    let mut verdict = Verdict { findings: Findings::default(), replayed: Vec::new() };
    for (stage, files) in receipt.inputs.iter().filter(|(stage, _)| ["tokenizer", "data"].contains(&stage.as_str())) {
        for (name, record) in files {
            verdict.findings.files += 1;
            if record_of(&folder.join(stage).join(name))? != *record {
                verdict.findings.problems.push(Problem {
                    path: format!("{stage}/{name}"),
                    message: "is not what recipe and data give".into(),
                });
            }
        }
    }
    if verdict.findings.problems.is_empty() {
        train_and_compare(&receipt, &session.rank, &tokenizer, &scratch.0, options, session.host, &mut verdict)?;
    }
    Ok(verdict)
}

/// What a run wrote, beside what the run that has repeated it wrote.
fn compare_receipts(receipt: &Receipt, again: &Receipt, host: &mut dyn Host) -> Verdict {
    let mut verdict = Verdict { findings: Findings::default(), replayed: Vec::new() };
    let findings = &mut verdict.findings;
    let nothing = BTreeMap::new();
    for (stage, files) in &receipt.inputs {
        findings.files += files.len() as u64;
        let given = again.inputs.get(stage).unwrap_or(&nothing);
        findings.problems.extend(compare_files(stage, files, given, "is not what the recipe gives"));
    }
    let given: BTreeMap<_, _> = again.checkpoints.iter().map(|it| ((&it.stage, it.step), &it.files)).collect();
    let last: BTreeMap<_, _> = receipt.checkpoints.iter().map(|it| (&it.stage, it.step)).collect();
    for CheckpointReceipt { stage, step, files } in &receipt.checkpoints {
        let place = format!("{stage}/step-{step:06}");
        match given.get(&(stage, *step)) {
            Some(given) => {
                findings.files += files.len() as u64;
                findings.checkpoints.push((stage.clone(), *step));
                findings.problems.extend(compare_files(&place, files, given, "is not what the recipe gives"));
            }
            None if last[stage] == *step => findings.problems.push(Problem {
                path: place,
                message: "is where the stage ends, and the recipe ends it elsewhere".into(),
            }),
            None => {
                let note = format!("{place} is not compared: it was written where the run was interrupted");
                host.event(Event::Note(&note));
            }
        }
    }
    verdict.replayed = last.into_iter().map(|(stage, to)| Segment { stage: stage.clone(), from: None, to }).collect();
    verdict
}

/// Trains up to the receipt's first checkpoints and compares them.
fn train_and_compare(
    receipt: &Receipt,
    rank: &Rank,
    tokenizer: &Tokenizer,
    scratch: &Path,
    options: &Options,
    host: &mut dyn Host,
    verdict: &mut Verdict,
) -> Result<()> {
    let of_stage = receipt.checkpoints.iter().filter(|checkpoint| checkpoint.stage == PRETRAIN);
    let checkpoints: BTreeMap<u64, _> = of_stage.map(|checkpoint| (checkpoint.step, checkpoint)).collect();
    let wanted: Vec<_> = checkpoints.into_iter().take(options.segments).collect();
    let Some(last) = wanted.last().map(|(step, _)| *step) else { return Ok(()) };
    let steps = rank.run.recipe().pretrain.steps;
    if last > steps {
        let message = format!("the receipt has a checkpoint of step {last}, and its recipe {steps} steps");
        return Err(refuse(message, "it is not the receipt of one run"));
    }
    let folder = scratch.join("replay");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut replay = training(rank, tokenizer, None, PRETRAIN, None, host)?;
    host.event(Event::Began { label: "verify", unit: "steps", done: 0, total: Some(last) });
    let mut from = None;
    for (to, checkpoint) in wanted {
        while step(&mut *replay, host)?.0 < to {}
        let place = format!("pretrain/step-{to:06}");
        let problems = compare_files(&place, &checkpoint.files, &replay.save(&folder)?.files, NOT_WHAT_STEPS_GIVE);
        let differs = !problems.is_empty();
        verdict.findings.problems.extend(problems);
        verdict.replayed.push(Segment { stage: "pretrain".into(), from, to });
        if differs {
            break;
        }
        verdict.findings.files += checkpoint.files.len() as u64;
        verdict.findings.checkpoints.push(("pretrain".into(), to));
        from = Some(to);
    }
    host.event(Event::Ended("steps done again"));
    Ok(())
}

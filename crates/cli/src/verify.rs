//! `wels verify RUN`: whether a run's files are what was written, and whether its steps give what it says: random
//! stretches between checkpoints, of any stage that trains, are done again and compared bit by bit.
//! `wels verify --receipt FILE`: the same from a published receipt and the data alone: the first checkpoints of
//! pretraining, or with `--whole` all that the recipe does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use wels_data::chat::ChatTemplate;
use wels_data::shards::Dataset;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_runs::checkpoint::{self, Checkpoint, FileRecord};
use wels_runs::machine;
use wels_runs::metrics;
use wels_runs::receipt::{CheckpointReceipt, RECEIPT, Receipt};
use wels_runs::recipe::{BudgetSection, PRETRAIN, Recipe};
use wels_runs::rundir::RunDir;
use wels_runs::verify::{Expected, Findings, Problem, examine};

use crate::failure::refuse;
use crate::interrupt::Interrupt;
use crate::output;
use crate::progress::Progress;
use crate::run::{self, Session, corpus, pretrain};

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
    /// Stretches that are done again; 0 looks at the files alone
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "whole")]
    segments: usize,
    /// Stretches of this stage alone
    #[arg(long, value_name = "NAME", conflicts_with = "receipt")]
    stage: Option<String>,
    /// Which stretches: the same seed chooses the same; by the clock if left out
    #[arg(long, value_name = "SEED")]
    seed: Option<u64>,
    /// Where the scratch folder is
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    scratch: PathBuf,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// A stage that can be done again, step by step.
pub trait Replay {
    /// Does the next step: its number, and its line of metrics.
    fn step(&mut self) -> Result<(u64, Value)>;
    /// Writes a checkpoint of where it is.
    fn save(&mut self) -> Result<Checkpoint>;
}

/// Keys of metrics that depend on the machine and its load.
const OF_THE_MACHINE: [&str; 5] =
    ["seconds", "rollout_seconds", "tokens_per_second", "sampled_tokens_per_second", "mfu"];

/// Part of a stage: behind checkpoint `from` (or from nothing) up to checkpoint `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Segment {
    stage: String,
    from: Option<u64>,
    to: u64,
}

#[derive(Serialize)]
struct Verdict {
    #[serde(flatten)]
    findings: Findings,
    replayed: Vec<Segment>,
}

const NOT_WHAT_STEPS_GIVE: &str = "is not what the steps from the checkpoint before it give";

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

/// Verifies.
pub fn verify(args: &Args) -> Result<()> {
    let verdict = match (&args.receipt, &args.run) {
        (Some(receipt), _) => verify_receipt(receipt, args)?,
        (None, Some(run)) => verify_run(run, args)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    if args.json {
        output::json(&verdict)?;
    } else {
        verdict.print()?;
    }
    match verdict.findings.problems.len() {
        0 => Ok(()),
        1 => Err(refuse("one thing is not as it was written", "see the line above; restore the file from a copy")),
        n => Err(refuse(format!("{n} things are not as they were written"), "see the lines above")),
    }
}

impl Verdict {
    fn print(&self) -> std::io::Result<()> {
        let Findings { files, ledger_lines, checkpoints, not_covered, problems } = &self.findings;
        output::line(&format!("{files} files, {ledger_lines} lines of the ledger, {} checkpoints", checkpoints.len()))?;
        for Segment { stage, from, to } in &self.replayed {
            let from = from.map_or("the beginning".to_string(), |from| format!("step {from}"));
            output::line(&format!("{stage}: done again from {from} to step {to}"))?;
        }
        if !not_covered.is_empty() {
            output::line(&printable(&format!("not covered: {}", not_covered.join(", "))))?;
        }
        problems
            .iter()
            .try_for_each(|problem| output::line(&printable(&format!("{}: {}", problem.path, problem.message))))?;
        output::line(if problems.is_empty() { "verified" } else { "NOT verified" })
    }
}

/// A line about a run of somebody else's, in which no name of theirs moves the cursor.
fn printable(line: &str) -> String {
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.to_string() };
    line.chars().map(escaped).collect()
}

fn verify_run(path: &Path, args: &Args) -> Result<Verdict> {
    // Nothing is written in it, by anybody; a run with a broken recipe is examined without that being sure.
    let run = match RunDir::open_read_only(path) {
        Err(wels_runs::rundir::RunError::Recipe(_)) => None,
        opened => Some(opened?),
    };
    if let (Some(run), Some(stage)) = (&run, &args.stage) {
        let names: Vec<&str> = run.recipe().stages.iter().map(|stage| stage.name.as_str()).collect();
        if stage != PRETRAIN && !names.contains(&stage.as_str()) {
            let known = format!("its stages are {PRETRAIN}, {}", names.join(", "));
            return Err(refuse(format!("the run has no stage {stage}"), known));
        }
    }
    let expected = run.iter().filter(|run| run.recipe().pretrains()).map(|run| expected_of(run.recipe()));
    let (findings, _) = examine(path, &expected.collect::<Vec<_>>())?;
    let mut verdict = Verdict { findings, replayed: Vec::new() };
    // What is known to be wrong need not be done again, and could not be told from what would be found.
    let segments = if verdict.findings.problems.is_empty() { choose(&verdict.findings, args) } else { Vec::new() };
    let (Some(run), false) = (run, segments.is_empty()) else { return Ok(verdict) };
    let scratch = Scratch::new(&args.scratch)?;
    let tokenizer = Tokenizer::load(&path.join("tokenizer"))?;
    let template = ChatTemplate::of(&tokenizer)?;
    for segment in segments {
        let folder = scratch.0.join(format!("{}-{}", segment.stage, segment.to));
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let from = segment.from.map(|step| checkpoint::at(&path.join(&segment.stage), step)).transpose()?;
        let stage = run.recipe().stages.iter().find(|stage| stage.name == segment.stage);
        let mut replay: Box<dyn Replay> = match stage {
            Some(stage) => run::again(&run, &tokenizer, template.as_ref(), stage, &folder, from.as_ref())?,
            None => {
                let dataset = Arc::new(Dataset::open(&path.join("data"))?);
                Box::new(pretrain::Replay::begin(run.recipe(), &tokenizer, dataset, &folder, from)?)
            }
        };
        let found = replay_segment(path, &segment, &mut *replay)
            .with_context(|| format!("cannot do the stage {} again", segment.stage))?;
        verdict.findings.problems.extend(found);
        verdict.replayed.push(segment);
        let _ = std::fs::remove_dir_all(&folder); // the next may need its room
    }
    Ok(verdict)
}

fn expected_of(recipe: &Recipe) -> Expected {
    let flops_per_token = pretrain::flops_per_token(recipe);
    let (section, sequence_length) = (recipe.pretrain.clone(), recipe.data.sequence_length);
    let tokens_after =
        move |step: u64| (0..step).fold(0, |tokens, _| tokens + section.batch_tokens_after(tokens, sequence_length));
    Expected { stage: PRETRAIN.into(), tokens_after: Box::new(tokens_after), flops_per_token }
}

/// Random stretches, each at most once.
fn choose(findings: &Findings, args: &Args) -> Vec<Segment> {
    let mut stages: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for (stage, step) in &findings.checkpoints {
        if args.stage.as_ref().is_none_or(|wanted| wanted == stage) {
            stages.entry(stage).or_default().push(*step);
        }
    }
    let mut segments: Vec<Segment> = stages.into_iter().flat_map(|(stage, steps)| segments_of(stage, steps)).collect();
    let seed = args.seed.unwrap_or_else(|| machine::unix_time() ^ u64::from(std::process::id()));
    let key = Key { seed, stream: 0 };
    let mut chosen = Vec::new();
    while chosen.len() < args.segments && !segments.is_empty() {
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

/// Does a stretch again and compares every line of metrics on the way and every file at its end.
fn replay_segment(run: &Path, segment: &Segment, replay: &mut dyn Replay) -> Result<Vec<Problem>> {
    let stage = run.join(&segment.stage);
    let lines = metrics::lines(&stage.join("metrics.jsonl"), segment.from.unwrap_or(0) + 1..=segment.to)?;
    let name = format!("{}/metrics.jsonl", segment.stage);
    let mut progress = Progress::new("verify", "steps", segment.from.unwrap_or(0), Some(segment.to));
    let mut problems = Vec::new();
    loop {
        let (step, line) = replay.step()?;
        progress.at(step, String::new);
        let written = lines.get(&step).and_then(|line| serde_json::from_str(line).ok());
        if let Some(message) = differs(step, &line, written) {
            problems.push(Problem { path: name.clone(), message });
            break; // from here on everything differs
        }
        if step >= segment.to {
            break;
        }
    }
    progress.finish(&format!("steps up to {} done again", segment.to));
    if problems.is_empty() {
        let written = checkpoint::at(&stage, segment.to)?;
        let place = format!("{}/step-{:06}", segment.stage, segment.to);
        problems.extend(compare_files(&place, &written.files, &replay.save()?.files, NOT_WHAT_STEPS_GIVE));
    }
    Ok(problems)
}

/// The first key in which a line of metrics is not what the step gave.
fn differs(step: u64, given: &Value, written: Option<Value>) -> Option<String> {
    let Some(written) = written else { return Some(format!("has no valid line of step {step}")) };
    let (Some(given), Some(written)) = (given.as_object(), written.as_object()) else {
        return Some(format!("has no object for step {step}"));
    };
    let of_recipe = |key: &&String| !OF_THE_MACHINE.contains(&key.as_str());
    let keys = given.keys().chain(written.keys()).filter(of_recipe);
    let key = keys.into_iter().find(|key| given.get(*key) != written.get(*key))?;
    let show = |value: Option<&Value>| value.map_or("nothing".into(), Value::to_string);
    let (is, gives) = (show(written.get(key)), show(given.get(key)));
    Some(format!("says {key} {is} for step {step}; the step gives {gives}"))
}

fn compare_files(
    place: &str,
    written: &BTreeMap<String, FileRecord>,
    given: &BTreeMap<String, FileRecord>,
    message: &str,
) -> Vec<Problem> {
    let names = written.keys().chain(given.keys().filter(|name| !written.contains_key(*name)));
    let differ = names.filter(|name| written.get(*name) != given.get(*name));
    differ.map(|name| Problem { path: format!("{place}/{name}"), message: message.into() }).collect()
}

/// Prepares the data and trains up to the receipt's first checkpoints.
fn verify_receipt(file: &Path, args: &Args) -> Result<Verdict> {
    let receipt = Receipt::read(file)?;
    let mut recipe = receipt.recipe()?;
    if !args.data.is_empty() {
        let absolute = |path: &PathBuf| Ok(std::path::absolute(path)?.display().to_string());
        recipe.data.sources = args.data.iter().map(absolute).collect::<Result<_>>()?;
    }
    if receipt.wels_version != env!("CARGO_PKG_VERSION") {
        let (theirs, ours) = (&receipt.wels_version, env!("CARGO_PKG_VERSION"));
        eprintln!(
            "note: the receipt was written by wels {theirs}, and this is {ours}: bits may differ for that reason"
        );
    }
    let scratch = Scratch::new(&args.scratch)?;
    recipe.budget = BudgetSection::default();
    let run = RunDir::open_or_create(&scratch.0, &recipe)?;
    let folder = run.path().to_path_buf();
    if args.whole {
        run::repeat(run)?;
        return Ok(compare_receipts(&receipt, &Receipt::read(&folder.join(RECEIPT))?));
    }
    let mut session = Session::open(run, Interrupt::listen().context("cannot listen for Ctrl-C")?)?;
    let tokenizer = corpus::tokenizer(&mut session, &recipe)?;
    let dataset = corpus::shards(&mut session, &recipe, &tokenizer)?;
    let mut verdict = Verdict { findings: Findings::default(), replayed: Vec::new() };
    for (stage, files) in receipt.inputs.iter().filter(|(stage, _)| ["tokenizer", "data"].contains(&stage.as_str())) {
        for (name, record) in files {
            verdict.findings.files += 1;
            if corpus::record_of(&folder.join(stage).join(name))? != *record {
                verdict.findings.problems.push(Problem {
                    path: format!("{stage}/{name}"),
                    message: "is not what recipe and data give".into(),
                });
            }
        }
    }
    if verdict.findings.problems.is_empty() {
        train_and_compare(&receipt, &recipe, &tokenizer, dataset, &scratch.0, args.segments, &mut verdict)?;
    }
    Ok(verdict)
}

/// What a run wrote, beside what the run that has repeated it wrote.
fn compare_receipts(receipt: &Receipt, again: &Receipt) -> Verdict {
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
            None => eprintln!("note: {place} is not compared: it was written where the run was interrupted"),
        }
    }
    verdict.replayed = last.into_iter().map(|(stage, to)| Segment { stage: stage.clone(), from: None, to }).collect();
    verdict
}

fn train_and_compare(
    receipt: &Receipt,
    recipe: &Recipe,
    tokenizer: &Tokenizer,
    dataset: Arc<Dataset>,
    scratch: &Path,
    segments: usize,
    verdict: &mut Verdict,
) -> Result<()> {
    let of_stage = receipt.checkpoints.iter().filter(|checkpoint| checkpoint.stage == PRETRAIN);
    let checkpoints: BTreeMap<u64, _> = of_stage.map(|checkpoint| (checkpoint.step, checkpoint)).collect();
    let wanted: Vec<_> = checkpoints.into_iter().take(segments).collect();
    let Some(last) = wanted.last().map(|(step, _)| *step) else { return Ok(()) };
    if last > recipe.pretrain.steps {
        let message =
            format!("the receipt has a checkpoint of step {last}, and its recipe {} steps", recipe.pretrain.steps);
        return Err(refuse(message, "it is not the receipt of one run"));
    }
    let folder = scratch.join("replay");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let mut replay = pretrain::Replay::begin(recipe, tokenizer, dataset, &folder, None)?;
    let mut progress = Progress::new("verify", "steps", 0, Some(last));
    let mut from = None;
    for (to, checkpoint) in wanted {
        while replay.step()?.0 < to {
            progress.at(to, String::new);
        }
        let place = format!("pretrain/step-{to:06}");
        let problems = compare_files(&place, &checkpoint.files, &replay.save()?.files, NOT_WHAT_STEPS_GIVE);
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
    progress.finish("steps done again");
    Ok(())
}

//! A stretch of a stage once more: its steps from a checkpoint or from nothing, beside the lines and files that were
//! written of them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail};
use serde::Serialize;
use serde_json::Value;
use wels_data::chat::ChatTemplate;
use wels_data::shards::Dataset;
use wels_data::tokenizer::Tokenizer;
use wels_runs::checkpoint::{self, Checkpoint, FileRecord};
use wels_runs::metrics;
use wels_runs::recipe::{Answers, PRETRAIN, Supervised, Work};
use wels_runs::verify::Problem;
use wels_train::rl::Prompter;

use crate::distil::Correction;
use crate::host::{Event, Host};
use crate::learn::TrainingSet;
use crate::pictures::codes::VqLearning;
use crate::pictures::learn::JanusLearning;
use crate::pictures::reinforce::Drawing;
use crate::pretrain::Pretraining;
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::reinforce::Reinforcement;
use crate::teacher::TeacherModel;
use crate::training::{Position, Replay, StageReplay};

/// Keys of metrics that depend on the machine and its load.
const OF_THE_MACHINE: [&str; 6] =
    ["seconds", "rollout_seconds", "tokens_per_second", "sampled_tokens_per_second", "mfu", "exchange"];

/// Part of a stage: behind checkpoint `from` (or from nothing) up to checkpoint `to`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// The stage's name.
    pub stage: String,
    /// Its step; `None` for the stage's beginning.
    pub from: Option<u64>,
    /// Its step.
    pub to: u64,
}

/// What is wrong with a file that the steps before it do not give.
pub(crate) const NOT_WHAT_STEPS_GIVE: &str = "is not what the steps from the checkpoint before it give";

/// A stage that trains, step by step, behind its checkpoint `from` or from its beginning.
pub(crate) fn training<'a>(
    rank: &'a Rank,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    stage: &str,
    from: Option<&Checkpoint>,
    host: &mut dyn Host,
) -> Result<Box<dyn Replay + 'a>> {
    let position = Position::of(from)?;
    if stage == PRETRAIN {
        let dataset = Arc::new(Dataset::open(&rank.run.path().join("data"))?);
        let training = Pretraining::begin(rank, rank.run.recipe(), tokenizer, dataset, from)?;
        return Ok(Box::new(StageReplay { training, position, tokenizer }));
    }
    let stage = rank.section(stage)?;
    let prompter = Prompter { tokenizer, template };
    let mut learning = |section: &Supervised, teacher| -> Result<Box<dyn Replay + 'a>> {
        let data = TrainingSet::prepare(&rank.run, tokenizer, stage, section, teacher, host)?;
        let training = data.begin(rank, tokenizer, stage, section, from)?;
        Ok(Box::new(StageReplay { training, position, tokenizer }))
    };
    match &stage.work {
        Work::Pretrain(section) | Work::Sft(section) => learning(section, None),
        Work::Rl(section) => {
            let training = Reinforcement::begin(rank, prompter, stage, section, from)?;
            Ok(Box::new(StageReplay { training, position, tokenizer }))
        }
        Work::Distil(section) => {
            let teacher = TeacherModel::open(rank, tokenizer, section)?;
            match &section.answers {
                Answers::Given(given) => learning(given, Some(teacher)),
                Answers::Own(own) => {
                    let training = Correction::begin(rank, prompter, stage, own, teacher, from)?;
                    Ok(Box::new(StageReplay { training, position, tokenizer }))
                }
            }
        }
        Work::Vq(section) => {
            let training = VqLearning::begin(rank, stage, section, from)?;
            Ok(Box::new(StageReplay { training, position, tokenizer }))
        }
        Work::Janus(section) => {
            let training = JanusLearning::begin(rank, tokenizer, stage, section, from)?;
            Ok(Box::new(StageReplay { training, position, tokenizer }))
        }
        Work::DrawRl(section) => {
            let training = Drawing::begin(rank, tokenizer, stage, section, from)?;
            Ok(Box::new(StageReplay { training, position, tokenizer }))
        }
        Work::SampleAndFilter(_) | Work::Questions(_) | Work::Score(_) | Work::DrawScore(_) => {
            bail!("the stage {} has no steps", stage.name)
        }
    }
}

/// Does a stretch again and compares every line of metrics on the way and every file at its end; `scratch` is an empty
/// folder.
pub(crate) fn replay_segment(
    run: &Path,
    segment: &Segment,
    replay: &mut dyn Replay,
    scratch: &Path,
    host: &mut dyn Host,
) -> Result<Vec<Problem>> {
    let stage = run.join(&segment.stage);
    let lines = metrics::lines(&stage.join("metrics.jsonl"), segment.from.unwrap_or(0) + 1..=segment.to)?;
    let name = format!("{}/metrics.jsonl", segment.stage);
    let (done, total) = (segment.from.unwrap_or(0), Some(segment.to));
    host.event(Event::Began { label: "verify", unit: "steps", done, total });
    let mut problems = Vec::new();
    loop {
        let (step, line) = step(replay, host)?;
        let written = lines.get(&step).and_then(|line| serde_json::from_str(line).ok());
        if let Some(message) = differs(step, &line, written) {
            problems.push(Problem { path: name.clone(), message });
            break; // from here on everything differs
        }
        if step >= segment.to {
            break;
        }
    }
    host.event(Event::Ended(&format!("steps up to {} done again", segment.to)));
    if problems.is_empty() {
        let written = checkpoint::at(&stage, segment.to)?;
        let place = format!("{}/step-{:06}", segment.stage, segment.to);
        problems.extend(compare_files(&place, &written.files, &replay.save(scratch)?.files, NOT_WHAT_STEPS_GIVE));
    }
    Ok(problems)
}

/// The next step, unless the host has asked to stop.
pub(crate) fn step(replay: &mut dyn Replay, host: &mut dyn Host) -> Result<(u64, Value)> {
    if host.stop_asked() {
        return Err(refuse("interrupted; nothing was changed", "give the same command again"));
    }
    let (step, line) = replay.step()?;
    host.event(Event::Reached { done: step, words: &String::new });
    Ok((step, line))
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

/// Files that differ from what was written, each as a problem.
pub(crate) fn compare_files(
    place: &str,
    written: &BTreeMap<String, FileRecord>,
    given: &BTreeMap<String, FileRecord>,
    message: &str,
) -> Vec<Problem> {
    let names = written.keys().chain(given.keys().filter(|name| !written.contains_key(*name)));
    let differ = names.filter(|name| written.get(*name) != given.get(*name));
    differ.map(|name| Problem { path: format!("{place}/{name}"), message: message.into() }).collect()
}

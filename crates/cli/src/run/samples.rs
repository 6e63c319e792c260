//! Stages that sample from finished models: `sample_and_filter` keeps right answers to learn from, `score` grades
//! held-out items. Both write what they have in parts, `part-0007.jsonl`, each whole or not at all, so a kill loses
//! one part.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use wels_data::chat::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::count;
use wels_model::model::Model;
use wels_model::params::Params;
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::ledger::{Entry, STAGE_DONE};
use wels_runs::plan::stages::{PART, answer_flops};
use wels_runs::recipe::{Answering, SampleAndFilter, Score, StageSection};
use wels_runs::rundir::{RunError, write_json};
use wels_tasks::{Item, Prompt, Split, Task, statistics};
use wels_train::rl::{Answered, Prompter, answer, training_item};
use wels_train::rollout::RolloutOptions;

use super::stage::{check_tokenizer, config_of, model_of, rollout_options};
use super::{GENERATE, Session, task};
use crate::failure::refuse;
use crate::model::load_params;
use crate::output;
use crate::progress::Progress;

const STREAM_SAMPLES: u64 = 0x7361_6d70;
const STREAM_SCORE: u64 = 0x7363_6f72;

/// One answer, in a part.
#[derive(Debug, Serialize, Deserialize)]
struct Line {
    item: String,
    question: String,
    answer: String,
    correct: bool,
    verdict: String,
    tokens: usize,
    truncated: bool,
}

/// A model that answers.
struct Answerer<'a> {
    model: Arc<Model>,
    params: Arc<Params>,
    prompter: Prompter<'a>,
    options: RolloutOptions,
    task: Box<dyn Task>,
    key: Key,
}

impl Answerer<'_> {
    /// The lines of the answers to `items`, of which the first is number `first` of the stage.
    fn lines(&self, items: Vec<Item>, first: u64) -> Result<Vec<Line>> {
        let seed_of = |n: usize| self.key.u64_at(first + n as u64);
        let Answerer { model, params, prompter, options, task, .. } = self;
        let answered = answer(model, params, &**task, prompter, items, seed_of, options, &mut |_, _| {})?;
        Ok(answered.iter().flat_map(lines_of).collect())
    }
}

fn lines_of(group: &Answered) -> Vec<Line> {
    let question = match &group.item.prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Messages(messages) => {
            messages.last().and_then(|message| message.content.as_str()).unwrap_or_default().to_string()
        }
    };
    let line = |it: &wels_train::rl::Rewarded| Line {
        item: group.item.id.clone(),
        question: question.clone(),
        answer: it.text.clone(),
        correct: it.reward.grade.correct,
        verdict: it.reward.grade.reason.to_string(),
        tokens: it.answer.tokens.len(),
        truncated: it.answer.truncated,
    };
    group.answers.iter().map(line).collect()
}

fn answerer<'a>(
    session: &Session,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    from: &str,
    of: &Sampling,
) -> Result<Answerer<'a>> {
    let model = model_of(&session.run, from)?;
    check_tokenizer(&model, tokenizer)?;
    let config = config_of(&model)?;
    let params = Arc::new(load_params(&model, &config)?);
    let options = rollout_options(of.answering, of.temperature, &config);
    let context = config.rope.max_positions;
    Ok(Answerer {
        model: Arc::new(Model::new(config, context)),
        params,
        prompter: Prompter { tokenizer, template },
        options,
        task: task::task(of.answering, of.split)?,
        key: Key { seed: session.run.recipe().run.seed, stream: of.stream },
    })
}

/// What both kinds say about sampling.
struct Sampling<'a> {
    answering: &'a Answering,
    temperature: f64,
    split: Split,
    stream: u64,
}

/// Writes the parts that are not there yet; all lines of all parts.
fn parts(
    session: &Session,
    folder: &Path,
    label: &str,
    total: u64,
    answerer: &Answerer,
    item: impl Fn(u64) -> Result<Item>,
) -> Result<Vec<Line>> {
    let mut progress = Progress::new("answers", "items", 0, Some(total));
    let mut all = Vec::new();
    for first in (0..total).step_by(PART as usize) {
        let path = folder.join(format!("part-{:04}.jsonl", first / PART));
        let lines = match path.exists() {
            true => read_lines(&path)?,
            false => {
                Session::leave_if_asked(&session.interrupt, session.run.path());
                let items = (first..(first + PART).min(total)).map(&item).collect::<Result<Vec<_>>>()?;
                let lines = answerer.lines(items, first)?;
                let text: Vec<String> =
                    lines.iter().map(|line| serde_json::to_string(line).expect("plain data") + "\n").collect();
                files::write_atomically(&path, text.concat().as_bytes()).map_err(RunError::io("write", &path))?;
                lines
            }
        };
        all.extend(lines);
        let right = all.iter().filter(|line| line.correct).count();
        let share = 100.0 * right as f64 / all.len() as f64;
        progress.at((first + PART).min(total), || format!("{label}: {share:.1}% right"));
    }
    let right = all.iter().filter(|line| line.correct).count();
    progress.finish(&format!("{label}: {right} of {} answers are right", all.len()));
    Ok(all)
}

fn read_lines(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).map_err(RunError::io("read", path))?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()));
    text.lines().map(line).collect()
}

/// Questions and right answers that the stage in `folder` has kept.
pub(super) fn kept(folder: &Path) -> Result<Vec<(String, String)>> {
    let path = folder.join("kept.jsonl");
    if !path.is_file() {
        let hint = "name a stage of kind sample_and_filter that comes before this one";
        return Err(refuse(format!("{} has no samples", folder.display()), hint));
    }
    Ok(read_lines(&path)?.into_iter().map(|line| (line.question, line.answer)).collect())
}

/// Does what is left of a stage of kind `sample_and_filter`.
pub(super) fn sample_and_filter(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &SampleAndFilter,
) -> Result<()> {
    let folder = session.run.stage(&stage.name)?;
    let path = folder.join("kept.jsonl");
    // Without its line a kill came before it was written: the parts are there, and the rest follows from them.
    if path.exists() && session.ledger.stage_done(&stage.name).is_some() {
        return Ok(());
    }
    let template = ChatTemplate::of(tokenizer)?;
    let SampleAndFilter { from, answering, temperature, .. } = section;
    let sampling = Sampling { answering, temperature: *temperature, split: Split::Train, stream: STREAM_SAMPLES };
    let answerer = answerer(session, tokenizer, template.as_ref(), from, &sampling)?;
    let seed = session.run.recipe().run.seed;
    let item = |n| Ok(training_item(&*answerer.task, seed, n)?);
    let lines = parts(session, &folder, &stage.name, section.prompts, &answerer, item)?;
    let tokens = lines.iter().map(|line| line.tokens as u64).sum();
    let length = tokens as f64 / lines.len().max(1) as f64;
    let flops = tokens as f64 * answer_flops(answerer.model.config(), length) as f64;
    let kept: String = right_once(&lines, section.answering.samples, section.keep)
        .into_iter()
        .map(|line| serde_json::to_string(line).expect("plain data") + "\n")
        .collect();
    files::write_atomically(&path, kept.as_bytes()).map_err(RunError::io("write", &path))?;
    done(session, &stage.name, (tokens, flops), &folder)
}

/// The first `keep` right answers of each group of `samples` lines, equal ones once.
fn right_once(lines: &[Line], samples: usize, keep: usize) -> Vec<&Line> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    for group in lines.chunks(samples) {
        let right = group.iter().filter(|line| line.correct && seen.insert((&line.question, &line.answer)));
        kept.extend(right.take(keep));
    }
    kept
}

/// The ledger's line of a stage of so many tokens and operations, with all that it has left in `folder`.
fn done(session: &mut Session, stage: &str, (tokens, flops): (u64, f64), folder: &Path) -> Result<()> {
    let files = checkpoint::records_within(folder)?;
    let (event, stage, kind) = (STAGE_DONE.into(), stage.into(), GENERATE.into());
    session.record(Entry { event, stage, kind, tokens, flops, files, ..Entry::default() })
}

/// A model's result.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Graded {
    model: String,
    parameters: u64,
    parameters_activated: u64,
    answers: usize,
    accuracy: f64,
    standard_error: f64,
    length: f64,
    truncated: f64,
    /// How likely chance alone is to part this model's verdicts from the first model's as far, item by item; none for
    /// the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    p: Option<f64>,
    #[serde(default)]
    flops_per_token: u64,
}

/// Does what is left of a stage of kind `score`, and writes the table to stdout.
pub(super) fn score(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &Score) -> Result<()> {
    let folder = session.run.stage(&stage.name)?;
    let path = folder.join("scores.json");
    let results: Vec<Graded> = match path.exists() && session.ledger.stage_done(&stage.name).is_some() {
        true => {
            let text = fs::read_to_string(&path).map_err(RunError::io("read", &path))?;
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?
        }
        false => {
            let mut results: Vec<Graded> = Vec::new();
            let mut first: Vec<f64> = Vec::new();
            for (n, model) in of.models.iter().enumerate() {
                let (mut result, verdicts) = grade(session, tokenizer, &folder, of, n, model)?;
                match n {
                    0 => first = verdicts,
                    _ => result.p = statistics::difference(&first, &verdicts).map(|difference| difference.p),
                }
                results.push(result);
            }
            write_json(&path, &results)?;
            let tokens_of = |it: &Graded| it.length * it.answers as f64;
            let tokens = results.iter().map(|it| tokens_of(it).round() as u64).sum();
            let flops = results.iter().map(|it| tokens_of(it) * it.flops_per_token as f64).sum();
            done(session, &stage.name, (tokens, flops), &folder)?;
            results
        }
    };
    print_table(session, &results, of)
}

/// Grades the model number `n` of the stage; with 1 or 0 for each item.
fn grade(
    session: &Session,
    tokenizer: &Tokenizer,
    folder: &Path,
    of: &Score,
    n: usize,
    model: &str,
) -> Result<(Graded, Vec<f64>)> {
    let template = ChatTemplate::of(tokenizer)?;
    let Score { answering, temperature, .. } = of;
    let sampling = Sampling { answering, temperature: *temperature, split: Split::HeldOut, stream: STREAM_SCORE };
    let answerer = answerer(session, tokenizer, template.as_ref(), model, &sampling)?;
    let parts_folder = folder.join(format!("model-{n}"));
    fs::create_dir_all(&parts_folder).map_err(RunError::io("create", &parts_folder))?;
    files::remove_unfinished(&parts_folder).map_err(RunError::io("clean up", &parts_folder))?;
    let items = answerer.task.len().map_or(of.items, |len| len.min(of.items));
    let item = |n| Ok(answerer.task.item(n)?);
    let lines = parts(session, &parts_folder, model, items, &answerer, item)?;
    let n = lines.len() as f64;
    let mean = |value: &dyn Fn(&Line) -> f64| lines.iter().map(value).sum::<f64>() / n;
    let verdict = |line: &Line| f64::from(u8::from(line.correct));
    let accuracy = mean(&verdict);
    let params = count::params(answerer.model.config());
    let length = mean(&|line| line.tokens as f64);
    let graded = Graded {
        model: model.into(),
        parameters: params.total.0,
        parameters_activated: params.activated.0,
        answers: lines.len(),
        accuracy,
        standard_error: (accuracy * (1.0 - accuracy) / n).sqrt(),
        length,
        truncated: mean(&|line| f64::from(u8::from(line.truncated))),
        p: None,
        flops_per_token: answer_flops(answerer.model.config(), length),
    };
    Ok((graded, lines.iter().map(verdict).collect()))
}

fn print_table(session: &Session, results: &[Graded], of: &Score) -> Result<()> {
    let head = format!("{} held out, temperature {}", of.answering.task, of.temperature);
    session.show(&format!(
        "{head:<36} {:>10} {:>10} {:>16} {:>8} {:>8}",
        "parameters", "activated", "right", "tokens", "p"
    ))?;
    for it in results {
        let right = format!("{:.1}% ± {:.1}", 100.0 * it.accuracy, 100.0 * it.standard_error);
        let p = it.p.map_or(String::new(), |p| format!("{p:.2}").replace("0.00", "<0.01"));
        session.show(&format!(
            "{:<36} {:>10} {:>10} {right:>16} {:>8.1} {p:>8}",
            it.model, it.parameters, it.parameters_activated, it.length
        ))?;
    }
    if results.len() > 1 {
        session.show("p: of so great a difference from the first by chance (McNemar's test, exact)")?;
    }
    session.show("")?;
    print_cost(session)
}

/// Time and money by stage, from the ledger.
fn print_cost(session: &Session) -> Result<()> {
    let usd_per_hour = session.run.recipe().run.usd_per_hour;
    session.show(&format!("{:<36} {:>10} {:>10} {:>16}", "cost", "seconds", "tokens", "dollars"))?;
    let mut stages: Vec<(String, f64, u64)> = Vec::new();
    for entry in session.ledger.entries().iter().filter(|entry| !entry.stage.is_empty()) {
        match stages.iter_mut().find(|(stage, ..)| *stage == entry.stage) {
            Some((_, seconds, tokens)) => (*seconds, *tokens) = (*seconds + entry.seconds, *tokens + entry.tokens),
            None => stages.push((entry.stage.clone(), entry.seconds, entry.tokens)),
        }
    }
    for (stage, seconds, tokens) in stages {
        let usd = seconds / 3600.0 * usd_per_hour;
        session.show(&format!("{stage:<36} {seconds:>10.1} {:>10} {usd:>16.4}", output::short(tokens as f64)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(correct: bool, answer: &str) -> Line {
        Line {
            item: "1,6,7=13".into(),
            question: "7 6 1 -> 13".into(),
            answer: answer.into(),
            correct,
            verdict: String::new(),
            tokens: 9,
            truncated: false,
        }
    }

    #[test]
    fn right_answers_are_kept_once_and_no_more_than_asked() {
        let group =
            [line(true, "7*1+6"), line(false, "7"), line(true, "7*1+6"), line(true, "1*7+6"), line(true, "6+7*1")];
        let kept = |keep| {
            let lines = right_once(&group, 5, keep);
            lines.into_iter().map(|line| line.answer.as_str()).collect::<Vec<_>>()
        };
        assert_eq!(kept(2), ["7*1+6", "1*7+6"]);
        assert_eq!(kept(9).len(), 3);
        let folder = tempfile::tempdir().unwrap();
        assert!(super::kept(folder.path()).unwrap_err().to_string().contains("has no samples"));
        let text = serde_json::to_string(&group[0]).unwrap() + "\n";
        fs::write(folder.path().join("kept.jsonl"), text).unwrap();
        assert_eq!(super::kept(folder.path()).unwrap(), [("7 6 1 -> 13".to_string(), "7*1+6".to_string())]);
    }
}

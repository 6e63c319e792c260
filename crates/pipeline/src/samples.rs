//! Stages that sample from finished models: `sample_and_filter` keeps right answers to learn from, `score` grades
//! held-out items. Both write what they have in parts, `part-0007.jsonl`, each whole or not at all, so a kill loses
//! one part.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use wels_comm::Comm;
use wels_data::chat::{ChatTemplate, Message};
use wels_data::tokenizer::Tokenizer;
use wels_kernels::random::Key;
use wels_model::config::ModelConfig;
use wels_model::count;
use wels_model::model::Model;
use wels_model::params::Params;
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::ledger::{Entry, STAGE_DONE, Totals};
use wels_runs::plan::stages::{PART, answer_flops};
use wels_runs::recipe::{SampleAndFilter, Score, StageSection, Work};
use wels_runs::rundir::{RunError, write_json};
use wels_tasks::{Item, Prompt, Split, Task, statistics};
use wels_train::rl::{Answered, Prompter, answer, training_item};
use wels_train::rollout::RolloutOptions;

use crate::blanks;
use crate::host::{Event, Graded, Outcome};
use crate::hyper::rollout_options;
use crate::model::{config_of, load_params};
use crate::rank::{Command, Rank};
use crate::refusal::refuse;
use crate::session::{GENERATE, Session, Spending};
use crate::start::{check_tokenizer, model_of};

const STREAM_SAMPLES: u64 = 0x7361_6d70;
const STREAM_SCORE: u64 = 0x7363_6f72;
const STREAM_QUESTIONS: u64 = 0x7175_6573;

/// One answer, in a part.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SampledAnswer {
    item: String,
    question: String,
    /// The whole of what was asked, where that is more than the question.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    messages: Vec<Message>,
    answer: String,
    pub correct: bool,
    verdict: String,
    tokens: usize,
    truncated: bool,
    /// Bytes of `answer` that an environment said.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    said: Vec<Range<usize>>,
}

/// A model that answers, on one rank or on all together.
pub(crate) struct Answerer<'a> {
    model: Arc<Model>,
    params: Arc<Params>,
    prompter: Prompter<'a>,
    options: RolloutOptions,
    task: Box<dyn Task>,
    split: Split,
    seed: u64,
    /// Of the answers' random numbers.
    key: Key,
    comm: Arc<dyn Comm>,
}

impl<'a> Answerer<'a> {
    /// One of the models of a stage that samples.
    ///
    /// # Errors
    /// If it cannot be loaded, or has another tokenizer than the run.
    pub fn load(
        rank: &Rank,
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        stage: &StageSection,
        model: &str,
    ) -> Result<Answerer<'a>> {
        let (answering, temperature, split, stream) = match &stage.work {
            Work::SampleAndFilter(of) => (&of.answering, of.temperature, Split::Train, STREAM_SAMPLES),
            Work::Score(of) => (&of.answering, of.temperature, Split::HeldOut, STREAM_SCORE),
            // In their order.
            Work::Questions(of) => (&of.answering, of.temperature, Split::HeldOut, STREAM_QUESTIONS),
            _ => bail!("the stage {} trains", stage.name),
        };
        let (task, template): (Box<dyn Task>, _) = match &stage.work {
            // Text to be gone on with.
            Work::Questions(of) => (Box::new(blanks::put_to_model(&rank.run, &stage.name, of)?), None),
            _ => (rank.task(answering, split, &stage.name)?, template),
        };
        let location = model_of(&rank.run, model)?;
        check_tokenizer(&location, tokenizer)?;
        let config = config_of(&location)?;
        let params = Arc::new(load_params(&rank.device, &location, &config)?);
        let (context, seed) = (config.rope.max_positions, rank.run.recipe().run.seed);
        Ok(Answerer {
            options: rollout_options(answering, stage.precision, temperature, &config),
            model: Arc::new(Model::new(config, context)),
            params,
            prompter: Prompter { tokenizer, template },
            task,
            split,
            seed,
            key: Key { seed, stream },
            comm: Arc::clone(&rank.comm),
        })
    }

    /// Items that there are; 0 if they have no end.
    pub fn items(&self) -> u64 {
        self.task.len().unwrap_or(0)
    }

    /// The lines of the answers to items of the stage; all ranks have to ask.
    pub fn answer(&self, items: Range<u64>) -> Result<Vec<SampledAnswer>> {
        let first = items.start;
        let item = |n: u64| match self.split {
            Split::Train => training_item(&*self.task, self.seed, n),
            Split::HeldOut => self.task.item(n),
        };
        let items = items.map(item).collect::<Result<Vec<Item>, _>>()?;
        let seed_of = |n: usize| self.key.u64_at(first + n as u64);
        let Answerer { model, params, prompter, options, task, comm, .. } = self;
        let answered = answer(&**comm, model, params, &**task, prompter, items, seed_of, options, &mut |_, _| {})?;
        Ok(answered.iter().flat_map(lines_of).collect())
    }
}

#[cfg(test)]
impl SampledAnswer {
    /// An answer of which nothing but the verdict is known.
    pub fn verdict(correct: bool) -> SampledAnswer {
        let none = String::new;
        let (item, question, answer, verdict) = (none(), none(), none(), none());
        let (messages, said) = (Vec::new(), Vec::new());
        SampledAnswer { item, question, messages, answer, correct, verdict, tokens: 1, truncated: false, said }
    }
}

fn lines_of(group: &Answered) -> Vec<SampledAnswer> {
    let (question, messages) = match &group.item.prompt {
        Prompt::Text(text) => (text.clone(), Vec::new()),
        Prompt::Messages(messages) => {
            let last = messages.last().and_then(|message| message.content.as_str()).unwrap_or_default().to_string();
            let alone = *messages == [Message::new("user", &last)];
            (last, if alone { Vec::new() } else { messages.clone() })
        }
    };
    let line = |it: &wels_train::rl::Rewarded| SampledAnswer {
        item: group.item.id.clone(),
        question: question.clone(),
        messages: messages.clone(),
        answer: it.text.clone(),
        correct: it.reward.grade.correct,
        verdict: it.reward.grade.reason.to_string(),
        tokens: it.answer.chosen(),
        truncated: it.answer.truncated,
        said: it.said.clone(),
    };
    group.answers.iter().map(line).collect()
}

/// A model of a stage, loaded on all ranks.
pub(crate) fn open<'a>(
    session: &Session,
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    stage: &StageSection,
    model: &str,
) -> Result<Answerer<'a>> {
    session.rank.tell(&Command::Sample { stage: stage.name.clone(), model: model.into() })?;
    Answerer::load(&session.rank, tokenizer, template, stage, model)
}

/// Answers of a stage so far, of all its models.
pub(crate) struct Sampled<'a> {
    stage: &'a str,
    tokens: u64,
    flops: f64,
    /// What the ledger has of them already, where the stage was stopped before.
    entered: Totals,
}

impl<'a> Sampled<'a> {
    pub fn new(session: &Session, stage: &'a str) -> Sampled<'a> {
        Sampled { stage, tokens: 0, flops: 0.0, entered: session.entered_of_undone(stage) }
    }

    /// Tokens and operations with the answers of one more model.
    fn with(&self, lines: &[SampledAnswer], config: &ModelConfig) -> (u64, f64) {
        let tokens = tokens_of(lines);
        let length = tokens as f64 / lines.len().max(1) as f64;
        (self.tokens + tokens, self.flops + tokens as f64 * answer_flops(config, length) as f64)
    }

    /// What a part of these lines took, as far as the ledger knows.
    fn as_entered(&self, lines: &[SampledAnswer]) -> Spending {
        let (sampled, Totals { seconds, tokens, .. }) = (tokens_of(lines), &self.entered);
        Spending { seconds: seconds * sampled as f64 / (*tokens).max(1) as f64, sampled, trained: 0 }
    }

    /// The ledger's line of what is not entered yet.
    fn entry(&self, (tokens, flops): (u64, f64)) -> Entry {
        Entry {
            stage: self.stage.into(),
            kind: GENERATE.into(),
            tokens: tokens.saturating_sub(self.entered.tokens),
            flops: (flops - self.entered.flops).max(0.0),
            ..Entry::default()
        }
    }

    /// Writes the ledger's line of the stage's end, with all that it has left in `folder`.
    pub fn done(self, session: &mut Session, folder: &Path) -> Result<()> {
        let files = checkpoint::records_within(folder)?;
        let entry = self.entry((self.tokens, self.flops));
        session.record(Entry { event: STAGE_DONE.into(), files, ..entry })
    }
}

/// The parts of one model's answers.
pub(crate) struct Parts<'a> {
    pub folder: &'a Path,
    /// Whose answers they are, for people.
    pub label: &'a str,
    /// Items.
    pub total: u64,
    pub answerer: &'a Answerer<'a>,
}

impl Parts<'_> {
    /// Writes the parts that are not there yet; all lines of all parts.
    pub fn write(&self, session: &mut Session, sampled: &mut Sampled) -> Result<Vec<SampledAnswer>> {
        let Parts { folder, label, total, answerer } = *self;
        session.host.event(Event::Began { label: "answers", unit: "items", done: 0, total: Some(total) });
        let config = answerer.model.config();
        let (mut all, mut last) = (Vec::new(), Spending::default()); // of a whole part
        for first in (0..total).step_by(PART as usize) {
            let path = folder.join(format!("part-{:04}.jsonl", first / PART));
            let lines = match path.exists() {
                true => {
                    let lines = read_lines(&path)?;
                    last = sampled.as_entered(&lines);
                    lines
                }
                false => {
                    let entry = sampled.entry(sampled.with(&all, config));
                    let unentered = Spending { sampled: entry.tokens, ..Spending::default() };
                    if let Some(why) = session.why_stop(unentered, last.share(PART.min(total - first), PART)) {
                        session.host.event(Event::Ended(&format!("{label}: stopped after {first} of {total} items")));
                        session.rank.tell(&Command::Done)?;
                        return Err(session.stop(why, entry));
                    }
                    let begun = session.host.clock();
                    let end = (first + PART).min(total);
                    session.rank.tell(&Command::Answer { first, end })?;
                    let lines = answerer.answer(first..end)?;
                    write_lines(&path, &lines)?;
                    let seconds = session.host.clock().saturating_sub(begun).as_secs_f64();
                    last = Spending { seconds, sampled: tokens_of(&lines), trained: 0 };
                    lines
                }
            };
            all.extend(lines);
            let words = || format!("{label}: {:.1}% right", 100.0 * right(&all) as f64 / all.len() as f64);
            session.host.event(Event::Reached { done: (first + PART).min(total), words: &words });
        }
        session.rank.tell(&Command::Done)?;
        session.host.event(Event::Ended(&format!("{label}: {} of {} answers are right", right(&all), all.len())));
        (sampled.tokens, sampled.flops) = sampled.with(&all, config);
        Ok(all)
    }
}

fn tokens_of(lines: &[SampledAnswer]) -> u64 {
    lines.iter().map(|line| line.tokens as u64).sum()
}

fn right(lines: &[SampledAnswer]) -> usize {
    lines.iter().filter(|line| line.correct).count()
}

/// Writes lines, all or none.
fn write_lines<'a>(path: &Path, lines: impl IntoIterator<Item = &'a SampledAnswer>) -> Result<()> {
    let text = lines.into_iter().map(|line| serde_json::to_string(line).expect("plain data") + "\n");
    Ok(files::write_atomically(path, text.collect::<String>().as_bytes()).map_err(RunError::io("write", path))?)
}

fn read_lines(path: &Path) -> Result<Vec<SampledAnswer>> {
    let text = fs::read_to_string(path).map_err(RunError::io("read", path))?;
    let line = |line: &str| serde_json::from_str(line).with_context(|| format!("{} is damaged", path.display()));
    text.lines().map(line).collect()
}

/// An answer that a stage has kept.
#[derive(Debug, PartialEq)]
pub(crate) struct Kept {
    /// A question, or a conversation.
    pub prompt: Prompt,
    pub answer: String,
    /// Bytes of it that an environment said.
    pub said: Vec<Range<usize>>,
}

/// Prompts and right answers that the stage in `folder` has kept.
pub(crate) fn kept(folder: &Path) -> Result<Vec<Kept>> {
    let path = folder.join("kept.jsonl");
    if !path.is_file() {
        let hint = "name a stage of kind sample_and_filter that comes before this one";
        return Err(refuse(format!("{} has no samples", folder.display()), hint));
    }
    let kept = |SampledAnswer { question, messages, answer, said, .. }| {
        let prompt = if messages.is_empty() { Prompt::Text(question) } else { Prompt::Messages(messages) };
        Kept { prompt, answer, said }
    };
    Ok(read_lines(&path)?.into_iter().map(kept).collect())
}

/// Does what is left of a stage of kind `sample_and_filter`.
pub(crate) fn sample_and_filter(
    session: &mut Session,
    tokenizer: &Tokenizer,
    stage: &StageSection,
    section: &SampleAndFilter,
) -> Result<()> {
    let folder = session.rank.run.stage(&stage.name)?;
    let path = folder.join("kept.jsonl");
    // Without its line a kill came before it was written: the parts are there, and the rest follows from them.
    if path.exists() && session.ledger.stage_done(&stage.name).is_some() {
        return Ok(());
    }
    let template = ChatTemplate::of(tokenizer)?;
    let answerer = open(session, tokenizer, template.as_ref(), stage, &section.from)?;
    let mut sampled = Sampled::new(session, &stage.name);
    let parts = Parts { folder: &folder, label: &stage.name, total: section.prompts, answerer: &answerer };
    let lines = parts.write(session, &mut sampled)?;
    write_lines(&path, right_once(&lines, section.answering.samples, section.keep))?;
    sampled.done(session, &folder)
}

/// The first `keep` right answers of each group of `samples` lines, equal ones once.
fn right_once(lines: &[SampledAnswer], samples: usize, keep: usize) -> Vec<&SampledAnswer> {
    let mut seen = BTreeSet::new();
    let mut kept = Vec::new();
    let asked = |line: &SampledAnswer| serde_json::to_string(&(&line.question, &line.messages)).expect("plain data");
    for group in lines.chunks(samples) {
        let right = group.iter().filter(|line| line.correct && seen.insert((asked(line), &line.answer)));
        kept.extend(right.take(keep));
    }
    kept
}

/// Does what is left of a stage of kind `score`, and shows the results.
pub(crate) fn score(session: &mut Session, tokenizer: &Tokenizer, stage: &StageSection, of: &Score) -> Result<()> {
    let folder = session.rank.run.stage(&stage.name)?;
    let path = folder.join("scores.json");
    let results: Vec<Graded> = match path.exists() && session.ledger.stage_done(&stage.name).is_some() {
        true => {
            let text = fs::read_to_string(&path).map_err(RunError::io("read", &path))?;
            serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?
        }
        false => {
            let mut results: Vec<Graded> = Vec::new();
            let mut first: Vec<f64> = Vec::new();
            let mut sampled = Sampled::new(session, &stage.name);
            for (n, model) in of.models.iter().enumerate() {
                let (mut result, shares) = grade(session, tokenizer, &folder, stage, of, (n, model), &mut sampled)?;
                match n {
                    0 => first = shares,
                    _ => result.p = statistics::difference(&first, &shares).map(|difference| difference.p),
                }
                results.push(result);
            }
            write_json(&path, &results)?;
            sampled.done(session, &folder)?;
            results
        }
    };
    let usd_per_hour = session.rank.run.recipe().run.usd_per_hour;
    let took = Totals::by(session.ledger.entries(), |entry| &entry.stage);
    let took = took.into_iter().filter(|(stage, _)| !stage.is_empty()).collect();
    Ok(session.host.result(Outcome::Scores { of, models: &results, took, usd_per_hour })?)
}

/// Grades the model number `n` of the stage; with the share of right answers to each item.
fn grade(
    session: &mut Session,
    tokenizer: &Tokenizer,
    folder: &Path,
    stage: &StageSection,
    of: &Score,
    (n, model): (usize, &str),
    sampled: &mut Sampled,
) -> Result<(Graded, Vec<f64>)> {
    let template = ChatTemplate::of(tokenizer)?;
    let answerer = open(session, tokenizer, template.as_ref(), stage, model)?;
    let parts_folder = folder.join(format!("model-{n}"));
    fs::create_dir_all(&parts_folder).map_err(RunError::io("create", &parts_folder))?;
    files::remove_unfinished(&parts_folder).map_err(RunError::io("clean up", &parts_folder))?;
    let items = answerer.task.len().map_or(of.items, |len| len.min(of.items));
    let parts = Parts { folder: &parts_folder, label: model, total: items, answerer: &answerer };
    let lines = parts.write(session, sampled)?;
    let n = lines.len() as f64;
    let mean = |value: &dyn Fn(&SampledAnswer) -> f64| lines.iter().map(value).sum::<f64>() / n;
    let accuracy = mean(&|line| f64::from(u8::from(line.correct)));
    // Answers to one item are alike, so items are what is independent.
    let of_item = |answers: &[SampledAnswer]| right(answers) as f64 / answers.len() as f64;
    let shares: Vec<f64> = lines.chunks(of.answering.samples).map(of_item).collect();
    let variance = shares.iter().map(|share| (share - accuracy).powi(2)).sum::<f64>() / shares.len() as f64;
    let params = count::params(answerer.model.config());
    let length = mean(&|line| line.tokens as f64);
    let graded = Graded {
        model: model.into(),
        parameters: params.total.0,
        parameters_activated: params.activated.0,
        answers: lines.len(),
        accuracy,
        standard_error: (variance / shares.len() as f64).sqrt(),
        length,
        truncated: mean(&|line| f64::from(u8::from(line.truncated))),
        p: None,
        flops_per_token: answer_flops(answerer.model.config(), length),
    };
    Ok((graded, shares))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(correct: bool, answer: &str) -> SampledAnswer {
        SampledAnswer {
            item: "1,6,7=13".into(),
            question: "7 6 1 -> 13".into(),
            messages: Vec::new(),
            answer: answer.into(),
            correct,
            verdict: String::new(),
            tokens: 9,
            truncated: false,
            said: Vec::new(),
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
        let kept = |prompt| Kept { prompt, answer: "7*1+6".into(), said: Vec::new() };
        assert_eq!(super::kept(folder.path()).unwrap(), [kept(Prompt::Text("7 6 1 -> 13".into()))]);
        // Of a conversation all is kept, and another one with the same last message is another one.
        let talk = |text: &str| vec![Message::new("system", text), Message::new("user", "7 6 1 -> 13")];
        let asked = |text: &str| SampledAnswer { messages: talk(text), ..line(true, "7*1+6") };
        let lines = [asked("Be short."), asked("Be long."), asked("Be short.")];
        let lines: Vec<_> = right_once(&lines, 1, 1);
        assert_eq!(lines.len(), 2);
        write_lines(&folder.path().join("kept.jsonl"), lines).unwrap();
        let expected = ["Be short.", "Be long."].map(|text| kept(Prompt::Messages(talk(text))));
        assert_eq!(super::kept(folder.path()).unwrap(), expected);
    }
}

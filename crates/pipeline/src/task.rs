//! The tasks that recipes name, `[STYLE:]NAME[+TOOL][=FILE]`:
//!
//! ```text
//! countdown  addition  arithmetic  multiplication  sums    made without end or listed whole
//! facts  largest                                    the same, to be played with the tools search and files
//! calculator  search  files                          sums+calculator, facts+search, largest+files
//! gsm8k=FILE  math=FILE  mmlu=FILE  …                 a benchmark's file
//! number=FILE  maths=FILE  exact=FILE  choice=FILE    lines of question and answer, by how answers are compared
//! ./PROGRAM=FILE                                      lines with a question, and a program that judges the answers
//! env:./PROGRAM[=FILE]  env:http://…[=FILE]          a program that plays episodes, or whoever is at an address
//! openenv:http://…[=FILE]                            a server that speaks OpenEnv's protocol
//! ```
//! The style is `terse`, `r1-zero`, `chat` or `short`: puzzles are terse and files are chats unless said otherwise. A
//! tenth of a file is held out: `score` asks that, `rl`, `distil` and `sample_and_filter` ask
//! the rest, and what learns from the same file learns the rest.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use wels_runs::files::environment_record;
use wels_runs::hash::sha256;
use wels_runs::recipe::{Answering, Answers, DEMONSTRATIONS, Recipe, Supervised, TRACES, TaskName, Work};
use wels_tasks::benchmarks::{self, Benchmark};
use wels_tasks::countdown::{TraceOptions, Traces};
use wels_tasks::environment::{Demonstration, DemonstrationOptions};
use wels_tasks::external::{External, Judged};
use wels_tasks::file::{self, Checker};
use wels_tasks::played::Played;
use wels_tasks::{Item, Jail, Listed, Presentation, Split, Style, Task};

use crate::rank::Rank;
use crate::refusal::refuse;
use crate::{environments, named, remote};

/// Traces that a tokenizer learns from besides the text.
const TOKENIZER_TRACES: u64 = 100_000;

/// Whether the programs that a recipe names as judges are started. They run as the user, outside any jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Programs {
    /// The recipe is the user's own, or the user has said so.
    Run,
    /// The recipe may be a stranger's.
    Refuse,
}

/// The task that a stage asks. A program of one's own is started, and whoever is at an address asked, if `programs`
/// allows it; what is said there is kept in `folder`.
pub(crate) fn task(
    of: &Answering,
    split: Split,
    programs: Programs,
    folder: Option<&RecordFolder>,
) -> Result<Box<dyn Task>> {
    let TaskName { name, file, .. } = &of.task;
    let style = style_of(&of.task)?;
    let cannot = || format!("cannot take the task {}", of.task);
    if of.task.plays {
        return played(of, style.unwrap_or(Style::Chat), split, programs, folder).with_context(cannot);
    }
    match (of.task.program(), file) {
        (None, None) => environments::named(name, style, split),
        (None, Some(file)) => environments::listed(name, &place(file)?, style, split).with_context(cannot),
        (Some(program), Some(_)) if programs == Programs::Refuse => Err(refuse_program(program)),
        (Some(program), Some(file)) => {
            let listed = judged(name, &place(file)?, style.unwrap_or(Style::Chat), split).with_context(cannot)?;
            let timeout = Duration::from_secs_f64(of.checker_seconds);
            Ok(Box::new(Judged { listed, program: External::start(program, &[], timeout)? }))
        }
        (Some(_), None) => {
            let message = format!("the program {name} judges answers, and there are no questions");
            Err(refuse(message, "name their file: task = \"PROGRAM=FILE\""))
        }
    }
}

/// Held-out items of the task, for a stage or for whoever asks them alone.
///
/// # Errors
/// If there is no such task, or it cannot be taken.
pub fn held_out(of: &Answering, programs: Programs) -> Result<Box<dyn Task>> {
    task(of, Split::HeldOut, programs, None)
}

/// Where a stage keeps what environments at an address have said: its folder, and the rank that asks.
pub(crate) struct RecordFolder {
    folder: PathBuf,
    rank: usize,
}

impl RecordFolder {
    pub fn of(rank: &Rank, stage: &str) -> RecordFolder {
        RecordFolder { folder: rank.run.path().join(stage), rank: rank.comm.rank() }
    }

    /// The record, whose folder is there from now on.
    fn file(&self) -> Result<PathBuf> {
        std::fs::create_dir_all(&self.folder).with_context(|| format!("cannot create {}", self.folder.display()))?;
        Ok(self.folder.join(environment_record(self.rank)))
    }
}

/// A program that plays episodes, or whoever does so at an address.
fn played(
    of: &Answering,
    style: Style,
    split: Split,
    programs: Programs,
    folder: Option<&RecordFolder>,
) -> Result<Box<dyn Task>> {
    let questions = |file: &PathBuf| judged(&of.task.name, &place(file)?, style, split);
    let listed = of.task.file.as_ref().map(questions).transpose()?;
    let timeout = Duration::from_secs_f64(of.checker_seconds);
    if let Some(address) = of.task.address() {
        let record = folder.map(RecordFolder::file).transpose()?;
        let counterpart = remote::counterpart(address, timeout, record.as_deref(), programs)?;
        return Ok(Box::new(Played::over(address.url.to_owned(), counterpart, listed, split)?));
    }
    let Some(program) = of.task.program() else {
        let message = format!("{} is no program that plays episodes", of.task.name);
        return Err(refuse(message, "name an executable, with a `/`, or an address: task = \"env:./PROGRAM\""));
    };
    if programs == Programs::Refuse {
        return Err(refuse_program(program));
    }
    Ok(Box::new(Played::start(program, listed, split, timeout)?))
}

/// Why a program that a recipe names is not started.
pub(crate) fn refuse_program(program: &Path) -> anyhow::Error {
    let message =
        format!("the recipe names a program that judges answers, {}, and it is not started", program.display());
    refuse(message, "it would run as you do, outside any jail: read it, and if you trust it give --run-programs")
}

/// How the questions are put, if the name says it.
fn style_of(task: &TaskName) -> Result<Option<Style>> {
    Ok(Some(match task.style.as_deref() {
        None => return Ok(None),
        Some("terse") => Style::Terse,
        Some("r1-zero") => Style::R1Zero,
        Some("chat") => Style::Chat,
        Some("short") => Style::Short,
        Some(style) => {
            return Err(refuse(format!("there is no style '{style}'"), "known are: terse, r1-zero, chat, short"));
        }
    }))
}

/// The task's questions alone; a program that judges answers is not started.
pub(crate) fn questions(of: &Answering, split: Split) -> Result<Box<dyn Task>> {
    let TaskName { name, file, .. } = &of.task;
    match (of.task.program(), file) {
        (Some(_), Some(file)) => {
            Ok(Box::new(judged(name, &place(file)?, style_of(&of.task)?.unwrap_or(Style::Chat), split)?))
        }
        (Some(program), None) if of.task.plays => Err(refuse_program(program)),
        (None, Some(file)) if of.task.plays => {
            Ok(Box::new(judged(name, &place(file)?, style_of(&of.task)?.unwrap_or(Style::Chat), split)?))
        }
        _ => task(of, split, Programs::Refuse, None),
    }
}

/// Where the questions are.
fn place(file: &Path) -> Result<Cow<'_, Path>> {
    file.to_str().map_or(Ok(Cow::Borrowed(file)), named::file)
}

/// The questions in a file whose answers a program judges.
fn judged(name: &str, path: &Path, style: Style, split: Split) -> Result<Listed> {
    let presentation = Presentation::from(style);
    let items = of_split(file::read(path, Checker::Program, &presentation, false)?.0, path, split)?;
    Ok(Listed { name: name.to_owned(), items, format: presentation.format, language: None, jail: None })
}

/// The questions in a file.
pub(crate) fn listed(name: &str, path: &Path, style: Style, split: Split) -> Result<Listed> {
    let checker = match name {
        "number" => Some(Checker::Number),
        "maths" => Some(Checker::Maths),
        "exact" => Some(Checker::Exact),
        "choice" => Some(Checker::Choice),
        _ => None,
    };
    let (items, format, code) = match (checker, Benchmark::named(name)) {
        (Some(checker), _) => {
            let presentation = Presentation::from(style);
            (file::read(path, checker, &presentation, false)?.0, presentation.format, false)
        }
        (None, Some(benchmark)) => {
            let questions = benchmarks::read(benchmark, path)?;
            let items = questions.iter().map(|question| benchmark.item(question, &[], style)).collect();
            (items, benchmark.format(style), benchmark.is_code())
        }
        (None, None) => {
            let benchmarks = Benchmark::ALL.map(Benchmark::name).join(", ");
            let known = format!("known are: {benchmarks}, number, maths, exact, choice");
            return Err(refuse(format!("there is no task '{name}=…'"), known));
        }
    };
    let items = of_split(items, path, split)?;
    let jail = match code {
        true => Some(Arc::new(Jail::new(std::env::current_exe()?, "python3", Default::default())?)),
        false => None,
    };
    Ok(Listed { name: name.to_owned(), items, format, language: None, jail })
}

/// Those of a file's items that are learnt from, or those held out.
fn of_split(mut items: Vec<Item>, path: &Path, split: Split) -> Result<Vec<Item>> {
    items.retain(|item| is_held_out(&item.id) == (split == Split::HeldOut));
    match items.is_empty() {
        true => Err(refuse(format!("{} has no question for this stage", path.display()), "give it more questions")),
        false => Ok(items),
    }
}

/// A tenth, by the item's id.
fn is_held_out(id: &str) -> bool {
    let hash = sha256(id.as_bytes());
    u8::from_str_radix(&hash[..2], 16).expect("hexadecimal digits") < 26
}

/// Which lines of a file a task of the recipe holds out, by the rule by which the task gives its items their ids.
pub(crate) struct HeldOutLines {
    /// Keys that may hold an id.
    keys: &'static [&'static str],
}

impl HeldOutLines {
    /// Those of the file at `path`, if a stage asks what stands there.
    pub fn of(recipe: &Recipe, path: &Path) -> Option<HeldOutLines> {
        let tasks = recipe.stages.iter().filter_map(|stage| stage.work.answering()).map(|answering| &answering.task);
        let mut of_file = tasks.filter(|task| {
            let file = task.file.as_deref().and_then(|file| place(file).ok());
            file.is_some_and(|file| *file == *path)
        });
        let task = of_file.next()?;
        Some(HeldOutLines { keys: Benchmark::named(&task.name).map_or(&file::ID_KEYS, |_| &benchmarks::ID_KEYS) })
    }

    /// Whether the line number `index`, from 0 and without empty ones, is held out.
    pub fn has(&self, index: usize, line: &serde_json::Value) -> bool {
        let id = self.keys.iter().find_map(|key| match &line[*key] {
            serde_json::Value::String(text) => Some(text.clone()),
            serde_json::Value::Number(number) => Some(number.to_string()),
            _ => None,
        });
        is_held_out(&id.unwrap_or_else(|| index.to_string()))
    }
}

/// Prompt and response of the first `count` worked puzzles of a stage; no held-out puzzle is among them.
pub(crate) fn traces(section: &Supervised, seed: u64, count: u64) -> Result<Vec<(String, String)>> {
    let puzzles = environments::countdown(Style::Terse.into(), Split::Train)?;
    let options = TraceOptions {
        tries: section.trace_tries,
        nearest_of: section.trace_nearest_of,
        slips: section.trace_slips,
        luck: section.trace_luck,
        direct: section.trace_direct,
        quit: section.trace_quit.clone(),
        seed,
        ..TraceOptions::default()
    };
    let traces = Traces::new(&puzzles, options)?;
    let pair = |index| traces.trace(index).map(|trace| (trace.prompt, trace.response));
    Ok((0..count).map(pair).collect::<Result<_, _>>()?)
}

/// What worked puzzles and demonstrations look like, for a tokenizer that is to know them.
pub(crate) fn trace_texts(recipe: &Recipe) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    if let Some(section) = recipe.stages.iter().find_map(|stage| of_data(&stage.work, TRACES)) {
        let pairs = traces(section, recipe.run.seed, TOKENIZER_TRACES.min(section.traces))?;
        // Thinking tags are tokens of their own, and no text.
        let text = |(prompt, response): (String, String)| {
            format!("{prompt}\n{}", response.replace("<think>", "").replace("</think>", ""))
        };
        texts.extend(pairs.into_iter().map(text));
    }
    if let Some(section) = recipe.stages.iter().find_map(|stage| of_data(&stage.work, DEMONSTRATIONS)) {
        let played = demonstrations(section, recipe.run.seed, TOKENIZER_TRACES.min(section.traces))?;
        texts.extend(played.iter().map(Demonstration::text));
    }
    Ok(texts)
}

/// The first `count` demonstrations of a stage, of items that are learnt from.
pub(crate) fn demonstrations(section: &Supervised, seed: u64, count: u64) -> Result<Vec<Demonstration>> {
    let Some(name) = &section.task else { bail!("demonstrations without the name of an environment") };
    let task = task(&unanswered(name.clone()), Split::Train, Programs::Refuse, None)?;
    let Some(environment) = task.environment() else {
        let message = format!("{name} is no environment, and has no demonstrations");
        return Err(refuse(message, "docs/environments.md has those that do"));
    };
    let (slips, direct, quit) = (section.trace_slips, section.trace_direct, section.trace_quit.clone());
    let options = DemonstrationOptions { slips, direct, quit, seed };
    Ok((0..count).map(|index| environment.demonstration(index, &options)).collect::<Result<_, _>>()?)
}

/// A task whose items are looked at and not answered.
fn unanswered(task: TaskName) -> Answering {
    Answering { task, checker_seconds: 60.0, samples: 1, max_tokens: 1, max_turns: 1, max_turn_tokens: 1, running: 1 }
}

/// What a stage says about the worked puzzles, or demonstrations, that it learns from, if it does.
fn of_data<'a>(work: &'a Work, data: &str) -> Option<&'a Supervised> {
    let section = match work {
        Work::Pretrain(it) | Work::Sft(it) => Some(&**it),
        Work::Distil(it) => match &it.answers {
            Answers::Given(given) => Some(given),
            Answers::Own(_) => None,
        },
        _ => None,
    };
    section.filter(|section| section.data == data)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn task(text: &str, split: Split) -> Result<Box<dyn Task>> {
        let task = TaskName::parse(text, Path::new(""));
        super::task(&unanswered(task), split, Programs::Run, None)
    }

    fn ids(task: &dyn Task) -> BTreeSet<String> {
        (0..task.len().unwrap()).map(|index| task.item(index).unwrap().id).collect()
    }

    #[test]
    fn of_a_file_a_tenth_is_held_out() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sums.jsonl");
        let line = |n: u32| format!("{{\"question\": \"{n}+{n}\", \"answer\": \"{}\"}}\n", 2 * n);
        std::fs::write(&path, (0..500).map(line).collect::<String>()).unwrap();
        let name = format!("number={}", path.display());
        let (train, held_out) = (task(&name, Split::Train).unwrap(), task(&name, Split::HeldOut).unwrap());
        let (train, held_out) = (ids(&*train), ids(&*held_out));
        assert!(train.is_disjoint(&held_out));
        assert_eq!(train.len() + held_out.len(), 500);
        assert!((30..80).contains(&held_out.len()), "{}", held_out.len());
    }

    #[test]
    fn tasks_are_known_by_style_and_name() {
        for name in ["countdown", "r1-zero:countdown", "short:arithmetic", "multiplication"] {
            assert!(task(name, Split::Train).is_ok(), "{name}");
        }
        for (name, expected) in [
            ("nothing", "there is no task 'nothing'"),
            ("loud:countdown", "there is no style 'loud'"),
            ("nothing=a.jsonl", "there is no task 'nothing=…'"),
            ("./judge.py", "the program ./judge.py judges answers, and there are no questions"),
        ] {
            let error = task(name, Split::Train).err().map(|error| format!("{error:#}")).unwrap_or_default();
            assert!(error.contains(expected), "{name}: {error}");
        }
        assert!(task("gsm8k=/no/such/file", Split::Train).is_err());
    }
}

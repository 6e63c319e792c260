//! What is asked: a benchmark's questions, the examples before them, the form of prompts; and the verdicts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use wels_data::random::Permutation;
use wels_engine::Sampling;
use wels_pipeline::refusal::refuse;
use wels_runs::hash::{sha256, sha256_file};
use wels_tasks::benchmarks::{Benchmark, Question, continuations, read};
use wels_tasks::listed::letter;
use wels_tasks::maths;
use wels_tasks::{Item, Jail, Listed, Prompt, Reason, Reference, Style, Task, Thinking};

use crate::named;

use super::answer::{Answer, Answerer, Questions, TOO_LONG};
use super::receipt::Receipt;
use super::{Args, BenchmarkArgs, ChoiceBy, Named, file_name, no_doubles};

/// How questions are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum PromptStyle {
    /// As text to be continued, after examples
    Plain,
    /// As a message that asks for the answer in a box
    Chat,
    /// In the template of R1-Zero, for base models trained with it
    R1Zero,
}

/// The benchmarks that the command line names.
pub fn chosen(what: &BenchmarkArgs) -> Result<Vec<Named>> {
    if what.bench.is_empty() {
        return Err(refuse("there is nothing to evaluate", "name benchmarks with --bench, for example --bench mmlu"));
    }
    let dev = |name: &str| {
        let given = what.dev.iter().find_map(|dev| dev.split_once('=').filter(|(of, _)| *of == name));
        given.map(|(_, file)| PathBuf::from(file))
    };
    if let Some(dev) = what.dev.iter().find(|dev| !dev.contains('=')) {
        return Err(refuse(format!("--dev {dev} names no benchmark"), "write it as NAME=FILE"));
    }
    let data = what.data.as_deref().map(named::data_folder).transpose()?;
    let named = |bench: &String| {
        let (name, file) = bench.split_once('=').map_or((bench.as_str(), None), |(name, file)| (name, Some(file)));
        let known: Vec<&str> = Benchmark::ALL.iter().map(|benchmark| benchmark.name()).collect();
        let benchmark = Benchmark::named(name).ok_or_else(|| {
            refuse(format!("there is no benchmark '{name}'"), format!("known are {}", known.join(", ")))
        })?;
        let [tests, devs] = benchmark.customary_files();
        let find = |names: &[&str]| {
            let data = data.as_deref()?;
            names.iter().map(|name| data.join(name)).find(|file| file.exists())
        };
        let file = match file {
            Some(file) => named::data_file(Path::new(file))?,
            None => find(tests).ok_or_else(|| missing(name, tests, what.data.as_deref()))?,
        };
        let dev = dev(name).map(|file| named::data_file(&file)).transpose()?;
        Ok(Named { name: name.to_owned(), benchmark, file, dev: dev.or_else(|| find(devs)) })
    };
    let named = what.bench.iter().map(named).collect::<Result<Vec<Named>>>()?;
    no_doubles(&named)?;
    Ok(named)
}

fn missing(name: &str, usual: &[&str], data: Option<&Path>) -> anyhow::Error {
    let hint = format!("write --bench {name}=FILE");
    match data {
        None => refuse(
            format!("there is no file for {name}"),
            format!("{hint}, or --data DIR for a folder with {}", usual[0]),
        ),
        Some(data) => refuse(format!("{} holds none of {}", data.display(), usual.join(", ")), hint),
    }
}

/// A benchmark's questions, ready to be asked.
pub struct Suite {
    name: String,
    benchmark: Benchmark,
    questions: Vec<Question>,
    examples: Vec<Question>,
    style: Style,
    by_likelihood: bool,
    shots: usize,
    samples: u32,
    sampling: Sampling,
    max_tokens: usize,
    task: Listed,
    settings: Value,
}

impl Suite {
    /// Reads the files of `named`, and settles how it is asked.
    pub fn read(named: &Named, args: &Args, answerer: &dyn Answerer) -> Result<Suite> {
        let (benchmark, how, can_chat) = (named.benchmark, &args.how, answerer.can_chat());
        let mut questions = read(benchmark, &named.file)?;
        if questions.is_empty() {
            return Err(refuse(format!("{} has no questions", named.file.display()), "check the file"));
        }
        let usual = if answerer.can_score() { ChoiceBy::Likelihood } else { ChoiceBy::Generation };
        let by_likelihood = benchmark.is_choice() && how.choice.unwrap_or(usual) == ChoiceBy::Likelihood;
        let style = match how.prompt {
            Some(PromptStyle::Chat) if !can_chat => {
                return Err(refuse("the model has no chat template", "use --prompt plain"));
            }
            Some(PromptStyle::Chat) if !by_likelihood => Style::Chat,
            Some(PromptStyle::R1Zero) if !by_likelihood => Style::R1Zero,
            None if can_chat && !by_likelihood => Style::Chat,
            _ => Style::Terse,
        };
        let examples = if style == Style::Terse { examples(named, args, &questions)? } else { Vec::new() };
        let shots = args.what.shots.unwrap_or(benchmark.customary_shots()).min(examples.len());
        if let Some(asked) = args.what.shots.filter(|asked| *asked > shots && style == Style::Terse) {
            let message = format!("{asked} examples of {} are asked for, and there are {shots}", named.name);
            return Err(refuse(message, format!("name a file with more: --dev {}=FILE", named.name)));
        }
        if let Some(items) = args.what.items.filter(|items| items.get() < questions.len()) {
            let order = Permutation::new(questions.len() as u64, args.what.seed);
            let mut drawn: Vec<usize> = (0..items.get() as u64).map(|at| order.at(at) as usize).collect();
            drawn.sort_unstable();
            questions = drawn.into_iter().map(|at| questions[at].clone()).collect();
        }
        let jail = match benchmark.is_code() {
            true => Some(Arc::new(Jail::new(std::env::current_exe()?, "python3", Default::default())?)),
            false => None,
        };
        let format = benchmark.format(style);
        let items = questions.iter().map(|question| benchmark.item(question, &[], style)).collect();
        let task = Listed { name: named.name.clone(), items, format, language: None, jail };
        let mut suite = Suite {
            name: named.name.clone(),
            benchmark,
            questions,
            examples,
            style,
            by_likelihood,
            shots,
            samples: if by_likelihood { 1 } else { how.samples.get() },
            sampling: Sampling { temperature: how.temperature, top_p: how.top_p, ..Sampling::default() },
            max_tokens: how.max_tokens.get(),
            task,
            settings: Value::Null,
        };
        suite.settings = suite.describe(named, args)?;
        Ok(suite)
    }

    /// Everything that its receipts depend on, but for the model.
    fn describe(&self, named: &Named, args: &Args) -> Result<Value> {
        let file = |path: &Path| -> Result<Value> { Ok(json!({"file": file_name(path), "sha256": hash(path)?})) };
        let style = match self.style {
            Style::Terse => "plain",
            Style::Chat => "chat",
            Style::Short => "short",
            Style::R1Zero => "r1-zero",
        };
        let written = json!({
            "samples": self.samples,
            "temperature": self.sampling.temperature,
            "top_p": self.sampling.top_p,
            "max_tokens": self.max_tokens,
        });
        Ok(json!({
            "name": self.name,
            "benchmark": self.benchmark.name(),
            "questions": file(&named.file)?,
            "items": self.questions.len(),
            "items_drawn": args.what.items,
            "shots": self.shots,
            "examples": named.dev.as_deref().filter(|_| self.shots > 0).map(file).transpose()?,
            "prompt": style,
            "answers": if self.by_likelihood { json!("likelihood of letters") } else { written },
        }))
    }

    /// As the command line has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Which benchmark it is.
    pub fn benchmark(&self) -> Benchmark {
        self.benchmark
    }

    /// For the folder of receipts.
    pub fn settings(&self) -> &Value {
        &self.settings
    }

    /// How many questions there are, an item's samples counted each: number / samples is the item's place, number mod
    /// samples the sample's.
    pub fn len(&self) -> usize {
        self.questions.len() * self.samples as usize
    }

    /// Samples of each item.
    pub fn samples(&self) -> u32 {
        self.samples
    }

    /// The place of the item of question `number`, and the sample.
    pub fn place(&self, number: usize) -> (usize, u32) {
        (number / self.samples as usize, (number % self.samples as usize) as u32)
    }

    /// The item at `place`, with so many examples before it.
    pub fn item(&self, place: usize, shots: usize) -> Item {
        let question = &self.questions[place];
        let same_subject = |example: &Question| match (&example.subject, &question.subject) {
            (Some(of_example), Some(of_question)) => of_example == of_question,
            _ => example.part == question.part,
        };
        let first = |of_subject: bool| -> Vec<Question> {
            // A file may serve for both; no question is shown with its answer.
            let fits = |example: &&Question| example.text != question.text && (!of_subject || same_subject(example));
            self.examples.iter().filter(fits).take(shots).cloned().collect()
        };
        // MMLU's examples are of the question's subject; other benchmarks show the same ones to all.
        let of_subject = first(self.benchmark.is_choice() && self.parts_agree());
        let examples = if of_subject.is_empty() { first(false) } else { of_subject };
        self.benchmark.item(question, &examples, self.style)
    }

    /// Whether examples are told apart as questions are: by subject, or by as many tables.
    fn parts_agree(&self) -> bool {
        let parts = |questions: &[Question]| questions.last().map(|question| question.part);
        let subjects = |questions: &[Question]| questions.first().is_some_and(|question| question.subject.is_some());
        match (subjects(&self.questions), subjects(&self.examples)) {
            (true, true) => true,
            (false, false) => {
                self.examples.last().is_some_and(|last| last.part > 0)
                    && parts(&self.examples) >= parts(&self.questions)
            }
            _ => false,
        }
    }

    /// What the table of subjects calls the question at `place`.
    pub fn subject(&self, place: usize) -> Option<String> {
        let question = &self.questions[place];
        let several = self.questions.last().is_some_and(|last| last.part > 0);
        question.subject.clone().or_else(|| several.then(|| format!("part {}", question.part + 1)))
    }

    /// The verdict on an answer.
    pub fn receipt(&self, number: usize, answer: &Answer) -> Result<Receipt> {
        let (place, sample) = self.place(number);
        let item = &self.task.items[place];
        let (grade, output) = match (&item.reference, answer.choices.is_empty()) {
            _ if answer.end == TOO_LONG => (None, String::new()),
            (Reference::Choice { .. }, false) => {
                let chosen = likeliest(&answer.choices).map(|choice| letter(choice).to_string());
                let reason = chosen.as_deref().map(|chosen| self.task.check(item, chosen)).transpose()?;
                (reason.map(|reason| (reason, chosen.clone())), chosen.unwrap_or_default())
            }
            _ => {
                let mut format = self.task.format;
                if answer.opened {
                    format.thinking = Thinking::Opened;
                }
                let grade = self.task.grade_parsed(item, &format.parse(&answer.text))?;
                (Some((grade.reason, grade.answer)), answer.text.clone())
            }
        };
        let (reason, found) = grade.map_or((None, None), |(reason, found)| (Some(reason), found));
        Ok(Receipt {
            item: item.id.clone(),
            sample,
            subject: self.subject(place),
            prompt_sha256: answer.prompt_sha256.clone(),
            prompt_tokens: answer.prompt_tokens,
            shots: answer.shots,
            choices: answer.choices.clone(),
            output,
            answer: found,
            expected: expected(&item.reference),
            correct: reason == Some(Reason::Right),
            verdict: reason.map_or_else(|| answer.end.to_owned(), |reason| without_addresses(&reason.to_string())),
            generated_tokens: answer.generated_tokens,
            end: answer.end.to_owned(),
        })
    }

    /// Whether two answers to the item at `place` are the same one.
    pub fn same(&self, place: usize, first: &Receipt, second: &Receipt) -> bool {
        let (Some(a), Some(b)) = (&first.answer, &second.answer) else { return false };
        let mathematical = matches!(self.questions[place].reference, Reference::Maths(_) | Reference::Number(_));
        (first.correct && second.correct)
            || (first.correct == second.correct && (a == b || mathematical && maths::equivalent(a, b)))
    }
}

impl Questions for Suite {
    fn shots(&self) -> usize {
        self.shots
    }

    fn prompt(&self, number: usize, shots: usize) -> Prompt {
        self.item(self.place(number).0, shots).prompt
    }

    fn continuations(&self, number: usize) -> Option<Vec<String>> {
        match &self.questions[self.place(number).0].reference {
            Reference::Choice { choices, .. } if self.by_likelihood => Some(continuations(choices.len())),
            _ => None,
        }
    }

    fn sample(&self, number: usize) -> u32 {
        self.place(number).1
    }

    /// By the item's id, so that the same item of another selection is answered alike.
    fn sampling(&self, number: usize, seed: u64) -> Sampling {
        let id = self.questions[self.place(number).0].id.bytes();
        let seed = id.fold(seed, |seed, byte| wels_data::random::bits(seed, 0, u64::from(byte), 0));
        Sampling { seed, ..self.sampling.clone() }
    }

    fn max_tokens(&self) -> usize {
        self.max_tokens
    }

    fn stops(&self) -> Vec<String> {
        self.benchmark.stops(self.style).iter().map(|stop| (*stop).to_owned()).collect()
    }
}

/// The file with examples, if any are to be shown.
fn examples(named: &Named, args: &Args, questions: &[Question]) -> Result<Vec<Question>> {
    let wanted = args.what.shots.unwrap_or(named.benchmark.customary_shots());
    match &named.dev {
        Some(file) if wanted > 0 => Ok(read(named.benchmark, file)?),
        None if args.what.shots.is_some_and(|shots| shots > 0) => {
            let message = format!("there is no file with examples for {}", named.name);
            Err(refuse(message, format!("name one with --dev {}=FILE", named.name)))
        }
        None if wanted > 0 && !questions.is_empty() => {
            eprintln!("note: no file with examples for {}: none are shown", named.name);
            Ok(Vec::new())
        }
        _ => Ok(Vec::new()),
    }
}

/// The place of the greatest, of equals the first.
fn likeliest(choices: &[Option<f32>]) -> Option<usize> {
    let known = choices.iter().enumerate().filter_map(|(place, choice)| choice.map(|choice| (place, choice)));
    known.reduce(|best, other| if other.1 > best.1 { other } else { best }).map(|(place, _)| place)
}

/// The right answer, where it is short.
fn expected(reference: &Reference) -> Option<String> {
    match reference {
        Reference::Choice { correct, .. } => Some(letter(*correct).to_string()),
        Reference::Number(number) => Some(number.to_string()),
        Reference::Maths(answer)
        | Reference::Text(answer)
        | Reference::Begins(answer)
        | Reference::Found { answer, .. } => Some(answer.clone()),
        Reference::Expression { .. } | Reference::Code { .. } | Reference::Record(_) => None,
    }
}

/// Python's messages name objects by their addresses, which differ from run to run.
fn without_addresses(text: &str) -> String {
    let mut parts = text.split("0x");
    let mut clean = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        clean.push_str("0x…");
        clean.push_str(part.trim_start_matches(|c: char| c.is_ascii_hexdigit()));
    }
    clean
}

/// SHA-256 of a file, or of the hashes of a folder's files in the order of their names.
fn hash(path: &Path) -> Result<String> {
    let cannot = || format!("cannot read {}", path.display());
    if !path.is_dir() {
        return Ok(sha256_file(path).with_context(cannot)?.0);
    }
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(path).with_context(cannot)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.is_file());
    files.sort();
    let lines =
        files.iter().map(|file| Ok(format!("{} {}\n", sha256_file(file).with_context(cannot)?.0, file_name(file))));
    Ok(sha256(lines.collect::<Result<String>>()?.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equals_is_likeliest() {
        assert_eq!(likeliest(&[Some(-2.0), Some(-1.0), Some(-1.0), None]), Some(1));
        assert_eq!(likeliest(&[None, None]), None);
    }

    #[test]
    fn addresses_are_taken_out() {
        assert_eq!(without_addresses("wrong: <A object at 0x7f3a> and 0x1F"), "wrong: <A object at 0x…> and 0x…");
        assert_eq!(without_addresses("wrong: 5"), "wrong: 5");
    }
}

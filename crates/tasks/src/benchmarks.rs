//! Benchmarks in their original files: MMLU and GPQA (CSV), MATH, MATH-500, GSM8K and AIME (JSON Lines), HumanEval and
//! MBPP (JSON Lines, also compressed).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wels_data::Message;

use crate::completion::{AnswerStyle, Format, Thinking, last_boxed};
use crate::draw::Draw;
use crate::listed::{STOPS, letter};
use crate::number;
use crate::prompt::{Presentation, STEP_BY_STEP, Style, r1_zero};
use crate::records::{self, Record, bad, unique};
use crate::task::{Item, Prompt, Reference, TaskError};

/// Stream of random numbers for the order of GPQA's choices.
const STREAM_CHOICES: u64 = 11;

/// A benchmark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Benchmark {
    /// Four choices; as published without a header (question, four choices, a letter), or with `question`, `choice0`,
    /// …, `answer` from 0.
    Mmlu,
    /// Four choices, in an order that the record's id determines.
    Gpqa,
    /// `problem` with `answer`, or with `solution` that ends in a box: MATH, MATH-500.
    Math,
    /// `question` and `answer` that ends in `#### 42`.
    Gsm8k,
    /// `problem` and a whole number as `answer`.
    Aime,
    /// `prompt`, `entry_point`, `test`.
    HumanEval,
    /// `text` or `prompt`, `code`, `test_list`.
    Mbpp,
}

/// A question before it is put to a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Question {
    /// The file's, or the number of its record.
    pub id: String,
    /// What it is about, where the file says so.
    pub subject: Option<String>,
    /// Which of several tables put one behind another it stands in, from 0.
    pub part: u64,
    /// As in the file.
    pub text: String,
    /// What answers are checked against.
    pub reference: Reference,
    /// The answer as an example shows it, with its reasoning where the file has that.
    pub shown_answer: String,
}

/// Reads a benchmark's file; or a folder with a table for each subject (MMLU as published: `anatomy_test.csv`, …).
///
/// # Errors
/// Missing columns, ids that were there before, text that is not UTF-8, references that cannot be read, with the line.
pub fn read(benchmark: Benchmark, path: &Path) -> Result<Vec<Question>, TaskError> {
    if !path.is_dir() {
        return read_file(benchmark, path);
    }
    let io = |source| TaskError::Io { path: path.to_owned(), source };
    let mut files = std::fs::read_dir(path)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect::<std::io::Result<Vec<PathBuf>>>())
        .map_err(io)?;
    files.retain(|file| file.extension().is_some_and(|extension| extension == "csv"));
    files.sort();
    if files.is_empty() {
        return Err(io(std::io::Error::new(std::io::ErrorKind::NotFound, "the folder has no .csv file")));
    }
    let mut questions = Vec::new();
    for (part, file) in (0..).zip(&files) {
        let stem = file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        let subject = ["_test", "_dev", "_val"].iter().find_map(|split| stem.strip_suffix(split)).unwrap_or(&stem);
        questions.extend(read_file(benchmark, file)?.into_iter().map(|question| Question {
            id: format!("{subject}/{}", question.id),
            subject: Some(subject.to_owned()),
            part,
            ..question
        }));
    }
    Ok(questions)
}

/// Where a record may have an id of its own.
pub const ID_KEYS: [&str; 5] = ["task_id", "unique_id", "Record ID", "id", "ID"];

fn read_file(benchmark: Benchmark, path: &Path) -> Result<Vec<Question>, TaskError> {
    let records = match benchmark {
        Benchmark::Mmlu => {
            records::csv(path, Some(&["question", "choice0", "choice1", "choice2", "choice3", "answer"]))?
        }
        Benchmark::Gpqa => records::csv(path, None)?,
        _ => records::jsonl(path, false)?,
    };
    let mut seen = BTreeSet::new();
    let mut questions = Vec::with_capacity(records.records.len());
    for (index, record) in records.records.iter().enumerate() {
        let number = ID_KEYS.into_iter().find(|name| record.fields.contains_key(*name));
        let id = match number {
            Some(name) => record.text(path, &[name])?,
            None => index.to_string(),
        };
        unique(path, record.line, &id, &mut seen)?;
        let subject = ["subject", "Subdomain", "type", "category"].into_iter().find_map(|name| record.fields.get(name));
        let subject = subject.and_then(Value::as_str).map(str::to_owned);
        questions.push(Question { subject, part: record.part, ..question(benchmark, path, record, id)? });
    }
    Ok(questions)
}

fn question(benchmark: Benchmark, path: &Path, record: &Record, id: String) -> Result<Question, TaskError> {
    let text = |names: &[&str]| record.text(path, names);
    let wrong = |reason: &str| bad(path, record.line, 0, reason);
    let (text, reference, shown_answer) = match benchmark {
        Benchmark::Mmlu => mmlu(path, record)?,
        Benchmark::Gpqa => gpqa(path, record, &id)?,
        Benchmark::Math => {
            let solution = text(&["solution"]).unwrap_or_default();
            let answer = match text(&["answer"]) {
                Ok(answer) => answer,
                Err(error) => last_boxed(&solution).map_err(|_| error)?.to_owned(),
            };
            let shown = if solution.is_empty() { format!("\\boxed{{{answer}}}") } else { solution };
            (text(&["problem"])?, Reference::Maths(answer), shown)
        }
        Benchmark::Gsm8k => {
            let answer = text(&["answer"])?;
            let (_, value) = answer.rsplit_once("####").ok_or_else(|| wrong("`answer` has no `####`"))?;
            let value = number::parse(value).ok_or_else(|| wrong("no number stands behind `####`"))?;
            (text(&["question"])?, Reference::Number(value), without_calculator(&answer))
        }
        Benchmark::Aime => {
            let answer = text(&["answer", "Answer"])?;
            let value = number::parse(&answer).ok_or_else(|| wrong("`answer` is no number"))?;
            (
                text(&["problem", "Problem", "question", "Question"])?,
                Reference::Number(value),
                format!("\\boxed{{{answer}}}"),
            )
        }
        Benchmark::HumanEval => {
            let (before, entry) = (text(&["prompt"])?, text(&["entry_point"])?);
            let tests = format!("{}\n\ncheck({entry})\n", text(&["test"])?);
            let shown = text(&["canonical_solution"]).unwrap_or_default();
            (before.clone(), Reference::Code { before, entry, tests }, shown)
        }
        Benchmark::Mbpp => mbpp(path, record)?,
    };
    Ok(Question { id, subject: None, part: 0, text, reference, shown_answer })
}

fn mmlu(path: &Path, record: &Record) -> Result<(String, Reference, String), TaskError> {
    let text = |names: &[&str]| record.text(path, names);
    let choices = (0..4)
        .map(|choice| text(&[&format!("choice{choice}"), &letter(choice).to_string()]))
        .collect::<Result<Vec<String>, TaskError>>()?;
    let answer = text(&["answer"])?;
    let correct = match answer.trim() {
        "A" | "0" => 0,
        "B" | "1" => 1,
        "C" | "2" => 2,
        "D" | "3" => 3,
        other => return Err(bad(path, record.line, 0, format!("`answer` is `{other}`, neither A to D nor 0 to 3"))),
    };
    Ok(choice_question(&text(&["question"])?, choices, correct))
}

fn gpqa(path: &Path, record: &Record, id: &str) -> Result<(String, Reference, String), TaskError> {
    let text = |name: &str| record.text(path, &[name]).map(|text| text.trim().to_owned());
    let mut choices = vec![(true, text("Correct Answer")?)];
    for number in 1..=3 {
        choices.push((false, text(&format!("Incorrect Answer {number}"))?));
    }
    let key = id.bytes().fold(0, |key, byte| wels_data::random::bits(key, STREAM_CHOICES, u64::from(byte), 0));
    Draw::new(key, STREAM_CHOICES, 0).shuffle(&mut choices);
    let correct = choices.iter().position(|(correct, _)| *correct).expect("one is");
    Ok(choice_question(&text("Question")?, choices.into_iter().map(|(_, text)| text).collect(), correct))
}

fn choice_question(question: &str, choices: Vec<String>, correct: usize) -> (String, Reference, String) {
    let mut text = question.trim().to_owned();
    for (index, choice) in choices.iter().enumerate() {
        text.push_str(&format!("\n{}. {choice}", letter(index)));
    }
    (text, Reference::Choice { choices, correct }, letter(correct).to_string())
}

fn mbpp(path: &Path, record: &Record) -> Result<(String, Reference, String), TaskError> {
    let text = |names: &[&str]| record.text(path, names);
    let list = |name: &str| match record.fields.get(name) {
        Some(Value::Array(lines)) => lines.iter().map(|line| line.as_str().map(str::to_owned)).collect(),
        Some(Value::String(text)) => Some(vec![text.clone()]),
        _ => None,
    };
    let tests: Vec<String> = list("test_list")
        .filter(|tests: &Vec<String>| !tests.is_empty())
        .ok_or_else(|| bad(path, record.line, 0, "`test_list` is no list of tests"))?;
    let setup = list("test_imports").or(list("test_setup_code")).unwrap_or_default().join("\n");
    let code = text(&["code"])?;
    let entry = tested(&code, &tests);
    let question =
        format!("{}\nYour code should pass these tests:\n{}", text(&["text", "prompt"])?.trim(), tests.join("\n"));
    let tests = format!("{setup}\n{}", tests.join("\n"));
    Ok((question, Reference::Code { before: String::new(), entry, tests }, code))
}

/// The function of `code` that the tests call; it may stand behind its helpers.
fn tested(code: &str, tests: &[String]) -> String {
    let names = code.split("def ").skip(1).filter_map(|rest| Some(rest.split_once('(')?.0.trim()));
    let is_called = |name: &&str| tests.iter().any(|test| calls(test, name));
    names.clone().filter(is_called).last().or(names.clone().next()).unwrap_or_default().to_owned()
}

/// Whether `name(` stands in `text`, not as the end of a longer name.
fn calls(text: &str, name: &str) -> bool {
    let within = |before: &str| before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '.');
    text.match_indices(&format!("{name}(")).any(|(at, _)| !within(&text[..at]))
}

/// GSM8K's `<<48/2=24>>` are notes for a calculator.
fn without_calculator(answer: &str) -> String {
    let mut text = String::new();
    let mut rest = answer;
    while let Some((before, behind)) = rest.split_once("<<") {
        text.push_str(before);
        rest = behind.split_once(">>").map_or("", |(_, rest)| rest);
    }
    text + rest
}

impl Benchmark {
    /// All of them.
    pub const ALL: [Benchmark; 7] = [
        Benchmark::Mmlu,
        Benchmark::Gpqa,
        Benchmark::Math,
        Benchmark::Gsm8k,
        Benchmark::Aime,
        Benchmark::HumanEval,
        Benchmark::Mbpp,
    ];

    /// Its name on command lines and in receipts.
    pub fn name(self) -> &'static str {
        match self {
            Benchmark::Mmlu => "mmlu",
            Benchmark::Gpqa => "gpqa",
            Benchmark::Math => "math",
            Benchmark::Gsm8k => "gsm8k",
            Benchmark::Aime => "aime",
            Benchmark::HumanEval => "humaneval",
            Benchmark::Mbpp => "mbpp",
        }
    }

    /// The one called `name`; names of well-known parts and years mean the whole kind (`math500`, `aime24`).
    pub fn named(name: &str) -> Option<Benchmark> {
        let name = name.to_ascii_lowercase().replace(['-', '_'], "");
        if !name.chars().all(|c| c.is_ascii_alphanumeric()) {
            return None;
        }
        Benchmark::ALL.into_iter().find(|benchmark| match benchmark {
            Benchmark::Math => name == "math" || name == "math500",
            Benchmark::Gpqa => name.starts_with("gpqa"),
            Benchmark::Aime => name.starts_with("aime"),
            benchmark => name == benchmark.name(),
        })
    }

    /// What its file is usually called: of the questions, and of examples to show before them.
    pub fn customary_files(self) -> [&'static [&'static str]; 2] {
        match self {
            Benchmark::Mmlu => {
                [&["mmlu_test.csv", "mmlu/test", "test", "mmlu.csv"], &["mmlu_dev.csv", "mmlu/dev", "dev"]]
            }
            Benchmark::Gpqa => [&["gpqa_diamond.csv", "gpqa_main.csv", "gpqa_extended.csv", "gpqa.csv"], &[]],
            Benchmark::Math => {
                [&["math500_test.jsonl", "math500.jsonl", "math_test.jsonl", "math.jsonl"], &["math_train.jsonl"]]
            }
            Benchmark::Gsm8k => {
                [&["gsm8k_test.jsonl", "gsm8k/test.jsonl", "gsm8k.jsonl"], &["gsm8k_train.jsonl", "gsm8k/train.jsonl"]]
            }
            Benchmark::Aime => [&["aime.jsonl", "aime24.jsonl", "aime_2024.jsonl", "aime25.jsonl"], &[]],
            Benchmark::HumanEval => [&["HumanEval.jsonl.gz", "HumanEval.jsonl", "humaneval.jsonl"], &[]],
            Benchmark::Mbpp => [&["mbpp.jsonl", "sanitized-mbpp.jsonl"], &[]],
        }
    }

    /// Whether its answers are letters of choices.
    pub fn is_choice(self) -> bool {
        matches!(self, Benchmark::Mmlu | Benchmark::Gpqa)
    }

    /// Whether its answers are code.
    pub fn is_code(self) -> bool {
        matches!(self, Benchmark::HumanEval | Benchmark::Mbpp)
    }

    /// Examples that are usually shown where a model continues text: 5 of MMLU (Hendrycks et al., 2021), 5 of GSM8K as
    /// lm-evaluation-harness has it, 4 of MATH (Lewkowycz et al., 2022).
    pub fn customary_shots(self) -> usize {
        match self {
            Benchmark::Mmlu | Benchmark::Gsm8k | Benchmark::Gpqa => 5,
            Benchmark::Math => 4,
            _ => 0,
        }
    }

    /// Where a model that continues text has gone beyond its answer.
    pub fn stops(self, style: Style) -> &'static [&'static str] {
        match (style, self) {
            (Style::Chat | Style::Short | Style::R1Zero, _) => &[],
            (_, Benchmark::Mmlu | Benchmark::Gpqa) => &["\n"],
            (_, Benchmark::Math | Benchmark::Aime) => &["\nProblem:"],
            (_, Benchmark::Gsm8k) => &["\nQuestion:"],
            (_, Benchmark::HumanEval) => &STOPS,
            (_, Benchmark::Mbpp) => &["```"],
        }
    }

    /// What comes before the first example, as MMLU's own evaluation has it.
    fn heading(self, subject: Option<&str>) -> String {
        let about = subject.map(|subject| format!(" about {}", subject.replace('_', " "))).unwrap_or_default();
        match self.is_choice() {
            true => format!("The following are multiple choice questions (with answers){about}.\n\n"),
            false => String::new(),
        }
    }

    /// What stands around a question and around its answer, in prompts with examples.
    fn frame(self) -> [&'static str; 2] {
        match self {
            Benchmark::Mmlu | Benchmark::Gpqa => ["", "\nAnswer:"],
            Benchmark::Math | Benchmark::Aime => ["Problem:\n", "\n\nSolution:"],
            Benchmark::Gsm8k => ["Question: ", "\nAnswer:"],
            Benchmark::HumanEval => ["", ""],
            Benchmark::Mbpp => ["", "\n\n```python\n"],
        }
    }

    /// The form of completions to prompts in `style`.
    pub fn format(self, style: Style) -> Format {
        let code = matches!(self, Benchmark::HumanEval | Benchmark::Mbpp);
        let choice = matches!(self, Benchmark::Mmlu | Benchmark::Gpqa);
        match style {
            Style::R1Zero if code => Format { thinking: Thinking::Tagged, answer: AnswerStyle::TaggedCode },
            Style::R1Zero => Format::TAGS,
            _ if code => Format { thinking: Thinking::Free, answer: AnswerStyle::Code },
            Style::Chat => Format { thinking: Thinking::Free, answer: AnswerStyle::Boxed },
            Style::Short if choice => Format { thinking: Thinking::Free, answer: AnswerStyle::Whole },
            Style::Short => Presentation::from(style).format,
            Style::Terse if choice => Format { thinking: Thinking::Free, answer: AnswerStyle::Whole },
            Style::Terse if self == Benchmark::Gsm8k => {
                Format { thinking: Thinking::Free, answer: AnswerStyle::Hashes }
            }
            Style::Terse => Format { thinking: Thinking::Free, answer: AnswerStyle::Boxed },
        }
    }

    /// An item out of a question, with `examples` before it in [`Style::Terse`], where a model continues text.
    pub fn item(self, question: &Question, examples: &[Question], style: Style) -> Item {
        let prompt = match style {
            Style::Terse => {
                let [before, behind] = self.frame();
                let shown =
                    |example: &Question| format!("{before}{}{behind} {}\n\n", example.text, example.shown_answer);
                let examples: String = examples.iter().map(shown).collect();
                let heading = self.heading(question.subject.as_deref());
                Prompt::Text(format!("{heading}{examples}{before}{}{behind}", question.text))
            }
            Style::R1Zero => Prompt::Text(r1_zero(&question.text)),
            Style::Short => Prompt::Messages(vec![Message::new("user", &question.text)]),
            Style::Chat => {
                let request = match question.reference {
                    Reference::Code { .. } => "Answer with the complete code in one ```python block.".to_owned(),
                    Reference::Choice { .. } => format!("{STEP_BY_STEP} Answer with the letter."),
                    _ => STEP_BY_STEP.to_owned(),
                };
                Prompt::Messages(vec![Message::new("user", &format!("{}\n\n{request}", question.text))])
            }
        };
        Item { id: question.id.clone(), prompt, reference: question.reference.clone() }
    }
}

/// What a model continues a choice's prompt with: ` A`, ` B`, …; the one with the highest probability is its choice.
pub fn continuations(choices: usize) -> Vec<String> {
    (0..choices).map(|choice| format!(" {}", letter(choice))).collect()
}

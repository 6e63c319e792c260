//! What a task is: items with references, verdicts for evaluation, rewards for RL.

use std::path::PathBuf;

use serde_json::Value;
use wels_data::Message;

use crate::completion::{Completion, Fault, Format};
use crate::environment::Environment;
use crate::jail::JailError;
use crate::language::{self, Language};
use crate::number::Rational;

/// What can go wrong with a task itself. A wrong, malformed or empty answer is no error but a [`Grade`].
#[derive(Debug, thiserror::Error)]
pub enum TaskError {
    /// Options that no item can satisfy.
    #[error("the task {task} cannot make items: {reason}")]
    Options { task: &'static str, reason: String },
    /// An index beyond the last item.
    #[error("the task {task} has {len} items; number {index} was asked for")]
    NoItem {
        task: String,
        len: u64,
        /// From 0.
        index: u64,
    },
    /// A file that cannot be read.
    #[error("cannot read {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// A record of a file that is not what it should be.
    #[error("{path}, line {line}, column {column}: {reason}")]
    BadRecord {
        path: PathBuf,
        /// From 1.
        line: u64,
        /// In bytes, from 1; 0 where only the line is known.
        column: usize,
        reason: String,
    },
    /// Code is to be run and there is no jail.
    #[error("the answers of {task} are code, and there is no jail to run it in")]
    NoJail { task: String },
    /// The jail fails.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// An environment of someone's own hangs, ends or changes its mind.
    #[error("the environment {name} {reason}")]
    Environment {
        /// A program, or an address.
        name: String,
        /// What it did.
        reason: String,
    },
    /// A checker of someone's own hangs, ends or lies.
    #[error("the checker {program} {reason}")]
    Checker {
        program: PathBuf,
        /// What it did.
        reason: String,
    },
    /// An item of another task.
    #[error("item {item} has a reference of another kind than the task {task} checks")]
    ForeignItem { task: String, item: String },
}

/// One question.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Unique within the task.
    pub id: String,
    /// What the model is given.
    pub prompt: Prompt,
    /// What an answer is checked against.
    pub reference: Reference,
}

/// What the model is given.
#[derive(Clone, Debug, PartialEq)]
pub enum Prompt {
    /// Continued as it stands, without a chat template.
    Text(String),
    /// To be rendered by the model's chat template, with its generation prompt.
    Messages(Vec<Message>),
}

/// What an answer is checked against.
#[derive(Clone, Debug, PartialEq)]
pub enum Reference {
    /// An expression that uses each of `numbers` once and has the value `target`.
    Expression {
        /// As asked, in any order.
        numbers: Vec<u64>,
        /// Its value.
        target: i64,
    },
    /// A number, exactly.
    Number(Rational),
    /// An answer in LaTeX, compared by [`crate::maths`].
    Maths(String),
    /// Words, compared without regard to case, white space and a full stop.
    Text(String),
    /// Words that the answer begins with, compared as [`Reference::Text`]: of a text that is gone on with.
    Begins(String),
    /// One of several choices.
    Choice {
        /// Their texts, in the order of the letters A, B, ….
        choices: Vec<String>,
        /// From 0.
        correct: usize,
    },
    /// Tests that code has to pass.
    Code {
        /// Python that stands before the answer: imports, the head of the function.
        before: String,
        /// The function that is asked for.
        entry: String,
        /// Python that stands behind the answer and raises if it is wrong.
        tests: String,
    },
    /// Words that are to be found in documents, compared as [`Reference::Text`].
    Found {
        /// What a search finds, or the files of a folder, each with its name in the first line.
        documents: Vec<String>,
        answer: String,
    },
    /// A record of one's own, which a program of one's own judges answers by ([`crate::external`]).
    Record(Value),
}

/// Which items a generator makes; no question is in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    HeldOut,
}

/// Why an answer counts as it does.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub enum Reason {
    Right,
    /// It could be read and is wrong: how.
    Wrong(String),
    /// There is an answer that cannot be read: why.
    Malformed(String),
    /// There is no answer: the fault of form that explains it.
    NoAnswer(Fault),
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self {
            Reason::Right => f.write_str("right"),
            Reason::Wrong(how) => write!(f, "wrong: {how}"),
            Reason::Malformed(why) => write!(f, "cannot be read: {why}"),
            Reason::NoAnswer(fault) => write!(f, "no answer: {fault}"),
        }
    }
}

/// A verdict on one completion.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Grade {
    /// Whether the answer is right. Form does not matter here beyond where the answer is looked for.
    pub correct: bool,
    /// The answer as found in the completion.
    pub answer: Option<String>,
    pub reason: Reason,
}

/// A reward by component, each in 0..=1.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Reward {
    /// 1 for a right answer, else 0.
    pub accuracy: f64,
    /// 1 for a completion of exactly the asked form, else 0.
    pub format: f64,
    /// Share of words in the target language; `None` where the task has no target language.
    pub language: Option<f64>,
    /// What is wrong with the form; the first fault found.
    pub fault: Option<Fault>,
    /// The verdict behind `accuracy`, from the same reading of the completion.
    pub grade: Grade,
}

/// What each component counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RewardWeights {
    /// Of a right answer.
    pub accuracy: f64,
    /// Of the asked form.
    pub format: f64,
    /// Of the target language.
    pub language: f64,
}

impl Default for RewardWeights {
    /// Equal weights, as R1-Zero's accuracy and format and R1's added language reward ("DeepSeek-R1", §2.2.2, §2.3.2).
    fn default() -> Self {
        RewardWeights { accuracy: 1.0, format: 1.0, language: 1.0 }
    }
}

impl Reward {
    /// The weighted sum.
    pub fn total(&self, weights: &RewardWeights) -> f64 {
        weights.accuracy * self.accuracy
            + weights.format * self.format
            + weights.language * self.language.unwrap_or(0.0)
    }
}

/// Questions with checkable answers.
///
/// An implementation gives items and checks answers; reading completions is the same for all.
pub trait Task: Send + Sync {
    /// For metrics and receipts.
    fn name(&self) -> &str;

    /// How many items there are; `None` for a generator without end.
    fn len(&self) -> Option<u64>;

    /// Whether there is no item at all.
    fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// The item number `index`, from 0; always the same one.
    fn item(&self, index: u64) -> Result<Item, TaskError>;

    /// The form that completions should have.
    fn format(&self) -> Format;

    /// The language that thinking should be in, if that is rewarded.
    fn language(&self) -> Option<Language> {
        None
    }

    /// Whether `answer`, as found in a completion, is right: [`Reason::Right`], [`Reason::Wrong`] or
    /// [`Reason::Malformed`].
    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError>;

    /// The environment that its items are played in, if they are.
    fn environment(&self) -> Option<&dyn Environment> {
        None
    }

    /// The verdict on `completion`.
    fn grade(&self, item: &Item, completion: &str) -> Result<Grade, TaskError> {
        self.grade_parsed(item, &self.format().parse(completion))
    }

    /// What `completion` is worth.
    fn reward(&self, item: &Item, completion: &str) -> Result<Reward, TaskError> {
        let parsed = self.format().parse(completion);
        let grade = self.grade_parsed(item, &parsed)?;
        Ok(Reward {
            accuracy: f64::from(grade.correct),
            format: f64::from(parsed.fault.is_none()),
            language: self.language().map(|language| language::share(parsed.thinking.unwrap_or(completion), language)),
            fault: parsed.fault,
            grade,
        })
    }

    /// The verdict on a completion that is already taken apart.
    fn grade_parsed(&self, item: &Item, completion: &Completion) -> Result<Grade, TaskError> {
        let (reason, answer) = match completion.answer {
            Ok(answer) => (self.check(item, answer)?, Some(answer.to_owned())),
            Err(fault) => (Reason::NoAnswer(fault), None),
        };
        Ok(Grade { correct: reason == Reason::Right, answer, reason })
    }
}

impl Task for Box<dyn Task> {
    fn name(&self) -> &str {
        (**self).name()
    }

    fn len(&self) -> Option<u64> {
        (**self).len()
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        (**self).item(index)
    }

    fn format(&self) -> Format {
        (**self).format()
    }

    fn language(&self) -> Option<Language> {
        (**self).language()
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        (**self).check(item, answer)
    }

    fn environment(&self) -> Option<&dyn Environment> {
        (**self).environment()
    }
}

/// The error for an item that another task made.
pub(crate) fn foreign(task: &dyn Task, item: &Item) -> TaskError {
    TaskError::ForeignItem { task: task.name().to_owned(), item: item.id.clone() }
}

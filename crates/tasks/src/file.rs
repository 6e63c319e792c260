//! Anyone's own task: a JSON Lines file of questions and answers, and a checker by its name.
//!
//! Each line has `question` (text) or `messages` (a chat), `answer`, and, if it likes, `id` and `choices`. For a
//! program of one's own ([`crate::external`]) it has whatever else that needs, and `answer` may be left out.

use std::collections::BTreeSet;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use wels_data::Message;

use crate::number;
use crate::prompt::Presentation;
use crate::records::{self, Record, bad, unique};
use crate::task::{Item, Prompt, Reference, TaskError};

/// How answers are compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Checker {
    /// As numbers, exactly; `answer` may be GSM8K's, with `####`.
    Number,
    /// As mathematics, in LaTeX.
    Maths,
    /// As words.
    Exact,
    /// As the letter or the text of one of `choices`.
    Choice,
    /// As a program of one's own does, which is given the whole record.
    Program,
}

/// Where a line may have an id of its own.
pub const ID_KEYS: [&str; 1] = ["id"];

/// The items of a file, and how many damaged lines were passed over.
pub fn read(
    path: &Path,
    checker: Checker,
    presentation: &Presentation,
    skip_bad: bool,
) -> Result<(Vec<Item>, u64), TaskError> {
    let records = records::jsonl(path, skip_bad)?;
    let (mut items, mut skipped, mut seen) = (Vec::new(), records.skipped, BTreeSet::new());
    for (index, record) in records.records.iter().enumerate() {
        let id = record.text(path, &ID_KEYS).unwrap_or_else(|_| index.to_string());
        let item =
            unique(path, record.line, &id, &mut seen).and_then(|()| item(path, record, id, checker, presentation));
        match item {
            Ok(item) => items.push(item),
            Err(_) if skip_bad => skipped += 1,
            Err(error) => return Err(error),
        }
    }
    Ok((items, skipped))
}

fn item(
    path: &Path,
    record: &Record,
    id: String,
    checker: Checker,
    presentation: &Presentation,
) -> Result<Item, TaskError> {
    let prompt = match record.fields.get("messages") {
        Some(messages) => {
            let messages: Result<Vec<Message>, _> = serde_json::from_value(messages.clone());
            Prompt::Messages(messages.map_err(|error| bad(path, record.line, 0, format!("`messages`: {error}")))?)
        }
        None => {
            let question = record.text(path, &["question", "prompt", "problem"])?;
            presentation.prompt(&question, &question)
        }
    };
    Ok(Item { id, prompt, reference: reference(path, record, checker)? })
}

fn reference(path: &Path, record: &Record, checker: Checker) -> Result<Reference, TaskError> {
    let answer = || match record.text(path, &["answer"])? {
        answer if answer.trim().is_empty() => Err(bad(path, record.line, 0, "`answer` is empty")),
        answer => Ok(answer),
    };
    Ok(match checker {
        Checker::Program => Reference::Record(Value::Object(record.fields.clone())),
        Checker::Exact => Reference::Text(answer()?),
        Checker::Maths => Reference::Maths(answer()?),
        Checker::Number => {
            let answer = answer()?;
            let text = answer.rsplit_once("####").map_or(answer.as_str(), |(_, value)| value);
            Reference::Number(number::parse(text).ok_or_else(|| bad(path, record.line, 0, "`answer` is no number"))?)
        }
        Checker::Choice => choice(path, record, &answer()?)?,
    })
}

fn choice(path: &Path, record: &Record, answer: &str) -> Result<Reference, TaskError> {
    let Some(Value::Array(choices)) = record.fields.get("choices") else {
        return Err(bad(path, record.line, 0, "`choices` is no list"));
    };
    let choices: Option<Vec<String>> = choices.iter().map(|choice| choice.as_str().map(str::to_owned)).collect();
    let choices = choices.ok_or_else(|| bad(path, record.line, 0, "`choices` is no list of texts"))?;
    let reference = |correct| Reference::Choice { choices: choices.clone(), correct };
    let right =
        (0..choices.len().min(26)).find(|&at| choices[at] == answer || crate::listed::letter(at).to_string() == answer);
    right.map(reference).ok_or_else(|| bad(path, record.line, 0, "`answer` is none of `choices`, nor a letter of one"))
}

//! DPG-Bench's prompts and questions as they are published, and its score (Hu and others, "ELLA: Equip Diffusion Models
//! with LLM for Enhanced Semantic Alignment", 2024).
//!
//! Prompts are files `ID.txt` of a folder. Questions are rows of `dpg_bench.csv`, whose columns this reads by name:
//! `item_id`, `text`, `proposition_id`, `dependency` (numbers of the questions that it depends on, 0 for none),
//! `category_broad`, `category_detailed`, `tuple`, `question_natural_language`. The published script passes over the
//! first row of the file; here it counts like all others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::read::ReadError;

/// Largest file of one prompt.
const PROMPT_BYTES_MAX: u64 = 1 << 20;

/// A prompt with questions about its picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// The name of the prompt's file and of its picture, without what follows the dot.
    pub id: String,
    pub text: String,
    pub questions: Vec<Question>,
}

/// A question that a right picture answers with "yes".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// From 1, within its item.
    pub number: u32,
    /// Numbers of questions without whose "yes" this one counts as "no".
    pub parents: Vec<u32>,
    pub category_broad: String,
    pub category_detailed: String,
    /// The proposition, such as `entity - whole (giraffe)`; its category stands before the bracket.
    pub tuple: String,
    pub text: String,
}

impl Question {
    /// Such as `attribute - color`.
    pub fn category(&self) -> &str {
        self.tuple.split('(').next().unwrap_or_default().trim()
    }
}

/// Prompts by the names of their files, sorted.
pub fn prompts(folder: &Path) -> Result<Vec<(String, String)>, ReadError> {
    let mut prompts = Vec::new();
    for entry in fs::read_dir(folder).map_err(|source| ReadError::io(folder, source))? {
        let path = entry.map_err(|source| ReadError::io(folder, source))?.path();
        let Some(id) = path.file_stem().filter(|_| path.extension().is_some_and(|end| end == "txt")) else { continue };
        let bytes = fs::metadata(&path).map_err(|source| ReadError::io(&path, source))?.len();
        if bytes > PROMPT_BYTES_MAX {
            return Err(ReadError::file(&path, format!("{bytes} bytes are too many for a prompt")));
        }
        let text = fs::read_to_string(&path).map_err(|source| ReadError::io(&path, source))?;
        if text.trim().is_empty() {
            return Err(ReadError::file(&path, "the prompt is empty"));
        }
        prompts.push((id.to_string_lossy().into_owned(), text.trim().to_owned()));
    }
    prompts.sort();
    match prompts.is_empty() {
        true => Err(ReadError::file(folder, "it holds no prompts (ID.txt)")),
        false => Ok(prompts),
    }
}

/// Where the columns are that are read.
struct Columns([usize; 8]);

impl Columns {
    const NAMES: [&str; 8] = [
        "item_id",
        "text",
        "proposition_id",
        "dependency",
        "category_broad",
        "category_detailed",
        "tuple",
        "question_natural_language",
    ];

    fn of(header: &csv::StringRecord) -> Result<Columns, String> {
        let names: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}').trim()).collect();
        let mut columns = [0; 8];
        for (column, name) in columns.iter_mut().zip(Self::NAMES) {
            let at = names.iter().position(|there| *there == name);
            *column = at.ok_or_else(|| format!("there is no column `{name}`, only `{}`", names.join("`, `")))?;
        }
        Ok(Columns(columns))
    }

    fn cells<'a>(&self, row: &'a csv::StringRecord) -> [&'a str; 8] {
        self.0.map(|column| row.get(column).unwrap_or_default())
    }
}

/// All items of a file of questions, in order.
pub fn read(path: &Path) -> Result<Vec<Item>, ReadError> {
    let mut reader = csv::Reader::from_path(path).map_err(|error| csv_error(path, error))?;
    let header = reader.headers().map_err(|error| csv_error(path, error))?;
    let columns = Columns::of(header).map_err(|reason| ReadError::file(path, reason))?;
    let mut items: Vec<Item> = Vec::new();
    let mut ids = BTreeSet::new();
    for row in reader.records() {
        let row = row.map_err(|error| csv_error(path, error))?;
        let line = row.position().map_or(0, csv::Position::line);
        let fail = |reason: String| ReadError::line(path, line, reason);
        let cells = columns.cells(&row);
        let (id, text) = (cells[0].trim(), cells[1]);
        let question = question(&cells).map_err(fail)?;
        if items.last().is_none_or(|item| item.id != id) {
            if id.is_empty() || !ids.insert(id.to_owned()) {
                return Err(fail(format!("the item `{id}` has no name, or rows in two places")));
            }
            items.push(Item { id: id.to_owned(), text: text.to_owned(), questions: Vec::new() });
        }
        let questions = &mut items.last_mut().expect("one was pushed").questions;
        if questions.iter().any(|other| other.number == question.number) {
            return Err(fail(format!("the item `{id}` has two questions {}", question.number)));
        }
        questions.push(question);
    }
    let items = items.into_iter().map(|item| checked(path, item)).collect::<Result<Vec<Item>, _>>()?;
    match items.is_empty() {
        true => Err(ReadError::file(path, "it holds no questions")),
        false => Ok(items),
    }
}

fn question(cells: &[&str; 8]) -> Result<Question, String> {
    let [_, _, number, parents, broad, detailed, tuple, text] = cells.map(str::trim);
    let parse =
        |name: &str, cell: &str| cell.trim().parse::<u32>().map_err(|_| format!("`{name}` is no number: `{cell}`"));
    if text.is_empty() {
        return Err("`question_natural_language` is empty".to_owned());
    }
    let parents = parents.split(',').map(|cell| parse("dependency", cell)).collect::<Result<Vec<u32>, _>>()?;
    Ok(Question {
        number: parse("proposition_id", number)?,
        parents: parents.into_iter().filter(|parent| *parent != 0).collect(),
        category_broad: broad.to_owned(),
        category_detailed: detailed.to_owned(),
        tuple: tuple.to_owned(),
        text: text.to_owned(),
    })
}

fn checked(path: &Path, item: Item) -> Result<Item, ReadError> {
    let numbers: BTreeSet<u32> = item.questions.iter().map(|question| question.number).collect();
    for question in &item.questions {
        if let Some(parent) = question.parents.iter().find(|parent| !numbers.contains(parent)) {
            let reason = format!("question {} depends on {parent}, which is not there", question.number);
            return Err(ReadError::entry(path, format!("item {}", item.id), reason));
        }
    }
    Ok(item)
}

fn csv_error(path: &Path, error: csv::Error) -> ReadError {
    let line = error.position().map_or(0, csv::Position::line);
    let reason = error.to_string();
    match error.into_kind() {
        csv::ErrorKind::Io(source) => ReadError::io(path, source),
        _ => ReadError::line(path, line, reason),
    }
}

/// The share of an item's questions answered with "yes", where a question without the "yes" of all that it depends on
/// counts as "no", in the order of the file: what so counts as "no" is one for those that depend on it and come later.
/// `yes` has an answer for each question.
pub fn score(item: &Item, yes: &[bool]) -> f64 {
    assert_eq!(yes.len(), item.questions.len(), "answers and questions of item {}", item.id);
    let mut counted: BTreeMap<u32, bool> =
        item.questions.iter().zip(yes).map(|(question, yes)| (question.number, *yes)).collect();
    for question in &item.questions {
        if question.parents.iter().any(|parent| !counted[parent]) {
            counted.insert(question.number, false);
        }
    }
    counted.values().filter(|yes| **yes).count() as f64 / counted.len() as f64
}

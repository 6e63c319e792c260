//! The names of tasks that make their items, and of tools: `NAME`, `NAME+TOOL`, and names for the two together.

use std::path::Path;

use anyhow::Result;
use wels_tasks::arithmetic::{Arithmetic, Kind};
use wels_tasks::countdown::{Countdown, Options};
use wels_tasks::tooled::{Demonstrator, Tool, Tooled, presentation};
use wels_tasks::tools::calculator::{Calculator, Chains, Tries};
use wels_tasks::tools::facts::Facts;
use wels_tasks::tools::files::{Folder, Largest};
use wels_tasks::tools::python::Python;
use wels_tasks::tools::search::Search;
use wels_tasks::{Jail, Presentation, Split, Style, Task};

use crate::refusal::refuse;
use crate::task;

/// The share of arithmetic questions that is held out.
const HELD_OUT: f64 = 0.1;

/// Names for a task and a tool.
const TOGETHER: [(&str, &str); 3] =
    [("calculator", "sums+calculator"), ("search", "facts+search"), ("files", "largest+files")];

/// A task that makes its items, with its tool if it has one.
pub(crate) fn named(name: &str, style: Option<Style>, split: Split) -> Result<Box<dyn Task>> {
    let style = style.unwrap_or(Style::Terse);
    let whole = TOGETHER.iter().find(|(short, _)| *short == name).map_or(name, |(_, whole)| whole);
    match whole.split_once('+') {
        None => made(name, style.into(), split),
        Some((of, tool)) => {
            let presentation = presentation(style);
            let task = made(of, presentation, split)?;
            let demonstrator: Option<Box<dyn Demonstrator>> = match (of, tool) {
                ("sums" | "arithmetic" | "addition" | "multiplication", "calculator") => {
                    Some(Box::new(Chains(chains(of, presentation, split)?)))
                }
                ("countdown", "calculator") => Some(Box::new(Tries(countdown(presentation, split)?))),
                ("facts", "search") => Some(Box::new(Facts::new(presentation, split, seed()))),
                ("largest", "files") => Some(Box::new(Largest::new(presentation, split, seed()))),
                _ => None,
            };
            Ok(Box::new(Tooled { name: name.to_owned(), task, tool: self::tool(of, tool)?, demonstrator }))
        }
    }
}

/// The questions in a file, with a tool if the name has one.
pub(crate) fn listed(name: &str, file: &Path, style: Option<Style>, split: Split) -> Result<Box<dyn Task>> {
    let style = style.unwrap_or(Style::Chat);
    match name.split_once('+') {
        None => Ok(Box::new(task::listed(name, file, style, split)?)),
        Some((of, tool)) => {
            let task = Box::new(task::listed(of, file, style, split)?);
            Ok(Box::new(Tooled { name: name.to_owned(), task, tool: self::tool(of, tool)?, demonstrator: None }))
        }
    }
}

/// The tool of this name, for questions of this task.
fn tool(task: &str, name: &str) -> Result<Box<dyn Tool>> {
    match (name, task) {
        ("calculator", _) => Ok(Box::new(Calculator)),
        ("python", _) => Ok(Box::new(Python::new(Jail::new(std::env::current_exe()?, "python3", Default::default())?))),
        ("search", "facts") => Ok(Box::new(Search { documents: 1 })),
        ("files", "largest") => Ok(Box::new(Folder)),
        ("search" | "files", _) => {
            let home = if name == "search" { "facts" } else { "largest" };
            let message = format!("the questions of {task} bring nothing for the tool {name}");
            Err(refuse(message, format!("it goes with {home}: task = \"{name}\"")))
        }
        _ => Err(refuse(format!("there is no tool '{name}'"), "known are: calculator, python, search, files")),
    }
}

/// A task that makes its items.
fn made(name: &str, presentation: Presentation, split: Split) -> Result<Box<dyn Task>> {
    match name {
        "countdown" => Ok(Box::new(countdown(presentation, split)?)),
        "addition" | "arithmetic" | "multiplication" | "sums" => Ok(Box::new(chains(name, presentation, split)?)),
        "facts" => Ok(Box::new(Facts::new(presentation, split, seed()))),
        "largest" => Ok(Box::new(Largest::new(presentation, split, seed()))),
        _ => {
            let known = "known are: countdown, addition, arithmetic, multiplication, sums, facts, largest, NAME=FILE \
                         and ./PROGRAM=FILE, see docs/tasks.md; and the environments of docs/environments.md";
            Err(refuse(format!("there is no task '{name}'"), known))
        }
    }
}

/// Sums, chains or products, by what they are called.
fn chains(name: &str, presentation: Presentation, split: Split) -> Result<Arithmetic> {
    let kind = match name {
        "addition" => Kind::Chain { terms: 2..=2, digits: 1..=2, operations: vec!['+'] },
        "arithmetic" => Kind::Chain { terms: 2..=3, digits: 1..=2, operations: vec!['+', '-', '*'] },
        "sums" => Kind::Chain { terms: 2..=3, digits: 2..=3, operations: vec!['+', '-', '*'] },
        _ => Kind::Product { first: 1..=2, second: 1..=2 },
    };
    Ok(Arithmetic::new(kind, presentation, split, HELD_OUT, seed())?)
}

pub(crate) fn countdown(presentation: Presentation, split: Split) -> Result<Countdown> {
    Ok(Countdown::new(Options::default(), presentation, split)?)
}

/// Of the items, which are the same in every run.
fn seed() -> u64 {
    Options::default().seed
}

//! A checker of anyone's own: an executable that reads one JSON object a line and answers each with one line.
//!
//! ```text
//! → {"id": "12", "item": {…}, "answer": "42"}
//! ← {"id": "12", "correct": true, "reason": "…"}
//! ```
//! `id` numbers the lines from 1, `item` is the record as the file has it, `reason` may be left out. The program is
//! started once and asked one answer at a time. The 1st, 2nd, 4th, 8th, … answer is put to it twice, for a program
//! whose verdicts change would make a run that cannot be repeated.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::completion::Format;
use crate::lines::Lines;
use crate::listed::Listed;
use crate::task::{Item, Reason, Reference, Task, TaskError, foreign};

/// Questions of a file, and the program that judges the answers.
pub struct Judged {
    /// Their references are [`Reference::Record`].
    pub listed: Listed,
    pub program: External,
}

impl Task for Judged {
    fn name(&self) -> &str {
        self.listed.name()
    }

    fn len(&self) -> Option<u64> {
        self.listed.len()
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        self.listed.item(index)
    }

    fn format(&self) -> Format {
        self.listed.format()
    }

    fn check(&self, item: &Item, answer: &str) -> Result<Reason, TaskError> {
        match &item.reference {
            Reference::Record(record) => self.program.check(&item.id, record, answer),
            _ => Err(foreign(self, item)),
        }
    }
}

/// A running checker.
pub struct External {
    program: PathBuf,
    running: Mutex<Running>,
}

struct Running {
    lines: Lines,
    /// How many answers it has judged.
    judged: u64,
    /// Once it has failed, its answers could belong to other questions.
    failed: bool,
}

#[derive(Deserialize)]
struct Reply {
    correct: bool,
    #[serde(default)]
    reason: String,
}

impl External {
    /// Starts `program`, which has `timeout` for each answer.
    pub fn start(program: &Path, arguments: &[String], timeout: Duration) -> Result<External, TaskError> {
        let fail = |error: std::io::Error| TaskError::Checker {
            program: program.to_owned(),
            reason: format!("cannot be started: {error}"),
        };
        let lines = Lines::start(program, arguments, timeout).map_err(fail)?;
        let running = Mutex::new(Running { lines, judged: 0, failed: false });
        Ok(External { program: program.to_owned(), running })
    }

    /// What it says about `answer` to `item`, which messages call `name`.
    ///
    /// # Errors
    /// It ended, took longer than its time, wrote something else than an answer, answered another question or none, or
    /// changed its mind. After that every further call fails too.
    pub fn check(&self, name: &str, item: &Value, answer: &str) -> Result<Reason, TaskError> {
        let fail = |reason: String| TaskError::Checker { program: self.program.clone(), reason };
        let mut running = self.running.lock().map_err(|_| fail("was interrupted".to_owned()))?;
        if running.failed {
            return Err(fail("failed before".to_owned()));
        }
        running.failed = true;
        let reply = running.ask(name, item, answer).map_err(fail)?;
        running.judged += 1;
        if running.judged.is_power_of_two() {
            let again = running.ask(name, item, answer).map_err(fail)?;
            if again.correct != reply.correct {
                let verdict = |reply: &Reply| if reply.correct { "right" } else { "wrong" };
                let (first, second) = (verdict(&reply), verdict(&again));
                return Err(fail(format!("called an answer to {name} {first}, and the same answer again {second}")));
            }
        }
        running.failed = false;
        Ok(if reply.correct { Reason::Right } else { Reason::Wrong(reply.reason) })
    }
}

impl Running {
    /// Its reply, or what it did instead.
    fn ask(&mut self, name: &str, item: &Value, answer: &str) -> Result<Reply, String> {
        self.lines.ask(json!({ "item": item, "answer": answer }), name)
    }
}

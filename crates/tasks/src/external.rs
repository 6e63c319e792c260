//! A checker of anyone's own: an executable that reads one JSON object a line and answers each with one line.
//!
//! ```text
//! → {"id": "12", "item": {…}, "answer": "42"}
//! ← {"id": "12", "correct": true, "reason": "…"}
//! ```
//! `id` numbers the lines from 1, `item` is the record as the file has it, `reason` may be left out. The program is
//! started once and asked one answer at a time. It is the user's own and runs without a jail; what it writes to
//! standard error goes where the caller's goes. The 1st, 2nd, 4th, 8th, … answer is put to it twice, for a program
//! whose verdicts change would make a run that cannot be repeated.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::completion::Format;
use crate::listed::Listed;
use crate::task::{Item, Reason, Reference, Task, TaskError, foreign};

/// Longest line that it may answer with.
const LINE_BYTES_MAX: u64 = 1 << 20;

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
    timeout: Duration,
    running: Mutex<Running>,
}

struct Running {
    child: Child,
    questions: Sender<Vec<u8>>,
    lines: Receiver<Vec<u8>>,
    /// How many lines it was sent.
    sent: u64,
    /// How many answers it has judged.
    judged: u64,
    /// Once it has failed, its answers could belong to other questions.
    failed: bool,
}

#[derive(Deserialize)]
struct Reply {
    id: String,
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
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own: Ctrl-C is for the caller, and what the program starts is ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(fail)?;
        let mut stdin = child.stdin.take().expect("piped");
        let mut output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::sync_channel(1);
        thread::spawn(move || {
            loop {
                let mut line = Vec::new();
                let read = output.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
                if !matches!(read, Ok(1..)) || sender.send(line).is_err() {
                    break;
                }
            }
        });
        // A pipe takes less than a long question; a program that reads nothing must not stop this one.
        let (questions, waiting) = mpsc::channel::<Vec<u8>>();
        thread::spawn(move || waiting.iter().all(|line| stdin.write_all(&line).is_ok()));
        let running = Mutex::new(Running { child, questions, lines, sent: 0, judged: 0, failed: false });
        Ok(External { program: program.to_owned(), timeout, running })
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
        let reply = running.ask(name, item, answer, self.timeout).map_err(fail)?;
        running.judged += 1;
        if running.judged.is_power_of_two() {
            let again = running.ask(name, item, answer, self.timeout).map_err(fail)?;
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
    fn ask(&mut self, name: &str, item: &Value, answer: &str, timeout: Duration) -> Result<Reply, String> {
        let shown = |line: &[u8]| String::from_utf8_lossy(line).trim().chars().take(80).collect::<String>();
        if let Ok(line) = self.lines.try_recv() {
            return Err(format!("wrote `{}` without being asked", shown(&line)));
        }
        self.sent += 1;
        let id = self.sent.to_string();
        let mut line = json!({ "id": id, "item": item, "answer": answer }).to_string();
        line.push('\n');
        let _ = self.questions.send(line.into_bytes()); // if it has ended, there will be no reply
        let reply = self.lines.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("gave no answer within {} s to {name}", timeout.as_secs_f64()),
            RecvTimeoutError::Disconnected => format!("ended before it answered {name}"),
        })?;
        if reply.len() as u64 == LINE_BYTES_MAX {
            return Err(format!("answered {name} with more than {LINE_BYTES_MAX} bytes"));
        }
        let reply: Reply = serde_json::from_slice(&reply)
            .map_err(|error| format!("answered {name} with `{}`: {error}", shown(&reply)))?;
        match reply.id == id {
            true => Ok(reply),
            false => Err(format!("was asked {id:?}, about {name}, and answered {:?}", reply.id)),
        }
    }
}

impl Drop for External {
    fn drop(&mut self) {
        let running = self.running.get_mut().unwrap_or_else(PoisonError::into_inner);
        #[cfg(unix)]
        if let Ok(group) = running.child.id().try_into() {
            let group = nix::unistd::Pid::from_raw(group);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = running.child.kill();
        let _ = running.child.wait();
    }
}

//! A checker of anyone's own: an executable that reads one JSON object a line and answers each with one line.
//!
//! ```text
//! → {"id": "7", "item": {…}, "answer": "42"}
//! ← {"id": "7", "correct": true, "reason": "…"}
//! ```
//! It is started once and asked one answer at a time. What it writes to standard error goes where the caller's goes. It
//! is the user's own program and runs without a jail.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::task::{Reason, TaskError};

/// Longest line that it may answer with.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A running checker.
pub struct External {
    program: PathBuf,
    timeout: Duration,
    running: Mutex<Running>,
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    lines: Receiver<Vec<u8>>,
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
        let mut child =
            Command::new(program).args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().map_err(fail)?;
        let stdin = child.stdin.take().expect("piped");
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
        let running = Mutex::new(Running { child, stdin, lines, failed: false });
        Ok(External { program: program.to_owned(), timeout, running })
    }

    /// What it says about `answer` to `item`.
    ///
    /// # Errors
    /// It ended, took longer than its time, wrote something else than an answer, or answered another question. After
    /// that every further call fails too.
    pub fn check(&self, id: &str, item: &Value, answer: &str) -> Result<Reason, TaskError> {
        let fail = |reason: String| TaskError::Checker { program: self.program.clone(), reason };
        let mut running = self.running.lock().map_err(|_| fail("was interrupted".to_owned()))?;
        if running.failed {
            return Err(fail("failed before".to_owned()));
        }
        running.failed = true;
        let mut line = json!({ "id": id, "item": item, "answer": answer }).to_string();
        line.push('\n');
        // A pipe takes less than a long line; a program that reads nothing must not stop this one.
        let reply = thread::scope(|scope| {
            let Running { stdin, lines, child, .. } = &mut *running;
            scope.spawn(move || drop(stdin.write_all(line.as_bytes()).and_then(|()| stdin.flush())));
            let reply = lines.recv_timeout(self.timeout);
            if reply.is_err() {
                let _ = child.kill(); // closes the pipe, which ends the writing
            }
            reply
        });
        let reply = reply.map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                fail(format!("gave no answer within {} s to {id}", self.timeout.as_secs_f64()))
            }
            RecvTimeoutError::Disconnected => fail(format!("ended before it answered {id}")),
        })?;
        let reply: Reply = serde_json::from_slice(&reply).map_err(|error| {
            let shown: String = String::from_utf8_lossy(&reply).trim().chars().take(80).collect();
            fail(format!("answered {id} with `{shown}`: {error}"))
        })?;
        if reply.id != id {
            return Err(fail(format!("was asked about {id} and answered about {}", reply.id)));
        }
        running.failed = false;
        Ok(if reply.correct { Reason::Right } else { Reason::Wrong(reply.reason) })
    }
}

impl Drop for External {
    fn drop(&mut self) {
        if let Ok(running) = self.running.get_mut() {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }
}

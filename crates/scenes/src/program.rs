//! A program of one's own that looks at pictures: one JSON object a line in, one a line out.
//!
//! ```text
//! → {"id": "1", "image": "out/00000.png"}
//! ← {"id": "1", "objects": [{"class": "cup", "box": [4, 8, 90, 120], "color": "red", "score": 0.97}]}
//! → {"id": "2", "image": "out/00000.png", "question": "Is the cup red?"}
//! ← {"id": "2", "answer": "yes"}
//! ```
//! `id` numbers the lines from 1; `box` is left, top, right, bottom in pixels; `color` and `score` may be left out. A
//! reply `{"id": …, "error": "…"}` says why it cannot. The program is started once, is the user's own and runs without a
//! jail; what it writes to standard error goes where the caller's goes. It has a limit of time for each picture.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::geneval::Detected;

/// Longest line that it may answer with.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// What the program did instead of answering.
#[derive(Debug, thiserror::Error)]
#[error("the program {program} {reason}")]
pub struct ProgramError {
    pub program: PathBuf,
    pub reason: String,
}

/// A running program.
pub struct Program {
    program: PathBuf,
    timeout: Duration,
    child: Child,
    questions: Sender<Vec<u8>>,
    lines: Receiver<Vec<u8>>,
    /// How many lines it was sent.
    sent: u64,
    /// Once it has failed, its answers could belong to other questions.
    failed: bool,
}

#[derive(Deserialize)]
struct Reply {
    id: String,
    error: Option<String>,
    objects: Option<Vec<Detected>>,
    answer: Option<String>,
}

impl Program {
    /// Starts `program`, which has `timeout` for each reply.
    pub fn start(program: &Path, arguments: &[String], timeout: Duration) -> Result<Program, ProgramError> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own: Ctrl-C is for the caller, and what the program starts is ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn().map_err(|error| ProgramError {
            program: program.to_owned(),
            reason: format!("cannot be started: {error}"),
        })?;
        let mut stdin = child.stdin.take().expect("piped");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        let (sender, lines) = mpsc::sync_channel(1);
        thread::spawn(move || pass_on(output, &sender));
        // A pipe takes less than a long question; a program that reads nothing must not stop this one.
        let (questions, waiting) = mpsc::channel::<Vec<u8>>();
        thread::spawn(move || waiting.iter().all(|line| stdin.write_all(&line).is_ok()));
        Ok(Program { program: program.to_owned(), timeout, child, questions, lines, sent: 0, failed: false })
    }

    /// The objects of a picture.
    ///
    /// # Errors
    /// It ended, took longer than its time, said that it cannot, or wrote something else. After all but the third every
    /// further call fails too.
    pub fn detect(&mut self, image: &Path) -> Result<Vec<Detected>, ProgramError> {
        let reply = self.ask(json!({ "image": image }), image)?;
        let objects = reply.objects.ok_or_else(|| self.fail(format!("named no `objects` of {}", image.display())))?;
        let is_box = |[left, top, right, bottom]: [f64; 4]| left <= right && top <= bottom;
        let is_finite = |object: &Detected| object.corners.iter().chain([&object.score]).all(|x| x.is_finite());
        let is_odd = |object: &&Detected| !is_box(object.corners) || !is_finite(object);
        match objects.iter().find(is_odd) {
            Some(object) => Err(self.fail(format!(
                "gave the {} in {} the box {:?}, which is none",
                object.class,
                image.display(),
                object.corners
            ))),
            None => Ok(objects),
        }
    }

    /// The answer to a question about a picture, without the white space around it.
    ///
    /// # Errors
    /// As [`Program::detect`].
    pub fn answer(&mut self, image: &Path, question: &str) -> Result<String, ProgramError> {
        let reply = self.ask(json!({ "image": image, "question": question }), image)?;
        let answer = reply.answer.ok_or_else(|| self.fail(format!("gave no `answer` about {}", image.display())))?;
        Ok(answer.trim().to_owned())
    }

    fn fail(&self, reason: String) -> ProgramError {
        ProgramError { program: self.program.clone(), reason }
    }

    fn ask(&mut self, mut question: Value, image: &Path) -> Result<Reply, ProgramError> {
        if self.failed {
            return Err(self.fail("failed before".to_owned()));
        }
        self.failed = true;
        self.sent += 1;
        question["id"] = self.sent.to_string().into();
        let reply = self.exchange(&question, image).map_err(|reason| self.fail(reason))?;
        self.failed = false;
        match reply.error {
            Some(error) => Err(self.fail(format!("cannot read {}: {error}", image.display()))),
            None => Ok(reply),
        }
    }

    fn exchange(&mut self, question: &Value, image: &Path) -> Result<Reply, String> {
        let shown = |line: &[u8]| String::from_utf8_lossy(line).trim().chars().take(80).collect::<String>();
        if let Ok(line) = self.lines.try_recv() {
            return Err(format!("wrote `{}` without being asked", shown(&line)));
        }
        let about = image.display();
        let _ = self.questions.send(format!("{question}\n").into_bytes()); // if it has ended, there will be no reply
        let line = self.lines.recv_timeout(self.timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => {
                format!("gave no answer within {} s about {about}", self.timeout.as_secs_f64())
            }
            RecvTimeoutError::Disconnected => format!("ended before it answered about {about}"),
        })?;
        if line.len() as u64 == LINE_BYTES_MAX {
            return Err(format!("answered with more than {LINE_BYTES_MAX} bytes about {about}"));
        }
        let reply: Reply = serde_json::from_slice(&line)
            .map_err(|error| format!("answered with `{}` about {about}: {error}", shown(&line)))?;
        match question["id"] == reply.id {
            true => Ok(reply),
            false => Err(format!("was asked {}, about {about}, and answered {:?}", question["id"], reply.id)),
        }
    }
}

/// Lines as they come, until the output or the receiver ends.
fn pass_on(mut output: impl BufRead, lines: &mpsc::SyncSender<Vec<u8>>) {
    loop {
        let mut line = Vec::new();
        let read = output.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line);
        if !matches!(read, Ok(1..)) || lines.send(line).is_err() {
            return;
        }
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Ok(group) = self.child.id().try_into() {
            let group = nix::unistd::Pid::from_raw(group);
            let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

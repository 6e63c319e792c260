//! A program of anyone's own that answers a line of JSON with a line of JSON. It is the user's own and runs without a
//! jail; what it writes to standard error goes where the caller's goes.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

/// Longest line that it may answer with.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// A running program.
pub(crate) struct Lines {
    child: Child,
    questions: Sender<Vec<u8>>,
    lines: Receiver<Vec<u8>>,
    /// How many lines it was sent.
    sent: u64,
    timeout: Duration,
}

#[derive(Deserialize)]
struct Reply<T> {
    id: String,
    #[serde(flatten)]
    body: T,
}

impl Lines {
    /// Starts `program`, which has `timeout` for each answer.
    pub fn start(program: &Path, arguments: &[String], timeout: Duration) -> io::Result<Lines> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A group of its own: Ctrl-C is for the caller, and what the program starts is ended with it.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
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
        Ok(Lines { child, questions, lines, sent: 0, timeout })
    }

    /// Its reply to `question`, an object that gets an `id` here; messages say that it is about `name`.
    ///
    /// # Errors
    /// What it did instead. Its next line could belong to this question, so it is not to be asked again.
    pub fn ask<T: DeserializeOwned>(&mut self, mut question: Value, name: &str) -> Result<T, String> {
        let shown = |line: &[u8]| String::from_utf8_lossy(line).trim().chars().take(80).collect::<String>();
        if let Ok(line) = self.lines.try_recv() {
            return Err(format!("wrote `{}` without being asked", shown(&line)));
        }
        self.sent += 1;
        let id = self.sent.to_string();
        question["id"] = id.clone().into();
        let _ = self.questions.send(format!("{question}\n").into_bytes()); // if it has ended, there will be no reply
        let reply = self.lines.recv_timeout(self.timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => format!("gave no answer within {} s to {name}", self.timeout.as_secs_f64()),
            RecvTimeoutError::Disconnected => format!("ended before it answered {name}"),
        })?;
        if reply.len() as u64 == LINE_BYTES_MAX {
            return Err(format!("answered {name} with more than {LINE_BYTES_MAX} bytes"));
        }
        let Reply { id: answered, body } = serde_json::from_slice(&reply)
            .map_err(|error| format!("answered {name} with `{}`: {error}", shown(&reply)))?;
        match answered == id {
            true => Ok(body),
            false => Err(format!("was asked {id:?}, about {name}, and answered {answered:?}")),
        }
    }
}

impl Drop for Lines {
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

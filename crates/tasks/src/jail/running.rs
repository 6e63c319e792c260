//! A jail that runs, seen from outside: its first process, and what comes out of it.

use std::io::{self, Read};
use std::process::{Child, Command};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Instant;

use super::{GRACE, POLL, SIGNAL_BASE};

/// Bytes of standard error that are kept from its start and from its end.
const KEPT_BYTES: usize = 16 * 1024;
/// What a harness writes once it runs, and before it has read any code.
const READY: &[u8] = b"\nready\n";

/// One jail's processes; they end when this is dropped.
pub(super) struct Running {
    child: Child,
    code: Option<i32>,
    output: Receiver<Output>,
    /// Of standard output, where it is no pipe to another jail.
    printed: Option<Receiver<Output>>,
    over: Arc<AtomicBool>,
}

/// What was written to standard error, or to standard output.
#[derive(Default)]
pub(super) struct Output {
    /// Whether the harness began: without it no code has run.
    pub(super) ready: bool,
    tail: Vec<u8>,
    /// Bytes before the tail.
    lost: u64,
}

/// The judge's last line.
#[derive(Debug, PartialEq)]
pub(super) enum JudgeMessage {
    Passed,
    Wrong(String),
    /// The answer's process has closed its pipe.
    Lost,
}

impl Running {
    /// Starts `command`, whose standard error is a pipe and may hold `output_bytes` at most; standard output, too, if
    /// it is one of this process's own.
    pub(super) fn start(mut command: Command, output_bytes: u64) -> io::Result<Running> {
        let mut child = command.spawn()?;
        let stderr = child.stderr.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let (sender, output) = mpsc::channel();
        let over = Arc::new(AtomicBool::new(false));
        let stdout = child.stdout.take();
        let mut running = Running { child, code: None, output, printed: None, over: over.clone() };
        thread::Builder::new().spawn(move || drop(sender.send(read_output(stderr, output_bytes, &over))))?;
        if let Some(stdout) = stdout {
            let (sender, printed) = mpsc::channel();
            let over = running.over.clone();
            running.printed = Some(printed);
            thread::Builder::new().spawn(move || drop(sender.send(read_output(stdout, output_bytes, &over))))?;
        }
        Ok(running)
    }

    /// Whether it has written more than it may.
    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// The exit code, or [`SIGNAL_BASE`] and the signal, once it has ended.
    pub(super) fn ended(&mut self) -> io::Result<Option<i32>> {
        if self.code.is_none() {
            // A signal to the first process itself comes from outside the jail.
            self.code = self.child.try_wait()?.map(|status| status.code().unwrap_or(SIGNAL_BASE + 9));
        }
        Ok(self.code)
    }

    /// As [`Running::ended`]; `None` if that does not happen before `until`, and then it is killed.
    pub(super) fn wait(&mut self, until: Instant) -> io::Result<Option<i32>> {
        while self.ended()?.is_none() && Instant::now() < until && !self.is_over() {
            thread::sleep(POLL);
        }
        if self.code.is_none() {
            self.child.kill()?;
            self.child.wait()?;
        }
        Ok(self.code)
    }

    /// All that was written, once it has ended. The pipe closes with the last process, a moment after a kill.
    pub(super) fn output(&mut self) -> Output {
        self.output.recv_timeout(GRACE).unwrap_or_default()
    }

    /// The same of standard output.
    pub(super) fn printed(&mut self) -> Output {
        self.printed.as_ref().and_then(|printed| printed.recv_timeout(GRACE).ok()).unwrap_or_default()
    }

    /// Ends it at once.
    pub(super) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Whatever happened: with its first process the whole jail ends.
        self.kill();
    }
}

impl Output {
    /// The end of what the program itself wrote, and how many bytes before it are lost.
    pub(super) fn text(&self) -> (String, u64) {
        let own = self.tail.strip_prefix(READY).unwrap_or(&self.tail);
        (String::from_utf8_lossy(own).into_owned(), self.lost)
    }

    /// What the judge, who alone knows `number`, says in the end.
    pub(super) fn said(&self, number: &str) -> Option<JudgeMessage> {
        let text = String::from_utf8_lossy(&self.tail);
        let (_, said) = text.rsplit_once(&format!("\n{number} "))?;
        match said.trim_end().split_once(' ').unwrap_or((said.trim_end(), "")) {
            ("passed", _) => Some(JudgeMessage::Passed),
            ("lost", _) => Some(JudgeMessage::Lost),
            ("wrong", how) => Some(JudgeMessage::Wrong(how.to_owned())),
            _ => None,
        }
    }

    /// Where a jail failed, the stages' reason.
    pub(super) fn last_line(&self) -> String {
        let text = String::from_utf8_lossy(&self.tail);
        text.trim().lines().next_back().unwrap_or("it did not begin within its time").to_owned()
    }
}

/// Reads to the end, or until more than `bytes_max` were read.
fn read_output(mut stream: impl Read, bytes_max: u64, over: &AtomicBool) -> Output {
    let (mut output, mut head, mut total) = (Output::default(), Vec::new(), 0);
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        if head.len() < KEPT_BYTES {
            head.extend_from_slice(&buffer[..read]);
        }
        output.tail.extend_from_slice(&buffer[..read]);
        let excess = output.tail.len().saturating_sub(KEPT_BYTES);
        output.tail.drain(..excess);
        output.lost += excess as u64;
        total += read as u64;
        if total > bytes_max {
            over.store(true, Ordering::Relaxed);
            break;
        }
    }
    output.ready = head.windows(READY.len()).any(|part| part == READY);
    output
}

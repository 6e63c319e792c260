//! Running Python that nobody has read: no network, no files but a scratch folder in memory, no other processes; limits
//! on CPU and wall time, memory, disk and output.
//!
//! ```text
//! Jail::run   starts   PROGRAM jail-init outer …   new namespaces: mounts, processes, network, IPC, host name
//!             starts   PROGRAM jail-init inner …   process 1 there; read-only binds, pivot_root, the wall clock
//!             starts   PROGRAM jail-init exec …    limits, no user or capabilities, listed system calls; Python
//! ```
//! PROGRAM is this very binary (or a test's): each stage is a fresh process, so that nothing runs between a fork and an
//! exec, and no `unsafe` is needed. As root the namespaces are made directly and the code runs as nobody; otherwise
//! within a user namespace. Where the kernel refuses either, [`Jail::new`] says so and no code runs: there is no weaker
//! mode.
//!
//! A program passes if its last statement is reached. It shows that by a number drawn for this run, which the harness
//! writes when the program is done: leaving early, with whatever exit code, does not pass. Code that searches the
//! interpreter's frames could find the number; it runs in the same process as its tests, and no jail can prevent that.

#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod stages;

use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

#[cfg(target_os = "linux")]
pub use stages::main;

/// The hidden verb, where there is no jail.
#[cfg(not(target_os = "linux"))]
pub fn main(_arguments: &[String]) -> ! {
    std::process::exit(SETUP_FAILED)
}

/// First argument of the hidden verb that [`main`] serves.
pub const VERB: &str = "jail-init";

/// The program that reads source and number, runs the one and writes the other.
const HARNESS: &str = include_str!("harness.py");
/// Bytes of standard error that are kept for messages.
const STDERR_BYTES_MAX: usize = 16 * 1024;
/// How much longer than the wall limit the parent waits for the jail to end itself.
const GRACE: Duration = Duration::from_secs(5);

/// Exit codes of the stages; the code's own are 0 and 1.
const SETUP_FAILED: i32 = 200;
const TIME_LIMIT: i32 = 201;
const SIGNAL_BASE: i32 = 100;

/// What the code may use.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Of processor time.
    pub cpu_s: u64,
    /// Of real time. Well above `cpu_s`, so that a busy machine does not change a verdict.
    pub wall_s: u64,
    /// Address space of the process, in bytes.
    pub memory_bytes: u64,
    /// All files in the scratch folder, in bytes.
    pub disk_bytes: u64,
    /// Standard output and error together, in bytes.
    pub output_bytes: u64,
    /// Threads of the one process that there is.
    pub threads: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            cpu_s: 10,
            wall_s: 30,
            memory_bytes: 1 << 30,
            disk_bytes: 64 << 20,
            output_bytes: 1 << 20,
            threads: 16,
        }
    }
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It ran to its end.
    Passed,
    /// It raised, or left early; the last line of its standard error.
    Failed(String),
    /// It took longer than allowed, by either clock: which one runs out first depends on how busy the machine is.
    TimeLimit,
    /// It wrote more than allowed.
    OutputLimit,
    /// A signal ended it: its number.
    Killed(i32),
}

/// Why no code runs.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    /// The system lacks a means; code is not run without it.
    #[error("code is not run on this system: {reason}")]
    Refused {
        /// What is missing.
        reason: String,
    },
    /// A process cannot be started or watched.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The system's reason.
        source: io::Error,
    },
}

/// What the stages have to know, handed on as an argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Setup {
    /// Folders that are visible within, read-only, at their own places.
    folders: Vec<PathBuf>,
    /// Python's executable.
    python: PathBuf,
    /// An empty folder on which the jail's root is mounted, in its own namespace.
    root: PathBuf,
    limits: Limits,
}

/// A jail that works on this system.
pub struct Jail {
    program: PathBuf,
    setup: Setup,
    /// Held so that the folder is there; nothing is ever written into it.
    _root: tempfile::TempDir,
}

impl Jail {
    /// A jail whose stages are run by `program`: an executable that calls [`main`] when its first argument is [`VERB`].
    /// Tries it once.
    ///
    /// # Errors
    /// [`JailError::Refused`] where the kernel or the system lacks a means.
    pub fn new(program: PathBuf, python: &str, limits: Limits) -> Result<Jail, JailError> {
        if !cfg!(target_os = "linux") {
            return Err(JailError::Refused { reason: "the jail is made of Linux's namespaces and seccomp".to_owned() });
        }
        let root = tempfile::tempdir().map_err(|source| JailError::Io { action: "make an empty folder", source })?;
        let (python, folders) = interpreter(python)?;
        let setup = Setup { folders, python, root: root.path().to_owned(), limits };
        let jail = Jail { program, setup, _root: root };
        match jail.run("pass")? {
            Verdict::Passed => Ok(jail),
            verdict => Err(JailError::Refused { reason: format!("a program that does nothing ends with {verdict:?}") }),
        }
    }

    /// Runs `source` as a Python module. `Passed` if its end is reached.
    pub fn run(&self, source: &str) -> Result<Verdict, JailError> {
        let number = number();
        let setup = serde_json::to_string(&self.setup).expect("paths and numbers");
        let mut child = Command::new(&self.program)
            .args([VERB, "outer", &setup])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(|source| JailError::Io { action: "start the jail", source })?;
        let request = json!({ "source": source, "number": number }).to_string();
        let ended = self.watch(&mut child, request);
        // Whatever happened: with its first process the whole jail ends.
        let _ = child.kill();
        let _ = child.wait();
        self.verdict(ended?, &number)
    }

    fn watch(&self, child: &mut Child, request: String) -> Result<Ended, JailError> {
        let io = |source| JailError::Io { action: "watch the jail", source };
        let mut stdin = child.stdin.take().expect("piped");
        // A child that ends early does not read all of it.
        let feeder = thread::spawn(move || drop(stdin.write_all(request.as_bytes())));
        let left = Arc::new(AtomicU64::new(self.setup.limits.output_bytes + 64));
        let over = Arc::new(AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let streams: [Box<dyn Read + Send>; 2] =
            [Box::new(child.stdout.take().expect("piped")), Box::new(child.stderr.take().expect("piped"))];
        for (index, stream) in streams.into_iter().enumerate() {
            let (left, over, sender) = (left.clone(), over.clone(), sender.clone());
            thread::spawn(move || drop(sender.send((index, read_tail(stream, &left, &over)))));
        }
        let deadline = Instant::now() + Duration::from_secs(self.setup.limits.wall_s) + GRACE;
        let status = loop {
            if let Some(status) = child.try_wait().map_err(io)? {
                break Some(status);
            }
            if over.load(Ordering::Relaxed) || Instant::now() > deadline {
                child.kill().map_err(io)?;
                child.wait().map_err(io)?;
                break None;
            }
            thread::sleep(Duration::from_millis(2));
        };
        let _ = feeder.join();
        let mut texts = [Vec::new(), Vec::new()];
        for _ in 0..2 {
            // The pipes close with the last process; that takes a moment after a kill.
            let (index, text) = receiver.recv_timeout(GRACE).unwrap_or((0, Vec::new()));
            texts[index] = text;
        }
        let [stdout, stderr] = texts;
        Ok(Ended { status: status.map(|status| status.code()), over: over.load(Ordering::Relaxed), stdout, stderr })
    }

    fn verdict(&self, ended: Ended, number: &str) -> Result<Verdict, JailError> {
        let message = String::from_utf8_lossy(&ended.stderr).trim().to_owned();
        let last = message.lines().next_back().unwrap_or("it left before its end").to_owned();
        if ended.over {
            return Ok(Verdict::OutputLimit);
        }
        let Some(code) = ended.status else { return Ok(Verdict::TimeLimit) };
        Ok(match code {
            Some(0) if ended.stdout.ends_with(format!("\n{number}\n").as_bytes()) => Verdict::Passed,
            Some(0) => Verdict::Failed("it left before its end".to_owned()),
            Some(TIME_LIMIT) => Verdict::TimeLimit,
            Some(SETUP_FAILED) => return Err(JailError::Refused { reason: last }),
            Some(code) if code > SIGNAL_BASE => Verdict::Killed(code - SIGNAL_BASE),
            Some(_) => Verdict::Failed(last),
            None => Verdict::Killed(9),
        })
    }
}

struct Ended {
    /// `None`: killed by the parent. `Some(None)`: by a signal from elsewhere.
    status: Option<Option<i32>>,
    over: bool,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

/// Reads to the end or until nothing is left of the limit; keeps the last bytes.
fn read_tail(mut stream: impl Read, left: &AtomicU64, over: &AtomicBool) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0; 8192];
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..read]);
        let excess = kept.len().saturating_sub(STDERR_BYTES_MAX);
        kept.drain(..excess);
        if left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(read as u64)).is_err() {
            over.store(true, Ordering::Relaxed);
            break;
        }
    }
    kept
}

/// 128 bits that the code cannot guess: from the keys of a hash map, which the standard library draws from the system.
fn number() -> String {
    use std::hash::{BuildHasher, RandomState};
    let draw = || RandomState::new().hash_one(Instant::now());
    format!("{:016x}{:016x}", draw(), draw())
}

/// Python's executable, and the folders that it needs.
fn interpreter(python: &str) -> Result<(PathBuf, Vec<PathBuf>), JailError> {
    let ask = "import os, sys; print(os.path.realpath(sys.executable)); print(os.path.realpath(sys.base_prefix))";
    let refused = |reason: String| JailError::Refused { reason };
    let output = Command::new(python)
        .args(["-I", "-c", ask])
        .output()
        .map_err(|error| refused(format!("{python} cannot be started: {error}")))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = text.lines().map(PathBuf::from);
    let (Some(executable), Some(prefix)) = (lines.next(), lines.next()) else {
        let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(refused(format!("{python} does not say where it is: {reason}")));
    };
    let mut folders: Vec<PathBuf> = ["/usr", "/lib", "/lib64", "/bin"].map(PathBuf::from).to_vec();
    if !prefix.starts_with("/usr") {
        folders.push(prefix);
    }
    folders.retain(|folder| folder.exists());
    Ok((executable, folders))
}

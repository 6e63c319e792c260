//! Judging Python that nobody has read: no network, no files but a scratch folder in memory, no other processes; limits
//! on CPU and wall time, memory, disk, threads and output.
//!
//! ```text
//! Jail::judge  starts, twice, PROGRAM jail-init outer …   no inherited descriptors; new namespaces
//!              starts         PROGRAM jail-init inner …   process 1 there; read-only binds, pivot_root, the wall clock
//!              starts         PROGRAM jail-init exec …    limits, no user or capabilities, listed system calls; Python
//!
//!   jail of the judge    ── calls, as data ──▶   jail of the answer
//!   (tests, comparison)  ◀── values, as data ──  (the code)
//! ```
//! PROGRAM is this very binary (or a test's): each stage is a fresh process, so that nothing runs between a fork and an
//! exec, and no `unsafe` is needed. As root the namespaces are made directly and the code runs as a user that no other
//! process has; otherwise within a user namespace. Where the kernel refuses either, [`Jail::new`] says so and no code
//! runs: there is no weaker mode.
//!
//! [`Jail::run`] runs a program in one such jail, not judged: what it prints is wanted.
//!
//! **Who judges.** The tests run in another process than the answer, which they only reach over two pipes
//! (`harness/wire.py` has the format): their own objects, names and expected values never get to the answer, and of the
//! answer only values of listed built-in types get to them, rebuilt there. An object of another type stays where it is;
//! what stands for it in the tests can be called and read, and equals nothing. When the tests have passed, the first
//! call is made once more and compared with a number that the answer cannot know: this must fail.
//!
//! **Who says that a jail failed.** The harness writes `ready` to standard error before it has read any code. Without
//! it no code has run and the jail is to blame; with it the exit code and all that is written later are the code's, and
//! only ever make a verdict.

#[cfg(target_os = "linux")]
mod filter;
mod running;
#[cfg(target_os = "linux")]
mod stages;

use std::io::{self, PipeReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use serde_json::json;

use running::{JudgeMessage, Running};

#[cfg(target_os = "linux")]
pub use stages::main;

/// The hidden verb, where there is no jail.
#[cfg(not(target_os = "linux"))]
pub fn main(_arguments: &[String]) -> ! {
    std::process::exit(SETUP_FAILED)
}

/// First argument of the hidden verb that [`main`] serves.
pub const VERB: &str = "jail-init";

/// How much longer than the wall limit the parent waits for the jail to end itself.
const GRACE: Duration = Duration::from_secs(5);

/// Between two looks at the processes.
const POLL: Duration = Duration::from_millis(1);

/// Exit codes of the stages; whatever the code exits with, they make 0 or 1 of it.
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
    /// Threads of the one process that there is. Well above what answers need: a thread counts until the kernel has
    /// buried it, a moment after it was joined.
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
            threads: 64,
        }
    }
}

/// How an answer did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed the tests.
    Passed,
    /// It raised, was wrong, or left early: how.
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
    Refused { reason: String },
    /// A process cannot be started or watched.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        source: io::Error,
    },
}

/// What the stages have to know, handed on as an argument.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Setup {
    /// Folders that are visible within, read-only, at their own places.
    folders: Vec<PathBuf>,
    python: PathBuf,
    /// An empty folder on which the jail's root is mounted, in its own namespace.
    root: PathBuf,
    limits: Limits,
    part: Part,
    /// Of no other process: the user that the code runs as where users can be chosen. The outer stage fills it in.
    user: u32,
    /// Whether the kernel counts the threads of a user namespace apart. The outer stage fills it in.
    namespaces_count: bool,
}

/// What runs in a jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Part {
    /// The code that nobody has read.
    Answer,
    /// The tests, and the comparison of values.
    Judge,
    /// A program that is not judged: what it prints is wanted.
    Script,
}

#[cfg(target_os = "linux")]
impl Part {
    /// The Python program around it.
    fn harness(self) -> &'static str {
        match self {
            Part::Answer => concat!(include_str!("harness/wire.py"), include_str!("harness/answer.py")),
            Part::Judge => concat!(include_str!("harness/wire.py"), include_str!("harness/judge.py")),
            Part::Script => include_str!("harness/script.py"),
        }
    }
}

/// An answer and its tests.
#[derive(Clone, Copy, Debug)]
pub struct Submission<'a> {
    /// Python that defines what is asked for. It is run in a process that never sees the tests.
    pub answer: &'a str,
    /// Python that stands before the answer in the question, and which the tests may use: imports, helpers, the head of
    /// a function. Where it defines classes, the tests use the answer's own.
    pub before: &'a str,
    /// The function that is asked for.
    pub entry: &'a str,
    /// Python that raises if the answer is wrong. Names that it does not define are `before`'s, Python's or, last, the
    /// answer's. It has to call the answer once.
    pub tests: &'a str,
}

/// What came of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// The end of standard output, at most 16 KiB.
    pub stdout: String,
    /// The end of standard error, likewise.
    pub stderr: String,
    /// Bytes before these ends, of both together.
    pub lost: u64,
    pub end: RanEnd,
}

/// How a program ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RanEnd {
    Done,
    /// It raised, or left with another exit code than 0.
    Failed,
    /// By either clock.
    TimeLimit,
    OutputLimit,
    /// A signal ended it: its number.
    Killed(i32),
    /// Whoever waited for it wanted no more.
    Stopped,
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
        let (root_path, part) = (root.path().to_owned(), Part::Answer);
        let setup = Setup { folders, python, root: root_path, limits, part, user: 0, namespaces_count: false };
        let jail = Jail { program, setup, _root: root };
        let submission =
            Submission { answer: "def f(x): return [x]", before: "", entry: "f", tests: "assert f(1.5) == [1.5]" };
        match jail.judge(&submission)? {
            Verdict::Passed => Ok(jail),
            verdict => Err(JailError::Refused { reason: format!("a right answer ends with {verdict:?}") }),
        }
    }

    /// Runs the answer in one jail and the tests in another; see [`Submission`].
    ///
    /// # Errors
    /// [`JailError::Refused`] where a jail cannot be made or does not start within its time; never for anything that
    /// the answer does.
    pub fn judge(&self, submission: &Submission) -> Result<Verdict, JailError> {
        let io = |source| JailError::Io { action: "start the jail", source };
        let number = number();
        let (questions, asked) = io::pipe().map_err(io)?;
        let (replies, mut replied) = io::pipe().map_err(io)?;
        let output_bytes = self.setup.limits.output_bytes + 1024; // for the harness's own lines
        let started = |part, stdin, stdout: io::PipeWriter| {
            Running::start(self.command(part, stdin, stdout), output_bytes).map_err(io)
        };
        let mut judge = started(Part::Judge, replies, asked)?;
        let mut answer = started(Part::Answer, questions, replied.try_clone().map_err(io)?)?;
        let request = json!({
            "number": number,
            "source": submission.answer,
            "before": submission.before,
            "entry": submission.entry,
            "tests": submission.tests,
        });
        // The answer's process says nothing before the judge, which has then read this, asks it. A judge that ends
        // early does not read all of it.
        let feeder = thread::spawn(move || drop(replied.write_all(format!("{request}\n").as_bytes())));
        let verdict = self.watch(&mut judge, &mut answer, &number);
        drop((judge, answer));
        let _ = feeder.join();
        verdict
    }

    /// Runs a program by itself, and reads what it prints. `stop`: asked all the time whether to end it.
    ///
    /// # Errors
    /// As [`Jail::judge`].
    pub fn run(&self, program: &str, stop: &dyn Fn() -> bool) -> Result<Ran, JailError> {
        let io = |source| JailError::Io { action: "start the jail", source };
        let (given, mut gives) = io::pipe().map_err(io)?;
        let command = self.command(Part::Script, given, Stdio::piped());
        let mut running = Running::start(command, self.setup.limits.output_bytes + 1024).map_err(io)?;
        let program = program.to_owned();
        // A program that does not begin does not read all of it.
        let feeder = thread::spawn(move || drop(gives.write_all(program.as_bytes())));
        let end = self.watch_script(&mut running, stop)?;
        running.kill();
        let _ = feeder.join();
        let (output, printed) = (running.output(), running.printed());
        if !output.ready && end != RanEnd::Stopped {
            return Err(JailError::Refused { reason: output.last_line() });
        }
        let ((stderr, lost), (stdout, lost_too)) = (output.text(), printed.text());
        Ok(Ran { stdout, stderr, lost: lost + lost_too, end })
    }

    fn watch_script(&self, running: &mut Running, stop: &dyn Fn() -> bool) -> Result<RanEnd, JailError> {
        let io = |source| JailError::Io { action: "watch the jail", source };
        let deadline = Instant::now() + Duration::from_secs(self.setup.limits.wall_s) + GRACE;
        loop {
            if running.is_over() {
                return Ok(RanEnd::OutputLimit);
            }
            if stop() {
                return Ok(RanEnd::Stopped);
            }
            match running.ended().map_err(io)? {
                Some(SETUP_FAILED) => {
                    return Err(JailError::Refused { reason: running.output().last_line() });
                }
                Some(0) => return Ok(RanEnd::Done),
                Some(TIME_LIMIT) => return Ok(RanEnd::TimeLimit),
                Some(code) if code > SIGNAL_BASE => return Ok(RanEnd::Killed(code - SIGNAL_BASE)),
                Some(_) => return Ok(RanEnd::Failed),
                None if Instant::now() > deadline => return Ok(RanEnd::TimeLimit),
                None => thread::sleep(POLL),
            }
        }
    }

    /// What starts one of the jails.
    fn command(&self, part: Part, stdin: PipeReader, stdout: impl Into<Stdio>) -> Command {
        let mut setup = Setup { part, ..self.setup.clone() };
        if part == Part::Judge {
            setup.limits.wall_s += GRACE.as_secs(); // it waits for the other
        }
        let mut command = Command::new(&self.program);
        let setup = serde_json::to_string(&setup).expect("paths and numbers");
        command.args([VERB, "outer", &setup]).env_clear().stdin(stdin).stdout(stdout).stderr(Stdio::piped());
        command
    }

    fn watch(&self, judge: &mut Running, answer: &mut Running, number: &str) -> Result<Verdict, JailError> {
        let io = |source| JailError::Io { action: "watch the jail", source };
        let limits = &self.setup.limits;
        let deadline = Instant::now() + Duration::from_secs(limits.wall_s) + 2 * GRACE;
        let code = loop {
            if judge.is_over() || answer.is_over() {
                return Ok(Verdict::OutputLimit);
            }
            match judge.ended().map_err(io)? {
                Some(code) => break code,
                None if Instant::now() > deadline => return Ok(Verdict::TimeLimit),
                None => thread::sleep(POLL),
            }
        };
        let output = judge.output();
        let said = output.said(number);
        if !output.ready || code == SETUP_FAILED {
            return Err(JailError::Refused { reason: output.last_line() });
        }
        // With the judge its questions end, and with them the answer's process. How that ended is the verdict only
        // where the judge has lost it.
        let lost = matches!(said, Some(JudgeMessage::Lost) | None);
        let until = if lost { deadline } else { Instant::now() + GRACE };
        let answer_code = answer.wait(until).map_err(io)?;
        let output = answer.output();
        if answer.is_over() || judge.is_over() {
            return Ok(Verdict::OutputLimit);
        }
        // Tests that end without having asked anything do not wait for the other jail.
        if lost && !output.ready {
            return Err(JailError::Refused { reason: output.last_line() });
        }
        Ok(match said {
            Some(JudgeMessage::Passed) => Verdict::Passed,
            Some(JudgeMessage::Wrong(how)) => Verdict::Failed(how),
            Some(JudgeMessage::Lost) => verdict_of(answer_code),
            None => verdict_of(Some(code)),
        })
    }
}

/// Of a process whose end is the verdict; `None`: it did not end by itself.
fn verdict_of(code: Option<i32>) -> Verdict {
    match code {
        None | Some(TIME_LIMIT) => Verdict::TimeLimit,
        Some(code) if code > SIGNAL_BASE && code < SETUP_FAILED => Verdict::Killed(code - SIGNAL_BASE),
        Some(_) => Verdict::Failed("it left before its end".to_owned()),
    }
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

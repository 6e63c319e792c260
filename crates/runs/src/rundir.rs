//! The directory of a run, and the lock that lets one process at a time use it.
//!
//! ```text
//! runs/NAME/
//!   run.json          format of the directory, version of the program that made it
//!   recipe.toml       as resolved
//!   plan.json         what was expected
//!   ledger.jsonl      what was consumed
//!   lock              locked by the process that uses the run, whose id it holds
//!   STAGE/…
//! ```

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::ledger::{self, Ledger};
use crate::receipt::{RECEIPT, Receipt};
use crate::recipe::Recipe;

pub(crate) use crate::error::json_text;
pub use crate::error::{FORMAT, RunError, io_hint, write_json};

#[derive(Serialize, Deserialize)]
struct RunFile {
    format: u32,
    wels_version: String,
}

/// A run's directory, locked for this process until dropped.
#[derive(Debug)]
pub struct RunDir {
    path: PathBuf,
    recipe: Recipe,
    /// None of a copy without a lock file, which nobody works on.
    _lock: Option<File>,
    read_only: bool,
}

/// The recipe as resolved.
const RECIPE: &str = "recipe.toml";

/// The file by which ranks of several machines find out whether they see one directory. It is gone once they have.
pub const RANKS: &str = "ranks";

/// What may be in the directory of a run whose ledger has no line yet, in the order in which it comes.
const BEFORE_THE_FIRST_LINE: [&str; 6] = ["lock", "ledger.jsonl", "run.json", RECIPE, RANKS, "plan.json"];

impl RunDir {
    /// Goes on with the run at `path`.
    ///
    /// # Errors
    /// [`RunError::Locked`] while another process uses it; [`RunError::Damaged`] if its ledger is gone, or shorter than
    /// the receipt says; [`RunError::Changed`] if its recipe is not the receipt's but for keys that change no result.
    pub fn open(path: &Path) -> Result<RunDir, RunError> {
        refuse_what_is_no_run(path)?;
        let lock = lock(path)?;
        check_format(path)?;
        let recipe = Recipe::load(&path.join(RECIPE))?;
        refuse_changes(path, &recipe)?;
        RunDir::opened(path, recipe, lock)
    }

    /// Looks at the run at `path` and changes nothing there, not even a lock file: it may be a copy on a disk that
    /// cannot be written. Where there is a lock file, no process works on the run meanwhile.
    ///
    /// # Errors
    /// [`RunError::Locked`] while a process works on it.
    pub fn open_read_only(path: &Path) -> Result<RunDir, RunError> {
        refuse_what_is_no_run(path)?;
        let lock = lock_shared(path)?;
        check_format(path)?;
        let recipe = Recipe::load(&path.join(RECIPE))?;
        Ok(RunDir { path: path.to_path_buf(), recipe, _lock: lock, read_only: true })
    }

    /// Looks at the run at `path` on another rank than the one that works on it, and has it locked.
    ///
    /// # Errors
    /// If it is no run, or of another version of the format.
    pub fn open_beside(path: &Path) -> Result<RunDir, RunError> {
        refuse_what_is_no_run(path)?;
        check_format(path)?;
        let recipe = Recipe::load(&path.join(RECIPE))?;
        Ok(RunDir { path: path.to_path_buf(), recipe, _lock: None, read_only: true })
    }

    /// Starts `runs/NAME` for `recipe`, or goes on with it if it is there and its recipe is the same but for keys that
    /// change no result.
    ///
    /// # Errors
    /// As [`open`](RunDir::open); [`RunError::Changed`]; [`RunError::Damaged`] for a folder with something in it that
    /// is no run: a run is not begun on top of another's files.
    pub fn open_or_create(runs: &Path, recipe: &Recipe) -> Result<RunDir, RunError> {
        let path = runs.join(&recipe.run.name);
        fs::create_dir_all(&path).map_err(RunError::io("create the run's directory", &path))?;
        let lock = lock(&path)?;
        let saved = path.join(RECIPE);
        if path.join("run.json").exists() {
            check_format(&path)?;
        } else {
            create(&path)?;
        }
        refuse_changes(&path, recipe)?;
        files::write_atomically(&saved, recipe.to_toml().as_bytes()).map_err(RunError::io("write", &saved))?;
        RunDir::opened(&path, recipe.clone(), lock)
    }

    fn opened(path: &Path, recipe: Recipe, lock: File) -> Result<RunDir, RunError> {
        files::remove_unfinished(path).map_err(RunError::io("clean up", path))?;
        check_ledger(path)?;
        Ok(RunDir { path: path.to_path_buf(), recipe, _lock: Some(lock), read_only: false })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The directory of a stage, created if need be and cleaned of what a crash left half-written.
    ///
    /// # Panics
    /// If the run was opened [read-only](RunDir::open_read_only).
    pub fn stage(&self, name: &str) -> Result<PathBuf, RunError> {
        assert!(!self.read_only, "the run {} is only looked at", self.path.display());
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(RunError::io("create", &path))?;
        files::remove_unfinished(&path).map_err(RunError::io("clean up", &path))?;
        Ok(path)
    }

    /// Writes `plan.json`.
    ///
    /// # Panics
    /// If the run was opened [read-only](RunDir::open_read_only).
    pub fn write_plan(&self, plan: &impl Serialize) -> Result<(), RunError> {
        assert!(!self.read_only, "the run {} is only looked at", self.path.display());
        write_json(&self.path.join("plan.json"), plan)
    }
}

fn refuse_what_is_no_run(path: &Path) -> Result<(), RunError> {
    match path.join("run.json").is_file() && path.join(RECIPE).is_file() {
        true => Ok(()),
        false => Err(RunError::NotARun { path: path.to_path_buf() }),
    }
}

/// Fails if a run that has begun would go on with another recipe. What its checkpoints were made by the receipt says,
/// once there is one: `recipe.toml` may be edited, for a budget say.
fn refuse_changes(path: &Path, recipe: &Recipe) -> Result<(), RunError> {
    let (receipt, saved) = (path.join(RECEIPT), path.join(RECIPE));
    let begun = match receipt.exists() {
        true => Receipt::read(&receipt)?.recipe()?,
        false if saved.exists() => Recipe::load(&saved)?,
        false => return Ok(()),
    };
    let changes = recipe.changes_since(&begun);
    if changes.is_empty() { Ok(()) } else { Err(RunError::Changed { path: path.to_path_buf(), changes }) }
}

/// Makes the files that a run begins with: the ledger first, so that a run without one has lost it.
fn create(path: &Path) -> Result<(), RunError> {
    let file = path.join("run.json");
    if let Some(name) = other_than(path, &BEFORE_THE_FIRST_LINE[..2])? {
        return Err(RunError::Damaged {
            path: file,
            message: format!("it is missing, and there is {name}"),
            hint: "restore it from a copy, or give the recipe another run.name: no run is begun on top of other files"
                .into(),
        });
    }
    Ledger::create(&path.join("ledger.jsonl"))?;
    files::write_atomically(&file, run_json(env!("CARGO_PKG_VERSION")).as_bytes()).map_err(RunError::io("write", &file))
}

/// The first name in a run's directory that is none of `names`, in the order of the alphabet.
fn other_than(path: &Path, names: &[&str]) -> Result<Option<String>, RunError> {
    let mut others = Vec::new();
    for entry in fs::read_dir(path).map_err(RunError::io("list", path))? {
        let name = entry.map_err(RunError::io("list", path))?.file_name().to_string_lossy().into_owned();
        if !names.contains(&&*name) && !name.ends_with(files::UNFINISHED) {
            others.push(name);
        }
    }
    Ok(others.into_iter().min())
}

/// Refuses to go on with a run whose ledger is gone, emptied or cut short: going on would write a receipt that hides
/// it.
fn check_ledger(run: &Path) -> Result<(), RunError> {
    let path = run.join("ledger.jsonl");
    let damaged = |message: String| RunError::Damaged { path: path.clone(), message, hint: ledger::HINT.into() };
    let ledger = Ledger::open(&path)?;
    if ledger.entries().is_empty() {
        if let Some(name) = other_than(run, &BEFORE_THE_FIRST_LINE)? {
            return Err(damaged(format!("it is empty, and the run has {name}")));
        }
        // As the first line will say: the program may have been replaced since the run was made.
        let file = run.join("run.json");
        let written = files::write_atomically(&file, run_json(env!("CARGO_PKG_VERSION")).as_bytes());
        return written.map_err(RunError::io("write", &file));
    }
    let receipt = run.join(RECEIPT);
    if !receipt.exists() {
        // It is written behind the first line and before any work.
        return match ledger.entries().iter().all(|entry| entry.stage.is_empty()) {
            true => Ok(()),
            false => Err(RunError::Damaged {
                path: receipt,
                message: "it is missing".into(),
                hint: "restore it from a copy: it says how far the ledger went".into(),
            }),
        };
    }
    let receipt = Receipt::read(&receipt)?;
    match ledger.hash_of_line(receipt.ledger_lines) {
        Some(hash) if hash == receipt.ledger_head => Ok(()),
        Some(_) => Err(damaged(format!("line {} is not the one that {RECEIPT} names", receipt.ledger_lines))),
        None => {
            let lines = ledger.entries().len();
            Err(damaged(format!("it has {lines} lines, and {RECEIPT} knows of {}", receipt.ledger_lines)))
        }
    }
}

/// `run.json` as the program of this version writes it.
pub(crate) fn run_json(wels_version: &str) -> String {
    json_text(&RunFile { format: FORMAT, wels_version: wels_version.into() })
}

/// Refuses the directory of a newer program, and what is no run.
pub(crate) fn check_format(path: &Path) -> Result<(), RunError> {
    let file = path.join("run.json");
    if !file.is_file() {
        return Err(RunError::NotARun { path: path.to_path_buf() });
    }
    let text = files::read_text(&file, files::SMALL_BYTES_MAX).map_err(RunError::io("read", &file))?;
    let run: RunFile = serde_json::from_str(&text).map_err(|error| RunError::Damaged {
        path: file,
        message: error.to_string(),
        hint: format!("a run of this program holds {{\"format\": {FORMAT}, …}} there"),
    })?;
    match run.format > FORMAT {
        true => Err(RunError::Newer { path: path.to_path_buf(), found: run.format }),
        false => Ok(()),
    }
}

/// Locks the run. The system lets go of the lock when the process ends, however it ends.
fn lock(path: &Path) -> Result<File, RunError> {
    let file = path.join("lock");
    files::refuse_irregular(&file).map_err(RunError::io("lock", &file))?;
    let mut lock = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .open(&file)
        .map_err(RunError::io("write in the run's directory:", &file))?;
    match lock.try_lock() {
        Ok(()) => {
            let write = |lock: &mut File| lock.set_len(0).and_then(|()| write!(lock, "{}", std::process::id()));
            write(&mut lock).map_err(RunError::io("write", &file))?;
            Ok(lock)
        }
        Err(error) => Err(not_locked(path, &mut lock, error)),
    }
}

/// Locks the run against processes that work on it, as others that only look do too. None where there is no lock file,
/// or the file system has no locks: nobody works on such a run.
fn lock_shared(path: &Path) -> Result<Option<File>, RunError> {
    let file = path.join("lock");
    files::refuse_irregular(&file).map_err(RunError::io("lock", &file))?;
    let mut lock = match File::open(&file) {
        Ok(lock) => lock,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(RunError::io("open", &file)(error)),
    };
    match lock.try_lock_shared() {
        Ok(()) => Ok(Some(lock)),
        Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => Ok(None),
        Err(error) => Err(not_locked(path, &mut lock, error)),
    }
}

fn not_locked(path: &Path, lock: &mut File, error: TryLockError) -> RunError {
    match error {
        TryLockError::WouldBlock => {
            let mut pid = String::new();
            // The id is a courtesy: without it the message is still true.
            let _ = lock.take(20).read_to_string(&mut pid);
            RunError::Locked { path: path.to_path_buf(), pid: pid.trim().parse().ok() }
        }
        TryLockError::Error(source) => RunError::io("lock", &path.join("lock"))(source),
    }
}

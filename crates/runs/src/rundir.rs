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
use thiserror::Error;

use crate::files;
use crate::recipe::{Recipe, RecipeError};

/// The format of run directories that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What can go wrong with a run on disk.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum RunError {
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    #[error("another process{} is using the run {}", pid_in_words(pid), path.display())]
    Locked { path: PathBuf, pid: Option<u32> },
    #[error("{} has run format {found}, and this program reads up to {FORMAT}", path.display())]
    Newer { path: PathBuf, found: u32 },
    #[error("{} is not a run", path.display())]
    NotARun { path: PathBuf },
    #[error("the recipe of the run {} has changed since it began: {}", path.display(), changes.join("; "))]
    Changed { path: PathBuf, changes: Vec<String> },
    #[error("the run's own recipe is damaged")]
    Recipe(#[from] RecipeError),
    #[error("{} is damaged: {message}", path.display())]
    Damaged { path: PathBuf, message: String, hint: String },
}

fn pid_in_words(pid: &Option<u32>) -> String {
    pid.map_or(String::new(), |pid| format!(" ({pid})"))
}

impl RunError {
    /// For `map_err`: an I/O error with what was being done.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RunError {
        let path = path.to_path_buf();
        move |source| RunError::Io { action, path, source }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            RunError::Io { source, .. } => io_hint(source).map(str::to_string),
            RunError::Locked { .. } => Some("wait for it, end it, or give the run another run.name".into()),
            RunError::Newer { .. } => Some("use the newer program that made it".into()),
            RunError::NotARun { .. } => Some("a run's directory holds run.json and recipe.toml".into()),
            RunError::Changed { .. } => Some(
                "give the changed recipe another run.name, or remove the run's directory to start over; only keys that \
                 change no bit of the result, such as pretrain.micro_batch or checkpoint_every, can change under a run"
                    .into(),
            ),
            RunError::Recipe(error) => error.hint(),
            RunError::Damaged { hint, .. } => Some(hint.clone()),
        }
    }
}

/// What to do about an I/O error.
pub fn io_hint(error: &io::Error) -> Option<&'static str> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            Some("make room and give the same command again: the run goes on from its last checkpoint")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("choose another place for runs with --runs DIR, or make this one writable")
        }
        io::ErrorKind::NotFound => Some("check the path"),
        _ => None,
    }
}

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
    _lock: File,
}

impl RunDir {
    /// Goes on with the run at `path`.
    pub fn open(path: &Path) -> Result<RunDir, RunError> {
        if !path.join("run.json").is_file() || !path.join("recipe.toml").is_file() {
            return Err(RunError::NotARun { path: path.to_path_buf() });
        }
        let lock = lock(path)?;
        check_format(path)?;
        let recipe = Recipe::load(&path.join("recipe.toml"))?;
        RunDir::opened(path, recipe, lock)
    }

    /// Starts `runs/NAME` for `recipe`, or goes on with it if it is there and its recipe is the same but for keys that
    /// change no result.
    pub fn open_or_create(runs: &Path, recipe: &Recipe) -> Result<RunDir, RunError> {
        let path = runs.join(&recipe.run.name);
        fs::create_dir_all(&path).map_err(RunError::io("create the run's directory", &path))?;
        let lock = lock(&path)?;
        let saved = path.join("recipe.toml");
        if path.join("run.json").exists() {
            check_format(&path)?;
        } else {
            let file = RunFile { format: FORMAT, wels_version: env!("CARGO_PKG_VERSION").into() };
            write_json(&path.join("run.json"), &file)?;
        }
        if saved.exists() {
            let changes = recipe.changes_since(&Recipe::load(&saved)?);
            if !changes.is_empty() {
                return Err(RunError::Changed { path, changes });
            }
        }
        files::write_atomically(&saved, recipe.to_toml().as_bytes()).map_err(RunError::io("write", &saved))?;
        RunDir::opened(&path, recipe.clone(), lock)
    }

    fn opened(path: &Path, recipe: Recipe, lock: File) -> Result<RunDir, RunError> {
        files::remove_unfinished(path).map_err(RunError::io("clean up", path))?;
        Ok(RunDir { path: path.to_path_buf(), recipe, _lock: lock })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The resolved recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// The directory of a stage, created if need be and cleaned of what a crash left half-written.
    pub fn stage(&self, name: &str) -> Result<PathBuf, RunError> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(RunError::io("create", &path))?;
        files::remove_unfinished(&path).map_err(RunError::io("clean up", &path))?;
        Ok(path)
    }

    /// Writes `plan.json`.
    pub fn write_plan(&self, plan: &impl Serialize) -> Result<(), RunError> {
        write_json(&self.path.join("plan.json"), plan)
    }
}

/// Replaces a file by a value as indented JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    let mut text = serde_json::to_string_pretty(value).expect("plain data");
    text.push('\n');
    files::write_atomically(path, text.as_bytes()).map_err(RunError::io("write", path))
}

/// Refuses the directory of a newer program, and what is no run.
pub(crate) fn check_format(path: &Path) -> Result<(), RunError> {
    let file = path.join("run.json");
    if !file.is_file() {
        return Err(RunError::NotARun { path: path.to_path_buf() });
    }
    let text = fs::read_to_string(&file).map_err(RunError::io("read", &file))?;
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
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let _ = lock.read_to_string(&mut pid); // the id is a courtesy: without it the message is still true
            Err(RunError::Locked { path: path.to_path_buf(), pid: pid.trim().parse().ok() })
        }
        Err(TryLockError::Error(source)) => Err(RunError::io("lock", &file)(source)),
    }
}

//! What can go wrong with a run on disk, and values as files of JSON.

use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use thiserror::Error;

use crate::files;
use crate::recipe::RecipeError;

/// The format of run directories that this program writes, and the newest that it reads.
pub const FORMAT: u32 = 1;

/// What can go wrong with a run on disk.
#[derive(Debug, Error)]
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
            Some("make room and give the same command again; a run goes on from its last checkpoint")
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            Some("make this place readable and writable, or choose another one (of runs with --runs DIR)")
        }
        io::ErrorKind::NotFound => Some("check the path"),
        _ => None,
    }
}

/// Replaces a file by a value as indented JSON.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<(), RunError> {
    files::write_atomically(path, json_text(value).as_bytes()).map_err(RunError::io("write", path))
}

/// A value as indented JSON, with a line's end.
pub(crate) fn json_text(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).expect("plain data") + "\n"
}

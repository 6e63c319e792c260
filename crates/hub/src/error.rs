//! What can go wrong between a name and a model.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::id::{in_words, is_dataset};

/// Why there is no model. No message shows the token.
#[derive(Debug, Error)]
pub enum HubError {
    /// The environment cannot be followed.
    #[error("{problem}")]
    Setting { problem: String },
    /// The hub does not know the model or dataset, or does not show it to everybody.
    #[error("{endpoint} has no {}, or it is private", in_words(.id))]
    NoModel { endpoint: String, id: String },
    /// No branch, tag or commit of that name.
    #[error("{id} has no revision {revision}")]
    NoRevision { id: String, revision: String },
    /// The file is not in the repository.
    #[error("{id} has no file {file}")]
    NoFile { id: String, file: String },
    /// Files that are no data.
    #[error("{id} has {file}, and that is neither JSON, JSON lines, CSV, Parquet nor text")]
    NotData { id: String, file: String },
    /// A pattern where one file is asked for.
    #[error("{id} has several files {pattern}: {}", .files.join(", "))]
    Several { id: String, pattern: String, files: Vec<String> },
    /// Terms have to be agreed to first.
    #[error("{endpoint} gives {id} only to accounts that have been granted access")]
    Gated { endpoint: String, id: String },
    /// No answer.
    #[error("cannot reach {url}: {reason}")]
    Unreachable { url: String, reason: String },
    /// An answer that helps nobody.
    #[error("{url} answers {status}")]
    Status { url: String, status: u16 },
    /// An answer that is not the hub's.
    #[error("{url} answers what a hub does not: {problem}")]
    Answer { url: String, problem: String },
    /// A path out of its folder, in a list of files or an index.
    #[error("{id} names a file {file:?}, which would lie outside of its folder")]
    UnsafePath { id: String, file: String },
    /// Weights as programs only.
    #[error("{id} has its weights only as pickles ({}), which can run any program when they are read", .files.join(", "))]
    OnlyPickles { id: String, files: Vec<String> },
    /// Nothing that would be a model.
    #[error("{id} has neither model.safetensors, nor an index of safetensors files, nor GGUF files that can be read")]
    NoWeights { id: String },
    /// The quantisation is not there.
    #[error("{id} has no GGUF file {asked}; there are {}", .there.join(", "))]
    NoQuantisation { id: String, asked: String, there: Vec<String> },
    /// The list of shards cannot be used.
    #[error("the index of {id} cannot be read: {problem}")]
    Index { id: String, problem: String },
    /// Nothing to check the file against.
    #[error("{url} comes without a hash of its contents")]
    NoHash { url: String },
    /// The hub says two things about a file.
    #[error("{url} is {now} now and was {before} in the list of files")]
    Changed { url: String, before: String, now: String },
    /// The contents are not what was announced. They are removed.
    #[error("{url} came with the hash {found} instead of {expected}")]
    WrongHash { url: String, expected: String, found: String },
    /// Nothing in the cache, and nobody to ask.
    #[error("{id} is not in the cache (revision {revision}), or not whole, and HF_HUB_OFFLINE is set")]
    NotCached { id: String, revision: String },
    /// The cache cannot be read or written.
    #[error("cannot {action} {}", .path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}

impl HubError {
    /// For `map_err`.
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HubError {
        move |source| HubError::Io { action, path: path.to_owned(), source }
    }

    /// What to do about it. `None` for most of [`HubError::Io`].
    pub fn hint(&self) -> Option<String> {
        use io::ErrorKind::*;
        Some(match self {
            HubError::Setting { .. } => "docs/guide.md names the variables that are read".into(),
            HubError::NoModel { id, .. } => {
                let what = if is_dataset(id) { "dataset" } else { "model" };
                format!("check the id; for a private {what}, set HF_TOKEN")
            }
            HubError::NoRevision { .. } => {
                "leave out @REVISION for the newest, or name a branch, a tag or a commit".into()
            }
            HubError::Gated { endpoint, id } => {
                format!("ask for access at {endpoint}/{id}, then set HF_TOKEN to a token of that account")
            }
            HubError::Unreachable { .. } => "check the network and HF_ENDPOINT; what has come so far is kept".into(),
            HubError::Status { .. } | HubError::Answer { .. } => "try again later, or check HF_ENDPOINT".into(),
            HubError::UnsafePath { .. } => "do not use this repository".into(),
            HubError::OnlyPickles { .. } => "look for the same model in safetensors or GGUF".into(),
            HubError::NotData { .. } => "nothing else of a dataset is fetched".into(),
            HubError::Several { .. } => "name one of them".into(),
            HubError::NoWeights { .. } | HubError::NoFile { .. } => "check what the repository has".into(),
            HubError::NoQuantisation { .. } => "name one of these".into(),
            HubError::Index { .. } => "use another revision, or tell those who publish the model".into(),
            HubError::NoHash { .. } => "check HF_ENDPOINT: a mirror has to pass on the hub's ETag".into(),
            HubError::Changed { .. } => "give the same command again".into(),
            HubError::WrongHash { .. } => {
                "give the same command again; if that does not help, check HF_ENDPOINT".into()
            }
            HubError::NotCached { id, .. } if is_dataset(id) => {
                "give the same command once without HF_HUB_OFFLINE".into()
            }
            HubError::NotCached { .. } => "fetch it once with wels pull, without HF_HUB_OFFLINE".into(),
            HubError::Io { source, .. } => match source.kind() {
                StorageFull | QuotaExceeded | FileTooLarge => {
                    "make room, or set HF_HOME to another place, and give the same command again: what has come is kept"
                        .into()
                }
                PermissionDenied | ReadOnlyFilesystem => "set HF_HOME to a place that can be written".into(),
                _ => return None,
            },
        })
    }
}

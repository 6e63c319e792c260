//! Models by name, from a Hugging Face hub: which files of a repository make a model, and how they come into the cache
//! that `huggingface_hub` for Python keeps too.
//!
//! Only weights that are data, and text, are ever fetched: `select` has the list. Every file is checked against its
//! hash before it gets its name.

#![forbid(unsafe_code)]

mod name;
mod short;

mod settings;

mod select;

mod cache;

mod client;

mod download;

mod error;

use std::path::{Path, PathBuf};

pub use crate::error::HubError;
pub use crate::name::{Name, Pick};
pub use crate::settings::Settings;
pub use crate::short::{SHORT_NAMES, ShortName};

use crate::cache::Repository;
use crate::client::Client;
use crate::select::{Choice, Entry, choose};

/// What happens while a model is fetched.
#[derive(Debug)]
pub enum Event<'a> {
    /// A GGUF file was chosen from several: its quantisation and bytes, and whether it fits what memory is left.
    Chosen { quantisation: &'a str, bytes: u64, fits: bool },
    /// A file begins, at `done` of `bytes`.
    Begin { file: &'a str, done: u64, bytes: u64 },
    /// So many bytes of the file are there.
    At { done: u64 },
    /// The file is checked and in the cache.
    Done { file: &'a str, bytes: u64 },
    /// The connection failed, and is tried again.
    Again { reason: &'a str },
    /// Another process fetches this file.
    Waiting { file: &'a str },
    /// The hub cannot be reached, and the cache has the model.
    FromCache { reason: &'a str },
}

/// Told what happens.
pub type Watch<'a> = &'a mut dyn FnMut(Event<'_>);

/// A hub and the cache of what was fetched from it.
pub struct Hub {
    settings: Settings,
    client: Client,
}

impl Hub {
    /// The hub that `settings` name. Nothing is asked yet.
    ///
    /// # Errors
    /// [`HubError::Setting`] if the address or the token is none.
    pub fn new(settings: Settings) -> Result<Hub, HubError> {
        let client = Client::new(&settings)?;
        Ok(Hub { settings, client })
    }

    /// Fetches what is not in the cache yet. The directory of a model in safetensors, or the GGUF file, the first part
    /// of it if there are several. `memory_bytes`: of several quantisations, the best that takes half of that.
    ///
    /// # Errors
    /// All of [`HubError`]. What was fetched until then is kept, and the next call goes on behind it.
    pub fn pull(&self, name: &Name, memory_bytes: Option<u64>, watch: Watch) -> Result<PathBuf, HubError> {
        let repository = Repository::new(&self.settings.cache, &name.id);
        if self.settings.offline {
            return cached(&repository, name, memory_bytes, watch);
        }
        let (commit, entries) = match self.client.list(&name.id, &name.revision) {
            Err(HubError::Unreachable { url, reason }) => {
                // Whether the cache has the model shows before anything is said.
                let Ok(path) = cached(&repository, name, memory_bytes, &mut |_| ()) else {
                    return Err(HubError::Unreachable { url, reason });
                };
                watch(Event::FromCache { reason: &reason });
                return Ok(path);
            }
            listing => listing?,
        };
        let kept = cache::entries(&repository.snapshot(&commit)).unwrap_or_default();
        let choice = match choose(&name.id, &entries, name.pick.as_ref(), memory_bytes)? {
            // What was chosen once stays, however much memory is left this time.
            gguf @ Choice::Gguf { .. } if name.pick.is_none() => {
                choose(&name.id, &kept, None, memory_bytes).unwrap_or(gguf)
            }
            choice => choice,
        };
        let mut fetch =
            |entry: &Entry, watch: Watch| download::fetch(&self.client, &repository, &name.id, &commit, entry, watch);
        let path = gather(&name.id, &repository.snapshot(&commit), &choice, &mut fetch, watch)?;
        // Last, so that a revision in the cache is whole.
        repository.set_commit(&name.revision, &commit)?;
        Ok(path)
    }
}

/// The model out of the cache alone.
fn cached(repository: &Repository, name: &Name, memory_bytes: Option<u64>, watch: Watch) -> Result<PathBuf, HubError> {
    let missing = || HubError::NotCached { id: name.id.clone(), revision: name.revision.clone() };
    let commit = repository.commit(&name.revision).ok_or_else(missing)?;
    let folder = repository.snapshot(&commit);
    let entries = cache::entries(&folder)?;
    let choice = match choose(&name.id, &entries, name.pick.as_ref(), memory_bytes) {
        Err(HubError::NoWeights { .. }) => return Err(missing()),
        choice => choice?,
    };
    let mut find = |entry: &Entry, _: Watch| Ok(folder.join(&entry.name));
    match gather(&name.id, &folder, &choice, &mut find, watch) {
        Err(HubError::NoFile { .. }) => Err(missing()),
        path => path,
    }
}

/// Where a file of the model is, once it is there.
type Fetch<'a> = &'a mut dyn FnMut(&Entry, Watch) -> Result<PathBuf, HubError>;

/// Has all files of the model come to `folder`: text first, so that the weights complete it.
fn gather(id: &str, folder: &Path, choice: &Choice, fetch: Fetch, watch: Watch) -> Result<PathBuf, HubError> {
    match choice {
        Choice::Gguf { quantisation, parts, fits, alone } => {
            let bytes = parts.iter().filter_map(|part| part.bytes).sum();
            if !alone {
                watch(Event::Chosen { quantisation, bytes, fits: *fits });
            }
            for part in parts {
                fetch(part, watch)?;
            }
            Ok(folder.join(&parts[0].name))
        }
        Choice::Safetensors { text, index, single } => {
            for entry in text {
                fetch(entry, watch)?;
            }
            if let Some((index, entries)) = index {
                let path = fetch(index, watch)?;
                for shard in select::shards(id, &path, entries)? {
                    fetch(shard, watch)?;
                }
            } else if let Some(single) = single {
                fetch(single, watch)?;
            }
            Ok(folder.to_owned())
        }
    }
}

//! Models and data by name, from a Hugging Face hub: which files of a repository make a model, which of a dataset are
//! meant, and how they come into the cache that `huggingface_hub` for Python keeps too.
//!
//! Only weights that are data, and text, are ever fetched: `select` has the list. Every file is checked against its
//! hash before it gets its name.

#![forbid(unsafe_code)]

mod id;

mod name;
mod short;

mod dataset;

mod settings;

mod select;

mod cache;

mod client;

mod download;

mod error;

use std::path::{Path, PathBuf};

pub use crate::dataset::DataName;
pub use crate::error::HubError;
pub use crate::name::{MAIN, Name, Pick, SCHEME};
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
        Ok(self.model(name, memory_bytes, watch)?.1)
    }

    /// The same with the name that means this model for ever: its commit, and the file where one was chosen. What such
    /// a name means is taken from the cache, if it is there, without a question.
    ///
    /// # Errors
    /// As [`Hub::pull`].
    pub fn pin(&self, name: &Name, memory_bytes: Option<u64>, watch: Watch) -> Result<Name, HubError> {
        let repository = self.repository(&name.id);
        let (commit, path) = match cache::is_commit(&name.revision).then(|| self.cached(name)) {
            Some(Ok(path)) => (name.revision.clone(), path),
            _ => self.model(name, memory_bytes, watch)?,
        };
        let file = path.strip_prefix(repository.snapshot(&commit)).ok().and_then(Path::to_str);
        let pick = file.filter(|file| !file.is_empty()).map(|file| Pick::File(file.to_owned()));
        Ok(Name { revision: commit, pick, ..name.clone() })
    }

    /// A name that means the model for ever, whose text alone is fetched: `config.json`, or `all` that is read beside
    /// weights. [`Hub::cached_text`] has its folder.
    ///
    /// # Errors
    /// As [`Hub::pull`]; [`HubError::NoFile`] if it has no `config.json`.
    pub fn pin_text(&self, name: &Name, all: bool, watch: Watch) -> Result<Name, HubError> {
        let needed = if all { TOKENIZER } else { CONFIG };
        if cache::is_commit(&name.revision) && self.cached_text(name).is_ok_and(|folder| folder.join(needed).is_file())
        {
            return Ok(name.clone());
        }
        let kept = || {
            let repository = self.repository(&name.id);
            let commit = repository.commit(&name.revision).ok_or_else(|| missing(&name.id, &name.revision))?;
            let entries = cache::entries(&repository.snapshot(&commit))?;
            Ok((commit, entries))
        };
        let (Listed::ByHub((commit, entries)) | Listed::Kept((commit, entries))) =
            self.list(&name.id, &name.revision, watch, kept)?;
        let no_file = || HubError::NoFile { id: name.id.clone(), file: CONFIG.to_owned() };
        entries.iter().find(|entry| entry.name == CONFIG).ok_or_else(no_file)?;
        for entry in entries.iter().filter(|entry| entry.name == CONFIG || (all && select::is_text(entry))) {
            self.fetch(&name.id, &commit, entry, watch)?;
        }
        Ok(Name { revision: commit, ..name.clone() })
    }

    /// Fetches the files that a name means, in the order of their paths, and names each so that it means the same for
    /// ever. Where the hub is not to be asked or cannot be reached they are those of the cache, all of them.
    ///
    /// # Errors
    /// All of [`HubError`]; [`HubError::NoFile`] if there is none.
    pub fn files(&self, name: &DataName, watch: Watch) -> Result<Vec<(DataName, PathBuf)>, HubError> {
        if let Some(path) = name.is_fixed().then(|| self.cached_file(name)).and_then(Result::ok) {
            return Ok(vec![(name.clone(), path)]);
        }
        let repository = self.repository(&name.id);
        let kept = || kept_files(&repository, name);
        let (commit, entries) = match self.list(&name.id, &name.revision, watch, kept)? {
            Listed::ByHub(listed) => listed,
            Listed::Kept(files) => return Ok(files),
        };
        let mut files = Vec::new();
        for entry in name.choose(&entries)? {
            files.push((name.at(&commit, &entry.name), self.fetch(&name.id, &commit, entry, watch)?));
        }
        repository.set_list(&commit, &entries)?;
        repository.set_commit(&name.revision, &commit)?;
        Ok(files)
    }

    /// The model as the cache has it; nothing is asked.
    ///
    /// # Errors
    /// [`HubError::NotCached`] if it is not there, or not whole.
    pub fn cached(&self, name: &Name) -> Result<PathBuf, HubError> {
        Ok(cached(&self.repository(&name.id), name, None, &mut |_| ())?.1)
    }

    /// The folder in the cache with a model's `config.json`; nothing is asked.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn cached_text(&self, name: &Name) -> Result<PathBuf, HubError> {
        let repository = self.repository(&name.id);
        let folder = repository.commit(&name.revision).map(|commit| repository.snapshot(&commit));
        folder.filter(|folder| folder.join(CONFIG).is_file()).ok_or_else(|| missing(&name.id, &name.revision))
    }

    /// A dataset's file in the cache; nothing is asked.
    ///
    /// # Errors
    /// [`HubError::NotCached`].
    pub fn cached_file(&self, name: &DataName) -> Result<PathBuf, HubError> {
        let repository = self.repository(&name.id);
        let path = repository.commit(&name.revision).map(|commit| repository.snapshot(&commit).join(&name.pattern));
        path.filter(|path| path.is_file()).ok_or_else(|| missing(&name.id, &name.revision))
    }

    fn repository(&self, id: &str) -> Repository {
        Repository::new(&self.settings.cache, id)
    }

    fn fetch(&self, id: &str, commit: &str, entry: &Entry, watch: Watch) -> Result<PathBuf, HubError> {
        download::fetch(&self.client, &self.repository(id), id, commit, entry, watch)
    }

    /// The commit of a revision and its files, or what is `kept` of it where the hub is not to be asked or cannot be
    /// reached.
    fn list<T>(
        &self,
        id: &str,
        revision: &str,
        watch: Watch,
        kept: impl FnOnce() -> Result<T, HubError>,
    ) -> Result<Listed<T>, HubError> {
        if self.settings.offline {
            return kept().map(Listed::Kept);
        }
        match self.client.list(id, revision) {
            Err(HubError::Unreachable { url, reason }) => {
                let Ok(kept) = kept() else { return Err(HubError::Unreachable { url, reason }) };
                watch(Event::FromCache { reason: &reason });
                Ok(Listed::Kept(kept))
            }
            listing => {
                let (commit, entries) = listing?;
                select::refuse_unsafe(id, &entries)?;
                Ok(Listed::ByHub((commit, entries)))
            }
        }
    }

    /// A model's commit and its place, when it is there.
    fn model(&self, name: &Name, memory_bytes: Option<u64>, watch: Watch) -> Result<(String, PathBuf), HubError> {
        let repository = self.repository(&name.id);
        if self.settings.offline {
            return cached(&repository, name, memory_bytes, watch);
        }
        let (commit, entries) = match self.client.list(&name.id, &name.revision) {
            Err(HubError::Unreachable { url, reason }) => {
                // Whether the cache has the model shows before anything is said.
                let Ok(found) = cached(&repository, name, memory_bytes, &mut |_| ()) else {
                    return Err(HubError::Unreachable { url, reason });
                };
                watch(Event::FromCache { reason: &reason });
                return Ok(found);
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
        let mut fetch = |entry: &Entry, watch: Watch| self.fetch(&name.id, &commit, entry, watch);
        let path = gather(&name.id, &repository.snapshot(&commit), &choice, &mut fetch, watch)?;
        // Last, so that a revision in the cache is whole.
        repository.set_commit(&name.revision, &commit)?;
        Ok((commit, path))
    }
}

/// What a revision is.
enum Listed<T> {
    /// Its commit and all of its files.
    ByHub((String, Vec<Entry>)),
    /// What the cache has of it.
    Kept(T),
}

/// What has every model in safetensors.
const CONFIG: &str = "config.json";
/// What has a tokenizer.
const TOKENIZER: &str = "tokenizer.json";

fn missing(id: &str, revision: &str) -> HubError {
    HubError::NotCached { id: id.to_owned(), revision: revision.to_owned() }
}

/// The files that a name means, out of the cache alone.
fn kept_files(repository: &Repository, name: &DataName) -> Result<Vec<(DataName, PathBuf)>, HubError> {
    let missing = || missing(&name.id, &name.revision);
    let commit = repository.commit(&name.revision).ok_or_else(missing)?;
    let folder = repository.snapshot(&commit);
    let (entries, is_known) = match repository.list(&commit) {
        Some(entries) => (entries, true),
        None => (cache::entries(&folder)?, false),
    };
    // What else there may be of a pattern only a list says.
    if !is_known && !name.is_file() {
        return Err(missing());
    }
    let chosen = match name.choose(&entries) {
        Err(HubError::NoFile { .. }) if !is_known => return Err(missing()),
        chosen => chosen?,
    };
    let file = |entry: &Entry| {
        let path = folder.join(&entry.name);
        let is_whole = download::is_whole(&path, entry.bytes);
        is_whole.then(|| (name.at(&commit, &entry.name), path)).ok_or_else(missing)
    };
    chosen.into_iter().map(file).collect()
}

/// The model's commit and place, out of the cache alone.
fn cached(
    repository: &Repository,
    name: &Name,
    memory_bytes: Option<u64>,
    watch: Watch,
) -> Result<(String, PathBuf), HubError> {
    let missing = || missing(&name.id, &name.revision);
    let commit = repository.commit(&name.revision).ok_or_else(missing)?;
    let folder = repository.snapshot(&commit);
    let entries = cache::entries(&folder)?;
    let choice = match choose(&name.id, &entries, name.pick.as_ref(), memory_bytes) {
        Err(HubError::NoWeights { .. } | HubError::NoFile { .. }) => return Err(missing()),
        choice => choice?,
    };
    let mut find = |entry: &Entry, _: Watch| Ok(folder.join(&entry.name));
    match gather(&name.id, &folder, &choice, &mut find, watch) {
        Err(HubError::NoFile { .. }) => Err(missing()),
        path => Ok((commit, path?)),
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

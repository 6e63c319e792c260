//! The cache on disk, as `huggingface_hub` lays it out:
//!
//! ```text
//! models--ORG--NAME/refs/REVISION                 the commit that it was when it was last fetched
//! models--ORG--NAME/blobs/HASH                    contents
//! models--ORG--NAME/blobs/HASH.incomplete         the beginning of contents
//! models--ORG--NAME/snapshots/COMMIT/PATH         a link to the contents
//! .locks/models--ORG--NAME/HASH.lock              locked (flock) by whoever fetches these contents
//! ```
//! A dataset has `datasets--ORG--NAME` in the place of `models--ORG--NAME`, and what `huggingface_hub` does not write:
//!
//! ```text
//! datasets--ORG--NAME/lists/COMMIT.json           all files that the hub has of it
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::HubError;
use crate::id::is_dataset;
use crate::select::Entry;

/// The part of the cache that holds one model or dataset.
pub struct Repository {
    folder: PathBuf,
    locks: PathBuf,
}

impl Repository {
    /// Of the model or dataset `id` in the cache at `cache`. Nothing is created.
    pub fn new(cache: &Path, id: &str) -> Repository {
        let kind = if is_dataset(id) { "" } else { "models--" };
        let name = format!("{kind}{}", id.replace('/', "--"));
        Repository { folder: cache.join(&name), locks: cache.join(".locks").join(name) }
    }

    /// The folder of a commit.
    pub fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Where contents lie.
    pub fn blob(&self, hash: &str) -> PathBuf {
        self.folder.join("blobs").join(hash)
    }

    /// The commit that a revision was when it was fetched; a commit is its own. `None` if it was not.
    pub fn commit(&self, revision: &str) -> Option<String> {
        let read = fs::read_to_string(self.folder.join("refs").join(revision)).ok();
        let commit = read.map_or_else(|| revision.to_owned(), |text| text.trim().to_owned());
        (is_commit(&commit) && self.snapshot(&commit).is_dir()).then_some(commit)
    }

    /// Enters what a revision is now.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn set_commit(&self, revision: &str, commit: &str) -> Result<(), HubError> {
        let path = self.folder.join("refs").join(revision);
        if revision == commit || fs::read_to_string(&path).is_ok_and(|known| known == commit) {
            return Ok(());
        }
        self.write(&path, commit.as_bytes())
    }

    /// All files that the hub has of a commit. `None` where that is not known, as in a cache that others have written.
    pub fn list(&self, commit: &str) -> Option<Vec<Entry>> {
        serde_json::from_slice(&fs::read(self.list_file(commit)).ok()?).ok()
    }

    /// Enters them.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn set_list(&self, commit: &str, entries: &[Entry]) -> Result<(), HubError> {
        if self.list(commit).is_some_and(|known| known == entries) {
            return Ok(());
        }
        let json = serde_json::to_vec(entries).expect("texts and numbers serialise");
        self.write(&self.list_file(commit), &json)
    }

    fn list_file(&self, commit: &str) -> PathBuf {
        self.folder.join("lists").join(format!("{commit}.json"))
    }

    /// Writes a file as a whole or not at all.
    fn write(&self, path: &Path, contents: &[u8]) -> Result<(), HubError> {
        make_parent(path)?;
        let temporary = self.temporary();
        fs::write(&temporary, contents).map_err(HubError::io("write", &temporary))?;
        fs::rename(&temporary, path).map_err(HubError::io("write", path))
    }

    /// Gives contents a name in a commit's folder.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn link(&self, commit: &str, name: &str, hash: &str) -> Result<PathBuf, HubError> {
        let path = self.snapshot(commit).join(name);
        make_parent(&path)?;
        let temporary = self.temporary();
        let _ = fs::remove_file(&temporary); // of a process that had this number and was killed
        #[cfg(unix)]
        let linked = {
            let up = "../".repeat(name.matches('/').count() + 2);
            std::os::unix::fs::symlink(format!("{up}blobs/{hash}"), &temporary)
        };
        #[cfg(not(unix))] // where a symbolic link takes a privilege
        let linked = fs::hard_link(self.folder.join("blobs").join(hash), &temporary);
        linked.and_then(|()| fs::rename(&temporary, &path)).map_err(HubError::io("write", &path))?;
        Ok(path)
    }

    /// A name that nobody else uses now.
    fn temporary(&self) -> PathBuf {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        self.folder.join(format!(".{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)))
    }

    /// Waits until nobody else fetches these contents; calls `waiting` if somebody does. The lock ends with its file.
    ///
    /// # Errors
    /// [`HubError::Io`].
    pub fn lock(&self, hash: &str, waiting: impl FnOnce()) -> Result<File, HubError> {
        let path = self.locks.join(format!("{hash}.lock"));
        make_parent(&path)?;
        let mut waiting = Some(waiting);
        loop {
            let file = File::options().create(true).append(true).open(&path).map_err(HubError::io("lock", &path))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    waiting.take().into_iter().for_each(|waiting| waiting());
                    file.lock().map_err(HubError::io("lock", &path))?;
                }
                Err(TryLockError::Error(error)) => return Err(HubError::io("lock", &path)(error)),
            }
            // Whoever held it may have removed it, as some versions of Python's `filelock` do.
            if is_same_file(&file, &path).map_err(HubError::io("lock", &path))? {
                return Ok(file);
            }
        }
    }
}

/// Whether the path is still that of the open file.
#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;

    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Whether the path is still that of a file; of the open one, where the system says that of no two files.
#[cfg(not(unix))]
fn is_same_file(_: &File, path: &Path) -> io::Result<bool> {
    path.try_exists()
}

/// Whether a text is a commit in full.
pub fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Makes the folder that a file is to lie in.
///
/// # Errors
/// [`HubError::Io`].
pub fn make_parent(path: &Path) -> Result<(), HubError> {
    let parent = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(parent).map_err(HubError::io("make", parent))
}

/// The files in a commit's folder whose contents are there.
///
/// # Errors
/// [`HubError::Io`].
pub fn entries(folder: &Path) -> Result<Vec<Entry>, HubError> {
    let mut entries = Vec::new();
    collect(folder, "", &mut entries)?;
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(entries)
}

fn collect(folder: &Path, prefix: &str, entries: &mut Vec<Entry>) -> Result<(), HubError> {
    for found in fs::read_dir(folder).map_err(HubError::io("read", folder))? {
        let found = found.map_err(HubError::io("read", folder))?;
        let Ok(name) = found.file_name().into_string() else { continue };
        let name = format!("{prefix}{name}");
        if found.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect(&found.path(), &format!("{name}/"), entries)?;
        } else if let Ok(metadata) = fs::metadata(found.path())
            && metadata.is_file()
        {
            entries.push(Entry { name, bytes: Some(metadata.len()), hash: None });
        }
    }
    Ok(())
}

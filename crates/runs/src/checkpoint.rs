//! Checkpoints: directories `STAGE/step-000500` that exist whole or not at all.
//!
//! A checkpoint is written under a temporary name, its files synced, their hashes put into `DONE`, and then renamed. A
//! directory without `DONE` is none.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::files;
use crate::hash::sha256_file;
use crate::rundir::{RunError, write_json};

/// A finished checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps that were done when it was written.
    pub step: u64,
    /// Its directory.
    pub path: PathBuf,
    /// Its files.
    pub files: BTreeMap<String, FileRecord>,
}

/// What `DONE` says about a file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// Length.
    pub bytes: u64,
    /// Hash of the contents.
    pub sha256: String,
}

#[derive(Serialize, Deserialize)]
struct Done {
    step: u64,
    files: BTreeMap<String, FileRecord>,
}

/// Writes the checkpoint of `step` under `stage`: `write` puts the files into the folder it is given.
pub fn write<E: From<RunError>>(
    stage: &Path,
    step: u64,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<Checkpoint, E> {
    let path = stage.join(directory_name(step));
    let temporary = files::unfinished(&path);
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary).map_err(RunError::io("create", &temporary))?;
    let result = write(&temporary).and_then(|()| Ok(finish(step, &temporary, &path)?));
    if result.is_err() {
        // A full disk is given back what this attempt took; the earlier checkpoints are untouched.
        let _ = fs::remove_dir_all(&temporary);
    }
    result
}

fn finish(step: u64, temporary: &Path, path: &Path) -> Result<Checkpoint, RunError> {
    let mut records = BTreeMap::new();
    for entry in fs::read_dir(temporary).map_err(RunError::io("list", temporary))? {
        let entry = entry.map_err(RunError::io("list", temporary))?;
        let (sha256, bytes) = sha256_file(&entry.path()).map_err(RunError::io("read", &entry.path()))?;
        records.insert(entry.file_name().to_string_lossy().into_owned(), FileRecord { bytes, sha256 });
    }
    files::sync_all(temporary).map_err(RunError::io("write", temporary))?;
    write_json(&temporary.join("DONE"), &Done { step, files: records.clone() })?;
    if path.exists() {
        fs::remove_dir_all(path).map_err(RunError::io("replace", path))?;
    }
    files::rename_synced(temporary, path).map_err(RunError::io("write", path))?;
    Ok(Checkpoint { step, path: path.to_path_buf(), files: records })
}

/// The newest checkpoint of a stage, its files compared with their hashes.
///
/// # Errors
/// [`RunError::Damaged`] if a file of the newest checkpoint is not what was written.
pub fn latest(stage: &Path) -> Result<Option<Checkpoint>, RunError> {
    let Some((step, path)) = list(stage)?.pop() else { return Ok(None) };
    let done = path.join("DONE");
    let damaged = |file: &Path, message: String| RunError::Damaged {
        path: file.to_path_buf(),
        message,
        hint: format!("remove {} to go on from the checkpoint before it", path.display()),
    };
    let text = fs::read_to_string(&done).map_err(RunError::io("read", &done))?;
    let read: Done = serde_json::from_str(&text).map_err(|error| damaged(&done, error.to_string()))?;
    for (name, record) in &read.files {
        let file = path.join(name);
        let (sha256, bytes) = sha256_file(&file).map_err(RunError::io("read", &file))?;
        if bytes != record.bytes || sha256 != record.sha256 {
            return Err(damaged(
                &file,
                format!("{bytes} bytes, hash {sha256}; written were {} bytes, hash {}", record.bytes, record.sha256),
            ));
        }
    }
    Ok(Some(Checkpoint { step, path, files: read.files }))
}

/// What the `DONE` of the checkpoint at `path` says about its files.
pub fn done_files(path: &Path) -> Result<BTreeMap<String, FileRecord>, RunError> {
    let done = path.join("DONE");
    let text = fs::read_to_string(&done).map_err(RunError::io("read", &done))?;
    let read: Done = serde_json::from_str(&text).map_err(|error| RunError::Damaged {
        path: done,
        message: error.to_string(),
        hint: format!("remove {} to go on from the checkpoint before it", path.display()),
    })?;
    Ok(read.files)
}

/// The checkpoint of a step, as its `DONE` lists it; its files are not hashed.
pub fn at(stage: &Path, step: u64) -> Result<Checkpoint, RunError> {
    let path = stage.join(directory_name(step));
    Ok(Checkpoint { step, files: done_files(&path)?, path })
}

/// Removes all but the newest `keep` checkpoints.
pub fn prune(stage: &Path, keep: usize) -> Result<(), RunError> {
    let all = list(stage)?;
    for (_, path) in &all[..all.len().saturating_sub(keep)] {
        // Without its DONE it is no checkpoint, so a kill in between leaves nothing that looks like one.
        let done = path.join("DONE");
        fs::remove_file(&done).map_err(RunError::io("remove", &done))?;
        fs::remove_dir_all(path).map_err(RunError::io("remove", path))?;
    }
    Ok(())
}

/// The finished checkpoints of a stage, by step.
pub fn list(stage: &Path) -> Result<Vec<(u64, PathBuf)>, RunError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(stage).map_err(RunError::io("list", stage))? {
        let path = entry.map_err(RunError::io("list", stage))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let step = name.strip_prefix("step-").and_then(|step| step.parse().ok());
        if let (Some(step), true) = (step, path.join("DONE").is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

fn directory_name(step: u64) -> String {
    format!("step-{step:06}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(stage: &Path, step: u64, text: &str) -> Checkpoint {
        write::<RunError>(stage, step, |folder| {
            let file = folder.join("state.json");
            fs::write(&file, text).map_err(RunError::io("write", &file))
        })
        .unwrap()
    }

    #[test]
    fn the_newest_finished_one_counts() {
        let stage = tempfile::tempdir().unwrap();
        assert!(latest(stage.path()).unwrap().is_none());
        put(stage.path(), 5, "five");
        put(stage.path(), 10, "ten");
        fs::create_dir(stage.path().join("step-000015")).unwrap();
        fs::create_dir(stage.path().join("step-000020.unfinished")).unwrap();
        let newest = latest(stage.path()).unwrap().unwrap();
        assert_eq!((newest.step, newest.files["state.json"].bytes), (10, 3));
        prune(stage.path(), 1).unwrap();
        assert_eq!(list(stage.path()).unwrap().len(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let stage = tempfile::tempdir().unwrap();
        put(stage.path(), 5, "five");
        let error = std::io::Error::from(std::io::ErrorKind::StorageFull);
        let fail = |folder: &Path| {
            fs::write(folder.join("half"), "…").unwrap();
            Err(RunError::io("write", folder)(error))
        };
        assert!(write(stage.path(), 6, fail).is_err());
        assert_eq!(fs::read_dir(stage.path()).unwrap().count(), 1);
        assert_eq!(latest(stage.path()).unwrap().unwrap().step, 5);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let stage = tempfile::tempdir().unwrap();
        let checkpoint = put(stage.path(), 5, "five");
        fs::write(checkpoint.path.join("state.json"), "fire").unwrap();
        let error = latest(stage.path()).unwrap_err();
        assert!(error.to_string().contains("state.json is damaged: 4 bytes"), "{error}");
        assert!(error.hint().unwrap().contains("step-000005"));
    }
}

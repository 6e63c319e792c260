//! Checkpoints: directories `STAGE/step-000500` that exist whole or not at all.
//!
//! A checkpoint is written under a temporary name, its files synced, their hashes put into `DONE`, and then renamed. A
//! directory without `DONE` is none.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{RunError, json_text, write_json};
use crate::files;
use crate::hash::sha256_file;

/// A finished checkpoint.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    /// Steps that were done when it was written.
    pub step: u64,
    pub path: PathBuf,
    pub files: BTreeMap<String, FileRecord>,
}

/// Length and hash of a file: what `DONE` and the ledger say about it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    pub bytes: u64,
    /// Hash of the contents.
    pub sha256: String,
}

impl FileRecord {
    /// Of a regular file.
    ///
    /// # Errors
    /// As [`sha256_file`].
    pub fn of(path: &Path) -> io::Result<FileRecord> {
        let (sha256, bytes) = sha256_file(path)?;
        Ok(FileRecord { bytes, sha256 })
    }
}

/// All files in `folder` and in the folders within, by their path from there with `/` between the names. What is being
/// written is left out.
///
/// # Errors
/// Those of listing and reading; anything but folders and regular files is one.
pub fn records_within(folder: &Path) -> Result<BTreeMap<String, FileRecord>, RunError> {
    let mut records = BTreeMap::new();
    for entry in fs::read_dir(folder).map_err(RunError::io("list", folder))? {
        let entry = entry.map_err(RunError::io("list", folder))?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        if name.ends_with(files::UNFINISHED) {
            continue;
        }
        if entry.file_type().map_err(RunError::io("look at", &path))?.is_dir() {
            let within = records_within(&path)?;
            records.extend(within.into_iter().map(|(inner, record)| (format!("{name}/{inner}"), record)));
        } else {
            records.insert(name, FileRecord::of(&path).map_err(RunError::io("read", &path))?);
        }
    }
    Ok(records)
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
        let record = FileRecord::of(&entry.path()).map_err(RunError::io("read", &entry.path()))?;
        records.insert(entry.file_name().to_string_lossy().into_owned(), record);
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
    let files = done_files(&path)?;
    for (name, record) in &files {
        let file = path.join(name);
        let found = FileRecord::of(&file).map_err(RunError::io("read", &file))?;
        if found != *record {
            let (is, was) = (found, record);
            return Err(damaged(
                &path,
                &file,
                format!(
                    "{} bytes, hash {}; written were {} bytes, hash {}",
                    is.bytes, is.sha256, was.bytes, was.sha256
                ),
            ));
        }
    }
    Ok(Some(Checkpoint { step, path, files }))
}

fn damaged(checkpoint: &Path, file: &Path, message: String) -> RunError {
    RunError::Damaged {
        path: file.to_path_buf(),
        message,
        hint: format!("remove {} to go on from the checkpoint before it", checkpoint.display()),
    }
}

/// What the `DONE` of the checkpoint at `path` says about its files.
pub fn done_files(path: &Path) -> Result<BTreeMap<String, FileRecord>, RunError> {
    let done = path.join("DONE");
    let text = files::read_text(&done, files::SMALL_BYTES_MAX).map_err(RunError::io("read", &done))?;
    let read: Done = serde_json::from_str(&text).map_err(|error| damaged(path, &done, error.to_string()))?;
    // A name that leads elsewhere is none that was written.
    match read.files.keys().find(|name| !is_plain(name)) {
        Some(name) => Err(damaged(path, &done, format!("it lists {name:?}, which is no name of a file"))),
        None => Ok(read.files),
    }
}

fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!(parts.next(), Some(std::path::Component::Normal(_))) && parts.next().is_none()
}

/// The `DONE` of a checkpoint of these files, byte for byte.
pub(crate) fn done_text(step: u64, files: &BTreeMap<String, FileRecord>) -> String {
    json_text(&Done { step, files: files.clone() })
}

/// The checkpoint of a step, as its `DONE` lists it; its files are not hashed.
pub fn at(stage: &Path, step: u64) -> Result<Checkpoint, RunError> {
    let path = stage.join(directory_name(step));
    Ok(Checkpoint { step, files: done_files(&path)?, path })
}

/// Removes all but the newest `keep` checkpoints, and what a kill has left of others. By whoever writes them, when none
/// is being written.
pub fn prune(stage: &Path, keep: usize) -> Result<(), RunError> {
    let all = list(stage)?;
    for path in unfinished(stage)? {
        fs::remove_dir_all(&path).map_err(RunError::io("remove", &path))?;
    }
    for (_, path) in &all[..all.len().saturating_sub(keep)] {
        // Without its DONE it is no checkpoint, so a kill in between leaves nothing that looks like one.
        let done = path.join("DONE");
        fs::remove_file(&done).map_err(RunError::io("remove", &done))?;
        fs::remove_dir_all(path).map_err(RunError::io("remove", path))?;
    }
    Ok(())
}

/// Directories of checkpoints without a `DONE`.
fn unfinished(stage: &Path) -> Result<Vec<PathBuf>, RunError> {
    let entries = fs::read_dir(stage).map_err(RunError::io("list", stage))?;
    let paths = entries.map(|entry| Ok(entry.map_err(RunError::io("list", stage))?.path()));
    let unfinished = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        step_of(name).is_some() && !path.is_symlink() && path.is_dir() && !path.join("DONE").exists()
    };
    paths.filter(|path| path.as_ref().map_or(true, unfinished)).collect()
}

/// The finished checkpoints of a stage, by step.
pub fn list(stage: &Path) -> Result<Vec<(u64, PathBuf)>, RunError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(stage).map_err(RunError::io("list", stage))? {
        let path = entry.map_err(RunError::io("list", stage))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let (Some(step), true) = (step_of(name), path.join("DONE").is_file()) {
            found.push((step, path));
        }
    }
    found.sort();
    Ok(found)
}

/// The step of a checkpoint's directory; none for other spellings of the number, which would be second names of it.
pub(crate) fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("step-")?.parse().ok()?;
    (directory_name(step) == name).then_some(step)
}

/// The name of a checkpoint's directory.
pub fn directory_name(step: u64) -> String {
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
        for other in ["step-11", "step-+00011", "step-0000011"] {
            fs::create_dir(stage.path().join(other)).unwrap();
            fs::write(stage.path().join(other).join("DONE"), "{}").unwrap();
        }
        let newest = latest(stage.path()).unwrap().unwrap();
        assert_eq!((newest.step, newest.files["state.json"].bytes), (10, 3));
        prune(stage.path(), 1).unwrap();
        assert_eq!(list(stage.path()).unwrap().len(), 1);
        // What a kill has left of a checkpoint is removed, and nothing of another name.
        assert!(!stage.path().join("step-000015").exists());
        assert!(stage.path().join("step-11").exists());
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

    #[test]
    fn files_of_a_stage_are_recorded_by_their_paths() {
        let stage = tempfile::tempdir().unwrap();
        fs::create_dir(stage.path().join("model-0")).unwrap();
        for name in ["scores.json", "model-0/part-0000.jsonl", "scores.json.unfinished"] {
            fs::write(stage.path().join(name), name).unwrap();
        }
        let records = records_within(stage.path()).unwrap();
        assert_eq!(records.keys().collect::<Vec<_>>(), ["model-0/part-0000.jsonl", "scores.json"]);
        assert_eq!(records["scores.json"], FileRecord::of(&stage.path().join("scores.json")).unwrap());
    }

    #[test]
    fn a_list_of_files_elsewhere_is_none() {
        let stage = tempfile::tempdir().unwrap();
        let checkpoint = put(stage.path(), 5, "five");
        for name in ["../outside", "/etc/passwd", "a/b", ""] {
            let files = BTreeMap::from([(name.to_string(), FileRecord { bytes: 0, sha256: String::new() })]);
            fs::write(checkpoint.path.join("DONE"), done_text(5, &files)).unwrap();
            let error = latest(stage.path()).unwrap_err().to_string();
            assert!(error.contains("which is no name of a file"), "{error}");
        }
    }
}

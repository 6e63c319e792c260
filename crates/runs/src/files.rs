//! Writing files so that a crash at any moment leaves the old state or the new one: a temporary name, written, synced,
//! renamed, and the folder synced.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Marks names of things that are being written. Whatever bears it when a run is opened was left by a crash.
pub const UNFINISHED: &str = ".unfinished";

/// The temporary name for `path`.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a path with a name").to_os_string();
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// Replaces the file at `path` with `bytes`, whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path);
    let mut file = File::create(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    rename_synced(&temporary, path)
}

/// Makes the folder `path` with what `write` puts into it, whole or not at all.
pub fn write_folder_atomically<E: From<io::Error>>(
    path: &Path,
    write: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    let temporary = unfinished(path);
    let _ = fs::remove_dir_all(&temporary);
    fs::create_dir_all(&temporary)?;
    let result = write(&temporary).and_then(|()| {
        sync_all(&temporary)?;
        Ok(rename_synced(&temporary, path)?)
    });
    if result.is_err() {
        let _ = fs::remove_dir_all(&temporary); // a full disk is given back what this attempt took
    }
    result
}

/// Renames and syncs the folder, so that the new name survives a power cut.
pub fn rename_synced(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    sync_folder(to.parent().expect("a path with a parent"))
}

/// Makes the names in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    // A folder can be opened and synced on Unix only; elsewhere the rename is all there is.
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

/// Syncs every file in `folder` and the folder itself.
pub fn sync_all(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        File::open(entry?.path())?.sync_all()?;
    }
    sync_folder(folder)
}

/// Removes what a crash left half-written in `folder` (not in the folders within).
pub fn remove_unfinished(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().ends_with(UNFINISHED) {
            match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path())?,
                false => fs::remove_file(entry.path())?,
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leftovers_go_and_files_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        write_atomically(&path, b"old").unwrap();
        fs::write(unfinished(&path), b"ne").unwrap();
        fs::create_dir(folder.path().join("step.unfinished")).unwrap();
        fs::write(folder.path().join("step.unfinished/x"), b"x").unwrap();
        remove_unfinished(folder.path()).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}

//! Writing files so that a crash at any moment leaves the old state or the new one: a temporary name, written, synced,
//! renamed, and the folder synced. And reading files that a stranger may have put there: regular ones alone, since a
//! pipe waits for a writer and a device has no end, and no more of them than their kind ever has.

use std::fs::{self, File};
use std::io::{self, BufRead, Read, Write};
use std::path::{Path, PathBuf};

/// Marks names of things that are being written. Whatever bears it when a run is opened was left by a crash.
pub const UNFINISHED: &str = ".unfinished";

/// The temporary name for `path`.
pub fn unfinished(path: &Path) -> PathBuf {
    let mut name = path.file_name().expect("a path with a name").to_os_string();
    name.push(UNFINISHED);
    path.with_file_name(name)
}

/// In the folder of a stage, what environments at an address have said to a rank.
pub fn environment_record(rank: usize) -> String {
    match rank {
        0 => "environment.jsonl".to_owned(),
        rank => format!("environment-{rank}.jsonl"),
    }
}

/// Whether a file's name is one of these.
pub fn is_environment_record(name: &str) -> bool {
    let rank = name.strip_prefix("environment").and_then(|rest| rest.strip_suffix(".jsonl"));
    rank.is_some_and(|rank| rank.is_empty() || rank.strip_prefix('-').is_some_and(|rank| rank.parse::<usize>().is_ok()))
}

/// The most bytes that are read of a file of a run that is held in memory: a ledger, receipt or manifest. A line of a
/// ledger has about two thousand.
pub const RECORDS_BYTES_MAX: u64 = 1 << 28;

/// The most bytes of a recipe, of `run.json`, or of a list of samples.
pub const SMALL_BYTES_MAX: u64 = 1 << 24;

/// The most bytes of a line of metrics, answers of reinforcement included.
pub const LINE_BYTES_MAX: u64 = 1 << 26;

/// Opens a regular file for reading.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] for a pipe, a device, a socket or a folder, which are not opened, and for links to
/// them; a link to a regular file is followed.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(not_regular());
    }
    let file = File::open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(not_regular()),
    }
}

/// The contents of a regular file.
///
/// # Errors
/// As [`open_regular`], and [`io::ErrorKind::FileTooLarge`] if it has more than `max` bytes.
pub fn read(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    let refused = || too_large(&format!("it has more than the {max} bytes that are read of such a file"));
    let file = open_regular(path)?;
    if file.metadata()?.len() > max {
        return Err(refused());
    }
    let mut bytes = Vec::new();
    // One more than allowed, since a file may grow after its length was looked at.
    file.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(refused()) } else { Ok(bytes) }
}

/// The contents of a regular file of text.
///
/// # Errors
/// As [`read`], and [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub fn read_text(path: &Path, max: u64) -> io::Result<String> {
    String::from_utf8(read(path, max)?).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Reads a line with its end into `line`, which is emptied before; `false` at the end of the file.
///
/// # Errors
/// Those of reading, and [`io::ErrorKind::FileTooLarge`] for a line of more than [`LINE_BYTES_MAX`].
pub fn read_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    from.take(LINE_BYTES_MAX + 1).read_until(b'\n', line)?;
    match line.len() as u64 > LINE_BYTES_MAX {
        true => Err(too_large(&format!("it has a line of more than {LINE_BYTES_MAX} bytes"))),
        false => Ok(!line.is_empty()),
    }
}

fn too_large(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, message)
}

/// Opens a file to add to, or starts it.
///
/// # Errors
/// [`io::ErrorKind::InvalidInput`] if something else than a regular file bears the name: who writes through a link
/// changes a file elsewhere.
pub fn open_append(path: &Path) -> io::Result<File> {
    refuse_irregular(path)?;
    File::options().create(true).append(true).open(path)
}

/// Fails if `path` is there and is a link, or no regular file.
pub fn refuse_irregular(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(metadata) if metadata.is_file() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file")),
    }
}

/// Replaces the file at `path` with `bytes`, whole or not at all.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = unfinished(path);
    // What a crash left under this name goes; a new file is made, so that a link there is not written through.
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::options().write(true).create_new(true).open(&temporary)?;
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
pub(crate) mod tests {
    use super::*;
    use std::sync::{PoisonError, RwLock, RwLockReadGuard};

    /// A process that is being started holds copies of all open files, locks among them, until it is another program.
    static STARTS: RwLock<()> = RwLock::new(());

    /// While this is held no test starts a process, so that a lock that is given back is free.
    pub fn no_starts() -> RwLockReadGuard<'static, ()> {
        STARTS.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a pipe that nobody writes to.
    pub fn pipe(path: &Path) {
        let _only = STARTS.write().unwrap_or_else(PoisonError::into_inner);
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    }

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

    #[test]
    fn no_more_is_read_than_allowed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 5).unwrap(), "12345");
        assert_eq!(read(&path, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        let mut line = Vec::new();
        let endless = io::repeat(b'x');
        let error = read_line(&mut io::BufReader::new(endless), &mut line).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::FileTooLarge);
    }

    #[cfg(unix)]
    #[test]
    fn pipes_devices_and_links_are_not_opened() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        pipe(&at("pipe")); // opening it would wait for ever
        std::os::unix::fs::symlink("/dev/zero", at("zero")).unwrap();
        std::os::unix::fs::symlink(at("elsewhere"), at("link")).unwrap();
        for name in ["pipe", "zero", "."] {
            assert_eq!(read(&at(name), 9).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
            assert_eq!(open_append(&at(name)).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{name}");
        }
        fs::write(at("elsewhere"), "precious").unwrap();
        assert_eq!(open_append(&at("link")).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        std::os::unix::fs::symlink(at("elsewhere"), unfinished(&at("new"))).unwrap();
        write_atomically(&at("new"), b"new").unwrap();
        assert_eq!(fs::read(at("new")).unwrap(), b"new");
        assert_eq!(fs::read(at("elsewhere")).unwrap(), b"precious");
    }
}

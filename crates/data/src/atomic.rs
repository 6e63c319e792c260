//! Files that exist whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

/// Prefix of files that are being written. A file with it is never read and may be deleted.
pub(crate) const TEMPORARY: &str = ".tmp-";

/// Writes `bytes` to `path`: to a temporary name beside it, synced, renamed. After a crash the old contents or the new
/// are there, nothing between.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let temporary = temporary_path(path);
    let result = create(&temporary).and_then(|mut file| {
        file.write_all(bytes)?;
        publish(file, &temporary, path)
    });
    result.inspect_err(|_| _ = fs::remove_file(&temporary))
}

/// A new file of that name in place of what a crash left there: a link is not written through.
pub(crate) fn create(temporary: &Path) -> io::Result<File> {
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::options().write(true).create_new(true).open(temporary),
    }
}

/// The name under which `path` is written.
pub(crate) fn temporary_path(path: &Path) -> std::path::PathBuf {
    let name = path.file_name().expect("a file to write has a name").to_string_lossy();
    path.with_file_name(format!("{TEMPORARY}{name}"))
}

/// Syncs the finished temporary file, gives it its name, and syncs the directory that now holds the name.
pub(crate) fn publish(file: File, temporary: &Path, path: &Path) -> io::Result<()> {
    file.sync_all()?;
    drop(file);
    fs::rename(temporary, path)?;
    sync_dir(path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")))
}

#[cfg(unix)]
fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Elsewhere a directory cannot be opened as a file; the file system's journal orders the rename.
#[cfg(not(unix))]
fn sync_dir(_dir: &Path) -> io::Result<()> {
    Ok(())
}

/// Lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

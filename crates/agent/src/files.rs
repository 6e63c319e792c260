//! Tools over the files of one folder.

#[cfg(unix)]
mod folder;

#[cfg(unix)]
mod search;

#[cfg(unix)]
mod tools;

use std::path::Path;

use crate::tool::Tool;

/// Bytes of a file that is read or searched.
pub const READ_BYTES_MAX: u64 = 8 << 20;
/// Bytes of a file that is written.
pub const WRITE_BYTES_MAX: usize = 1 << 20;

/// The tools `list_files`, `read_file` and `search_files` of a folder; with `writes` also `write_file` and `edit_file`.
///
/// # Errors
/// The folder cannot be opened.
#[cfg(unix)]
pub fn tools(folder: &Path, writes: bool) -> std::io::Result<Vec<Box<dyn Tool>>> {
    tools::all(std::sync::Arc::new(folder::Folder::open(folder)?), writes)
}

/// Not here.
#[cfg(not(unix))]
pub fn tools(_folder: &Path, _writes: bool) -> std::io::Result<Vec<Box<dyn Tool>>> {
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, "files are opened by folder on Unix only"))
}

//! What a folder holds: lists of samples, and pictures.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::IMAGE_EXTENSIONS;
use crate::read::ReadError;

/// Files of a folder and the folders in it.
#[derive(Default)]
pub(super) struct Found {
    /// Sorted.
    pub lists: Vec<PathBuf>,
    pub images: BTreeSet<PathBuf>,
}

fn ends(path: &Path, extensions: &[&str]) -> bool {
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    extensions.iter().any(|known| known.eq_ignore_ascii_case(extension))
}

/// Whether it is read as samples, by its name.
pub(super) fn is_list(path: &Path) -> bool {
    ends(path, &["jsonl", "parquet", "tar"])
}

/// All of a folder. Names that start with a dot and links to folders are passed over.
pub(super) fn list(folder: &Path) -> Result<Found, ReadError> {
    let mut found = Found::default();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let io = |source| ReadError::io(&folder, source);
        for entry in fs::read_dir(&folder).map_err(io)? {
            let entry = entry.map_err(io)?;
            let path = entry.path();
            if entry.file_name().to_string_lossy().starts_with('.') {
                continue;
            }
            if entry.file_type().map_err(io)?.is_dir() {
                folders.push(path);
            } else if is_list(&path) {
                found.lists.push(path);
            } else if ends(&path, &IMAGE_EXTENSIONS) {
                found.images.insert(path);
            }
        }
    }
    found.lists.sort();
    Ok(found)
}

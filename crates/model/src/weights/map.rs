//! A file as a slice of bytes.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// A file mapped for reading.
///
/// Somebody who truncates the file while it is mapped ends the process with a bus error; this is the price of not copying
/// files that are larger than memory.
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps a whole file.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        if metadata.len() == 0 {
            return Ok(MappedFile(None));
        }
        // SAFETY: the map is private to this value and read-only. Undefined behaviour would need another process to change
        // the file while it is read: checkpoints are written under a temporary name and never changed after the rename.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile(Some(map)))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

//! A file as a slice of bytes.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;

/// A file mapped for reading.
///
/// The file must stay as it is while it is mapped, which no program can enforce: somebody who truncates it ends the
/// process with a bus error, and somebody who writes to it changes weights and parsed headers under their readers. Wels
/// itself replaces files by renaming, and reads out of a map by copying or as plain numbers, of which any bits are
/// valid. This is the price of not copying files that are larger than memory.
#[derive(Debug)]
pub struct MappedFile(Option<memmap2::Mmap>);

impl MappedFile {
    /// Maps a whole file.
    ///
    /// # Errors
    /// [`io::ErrorKind::InvalidInput`] for what is no regular file and not opened: a pipe would wait for a writer.
    pub fn open(path: &Path) -> io::Result<MappedFile> {
        let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
        if !std::fs::metadata(path)?.is_file() {
            return Err(not_regular());
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(not_regular());
        }
        if metadata.len() == 0 {
            return Ok(MappedFile(None));
        }
        // SAFETY: the map is private to this value and read-only, so only a change of the file could break it. Wels
        // changes none: checkpoints are written under a temporary name and left alone after the rename. For a file from
        // elsewhere this is the user's to keep, as the type says.
        let map = unsafe { memmap2::Mmap::map(&file)? };
        Ok(MappedFile(Some(map)))
    }

    /// Gives the memory of `bytes` back to the system, so that streaming through a file does not count as using all of
    /// it. The bytes stay readable, from the file.
    ///
    /// # Panics
    /// If the file has no such bytes.
    pub fn release(&self, bytes: Range<usize>) {
        assert!(bytes.start <= bytes.end && bytes.end <= self.len(), "bytes {bytes:?} of a file of {}", self.len());
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            // SAFETY: the range lies in the map; `memmap2` looks at its start and its length, not at its end. The map
            // is read-only and backed by a file, so dropped pages come back with the same content; slices of them stay
            // valid. A refusal changes nothing, so it is not reported.
            let _ = unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, bytes.start, bytes.len()) };
        }
        #[cfg(not(unix))]
        let _ = bytes;
    }
}

impl AsRef<[u8]> for MappedFile {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.as_deref().unwrap_or_default()
    }
}

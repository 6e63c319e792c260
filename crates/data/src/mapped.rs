//! A read-only file in memory: this crate's only `unsafe`.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file, read by the system when they are touched.
///
/// The file must stay as it is while it is mapped, which no program can enforce: whoever truncates it ends the process
/// with a bus error, whoever writes to it changes tokens under their readers. Wels itself replaces files by renaming.
pub(crate) struct Mapped(memmap2::Mmap);

impl Mapped {
    /// Maps all of `path`.
    pub(crate) fn open(path: &Path) -> io::Result<Mapped> {
        // A pipe would wait for a writer.
        if !std::fs::metadata(path)?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        let file = File::open(path)?;
        // SAFETY: the bytes change under us only if another process writes into a finished shard. Wels never does: it
        // replaces files by renaming. A shard cut short from outside ends the process with SIGBUS.
        unsafe { memmap2::Mmap::map(&file) }.map(Mapped)
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

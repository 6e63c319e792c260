//! Tests of the crate's public interface, in one binary.

mod benchmarks;
mod external;
mod maths;
mod oracle;
mod played;
mod unicode;

use std::path::PathBuf;

use tempfile::TempDir;

/// A file of its own in a folder of its own.
fn file(name: &str, bytes: &[u8]) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    (folder, path)
}

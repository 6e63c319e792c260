//! Compiled kernels on disk, so that a program compiles them once for a card.
//!
//! A file is named by the hash of all that its contents depend on, and begins with the hash of its contents. One that
//! does not hold is compiled again and replaced; a directory that cannot be written to costs the compilation each time
//! and nothing else.

use std::path::{Path, PathBuf};
use std::{env, fs, io, process};

use sha2::{Digest, Sha256};

use super::nvrtc::{OPTIONS, Target};
use crate::kernels::{HEADERS, Source};

/// Another directory than `wels/cubins` in the user's cache; empty for none.
pub const VARIABLE: &str = "WELS_CUDA_CACHE";

/// A directory of compiled kernels.
#[derive(Clone, Debug)]
pub struct Cache {
    directory: Option<PathBuf>,
}

const HASH: usize = 32;

impl Cache {
    /// The user's.
    pub fn of_user() -> Cache {
        let directory = match env::var_os(VARIABLE) {
            Some(directory) if directory.is_empty() => None,
            Some(directory) => Some(PathBuf::from(directory)),
            None => {
                let home = || env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
                let cache = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
                cache.map(|cache| cache.join("wels").join("cubins"))
            }
        };
        Cache { directory }
    }

    /// In a directory, which is made when something is stored.
    pub fn in_directory(directory: &Path) -> Cache {
        Cache { directory: Some(directory.to_path_buf()) }
    }

    /// What a file compiles to, if it was compiled before and is whole.
    pub fn load(&self, source: &Source, target: Target, compiler: (i32, i32)) -> Option<Vec<u8>> {
        let contents = fs::read(self.path(source, target, compiler)?).ok()?;
        let (hash, cubin) = contents.split_at_checked(HASH)?;
        (hash == Sha256::digest(cubin).as_slice()).then(|| cubin.to_vec())
    }

    /// Keeps what a file compiles to. Several processes may do so at once.
    pub fn store(&self, source: &Source, target: Target, compiler: (i32, i32), cubin: &[u8]) -> io::Result<()> {
        let Some(path) = self.path(source, target, compiler) else { return Ok(()) };
        let directory = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(directory)?;
        let mut contents = Sha256::digest(cubin).to_vec();
        contents.extend_from_slice(cubin);
        let part = path.with_extension(format!("part{}", process::id()));
        fs::write(&part, contents).and_then(|()| fs::rename(&part, &path)).inspect_err(|_| {
            let _ = fs::remove_file(&part); // the first error is the one to report
        })
    }

    fn path(&self, source: &Source, target: Target, compiler: (i32, i32)) -> Option<PathBuf> {
        let mut hash = Sha256::new();
        let mut add = |text: &str| {
            hash.update((text.len() as u64).to_le_bytes());
            hash.update(text);
        };
        add(source.text);
        HEADERS.iter().for_each(|(name, text)| {
            add(name);
            add(text);
        });
        OPTIONS.iter().for_each(|option| add(option));
        add(&target.name());
        add(&format!("{}.{}", compiler.0, compiler.1));
        let name: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        Some(self.directory.as_ref()?.join(format!("{name}.cubin")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::SOURCES;

    const TARGET: Target = Target { capability: (9, 0) };

    #[test]
    fn what_is_stored_is_loaded_and_what_is_damaged_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let cache = Cache::in_directory(&directory.path().join("deep").join("down"));
        let load = || cache.load(&SOURCES[0], TARGET, (12, 9));
        assert_eq!(load(), None);
        cache.store(&SOURCES[0], TARGET, (12, 9), b"machine code").expect("it can be written to");
        assert_eq!(load().as_deref(), Some(&b"machine code"[..]));
        assert_eq!(cache.load(&SOURCES[0], TARGET, (13, 0)), None, "another compiler");
        assert_eq!(cache.load(&SOURCES[1], TARGET, (12, 9)), None, "another file");
        assert_eq!(cache.load(&SOURCES[0], Target { capability: (8, 0) }, (12, 9)), None, "another card");
        let path = cache.path(&SOURCES[0], TARGET, (12, 9)).expect("a directory");
        for damaged in [&b"short"[..], &[7; 100]] {
            fs::write(&path, damaged).expect("it can be written to");
            assert_eq!(load(), None);
        }
        cache.store(&SOURCES[0], TARGET, (12, 9), b"again").expect("it can be written to");
        assert_eq!(load().as_deref(), Some(&b"again"[..]));
    }

    #[test]
    fn a_directory_that_cannot_be_made_is_an_error_and_no_more() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("file");
        fs::write(&file, "").expect("it can be written to");
        let cache = Cache::in_directory(&file);
        assert!(cache.store(&SOURCES[0], TARGET, (12, 9), b"x").is_err());
        assert_eq!(cache.load(&SOURCES[0], TARGET, (12, 9)), None);
        assert!(Cache { directory: None }.store(&SOURCES[0], TARGET, (12, 9), b"x").is_ok());
    }
}

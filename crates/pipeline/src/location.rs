//! Where models are.

use std::path::{Path, PathBuf};

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory with `config.json` and safetensors files: as named, or the newest checkpoint of the run named.
    Directory(PathBuf),
    /// A GGUF file, or the first part of one.
    Gguf(PathBuf),
    /// A model of the other kinds with an adapter.
    Adapted {
        base: Box<Location>,
        /// A directory in PEFT's form.
        adapter: PathBuf,
    },
}

impl Location {
    /// The directory or file; of a model with an adapter, the adapter's.
    pub fn path(&self) -> &Path {
        let (Location::Directory(path) | Location::Gguf(path) | Location::Adapted { adapter: path, .. }) = self;
        path
    }

    /// Without an adapter.
    pub fn base(&self) -> &Location {
        match self {
            Location::Adapted { base, .. } => base,
            whole => whole,
        }
    }

    /// The adapter's directory, if there is one.
    pub fn adapter(&self) -> Option<&Path> {
        match self {
            Location::Adapted { adapter, .. } => Some(adapter),
            _ => None,
        }
    }
}

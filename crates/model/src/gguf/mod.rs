//! GGUF files, the format of llama.cpp: weights, configuration and tokenizer in one file, or in numbered parts.
//!
//! Reading maps the file and looks only at its header; nothing is allocated on the word of a count or a length that the
//! file cannot hold. [`GgufFile::config`] turns metadata into a [`ModelConfig`], [`GgufFile::check`] compares the
//! tensors with it, [`GgufFile::tensor`] hands out a parameter's bytes as they lie in the file, and [`GgufFile::load`]
//! its numbers as f32. [`save`] writes a file.
//!
//! Source: the specification in ggml's `docs/gguf.md`; for the meaning of keys and tensors, llama.cpp's
//! `src/llama-model.cpp`, `src/models/` and `conversion/`.

mod types;

mod header;

mod metadata;

mod config;

mod rope;

mod names;

mod read;

mod write;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use metadata::{Array, Metadata, Value};
pub use read::{Blocks, Stored};
pub use write::{Item, interleave_rows, save, split_rows};

use crate::config::{ConfigError, Family, ModelConfig, Note};
use crate::weights::{MappedFile, Mismatch};
use header::{Header, TensorInfo};

/// An opened GGUF model: its parts mapped, their headers read and checked against their sizes.
pub struct GgufFile {
    parts: Vec<Part>,
    tensors: HashMap<String, Located>,
}

struct Part {
    path: PathBuf,
    map: Arc<MappedFile>,
    header: Header,
}

/// A tensor and the part that holds it.
struct Located {
    part: usize,
    info: TensorInfo,
}

/// Why a GGUF file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum GgufError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The file is damaged, lies about itself, or is no GGUF file.
    #[error("{} is not a valid GGUF file: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The parts of a split model do not belong together.
    #[error("{} is not a whole model: {problem}", path.display())]
    Split {
        /// The part that was asked for.
        path: PathBuf,
        problem: String,
    },
    /// Metadata that are missing, contradictory, or mean something that is not implemented.
    #[error("in {}: {source}", path.display())]
    Config { path: PathBuf, source: Box<ConfigError> },
    /// `general.architecture` is none of those that are read.
    #[error(
        "{} has the architecture `{found}`, which is not supported (supported: {})",
        path.display(),
        Family::known_gguf()
    )]
    Architecture {
        path: PathBuf,
        /// What it says.
        found: String,
    },
    /// Writing would replace a file.
    #[error("{} already exists", path.display())]
    Occupied { path: PathBuf },
    /// The tensors are not those of the configuration.
    #[error("the tensors of {} do not fit its metadata: {mismatch}", path.display())]
    Mismatch {
        path: PathBuf,
        /// All that is wrong.
        mismatch: Box<Mismatch>,
    },
}

impl GgufFile {
    /// Maps a file, or all parts of a model of which `path` is one (`NAME-00001-of-00003.gguf`), and reads the headers.
    ///
    /// # Errors
    /// [`GgufError::Io`], [`GgufError::File`] for a damaged header, [`GgufError::Split`] if parts are missing or mixed.
    pub fn open(path: &Path) -> Result<GgufFile, GgufError> {
        let first = Part::open(path)?;
        let mut file = GgufFile { parts: Vec::new(), tensors: HashMap::new() };
        let Some(split) = first.split()? else {
            file.add(first)?;
            return Ok(file);
        };
        let paths = split.paths(path).map_err(|problem| GgufError::Split { path: path.to_owned(), problem })?;
        for (number, part_path) in paths.iter().enumerate() {
            let part = Part::open(part_path)?;
            let found = part.split()?;
            if found.as_ref().is_none_or(|found| found.number != number || found.count != split.count) {
                let problem = format!("{} does not call itself part {number} of {}", part_path.display(), split.count);
                return Err(GgufError::Split { path: path.to_owned(), problem });
            }
            file.add(part)?;
        }
        if split.tensors.is_some_and(|tensors| tensors != file.tensors.len()) {
            let (found, said) = (file.tensors.len(), split.tensors.unwrap_or(0));
            let problem = format!("its parts hold {found} tensors, and {said} are announced");
            return Err(GgufError::Split { path: path.to_owned(), problem });
        }
        Ok(file)
    }

    fn add(&mut self, mut part: Part) -> Result<(), GgufError> {
        for (name, info) in std::mem::take(&mut part.header.tensors) {
            let located = Located { part: self.parts.len(), info };
            if let Some(earlier) = self.tensors.insert(name.clone(), located) {
                let other = self.parts.get(earlier.part).map_or(&part.path, |part| &part.path);
                return Err(part.damaged(format!("the tensor `{name}` is also in {}", other.display())));
            }
        }
        self.parts.push(part);
        Ok(())
    }

    /// The file, or the first part.
    pub fn path(&self) -> &Path {
        &self.parts[0].path
    }

    /// Size of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.map.len() as u64).sum()
    }

    /// The metadata, of a split model those of the first part.
    pub fn metadata(&self) -> Metadata<'_> {
        self.parts[0].metadata()
    }

    /// The configuration that the metadata and the presence of some tensors (`output.weight`, biases, rotary factors)
    /// describe, and what of the metadata was not understood and ignored.
    ///
    /// # Errors
    /// [`GgufError::Architecture`], or [`GgufError::Config`] with the key.
    pub fn config(&self) -> Result<(ModelConfig, Vec<Note>), GgufError> {
        config::read(self)
    }

    /// [`GgufFile::open`], [`GgufFile::config`] and [`GgufFile::check`] in one.
    ///
    /// # Errors
    /// As these three.
    pub fn open_model(path: &Path) -> Result<(ModelConfig, GgufFile, Vec<Note>), GgufError> {
        let file = GgufFile::open(path)?;
        let (config, mut notes) = file.config()?;
        notes.extend(file.check(&config)?);
        Ok((config, file, notes))
    }

    fn dims(&self, name: &str) -> Option<&[u64]> {
        self.tensors.get(name).map(|tensor| &tensor.info.dims[..])
    }

    fn config_error(&self, source: ConfigError) -> GgufError {
        GgufError::Config { path: self.path().to_owned(), source: Box::new(source) }
    }
}

impl Part {
    fn open(path: &Path) -> Result<Part, GgufError> {
        let io = |source| GgufError::Io { action: "read", path: path.to_owned(), source };
        let map = Arc::new(MappedFile::open(path).map_err(io)?);
        let header = Header::read(&map).map_err(|problem| GgufError::File { path: path.to_owned(), problem })?;
        Ok(Part { path: path.to_owned(), map, header })
    }

    fn metadata(&self) -> Metadata<'_> {
        Metadata::new(&self.map, &self.header.keys)
    }

    fn damaged(&self, problem: String) -> GgufError {
        GgufError::File { path: self.path.clone(), problem }
    }

    fn split(&self) -> Result<Option<Split>, GgufError> {
        let metadata = self.metadata();
        let number = |key: &str| match metadata.get(key) {
            None => Ok(None),
            Some(value) => match value.as_u64().and_then(|number| usize::try_from(number).ok()) {
                Some(number) => Ok(Some(number)),
                None => Err(self.damaged(format!("`{key}` is {value}, expected a whole number"))),
            },
        };
        match number("split.count")? {
            None | Some(0 | 1) => Ok(None),
            Some(count) => {
                let (part, tensors) = (number("split.no")?.unwrap_or(0), number("split.tensors.count")?);
                match part < count && count <= PARTS_MAX {
                    true => Ok(Some(Split { number: part, count, tensors })),
                    false => Err(self.damaged(format!("it is part {part}, from 0, of {count}"))),
                }
            }
        }
    }
}

/// The most parts of a file: names have five digits for them.
const PARTS_MAX: usize = 99_999;

/// What a part says about the whole.
struct Split {
    /// From 0.
    number: usize,
    count: usize,
    /// In all parts.
    tensors: Option<usize>,
}

impl Split {
    /// The names of all parts, from that of one.
    fn paths(&self, path: &Path) -> Result<Vec<PathBuf>, String> {
        let suffix = |number: usize| format!("-{:05}-of-{:05}.gguf", number + 1, self.count);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(stem) = name.strip_suffix(&suffix(self.number)) else {
            return Err(format!(
                "it is part {} of {}, so that its name has to end in `{}` for the others to be found",
                self.number + 1,
                self.count,
                suffix(self.number),
            ));
        };
        let paths: Vec<_> = (0..self.count).map(|i| path.with_file_name(format!("{stem}{}", suffix(i)))).collect();
        match paths.iter().find(|path| !path.is_file()) {
            Some(missing) => Err(format!("{} is missing", missing.display())),
            None => Ok(paths),
        }
    }
}

//! Weights in and out: directories as Hugging Face lays them out, `model.safetensors` or numbered shards with an index.
//!
//! Reading maps the files, checks every header against the file and every tensor against the configuration, and only
//! then hands out tensors, one at a time, as f32. So memory for a model is taken after it is known that the files hold
//! it, and the peak above the destination is one tensor: its bytes on disk and its f32. All differences between the
//! files and the configuration are reported together, by name.
//!
//! Writing makes each file under a temporary name, syncs it and renames it; the index and `config.json` come last.

mod fp8;
#[allow(unsafe_code)]
mod map;
mod mxfp4;
mod read;
mod write;

use std::fmt;
use std::path::{Path, PathBuf};

pub use read::{Files, Sink, add_ends, load_dir, open_dir};
pub use write::{DEFAULT_SHARD_BYTES, save_dir};

use crate::config::{ConfigError, Dtype};
use crate::names::{EH_PROJ, HfTensor, ParamKind, ParamSpec};

pub(crate) use fp8::{BLOCK as FP8_BLOCK, Fp8Matrix, scale_count};
pub(crate) use map::MappedFile;
pub(crate) use read::{MAX_CONFIG_BYTES, read_text};
pub(crate) use write::save_tensors;

/// File that lists the shards.
const INDEX: &str = "model.safetensors.index.json";
/// File of a model in one piece.
const SINGLE: &str = "model.safetensors";
/// What an FP8 tensor's name is followed by to name its scales.
const SCALE_SUFFIX: &str = "_scale_inv";

/// Number format of one tensor on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    F32,
    Bf16,
    F16,
    E4m3,
    /// Whole numbers.
    I64,
}

impl Stored {
    fn bytes(self) -> usize {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 | Stored::F16 => 2,
            Stored::E4m3 => 1,
            Stored::I64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Stored::F32 => "F32",
            Stored::Bf16 => "BF16",
            Stored::F16 => "F16",
            Stored::E4m3 => "F8_E4M3",
            Stored::I64 => "I64",
        }
    }
}

/// How a parameter is stored in a file of format `dtype`.
///
/// The router's selection bias is always f32. In FP8 files only linear maps are FP8, and of those not the router and
/// not the MTP projection (DeepSeek-V3's README_WEIGHTS).
fn stored_as(spec: &ParamSpec, dtype: Dtype) -> Stored {
    match (dtype, spec.kind) {
        (_, ParamKind::Table) => Stored::I64,
        (_, ParamKind::RouterBias) | (Dtype::F32, _) => Stored::F32,
        (Dtype::F16, _) => Stored::F16,
        (Dtype::Fp8, ParamKind::Matrix | ParamKind::Experts(_)) if !spec.name.ends_with(EH_PROJ) => Stored::E4m3,
        (Dtype::Bf16 | Dtype::Fp8, _) => Stored::Bf16,
    }
}

/// How the tensor that holds a parameter's rows is stored: E4M3 is for tensors that hold one matrix.
pub(crate) fn tensor_stored_as(tensor: &HfTensor, spec: &ParamSpec, dtype: Dtype) -> Stored {
    match stored_as(spec, dtype) {
        Stored::E4m3 if !tensor.is_whole() => Stored::Bf16,
        stored => stored,
    }
}

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// No safetensors files.
    #[error("{} holds neither {SINGLE} nor {INDEX}{}", dir.display(), if *pickle {
        "; its PyTorch files are not read, because loading them can run code"
    } else {
        ""
    })]
    NoWeights {
        dir: PathBuf,
        /// Whether there are `.bin`, `.pt` or `.pth` files.
        pickle: bool,
    },
    /// A safetensors file is damaged or lies about itself.
    #[error("{} is not a valid safetensors file: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The index is damaged or does not describe the files beside it.
    #[error("{} is not a valid index: {problem}", path.display())]
    Index { path: PathBuf, problem: String },
    /// The tensors are not those of the configuration.
    #[error("the weights in {} do not fit the configuration: {mismatch}", dir.display())]
    Mismatch {
        dir: PathBuf,
        /// All that is wrong.
        mismatch: Box<Mismatch>,
    },
    /// `config.json` beside the weights is not usable.
    #[error("in {}: {source}", dir.display())]
    Config { dir: PathBuf, source: Box<ConfigError> },
    /// A file of this kind is never that large.
    #[error("{} has {bytes} bytes, more than the {max} expected of such a file", path.display())]
    TooLarge { path: PathBuf, bytes: u64, max: u64 },
    /// Saving would mix two models in one directory.
    #[error("{} already holds weights ({file})", dir.display())]
    Occupied { dir: PathBuf, file: String },
}

impl WeightsError {
    fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> WeightsError {
        let path = path.to_owned();
        move |source| WeightsError::Io { action, path, source }
    }
}

/// All differences between the tensors of a directory and those of a configuration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mismatch {
    /// Expected and not there.
    pub missing: Vec<String>,
    /// There and not expected.
    pub surplus: Vec<String>,
    /// `name [found] instead of [expected]`.
    pub misshapen: Vec<String>,
    /// `name TYPE`, of a number format that is not read.
    pub unreadable: Vec<String>,
    /// Names that several files hold, with the files.
    pub repeated: Vec<String>,
    /// Second names of a tensor (a tied head) that hold other numbers than the first.
    pub contradicting: Vec<String>,
}

impl Mismatch {
    /// Names printed of each kind before the rest is counted.
    const SHOWN: usize = 20;

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        *self == Mismatch::default()
    }
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kinds = [
            ("missing", &self.missing),
            ("surplus", &self.surplus),
            ("misshapen", &self.misshapen),
            ("of an unsupported type", &self.unreadable),
            ("repeated", &self.repeated),
            ("contradicting", &self.contradicting),
        ];
        let found = || kinds.iter().filter(|(_, names)| !names.is_empty());
        let counts: Vec<String> = found().map(|(kind, names)| format!("{} {kind}", names.len())).collect();
        f.write_str(&counts.join(", "))?;
        for (kind, names) in found() {
            write!(f, "\n  {kind}: {}", names[..names.len().min(Self::SHOWN)].join(", "))?;
            if names.len() > Self::SHOWN {
                write!(f, " and {} more", names.len() - Self::SHOWN)?;
            }
        }
        Ok(())
    }
}

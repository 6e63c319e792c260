//! Low-rank adapters (LoRA): `y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ` in place of `y = x·Wᵀ`.
//!
//! W `[N, K]` is a matrix of the model and stays as it is; A `[r, K]` and B `[N, r]` are learnt, s is alpha/r, or
//! alpha/√r where the rank is to be stabilised. Source: Hu et al. 2021 (arXiv 2106.09685), §4.1; Kalajdzievski 2023
//! (arXiv 2312.03732) for the root.
//!
//! A training has its adapter among the parameters, behind those of the model ([`Params::attach`]); an engine names one
//! for each sequence. The operation is the same (`ops::low_rank`), and so are its bits.

mod config;
mod files;

pub use config::{AdapterConfig, Targets};
pub use files::{AdapterFiles, BaseName, CONFIG_FILE, WEIGHTS_FILE};

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use crate::config::{Attention, ModelConfig};
use crate::names::ParamSpec;
use crate::params::{Params, fnv1a64};
use wels_device::host::random::Key;
use wels_device::{Device, Memory, Tensor};

/// What an adapter adds to one matrix.
#[derive(Clone, Debug)]
pub struct Pair {
    /// The matrix: its place in [`param_specs`](crate::names::param_specs).
    pub param: usize,
    /// `[r, K]`.
    pub a: Tensor,
    /// `[N, r]`.
    pub b: Tensor,
    /// B of the up-projection of latents, as attention over latents multiplies with it.
    halves: Option<Halves>,
}

/// The parts of B `[H·(nope + v), r]` of an up-projection of latents.
#[derive(Clone, Debug)]
pub(crate) struct Halves {
    /// `[H·r, nope]`: B_UKᵀ of each head.
    pub keys: Tensor,
    /// `[H·v, r]`: B_UV of each head.
    pub values: Tensor,
}

impl Pair {
    /// What is added to a matrix of a model of this configuration.
    pub fn new(model: &ModelConfig, spec: &ParamSpec, param: usize, [a, b]: [Tensor; 2]) -> Pair {
        let halves = match model.attention {
            Attention::Mla { nope_dim, v_dim, .. } if spec.is_up_projection() => Some(Halves::of(&b, nope_dim, v_dim)),
            _ => None,
        };
        Pair { param, a, b, halves }
    }

    /// Of what is learnt, which is not for answering over pages of latents.
    pub(crate) fn of_training(param: usize, [a, b]: [Tensor; 2]) -> Pair {
        Pair { param, a, b, halves: None }
    }

    pub(crate) fn halves(&self) -> Option<&Halves> {
        self.halves.as_ref()
    }
}

impl Halves {
    fn of(b: &Tensor, nope: usize, v: usize) -> Halves {
        let (device, all, rank) = (b.device(), b.to_host(), b.cols());
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in all.chunks_exact((nope + v) * rank) {
            let (of_keys, of_values) = head.split_at(nope * rank);
            (0..rank).for_each(|column| keys.extend(of_keys[column..].iter().step_by(rank)));
            values.extend_from_slice(of_values);
        }
        let heads = b.rows() / (nope + v);
        Halves {
            keys: Tensor::of(device, heads * rank, nope, &keys),
            values: Tensor::of(device, heads * v, rank, &values),
        }
    }
}

/// An adapter in a device's memory.
#[derive(Clone, Debug)]
pub struct Adapter {
    config: AdapterConfig,
    /// By parameter, ascending.
    pairs: Vec<Pair>,
    serial: u64,
    /// The pairs as a device adds those of several adapters at once, where it does; made at the first use.
    packed: OnceLock<Vec<Option<Arc<Memory>>>>,
}

/// Two are equal if they are the same one: each that is made differs from all others, whatever it holds.
impl PartialEq for Adapter {
    fn eq(&self, other: &Adapter) -> bool {
        self.serial == other.serial
    }
}

impl Adapter {
    /// # Panics
    /// If the pairs are not in the order of their parameters, or not of the configuration's rank.
    pub fn new(config: AdapterConfig, pairs: Vec<Pair>) -> Adapter {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        assert!(pairs.is_sorted_by(|a, b| a.param < b.param), "pairs out of order");
        assert!(pairs.iter().all(|pair| (pair.a.rows(), pair.b.cols()) == (config.rank, config.rank)), "ranks differ");
        Adapter { config, pairs, serial: SERIAL.fetch_add(1, Ordering::Relaxed), packed: OnceLock::new() }
    }

    /// Before training: A uniform within ±1/√K, as PEFT's `kaiming_uniform` with a = √5 gives it, B zero, so that the
    /// model is what it was. An element depends on the seed, its parameter's name and its index alone.
    ///
    /// # Errors
    /// [`AdapterError::Target`] and its like: what the configuration names must be there to be adapted.
    pub fn init(
        device: &Arc<dyn Device>,
        model: &ModelConfig,
        config: AdapterConfig,
        seed: u64,
    ) -> Result<Adapter, AdapterError> {
        let specs = crate::names::param_specs(model);
        let targets = config.targets.matrices(model)?;
        let pair = |param: usize| {
            let ParamSpec { rows, cols, ref name, .. } = specs[param];
            let key = Key { seed, stream: fnv1a64(&part_name(name, A)) };
            let bound = 1.0 / (cols as f64).sqrt();
            let values = (0..(config.rank * cols) as u64).map(|i| ((2.0 * key.uniform_at(i) - 1.0) * bound) as f32);
            let a = Tensor::of(device, config.rank, cols, &values.collect::<Vec<_>>());
            Pair::new(model, &specs[param], param, [a, Tensor::zeros(device, rows, config.rank)])
        };
        let pairs = targets.into_iter().map(pair).collect();
        Ok(Adapter::new(config, pairs))
    }

    pub fn config(&self) -> &AdapterConfig {
        &self.config
    }

    /// By parameter, ascending.
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// What it adds to a matrix.
    pub fn pair(&self, param: usize) -> Option<&Pair> {
        let at = self.pairs.binary_search_by_key(&param, |pair| pair.param).ok()?;
        Some(&self.pairs[at])
    }

    /// What it adds to a matrix, for [`Products::add_low_rank`](wels_device::Products::add_low_rank).
    pub(crate) fn packed(&self, param: usize) -> Option<&Memory> {
        let at = self.pairs.binary_search_by_key(&param, |pair| pair.param).ok()?;
        let pack = |pair: &Pair| pair.a.device().pack_low_rank(&pair.a, &pair.b).map(Arc::new);
        self.packed.get_or_init(|| self.pairs.iter().map(pack).collect())[at].as_deref()
    }

    /// Tells it apart from every other adapter of this process, greater than 0.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// Numbers that it has.
    pub fn len(&self) -> usize {
        self.pairs.iter().map(|pair| pair.a.len() + pair.b.len()).sum()
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

impl Params {
    /// The weights with the adapter's part added to them: W + s·B·A.
    ///
    /// # Panics
    /// If a matrix that it changes is packed.
    pub fn merge(&mut self, adapter: &Adapter) {
        let scale = adapter.config.scale();
        for Pair { param, a, b, .. } in &adapter.pairs {
            let ParamSpec { cols, .. } = self.specs()[*param];
            let (a, b, rank) = (a.to_host(), b.to_host(), adapter.config.rank);
            let mut values = self.tensors()[*param].to_host().into_owned();
            for (row, b) in values.chunks_exact_mut(cols).zip(b.chunks_exact(rank)) {
                for (column, value) in row.iter_mut().enumerate() {
                    let sum = b
                        .iter()
                        .enumerate()
                        .fold(0.0, |sum, (r, b)| sum + f64::from(*b) * f64::from(a[r * cols + column]));
                    *value = (f64::from(*value) + f64::from(scale) * sum) as f32;
                }
            }
            self.set_values(*param, &values);
        }
    }
}

/// What the names of A and B end with.
pub(crate) const A: &str = "lora_A";
pub(crate) const B: &str = "lora_B";

/// The name of a part of the adapter of the matrix `name`: `….q_proj.weight` gives `….q_proj.lora_A.weight`.
pub(crate) fn part_name(name: &str, part: &str) -> String {
    format!("{}.{part}.weight", name.strip_suffix(".weight").unwrap_or(name))
}

/// Why there is no adapter.
#[derive(Debug, thiserror::Error)]
pub enum AdapterError {
    /// The operating system refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried, in the infinitive.
        action: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    /// The directory holds none.
    #[error("{} holds no adapter: there is no {missing}{}", dir.display(), if *pickle {
        ", and its PyTorch file adapter_model.bin is not read, because loading it can run code"
    } else {
        ""
    })]
    Missing { dir: PathBuf, missing: &'static str, pickle: bool },
    /// `adapter_config.json` is no JSON of the right form.
    #[error("{} is not a valid adapter_config.json: {problem}", path.display())]
    Config { path: PathBuf, problem: String },
    /// It asks for what is not supported.
    #[error("{}: {key} = {found} is not supported; {supported}", path.display())]
    Unsupported { path: PathBuf, key: &'static str, found: String, supported: &'static str },
    /// The safetensors file is damaged or lies about itself.
    #[error("{} is not a valid safetensors file: {problem}", path.display())]
    File { path: PathBuf, problem: String },
    /// The tensors are not those of an adapter of this model.
    #[error("{} does not fit the model: {problem}", path.display())]
    Mismatch { path: PathBuf, problem: String },
    /// `target_modules` names nothing.
    #[error("the model has no module {name:?} to adapt; it has {}", known.join(", "))]
    Target { name: String, known: Vec<String> },
    /// `target_modules` names what no adapter can change here.
    #[error("{name:?} cannot be adapted: {reason}")]
    Refused { name: String, reason: &'static str },
}

impl AdapterError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            AdapterError::Io { .. } => "look at the directory's permissions and the disk",
            AdapterError::Missing { pickle: true, .. } => {
                "load it in PEFT where you trust it, and save it again with save_pretrained(safe_serialization=True)"
            }
            AdapterError::Missing { .. } => {
                "name a directory with adapter_config.json and adapter_model.safetensors, as PEFT's save_pretrained and \
                 stages with [stage.lora] write it"
            }
            AdapterError::Config { .. } | AdapterError::File { .. } => "the file is damaged: copy it again",
            AdapterError::Unsupported { .. } => {
                "merge it into its base with PEFT's merge_and_unload, and use the model that this gives"
            }
            AdapterError::Mismatch { .. } => "name the model that the adapter was trained on",
            AdapterError::Target { .. } => "name some of these, or \"all-linear\" for all of them",
            AdapterError::Refused { .. } => {
                "name attention projections (q_proj, k_proj, v_proj, o_proj, …) or dense gate_proj, up_proj, down_proj"
            }
        }
    }
}

//! Logits, losses, gradients and ten AdamW steps against `transformers` and PyTorch.
//!
//! The files in `tests/oracle` are written by `scripts/oracle/make_models.py`, which computes in float64; float32
//! PyTorch is itself up to 2e-6 from them. Weights are not stored: both sides make them from a hash of each tensor's
//! name.

use safetensors::SafeTensors;
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use wels_cpu::testing::{device, host};
use wels_device::{AdamW, Coefficient, Tensor};
use wels_model::config::ModelConfig;
use wels_model::model::{Batch, Losses, Model, Objective};
use wels_model::names::{HfTensor, ParamKind, Role, hf_tensors};
use wels_model::params::{Params, table};
use wels_model::tape::Execution;

/// Largest difference of a logit, as a part of the largest logit; relative error of a gradient (by norm); difference of
/// a loss. Ten times better than what is claimed.
const TOLERANCE: f64 = 1e-5;

/// One folder of `tests/oracle`.
pub struct Oracle {
    name: String,
    pub config: ModelConfig,
    pub batch: Batch,
    json: Value,
    tensors: Vec<u8>,
}

impl Oracle {
    /// The folder of this name.
    pub fn named(name: &str) -> Self {
        Self::read(&PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(name))
    }

    fn read(folder: &Path) -> Self {
        let text = |file: &str| fs::read_to_string(folder.join(file)).expect(file);
        let json: Value = serde_json::from_str(&text("oracle.json")).expect("oracle.json is JSON");
        let ids = |key: &str| {
            let ids = json[key].as_array().expect(key).iter();
            ids.map(|id| id.as_u64().expect("a token id") as u32).collect::<Vec<_>>()
        };
        let (tokens, targets) = (ids("tokens"), ids("targets"));
        let length = json["length"].as_u64().expect("length") as usize;
        let starts = (0..=tokens.len()).step_by(length).map(|start| start as u32).collect();
        let (config, notes) = ModelConfig::from_hf_json(&text("config.json")).expect("a supported configuration");
        assert!(notes.is_empty(), "{}: {notes:?}", folder.display());
        if folder.join("config-hub.json").exists() {
            let (hub, _) = ModelConfig::from_hf_json(&text("config-hub.json")).expect("a supported configuration");
            assert_eq!(config, hub, "{}: the two spellings of its configuration", folder.display());
        }
        Oracle {
            name: folder.file_name().expect("a folder").to_string_lossy().into_owned(),
            config,
            batch: Batch { tokens, targets, starts },
            tensors: fs::read(folder.join("oracle.safetensors")).expect("oracle.safetensors"),
            json,
        }
    }

    fn all() -> Vec<Self> {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle");
        let mut folders: Vec<PathBuf> =
            fs::read_dir(folder).expect("tests/oracle").map(|entry| entry.expect("an entry").path()).collect();
        folders.sort();
        assert_eq!(folders.len(), 30, "models in tests/oracle");
        let oracles = folders.iter().map(|folder| Self::read(folder));
        oracles.filter(|oracle| crate::shapes::runs_here(&oracle.name, &oracle.config)).collect()
    }

    fn number(&self, key: &str) -> f64 {
        self.json[key].as_f64().unwrap_or_else(|| panic!("{}: {key} is {}", self.name, self.json[key]))
    }

    /// Weight of the indexers' losses; 0 for models without, or whose indexers learn nothing.
    fn indexer_weight(&self) -> f64 {
        self.json["indexer_weight"].as_f64().unwrap_or(0.0)
    }

    fn tensor(&self, name: &str) -> Vec<f64> {
        let tensors = SafeTensors::deserialize(&self.tensors).expect("a safetensors file");
        let view = tensors.tensor(name).unwrap_or_else(|error| panic!("{}: {name}: {error}", self.name));
        let elements = view.data().chunks_exact(4);
        elements.map(|bytes| f64::from(f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))).collect()
    }

    /// What the model stores, without second copies.
    fn hf_tensors(&self) -> impl Iterator<Item = HfTensor> {
        hf_tensors(&self.config).into_iter().filter(|tensor| tensor.role == Role::Own)
    }

    pub fn params(&self) -> Params {
        let mut params = Params::zeros(&device(), &self.config);
        for tensor in self.hf_tensors() {
            let spec = &params.specs()[tensor.param];
            let values = match (spec.kind, &self.config.moe) {
                (ParamKind::Table, Some(moe)) => table(spec, moe.experts),
                _ => weight(&tensor.name, &tensor.shape),
            };
            params.set_rows(tensor.param, tensor.first_row, &rows_of(&tensor, &values));
        }
        params
    }

    /// Mean cross-entropy, plus λ/T times the sum over MTP targets, plus α times the balance loss, summed over layers
    /// and averaged over sequences, plus what indexers learn by, summed over layers and averaged over tokens.
    fn loss(&self, losses: &Losses) -> f64 {
        let mtp: f64 = losses.mtp.iter().map(|nll| nll.sum).sum();
        let balance: f64 = losses.experts.iter().map(|experts| experts.balance).sum();
        losses.main.mean()
            + self.number("mtp_lambda") / self.batch.tokens.len() as f64 * mtp
            + self.number("balance_alpha") / self.number("sequences") * balance
            + self.indexer_weight() / self.batch.tokens.len() as f64 * losses.indexer.iter().sum::<f64>()
    }

    /// The gradients of the loss, left in `grads`, and the losses.
    fn accumulate(&self, model: &Model, params: &Params, grads: &mut wels_model::params::Grads) -> Losses {
        let tokens = self.batch.tokens.len() as f64;
        let objective = Objective {
            coefficient: Coefficient::Uniform((1.0 / tokens) as f32),
            mtp_coefficient: (self.number("mtp_lambda") / tokens) as f32,
            balance_coefficient: (self.number("balance_alpha") / self.number("sequences")) as f32,
            indexer_coefficient: (self.indexer_weight() / tokens) as f32,
            teacher: None,
        };
        let mut losses = Losses::default();
        grads.begin();
        model.accumulate(params, grads, &Execution::new(device()), &self.batch, &objective, &mut losses);
        grads.finish();
        losses
    }
}

/// The rows of a parameter that a tensor holds, among others or alone.
fn rows_of<T: Copy>(tensor: &HfTensor, all: &[T]) -> Vec<T> {
    let place = tensor.place;
    let at = |i: usize| place.start + i / tensor.cols * place.row + i % tensor.cols * place.col;
    (0..tensor.rows * tensor.cols).map(|i| all[at(i)]).collect()
}

/// The tensor with this name and shape: see scripts/oracle/weights.py.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let (offset, scale) = match name {
        _ if name.ends_with("e_score_correction_bias") => (0.0, 0.02),
        _ if name.ends_with("bias") => (0.0, 0.1),
        _ if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
        _ if shape.len() == 1 => (1.0, 0.1),
        _ => (0.0, (3.0 / shape[shape.len() - 1] as f64).sqrt()),
    };
    let uniform = |i: u64| 2.0 * ((split_mix(hash.wrapping_add(i)) >> 40) as f64 / f64::from(1 << 24)) - 1.0;
    (0..shape.iter().product::<usize>() as u64).map(|i| (offset + scale * uniform(i)) as f32).collect()
}

/// The output function of SplitMix64.
pub fn split_mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn norm(x: impl Iterator<Item = f64>) -> f64 {
    x.map(|x| x * x).sum::<f64>().sqrt()
}

#[test]
fn logits_equal_those_of_transformers() {
    for oracle in Oracle::all() {
        let model = Model::new(oracle.config.clone(), 64);
        let (params, execution) = (oracle.params(), Execution::new(device()));
        let logits = host(&model.logits(&params, &execution, &oracle.batch.tokens, &oracle.batch.starts));
        let expected = oracle.tensor("logits");
        assert_eq!(logits.len(), expected.len(), "{}: logits", oracle.name);
        let largest = expected.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
        let differences = logits.iter().zip(&expected).map(|(x, y)| (f64::from(*x) - y).abs());
        let error = differences.fold(0.0, f64::max) / largest;
        println!("{}: logits differ by {error:.1e} of the largest", oracle.name);
        assert!(error <= TOLERANCE, "{}: logits differ by {error:.1e} of the largest", oracle.name);
    }
}

#[test]
fn gradients_equal_those_of_autograd() {
    for oracle in Oracle::all() {
        let model = Model::new(oracle.config.clone(), 64);
        let params = oracle.params();
        let mut grads = model.grads(&device());
        let losses = oracle.accumulate(&model, &params, &mut grads);
        let parts = &oracle.json["first_losses"];
        let close = |part: &str, value: f64| {
            let expected = parts[part].as_f64().unwrap_or_else(|| panic!("{}: no loss {part}", oracle.name));
            let error = (value / expected - 1.0).abs();
            assert!(error <= TOLERANCE, "{}: {part} is {value}, not {expected}", oracle.name);
        };
        close("main", losses.main.mean());
        if oracle.number("mtp_lambda") > 0.0 {
            close("mtp_sum", losses.mtp[0].sum);
        }
        if oracle.number("balance_alpha") > 0.0 {
            let balance: f64 = losses.experts.iter().map(|experts| experts.balance).sum();
            close("balance", balance / oracle.number("sequences"));
        }
        if oracle.indexer_weight() > 0.0 {
            close("indexer", losses.indexer.iter().sum::<f64>() / oracle.batch.tokens.len() as f64);
        }
        let mut worst = (0.0, String::new());
        for tensor in oracle.hf_tensors() {
            let HfTensor { ref name, param, first_row, rows, .. } = tensor;
            let spec = &params.specs()[param];
            if !spec.kind.is_learnt() {
                continue;
            }
            let expected = rows_of(&tensor, &oracle.tensor(&format!("gradients.{name}")));
            let gradient = grads.values()[param].to_host();
            let gradient = &gradient[first_row * spec.cols..(first_row + rows) * spec.cols];
            if expected.iter().all(|x| *x == 0.0) {
                let is_left = params.specs()[param].is_of_indexer() && gradient.iter().all(|x| *x == 0.0);
                assert!(is_left, "{}: {name} has a gradient", oracle.name);
                continue;
            }
            let difference = norm(gradient.iter().zip(&expected).map(|(x, y)| f64::from(*x) - y));
            let error = difference / norm(expected.iter().copied());
            assert!(error <= TOLERANCE, "{}: the gradient of {name} is off by {error:.1e}", oracle.name);
            worst = if error > worst.0 { (error, name.clone()) } else { worst };
        }
        println!("{}: gradients differ by up to {:.1e} ({})", oracle.name, worst.0, worst.1);
    }
}

#[test]
fn ten_adamw_steps_equal_those_of_pytorch() {
    for oracle in Oracle::all() {
        let model = Model::new(oracle.config.clone(), 64);
        let mut params = oracle.params();
        let mut grads = model.grads(&device());
        let zeros = |tensor: &Tensor| Tensor::zeros(&device(), tensor.rows(), tensor.cols());
        let mut means: Vec<[Tensor; 2]> =
            params.tensors().iter().map(|tensor| [zeros(tensor), zeros(tensor)]).collect();
        let expected = oracle.json["adamw_losses"].as_array().expect("losses");
        let mut largest = 0.0_f64;
        for (step, expected) in expected.iter().enumerate() {
            let losses = oracle.accumulate(&model, &params, &mut grads);
            let (loss, expected) = (oracle.loss(&losses), expected.as_f64().expect("a loss"));
            let error = (loss - expected).abs();
            assert!(error <= TOLERANCE, "{}: after {step} steps the loss is {loss}, not {expected}", oracle.name);
            largest = largest.max(error);
            let adamw =
                AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, step: step as u64 + 1 };
            for (i, (gradient, [m, v])) in grads.values().iter().zip(&mut means).enumerate() {
                if !gradient.is_empty() {
                    device().adamw((params.tensor_mut(i), 0), gradient, (m, v), &adamw, 1.0);
                }
            }
        }
        println!("{}: losses of ten steps differ by up to {largest:.1e}", oracle.name);
    }
}

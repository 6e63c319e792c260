//! PEFT's directories: `adapter_config.json` and `adapter_model.safetensors`, in and out.
//!
//! The tensors are `base_model.model.MODULE.lora_A.weight` `[r, K]` and `….lora_B.weight` `[N, r]`, MODULE being the
//! path of the linear layer, `model.layers.0.self_attn.q_proj`. What the configuration asks for beyond that is refused
//! by name. The hash of the base is in the safetensors file's metadata, where programs that do not know it pass over
//! it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

use super::config::modules;
use super::{A, Adapter, AdapterConfig, AdapterError, B, Pair, Targets, part_name};
use crate::config::{Attention, Family, ModelConfig, RopeLayout};
use crate::gguf::interleave_rows;
use crate::names::{ParamSpec, param_specs};
use crate::weights::MappedFile;
use wels_device::host::convert;
use wels_device::{Device, Tensor};

/// The name of the configuration's file.
pub const CONFIG_FILE: &str = "adapter_config.json";
/// The name of the weights' file.
pub const WEIGHTS_FILE: &str = "adapter_model.safetensors";
const PICKLE_FILE: &str = "adapter_model.bin";
/// A configuration is a kilobyte or two.
const CONFIG_BYTES_MAX: u64 = 1 << 20;
/// What tensors' names begin with.
const PREFIX: &str = "base_model.model.";
/// The key of the base's hash in the metadata.
const BASE_SHA256: &str = "base_sha256";
/// More than any adapter has: a rank is checked before memory is taken for it.
const RANK_MAX: u64 = 1 << 16;

/// The model that an adapter belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BaseName {
    /// `base_model_name_or_path`: an id on a hub, or a path, from the adapter's directory if it is no whole one.
    pub name: Option<String>,
    /// The hub's revision.
    pub revision: Option<String>,
    /// What the base's files have as a hash, where the adapter says so.
    pub sha256: Option<String>,
}

/// An adapter's directory, opened: its configuration is read, its weights are mapped.
#[derive(Debug)]
pub struct AdapterFiles {
    dir: PathBuf,
    rank: usize,
    alpha: f64,
    rank_stabilised: bool,
    weights: MappedFile,
    /// What it belongs to.
    pub base: BaseName,
}

impl AdapterFiles {
    /// Whether a directory is that of an adapter.
    pub fn are_in(dir: &Path) -> bool {
        dir.join(CONFIG_FILE).is_file()
    }

    /// Reads the configuration and maps the weights in `dir`.
    ///
    /// # Errors
    /// [`AdapterError`]: files that are missing or damaged, and what is not supported, by its key.
    pub fn open(dir: &Path) -> Result<AdapterFiles, AdapterError> {
        let missing = |missing| {
            let pickle = missing == WEIGHTS_FILE && dir.join(PICKLE_FILE).exists();
            AdapterError::Missing { dir: dir.to_owned(), missing, pickle }
        };
        let (config, weights) = (dir.join(CONFIG_FILE), dir.join(WEIGHTS_FILE));
        if !config.is_file() {
            return Err(missing(CONFIG_FILE));
        }
        if !weights.is_file() {
            return Err(missing(WEIGHTS_FILE));
        }
        let json = Json::read(&config)?;
        json.check()?;
        let io = |source| AdapterError::Io { action: "read", path: weights.clone(), source };
        let map = MappedFile::open(&weights).map_err(io)?;
        let damaged = |error: safetensors::SafeTensorError| AdapterError::File {
            path: weights.clone(),
            problem: error.to_string(),
        };
        let (_, metadata) = SafeTensors::read_metadata(&map).map_err(damaged)?;
        SafeTensors::deserialize(&map).map_err(damaged)?;
        let sha256 = metadata.metadata().as_ref().and_then(|it| it.get(BASE_SHA256).cloned());
        let base = BaseName { name: json.text("base_model_name_or_path"), revision: json.text("revision"), sha256 };
        Ok(AdapterFiles {
            dir: dir.to_owned(),
            rank: json.rank()?,
            alpha: json.alpha()?,
            rank_stabilised: json.flag("use_rslora")?,
            weights: map,
            base,
        })
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// r.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Brings the weights to a device, if they are those of an adapter of this model.
    ///
    /// # Errors
    /// [`AdapterError::Mismatch`] with everything that is wrong; nothing is taken from a file that does not fit.
    pub fn load(
        &self,
        model: &ModelConfig,
        device: &dyn Fn(usize) -> Arc<dyn Device>,
    ) -> Result<Adapter, AdapterError> {
        let path = self.dir.join(WEIGHTS_FILE);
        let tensors = SafeTensors::deserialize(&self.weights)
            .map_err(|error| AdapterError::File { path: path.clone(), problem: error.to_string() })?;
        let mismatch = |problem: String| AdapterError::Mismatch { path: path.clone(), problem };
        let (specs, modules) = (param_specs(model), modules(model)?);
        let mut found: BTreeMap<usize, [Option<TensorView>; 2]> = BTreeMap::new();
        let by_name: HashMap<String, (usize, usize)> = modules
            .iter()
            .flat_map(|(param, module)| {
                [A, B].into_iter().enumerate().map(move |(half, part)| (part_name(module, part), (*param, half)))
            })
            .collect();
        let mut wrong = Vec::new();
        for (name, view) in tensors.iter() {
            let known = name.strip_prefix(PREFIX).and_then(|name| by_name.get(name));
            let Some(&(param, half)) = known else {
                wrong.push(foreign(name));
                continue;
            };
            let ParamSpec { rows, cols, .. } = specs[param];
            let shape = if half == 0 { [self.rank, cols] } else { [rows, self.rank] };
            if view.shape() != shape {
                wrong.push(format!("{name} is {:?} instead of {shape:?}", view.shape()));
            } else if ![Dtype::F32, Dtype::BF16, Dtype::F16].contains(&view.dtype()) {
                wrong.push(format!("{name} is of type {:?}; F32, BF16 and F16 are read", view.dtype()));
            }
            found.entry(param).or_default()[half] = Some(view);
        }
        let halves = found.iter().flat_map(|(param, both)| [A, B].into_iter().zip(both).map(move |it| (*param, it)));
        let lonely = halves.filter(|(_, (_, view))| view.is_none());
        wrong.extend(lonely.map(|(param, (part, _))| format!("{} is missing", part_name(&specs[param].name, part))));
        if found.is_empty() && wrong.is_empty() {
            wrong.push("it holds no tensor".into());
        }
        if !wrong.is_empty() {
            const SHOWN: usize = 8;
            let more = wrong.len().saturating_sub(SHOWN);
            wrong.sort();
            wrong.truncate(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            return Err(mismatch(wrong.join("; ") + &more));
        }
        let pair = |(param, both): (usize, [Option<TensorView>; 2])| {
            let device = device(param);
            let [a, b] = both.map(|view| view.expect("neither half is missing"));
            let both = [tensor(&device, &a, None), tensor(&device, &b, turned(model, &specs[param]))];
            Pair::new(model, &specs[param], param, both)
        };
        let names: BTreeMap<usize, &String> = modules.iter().map(|(param, module)| (*param, module)).collect();
        let targets = targets(found.keys().map(|param| names[param].as_str()), &modules);
        let pairs: Vec<Pair> = found.into_iter().map(pair).collect();
        let non_finite = pairs.iter().find(|it| !(it.a.device().is_finite(&it.a) && it.b.device().is_finite(&it.b)));
        if let Some(pair) = non_finite {
            return Err(mismatch(format!("what it adds to {} is not finite", specs[pair.param].name)));
        }
        let Self { rank, alpha, rank_stabilised, .. } = *self;
        Ok(Adapter::new(AdapterConfig { rank, alpha, rank_stabilised, targets }, pairs))
    }
}

impl Adapter {
    /// Writes PEFT's two files into `dir`, which is made if need be.
    ///
    /// # Errors
    /// Those of writing.
    pub fn save(&self, dir: &Path, model: &ModelConfig, base: &BaseName) -> Result<(), AdapterError> {
        let modules: HashMap<usize, String> = modules(model)?.into_iter().collect();
        let io = |action, path: &Path| {
            let path = path.to_owned();
            move |source| AdapterError::Io { action, path, source }
        };
        std::fs::create_dir_all(dir).map_err(io("create", dir))?;
        let parts = self.pairs.iter().flat_map(|pair| {
            let name = |part| format!("{PREFIX}{}", part_name(&modules[&pair.param], part));
            [(name(A), &pair.a), (name(B), &pair.b)]
        });
        let bytes: BTreeMap<String, (Vec<usize>, Vec<u8>)> = parts
            .map(|(name, tensor)| {
                let bytes = tensor.to_host().iter().flat_map(|x| x.to_le_bytes()).collect();
                (name, (vec![tensor.rows(), tensor.cols()], bytes))
            })
            .collect();
        let mut metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        // One key more would come in any order.
        let mut file = safetensors::serialize(bytes.iter().map(view_of), Some(metadata.clone()))
            .expect("f32 tensors of whole shapes cannot be wrong");
        if let Some(sha256) = &base.sha256 {
            metadata.insert(BASE_SHA256.to_owned(), sha256.clone());
            file = with_metadata(&file, &metadata.into_iter().collect());
        }
        let weights = dir.join(WEIGHTS_FILE);
        std::fs::write(&weights, file).map_err(io("write", &weights))?;
        let config = dir.join(CONFIG_FILE);
        let text = serde_json::to_string_pretty(&self.to_json(&modules, base)).expect("JSON has a text");
        std::fs::write(&config, text + "\n").map_err(io("write", &config))
    }

    fn to_json(&self, modules: &HashMap<usize, String>, base: &BaseName) -> Value {
        let last = |module: &String| module.rsplit('.').next().unwrap_or(module).to_owned();
        let targets: BTreeSet<String> = match &self.config.targets {
            Targets::Names(names) => names.iter().cloned().collect(),
            Targets::AllLinear => self.pairs.iter().map(|pair| last(&modules[&pair.param])).collect(),
        };
        let AdapterConfig { rank, alpha, rank_stabilised, .. } = self.config;
        let alpha = if alpha.fract() == 0.0 && alpha < 1e15 { json!(alpha as u64) } else { json!(alpha) };
        json!({
            "alpha_pattern": {},
            "auto_mapping": null,
            "base_model_name_or_path": base.name,
            "bias": "none",
            "fan_in_fan_out": false,
            "inference_mode": true,
            "init_lora_weights": true,
            "layers_pattern": null,
            "layers_to_transform": null,
            "lora_alpha": alpha,
            "lora_dropout": 0.0,
            "modules_to_save": null,
            "peft_type": "LORA",
            "r": rank,
            "rank_pattern": {},
            "revision": base.revision,
            "target_modules": targets,
            "task_type": "CAUSAL_LM",
            "use_dora": false,
            "use_rslora": rank_stabilised,
        })
    }
}

/// A named tensor, `(shape, bytes)`.
fn view_of<'a>((name, (shape, bytes)): (&'a String, &'a (Vec<usize>, Vec<u8>))) -> (String, TensorView<'a>) {
    let view = TensorView::new(Dtype::F32, shape.clone(), bytes);
    (name.clone(), view.expect("as many bytes as the shape has"))
}

/// A safetensors file with other metadata, in the order of their keys.
fn with_metadata(file: &[u8], metadata: &BTreeMap<String, String>) -> Vec<u8> {
    let len = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
    let (header, data) = file[8..].split_at(len);
    let mut header: serde_json::Map<String, Value> = serde_json::from_slice(header).expect("a header just written");
    header.insert("__metadata__".into(), json!(metadata));
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    [&(header.len() as u64).to_le_bytes()[..], &header, data].concat()
}

/// How what a file adapts is said in a configuration: by the modules' last names where these mean no more than that,
/// else by their paths.
fn targets<'a>(adapted: impl Iterator<Item = &'a str>, modules: &[(usize, String)]) -> Targets {
    let last = |module: &str| module.rsplit('.').next().unwrap_or(module).to_owned();
    let adapted: BTreeSet<&str> = adapted.collect();
    let names: BTreeSet<String> = adapted.iter().map(|module| last(module)).collect();
    let all = modules.iter().filter(|(_, module)| names.contains(&last(module))).count();
    Targets::Names(match all == adapted.len() {
        true => names.into_iter().collect(),
        false => adapted.into_iter().map(str::to_owned).collect(),
    })
}

/// What is wrong with a tensor that belongs to no adapter of the model.
fn foreign(name: &str) -> String {
    let why = match name {
        _ if name.contains("experts.") => "experts have no adapters here",
        _ if name.contains("lora_magnitude") => "DoRA is not supported",
        _ if name.contains("lora_embedding") || name.contains("embed_tokens") || name.contains("lm_head") => {
            "embedding and head have no adapters here"
        }
        _ => "the model has no such module",
    };
    format!("{name}: {why}")
}

/// The width of a head whose rows a model has in GGUF's order, where a Llama from such a file does: those of B follow.
fn turned(model: &ModelConfig, spec: &ParamSpec) -> Option<usize> {
    let Attention::Gqa { head_dim, .. } = model.attention else { return None };
    let rotates = spec.name.contains(".q_proj.") || spec.name.contains(".k_proj.");
    let in_order = model.family == Family::Llama && model.rope.layout == RopeLayout::Interleaved;
    (rotates && in_order).then_some(head_dim)
}

fn tensor(device: &Arc<dyn Device>, view: &TensorView, turned: Option<usize>) -> Tensor {
    let (bytes, shape) = (view.data(), view.shape());
    let halves = || -> Vec<u16> { bytes.as_chunks::<2>().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect() };
    let mut values = vec![0.0; shape.iter().product()];
    match view.dtype() {
        Dtype::BF16 => convert::from_bf16s(&halves(), &mut values),
        Dtype::F16 => convert::from_f16s(&halves(), &mut values),
        _ => values.iter_mut().zip(bytes.as_chunks::<4>().0).for_each(|(x, bytes)| *x = f32::from_le_bytes(*bytes)),
    }
    if let Some(head_dim) = turned {
        values = interleave_rows(&values, head_dim, shape[1]);
    }
    Tensor::of(device, shape[0], shape[1], &values)
}

/// An `adapter_config.json`.
struct Json {
    path: PathBuf,
    json: Value,
}

impl Json {
    fn read(path: &Path) -> Result<Json, AdapterError> {
        let io = |source| AdapterError::Io { action: "read", path: path.to_owned(), source };
        let problem = |problem: String| AdapterError::Config { path: path.to_owned(), problem };
        let bytes = std::fs::metadata(path).map_err(io)?.len();
        if bytes > CONFIG_BYTES_MAX {
            return Err(problem(format!("it has {bytes} bytes, more than the {CONFIG_BYTES_MAX} of any such file")));
        }
        let text = std::fs::read_to_string(path).map_err(io)?;
        let json: Value = serde_json::from_str(&text).map_err(|error| problem(error.to_string()))?;
        if !json.is_object() {
            return Err(problem("it is no object".into()));
        }
        Ok(Json { path: path.to_owned(), json })
    }

    /// Refuses what an adapter here cannot do.
    fn check(&self) -> Result<(), AdapterError> {
        let is = |key: &str, allowed: &[Value]| self.json[key].is_null() || allowed.contains(&self.json[key]);
        let empty = [json!([]), json!({}), json!(false)];
        let rules: [(&'static str, bool, &'static str); 19] = [
            ("peft_type", self.json["peft_type"] == json!("LORA"), "LORA is"),
            ("use_dora", is("use_dora", &empty), "plain LoRA is"),
            ("use_qalora", is("use_qalora", &empty), "plain LoRA is"),
            ("lora_bias", is("lora_bias", &empty), "adapters without biases are"),
            ("bias", is("bias", &[json!("none")]), "\"none\" is"),
            ("fan_in_fan_out", is("fan_in_fan_out", &empty), "false is"),
            ("modules_to_save", is("modules_to_save", &empty), "adapters without whole modules beside them are"),
            ("rank_pattern", is("rank_pattern", &empty), "one rank for all modules is"),
            ("alpha_pattern", is("alpha_pattern", &empty), "one alpha for all modules is"),
            ("layer_replication", is("layer_replication", &empty), "the model's own layers are"),
            ("target_parameters", is("target_parameters", &empty), "target_modules are"),
            ("trainable_token_indices", is("trainable_token_indices", &empty), "the model's own embedding is"),
            ("alora_invocation_tokens", is("alora_invocation_tokens", &empty), "adapters of all tokens are"),
            ("arrow_config", is("arrow_config", &empty), "one adapter at a time is"),
            ("use_bdlora", is("use_bdlora", &empty), "plain LoRA is"),
            ("kasa_config", is("kasa_config", &empty), "plain LoRA is"),
            ("corda_config", is("corda_config", &empty), "plain LoRA is"),
            ("lora_ga_config", is("lora_ga_config", &empty), "plain LoRA is"),
            (
                "init_lora_weights",
                is("init_lora_weights", &[true, false].map(Value::Bool))
                    || ["gaussian", "orthogonal", "eva"].iter().any(|it| self.json["init_lora_weights"] == json!(it)),
                "beginnings that leave the base as it is are",
            ),
        ];
        match rules.into_iter().find(|(_, holds, _)| !holds) {
            None => Ok(()),
            Some((key, _, supported)) => Err(AdapterError::Unsupported {
                path: self.path.clone(),
                key,
                found: self.json[key].to_string(),
                supported,
            }),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        self.json[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned)
    }

    fn flag(&self, key: &'static str) -> Result<bool, AdapterError> {
        match &self.json[key] {
            Value::Null => Ok(false),
            Value::Bool(flag) => Ok(*flag),
            other => Err(self.wrong(key, other, "true or false")),
        }
    }

    fn rank(&self) -> Result<usize, AdapterError> {
        let rank = self.json["r"].as_u64().filter(|rank| (1..=RANK_MAX).contains(rank));
        rank.map(|rank| rank as usize).ok_or_else(|| self.wrong("r", &self.json["r"], "a rank of 1 to 65536"))
    }

    fn alpha(&self) -> Result<f64, AdapterError> {
        let alpha = self.json["lora_alpha"].as_f64().filter(|alpha| *alpha > 0.0 && *alpha <= 1e9);
        alpha.ok_or_else(|| self.wrong("lora_alpha", &self.json["lora_alpha"], "a number above 0"))
    }

    fn wrong(&self, key: &str, found: &Value, expected: &str) -> AdapterError {
        let problem = format!("{key} is {found}, expected {expected}");
        AdapterError::Config { path: self.path.clone(), problem }
    }
}

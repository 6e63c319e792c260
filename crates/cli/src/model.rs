//! MODEL on the command line: a run, a Hugging Face directory, or a GGUF file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_data::tokenizer::{GgufVocabulary, TokenKind, Tokenizer};
use wels_model::config::{Attention, Family, ModelConfig, Note, RopeLayout};
use wels_model::gguf::{self, GgufFile, Metadata, Value};
use wels_model::model::Model;
use wels_model::paged::{CacheLayout, Numbers};
use wels_model::params::Params;
use wels_model::weights::{Files, Hold, Quantise, Sink, open_dir};
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::machine;
use wels_runs::recipe::{PRETRAIN, Recipe};

use crate::failure::refuse;

/// Where a model is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// A directory with `config.json` and safetensors files: as named, or the newest checkpoint of the run named.
    Directory(PathBuf),
    /// A GGUF file, or the first part of one.
    Gguf(PathBuf),
}

impl Location {
    /// The directory or file.
    pub fn path(&self) -> &Path {
        let (Location::Directory(path) | Location::Gguf(path)) = self;
        path
    }
}

/// Number format of matrices while a model answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Quant {
    /// As the file has them
    #[default]
    Stored,
    /// 8 bits
    Q8,
    /// 4 bits; embedding and head 8
    Q4,
}

impl From<Quant> for Quantise {
    fn from(quant: Quant) -> Self {
        match quant {
            Quant::Stored => Quantise::AsStored,
            Quant::Q8 => Quantise::Q8,
            Quant::Q4 => Quantise::Q4,
        }
    }
}

/// Number format of the keys and values that a model remembers while it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum CacheNumbers {
    /// 32 bits, as in training
    F32,
    /// 16 bits
    F16,
}

/// How a model is held while it answers.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct HoldArgs {
    /// Number format of the matrices
    #[arg(long, value_enum, default_value_t)]
    pub quant: Quant,
    /// Number format of the cache
    #[arg(long, value_enum, default_value_t = CacheNumbers::F16)]
    pub cache: CacheNumbers,
    /// In latent attention: keep all heads' keys and values instead of the latents
    #[arg(long)]
    pub expanded: bool,
}

impl HoldArgs {
    /// What the cache keeps of a token.
    pub fn layout(&self, config: &ModelConfig) -> CacheLayout {
        match config.attention.is_mla() && !self.expanded {
            true => CacheLayout::Latent,
            false => CacheLayout::Expanded,
        }
    }

    /// How the cache keeps its numbers.
    pub fn numbers(&self) -> Numbers {
        match self.cache {
            CacheNumbers::F32 => Numbers::F32,
            CacheNumbers::F16 => Numbers::F16,
        }
    }

    /// The model for sequences of up to `context` tokens, and its weights as they are held.
    pub fn take(&self, open: &OpenModel, context: usize) -> Result<(Model, Params)> {
        let model = Model::new(open.config.clone(), context);
        let mut params = open.inference_params(self.quant.into())?;
        if self.layout(&open.config) == CacheLayout::Latent {
            params.prepare_latent(&model);
        }
        Ok((model, params))
    }
}

/// Experts of more bytes stay in their file until they are used: reading all of them takes longer than a second.
const PACK_EXPERT_BYTES: u64 = 1 << 30;

/// Finds the model that the command line means.
pub fn locate(model: &Path) -> Result<Location> {
    if is_gguf(model) {
        return Ok(Location::Gguf(model.to_path_buf()));
    }
    Ok(Location::Directory(model_folder(model)?))
}

/// Whether a path is that of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Where a directory has its `config.json`: in itself, in the newest checkpoint of a stage, or in that of the last
/// stage of a run that has one.
pub fn model_folder(model: &Path) -> Result<PathBuf> {
    if model.join("run.json").is_file() {
        let recipe = Recipe::load(&model.join("recipe.toml"))?;
        let stages = recipe.stages.iter().rev().map(|stage| stage.name.as_str()).chain([PRETRAIN]);
        for stage in stages.map(|stage| model.join(stage)).filter(|stage| stage.is_dir()) {
            if let Some(newest) = checkpoint::latest(&stage)? {
                return Ok(newest.path);
            }
        }
        return Err(refuse(format!("the run {} has no checkpoint yet", model.display()), "let it train first"));
    }
    if model.join("metrics.jsonl").is_file()
        && let Some(newest) = checkpoint::latest(model)?
    {
        return Ok(newest.path);
    }
    if !model.join("config.json").is_file() {
        let message = format!("{} is no model", model.display());
        let hint = "give a directory with config.json and safetensors files, a run, or a .gguf file";
        return Err(refuse(message, hint));
    }
    Ok(model.to_path_buf())
}

/// A model whose files have been opened and fit each other.
pub struct OpenModel {
    /// What it is.
    pub config: ModelConfig,
    /// Where its numbers are.
    pub weights: Weights,
    /// `None` if there is none beside the weights.
    pub tokenizer: Option<Tokenizer>,
}

/// The weights of a model, mapped.
pub enum Weights {
    /// Safetensors files.
    Files(Files),
    /// A GGUF file.
    Gguf(GgufFile),
}

impl OpenModel {
    /// Opens the model at `location`; says on stderr what of its files is ignored.
    pub fn open(location: &Location) -> Result<OpenModel> {
        match location {
            Location::Directory(folder) => {
                let (config, files, notes) = open_dir(folder)?;
                report(&notes);
                Ok(OpenModel { config, weights: Weights::Files(files), tokenizer: read_tokenizer(location)? })
            }
            Location::Gguf(path) => {
                let (config, file, notes) = GgufFile::open_model(path)?;
                report(&notes);
                let tokenizer = gguf_tokenizer(&file)?;
                Ok(OpenModel { config, weights: Weights::Gguf(file), tokenizer })
            }
        }
    }

    /// The weights for answering, quantised if so asked: packed, large experts when they are first used, up to half of
    /// the memory that is left; the others stay in the file.
    pub fn inference_params(&self, quantise: Quantise) -> Result<Params> {
        let pack_bytes = machine::available_memory_bytes().map_or(u64::MAX, |bytes| bytes / 2);
        let hold = Hold { quantise, pack_bytes, pack_expert_bytes: PACK_EXPERT_BYTES };
        let (params, _) = match &self.weights {
            Weights::Files(files) => Params::from_files(files, &self.config, hold)?,
            Weights::Gguf(file) => Params::from_gguf(file, &self.config, hold)?,
        };
        Ok(params)
    }
}

impl Weights {
    /// Hands all weights to `sink` as f32.
    pub fn load(&self, config: &ModelConfig, sink: &mut Sink<'_>) -> Result<()> {
        match self {
            Weights::Files(files) => _ = files.load(config, sink)?,
            Weights::Gguf(file) => _ = file.load(config, sink)?,
        }
        Ok(())
    }
}

/// The configuration of the model at `location`, without a look at its weights; of a GGUF file, [`in_directory`].
pub fn read_config(location: &Location) -> Result<ModelConfig> {
    let (config, notes) = match location {
        Location::Directory(folder) => read_config_file(&folder.join("config.json"))?,
        Location::Gguf(path) => {
            let (config, notes) = GgufFile::open(path)?.config()?;
            (in_directory(config), notes)
        }
    };
    report(&notes);
    Ok(config)
}

/// A `config.json`.
pub fn read_config_file(file: &Path) -> Result<(ModelConfig, Vec<Note>)> {
    let text =
        files::read_text(file, files::SMALL_BYTES_MAX).with_context(|| format!("cannot read {}", file.display()))?;
    ModelConfig::from_hf_json(&text).with_context(|| format!("cannot use {}", file.display()))
}

/// A GGUF file's model as a directory would have it: ggml's converter reorders the rows of a Llama's queries and keys.
pub fn in_directory(mut config: ModelConfig) -> ModelConfig {
    if config.family == Family::Llama {
        config.rope.layout = RopeLayout::HalfSplit;
    }
    config
}

/// Query and key rows of a Llama from GGUF's order to that of [`in_directory`].
pub fn split_rows(config: &ModelConfig, params: &mut Params) {
    let Attention::Gqa { head_dim, .. } = config.attention else { return };
    if config.family != Family::Llama {
        return;
    }
    for param in 0..params.specs().len() {
        let spec = &params.specs()[param];
        let cols = if spec.rows == 1 { 1 } else { spec.cols };
        if spec.name.contains(".q_proj.") || spec.name.contains(".k_proj.") {
            params.values[param] = gguf::split_rows(&params.values[param], head_dim, cols);
        }
    }
}

/// All weights of a model as f32, for a configuration that is known and, of a GGUF file, [`in_directory`].
pub fn load_params(location: &Location, config: &ModelConfig) -> Result<Params> {
    let mut params = Params::zeros(config);
    let sink: &mut Sink<'_> = &mut |param, first_row, _, values| params.set_rows(param, first_row, values);
    match location {
        Location::Directory(folder) => _ = Files::open(folder)?.load(config, sink)?,
        Location::Gguf(path) => {
            GgufFile::open(path)?.load(config, sink)?;
            split_rows(config, &mut params);
        }
    }
    Ok(params)
}

/// The tokenizer that comes with a model, if one does.
pub fn read_tokenizer(location: &Location) -> Result<Option<Tokenizer>> {
    match location {
        Location::Directory(folder) if folder.join("tokenizer.json").is_file() => Ok(Some(Tokenizer::load(folder)?)),
        Location::Directory(_) => Ok(None),
        Location::Gguf(path) => gguf_tokenizer(&GgufFile::open(path)?),
    }
}

/// Says what was ignored.
pub fn report(notes: &[Note]) {
    notes.iter().for_each(|note| eprintln!("note: {note}"));
}

/// The tokenizer of a GGUF file; `None` if it has none.
pub fn gguf_tokenizer(file: &GgufFile) -> Result<Option<Tokenizer>> {
    let cannot = || format!("cannot use the tokenizer of {}", file.path().display());
    match vocabulary(&file.metadata()).with_context(cannot)? {
        Some(vocabulary) => Tokenizer::from_gguf(&vocabulary).map(Some).with_context(cannot),
        None => Ok(None),
    }
}

/// The `tokenizer.*` keys.
fn vocabulary(metadata: &Metadata) -> Result<Option<GgufVocabulary>> {
    let bad = |key: &str, value: &Value, expected: &str| {
        refuse(format!("`{key}` is {value}, expected {expected}"), "the file is damaged, or made by a faulty program")
    };
    let text = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => {
            value.as_str().map(|text| Some(text.to_owned())).ok_or_else(|| bad(key, &value, "a string in UTF-8"))
        }
    };
    let id = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => match value.as_u64().and_then(|id| u32::try_from(id).ok()) {
            Some(id) => Ok(Some(id)),
            None => Err(bad(key, &value, "a token id")),
        },
    };
    let flag = |key: &str| match metadata.get(key) {
        None => Ok(None),
        Some(value) => value.as_bool().map(Some).ok_or_else(|| bad(key, &value, "true or false")),
    };
    let texts = |key: &str| -> Result<Vec<String>> {
        let Some(value) = metadata.get(key) else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| bad(key, &value, "a list"))?;
        let text = |value: Value| {
            value.as_str().map(str::to_owned).ok_or_else(|| bad(key, &value, "only strings in UTF-8 in the list"))
        };
        array.iter().map(text).collect()
    };
    let kinds = |key: &str| -> Result<Vec<TokenKind>> {
        let Some(value) = metadata.get(key) else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| bad(key, &value, "a list"))?;
        let kind = |value: Value| {
            let kind = value.as_u64().and_then(TokenKind::from_id);
            kind.ok_or_else(|| bad(key, &value, "only types from 1 to 6 in the list"))
        };
        array.iter().map(kind).collect()
    };
    let Some(model) = text("tokenizer.ggml.model")? else { return Ok(None) };
    if model == "no_vocab" || model == "none" {
        return Ok(None);
    }
    Ok(Some(GgufVocabulary {
        model,
        pre: text("tokenizer.ggml.pre")?,
        tokens: texts("tokenizer.ggml.tokens")?,
        kinds: kinds("tokenizer.ggml.token_type")?,
        merges: texts("tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        pad: id("tokenizer.ggml.padding_token_id")?,
        add_bos: flag("tokenizer.ggml.add_bos_token")?,
        add_eos: flag("tokenizer.ggml.add_eos_token")?,
        chat_template: text("tokenizer.chat_template")?,
    }))
}

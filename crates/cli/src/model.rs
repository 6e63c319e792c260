//! MODEL on the command line: a run, a Hugging Face directory, a GGUF file, or the name of a model.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use wels_data::ChatTemplate;
use wels_data::tokenizer::Tokenizer;
use wels_device::{Device, Dtype, Precision};
use wels_engine::{Numbers, Options};
use wels_model::adapter::{Adapter, AdapterFiles};
use wels_model::config::{ModelConfig, Note};
use wels_model::gguf::GgufFile;
use wels_model::inference::{LoadOptions, Quantise};
use wels_model::model::Model;
use wels_model::paged::{CacheDtype, CacheLayout};
use wels_model::params::Params;
use wels_model::placement::{Place, Placement};
use wels_model::sizes::WeightSizes;
use wels_model::weights::{Files, Sink, open_dir};
use wels_pipeline::adapters;
pub use wels_pipeline::model::{Location, in_directory, load_params, read_config, read_config_file, split_rows};
use wels_pipeline::model::{gguf_tokenizer, read_tokenizer};
use wels_pipeline::refusal::refuse;
use wels_runs::machine;
use wels_server::prompt::ServedModel;

use crate::over::Over;
use crate::placement::{self, Demand, PlacementArgs};
use crate::pull;

/// Finds the model that the command line means; fetches it if that is a name.
pub fn locate(model: &Path) -> Result<Location> {
    wels_pipeline::model::locate(&pull::find(model)?)
}

/// An adapter beside MODEL on the command line.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct AdapterArg {
    /// A LoRA adapter of the model: a directory in PEFT's form, or a run or stage that trained one
    #[arg(long, value_name = "DIR")]
    pub adapter: Option<PathBuf>,
}

impl AdapterArg {
    /// [`locate`], with the adapter if one is named.
    pub fn locate(&self, model: &Path) -> Result<Location> {
        let model = locate(model)?;
        match &self.adapter {
            None => Ok(model),
            Some(adapter) => with_adapter(model, adapter),
        }
    }
}

/// A model with an adapter.
pub fn with_adapter(model: Location, adapter: &Path) -> Result<Location> {
    // What is neither a run nor a model is an adapter, or refused as one.
    let folder = wels_pipeline::model::model_folder(adapter).unwrap_or_else(|_| adapter.to_path_buf());
    wels_pipeline::adapters::adapted(Some(model), &folder)
}

/// What a model is called that nobody has named: by its name, its directory or its file.
pub fn default_name(model: &Path) -> String {
    if let Some(title) = pull::title(model) {
        return title;
    }
    let whole = std::fs::canonicalize(model).unwrap_or_else(|_| model.to_path_buf());
    let name = if whole.is_file() { whole.file_stem() } else { whole.file_name() };
    name.map_or_else(|| "model".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// Refuses a context whose table of rotary positions, which is made at once, would take more than a quarter of the
/// memory that is left: `max_position_embeddings` is what a file says.
pub fn check_context(config: &ModelConfig, context: usize) -> Result<()> {
    // A cosine and a sine for each pair.
    let bytes = 4 * (context * config.attention.rope_dim()) as u64;
    match machine::available_memory_bytes() {
        Some(left) if bytes > left / 4 => Err(refuse(
            format!(
                "the positions of a context of {context} tokens take {} MB, more than there is room for",
                bytes / 1_000_000
            ),
            "give fewer tokens: --context N",
        )),
        _ => Ok(()),
    }
}

/// What answers to conversations are made from besides the engine, for a context of so many tokens; nobody has named
/// it.
pub fn served_model(config: &ModelConfig, tokenizer: &Arc<Tokenizer>, context: usize) -> Result<ServedModel> {
    let mut stop_tokens = config.eos_ids.clone();
    stop_tokens.extend(tokenizer.special().eos.filter(|eos| !config.eos_ids.contains(eos)));
    // gpt-oss ends what it says to a tool so; its `config.json` does not tell.
    stop_tokens.extend(tokenizer.id("<|call|>").filter(|call| tokenizer.is_special(*call)));
    Ok(ServedModel {
        names: Vec::new(),
        template: ChatTemplate::of(tokenizer)?,
        template_source: tokenizer.chat_template().unwrap_or_default().to_owned(),
        pictures: None,
        stop_tokens,
        context,
        output_tokens_max: context,
        embedding_width: config.hidden_size,
        fingerprint: String::new(),
        created_unix_s: 0,
        adapter: None,
        tokenizer: Arc::clone(tokenizer),
    })
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
pub enum CacheDtypeArg {
    /// 32 bits, as in training; on a GPU all else is computed in f32 too
    F32,
    /// 16 bits: f16, on a GPU bf16
    F16,
}

/// How a model is held while it answers.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct LoadArgs {
    /// Number format of the matrices
    #[arg(long, value_enum, default_value_t)]
    pub quant: Quant,
    /// Number format of the cache
    #[arg(long, value_enum, default_value_t = CacheDtypeArg::F16)]
    pub cache: CacheDtypeArg,
    /// In latent attention: keep all heads' keys and values instead of the latents
    #[arg(long)]
    pub expanded: bool,
    #[command(flatten)]
    pub place: PlacementArgs,
}

impl LoadArgs {
    /// What the cache keeps of a token.
    pub fn layout(&self, config: &ModelConfig) -> CacheLayout {
        match config.attention.is_mla() && !self.expanded {
            true => CacheLayout::Latent,
            false => CacheLayout::Expanded,
        }
    }

    /// Arithmetic, and the number format of the KV cache. A device that can keep activations in bf16 does, and its
    /// cache is bf16, unless 32 bits are asked for.
    pub fn numbers(&self, device: &dyn Device) -> Numbers {
        let (precision, cache_dtype) = match (self.cache, device.activations(Precision::Bf16)) {
            (CacheDtypeArg::F32, _) => (Precision::F32, CacheDtype::F32),
            (CacheDtypeArg::F16, Dtype::F32) => (Precision::F32, CacheDtype::F16),
            (CacheDtypeArg::F16, Dtype::Bf16) => (Precision::Bf16, CacheDtype::Bf16),
        };
        Numbers { precision, cache_dtype }
    }

    fn both_numbers(&self, placement: &Placement) -> [Numbers; 2] {
        [Place::Main, Place::Other].map(|place| self.numbers(&**placement.device(place)))
    }

    /// What a model in this placement needs, with a cache of so many bytes and `rows` tokens in a step.
    pub fn demand(&self, placement: &Placement, config: &ModelConfig, cache_bytes: usize, rows: usize) -> Demand {
        let numbers = self.both_numbers(placement);
        Demand { rows, layout: self.layout(config), numbers, cache_bytes }
    }

    /// How an engine runs weights in this placement.
    pub fn options(&self, placement: &Placement, config: &ModelConfig) -> Options {
        let [main, other] = self.both_numbers(placement);
        let Numbers { precision, cache_dtype } = main;
        Options { layout: self.layout(config), precision, cache_dtype, other: Some(other), ..Options::default() }
    }

    /// The model for sequences of up to `context` tokens, and its weights as they are held, where there is room for
    /// them and a cache of so many bytes.
    pub fn take(&self, open: &OpenModel, context: usize, cache_bytes: usize) -> Result<(Model, Params)> {
        let placement = self.place.open(&open.config)?;
        let demand = self.demand(&placement, &open.config, cache_bytes, Options::default().max_batch_tokens);
        let params = open.inference_params(&placement, self.quant.into(), demand, self.place.over)?;
        Ok(self.prepare(&open.config, params, context))
    }

    /// The same with the bytes of a cache for which there is memory beside them.
    pub fn take_with_cache(
        &self,
        open: &OpenModel,
        context: usize,
        cache_mib: NonZeroUsize,
    ) -> Result<(Model, Params, usize)> {
        let (model, params) = self.take(open, context, cache_mib.get().saturating_mul(1 << 20))?;
        let (placement, config) = (params.placement(), &open.config);
        let bytes = placement::cache_bytes(cache_mib, placement, config, &self.demand(placement, config, 0, 0))?;
        Ok((model, params, bytes))
    }

    /// Bytes that [`LoadArgs::take_with_cache`] takes of the main device's memory, and how many that has left.
    pub fn memory(&self, open: &OpenModel, cache_mib: NonZeroUsize) -> Result<(u64, Option<u64>)> {
        let placement = self.place.open(&open.config)?;
        let cache_bytes = cache_mib.get().saturating_mul(1 << 20);
        let demand = self.demand(&placement, &open.config, cache_bytes, Options::default().max_batch_tokens);
        let sizes = open.sizes(self.quant.into(), demand.layout)?;
        let needs = placement::needs(&placement, &open.config, &sizes, demand);
        Ok((needs, placement::left(placement.main()).0))
    }

    /// The same of weights that are there.
    pub fn prepare(&self, config: &ModelConfig, mut params: Params, context: usize) -> (Model, Params) {
        let model = Model::new(config.clone(), context);
        if self.layout(config) == CacheLayout::Latent {
            params.prepare_latent(&model);
        }
        (model, params)
    }
}

/// Experts of more bytes stay in their file until they are used: reading all of them takes longer than a second.
const PACK_EXPERT_BYTES: u64 = 1 << 30;

/// A model whose files have been opened and fit each other.
pub struct OpenModel {
    pub config: ModelConfig,
    /// Where its numbers are.
    pub weights: Weights,
    /// `None` if there is none beside the weights.
    pub tokenizer: Option<Tokenizer>,
    /// What is added to the weights, if something is.
    pub adapter: Option<AdapterFiles>,
}

/// The weights of a model, mapped.
pub enum Weights {
    /// Safetensors files.
    Files(Files),
    Gguf(GgufFile),
}

impl OpenModel {
    /// Opens the model at `location`; says on stderr what of its files is ignored.
    pub fn open(location: &Location) -> Result<OpenModel> {
        match location {
            Location::Directory(folder) => {
                let (config, files, notes) = open_dir(folder)?;
                report(&notes);
                let tokenizer = read_tokenizer(location)?;
                Ok(OpenModel { config, weights: Weights::Files(files), tokenizer, adapter: None })
            }
            Location::Gguf(path) => {
                let (config, file, notes) = GgufFile::open_model(path)?;
                report(&notes);
                let tokenizer = gguf_tokenizer(&file)?;
                Ok(OpenModel { config, weights: Weights::Gguf(file), tokenizer, adapter: None })
            }
            Location::Adapted { base, adapter } => {
                Ok(OpenModel { adapter: Some(AdapterFiles::open(adapter)?), ..OpenModel::open(base)? })
            }
        }
    }

    /// The adapter, if there is one, where the matrices are that it changes.
    pub fn load_adapter(&self, params: &Params) -> Result<Option<Adapter>> {
        self.adapter.as_ref().map(|files| adapters::load(files, &self.config, params)).transpose()
    }

    /// The weights for answering, quantised if so asked: packed, large experts when they are first used, up to half of
    /// the memory that is left; the others stay in the file. A device with memory of its own has to have room. Over
    /// several ranks, all of them do this.
    pub fn inference_params(
        &self,
        placement: &Placement,
        quantise: Quantise,
        demand: Demand,
        over: Option<&Over>,
    ) -> Result<Params> {
        placement::check(placement, &self.config, &self.sizes(quantise, demand.layout)?, demand)?;
        let (ranks, pack_bytes) = match over {
            Some(over) => (over.world() as u64, over.pack_bytes()?),
            None => (1, machine::available_memory_bytes().map_or(u64::MAX, |bytes| bytes / 2)),
        };
        let options = LoadOptions {
            pack_bytes,
            pack_expert_bytes: ranks * PACK_EXPERT_BYTES,
            ranks,
            ..LoadOptions::packed(quantise)
        };
        let (mut params, _) = match &self.weights {
            Weights::Files(files) => Params::from_files(placement, files, &self.config, options)?,
            Weights::Gguf(file) => Params::from_gguf(placement, file, &self.config, options)?,
        };
        if let Some(adapter) = self.load_adapter(&params)? {
            params.attach(&adapter);
        }
        Ok(params)
    }

    pub fn sizes(&self, quantise: Quantise, layout: CacheLayout) -> Result<WeightSizes> {
        Ok(match &self.weights {
            Weights::Files(files) => WeightSizes::of_files(files, &self.config, quantise, layout)?,
            Weights::Gguf(file) => WeightSizes::of_gguf(file, &self.config, quantise, layout)?,
        })
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

/// Says what was ignored.
pub fn report(notes: &[Note]) {
    notes.iter().for_each(|note| eprintln!("note: {note}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_whose_positions_do_not_fit_is_refused() {
        let config = wels_model::presets::preset("deepseek-v3").unwrap();
        check_context(&config, 4096).unwrap();
        if machine::available_memory_bytes().is_some() {
            let error = check_context(&config, 1 << 40).unwrap_err().to_string();
            assert!(error.starts_with("the positions of a context of 1099511627776 tokens take "), "{error}");
        }
    }
}

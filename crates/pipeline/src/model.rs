//! A model that a recipe or command line names: a run, a Hugging Face directory, a GGUF file, or an adapter's
//! directory, which stands for its base with the adapter.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use wels_data::tokenizer::{GgufVocabulary, TokenKind, Tokenizer};
use wels_device::Device;
use wels_model::adapter::AdapterFiles;
use wels_model::config::{Attention, Family, ModelConfig, Note, Precision, RopeLayout};
use wels_model::expert_parallel::ExpertShare;
use wels_model::gguf::{self, GgufFile, Metadata, Value};
use wels_model::params::Params;
use wels_model::weights::{self, Files, Sink};
use wels_runs::checkpoint;
use wels_runs::files;
use wels_runs::recipe::{Base, PRETRAIN, Recipe};

use crate::adapters::{adapted, attach};
pub use crate::location::Location;
use crate::refusal::refuse;

/// Finds the model that the command line means.
pub fn locate(model: &Path) -> Result<Location> {
    if is_gguf(model) {
        return Ok(Location::Gguf(model.to_path_buf()));
    }
    let folder = model_folder(model)?;
    if AdapterFiles::are_in(&folder) { adapted(None, &folder) } else { Ok(Location::Directory(folder)) }
}

/// Whether a path is that of a GGUF file.
pub fn is_gguf(path: &Path) -> bool {
    path.is_file() && path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

/// Where a directory has its `config.json`, or an adapter's: in itself, in the newest checkpoint of a stage, or in that
/// of the last stage of a run that has one.
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
    if !model.join("config.json").is_file() && !AdapterFiles::are_in(model) {
        let message = format!("{} is no model", model.display());
        let hint = "give a directory with config.json and safetensors files, a run, an adapter, or a .gguf file";
        return Err(refuse(message, hint));
    }
    Ok(model.to_path_buf())
}

/// The configuration of the model at `location`, without a look at its weights; of a GGUF file, [`in_directory`].
/// With what of it is ignored.
pub fn read_config(location: &Location) -> Result<(ModelConfig, Vec<Note>)> {
    match location {
        Location::Directory(folder) => {
            let (mut config, notes) = read_config_file(&folder.join("config.json"))?;
            weights::add_ends(&mut config, folder)?;
            Ok((config, notes))
        }
        Location::Gguf(path) => {
            let (config, notes) = GgufFile::open(path)?.config()?;
            Ok((in_directory(config), notes))
        }
        Location::Adapted { base, .. } => read_config(base),
    }
}

/// A `config.json`.
pub fn read_config_file(file: &Path) -> Result<(ModelConfig, Vec<Note>)> {
    let text =
        files::read_text(file, files::SMALL_BYTES_MAX).with_context(|| format!("cannot read {}", file.display()))?;
    ModelConfig::from_hf_json(&text).with_context(|| format!("cannot use {}", file.display()))
}

/// The configuration of a model whose files fit it.
pub fn config_of(model: &Location) -> Result<ModelConfig> {
    Ok(match model {
        Location::Directory(folder) => weights::open_dir(folder)?.0,
        Location::Gguf(path) => in_directory(GgufFile::open_model(path)?.0),
        Location::Adapted { base, .. } => return config_of(base),
    })
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
            let rows = gguf::split_rows(&params.tensors()[param].to_host(), head_dim, cols);
            params.set_values(param, &rows);
        }
    }
}

/// All weights of a model as f32, for a configuration that is known and, of a GGUF file, [`in_directory`]; an adapter
/// is behind them.
pub fn load_params(device: &Arc<dyn Device>, location: &Location, config: &ModelConfig) -> Result<Params> {
    load_share(device, location, config, None)
}

/// [`load_params`] with a share of the experts alone.
pub(crate) fn load_share(
    device: &Arc<dyn Device>,
    location: &Location,
    config: &ModelConfig,
    share: Option<ExpertShare>,
) -> Result<Params> {
    if let Location::Adapted { base, adapter } = location {
        let mut params = load_share(device, base, config, share)?;
        attach(&mut params, config, adapter)?;
        return Ok(params);
    }
    let mut params = Params::zeros_shared(device, config, share);
    let sink: &mut Sink<'_> = &mut |param, first_row, _, values| params.set_rows(param, first_row, values);
    match location {
        Location::Directory(folder) => _ = Files::open(folder)?.load(config, sink)?,
        Location::Gguf(path) => {
            GgufFile::open(path)?.load(config, sink)?;
            split_rows(config, &mut params);
        }
        Location::Adapted { .. } => unreachable!("above"),
    }
    Ok(params)
}

/// [`load_params`] of weights that an adapter leaves as they are, for products in `precision`, held as `base` says.
///
/// # Errors
/// Those of loading, and other formats than f32 where products do not take them.
pub(crate) fn load_frozen(
    device: &Arc<dyn Device>,
    location: &Location,
    config: &ModelConfig,
    precision: Precision,
    base: Base,
) -> Result<Params> {
    if let Location::Adapted { base: model, adapter } = location {
        let mut params = load_frozen(device, model, config, precision, base)?;
        attach(&mut params, config, adapter)?;
        return Ok(params);
    }
    let narrow = precision == Precision::F32 && device.memory().is_none();
    let Some(held) = base.held().filter(|_| narrow) else {
        // As they are stored, weights may be held in f32 too, without a change.
        if matches!(base, Base::Stored | Base::F32) {
            return load_params(device, location, config);
        }
        let word = base.word();
        let (products, hint) = match device.memory() {
            Some(_) => (format!("products on {}", device.name()), "train on the processor, or leave lora.base out"),
            None => ("products in 16 bits".into(), "leave precision out, or lora.base"),
        };
        return Err(refuse(format!("lora.base is \"{word}\", which {products} do not take"), hint));
    };
    match location {
        Location::Directory(folder) => Ok(Params::frozen_from_files(device, &Files::open(folder)?, config, held)?),
        Location::Gguf(path) => Ok(Params::frozen_from_gguf(device, &GgufFile::open(path)?, config, held)?),
        Location::Adapted { .. } => unreachable!("above"),
    }
}

/// The tokenizer that comes with a model, if one does.
pub fn read_tokenizer(location: &Location) -> Result<Option<Tokenizer>> {
    match location {
        Location::Directory(folder) if Tokenizer::file_in(folder).is_some() => Ok(Some(Tokenizer::load(folder)?)),
        Location::Directory(_) => Ok(None),
        Location::Gguf(path) => gguf_tokenizer(&GgufFile::open(path)?),
        Location::Adapted { base, .. } => read_tokenizer(base),
    }
}

/// A `tokenizer.json`, the folder it is in, or the tokenizer of a GGUF file.
pub fn named_tokenizer(path: &Path) -> Result<Tokenizer> {
    if !is_gguf(path) {
        return Ok(Tokenizer::load(path)?);
    }
    read_tokenizer(&Location::Gguf(path.to_path_buf()))?
        .ok_or_else(|| refuse("the file holds no tokenizer", "name a tokenizer.json"))
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
    let scores = |key: &str| -> Result<Vec<f32>> {
        let Some(value) = metadata.get(key) else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| bad(key, &value, "a list"))?;
        let score = |value: Value| value.as_f64().map(|it| it as f32).ok_or_else(|| bad(key, &value, "only numbers"));
        array.iter().map(score).collect()
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
        scores: scores("tokenizer.ggml.scores")?,
        add_space_prefix: flag("tokenizer.ggml.add_space_prefix")?,
        merges: texts("tokenizer.ggml.merges")?,
        bos: id("tokenizer.ggml.bos_token_id")?,
        eos: id("tokenizer.ggml.eos_token_id")?,
        pad: id("tokenizer.ggml.padding_token_id")?,
        add_bos: flag("tokenizer.ggml.add_bos_token")?,
        add_eos: flag("tokenizer.ggml.add_eos_token")?,
        chat_template: text("tokenizer.chat_template")?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use wels_cpu::naive::Naive;
    use wels_device::DeviceMemory;

    #[test]
    fn narrow_bases_are_refused_where_a_device_does_not_take_them() {
        let card: Arc<dyn Device> = Naive::with_memory(DeviceMemory { total: 1 << 30, free: 1 << 30, peak: 0 });
        let config = wels_model::presets::preset("smollm2-135m").unwrap();
        for base in [Base::Bf16, Base::Q8, Base::Q4, Base::Q41] {
            let error = load_frozen(&card, &Location::Gguf("none.gguf".into()), &config, Precision::F32, base);
            let error = error.err().map(|error| format!("{error:?}")).unwrap_or_default();
            assert!(
                error.contains(&format!("lora.base is \"{}\", which products on naive do not take", base.word())),
                "{error}"
            );
        }
    }
}

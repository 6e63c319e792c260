//! `wels convert IN OUT [--dtype TYPE]`: a run, a Hugging Face directory or a GGUF file → a Hugging Face directory, or
//! a GGUF file if OUT ends in `.gguf`. The tokenizer and its chat template go along. `--merge ADAPTER` adds an adapter
//! to the weights first; `--indexer TOP_K` makes a `deepseek_v32` model of a `deepseek_v3` one, to be trained on.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_data::tokenizer::Tokenizer;
use wels_kernels::quant::blocks::BlockType;
use wels_model::config::{Attention, Dtype, Family, Indexer, ModelConfig, RopeLayout};
use wels_model::gguf::{self, GgufFile, Item};
use wels_model::params::Params;
use wels_model::weights::{DEFAULT_SHARD_BYTES, save_dir};
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::files::write_folder_atomically;

use crate::model::{AdapterArg, Location, OpenModel, Weights, in_directory, split_rows};
use crate::progress::Progress;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// What to write: a GGUF file if the name ends in .gguf, otherwise a Hugging Face directory
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// How to store the matrices; a directory takes f32, bf16, f16 and fp8, a GGUF file all but fp8
    #[arg(long, value_enum, value_name = "TYPE", default_value = "bf16")]
    dtype: Stored,
    /// Add this LoRA adapter, a directory in PEFT's form, to the weights
    #[arg(long, value_name = "ADAPTER")]
    merge: Option<PathBuf>,
    /// Give a deepseek_v3 model indexers that choose so many keys for each query (DeepSeek Sparse Attention), with
    /// random weights: a deepseek_v32 model, whose indexers a stage with `indexer_weight` trains
    #[arg(long, value_name = "TOP_K", value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    indexer: Option<u32>,
}

/// Number formats that are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum Stored {
    F32,
    Bf16,
    F16,
    /// E4M3 with scales for blocks of 128×128, as DeepSeek-V3 is published
    Fp8,
    #[value(name = "q8_0")]
    Q8,
    #[value(name = "q4_0")]
    Q4,
    #[value(name = "q4_1")]
    Q4WithMinimum,
}

impl Stored {
    fn in_directory(self) -> Option<Dtype> {
        match self {
            Stored::F32 => Some(Dtype::F32),
            Stored::Bf16 => Some(Dtype::Bf16),
            Stored::F16 => Some(Dtype::F16),
            Stored::Fp8 => Some(Dtype::Fp8),
            Stored::Q8 | Stored::Q4 | Stored::Q4WithMinimum => None,
        }
    }

    fn in_gguf(self) -> Option<BlockType> {
        match self {
            Stored::F32 => Some(BlockType::F32),
            Stored::Bf16 => Some(BlockType::Bf16),
            Stored::F16 => Some(BlockType::F16),
            Stored::Fp8 => None,
            Stored::Q8 => Some(BlockType::Q8_0),
            Stored::Q4 => Some(BlockType::Q4_0),
            Stored::Q4WithMinimum => Some(BlockType::Q4_1),
        }
    }
}

/// Where to, and how stored.
enum Target {
    Directory(Dtype),
    Gguf(BlockType),
}

/// Converts.
pub fn convert(args: &Args) -> Result<()> {
    let target = target(args)?;
    if args.output.symlink_metadata().is_ok() {
        return Err(refuse(format!("{} already exists", args.output.display()), "choose another name"));
    }
    let location = AdapterArg { adapter: args.merge.clone() }.locate(&args.input)?;
    let mut model = OpenModel::open(&location)?;
    if model.tokenizer.is_none() {
        eprintln!("note: {} has no tokenizer; {} will have none", args.input.display(), args.output.display());
    }
    let mut params = load(&model)?;
    if let Some(adapter) = model.load_adapter(&params)? {
        params.merge(&adapter);
    }
    if let Some(top_k) = args.indexer {
        let config = with_indexer(&model.config, top_k as usize)?;
        params = with_others(&config, &params);
        model.config = config;
    }
    match target {
        Target::Directory(dtype) => {
            if matches!(model.weights, Weights::Gguf(_)) {
                split_rows(&model.config, &mut params);
                model.config = in_directory(model.config);
            }
            write_directory(&args.output, &model, dtype, &params)
        }
        Target::Gguf(kind) => write_gguf(&args.output, &name_of(&location, &model), &model, kind, &params),
    }
}

/// The configuration with an indexer in each layer: half as many heads as attention has, as wide as these are without
/// their rotary part, as DeepSeek-V3.2 was made from V3.
fn with_indexer(config: &ModelConfig, top_k: usize) -> Result<ModelConfig> {
    let Attention::Mla { heads, q_lora_rank: Some(_), nope_dim, rope_dim, .. } = config.attention else {
        let message = format!("--indexer: {} has no query latent to choose keys by", config.family.model_type());
        return Err(refuse(message, "it is for models of deepseek_v3"));
    };
    if config.family != Family::DeepseekV3 || config.rope.layout != RopeLayout::Interleaved {
        let message = format!("--indexer makes deepseek_v32 of deepseek_v3, not of {}", config.family.model_type());
        return Err(refuse(message, "neighbours rotate together there, and keys are not chosen yet"));
    }
    let indexer = Indexer { heads: (heads / 2).max(1), dim: nope_dim.max(rope_dim), top_k };
    Ok(ModelConfig { family: Family::DeepseekV32, indexer: Some(indexer), ..config.clone() })
}

/// Parameters as before training, but those that are there already.
fn with_others(config: &ModelConfig, there: &Params) -> Params {
    let mut params = Params::init(&wels_cpu::device(), config, 0);
    for (param, spec) in there.specs().iter().enumerate() {
        let to = params.position(&spec.name).expect("a parameter that both have");
        params.set_values(to, &there.tensors()[param].to_host());
    }
    params
}

fn target(args: &Args) -> Result<Target> {
    let gguf = args.output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    let (found, what, hint) = match gguf {
        true => (args.dtype.in_gguf().map(Target::Gguf), "a GGUF file", "f32, bf16, f16, q8_0, q4_0 and q4_1"),
        false => {
            (args.dtype.in_directory().map(Target::Directory), "a Hugging Face directory", "f32, bf16, f16 and fp8")
        }
    };
    let word =
        clap::ValueEnum::to_possible_value(&args.dtype).map_or(String::new(), |value| value.get_name().to_owned());
    found.ok_or_else(|| refuse(format!("{what} is not written with --dtype {word}"), format!("it takes {hint}")))
}

/// All weights as f32, with progress.
fn load(model: &OpenModel) -> Result<Params> {
    let mut params = Params::zeros(&wels_cpu::device(), &model.config);
    let total: u64 = params.specs().iter().map(|spec| spec.len() as u64).sum();
    let mut progress = Progress::new("read", "numbers", 0, Some(total));
    let mut done = 0;
    model.weights.load(&model.config, &mut |param, first_row, _, values| {
        params.set_rows(param, first_row, values);
        done += values.len() as u64;
        progress.at(done, String::new);
    })?;
    progress.finish(&format!("{} parameters", short(total as f64)));
    Ok(params)
}

fn write_directory(folder: &Path, model: &OpenModel, dtype: Dtype, params: &Params) -> Result<()> {
    eprintln!("{:>9} {}", "write", folder.display());
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    if !parent.is_dir() {
        return Err(refuse(format!("there is no directory {}", parent.display()), "make it first"));
    }
    // A path of one part has no parent to sync.
    let folder = &std::path::absolute(folder).with_context(|| format!("cannot find {}", folder.display()))?;
    write_folder_atomically::<anyhow::Error>(folder, |temporary| {
        save_dir(temporary, &model.config, dtype, DEFAULT_SHARD_BYTES, &|param| params.tensors()[param].to_host())?;
        if let Some(tokenizer) = &model.tokenizer {
            tokenizer.save(temporary, model.config.rope.max_positions)?;
        }
        Ok(())
    })
    .with_context(|| format!("cannot write {}", folder.display()))
}

fn write_gguf(path: &Path, name: &str, model: &OpenModel, kind: BlockType, params: &Params) -> Result<()> {
    if model.config.mtp_depth > 0 {
        eprintln!("note: the layers for multi-token prediction are left out, as llama.cpp's converter does");
    }
    let mut keys = vec![("general.name".to_owned(), Item::Text(name.to_owned()))];
    if let Some(tokenizer) = &model.tokenizer {
        keys.extend(tokenizer_keys(tokenizer, &model.config)?);
    }
    let mut progress: Option<Progress> = None;
    gguf::save(path, &model.config, kind, &keys, &|param| params.tensors()[param].to_host(), &mut |done, total| {
        progress.get_or_insert_with(|| Progress::new("write", "bytes", 0, Some(total))).at(done, String::new);
    })?;
    if let Some(progress) = progress {
        progress.finish(&path.display().to_string());
    }
    Ok(())
}

/// A name for people: what the source calls itself, or is called.
fn name_of(location: &Location, model: &OpenModel) -> String {
    let said = |file: &GgufFile| file.metadata().get("general.name").and_then(|name| Some(name.as_str()?.to_owned()));
    if let (Location::Gguf(_), Weights::Gguf(file)) = (location, &model.weights)
        && let Some(said) = said(file)
    {
        return said;
    }
    let path = location.path();
    path.file_stem().map_or_else(|| "model".to_owned(), |stem| stem.to_string_lossy().into_owned())
}

/// The `tokenizer.*` keys.
fn tokenizer_keys(tokenizer: &Tokenizer, config: &ModelConfig) -> Result<Vec<(String, Item)>> {
    let vocabulary = tokenizer.to_gguf(config.vocab_size)?;
    let mut keys = Vec::new();
    let mut put = |key: &str, item: Item| keys.push((format!("tokenizer.{key}"), item));
    put("ggml.model", Item::Text(vocabulary.model));
    if let Some(pre) = vocabulary.pre {
        put("ggml.pre", Item::Text(pre));
    }
    put("ggml.tokens", Item::Texts(vocabulary.tokens));
    put("ggml.token_type", Item::Integers(vocabulary.kinds.iter().map(|kind| kind.id() as i32).collect()));
    put("ggml.merges", Item::Texts(vocabulary.merges));
    let ids = [("bos", vocabulary.bos), ("eos", vocabulary.eos), ("padding", vocabulary.pad)];
    for (role, id) in ids {
        if let Some(id) = id {
            put(&format!("ggml.{role}_token_id"), Item::Unsigned(id));
        }
    }
    for (role, add) in [("bos", vocabulary.add_bos), ("eos", vocabulary.add_eos)] {
        if let Some(add) = add {
            put(&format!("ggml.add_{role}_token"), Item::Bool(add));
        }
    }
    if let Some(template) = vocabulary.chat_template {
        put("chat_template", Item::Text(template));
    }
    Ok(keys)
}

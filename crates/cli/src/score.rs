//! `wels score MODEL (--text S | --file F | --ids 1,2,3)`: the log-probability of each token given those before it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_device::Precision;
use wels_engine::Numbers;
use wels_model::config::ModelConfig;
use wels_model::model::{Batch, Model};
use wels_model::paged::{CacheDtype, CacheLayout};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_pipeline::refusal::refuse;

use crate::model::{AdapterArg, OpenModel, Quant};
use crate::output;
use crate::placement::{Demand, PlacementArgs};

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Number format of the matrices
    #[arg(long, value_enum, default_value_t)]
    quant: Quant,
    #[command(flatten)]
    place: PlacementArgs,
    #[command(flatten)]
    adapter: AdapterArg,
    /// Cut the tokens into windows of this many, each scored alone, and count the second half of each, as
    /// llama-perplexity -c does; what is left over at the end is not scored
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(4..))]
    window: Option<u32>,
    /// Write one line of JSON: ids, logprobs (null for tokens that do not count, as the first), nll in nats a token,
    /// ppl, bits_per_byte
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text itself; a BOS token comes first where the tokenizer puts one in front of text
    #[arg(long, value_name = "TEXT")]
    text: Option<String>,
    /// A file with the text
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Token ids, taken as they are
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    ids: Option<Vec<u32>>,
}

/// What is written.
#[derive(Serialize)]
struct Score {
    ids: Vec<u32>,
    /// Natural logarithms; `null` for tokens that do not count: the first, which nothing predicts, and with windows
    /// those of first halves.
    logprobs: Vec<Option<f32>>,
    /// Mean over the tokens that count; `null` if none does, as of a single token.
    nll: Option<f64>,
    ppl: Option<f64>,
    /// Over the bytes of the tokens that count; `null` without a tokenizer, or if they stand for no byte.
    bits_per_byte: Option<f64>,
}

/// Scores a text.
pub fn score(args: &Args) -> Result<()> {
    let model = OpenModel::open(&args.adapter.locate(&args.model)?)?;
    let OpenModel { config, tokenizer, .. } = &model;
    let ids = args.input.ids(tokenizer.as_ref())?;
    check(&ids, args.window, config)?;
    let rows = args.window.map_or(ids.len(), |window| window as usize);
    let numbers = [Numbers { precision: Precision::F32, cache_dtype: CacheDtype::F32 }; 2];
    let demand = Demand { rows, layout: CacheLayout::Expanded, numbers, cache_bytes: 0 };
    let params = model.inference_params(&args.place.open(config)?, args.quant.into(), demand, None)?;
    let logprobs = match args.window {
        None => whole(config, &params, &ids),
        Some(window) => {
            let bos = tokenizer.as_ref().filter(|tokenizer| tokenizer.adds_bos()).and_then(|it| it.special().bos);
            windows(config, &params, &ids, window as usize, bos)
        }
    };
    let score = Score::new(ids, logprobs, tokenizer.as_ref());
    if args.json {
        output::json(&score)?;
    } else {
        for (id, logprob) in score.ids.iter().zip(&score.logprobs) {
            let token = tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&[*id])).transpose()?.unwrap_or_default();
            let logprob = logprob.map_or("-".to_string(), |logprob| format!("{logprob:.4}"));
            output::line(&format!("{id:>8} {logprob:>10} {token:?}"))?;
        }
        output::line(&score.in_words())?;
    }
    Ok(())
}

impl Input {
    fn ids(&self, tokenizer: Option<&Tokenizer>) -> Result<Vec<u32>> {
        let text = match self {
            Input { ids: Some(ids), .. } => return Ok(ids.clone()),
            Input { text: Some(text), .. } => text.clone(),
            Input { file: Some(file), .. } => {
                std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?
            }
            _ => unreachable!("clap requires one of the three"),
        };
        let tokenizer = tokenizer.ok_or_else(|| refuse("the model has no tokenizer", "give token ids with --ids"))?;
        let mut ids: Vec<u32> = tokenizer.special().bos.filter(|_| tokenizer.adds_bos()).into_iter().collect();
        ids.extend(tokenizer.encode_ordinary(&text)?);
        Ok(ids)
    }
}

fn check(ids: &[u32], window: Option<u32>, config: &ModelConfig) -> Result<()> {
    let (vocab_size, positions) = (config.vocab_size, config.rope.max_positions);
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(refuse(format!("token id {id} is not below the model's vocab_size {vocab_size}"), "check the ids"));
    }
    if ids.is_empty() {
        return Err(refuse("there are no tokens", "give a text, or ids"));
    }
    let at_once = window.map_or(ids.len(), |window| window as usize);
    if at_once > positions {
        let message = format!("there are {at_once} tokens, and the model's context is {positions}");
        return Err(refuse(message, "give a shorter text, or a smaller --window"));
    }
    if ids.len() < at_once {
        let message = format!("there are {} tokens, less than a window of {at_once}", ids.len());
        return Err(refuse(message, "give a longer text or a smaller --window"));
    }
    Ok(())
}

/// The log-probability of each token but the first, which nothing predicts.
fn whole(config: &ModelConfig, params: &Params, ids: &[u32]) -> Vec<Option<f32>> {
    if ids.len() == 1 {
        return vec![None];
    }
    let model = Model::new(config.clone(), ids.len() - 1);
    std::iter::once(None).chain(logprobs(&model, params, ids).into_iter().map(Some)).collect()
}

/// Each whole window alone, `bos` in the place of its first token if there is one: the tokens after its middle.
fn windows(config: &ModelConfig, params: &Params, ids: &[u32], window: usize, bos: Option<u32>) -> Vec<Option<f32>> {
    let model = Model::new(config.clone(), window - 1);
    let mut all = vec![None; ids.len()];
    for (ids, all) in ids.chunks_exact(window).zip(all.chunks_exact_mut(window)) {
        let mut ids = ids.to_vec();
        ids[0] = bos.unwrap_or(ids[0]);
        let logprobs = logprobs(&model, params, &ids);
        let counted = window / 2 + 1;
        all[counted..].iter_mut().zip(&logprobs[counted - 1..]).for_each(|(all, logprob)| *all = Some(*logprob));
    }
    all
}

/// The log-probability of each token but the first.
fn logprobs(model: &Model, params: &Params, ids: &[u32]) -> Vec<f32> {
    let inputs = &ids[..ids.len() - 1];
    let batch = Batch { tokens: inputs.to_vec(), targets: ids[1..].to_vec(), starts: vec![0, inputs.len() as u32] };
    model.logprobs(params, &Execution::placed(params.placement(), Precision::F32, Precision::F32), &batch)
}

impl Score {
    fn new(ids: Vec<u32>, logprobs: Vec<Option<f32>>, tokenizer: Option<&Tokenizer>) -> Score {
        let sum = logprobs.iter().flatten().fold(0.0, |sum, logprob| sum - f64::from(*logprob));
        let counted = logprobs.iter().flatten().count();
        let nll = (counted > 0).then(|| sum / counted as f64);
        let bits_per_byte = tokenizer.and_then(|tokenizer| {
            let lengths = tokenizer.byte_lengths();
            let length = |id: &u32| lengths.get(*id as usize).copied().map_or(0, u64::from);
            let bytes: u64 =
                ids.iter().zip(&logprobs).filter(|(_, logprob)| logprob.is_some()).map(|(id, _)| length(id)).sum();
            (bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64)
        });
        Score { ids, logprobs, nll, ppl: nll.map(f64::exp), bits_per_byte }
    }

    fn in_words(&self) -> String {
        let (Some(nll), Some(ppl)) = (self.nll, self.ppl) else {
            return "one token, which nothing predicts: there is nothing to score".into();
        };
        let bits = self.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        format!("nll {nll:.4}, perplexity {ppl:.3}{bits}")
    }
}

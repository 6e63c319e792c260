//! `wels score MODEL (--text S | --file F | --ids 1,2,3)`: the log-probability of each token given those before it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use wels_data::tokenizer::Tokenizer;
use wels_model::config::ModelConfig;
use wels_model::model::{Batch, Model};
use wels_model::params::Params;
use wels_model::tape::Execution;

use crate::failure::refuse;
use crate::model::{OpenModel, Quant, locate};
use crate::output;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face directory, the directory of a run, or a GGUF file
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Number format of the matrices
    #[arg(long, value_enum, default_value_t)]
    quant: Quant,
    /// Write one line of JSON: ids, logprobs (the first token has none), nll in nats a token, ppl, bits_per_byte
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
struct Input {
    /// The text itself; the tokenizer's BOS token, if it has one, comes first
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
    /// Natural logarithms; `null` for the first token, which nothing predicts.
    logprobs: Vec<Option<f32>>,
    /// Mean over the predicted tokens.
    nll: f64,
    ppl: f64,
    /// Over the bytes of the predicted tokens; `null` without a tokenizer, or if they stand for no byte.
    bits_per_byte: Option<f64>,
}

/// Scores a text.
pub fn score(args: &Args) -> Result<()> {
    let model = OpenModel::open(&locate(&args.model)?)?;
    let OpenModel { config, tokenizer, .. } = &model;
    let ids = args.input.ids(tokenizer.as_ref())?;
    check(&ids, config)?;
    let logprobs = logprobs(config, &model.inference_params(args.quant.into())?, &ids);
    let score = Score::new(ids, logprobs, tokenizer.as_ref());
    if args.json {
        output::json(&score)?;
    } else {
        for (id, logprob) in score.ids.iter().zip(&score.logprobs) {
            let token = tokenizer.as_ref().map(|tokenizer| tokenizer.decode(&[*id])).transpose()?.unwrap_or_default();
            let logprob = logprob.map_or("-".to_string(), |logprob| format!("{logprob:.4}"));
            output::line(&format!("{id:>8} {logprob:>10} {token:?}"))?;
        }
        let bits = score.bits_per_byte.map_or(String::new(), |bits| format!(", {bits:.4} bits per byte"));
        output::line(&format!("nll {:.4}, perplexity {:.3}{bits}", score.nll, score.ppl))?;
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
        let mut ids: Vec<u32> = tokenizer.special().bos.into_iter().collect();
        ids.extend(tokenizer.encode_ordinary(&text)?);
        Ok(ids)
    }
}

fn check(ids: &[u32], config: &ModelConfig) -> Result<()> {
    let (vocab_size, positions) = (config.vocab_size, config.rope.max_positions);
    if let Some(id) = ids.iter().find(|id| **id as usize >= vocab_size) {
        return Err(refuse(format!("token id {id} is not below the model's vocab_size {vocab_size}"), "check the ids"));
    }
    if ids.len() < 2 {
        let message = format!("there are {} tokens, and a score takes two at least", ids.len());
        return Err(refuse(message, "give a longer text"));
    }
    if ids.len() > positions {
        let message = format!("there are {} tokens, and the model's context is {positions}", ids.len());
        return Err(refuse(message, "give a shorter text"));
    }
    Ok(())
}

/// The log-probability of each token but the first.
fn logprobs(config: &ModelConfig, params: &Params, ids: &[u32]) -> Vec<f32> {
    let inputs = &ids[..ids.len() - 1];
    let batch = Batch { tokens: inputs.to_vec(), targets: ids[1..].to_vec(), starts: vec![0, inputs.len() as u32] };
    Model::new(config.clone(), inputs.len()).logprobs(params, &Execution::default(), &batch)
}

impl Score {
    fn new(ids: Vec<u32>, logprobs: Vec<f32>, tokenizer: Option<&Tokenizer>) -> Score {
        let sum = logprobs.iter().fold(0.0, |sum, logprob| sum - f64::from(*logprob));
        let nll = sum / logprobs.len() as f64;
        let bits_per_byte = tokenizer.and_then(|tokenizer| {
            let lengths = tokenizer.byte_lengths();
            let length = |id: &u32| lengths.get(*id as usize).copied().map_or(0, u64::from);
            let bytes: u64 = ids[1..].iter().map(length).sum();
            (bytes > 0).then(|| sum / std::f64::consts::LN_2 / bytes as f64)
        });
        let logprobs = std::iter::once(None).chain(logprobs.into_iter().map(Some)).collect();
        Score { ids, logprobs, nll, ppl: nll.exp(), bits_per_byte }
    }
}

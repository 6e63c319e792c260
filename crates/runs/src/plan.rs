//! What a recipe will take: parameters, tokens, operations, memory. Counted, without allocating anything of that size.
//!
//! Memory is that of the stage `pretrain`, the largest. Weights, gradients and AdamW's two means are four numbers a
//! parameter. Activations are what the tape keeps for the backward pass of one micro-batch (the list is in
//! `kept_per_token`, read off the operations' headers in `wels-model`) and what the backward pass of one layer needs
//! besides.

pub mod devices;

pub mod training;

pub mod serving;

pub mod prices;

pub mod claims;

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wels_model::config::{Attention, ModelConfig};
use wels_model::count;

use crate::recipe::Recipe;

/// What can be wrong with the data that a plan rests on.
#[derive(Debug, Error)]
#[allow(missing_docs)] // the messages say what the fields are
pub enum PlanError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Value { origin: String, message: String },
    #[error("unknown {what} '{name}'")]
    Unknown { what: &'static str, name: String, nearest: String, known: String },
}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PlanError::Read { source, .. } => crate::rundir::io_hint(source).map(str::to_string),
            PlanError::Value { .. } => None,
            PlanError::Unknown { nearest, known, .. } => Some(format!("did you mean '{nearest}'? known are: {known}")),
        }
    }

    fn read(path: &Path) -> Result<String, PlanError> {
        std::fs::read_to_string(path).map_err(|source| PlanError::Read { path: path.to_path_buf(), source })
    }

    fn parse<T: DeserializeOwned>(origin: &str, text: &str) -> Result<T, PlanError> {
        toml::from_str(text).map_err(|error| {
            let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            PlanError::Value { origin: format!("{origin}:{line}"), message: error.message().to_string() }
        })
    }

    fn unknown<'a>(what: &'static str, name: &str, known: impl Iterator<Item = &'a str>) -> PlanError {
        let known: Vec<_> = known.collect();
        let similarity = |known: &&&str| strsim::jaro_winkler(known, &name.to_lowercase());
        let nearest = known.iter().max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
        PlanError::Unknown {
            what,
            name: name.to_string(),
            nearest: nearest.unwrap_or(&"").to_string(),
            known: known.join(", "),
        }
    }
}

/// What a run is expected to take; saved as `plan.json`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RunPlan {
    /// Parameters of the model proper.
    pub parameters: u64,
    /// Parameters that one token uses, with the head.
    pub parameters_activated: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of all steps.
    pub tokens: u64,
    /// Operations of one token, forward and backward.
    pub flops_per_token: u64,
    /// Operations of all tokens.
    pub flops: f64,
    /// Memory while training.
    pub memory: MemoryPlan,
    /// Size of one checkpoint on disk.
    pub checkpoint_bytes: u64,
    /// Stage by stage, those whose work is known before.
    pub stages: Vec<StagePlan>,
}

/// What one stage is expected to take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StagePlan {
    /// Its name.
    pub stage: String,
    /// Tokens that it works on.
    pub tokens: u64,
    /// Operations.
    pub flops: f64,
    /// Rate at which this machine was measured doing such work; `None` if it was not.
    pub tokens_per_second: Option<f64>,
    /// Seconds by the clock at that rate.
    pub seconds: Option<f64>,
    /// Money for them; `None` without time or price.
    pub usd: Option<f64>,
    /// Greatest memory of the process.
    pub memory_bytes: u64,
}

/// Bytes of memory while training, by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights, MTP layers included.
    pub weights: u64,
    /// Gradients, with a further one for each further use of embedding and head.
    pub gradients: u64,
    /// AdamW's means.
    pub optimizer: u64,
    /// What the tape keeps of a micro-batch, and what one layer's backward pass needs besides.
    pub activations: u64,
    /// The program, the tokenizer, packed panels, mapped text.
    pub program: u64,
    /// All of it: the expected peak of the process.
    pub total: u64,
}

/// Measured: the program with its tokenizer and thread pool before a model is there.
const PROGRAM_BYTES: u64 = 48 << 20;

const F32: u64 = 4;

/// The plan of a recipe.
pub fn of_recipe(recipe: &Recipe) -> RunPlan {
    let config = recipe.model.config();
    let sequence_length = recipe.data.sequence_length;
    let params = count::params(config);
    let flops = count::forward_flops(config, count::Context::Causal { tokens: sequence_length });
    let flops_per_token = flops.training().0;
    let tokens = recipe.pretrain.total_tokens(sequence_length);
    let training = count::training_bytes(config);
    let memory = memory(recipe);
    let pretrain = StagePlan {
        stage: "pretrain".into(),
        tokens,
        flops: flops_per_token as f64 * tokens as f64,
        memory_bytes: memory.total,
        ..StagePlan::default()
    };
    RunPlan {
        parameters: params.total.0,
        parameters_activated: params.activated.0,
        steps: recipe.pretrain.steps,
        tokens,
        flops_per_token,
        flops: flops_per_token as f64 * tokens as f64,
        memory,
        checkpoint_bytes: count::checkpoint(config, wels_model::config::Dtype::F32).bytes().0 + training.optimizer.0,
        stages: vec![pretrain],
    }
}

/// The rate of training that the `plan.json` at `path` rests on.
pub fn rate_in(path: &Path) -> Option<f64> {
    let plan: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).ok()?).ok()?;
    let stages: Vec<StagePlan> = serde_json::from_value(plan["stages"].clone()).ok()?;
    stages.iter().find(|stage| stage.stage == "pretrain")?.tokens_per_second
}

impl RunPlan {
    /// The plan of a stage.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// The same plan with time and money, for a machine that trains `tokens_per_second`. Validation runs forward only,
    /// a third of the work of a token that is trained on.
    pub fn at_rate(mut self, recipe: &Recipe, tokens_per_second: f64) -> RunPlan {
        let section = &recipe.pretrain;
        let validated = (section.validate_sequences * recipe.data.sequence_length) as u64;
        let validations = section.steps.div_ceil(section.validate_every);
        for stage in self.stages.iter_mut().filter(|stage| stage.stage == "pretrain") {
            let work = stage.tokens as f64 + (validations * validated) as f64 / 3.0;
            let seconds = work / tokens_per_second;
            stage.tokens_per_second = Some(tokens_per_second);
            stage.seconds = Some(seconds);
            let usd_per_hour = recipe.run.usd_per_hour;
            stage.usd = (usd_per_hour > 0.0).then_some(seconds / 3600.0 * usd_per_hour);
        }
        self
    }
}

fn memory(recipe: &Recipe) -> MemoryPlan {
    let config = recipe.model.config();
    let training = count::training_bytes(config);
    let table = (config.vocab_size * config.hidden_size) as u64 * F32;
    let further_uses = u64::from(config.tied_head) + 2 * config.mtp_depth as u64;
    let tokens = (recipe.pretrain.micro_batch * recipe.data.sequence_length) as u64;
    let recomputed = &recipe.pretrain.recompute_layers;
    let d = config.hidden_size;
    let layers = 0..config.layers + config.mtp_depth;
    let kept: usize =
        layers.clone().map(|layer| if recomputed.contains(&layer) { d } else { kept_per_token(config, layer) }).sum();
    // A layer that is computed again keeps its list for a while after all.
    let again = layers.filter(|layer| recomputed.contains(layer)).map(|layer| kept_per_token(config, layer)).max();
    // Final norm and each MTP depth: input, result, its gradient; MTP's two norms and their results side by side.
    let ends = 4 * d + config.mtp_depth * 10 * d;
    let passing = widest_backward_per_token(config);
    let activations = tokens * (kept + again.unwrap_or(0) + ends + passing) as u64 * F32;
    let (weights, optimizer) = (training.weights.0, training.optimizer.0);
    let gradients = training.gradients.0 + further_uses * table;
    let program = PROGRAM_BYTES;
    MemoryPlan {
        weights,
        gradients,
        optimizer,
        activations,
        program,
        total: weights + gradients + optimizer + activations + program,
    }
}

/// Numbers that the tape keeps for a token of decoder layer `layer`.
fn kept_per_token(config: &ModelConfig, layer: usize) -> usize {
    let d = config.hidden_size;
    // Both norms keep their input and 1/rms, the projections after them keep their result.
    let norms = 4 * d + 2;
    let attention = match config.attention {
        Attention::Mla { heads, q_lora_rank, kv_lora_rank, nope_dim, rope_dim, v_dim } => {
            let query_latent = q_lora_rank.map_or(0, |rank| 2 * rank + 1);
            let latent = 2 * kv_lora_rank + 1 + rope_dim;
            let expanded = heads * (nope_dim + rope_dim) + heads * (nope_dim + v_dim);
            query_latent + latent + expanded + heads * v_dim + 2 * heads
        }
        Attention::Gqa { heads, kv_heads, head_dim, .. } => 2 * (heads + kv_heads) * head_dim + 2 * heads,
    };
    let ffn = match &config.moe {
        Some(moe) if config.is_moe_layer(layer) => {
            let m = moe.expert_intermediate;
            // Scores, weights and where each choice went; gate and up; the experts' results.
            moe.experts + 4 * moe.top_k + moe.top_k * (2 * m + d) + 2 * moe.shared_experts * m
        }
        _ => 2 * config.dense_intermediate,
    };
    norms + attention + ffn
}

/// Numbers of a token that the backward pass of the widest layer holds at the same time, besides what was kept.
fn widest_backward_per_token(config: &ModelConfig) -> usize {
    let d = config.hidden_size;
    let dense = 3 * config.dense_intermediate;
    let experts = config.moe.as_ref().map_or(0, |moe| moe.top_k * (2 * d + 3 * moe.expert_intermediate));
    2 * d + dense.max(experts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recomputation_and_smaller_micro_batches_take_less() {
        let recipe = Recipe::quickstart();
        let plan = of_recipe(&recipe);
        assert_eq!(plan.tokens, recipe.pretrain.steps * recipe.pretrain.batch_tokens);
        let mut small = recipe.clone();
        small.pretrain.micro_batch = 1;
        let mut again = recipe.clone();
        again.pretrain.recompute_layers = (0..recipe.model.config().layers).collect();
        for other in [small, again] {
            let other = of_recipe(&other);
            assert!(other.memory.activations < plan.memory.activations);
            assert_eq!(other.memory.total - other.memory.activations, plan.memory.total - plan.memory.activations);
        }
    }
}

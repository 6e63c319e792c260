//! What a recipe will take, stage by stage: tokens, operations, memory; with measured rates, time and money. Counted,
//! without allocating anything of that size.
//!
//! Memory while training: weights, gradients and AdamW's two means are four numbers a
//! parameter. Activations are what the tape keeps for the backward pass of one micro-batch (the list is in
//! `kept_per_token`, read off the operations' headers in `wels-model`) and what the backward pass of one layer needs
//! besides.

pub mod stages;

pub mod devices;

pub mod training;

pub mod cluster;

pub mod serving;

pub mod pictures;

pub mod prices;

pub mod claims;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use wels_model::config::{Attention, ModelConfig};
use wels_model::count;

use crate::files;
use crate::recipe::{Lora, Optimizer, PRETRAIN, Precision, Recipe, Rule};
use stages::{PlanInputs, Stages, Tokens};

/// What can be wrong with the data that a plan rests on.
#[derive(Debug, Error)]
pub enum PlanError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{origin}: {message}")]
    Value { origin: String, message: String },
    #[error("unknown {what} '{name}'")]
    Unknown { what: &'static str, name: String, nearest: String, known: String },
    #[error("{message}")]
    Refused { message: String, hint: String },
}

impl PlanError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            PlanError::Read { source, .. } => crate::rundir::io_hint(source).map(str::to_string),
            PlanError::Value { .. } => None,
            PlanError::Refused { hint, .. } => Some(hint.clone()),
            PlanError::Unknown { nearest, known, .. } => Some(format!("did you mean '{nearest}'? known are: {known}")),
        }
    }

    fn refused(message: impl Into<String>, hint: impl Into<String>) -> PlanError {
        PlanError::Refused { message: message.into(), hint: hint.into() }
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
    /// What `[model]` and `[pretrain]` give, where the run pretrains.
    #[serde(flatten)]
    pub pretraining: Option<Pretraining>,
    /// In the order in which they are done.
    pub stages: Vec<StagePlan>,
    pub total: Total,
}

/// What pretraining is expected to take.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Pretraining {
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
}

/// Sums over the stages.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Total {
    /// Tokens that are worked on.
    pub tokens: u64,
    /// Operations.
    pub flops: f64,
    /// Seconds by the clock; `None` unless all stages' are known.
    pub seconds: Option<f64>,
    /// Money for them; `None` without time or price.
    pub usd: Option<f64>,
    /// Greatest memory of any stage.
    pub memory_bytes: u64,
    /// Whether a stage's tokens are not known before, or nothing is.
    pub estimated: bool,
}

/// What one stage is expected to take.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StagePlan {
    pub stage: String,
    pub kind: String,
    /// Tokens that it works on: learns from, or samples.
    pub tokens: u64,
    /// Learning from what was sampled, where that is done; operations, time and money below have it in them.
    pub learning: Option<LearningPlan>,
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
    /// Whether the tokens rest on the assumptions; then the account is compared for as many tokens as came.
    pub estimated: bool,
    /// What is assumed, in words.
    pub assumptions: Vec<String>,
    /// Why nothing can be said.
    pub unknown: Option<String>,
}

/// Learning from what was sampled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LearningPlan {
    /// Tokens that are learnt from, prompts included.
    pub tokens: u64,
    /// Operations.
    pub flops: f64,
    /// Rate at which this machine was measured doing such work; `None` if it was not.
    pub tokens_per_second: Option<f64>,
    /// Seconds by the clock at that rate.
    pub seconds: Option<f64>,
}

/// Rates at which a machine does a stage's work, in tokens a second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StageRates {
    /// Of the tokens that the stage counts.
    pub counted: f64,
    /// Of learning from those that were sampled, where that is done.
    pub learned: Option<f64>,
}

/// Bytes of memory while training, by use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryPlan {
    /// Weights, MTP layers included.
    pub weights: u64,
    /// Gradients, with a further one for each further use of embedding and head.
    pub gradients: u64,
    /// What the optimizer remembers.
    pub optimizer: u64,
    /// What the tape keeps of a micro-batch, and what one layer's backward pass needs besides.
    pub activations: u64,
    /// The program, the tokenizer, packed panels, mapped text.
    pub program: u64,
    /// All of it: the expected peak of the process.
    pub total: u64,
}

impl StagePlan {
    /// The same work on other numbers of tokens.
    pub fn for_tokens(&self, tokens: Tokens) -> StagePlan {
        let ratio = |now: u64, then: u64| now as f64 / then.max(1) as f64;
        let counted = ratio(tokens.counted, self.tokens);
        let learned = self.learning.as_ref().map_or(0.0, |learning| ratio(tokens.learned, learning.tokens));
        let learning = self.learning.as_ref().map(|learning| LearningPlan {
            tokens: tokens.learned,
            flops: learning.flops * learned,
            seconds: learning.seconds.map(|seconds| seconds * learned),
            ..learning.clone()
        });
        let of_learning = |value: &dyn Fn(&LearningPlan) -> f64| self.learning.as_ref().map_or(0.0, value);
        let other = |all: f64, learning: f64| (all - learning) * counted + learning * learned;
        let seconds_learning = of_learning(&|learning| learning.seconds.unwrap_or(0.0));
        let seconds = self.seconds.map(|seconds| other(seconds, seconds_learning));
        let slower = seconds.zip(self.seconds).map(|(now, then)| now / then);
        StagePlan {
            tokens: tokens.counted,
            flops: other(self.flops, of_learning(&|learning| learning.flops)),
            seconds,
            usd: self.usd.zip(slower).map(|(usd, slower)| usd * slower),
            learning,
            ..self.clone()
        }
    }
}

/// Measured: the program with tokenizer, thread pool and texts, behind the steps that tell the machine's rates.
const PROGRAM_BYTES: u64 = 80 << 20;

const F32: u64 = 4;

/// How a device keeps activations where a stage's `precision` is bf16.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// In f32, as the processor does.
    #[default]
    F32,
    /// In bf16, and the weights in bf16 besides, as GPUs do.
    Bf16,
}

impl Activations {
    /// Bytes of a number, and of a weight's copy.
    fn bytes(self, precision: Precision) -> (u64, u64) {
        match (self, precision) {
            (Activations::Bf16, Precision::Bf16) => (2, 2),
            _ => (F32, 0),
        }
    }
}

/// What pretraining takes.
pub fn pretraining(recipe: &Recipe, activations: Activations) -> Pretraining {
    let config = recipe.model.config();
    let sequence_length = recipe.data.sequence_length;
    let params = count::params(config);
    let flops = count::forward_flops(config, count::Context::Causal { tokens: sequence_length });
    let flops_per_token = flops.training().0;
    let tokens = recipe.pretrain.total_tokens(sequence_length);
    let rows = recipe.pretrain.micro_batch * sequence_length;
    let checkpoint = count::checkpoint(config, wels_model::config::Dtype::F32).bytes().0;
    Pretraining {
        parameters: params.total.0,
        parameters_activated: params.activated.0,
        steps: recipe.pretrain.steps,
        tokens,
        flops_per_token,
        flops: flops_per_token as f64 * tokens as f64,
        memory: training_memory(
            config,
            rows,
            &recipe.pretrain.recompute_layers,
            (&recipe.pretrain.optimizer, None),
            activations.bytes(recipe.pretrain.precision),
        ),
        checkpoint_bytes: checkpoint + optimizer_bytes(config, &recipe.pretrain.optimizer),
    }
}

/// The plan of a recipe, without time and money.
pub fn of_recipe(recipe: &Recipe, inputs: &dyn PlanInputs) -> RunPlan {
    let pretraining = recipe.pretrains().then(|| pretraining(recipe, inputs.activations()));
    let first = pretraining.iter().map(|it| StagePlan {
        stage: PRETRAIN.into(),
        kind: PRETRAIN.into(),
        tokens: it.tokens,
        flops: it.flops,
        memory_bytes: it.memory.total,
        ..StagePlan::default()
    });
    let pretrained = recipe.pretrains().then(|| recipe.model.config());
    let stages = Stages { pretrained, pictures: recipe.model.janus(), sections: &recipe.stages, inputs };
    let stages = first.chain(recipe.stages.iter().map(|stage| stages.plan(stage))).collect();
    RunPlan { pretraining, stages, total: Total::default() }.summed()
}

/// The rates of stages, by name, that the `plan.json` at `path` rests on.
pub fn rates_in(path: &Path) -> BTreeMap<String, StageRates> {
    let plan: Option<serde_json::Value> =
        files::read_text(path, files::SMALL_BYTES_MAX).ok().and_then(|text| serde_json::from_str(&text).ok());
    let stages: Option<Vec<StagePlan>> = plan.and_then(|plan| serde_json::from_value(plan["stages"].clone()).ok());
    let rates = |stage: StagePlan| {
        let learned = stage.learning.and_then(|learning| learning.tokens_per_second);
        Some((stage.stage, StageRates { counted: stage.tokens_per_second?, learned }))
    };
    stages.into_iter().flatten().filter_map(rates).collect()
}

impl RunPlan {
    /// The plan of a stage.
    pub fn stage(&self, name: &str) -> Option<&StagePlan> {
        self.stages.iter().find(|stage| stage.stage == name)
    }

    /// The same plan with time and money, for a machine that does a stage's work at the rates that `rates` has for it.
    /// Validation runs forward only, a third of the work of a token that is trained on.
    pub fn at_rates(mut self, recipe: &Recipe, rates: &BTreeMap<String, StageRates>) -> RunPlan {
        let section = &recipe.pretrain;
        let validations = section.steps.div_ceil(section.validate_every);
        let validated = (validations * (section.validate_sequences * recipe.data.sequence_length) as u64) as f64 / 3.0;
        for stage in self.stages.iter_mut().filter(|stage| stage.unknown.is_none()) {
            let Some(StageRates { counted, learned }) = rates.get(&stage.stage) else { continue };
            let besides = if stage.stage == PRETRAIN { validated } else { 0.0 };
            let mut seconds = (stage.tokens as f64 + besides) / counted;
            if let (Some(learning), Some(rate)) = (&mut stage.learning, learned) {
                let more = learning.tokens as f64 / rate;
                (learning.tokens_per_second, learning.seconds) = (Some(*rate), Some(more));
                seconds += more;
            }
            stage.tokens_per_second = Some(*counted);
            stage.seconds = Some(seconds);
            let usd_per_hour = recipe.run.usd_per_hour;
            stage.usd = (usd_per_hour > 0.0).then_some(seconds / 3600.0 * usd_per_hour);
        }
        self.summed()
    }

    fn summed(self) -> RunPlan {
        let stages = &self.stages;
        let total = Total {
            tokens: stages.iter().map(|stage| stage.tokens).sum(),
            flops: stages.iter().map(|stage| stage.flops).sum(),
            seconds: stages.iter().map(|stage| stage.seconds).sum(),
            usd: stages.iter().map(|stage| stage.usd).sum(),
            memory_bytes: stages.iter().map(|stage| stage.memory_bytes).max().unwrap_or(0),
            estimated: stages.iter().any(|stage| stage.estimated || stage.unknown.is_some()),
        };
        RunPlan { total, ..self }
    }
}

/// Memory of a training of which `rows` tokens go through the model at once; `recomputed` layers keep their input. Sums
/// over gradient shards wait in buffers of their own, log2 of the shards. Activations have so many bytes a number, and
/// a weight's copy so many besides.
pub(crate) fn training_memory(
    config: &ModelConfig,
    rows: usize,
    recomputed: &[usize],
    (optimizer, lora): (&Optimizer, Option<&Lora>),
    (number, copy): (u64, u64),
) -> MemoryPlan {
    let training = count::training_bytes(config);
    let table = (config.vocab_size * config.hidden_size) as u64 * F32;
    let further_uses = u64::from(config.tied_head) + 2 * config.mtp_depth as u64;
    let tokens = rows as u64;
    let d = config.hidden_size;
    let layers = 0..config.layers + config.mtp_depth;
    let kept: usize =
        layers.clone().map(|layer| if recomputed.contains(&layer) { d } else { kept_per_token(config, layer) }).sum();
    // A layer that is computed again keeps its list for a while after all.
    let again = layers.filter(|layer| recomputed.contains(layer)).map(|layer| kept_per_token(config, layer)).max();
    // Final norm and each MTP depth: input, result, its gradient; MTP's two norms and their results side by side.
    let ends = 4 * d + config.mtp_depth * 10 * d;
    let passing = widest_backward_per_token(config);
    let activations = tokens * (kept + again.unwrap_or(0) + ends + passing) as u64 * number;
    let waiting = u64::from(optimizer.gradient_shards.ilog2());
    let weights = training.weights.0 / F32 * (F32 + copy);
    // What stays as it is takes what it is held in, but for a device that holds all in f32.
    let held = lora.filter(|_| copy == 0).map(|lora| lora.base.bytes(config));
    let (weights, optimizer, gradients) = match lora.map(|lora| F32 * lora.parameters(config)) {
        None => {
            let gradients = training.gradients.0 * (1 + waiting) + further_uses * table;
            (weights, optimizer_bytes(config, optimizer), gradients)
        }
        Some(adapter) => (held.unwrap_or(weights) + adapter, 2 * adapter, adapter * (1 + waiting)),
    };
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

/// What the optimizer remembers: two means of AdamW, one of the matrices that Muon moves.
fn optimizer_bytes(config: &ModelConfig, optimizer: &Optimizer) -> u64 {
    let of_adamw = count::training_bytes(config).optimizer.0;
    match optimizer.optimizer {
        Rule::AdamW => of_adamw,
        Rule::Muon => of_adamw - F32 * count::layer_matrices(config),
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
        Attention::Compressed { heads, q_lora_rank, head_dim, groups, o_lora_rank, .. } => {
            let queries = 2 * q_lora_rank + 1 + heads * (2 * head_dim + 1);
            // Rows, and what entries are made of.
            let keys = 2 * head_dim + 1 + 4 * head_dim;
            queries + keys + 2 * heads * head_dim + 2 * heads + groups * o_lora_rank
        }
        Attention::Gqa { heads, kv_heads, head_dim, qk_norm, .. } => {
            let normed = if qk_norm { (heads + kv_heads) * (head_dim + 1) } else { 0 };
            2 * (heads + kv_heads) * head_dim + 2 * heads + normed
        }
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
    use wels_model::janus::config::JanusConfig;

    #[test]
    fn recomputation_and_smaller_micro_batches_take_less() {
        let recipe = Recipe::quickstart();
        let plan = pretraining(&recipe, Activations::F32);
        assert_eq!(plan.tokens, recipe.pretrain.steps * recipe.pretrain.batch_tokens);
        let mut small = recipe.clone();
        small.pretrain.micro_batch = 1;
        let mut again = recipe.clone();
        again.pretrain.recompute_layers = (0..recipe.model.config().layers).collect();
        for other in [small, again] {
            let other = pretraining(&other, Activations::F32);
            assert!(other.memory.activations < plan.memory.activations);
            assert_eq!(other.memory.total - other.memory.activations, plan.memory.total - plan.memory.activations);
        }
    }

    #[test]
    fn the_shapes_that_cards_are_measured_with_have_their_sizes() {
        for (text, parameters, activated) in [
            (include_str!("../../../bench/gpu/dense-500m.toml"), 503_367_168, 453_035_520),
            (include_str!("../../../bench/gpu/moe-2b.toml"), 2_030_421_632, 354_797_184),
            (include_str!("../../../bench/gpu/dense-7b.toml"), 7_248_023_552, 7_113_805_824),
        ] {
            let plan = pretraining(&Recipe::parse("r.toml", text, Path::new("/data")).unwrap(), Activations::F32);
            assert_eq!((plan.parameters, plan.parameters_activated), (parameters, activated));
        }
    }

    /// Every stage learns from ten examples of five tokens.
    struct Tens;

    impl PlanInputs for Tens {
        fn model(&self, name: &str) -> Result<ModelConfig, String> {
            Err(format!("no {name}"))
        }

        fn janus(&self, name: &str) -> Result<JanusConfig, String> {
            Err(format!("no {name}"))
        }

        fn examples(&self, _: &crate::recipe::Supervised) -> Result<stages::Examples, String> {
            Ok(stages::Examples { count: 10, tokens: 5.0, assumption: None })
        }

        fn questions(&self, _: &crate::recipe::Questions) -> Result<stages::Examples, String> {
            Ok(stages::Examples { count: 400, tokens: 80.0, assumption: None })
        }

        fn prompt_tokens(&self, _: &crate::recipe::Answering) -> Result<f64, String> {
            Ok(20.0)
        }
    }

    #[test]
    fn stages_of_pictures_are_planned() {
        let text = include_str!("../../../recipes/janus.toml");
        let recipe = Recipe::parse("janus.toml", text, Path::new("/data")).unwrap();
        let plan = of_recipe(&recipe, &Tens);
        assert!(plan.stages.iter().all(|stage| stage.unknown.is_none() && stage.tokens > 0 && stage.flops > 0.0));
        let config = recipe.model.janus().unwrap();
        let crate::recipe::Work::Vq(section) = &recipe.stages[0].work else { panic!("{:?}", recipe.stages[0]) };
        let codes = plan.stage(&recipe.stages[0].name).unwrap();
        assert_eq!(codes.tokens, section.steps * section.batch as u64 * config.vq.tokens() as u64);
        // Written out and read again it is the same, as a run's own recipe has to be.
        assert_eq!(Recipe::parse("again", &recipe.to_toml(), Path::new("/data")).unwrap(), recipe);
    }

    #[test]
    fn every_stage_of_the_quickstart_is_planned() {
        let recipe = Recipe::quickstart();
        let plan = of_recipe(&recipe, &Tens);
        let names: Vec<&str> = plan.stages.iter().map(|stage| stage.stage.as_str()).collect();
        assert_eq!(names, ["pretrain", "base", "r1-zero", "samples", "distilled", "scores"]);
        assert!(plan.stages.iter().all(|stage| stage.unknown.is_none() && stage.tokens > 0 && stage.flops > 0.0));
        let stage = |name: &str| plan.stage(name).unwrap();
        assert!(!stage("base").estimated && stage("base").tokens == 50);
        // 150 steps of 16 × 16 answers of half of 240 tokens, of which three quarters are learnt from behind their
        // prompts, and as many operations as the ledger will count.
        let rl = stage("r1-zero");
        let learning = rl.learning.as_ref().unwrap();
        assert!(rl.estimated && rl.tokens == 150 * 256 * 120 && learning.tokens == 150 * 192 * 140, "{rl:?}");
        let crate::recipe::Work::Rl(section) = &recipe.stages[1].work else { panic!("{:?}", recipe.stages[1]) };
        let flops = stages::TokenFlops::of_reinforcement(recipe.model.config(), section);
        let forward = stages::answer_flops(recipe.model.config(), 120.0);
        assert_eq!((flops.counted, flops.learned), (forward, 3 * forward));
        let tokens = Tokens { counted: rl.tokens, learned: learning.tokens };
        assert_eq!(rl.flops, flops.of(tokens));
        assert_eq!(stage("scores").tokens, 3 * 1000 * 120);
        assert_eq!(plan.total.seconds, None);
        let rates = StageRates { counted: 1000.0, learned: Some(100.0) };
        let rates = names.iter().map(|name| (name.to_string(), rates)).collect();
        let timed = plan.clone().at_rates(&recipe, &rates);
        assert!(timed.total.seconds.unwrap() > plan.total.tokens as f64 / 1000.0, "validations take time too");
        assert_eq!(timed.stage("scores").unwrap().seconds, Some(360.0));
        // Without anything to learn from, sampling is left, and the other way round.
        let rl = timed.stage("r1-zero").unwrap();
        let seconds = |tokens| rl.for_tokens(tokens).seconds.unwrap();
        assert_eq!(rl.for_tokens(tokens), *rl);
        assert_eq!(seconds(Tokens { counted: 5000, learned: 0 }), 5.0);
        assert_eq!(rl.for_tokens(Tokens { learned: 0, ..tokens }).flops, flops.of(Tokens { learned: 0, ..tokens }));
        assert!((seconds(Tokens { counted: 0, learned: 500 }) - 5.0).abs() < 1e-9);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let text = "[model]\npreset = \"smollm2-135m\"\n[[stage]]\nname = \"a\"\nkind = \"rl\"\nfrom = \"elsewhere\"\n";
        let recipe = Recipe::parse("r.toml", text, Path::new("/data")).unwrap();
        let plan = of_recipe(&recipe, &Tens);
        assert_eq!((plan.pretraining.clone(), plan.stages.len(), plan.stages[0].tokens), (None, 1, 0));
        assert_eq!(plan.stages[0].unknown.as_deref(), Some("no /data/elsewhere"));
        assert!(plan.total.estimated);
    }
}

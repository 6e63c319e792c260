//! `--expert-parallel N`: whether groups of N ranks can share the routed experts of a run's models, and which of them a
//! rank holds. A layout, as the number of ranks is: no key of a recipe, and no part of a result.

use anyhow::Result;
use serde::Serialize;
use wels_device::Device;
use wels_model::config::ModelConfig;
use wels_model::expert_parallel::ExpertShare;
use wels_runs::recipe::{PRETRAIN, Recipe, StageSection, Start, Work};
use wels_train::experts::expert_share;
use wels_train::trainer::Trainer;

use crate::model::{locate, read_config};
use crate::named;
use crate::rank::Rank;
use crate::refusal::refuse;

/// Bytes of rows that went from rank to rank in a step, of all ranks together.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct ExchangeLine {
    /// States to the ranks that hold the experts, and gradients of their results.
    dispatched_bytes: u64,
    /// Results, and gradients of states, back.
    combined_bytes: u64,
}

impl ExchangeLine {
    /// Of the updates since this was last asked; nothing where each rank has all experts.
    pub fn of(trainer: &mut Trainer) -> Option<ExchangeLine> {
        let sent = trainer.take_sent()?;
        Some(ExchangeLine { dispatched_bytes: sent.dispatched, combined_bytes: sent.combined })
    }
}

impl Rank {
    /// The experts of a model that this rank holds; nothing if it has them all, or the model has none.
    ///
    /// # Errors
    /// If the ranks that share them do not divide them.
    pub fn share(&self, config: &ModelConfig) -> Result<Option<ExpertShare>> {
        let Some(experts) = experts_of(config) else { return Ok(None) };
        check_experts("the model", experts, self.expert_parallel, self.comm.world())?;
        Ok(expert_share(&self.comm, self.expert_parallel))
    }
}

/// Fails if groups of so many ranks cannot share the experts of the models that `recipe` trains.
///
/// # Errors
/// With the nearest numbers that can.
pub(crate) fn check(recipe: &Recipe, ranks: usize, sharing: usize) -> Result<()> {
    if sharing == 1 {
        return Ok(());
    }
    if !ranks.is_multiple_of(sharing) {
        let message = format!("--expert-parallel {sharing} does not divide the {}", count(ranks, "rank"));
        let hint = match ranks {
            1 => format!("give --ranks {sharing} too, or start as many processes with mpirun"),
            _ => nearest(sharing, |number| ranks.is_multiple_of(number), ranks),
        };
        return Err(refuse(message, hint));
    }
    let models = trained(recipe);
    for (stage, config) in &models {
        if let Some(experts) = experts_of(config) {
            check_experts(&format!("the stage {stage}"), experts, sharing, ranks)?;
        }
    }
    if !models.is_empty() && models.iter().all(|(_, config)| experts_of(config).is_none()) {
        let message = format!("--expert-parallel {sharing}: no model that this recipe trains has experts");
        return Err(refuse(message, "leave it out: ranks share the sequences of a batch without it"));
    }
    Ok(())
}

/// Routed experts of a layer; none of a model without such a layer.
fn experts_of(config: &ModelConfig) -> Option<usize> {
    let any = (0..config.layers + config.mtp_depth).any(|layer| config.is_moe_layer(layer));
    config.moe.as_ref().filter(|_| any).map(|moe| moe.experts)
}

fn check_experts(of: &str, experts: usize, sharing: usize, ranks: usize) -> Result<()> {
    if experts.is_multiple_of(sharing) {
        return Ok(());
    }
    let message = format!("--expert-parallel {sharing} does not divide the {} of {of}", count(experts, "expert"));
    Err(refuse(message, nearest(sharing, |n| experts.is_multiple_of(n) && ranks.is_multiple_of(n), ranks)))
}

/// Fails on devices whose ranks cannot share experts.
///
/// # Errors
/// With what to do.
pub(crate) fn check_device(device: &dyn Device, sharing: usize) -> Result<()> {
    if sharing == 1 || device.name() != "cuda" {
        return Ok(());
    }
    let message = format!("--expert-parallel {sharing}: ranks on GPUs do not share experts yet");
    Err(refuse(message, "leave it out, or compute on the processor: --device cpu"))
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The nearest numbers below and above `wanted` that work, in words.
fn nearest(wanted: usize, works: impl Fn(usize) -> bool, most: usize) -> String {
    let below = (1..wanted).rev().find(|number| works(*number));
    let above = (wanted + 1..=most).find(|number| works(*number));
    match (below, above) {
        (Some(below), Some(above)) => format!("{below} and {above} do"),
        (Some(one), None) | (None, Some(one)) => format!("{one} does"),
        (None, None) => "leave it out".into(),
    }
}

/// The models that a recipe's stages train, with the first stage of each, as far as they are known before it runs.
fn trained(recipe: &Recipe) -> Vec<(String, ModelConfig)> {
    let pretrained = recipe.pretrains().then(|| (PRETRAIN.to_string(), recipe.model.config().clone()));
    let of_stage = |stage: &StageSection| {
        let config = match start_of(&stage.work)? {
            Start::New { model } => model.config().clone(),
            // The model of a stage that is in the list by itself.
            Start::From { from } if from == PRETRAIN || recipe.stages.iter().any(|it| it.name == *from) => return None,
            Start::From { from } => read_config(&locate(&named::model(from).ok()?).ok()?).ok()?.0,
        };
        Some((stage.name.clone(), config))
    };
    pretrained.into_iter().chain(recipe.stages.iter().filter_map(of_stage)).collect()
}

fn start_of(work: &Work) -> Option<&Start> {
    match work {
        Work::Pretrain(section) | Work::Sft(section) => Some(&section.start),
        Work::Rl(section) => Some(&section.start),
        Work::Distil(section) => Some(section.start()),
        _ => None,
    }
}

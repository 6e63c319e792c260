//! Where the weights of a stage come from: an earlier stage, a model elsewhere, a new one, or its own checkpoint.

use anyhow::{Context, Result};
use wels_data::tokenizer::Tokenizer;
use wels_model::config::ModelConfig;
use wels_model::expert_parallel::ExpertShare;
use wels_model::params::Params;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::recipe::{self, Start};
use wels_runs::rundir::RunDir;
use wels_train::muon::Rule;
use wels_train::trainer::State;

use crate::model::{Location, config_of, load_share, locate, read_tokenizer};
use crate::named;
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::state::load_state;
use crate::training::Position;

/// A stage's newest checkpoint, or a model elsewhere.
pub(crate) fn model_of(run: &RunDir, from: &str) -> Result<Location> {
    let names = |stage: &recipe::StageSection| stage.name == from;
    if from != recipe::PRETRAIN && !run.recipe().stages.iter().any(names) {
        return locate(&named::model(from)?);
    }
    let stage = run.path().join(from);
    let latest = if stage.is_dir() { checkpoint::latest(&stage)? } else { None };
    let none = || refuse(format!("the stage {from} has no checkpoint"), "name a stage that trains, before this one");
    Ok(Location::Directory(latest.ok_or_else(none)?.path))
}

/// Fails if a model comes with another tokenizer than the run's.
pub(crate) fn check_tokenizer(model: &Location, tokenizer: &Tokenizer) -> Result<()> {
    if read_tokenizer(model)?.is_some_and(|own| own.sha256() != tokenizer.sha256()) {
        let message = format!("the model {} has another tokenizer than the run", model.path().display());
        return Err(refuse(message, "name the model's tokenizer with tokenizer.path"));
    }
    Ok(())
}

/// The weights that a stage begins with; of the experts, a share.
pub(crate) fn initial(rank: &Rank, start: &Start, tokenizer: &Tokenizer, share: Option<ExpertShare>) -> Result<Params> {
    let Rank { run, device, .. } = rank;
    let params = match start {
        Start::New { model } => Params::init_shared(device, model.config(), run.recipe().run.seed, share),
        Start::From { from } => {
            let model = model_of(run, from)?;
            check_tokenizer(&model, tokenizer)?;
            load_share(device, &model, &config_of(&model)?, share)?
        }
    };
    let (ids, vocab_size) = (tokenizer.vocab_size(), config_for(run, start)?.vocab_size);
    if ids > vocab_size {
        let message = format!("the tokenizer has {ids} tokens, and the model's vocab_size is {vocab_size}");
        return Err(refuse(message, "name the tokenizer that belongs to the model with tokenizer.path"));
    }
    Ok(params)
}

/// The configuration that a stage begins with.
pub(crate) fn config_for(run: &RunDir, start: &Start) -> Result<ModelConfig> {
    match start {
        Start::New { model } => Ok(model.config().clone()),
        Start::From { from } => config_of(&model_of(run, from)?),
    }
}

/// The state that a stage goes on with.
pub(crate) fn state_of(
    rank: &Rank,
    start: &Start,
    tokenizer: &Tokenizer,
    latest: Option<&Checkpoint>,
    rule: Rule,
) -> Result<(ModelConfig, State)> {
    match latest {
        None => {
            let config = config_for(&rank.run, start)?;
            let params = initial(rank, start, tokenizer, rank.share(&config)?)?;
            Ok((config, State::new(params, rule)))
        }
        Some(checkpoint) => {
            let config = config_of(&Location::Directory(checkpoint.path.clone()))?;
            let zeros = Params::zeros_shared(&rank.device, &config, rank.share(&config)?);
            let state = load_state(zeros, &config, rule, &checkpoint.path, Position::of(latest)?.updates)
                .with_context(|| format!("cannot go on from {}", checkpoint.path.display()))?;
            Ok((config, state))
        }
    }
}

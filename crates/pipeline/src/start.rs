//! Where the weights of a stage come from: an earlier stage, a model elsewhere, a new one, or its own checkpoint.

use anyhow::{Context, Result};
use wels_data::tokenizer::Tokenizer;
use wels_model::adapter::{Adapter, AdapterConfig, AdapterFiles};
use wels_model::config::ModelConfig;
use wels_model::expert_parallel::ExpertShare;
use wels_model::params::Params;
use wels_runs::checkpoint::{self, Checkpoint};
use wels_runs::recipe::{self, Base, Lora, Optimization, Optimizer, Precision, Start};
use wels_runs::rundir::RunDir;
use wels_train::muon::Rule;
use wels_train::trainer::State;

use crate::adapters::{adapted, attach, check_base};
use crate::hyper::rule;
use crate::model::{Location, config_of, load_frozen, load_share, locate, read_tokenizer};
use crate::named;
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::state::{load_adapter_state, load_state};
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
    let folder = latest.ok_or_else(none)?.path;
    if AdapterFiles::are_in(&folder) { adapted(None, &folder) } else { Ok(Location::Directory(folder)) }
}

/// Fails if a model comes with another tokenizer than the run's.
pub(crate) fn check_tokenizer(model: &Location, tokenizer: &Tokenizer) -> Result<()> {
    if read_tokenizer(model)?.is_some_and(|own| own.sha256() != tokenizer.sha256()) {
        let message = format!("the model {} has another tokenizer than the run", model.path().display());
        return Err(refuse(message, "name the model's tokenizer with tokenizer.path"));
    }
    Ok(())
}

/// The configuration that a stage begins with.
pub(crate) fn config_for(run: &RunDir, start: &Start) -> Result<ModelConfig> {
    match start {
        Start::New { model } => Ok(model.config().clone()),
        Start::From { from } => config_of(&model_of(run, from)?),
    }
}

/// What a stage begins with, and what of it is learnt.
#[derive(Clone, Copy)]
pub(crate) struct Beginning<'a> {
    start: &'a Start,
    rule: Rule,
    /// Of products.
    precision: Precision,
    /// The adapter that is learnt, if it is one.
    lora: Option<&'a Lora>,
}

impl<'a> Beginning<'a> {
    /// Of a stage.
    pub fn of(start: &'a Start, optimization: &'a Optimization, precision: Precision) -> Beginning<'a> {
        Beginning { start, rule: rule(&optimization.optimizer), precision, lora: optimization.lora.as_ref() }
    }

    /// Of weights that are all learnt.
    pub fn of_all(start: &'a Start, optimizer: &Optimizer, precision: Precision) -> Beginning<'a> {
        Beginning { start, rule: rule(optimizer), precision, lora: None }
    }

    /// The state that a stage goes on with, and the configuration.
    pub fn state(
        self,
        rank: &Rank,
        tokenizer: &Tokenizer,
        latest: Option<&Checkpoint>,
    ) -> Result<(ModelConfig, State)> {
        let Some(checkpoint) = latest else {
            let (config, params) = self.params(rank, tokenizer)?;
            return Ok((config, State::new(params, self.rule)));
        };
        let (device, folder, updates) = (&rank.device, &checkpoint.path, Position::of(latest)?.updates);
        let cannot = || format!("cannot go on from {}", folder.display());
        if self.lora.is_none() {
            let config = config_of(&Location::Directory(folder.clone()))?;
            let zeros = Params::zeros_shared(device, &config, self.share(rank, &config)?);
            let state = load_state(zeros, &config, self.rule, folder, updates).with_context(cannot)?;
            return Ok((config, state));
        }
        let (base, held) = (self.base(rank)?, self.lora.map_or(Base::F32, |lora| lora.base));
        let config = config_of(&base)?;
        check_base(&AdapterFiles::open(folder)?, &base).with_context(cannot)?;
        let mut params = load_frozen(device, &base, &config, self.precision, held)?;
        attach(&mut params, &config, folder).with_context(cannot)?;
        Ok((config, load_adapter_state(params, self.rule, folder, updates).with_context(cannot)?))
    }

    /// Which of the experts this rank has: all of those that an adapter leaves as they are.
    fn share(self, rank: &Rank, config: &ModelConfig) -> Result<Option<ExpertShare>> {
        match self.lora {
            Some(_) => Ok(None),
            None => rank.share(config),
        }
    }

    /// The model of an adapter.
    fn base(self, rank: &Rank) -> Result<Location> {
        let Start::From { from } = self.start else { unreachable!("a recipe refuses adapters of new models") };
        Ok(model_of(&rank.run, from)?.base().clone())
    }

    /// The weights at the beginning. What an earlier stage has as an adapter is learnt further if this one learns an
    /// adapter too, and else becomes a part of the weights.
    fn params(self, rank: &Rank, tokenizer: &Tokenizer) -> Result<(ModelConfig, Params)> {
        let Rank { run, device, .. } = rank;
        let (config, mut params) = match self.start {
            Start::New { model } => {
                let config = model.config().clone();
                (
                    config.clone(),
                    Params::init_shared(device, &config, run.recipe().run.seed, self.share(rank, model.config())?),
                )
            }
            Start::From { from } => {
                let model = model_of(run, from)?;
                check_tokenizer(&model, tokenizer)?;
                let config = config_of(&model)?;
                let params = match self.lora {
                    Some(lora) => load_frozen(device, &model, &config, self.precision, lora.base)?,
                    None => load_share(device, &model, &config, self.share(rank, &config)?)?,
                };
                (config, params)
            }
        };
        let (ids, vocab_size) = (tokenizer.vocab_size(), config.vocab_size);
        if ids > vocab_size {
            let message = format!("the tokenizer has {ids} tokens, and the model's vocab_size is {vocab_size}");
            return Err(refuse(message, "name the tokenizer that belongs to the model with tokenizer.path"));
        }
        match (self.lora.map(Lora::config), params.adapter()) {
            (None, None) => {}
            (None, Some(adapter)) => {
                params.detach();
                params.merge(&adapter);
            }
            (Some(new), None) => params.attach(&Adapter::init(device, &config, new, run.recipe().run.seed)?),
            (Some(wanted), Some(adapter)) => check_same(&config, &wanted, &adapter)?,
        }
        Ok((config, params))
    }
}

/// Fails if a stage asks for another adapter than the one that it is to learn further.
fn check_same(config: &ModelConfig, wanted: &AdapterConfig, adapter: &Adapter) -> Result<()> {
    let found = adapter.config();
    let shape = |it: &AdapterConfig| (it.rank, it.alpha, it.rank_stabilised);
    let adapted: Vec<usize> = adapter.pairs().iter().map(|pair| pair.param).collect();
    if shape(wanted) == shape(found) && wanted.targets.matrices(config)? == adapted {
        return Ok(());
    }
    let message = format!(
        "the stage begins with an adapter of rank {}, alpha {} and {} matrices, and [stage.lora] asks for another one",
        found.rank,
        found.alpha,
        adapted.len()
    );
    let hint = "give it the same keys, or begin with the merged weights: wels convert MODEL OUT --merge ADAPTER";
    Err(refuse(message, hint))
}

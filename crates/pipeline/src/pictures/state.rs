//! Weights and optimizer of stages of pictures in their checkpoints, and what a stage begins with.
//!
//! A stage of kind `vq` writes the VQ tokenizer with its `config.json`, and in [`WHOLE`] the configuration of the Janus
//! model that it is for. The others write a whole Janus model, which `wels draw`, `wels chat` and `transformers` open.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use wels_data::chat::PictureTokens;
use wels_data::tokenizer::Tokenizer;
use wels_model::config::Note;
use wels_model::janus::config::JanusConfig;
use wels_model::janus::network::{self, Sight};
use wels_model::janus::{Vq, read_network, read_vq, save_dir, save_vq};
use wels_model::params::Params;
use wels_runs::checkpoint::Checkpoint;
use wels_runs::recipe::{StageSection, Work};
use wels_runs::rundir::{RunDir, RunError};
use wels_train::janus::JanusTrainer;
use wels_train::muon::Rule;
use wels_train::trainer::State;
use wels_train::vq::{VqState, VqTrainer};

use crate::model::Location;
use crate::rank::Rank;
use crate::refusal::refuse;
use crate::start::{check_tokenizer, model_of};
use crate::state::{load_moments, save_moments};
use crate::training::{Position, Trained};

/// The configuration of the whole model, beside a VQ tokenizer.
const WHOLE: &str = "janus.json";
/// Steps since each code had a latent, beside a VQ tokenizer that learns.
const IDLE: &str = "idle.json";

/// The directory of a stage's newest checkpoint, or of a Janus model elsewhere.
pub(super) fn directory(run: &RunDir, from: &str) -> Result<PathBuf> {
    match model_of(run, from)? {
        Location::Directory(path) => Ok(path),
        other => {
            let hint = "models of pictures are directories of transformers' janus form";
            Err(refuse(format!("{} is no directory", other.path().display()), hint))
        }
    }
}

/// Whether `from` names a stage of kind `vq`.
fn is_vq(run: &RunDir, from: &str) -> bool {
    let is = |stage: &StageSection| stage.name == from && matches!(stage.work, Work::Vq(_));
    run.recipe().stages.iter().any(is)
}

fn read_whole(path: &Path) -> Result<JanusConfig> {
    let text = fs::read_to_string(path).map_err(RunError::io("read", path))?;
    let (config, _) = JanusConfig::from_hf_json(&text).with_context(|| format!("cannot use {}", path.display()))?;
    Ok(config)
}

/// A Janus model that learns.
pub(super) struct JanusStart {
    pub config: JanusConfig,
    pub state: State,
    pub vq: Vq,
    /// What of its files is ignored.
    pub notes: Vec<Note>,
}

/// The model that a stage begins with, or goes on with.
pub(super) fn janus(
    rank: &Rank,
    from: &str,
    tokenizer: &Tokenizer,
    latest: Option<&Checkpoint>,
    rule: Rule,
) -> Result<JanusStart> {
    let Rank { run, device, .. } = rank;
    if let Some(latest) = latest {
        let cannot = || format!("cannot go on from {}", latest.path.display());
        let (config, params, notes) = read_network(&latest.path, device).with_context(cannot)?;
        let (vq, _) = read_vq(&latest.path, device).with_context(cannot)?;
        let mut state = State::new(params, rule);
        let State { params, m, v, .. } = &mut state;
        load_moments(&latest.path, params, m, v).with_context(cannot)?;
        state.step = Position::of(Some(latest))?.updates;
        return Ok(JanusStart { config, state, vq, notes });
    }
    let path = directory(run, from)?;
    if is_vq(run, from) {
        let config = read_whole(&path.join(WHOLE))?;
        check_vocabulary(tokenizer, &config)?;
        let params = network::init(device, &config, Sight::Patches, run.recipe().run.seed);
        let (vq, notes) = read_vq(&path, device)?;
        return Ok(JanusStart { config, state: State::new(params, rule), vq, notes });
    }
    check_tokenizer(&Location::Directory(path.clone()), tokenizer)?;
    let (config, params, notes) = read_network(&path, device)?;
    check_vocabulary(tokenizer, &config)?;
    let (vq, _) = read_vq(&path, device)?;
    Ok(JanusStart { config, state: State::new(params, rule), vq, notes })
}

/// The configuration of the model that [`janus`] gives without a checkpoint.
pub(super) fn config_of(run: &RunDir, from: &str) -> Result<JanusConfig> {
    let path = directory(run, from)?;
    read_whole(&path.join(if is_vq(run, from) { WHOLE } else { "config.json" }))
}

fn check_vocabulary(tokenizer: &Tokenizer, config: &JanusConfig) -> Result<()> {
    let (ids, vocab_size) = (tokenizer.vocab_size(), config.text.vocab_size);
    if ids > vocab_size {
        let message = format!("the tokenizer has {ids} tokens, and the model's vocab_size is {vocab_size}");
        return Err(refuse(message, "name the tokenizer that belongs to the model with tokenizer.path"));
    }
    Ok(())
}

/// A model with the VQ tokenizer that stays as it is.
pub(super) struct Learner {
    pub trainer: JanusTrainer,
    pub vq: Vq,
}

impl Trained for Learner {
    fn updates(&self) -> u64 {
        self.trainer.state.step
    }

    fn save(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let State { params, m, v, .. } = &self.trainer.state;
        let config = self.trainer.network().config();
        let begin = PictureTokens::of(tokenizer).map(|tokens| tokens.begin);
        save_dir(folder, config, params, self.vq.params(), begin)?;
        tokenizer.save(folder, config.text.rope.max_positions)?;
        save_moments(folder, params.specs(), [m, v].map(|moments| moments.iter().map(|tensor| tensor.to_host())))
    }
}

/// A VQ tokenizer that learns, and the configuration of the model that it is for.
pub(super) struct VqBegin {
    pub config: JanusConfig,
    pub state: VqState,
}

/// The tokenizer that a stage begins with, or goes on with.
pub(super) fn vq(rank: &Rank, from: Option<&str>, latest: Option<&Checkpoint>) -> Result<VqBegin> {
    let Rank { run, device, .. } = rank;
    if let Some(latest) = latest {
        let cannot = || format!("cannot go on from {}", latest.path.display());
        let config = read_whole(&latest.path.join(WHOLE)).with_context(cannot)?;
        let (vq, _) = read_vq(&latest.path, device).with_context(cannot)?;
        let mut state = VqState::of(vq.into_parts().1, config.vq.codes);
        let VqState { params, m, v, .. } = &mut state;
        load_moments(&latest.path, params, m, v).with_context(cannot)?;
        state.idle = read_idle(&latest.path.join(IDLE), config.vq.codes).with_context(cannot)?;
        state.step = Position::of(Some(latest))?.updates;
        return Ok(VqBegin { config, state });
    }
    let config = config_of_vq(run, from)?;
    let state = match from {
        None => VqState::new(&config.vq, device, run.recipe().run.seed),
        Some(from) => {
            let (vq, _) = read_vq(&directory(run, from)?, device)?;
            VqState::of(vq.into_parts().1, config.vq.codes)
        }
    };
    Ok(VqBegin { config, state })
}

/// The configuration of the model that [`vq`] gives without a checkpoint.
pub(super) fn config_of_vq(run: &RunDir, from: Option<&str>) -> Result<JanusConfig> {
    match from {
        None => run.recipe().model.janus().cloned().context("[model] is no Janus model"),
        Some(from) => config_of(run, from),
    }
}

fn read_idle(path: &Path, codes: usize) -> Result<Vec<u32>> {
    let text = fs::read_to_string(path).map_err(RunError::io("read", path))?;
    let idle: Vec<u32> = serde_json::from_str(&text).with_context(|| format!("{} is damaged", path.display()))?;
    match idle.len() == codes {
        true => Ok(idle),
        false => Err(refuse(format!("{} is of {} codes, not {codes}", path.display(), idle.len()), "")),
    }
}

/// A tokenizer in training.
pub(super) struct VqLearner {
    pub trainer: VqTrainer,
    pub config: JanusConfig,
}

impl Trained for VqLearner {
    fn updates(&self) -> u64 {
        self.trainer.state.step
    }

    fn save(&self, folder: &Path, _tokenizer: &Tokenizer) -> Result<()> {
        let VqState { params, m, v, idle, .. } = &self.trainer.state;
        save_vq(folder, &self.config.vq, params)?;
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(RunError::io("write", &path))
        };
        write(WHOLE, &self.config.to_hf_json()?)?;
        write(IDLE, &serde_json::to_string(idle)?)?;
        save_moments(folder, params.specs(), [m, v].map(|moments| moments.iter().map(|tensor| tensor.to_host())))
    }
}

/// How many numbers there are to learn.
pub(super) fn parameters(params: &Params) -> u64 {
    params.specs().iter().map(|spec| spec.len() as u64).sum()
}

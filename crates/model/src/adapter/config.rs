//! What an adapter is: rank, scale, and which matrices it changes.

use std::collections::BTreeSet;

use super::AdapterError;
use crate::config::ModelConfig;
use crate::names::{HfTensor, ParamKind, ParamSpec, hf_tensors, param_specs};

/// Rank, scale and targets.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterConfig {
    /// r.
    pub rank: usize,
    /// What the scale s is a multiple of.
    pub alpha: f64,
    /// s = alpha/√r in place of alpha/r: PEFT's `use_rslora`.
    pub rank_stabilised: bool,
    /// Which matrices it changes.
    pub targets: Targets,
}

/// Which matrices an adapter changes: PEFT's `target_modules`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Targets {
    /// Every linear layer but the head, of a mixture of experts those of attention: `"all-linear"`.
    AllLinear,
    /// The modules with these names: `q_proj`, or more of the path, `layers.3.self_attn.q_proj`.
    Names(Vec<String>),
}

impl AdapterConfig {
    /// What is added is multiplied by it.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f64;
        (self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }) as f32
    }
}

impl Targets {
    /// The parameters that are adapted, ascending. Layers of multi-token prediction have none: `transformers` does not
    /// know them.
    ///
    /// # Errors
    /// A name that no matrix has, or one that cannot be adapted.
    pub fn matrices(&self, model: &ModelConfig) -> Result<Vec<usize>, AdapterError> {
        let candidates = candidates(model)?;
        let params = |of: &mut dyn Iterator<Item = &HfTensor>| of.map(|tensor| tensor.param).collect::<BTreeSet<_>>();
        let mut chosen = BTreeSet::new();
        match self {
            Targets::AllLinear => chosen = params(&mut candidates.iter()),
            Targets::Names(names) => {
                for name in names {
                    let found =
                        params(&mut candidates.iter().filter(|tensor| names_module(name, module(&tensor.name))));
                    if found.is_empty() {
                        return Err(refusal(name, model, &candidates));
                    }
                    chosen.extend(found);
                }
            }
        }
        Ok(chosen.into_iter().collect())
    }
}

/// The matrices of linear layers, each a tensor of its own in the model's files.
fn candidates(model: &ModelConfig) -> Result<Vec<HfTensor>, AdapterError> {
    let specs = param_specs(model);
    let is_linear = |spec: &ParamSpec| {
        // PEFT takes the names of dense and shared feed-forward layers beside routed experts for those of the experts.
        let has_module = model.moe.is_none() || spec.name.contains(".self_attn.");
        // What an indexer chooses has no gradient.
        let has_module = has_module && !spec.is_of_indexer();
        spec.kind == ParamKind::Matrix && has_module && spec.layer().is_some_and(|at| at < model.layers)
    };
    let linear: Vec<_> = hf_tensors(model).into_iter().filter(|tensor| is_linear(&specs[tensor.param])).collect();
    match linear.iter().find(|tensor| !tensor.is_whole()) {
        None => Ok(linear),
        Some(fused) => Err(AdapterError::Refused {
            name: module(&fused.name).to_owned(),
            reason: "this family's files fuse several matrices in one, which an adapter would have to share",
        }),
    }
}

fn refusal(name: &str, model: &ModelConfig, candidates: &[HfTensor]) -> AdapterError {
    let refused = |reason| AdapterError::Refused { name: name.to_owned(), reason };
    let last = name.rsplit('.').next().unwrap_or(name);
    if ["embed_tokens", "lm_head"].contains(&last) {
        return refused("embedding and head stay as they are");
    }
    let of_experts = ["gate_proj", "up_proj", "down_proj", "gate_up_proj"].contains(&last);
    if model.moe.is_some() && (of_experts || name.contains("experts")) {
        return refused("feed-forward layers of a mixture of experts have no adapters yet, routed or shared");
    }
    if model.indexer.is_some() && (["wq_b", "wk", "weights_proj"].contains(&last) || name.contains("indexer")) {
        return refused("indexers stay as they are: what they choose has no gradient");
    }
    if model.moe.is_some() && ["gate", "router"].contains(&last) {
        return refused("routers stay as they are");
    }
    let known: BTreeSet<&str> =
        candidates.iter().filter_map(|tensor| module(&tensor.name).rsplit('.').next()).collect();
    AdapterError::Target { name: name.to_owned(), known: known.into_iter().map(str::to_owned).collect() }
}

/// PEFT's rule: the whole path, or what it ends with from a point on.
fn names_module(name: &str, module: &str) -> bool {
    module.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// The module that a tensor belongs to.
pub(super) fn module(tensor: &str) -> &str {
    tensor.strip_suffix(".weight").unwrap_or(tensor)
}

/// The matrices that adapters may change, with the paths of their modules.
pub(super) fn modules(model: &ModelConfig) -> Result<Vec<(usize, String)>, AdapterError> {
    Ok(candidates(model)?.into_iter().map(|tensor| (tensor.param, module(&tensor.name).to_owned())).collect())
}

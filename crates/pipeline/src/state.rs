//! Weights and optimizer in a checkpoint: a Hugging Face directory, and beside it what the optimizer remembers.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use wels_comm::Lost;
use wels_data::tokenizer::Tokenizer;
use wels_device::{Device, Tensor};
use wels_model::adapter::BaseName;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::names::ParamSpec;
use wels_model::params::Params;
use wels_model::weights;
use wels_runs::tensors;
use wels_train::muon::Rule;
use wels_train::trainer::{State, Trainer};

use crate::training::Trained;

const OPTIMIZER: &str = "optimizer.safetensors";

/// The largest file of weights that is written.
const WEIGHTS_FILE_BYTES: u64 = 4 << 30;

impl Trained for Trainer {
    fn updates(&self) -> u64 {
        self.state.step
    }

    fn save(&self, folder: &Path, tokenizer: &Tokenizer) -> Result<()> {
        let (config, params) = (self.model().config(), &self.state.params);
        let values = |param: usize| params.tensors()[param].to_host();
        weights::save_dir(folder, config, Dtype::F32, WEIGHTS_FILE_BYTES, &values)?;
        tokenizer.save(folder, config.rope.max_positions)?;
        save_moments(folder, params.specs(), self.whole_moments()?)
    }

    fn join_in_saving(&self) -> Result<(), Lost> {
        self.whole_moments().map(drop)
    }
}

/// Writes an adapter that is trained, and beside it what the optimizer remembers of it.
pub(crate) fn save_adapter(trainer: &Trainer, folder: &Path, tokenizer: &Tokenizer, base: &BaseName) -> Result<()> {
    let (config, params) = (trainer.model().config(), &trainer.state.params);
    let adapter = params.adapter().expect("a stage that learns an adapter");
    adapter.save(folder, config, base)?;
    tokenizer.save(folder, config.rope.max_positions)?;
    let [m, v] = trainer.whole_moments()?;
    let own = params.frozen();
    save_moments(folder, &params.specs()[own..], [m, v].map(|moments| moments.into_iter().skip(own)))
}

/// Reads back what [`save_adapter`] wrote, the adapter being behind its model's weights already.
pub(crate) fn load_adapter_state(params: Params, rule: Rule, folder: &Path, updates: u64) -> Result<State> {
    let mut state = State::new(params, rule);
    let State { params, m, v, .. } = &mut state;
    let own = params.frozen();
    load_moments(folder, &params.specs()[own..], &mut m[own..], &mut v[own..])?;
    state.step = updates;
    Ok(state)
}

/// Writes what the optimizer remembers: the mean of gradients and that of their squares, one a parameter.
pub(crate) fn save_moments<'a>(
    folder: &Path,
    specs: &[ParamSpec],
    [m, v]: [impl IntoIterator<Item = Cow<'a, [f32]>>; 2],
) -> Result<()> {
    let both = specs.iter().zip(m.into_iter().zip(v));
    let named = both.flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), m), (format!("v.{}", spec.name), v)]);
    Ok(tensors::save(&folder.join(OPTIMIZER), named, HashMap::new())?)
}

/// Reads back what [`save_moments`] wrote.
pub(crate) fn load_moments(folder: &Path, specs: &[ParamSpec], m: &mut [Tensor], v: &mut [Tensor]) -> Result<()> {
    let both = specs.iter().zip(m.iter().zip(v.iter()));
    let names: Vec<(String, usize)> = both
        .flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), m.len()), (format!("v.{}", spec.name), v.len())])
        .collect();
    Ok(tensors::load(&folder.join(OPTIMIZER), names, &mut |place, values| {
        let moments = if place % 2 == 0 { &mut *m } else { &mut *v };
        moments[place / 2].set(0, values);
    })?)
}

/// Reads back what was saved of a [`Trainer`], after `updates` updates.
pub(crate) fn load_state(
    device: &Arc<dyn Device>,
    config: &ModelConfig,
    rule: Rule,
    folder: &Path,
    updates: u64,
) -> Result<State> {
    let mut params = Params::zeros(device, config);
    weights::load_dir(folder, config, &mut |param, first_row, _, values| params.set_rows(param, first_row, values))?;
    let mut state = State::new(params, rule);
    let State { params, m, v, .. } = &mut state;
    load_moments(folder, params.specs(), m, v)?;
    state.step = updates;
    Ok(state)
}

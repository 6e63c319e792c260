//! Weights and optimizer in a checkpoint: a Hugging Face directory, and beside it what the optimizer remembers.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_device::Device;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::params::Params;
use wels_model::weights;
use wels_runs::tensors;
use wels_train::muon::Rule;
use wels_train::trainer::{State, Trainer};

/// The largest file of weights that is written.
const WEIGHTS_FILE_BYTES: u64 = 4 << 30;

/// Writes weights, configuration, tokenizer and the optimizer's state, on rank 0; the other ranks are to ask for
/// [`Trainer::whole_moments`] meanwhile.
pub(crate) fn save_state(folder: &Path, trainer: &Trainer, tokenizer: &Tokenizer) -> Result<()> {
    let (config, params) = (trainer.model().config(), &trainer.state.params);
    let values = |param: usize| params.tensors()[param].to_host();
    weights::save_dir(folder, config, Dtype::F32, WEIGHTS_FILE_BYTES, &values)?;
    tokenizer.save(folder, config.rope.max_positions)?;
    let [m, v] = trainer.whole_moments()?;
    let both = params.specs().iter().zip(m.into_iter().zip(v));
    let named = both.flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), m), (format!("v.{}", spec.name), v)]);
    Ok(tensors::save(&folder.join("optimizer.safetensors"), named, HashMap::new())?)
}

/// Reads back what [`save_state`] wrote, after `updates` updates.
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
    let both = state.params.specs().iter().zip(state.m.iter().zip(&state.v));
    let names: Vec<(String, usize)> = both
        .flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), m.len()), (format!("v.{}", spec.name), v.len())])
        .collect();
    tensors::load(&folder.join("optimizer.safetensors"), names, &mut |place, values| {
        let moments = if place % 2 == 0 { &mut state.m } else { &mut state.v };
        moments[place / 2].set(0, values);
    })?;
    state.step = updates;
    Ok(state)
}

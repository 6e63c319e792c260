//! Weights and optimizer in a checkpoint: a Hugging Face directory, and beside it AdamW's two means.

use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::params::Params;
use wels_model::weights;
use wels_runs::tensors;
use wels_train::trainer::State;

/// The largest file of weights that is written.
const WEIGHTS_FILE_BYTES: u64 = 4 << 30;

/// Writes weights, configuration, tokenizer and the optimizer's state.
pub(crate) fn save_state(folder: &Path, config: &ModelConfig, state: &State, tokenizer: &Tokenizer) -> Result<()> {
    let values = |param: usize| &state.params.values[param][..];
    weights::save_dir(folder, config, Dtype::F32, WEIGHTS_FILE_BYTES, &values)?;
    tokenizer.save(folder, config.rope.max_positions)?;
    Ok(tensors::save(&folder.join("optimizer.safetensors"), moments(state), HashMap::new())?)
}

/// Reads back what [`save_state`] wrote, after `updates` updates.
pub(crate) fn load_state(config: &ModelConfig, folder: &Path, updates: u64) -> Result<State> {
    let mut params = Params::zeros(config);
    weights::load_dir(folder, config, &mut |param, first_row, _, values| params.set_rows(param, first_row, values))?;
    let mut state = State::new(params);
    let State { params, m, v, .. } = &mut state;
    let buffers = params.specs().iter().zip(m.iter_mut().zip(v)).flat_map(|(spec, (m, v))| {
        [(format!("m.{}", spec.name), &mut m[..]), (format!("v.{}", spec.name), &mut v[..])]
    });
    tensors::load(&folder.join("optimizer.safetensors"), buffers)?;
    state.step = updates;
    Ok(state)
}

/// AdamW's state under names: `m.` and `v.` before the parameter's.
fn moments(state: &State) -> impl Iterator<Item = (String, &[f32])> {
    state
        .params
        .specs()
        .iter()
        .zip(state.m.iter().zip(&state.v))
        .flat_map(|(spec, (m, v))| [(format!("m.{}", spec.name), &m[..]), (format!("v.{}", spec.name), &v[..])])
}

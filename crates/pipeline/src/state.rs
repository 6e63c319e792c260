//! Weights and optimizer in a checkpoint: a Hugging Face directory, and beside it what the optimizer remembers.

use std::borrow::Cow;
use std::cell::Cell;
use std::collections::HashMap;
use std::path::Path;

use anyhow::Result;
use wels_comm::Lost;
use wels_data::tokenizer::Tokenizer;
use wels_device::Tensor;
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
        // Of experts over ranks a parameter is here while it is written.
        let lost = Cell::new(None);
        let values = |param: usize| {
            self.whole_values(param).unwrap_or_else(|why| {
                lost.set(Some(why));
                vec![0.0; params.specs()[param].len()].into()
            })
        };
        let written = weights::save_dir(folder, config, Dtype::F32, WEIGHTS_FILE_BYTES, &values);
        lost.get().map_or(Ok(()), Err)?;
        self.end_whole_values()?;
        written?;
        tokenizer.save(folder, config.rope.max_positions)?;
        save_moments(folder, params.specs(), self.whole_moments()?)
    }

    fn join_in_saving(&self) -> Result<(), Lost> {
        self.join_in_whole_values()?;
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
    load_moments(folder, params, m, v)?;
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

/// Reads back what [`save_moments`] wrote of what is learnt of `params`.
pub(crate) fn load_moments(folder: &Path, params: &Params, m: &mut [Tensor], v: &mut [Tensor]) -> Result<()> {
    let own = params.frozen();
    let both = params.specs().iter().zip(m.iter().zip(v.iter())).skip(own);
    let len = |spec: &ParamSpec, moments: &Tensor| if moments.is_empty() { 0 } else { spec.len() };
    let names: Vec<(String, usize)> = both
        .flat_map(|(spec, (m, v))| {
            [(format!("m.{}", spec.name), len(spec, m)), (format!("v.{}", spec.name), len(spec, v))]
        })
        .collect();
    Ok(tensors::load(&folder.join(OPTIMIZER), names, &mut |place, values| {
        let (moments, param) = (if place % 2 == 0 { &mut *m } else { &mut *v }, own + place / 2);
        let (rows, cols) = (params.rows_here(param), params.specs()[param].cols);
        let here = if values.is_empty() { 0..0 } else { rows.start * cols..rows.end * cols };
        moments[param].set(0, &values[here]);
    })?)
}

/// Reads back into `params` what was saved of a [`Trainer`], after `updates` updates.
pub(crate) fn load_state(
    mut params: Params,
    config: &ModelConfig,
    rule: Rule,
    folder: &Path,
    updates: u64,
) -> Result<State> {
    weights::load_dir(folder, config, &mut |param, first_row, _, values| params.set_rows(param, first_row, values))?;
    let mut state = State::new(params, rule);
    let State { params, m, v, .. } = &mut state;
    load_moments(folder, params, m, v)?;
    state.step = updates;
    Ok(state)
}

//! Parameters, the handles by which layers know them, and their gradients.
//!
//! **A parameter used twice.** The gradient of a parameter is one chain over tokens, continued from one micro-batch to
//! the next, so that the split into micro-batches changes no bit. Used at two places of one forward pass (a tied head;
//! embedding and head shared with MTP) a common chain would alternate between the places once a micro-batch. So each
//! place has a gradient buffer of its own, a *slot*, and [`Grads::finish`] adds them up in the order in which the model
//! asks for them, once a step.

use crate::config::ModelConfig;
use crate::model::Model;
use crate::names::{ParamKind, ParamSpec, param_specs};
use wels_kernels::gemm::Start;
use wels_kernels::{elementwise, optim, random};

/// The values of all parameters, as the kernels use them.
#[derive(Clone, Debug)]
pub struct Params {
    specs: Vec<ParamSpec>,
    /// One a parameter, `[rows, cols]` row-major, in the order of [`param_specs`].
    pub values: Vec<Vec<f32>>,
    /// One a parameter that has them.
    absorbed: Vec<Option<Absorbed>>,
}

/// The halves of MLA's up-projection `[H·(nope + v), latent]` as its absorbed form multiplies with them.
#[derive(Clone, Debug)]
pub(crate) struct Absorbed {
    /// `[H·latent, nope]`: W_UKᵀ of each head.
    pub keys: Vec<f32>,
    /// `[H·v, latent]`: W_UV of each head.
    pub values: Vec<f32>,
}

impl Params {
    /// All zeros, to be filled by a reader of weights.
    pub fn zeros(config: &ModelConfig) -> Self {
        let specs = param_specs(config);
        let values = specs.iter().map(|spec| vec![0.0; spec.len()]).collect();
        let absorbed = vec![None; specs.len()];
        Params { specs, values, absorbed }
    }

    /// Before training: matrices and embeddings normal with the configuration's standard deviation, norms 1, biases 0.
    /// An element depends on the seed, its parameter's name and its index alone.
    pub fn init(config: &ModelConfig, seed: u64) -> Self {
        let mut params = Self::zeros(config);
        for (spec, values) in params.specs.iter().zip(&mut params.values) {
            match spec.kind {
                ParamKind::Norm => values.fill(1.0),
                ParamKind::Bias | ParamKind::RouterBias => values.fill(0.0),
                _ => {
                    let key = random::Key { seed, stream: fnv1a64(&spec.name) };
                    random::fill_normal(values, f64::from(config.init_std), key, 0);
                }
            }
        }
        params
    }

    /// Names and shapes, one a parameter.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// The values of the parameter a layer knows as `weight`.
    pub fn of(&self, weight: Weight) -> &[f32] {
        &self.values[weight.param]
    }

    /// Makes ready for pages of latents: from the values as they are now. Does nothing for a model without latents.
    pub fn prepare_latent(&mut self, model: &Model) {
        for (weight, nope, v) in model.up_projections() {
            let up = self.of(weight);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for head in up.chunks_exact((nope + v) * weight.cols) {
                let (of_keys, of_values) = head.split_at(nope * weight.cols);
                for column in 0..weight.cols {
                    keys.extend(of_keys[column..].iter().step_by(weight.cols));
                }
                values.extend_from_slice(of_values);
            }
            self.absorbed[weight.param] = Some(Absorbed { keys, values });
        }
    }

    /// # Panics
    /// If [`Params::prepare_latent`] was not called.
    pub(crate) fn absorbed(&self, weight: Weight) -> &Absorbed {
        self.absorbed[weight.param].as_ref().expect("parameters prepared for pages of latents")
    }

    /// The place of the parameter with this name.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.specs.iter().position(|spec| spec.name == name)
    }

    /// Copies rows into a parameter, from `first_row` on: what a reader of weights calls for each tensor.
    ///
    /// # Panics
    /// If the rows reach beyond the parameter.
    pub fn set_rows(&mut self, param: usize, first_row: usize, values: &[f32]) {
        let start = first_row * self.specs[param].cols;
        self.values[param][start..start + values.len()].copy_from_slice(values);
    }

    /// The first parameter that holds an infinity or a NaN.
    pub fn first_non_finite(&self) -> Option<&str> {
        first_non_finite(&self.specs, &self.values)
    }
}

fn first_non_finite<'a>(specs: &'a [ParamSpec], values: &[Vec<f32>]) -> Option<&'a str> {
    let bad = values.iter().position(|values| optim::first_non_finite(values).is_some())?;
    Some(&specs[bad].name)
}

/// FNV-1a, 64 bits: the stream of random numbers that belongs to a name.
fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// A layer's handle on a parameter: which one, and which gradient slot this use of it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    param: usize,
    slot: usize,
    /// Rows of the parameter (outputs of a linear map).
    pub rows: usize,
    /// Columns of the parameter (inputs of a linear map).
    pub cols: usize,
}

/// Hands parameters to layers by name and numbers their gradient slots.
pub(crate) struct Wiring {
    specs: Vec<ParamSpec>,
    /// The parameter of each slot. The first ones are the parameters in order; a second use gets a slot after them.
    slots: Vec<usize>,
    used: Vec<bool>,
}

impl Wiring {
    pub fn new(config: &ModelConfig) -> Self {
        let specs = param_specs(config);
        Wiring { slots: (0..specs.len()).collect(), used: vec![false; specs.len()], specs }
    }

    /// The parameter called `name`.
    ///
    /// # Panics
    /// If there is none: the layers and the list of parameters disagree.
    pub fn weight(&mut self, name: &str) -> Weight {
        self.optional(name).unwrap_or_else(|| panic!("the model has no parameter {name}"))
    }

    /// The parameter called `name`, if the model has it.
    pub fn optional(&mut self, name: &str) -> Option<Weight> {
        let param = self.specs.iter().position(|spec| spec.name == name)?;
        let slot = if std::mem::replace(&mut self.used[param], true) { self.slots.len() } else { param };
        if slot == self.slots.len() {
            self.slots.push(param);
        }
        let ParamSpec { rows, cols, .. } = self.specs[param];
        Some(Weight { param, slot, rows, cols })
    }

    /// The parameter of each gradient slot.
    ///
    /// # Panics
    /// If a parameter belongs to no layer.
    pub fn into_slots(self) -> Vec<usize> {
        let orphan = self.used.iter().position(|used| !used);
        assert!(orphan.is_none(), "no layer uses {}", self.specs[orphan.unwrap_or(0)].name);
        self.slots
    }
}

/// Gradients of all parameters, summed over the micro-batches of a step.
///
/// Made by [`Model::grads`](crate::model::Model::grads). A step: [`Grads::begin`], any number of micro-batches,
/// [`Grads::finish`], then [`Grads::values`].
pub struct Grads {
    specs: Vec<ParamSpec>,
    slots: Vec<usize>,
    /// One a slot; empty for parameters without a gradient.
    values: Vec<Vec<f32>>,
    touched: Vec<bool>,
}

impl Grads {
    pub(crate) fn new(config: &ModelConfig, slots: &[usize]) -> Self {
        let specs = param_specs(config);
        let len = |param: usize| if specs[param].kind == ParamKind::RouterBias { 0 } else { specs[param].len() };
        let values = slots.iter().map(|&param| vec![0.0; len(param)]).collect();
        Grads { slots: slots.to_vec(), values, touched: vec![false; slots.len()], specs }
    }

    /// Begins a step. Nothing is cleared: the first micro-batch overwrites.
    pub fn begin(&mut self) {
        self.touched.fill(false);
    }

    /// Gives the gradient of `weight` to `write`, with what its chains begin with.
    pub(crate) fn accumulate(&mut self, weight: Weight, write: impl FnOnce(&mut [f32], Start)) {
        let touched = std::mem::replace(&mut self.touched[weight.slot], true);
        write(&mut self.values[weight.slot], if touched { Start::Continue } else { Start::Zero });
    }

    /// Ends a step: what nothing touched becomes zero, and the slots of a parameter used several times are added up.
    pub fn finish(&mut self) {
        for (values, touched) in self.values.iter_mut().zip(&self.touched) {
            if !touched {
                values.fill(0.0);
            }
        }
        let (first, further) = self.values.split_at_mut(self.specs.len());
        for (values, &param) in further.iter().zip(&self.slots[self.specs.len()..]) {
            elementwise::add(values, &mut first[param]);
        }
    }

    /// One a parameter, `[rows, cols]`; empty for a parameter without gradient (a router's selection bias).
    pub fn values(&self) -> &[Vec<f32>] {
        &self.values[..self.specs.len()]
    }

    /// The first parameter whose gradient holds an infinity or a NaN.
    pub fn first_non_finite(&self) -> Option<&str> {
        first_non_finite(&self.specs, self.values())
    }

    /// Bytes that the gradients take, those of second uses included.
    pub fn bytes(&self) -> usize {
        self.values.iter().map(|values| size_of_val(&values[..])).sum()
    }
}

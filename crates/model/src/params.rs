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
use crate::paged::CacheLayout;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;
use wels_kernels::gemm::Start;
use wels_kernels::quant::{BlockType, QuantMatrix};
use wels_kernels::{elementwise, optim, random};

/// The values of all parameters, as the kernels use them.
#[derive(Clone, Debug)]
pub struct Params {
    specs: Vec<ParamSpec>,
    /// One a parameter, `[rows, cols]` row-major, in the order of [`param_specs`]; empty for one that is packed.
    pub values: Vec<Vec<f32>>,
    /// For inference alone: one a parameter that is packed.
    packed: Vec<Option<Packed>>,
    /// One a parameter that has them.
    absorbed: Vec<Option<Absorbed>>,
}

/// A parameter packed for products, in any number format: one matrix, or one for each expert or head.
#[derive(Clone)]
pub struct Packed(Arc<[QuantMatrix]>);

impl Packed {
    /// Of matrices that are stacked by rows.
    pub fn new(matrices: Vec<QuantMatrix>) -> Self {
        Packed(matrices.into())
    }

    /// Bytes that a product with all of them reads.
    fn bytes(&self) -> usize {
        self.0.iter().map(QuantMatrix::bytes).sum()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matrix = |m: &QuantMatrix| format!("{}[{}, {}]", m.block_type().name(), m.rows(), m.columns());
        f.debug_list().entries(self.0.iter().map(matrix)).finish()
    }
}

/// A parameter as operations of inference read it.
#[derive(Clone, Copy)]
pub enum Stored<'a> {
    /// `[rows, cols]`.
    F32(&'a [f32]),
    /// One matrix, or one for each expert or head, stacked by rows.
    Packed(&'a [QuantMatrix]),
}

/// The halves of MLA's up-projection `[H·(nope + v), latent]` as its absorbed form multiplies with them.
#[derive(Clone, Debug)]
pub(crate) struct Absorbed {
    /// `[H·latent, nope]`: W_UKᵀ of each head.
    keys: Half,
    /// `[H·v, latent]`: W_UV of each head.
    values: Half,
}

#[derive(Clone, Debug)]
enum Half {
    F32(Vec<f32>),
    Packed(Packed),
}

impl Half {
    /// Of `[heads·rows, cols]`; packed, each head for itself, where the up-projection is packed as `like`: in 8 bits if
    /// that is quantised.
    fn new(values: Vec<f32>, rows: usize, cols: usize, like: Option<BlockType>) -> Self {
        let Some(like) = like else { return Half::F32(values) };
        let kind = if like.is_quantised() { BlockType::Q8_0 } else { like };
        let heads = values.chunks_exact(rows * cols);
        Half::Packed(Packed::new(heads.map(|head| QuantMatrix::quantise(head, rows, cols, kind)).collect()))
    }

    fn stored(&self) -> Stored<'_> {
        match self {
            Half::F32(values) => Stored::F32(values),
            Half::Packed(Packed(matrices)) => Stored::Packed(matrices),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Half::F32(values) => size_of_val(&values[..]),
            Half::Packed(matrices) => matrices.bytes(),
        }
    }
}

impl Absorbed {
    pub fn keys(&self) -> Stored<'_> {
        self.keys.stored()
    }

    pub fn values(&self) -> Stored<'_> {
        self.values.stored()
    }
}

impl Params {
    /// All zeros, to be filled by a reader of weights.
    pub fn zeros(config: &ModelConfig) -> Self {
        let specs = param_specs(config);
        let values = specs.iter().map(|spec| vec![0.0; spec.len()]).collect();
        Params { values, ..Self::empty(specs) }
    }

    /// Without values, for a reader that gives each parameter [`Params::set_values`] or [`Params::set_packed`].
    pub fn unset(config: &ModelConfig) -> Self {
        Self::empty(param_specs(config))
    }

    fn empty(specs: Vec<ParamSpec>) -> Self {
        let count = specs.len();
        Params { specs, values: vec![Vec::new(); count], packed: vec![None; count], absorbed: vec![None; count] }
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
    ///
    /// # Panics
    /// If it is packed: only matrices may be, and only for inference.
    pub fn of(&self, weight: Weight) -> &[f32] {
        let packed = self.packed[weight.param].is_some();
        assert!(!packed, "{} is packed where its values are needed", self.specs[weight.param].name);
        &self.values[weight.param]
    }

    /// The parameter a layer knows as `weight`, however it is stored.
    pub fn stored(&self, weight: Weight) -> Stored<'_> {
        match &self.packed[weight.param] {
            Some(Packed(matrices)) => Stored::Packed(matrices),
            None => Stored::F32(&self.values[weight.param]),
        }
    }

    /// Sets a parameter's values, `[rows, cols]`.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn set_values(&mut self, param: usize, values: Vec<f32>) {
        let spec = &self.specs[param];
        assert_eq!(values.len(), spec.len(), "values of {}", spec.name);
        self.values[param] = values;
        self.packed[param] = None;
    }

    /// Sets a parameter to packed matrices, which stacked are `[rows, cols]`. It can no longer be trained.
    ///
    /// # Panics
    /// If they have another shape, or the parameter is no matrix that products may have packed.
    pub fn set_packed(&mut self, param: usize, matrices: Packed) {
        let spec = &self.specs[param];
        assert!(spec.kind.is_packable(), "{} is {:?}", spec.name, spec.kind);
        let rows: usize = matrices.0.iter().map(QuantMatrix::rows).sum();
        assert!(rows == spec.rows && matrices.0.iter().all(|m| m.columns() == spec.cols), "{matrices:?} for {spec:?}");
        let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
        assert_eq!(matrices.0.len(), count, "matrices of {}", spec.name);
        self.values[param] = Vec::new();
        self.packed[param] = Some(matrices);
        self.absorbed[param] = None;
    }

    /// Bytes of a parameter that products read, with pages of this layout.
    pub fn bytes(&self, param: usize, layout: CacheLayout) -> usize {
        match (&self.absorbed[param], &self.packed[param]) {
            (Some(halves), _) if layout == CacheLayout::Latent => halves.keys.bytes() + halves.values.bytes(),
            (_, Some(matrices)) => matrices.bytes(),
            (_, None) => size_of_val(&self.values[param][..]),
        }
    }

    /// Sets the halves of an up-projection, a matrix for each head, for a file that has them: `[latent, nope]` each of
    /// the keys, `[v, latent]` of the values.
    pub(crate) fn set_absorbed(&mut self, param: usize, [keys, values]: [Packed; 2]) {
        self.absorbed[param] = Some(Absorbed { keys: Half::Packed(keys), values: Half::Packed(values) });
    }

    /// Makes ready for pages of latents: from the values as they are now, where the file did not have the halves. Does
    /// nothing for a model without latents.
    pub fn prepare_latent(&mut self, model: &Model) {
        // What is packed does not change.
        let made = |weight: Weight| self.packed[weight.param].is_some() && self.absorbed[weight.param].is_some();
        let todo: Vec<_> = model.up_projections().filter(|(weight, ..)| !made(*weight)).collect();
        for (weight, nope, v) in todo {
            let cols = weight.cols;
            let stored = self.stored(weight);
            let like = match stored {
                Stored::F32(_) => None,
                Stored::Packed(matrices) => matrices.first().map(QuantMatrix::block_type),
            };
            let up = values_of(stored);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for head in up.chunks_exact((nope + v) * cols) {
                let (of_keys, of_values) = head.split_at(nope * cols);
                for column in 0..cols {
                    keys.extend(of_keys[column..].iter().step_by(cols));
                }
                values.extend_from_slice(of_values);
            }
            let keys = Half::new(keys, cols, nope, like);
            self.absorbed[weight.param] = Some(Absorbed { keys, values: Half::new(values, v, cols, like) });
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

/// The values, as f32.
fn values_of(stored: Stored<'_>) -> Cow<'_, [f32]> {
    match stored {
        Stored::F32(values) => Cow::Borrowed(values),
        Stored::Packed(matrices) => Cow::Owned(matrices.iter().flat_map(decoded).collect()),
    }
}

fn decoded(matrix: &QuantMatrix) -> Vec<f32> {
    let mut values = vec![0.0; matrix.rows() * matrix.columns()];
    let rows: Vec<u32> = (0..matrix.rows() as u32).collect();
    matrix.rows_of(&rows, &mut values);
    values
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

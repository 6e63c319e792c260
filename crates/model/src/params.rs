//! Parameters, the handles by which layers know them, and their gradients.
//!
//! **A parameter used twice.** The gradient of a parameter is one chain over tokens, continued from one micro-batch to
//! the next, so that the split into micro-batches changes no bit. Used at two places of one forward pass (a tied head;
//! embedding and head shared with MTP) a common chain would alternate between the places once a micro-batch. So each
//! place has a gradient buffer of its own, a *slot*, and [`Grads::finish`] adds them up in the order in which the model
//! asks for them, once a step.

mod grads;

pub use grads::{Grads, OnLayer};

use crate::adapter::{A, Adapter, AdapterConfig, B, Halves, Pair, part_name};
use crate::config::{CacheLayout, ModelConfig};
use crate::expert_parallel::{ExpertShare, is_of_experts};
use crate::family::NormWeights;
use crate::names::{ParamKind, ParamSpec, param_specs};
use crate::placement::{Place, Placement};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use wels_device::host::random;
use wels_device::{BlockType, Device, Dtype, Packed, Source, Tensor, WeightRef};

/// The values of all parameters, on a device or two. Clones share them until one is changed.
#[derive(Clone, Debug)]
pub struct Params {
    placement: Placement,
    specs: Vec<ParamSpec>,
    /// Where each parameter is.
    places: Vec<Place>,
    /// One a parameter, `[rows, cols]`, in the order of [`param_specs`]; `[0, cols]` for one that is packed.
    tensors: Vec<Tensor>,
    /// For inference alone: one a parameter that is packed.
    packed: Vec<Option<Packed>>,
    /// One a parameter that has them.
    absorbed: Vec<Option<Absorbed>>,
    /// Where ranks share the routed experts: which of them these are.
    share: Option<ExpertShare>,
    /// An adapter, whose matrices are the last of the parameters.
    attached: Option<Arc<Attached>>,
}

/// Where an adapter's matrices are among the parameters.
#[derive(Debug)]
struct Attached {
    config: AdapterConfig,
    /// How many parameters the model itself has; A and B of each pair follow, in turns.
    base: usize,
    /// The matrix that each pair changes, ascending.
    adapted: Vec<usize>,
    /// Of each pair as it was attached, for answering over pages of latents.
    halves: Vec<Option<Halves>>,
}

/// An adapter's part of a matrix, among the parameters.
#[derive(Clone, Copy, Debug)]
pub struct LowRank {
    /// `[r, K]`.
    pub a: Weight,
    /// `[N, r]`.
    pub b: Weight,
    /// What is added is multiplied by it.
    pub scale: f32,
}

/// The halves of MLA's up-projection `[H·(nope + v), latent]` as its absorbed form multiplies with them.
#[derive(Clone, Debug)]
pub(crate) struct Absorbed {
    /// `[H·latent, nope]`: W_UKᵀ of each head.
    keys: AbsorbedMatrix,
    /// `[H·v, latent]`: W_UV of each head.
    values: AbsorbedMatrix,
}

#[derive(Clone, Debug)]
enum AbsorbedMatrix {
    Plain(Tensor),
    Packed(Packed),
}

impl AbsorbedMatrix {
    /// Of `[heads·rows, cols]`; packed, each head for itself, where the up-projection is packed as `like`: in 8 bits if
    /// that is quantised, in f32 if it is of E4M3, whose scales of other rows these do not have.
    fn new(device: &Arc<dyn Device>, values: &[f32], rows: usize, cols: usize, like: Option<BlockType>) -> Self {
        let Some(like) = like else {
            return AbsorbedMatrix::Plain(Tensor::of(device, values.len() / cols, cols, values));
        };
        let to = like_halves(like);
        let heads = values.chunks_exact(rows * cols);
        let count = heads.len();
        let pack = |(i, values)| device.pack_one_of(Source::Values { values, to }, rows, cols, i, count);
        AbsorbedMatrix::Packed(device.stack(heads.enumerate().map(pack).collect()))
    }

    fn stored(&self) -> WeightRef<'_> {
        match self {
            AbsorbedMatrix::Plain(values) => WeightRef::Plain(values),
            AbsorbedMatrix::Packed(matrices) => WeightRef::Packed(matrices),
        }
    }

    fn bytes(&self, device: &dyn Device) -> usize {
        match self {
            AbsorbedMatrix::Plain(values) => values.bytes(),
            AbsorbedMatrix::Packed(matrices) => device.packed_bytes(matrices),
        }
    }
}

impl Absorbed {
    pub fn keys(&self) -> WeightRef<'_> {
        self.keys.stored()
    }

    pub fn values(&self) -> WeightRef<'_> {
        self.values.stored()
    }
}

impl Params {
    /// All zeros, to be filled by a reader of weights.
    pub fn zeros(device: &Arc<dyn Device>, config: &ModelConfig) -> Self {
        Self::zeros_of(device, param_specs(config), None)
    }

    /// [`Params::zeros`] with the experts of a share alone.
    pub fn zeros_shared(device: &Arc<dyn Device>, config: &ModelConfig, share: Option<ExpertShare>) -> Self {
        Self::zeros_of(device, param_specs(config), share)
    }

    fn zeros_of(device: &Arc<dyn Device>, specs: Vec<ParamSpec>, share: Option<ExpertShare>) -> Self {
        let rows = |spec: &ParamSpec| share.as_ref().map_or(spec.rows, |share| share.rows(spec).len());
        let tensors = specs.iter().map(|spec| Tensor::zeros(device, rows(spec), spec.cols)).collect();
        Params { share, ..Params::with_tensors(device, specs, tensors) }
    }

    /// Without values, of a network that is no language model and lists its parameters itself.
    pub(crate) fn unset_list(device: &Arc<dyn Device>, specs: Vec<ParamSpec>) -> Self {
        let tensors = specs.iter().map(|spec| nothing(device, spec)).collect();
        Params::with_tensors(device, specs, tensors)
    }

    /// All zeros, of a network that is no language model and lists its parameters itself.
    pub fn listed(device: &Arc<dyn Device>, specs: Vec<ParamSpec>) -> Self {
        Self::zeros_of(device, specs, None)
    }

    fn with_tensors(device: &Arc<dyn Device>, specs: Vec<ParamSpec>, tensors: Vec<Tensor>) -> Self {
        let (count, placement) = (specs.len(), Placement::from(device));
        let places = vec![Place::Main; count];
        let (packed, absorbed) = (vec![None; count], vec![None; count]);
        Params { placement, specs, places, tensors, packed, absorbed, share: None, attached: None }
    }

    /// Without values, for a reader that gives each parameter [`Params::set_values`] or [`Params::set_packed`].
    pub fn unset(placement: impl Into<Placement>, config: &ModelConfig) -> Self {
        let (placement, specs) = (placement.into(), param_specs(config));
        let count = specs.len();
        let places: Vec<Place> = specs.iter().map(|spec| placement.of(config, spec)).collect();
        let tensors = specs.iter().zip(&places).map(|(spec, place)| nothing(placement.device(*place), spec)).collect();
        let (packed, absorbed) = (vec![None; count], vec![None; count]);
        Params { placement, specs, places, tensors, packed, absorbed, share: None, attached: None }
    }

    /// Puts an adapter behind the parameters: from now on it is what is learnt of them.
    ///
    /// # Panics
    /// If there is one already, or it is of another model.
    pub fn attach(&mut self, adapter: &Adapter) {
        assert!(self.attached.is_none(), "a second adapter");
        let (config, base) = (adapter.config().clone(), self.specs.len());
        let adapted = adapter.pairs().iter().map(|pair| pair.param).collect();
        let halves = adapter.pairs().iter().map(|pair| pair.halves().cloned()).collect();
        for Pair { param, a, b, .. } in adapter.pairs() {
            let ParamSpec { ref name, rows, cols, .. } = self.specs[*param];
            assert_eq!((a.cols(), b.rows()), (cols, rows), "an adapter of {name}");
            let (name, place) = (name.clone(), self.places[*param]);
            for (part, tensor) in [(A, a), (B, b)] {
                let (rows, cols) = (tensor.rows(), tensor.cols());
                self.specs.push(ParamSpec { name: part_name(&name, part), rows, cols, kind: ParamKind::Matrix });
                self.places.push(place);
                self.tensors.push(tensor.clone());
                self.packed.push(None);
                self.absorbed.push(None);
            }
        }
        self.attached = Some(Arc::new(Attached { config, base, adapted, halves }));
    }

    /// The adapter as it is now, if one was attached.
    pub fn adapter(&self) -> Option<Adapter> {
        let Attached { config, base, adapted, .. } = &**self.attached.as_ref()?;
        let pair = |(i, param): (usize, &usize)| {
            let at = base + 2 * i;
            Pair::of_training(*param, [self.tensors[at].clone(), self.tensors[at + 1].clone()])
        };
        Some(Adapter::new(config.clone(), adapted.iter().enumerate().map(pair).collect()))
    }

    /// Takes an adapter away; the parameters are those of the model again.
    pub fn detach(&mut self) -> Option<Adapter> {
        let adapter = self.adapter()?;
        let base = self.attached.take().expect("an adapter that was just there").base;
        self.specs.truncate(base);
        self.places.truncate(base);
        self.tensors.truncate(base);
        self.packed.truncate(base);
        self.absorbed.truncate(base);
        Some(adapter)
    }

    /// How many parameters stay as they are while an adapter is learnt: all of the model's own. 0 without one.
    pub fn frozen(&self) -> usize {
        self.attached.as_ref().map_or(0, |attached| attached.base)
    }

    /// Whether gradients change a parameter.
    pub fn is_learnt(&self, param: usize) -> bool {
        param >= self.frozen() && self.specs[param].kind.is_learnt()
    }

    /// What the adapter among the parameters adds to the matrix that a layer knows as `weight`.
    pub(crate) fn low_rank(&self, weight: Weight) -> Option<LowRank> {
        let Attached { config, base, adapted, .. } = &**self.attached.as_ref()?;
        let at = base + 2 * adapted.binary_search(&weight.param).ok()?;
        let [a, b] = [at, at + 1].map(|param| {
            let ParamSpec { rows, cols, .. } = self.specs[param];
            Weight { param, slot: param, rows, cols, one_more: false }
        });
        Some(LowRank { a, b, scale: config.scale() })
    }

    /// What the adapter among the parameters adds to an up-projection of latents: A, the halves of B, and s.
    pub(crate) fn low_rank_halves(&self, weight: Weight) -> Option<(&Tensor, &Halves, f32)> {
        let Attached { config, base, adapted, halves } = &**self.attached.as_ref()?;
        let at = adapted.binary_search(&weight.param).ok()?;
        Some((&self.tensors[base + 2 * at], halves[at].as_ref()?, config.scale()))
    }

    /// Before training: matrices and embeddings normal with the configuration's standard deviation, biases 0, norms 1,
    /// or 0 where their weights stand for 1 more. An element depends on the seed, its parameter's name and its index
    /// alone.
    pub fn init(device: &Arc<dyn Device>, config: &ModelConfig, seed: u64) -> Self {
        Self::init_shared(device, config, seed, None)
    }

    /// [`Params::init`] with the experts of a share alone.
    pub fn init_shared(device: &Arc<dyn Device>, config: &ModelConfig, seed: u64, share: Option<ExpertShare>) -> Self {
        let params = Self::zeros_shared(device, config, share).filled(config.init_std, seed).with_tables(config);
        match config.family.row().norm_weights {
            NormWeights::Plain => params,
            NormWeights::OneMore => params.with_norms(0.0),
        }
    }

    fn with_tables(mut self, config: &ModelConfig) -> Self {
        let Some(moe) = &config.moe else { return self };
        let tables = self.specs.iter().zip(&mut self.tensors).filter(|(spec, _)| spec.kind == ParamKind::Table);
        tables.for_each(|(spec, tensor)| tensor.set(0, &table(spec, moe.experts)));
        self
    }

    fn with_norms(mut self, value: f32) -> Self {
        let norms = self.specs.iter().zip(&mut self.tensors).filter(|(spec, _)| spec.kind == ParamKind::Norm);
        norms.for_each(|(_, tensor)| tensor.fill(value));
        self
    }

    /// [`Params::init`] of other parameters than a text model's, whose norms begin with 1.
    pub(crate) fn init_of(device: &Arc<dyn Device>, specs: Vec<ParamSpec>, std: f32, seed: u64) -> Self {
        Self::listed(device, specs).filled(std, seed)
    }

    fn filled(mut self, std: f32, seed: u64) -> Self {
        let share = self.share.as_ref();
        for (spec, tensor) in self.specs.iter().zip(&mut self.tensors) {
            match spec.kind {
                ParamKind::Norm => tensor.fill(1.0),
                ParamKind::Bias | ParamKind::RouterBias | ParamKind::ExpertBiases(_) => {}
                ParamKind::PlaceBias | ParamKind::Table => {}
                _ => {
                    let key = random::Key { seed, stream: fnv1a64(&spec.name) };
                    let first = share.map_or(0, |share| share.rows(spec).start) * spec.cols;
                    let mut values = vec![0.0; tensor.len()];
                    random::fill_normal(&mut values, f64::from(std), key, first as u64);
                    tensor.set(0, &values);
                }
            }
        }
        self
    }

    /// Of the routed experts those of a share alone. What is left of all is as it was.
    ///
    /// # Panics
    /// If these are a share already, or some are packed.
    pub fn keep_share(mut self, share: ExpertShare) -> Self {
        assert!(self.share.is_none(), "{:?} of {share:?}", self.share);
        assert!(self.packed.iter().all(Option::is_none), "packed experts are shared by ranks");
        for (spec, tensor) in self.specs.iter().zip(&mut self.tensors).filter(|(spec, _)| is_of_experts(spec.kind)) {
            let rows = share.rows(spec);
            let mut held = Tensor::new(tensor.device(), tensor.dtype(), rows.len(), tensor.cols());
            tensor.device().copy_rows(tensor, rows.start, &mut held, 0, rows.len());
            *tensor = held;
        }
        Params { share: Some(share), ..self }
    }

    /// All experts, where these are a share: ranks give each other theirs, and all of a group have to ask. `None` once
    /// a rank is lost.
    pub fn whole(&self) -> Option<Params> {
        let mut whole = Params { share: None, ..self.clone() };
        let Some(share) = &self.share else { return Some(whole) };
        for param in (0..self.specs.len()).filter(|param| is_of_experts(self.specs[*param].kind)) {
            let values = self.whole_values(share, param)?;
            whole.set_values(param, &values);
        }
        Some(whole)
    }

    fn whole_values(&self, share: &ExpertShare, param: usize) -> Option<Vec<f32>> {
        let mine = self.tensors[param].to_host().iter().flat_map(|value| value.to_le_bytes()).collect();
        let all = share.all_gather(mine)?.concat();
        Some(all.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect())
    }

    /// Where ranks share the routed experts: which of them these are.
    pub fn share(&self) -> Option<&ExpertShare> {
        self.share.as_ref()
    }

    /// The rows of a parameter that are here.
    pub fn rows_here(&self, param: usize) -> Range<usize> {
        let spec = &self.specs[param];
        self.share.as_ref().map_or(0..spec.rows, |share| share.rows(spec))
    }

    /// Where they lie: the main device, if there are two.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.placement.main()
    }

    /// Which device has which of them.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Where a parameter lies.
    pub fn device_of(&self, param: usize) -> &Arc<dyn Device> {
        self.placement.device(self.places[param])
    }

    /// Where the parameter that a layer knows as `weight` lies.
    pub(crate) fn place_of(&self, weight: Weight) -> Place {
        self.places[weight.param]
    }

    /// Names and shapes, one a parameter.
    pub fn specs(&self) -> &[ParamSpec] {
        &self.specs
    }

    /// One a parameter, `[rows, cols]`; `[0, cols]` for one that is packed.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// A parameter's values, to be changed: from now on they are not shared with a clone.
    ///
    /// # Panics
    /// If the parameter is packed.
    pub fn tensor_mut(&mut self, param: usize) -> &mut Tensor {
        assert!(self.packed[param].is_none(), "{} is packed where it is changed", self.specs[param].name);
        let tensor = &mut self.tensors[param];
        tensor.make_unshared();
        tensor
    }

    /// The values of the parameter a layer knows as `weight`.
    ///
    /// # Panics
    /// If it is packed: only matrices may be, and only for inference.
    pub fn of(&self, weight: Weight) -> &Tensor {
        let packed = self.packed[weight.param].is_some();
        assert!(!packed, "{} is packed where its values are needed", self.specs[weight.param].name);
        &self.tensors[weight.param]
    }

    /// The parameter a layer knows as `weight`, however it is stored.
    pub fn stored(&self, weight: Weight) -> WeightRef<'_> {
        match &self.packed[weight.param] {
            Some(packed) => WeightRef::Packed(packed),
            None => WeightRef::Plain(&self.tensors[weight.param]),
        }
    }

    /// The matrices of a parameter that is packed.
    pub fn packed(&self, param: usize) -> Option<&Packed> {
        self.packed[param].as_ref()
    }

    /// Sets a parameter's values, `[rows, cols]`; of a share of experts, those that it has.
    ///
    /// # Panics
    /// If they are not as many.
    pub fn set_values(&mut self, param: usize, values: &[f32]) {
        let (spec, rows) = (&self.specs[param], self.rows_here(param));
        assert_eq!(values.len(), spec.len(), "values of {}", spec.name);
        let values = &values[rows.start * spec.cols..rows.end * spec.cols];
        self.tensors[param] = Tensor::of(self.device_of(param), rows.len(), spec.cols, values);
        self.packed[param] = None;
    }

    /// Sets a parameter to packed matrices, which stacked are `[rows, cols]`. It can no longer be trained.
    ///
    /// # Panics
    /// If they have another shape, or the parameter is no matrix that products may have packed.
    pub fn set_packed(&mut self, param: usize, packed: Packed) {
        let spec = &self.specs[param];
        assert!(spec.kind.is_packable(), "{} is {:?}", spec.name, spec.kind);
        assert_eq!((packed.rows(), packed.cols()), (spec.rows, spec.cols), "{packed:?} for {spec:?}");
        let count = if let ParamKind::Experts(experts) = spec.kind { experts } else { 1 };
        assert_eq!(packed.count(), count, "matrices of {}", spec.name);
        self.tensors[param] = nothing(self.device_of(param), spec);
        self.packed[param] = Some(packed);
        self.absorbed[param] = None;
    }

    /// Bytes of a parameter that products read, with pages of this layout.
    pub fn bytes(&self, param: usize, layout: CacheLayout) -> usize {
        let device = &**self.device_of(param);
        match (&self.absorbed[param], &self.packed[param]) {
            (Some(Absorbed { keys, values }), _) if layout == CacheLayout::Latent => {
                keys.bytes(device) + values.bytes(device)
            }
            (_, Some(packed)) => device.packed_bytes(packed),
            (_, None) => self.tensors[param].bytes(),
        }
    }

    /// Sets the halves of an up-projection, a matrix for each head, for a file that has them: `[latent, nope]` each of
    /// the keys, `[v, latent]` of the values.
    pub(crate) fn set_absorbed(&mut self, param: usize, [keys, values]: [Packed; 2]) {
        self.absorbed[param] =
            Some(Absorbed { keys: AbsorbedMatrix::Packed(keys), values: AbsorbedMatrix::Packed(values) });
    }

    /// Sets the halves of an up-projection `[H·(nope + v), latent]` from its values as they are now, unless the file
    /// had them.
    pub(crate) fn absorb(&mut self, weight: Weight, nope: usize, v: usize) {
        // What is packed does not change.
        if self.packed[weight.param].is_some() && self.absorbed[weight.param].is_some() {
            return;
        }
        let (cols, device) = (weight.cols, self.device_of(weight.param).clone());
        let (like, up) = match self.stored(weight) {
            WeightRef::Plain(tensor) => (None, tensor.to_host()),
            WeightRef::Packed(packed) => (Some(packed.block_type()), Cow::Owned(device.unpack(packed))),
        };
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        for head in up.chunks_exact((nope + v) * cols) {
            let (of_keys, of_values) = head.split_at(nope * cols);
            for column in 0..cols {
                keys.extend(of_keys[column..].iter().step_by(cols));
            }
            values.extend_from_slice(of_values);
        }
        let keys = AbsorbedMatrix::new(&device, &keys, cols, nope, like);
        let values = AbsorbedMatrix::new(&device, &values, v, cols, like);
        self.absorbed[weight.param] = Some(Absorbed { keys, values });
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

    /// Copies rows into a parameter, from `first_row` on: what a reader of weights calls for each tensor. Rows of one
    /// that has no values yet are 0. Of a share of experts, rows of others are left out.
    ///
    /// # Panics
    /// If the rows reach beyond the parameter.
    pub fn set_rows(&mut self, param: usize, first_row: usize, values: &[f32]) {
        let ParamSpec { rows, cols, .. } = self.specs[param];
        let here = self.rows_here(param);
        if self.tensors[param].rows() != here.len() {
            self.tensors[param] = Tensor::zeros(self.device_of(param), here.len(), cols);
        }
        if here.len() == rows {
            return self.tensor_mut(param).set(first_row * cols, values);
        }
        let (begin, end) = (first_row.max(here.start), (first_row + values.len() / cols).min(here.end));
        if begin < end {
            let values = &values[(begin - first_row) * cols..(end - first_row) * cols];
            self.tensor_mut(param).set((begin - here.start) * cols, values);
        }
    }

    /// The first parameter that holds an infinity or a NaN.
    pub fn first_non_finite(&self) -> Option<&str> {
        first_non_finite(&self.specs, &self.tensors)
    }
}

/// What a table of experts begins with: tokens of id v go to the experts (K·v + k) mod E.
pub fn table(spec: &ParamSpec, experts: usize) -> Vec<f32> {
    (0..spec.len()).map(|i| (i % experts) as f32).collect()
}

/// What halves are made in of an up-projection in some format.
pub(crate) fn like_halves(held: BlockType) -> BlockType {
    match held {
        BlockType::E4m3 => BlockType::F32,
        quantised if quantised.is_quantised() => BlockType::Q8_0,
        other => other,
    }
}

/// What stands for the values of a parameter that has none here.
fn nothing(device: &Arc<dyn Device>, spec: &ParamSpec) -> Tensor {
    Tensor::new(device, Dtype::F32, 0, spec.cols)
}

fn first_non_finite<'a>(specs: &'a [ParamSpec], tensors: &[Tensor]) -> Option<&'a str> {
    let bad = tensors.iter().position(|tensor| !tensor.device().is_finite(tensor))?;
    Some(&specs[bad].name)
}

/// FNV-1a, 64 bits: the stream of random numbers that belongs to a name.
pub(crate) fn fnv1a64(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Weight {
    /// The place of the parameter.
    pub(crate) fn param(self) -> usize {
        self.param
    }
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
    /// Of a norm: whether it stands for 1 more than it is.
    pub one_more: bool,
}

/// Hands parameters to layers by name and numbers their gradient slots.
pub(crate) struct Wiring {
    specs: Vec<ParamSpec>,
    /// The parameter of each slot. The first ones are the parameters in order; a second use gets a slot after them.
    slots: Vec<usize>,
    used: Vec<bool>,
    norm_weights: NormWeights,
}

impl Wiring {
    pub fn new(config: &ModelConfig) -> Self {
        Wiring { norm_weights: config.family.row().norm_weights, ..Wiring::listed(param_specs(config)) }
    }

    /// Of [`Params::listed`].
    pub fn listed(specs: Vec<ParamSpec>) -> Self {
        let (slots, used) = ((0..specs.len()).collect(), vec![false; specs.len()]);
        Wiring { slots, used, norm_weights: NormWeights::Plain, specs }
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
        let ParamSpec { rows, cols, kind, .. } = self.specs[param];
        let one_more = kind == ParamKind::Norm && self.norm_weights == NormWeights::OneMore;
        Some(Weight { param, slot, rows, cols, one_more })
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

//! Gradients of parameters: a buffer for each place at which one is used.

use std::sync::Arc;

use wels_device::{Device, Start, Tensor};

use super::{Params, Weight, first_non_finite, nothing};
use crate::config::ModelConfig;
use crate::expert_parallel::is_of_experts;
use crate::names::{ParamKind, ParamSpec, param_specs};

/// What is called in a backward pass when a layer's gradients are complete for the micro-batch, with the layer, MTP
/// layers counting on from the last: the last layer first.
pub type OnLayer = Box<dyn FnMut(&mut Grads, usize) + Send>;

/// Gradients of all parameters, summed over the micro-batches of a step.
///
/// Made by [`Model::grads`](crate::model::Model::grads). A shard: [`Grads::begin`], any number of micro-batches,
/// [`Grads::finish`], then [`Grads::values`].
pub struct Grads {
    specs: Vec<ParamSpec>,
    slots: Vec<usize>,
    /// One a slot; `[0, cols]` for parameters without a gradient.
    values: Vec<Tensor>,
    touched: Vec<bool>,
    /// N, where ranks share the experts, and these gradients are sums over the ranks' shards.
    summed: Option<usize>,
    /// How many of the first parameters have no gradients.
    frozen: usize,
    on_layer: Option<OnLayer>,
}

impl Grads {
    pub(crate) fn new(device: &Arc<dyn Device>, config: &ModelConfig, slots: &[usize]) -> Self {
        Grads::listed(device, param_specs(config), slots, None)
    }

    /// Of [`Params::listed`]; where ranks share the experts, with room for sums over the shards of so many.
    pub(crate) fn listed(
        device: &Arc<dyn Device>,
        specs: Vec<ParamSpec>,
        slots: &[usize],
        summed: Option<usize>,
    ) -> Self {
        let values = slots.iter().map(|&param| match &specs[param] {
            spec if !spec.kind.is_learnt() => nothing(device, spec),
            spec => Tensor::zeros(device, rows_of_gradient(spec, summed), spec.cols),
        });
        Grads {
            slots: slots.to_vec(),
            values: values.collect(),
            touched: vec![false; slots.len()],
            specs,
            summed,
            frozen: 0,
            on_layer: None,
        }
    }

    /// Before a step of ranks that share the experts: whether each has one micro-batch, so that gradients of experts
    /// are added up over the `ranks` ranks' shards as soon as they are there, and take 1/N of the room. Else there is
    /// one for each rank, whose chain goes on with the next micro-batch.
    pub fn sum_over(&mut self, ranks: usize, at_once: bool) {
        self.summed = at_once.then_some(ranks);
        for (values, param) in self.values.iter_mut().zip(&self.slots) {
            let spec = &self.specs[*param];
            let rows = rows_of_gradient(spec, self.summed);
            if is_of_experts(spec.kind) && values.rows() != rows {
                *values = Tensor::zeros(values.device(), rows, spec.cols);
            }
        }
    }

    /// N, if gradients of experts are sums over so many ranks' shards.
    pub fn summed(&self) -> Option<usize> {
        self.summed
    }

    /// Where a weight's gradient is a sum over ranks' shards: E and N.
    pub(crate) fn sum_of(&self, weight: Weight) -> Option<(usize, usize)> {
        match self.specs[weight.param].kind {
            ParamKind::Experts(experts) | ParamKind::ExpertBiases(experts) => Some((experts, self.summed?)),
            _ => None,
        }
    }

    /// Of an adapter among the parameters alone: what is frozen takes no memory.
    pub(crate) fn of_adapter(params: &Params) -> Self {
        let (specs, slots) = (params.specs.clone(), (0..params.specs.len()).collect::<Vec<_>>());
        let values = specs.iter().enumerate().map(|(param, spec)| match params.is_learnt(param) {
            true => Tensor::zeros(params.device(), spec.rows, spec.cols),
            false => nothing(params.device(), spec),
        });
        Grads {
            values: values.collect(),
            touched: vec![false; slots.len()],
            slots,
            specs,
            summed: None,
            frozen: params.frozen(),
            on_layer: None,
        }
    }

    /// Whether a parameter stays as it is, and has no gradient.
    pub(crate) fn is_frozen(&self, weight: Weight) -> bool {
        weight.param < self.frozen
    }

    /// Begins a step. Nothing is cleared: the first micro-batch overwrites.
    pub fn begin(&mut self) {
        self.touched.fill(false);
    }

    /// Gives the gradient of `weight` to `write`, with what its chains begin with.
    pub(crate) fn accumulate(&mut self, weight: Weight, write: impl FnOnce(&mut Tensor, Start)) {
        let touched = std::mem::replace(&mut self.touched[weight.slot], true);
        write(&mut self.values[weight.slot], if touched { Start::Continue } else { Start::Zero });
    }

    /// [`Grads::accumulate`] for several.
    ///
    /// # Panics
    /// If one is there twice.
    pub(crate) fn accumulate_all(&mut self, weights: &[Weight], write: impl FnOnce(Vec<(&mut Tensor, Start)>)) {
        let place = |slot: usize| weights.iter().position(|weight| weight.slot == slot);
        let all = self.values.iter_mut().zip(&mut self.touched).enumerate();
        let mut chosen: Vec<_> = all.filter_map(|(slot, it)| Some((place(slot)?, it))).collect();
        assert_eq!(chosen.len(), weights.len(), "gradients of different parameters");
        chosen.sort_by_key(|(place, _)| *place);
        let begin = |touched: &mut bool| if std::mem::replace(touched, true) { Start::Continue } else { Start::Zero };
        write(chosen.into_iter().map(|(_, (values, touched))| (values, begin(touched))).collect());
    }

    /// From the next micro-batch on calls this, or nothing any more.
    pub fn set_on_layer(&mut self, on_layer: Option<OnLayer>) {
        self.on_layer = on_layer;
    }

    pub(crate) fn layer_is_complete(&mut self, layer: usize) {
        if let Some(mut on_layer) = self.on_layer.take() {
            on_layer(self, layer);
            self.on_layer = Some(on_layer);
        }
    }

    /// Whether one layer alone adds to the gradient of a parameter, at one place: it is complete with its layer.
    pub fn is_complete_with_its_layer(&self, param: usize) -> bool {
        self.specs[param].name.starts_with("model.layers.") && !self.slots[self.specs.len()..].contains(&param)
    }

    /// The gradient of a parameter to which no micro-batch adds any more before [`Grads::finish`].
    pub fn completed(&mut self, param: usize) -> &mut Tensor {
        if !std::mem::replace(&mut self.touched[param], true) {
            self.values[param].fill(0.0);
        }
        &mut self.values[param]
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
            values.device().add(values, &mut first[param]);
        }
    }

    /// One a parameter, `[rows, cols]`; `[0, cols]` for a parameter without gradient (a router's selection bias).
    pub fn values(&self) -> &[Tensor] {
        &self.values[..self.specs.len()]
    }

    /// Exchanges the sums, those of a finished step, for other tensors of the same shapes, of which the next step
    /// begins.
    ///
    /// # Panics
    /// If the shapes differ.
    pub fn exchange(&mut self, other: Vec<Tensor>) -> Vec<Tensor> {
        let own = &mut self.values[..self.specs.len()];
        assert!(own.iter().map(Tensor::len).eq(other.iter().map(Tensor::len)), "gradients of another model");
        own.iter_mut().zip(other).map(|(own, other)| std::mem::replace(own, other)).collect()
    }

    /// Tensors of the shapes of [`Grads::values`], for [`Grads::exchange`].
    pub fn spare(&self) -> Vec<Tensor> {
        let like = |tensor: &Tensor| Tensor::zeros(tensor.device(), tensor.rows(), tensor.cols());
        self.values().iter().map(like).collect()
    }

    /// The first parameter whose gradient holds an infinity or a NaN.
    pub fn first_non_finite(&self) -> Option<&str> {
        first_non_finite(&self.specs, self.values())
    }

    /// Bytes that the gradients take, those of second uses included.
    pub fn bytes(&self) -> usize {
        self.values.iter().map(Tensor::bytes).sum()
    }
}

/// Rows of a parameter's gradient, where that of experts may be a sum over so many ranks' shards.
fn rows_of_gradient(spec: &ParamSpec, summed: Option<usize>) -> usize {
    summed.filter(|_| is_of_experts(spec.kind)).map_or(spec.rows, |ranks| spec.rows / ranks)
}

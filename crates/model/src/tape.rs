//! The tape: what a forward pass leaves behind so that a backward pass can follow.
//!
//! A layer calls operations (`ops`) on a [`Graph`]. Each computes its result and hands [`Graph::record`] a closure with
//! its backward part and what that needs. A graph made by `Graph::training` keeps the closure, one made by
//! `Graph::inference` drops it at once, and with it all that it had saved: one forward pass for both.
//!
//! [`Graph::backward`] runs the closures in reverse. A variable's gradient is complete when its own closure runs, which
//! takes it; contributions are added in the reverse order of recording: the first is written, each further one
//! continues the kernel's chains. Values live as long as a layer or a closure holds them.

use crate::adapter::Adapter;
use crate::config::CacheLayout;
use crate::expert_parallel::sum_over_ranks;
use crate::kv_cache::Paging;
use crate::params::{Grads, Params, Weight};
use crate::placement::{Place, Placement};
use std::ops::Deref;
use std::sync::Arc;
use wels_device::{Balance, Device, Dispatch, Dtype, Ids, Pool, Precision, Start, Tensor, WeightRef};

/// How to compute, whatever is computed.
#[derive(Clone)]
pub struct Execution {
    /// Where tensors come from.
    pub pool: Pool,
    /// Arithmetic of linear and expert products. Everything else (embedding, router, norms, attention) is f32, where
    /// the device does not keep activations in bf16 ([`Device::activations`]).
    pub precision: Precision,
    /// Layers (MTP layers counting on from the last) of which only the input is kept, to be run again in the backward
    /// pass.
    pub recompute: Recompute,
    /// How the other device of a [`Placement`] computes, if there is one.
    pub other: Option<Box<Execution>>,
}

/// Which layers to run again in the backward pass instead of keeping what they computed. Changes no bit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Recompute {
    /// Keep everything.
    #[default]
    None,
    /// These layers.
    Layers(Vec<usize>),
    /// All layers.
    All,
}

impl Recompute {
    /// Whether layer `layer` is run again.
    pub fn includes(&self, layer: usize) -> bool {
        match self {
            Recompute::None => false,
            Recompute::Layers(layers) => layers.contains(&layer),
            Recompute::All => true,
        }
    }
}

impl Execution {
    /// On `device`, in f32, keeping everything that a backward pass needs.
    pub fn new(device: Arc<dyn Device>) -> Self {
        Execution { pool: Pool::new(device), precision: Precision::F32, recompute: Recompute::None, other: None }
    }

    /// For inference on the devices of `placement`, products of the main one in `main`, those of the other in `other`.
    pub fn placed(placement: &Placement, main: Precision, other: Precision) -> Self {
        let on = |device: &Arc<dyn Device>, precision| Execution { precision, ..Execution::new(device.clone()) };
        let other = placement.other().map(|device| Box::new(on(device, other)));
        Execution { other, ..on(placement.main(), main) }
    }

    /// How a place computes: as the main one does where there is no other.
    pub fn at(&self, place: Place) -> &Execution {
        match (place, &self.other) {
            (Place::Other, Some(other)) => other,
            _ => self,
        }
    }

    /// What computes.
    pub fn device(&self) -> &Arc<dyn Device> {
        self.pool.device()
    }
}

/// Which rows of a batch are one sequence, and where in it each row stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sequences {
    /// Where each sequence begins; the number of rows, T, at the end.
    pub starts: Ids,
    /// `[T]`: place in the sequence, for the rotary embedding.
    pub positions: Ids,
}

impl Sequences {
    /// Whole sequences, one after the other.
    ///
    /// # Panics
    /// If `starts` does not begin with 0 or descends.
    pub fn packed(starts: &[u32]) -> Self {
        assert_eq!(starts.first(), Some(&0), "the first sequence begins at row 0");
        assert!(starts.is_sorted(), "sequence starts descend: {starts:?}");
        let positions: Vec<u32> = starts.windows(2).flat_map(|pair| 0..pair[1] - pair[0]).collect();
        Sequences { starts: starts.into(), positions: positions.into() }
    }

    /// The number of rows.
    pub fn tokens(&self) -> usize {
        self.positions.len()
    }
}

/// A value that operations take and give.
#[derive(Clone, Debug)]
pub struct Var {
    value: Tensor,
    slot: Option<usize>,
}

impl Var {
    /// Its value, for an operation that goes on with the same buffer.
    pub fn into_value(self) -> Tensor {
        self.value
    }

    /// Where its gradient goes; holds no memory, unlike the variable.
    pub fn gradient(&self) -> GradientOf {
        GradientOf { slot: self.slot, rows: self.value.rows(), cols: self.value.cols(), dtype: self.value.dtype() }
    }
}

impl Deref for Var {
    type Target = Tensor;

    fn deref(&self) -> &Tensor {
        &self.value
    }
}

/// Names the gradient of a variable. A variable that was not computed on a tape has none, and contributions to it are
/// skipped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GradientOf {
    slot: Option<usize>,
    /// Rows of the variable.
    pub rows: usize,
    /// Columns of the variable.
    pub cols: usize,
    /// The number format of the variable, and of its gradient.
    pub dtype: Dtype,
}

impl GradientOf {
    /// Whether contributions to it are kept.
    pub fn is_wanted(&self) -> bool {
        self.slot.is_some()
    }
}

/// What all operations of a pass share.
#[derive(Clone)]
pub struct Context<'a> {
    /// The model's weights.
    pub params: &'a Params,
    /// How to compute.
    pub execution: &'a Execution,
    /// The rows of the batch.
    pub sequences: Arc<Sequences>,
    /// Factor on each layer's and sequence's balance loss in the objective.
    pub balance_coefficient: f32,
    /// Factor on each layer's and token's indexer loss in the objective.
    pub indexer_coefficient: f32,
    /// Adapters of some of the rows, besides one among the parameters; for inference alone.
    pub adapted: Arc<[AdaptedRows]>,
}

/// Rows of a batch with an adapter of their own.
#[derive(Clone, Debug)]
pub struct AdaptedRows {
    /// Theirs.
    pub adapter: Arc<Adapter>,
    /// Which they are, ascending.
    pub rows: Ids,
    /// Whether they are all rows.
    pub all: bool,
}

/// What one layer's router did with a batch, still on the device.
pub struct Routing {
    /// The layer, MTP layers counting on from the last.
    pub layer: usize,
    /// Where the tokens went.
    pub dispatch: Arc<Dispatch>,
    /// The balance loss of each sequence, if the objective has one.
    pub balance: Option<Arc<Balance>>,
}

/// A forward pass under way.
pub struct Graph<'a> {
    /// What all operations share.
    pub context: Context<'a>,
    /// What the routers did, in the order of the layers.
    pub routings: Vec<Routing>,
    /// What the indexers are to learn by, `[T, 1]` of each layer in order, if the objective has it.
    pub index_losses: Vec<Tensor>,
    paging: Option<Paging<'a>>,
    tape: Option<Tape<'a>>,
    layer: usize,
    place: Place,
    watch: Option<Watch>,
}

struct Tape<'a> {
    nodes: Vec<Node>,
    backward: Backward<'a>,
}

struct Node {
    /// Empty for a mark, which the backward pass always comes by.
    outputs: Vec<usize>,
    backward: BackwardPart,
}

type BackwardPart = Box<dyn FnOnce(&mut Backward, Vec<Option<Tensor>>)>;

/// A backward pass under way: the gradients, of variables and of parameters.
pub struct Backward<'a> {
    /// What all operations share.
    pub context: Context<'a>,
    gradients: Vec<Option<Tensor>>,
    grads: &'a mut Grads,
}

/// Looks for the first value that is not finite.
#[derive(Default)]
struct Watch {
    place: String,
    found: Option<String>,
}

impl<'a> Graph<'a> {
    /// A pass that keeps nothing; attention reads and extends the pages of `paging`, if there is one.
    pub(crate) fn inference(context: Context<'a>, paging: Option<Paging<'a>>) -> Self {
        Graph::new(context, paging, None)
    }

    /// A pass that records for [`Graph::backward`].
    pub fn training(context: Context<'a>, grads: &'a mut Grads) -> Self {
        let backward = Backward { context: context.clone(), gradients: Vec::new(), grads };
        let tape = Some(Tape { nodes: Vec::new(), backward });
        Graph::new(context, None, tape)
    }

    fn new(context: Context<'a>, paging: Option<Paging<'a>>, tape: Option<Tape<'a>>) -> Self {
        let (routings, index_losses) = (Vec::new(), Vec::new());
        Graph { context, routings, index_losses, paging, tape, layer: 0, place: Place::Main, watch: None }
    }

    /// How the part under way is computed.
    fn execution(&self) -> &'a Execution {
        self.context.execution.at(self.place)
    }

    /// From now on computes where a parameter is.
    pub fn follow(&mut self, weight: Weight) {
        self.place = self.context.params.place_of(weight);
    }

    /// An f32 tensor with arbitrary contents.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        self.execution().pool.tensor(rows, cols)
    }

    /// A tensor with arbitrary contents.
    pub fn tensor_of(&self, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        self.execution().pool.tensor_of(dtype, rows, cols)
    }

    /// How the device keeps activations of this pass.
    pub fn activations(&self) -> Dtype {
        self.device().activations(self.precision())
    }

    /// Arithmetic of linear and expert products.
    pub fn precision(&self) -> Precision {
        self.execution().precision
    }

    /// What computes.
    pub fn device(&self) -> &'a dyn Device {
        &**self.execution().device()
    }

    /// The values of a parameter.
    pub fn weight(&self, weight: Weight) -> &'a Tensor {
        self.context.params.of(weight)
    }

    /// A parameter, however it is stored.
    pub fn stored(&self, weight: Weight) -> WeightRef<'a> {
        self.context.params.stored(weight)
    }

    /// Whether an adapter adds to what the matrix gives, of some rows or of all.
    pub(crate) fn is_adapted(&self, weight: Weight) -> bool {
        let Context { params, adapted, .. } = &self.context;
        params.low_rank(weight).is_some() || adapted.iter().any(|rows| rows.adapter.pair(weight.param()).is_some())
    }

    /// Tells which layer the operations that follow belong to.
    pub fn enter_layer(&mut self, layer: usize) {
        self.layer = layer;
    }

    /// The layer under way.
    pub fn layer(&self) -> usize {
        self.layer
    }

    /// The pages that attention reads and extends.
    pub(crate) fn paging(&mut self) -> Option<&mut Paging<'a>> {
        self.paging.as_mut()
    }

    /// Whether MLA is to be computed in its absorbed form.
    pub fn latent(&self) -> bool {
        self.paging.as_ref().is_some_and(|paging| paging.layout() == CacheLayout::Latent)
    }

    /// Gives the memory that waits to be used again back to the system, unless this pass records: for where all that
    /// follows is larger.
    pub fn trim(&self) {
        if self.tape.is_none() {
            self.execution().pool.trim();
        }
    }

    /// The gradients, if this pass records: for the loss, which computes them along with its value.
    pub fn recording(&mut self) -> Option<&mut Backward<'a>> {
        self.tape.as_mut().map(|tape| &mut tape.backward)
    }

    /// A variable without a backward part: an input, or a further output of the operation recorded next.
    pub fn variable(&mut self, value: Tensor) -> Var {
        let slot = self.recording().map(|backward| {
            backward.gradients.push(None);
            backward.gradients.len() - 1
        });
        Var { value, slot }
    }

    /// An input whose gradient nobody wants.
    pub fn constant(&self, value: Tensor) -> Var {
        Var { value, slot: None }
    }

    /// The result of the operation `name`. Its backward part gets the gradient of the result and passes on those of the
    /// inputs.
    pub fn record(&mut self, name: &str, value: Tensor, backward: impl FnOnce(&mut Backward, Tensor) + 'static) -> Var {
        let [var] = self.record_all(name, [value], |back, [dy]| backward(back, dy.expect("a node with a gradient")));
        var
    }

    /// [`Graph::record`] for several results. The backward part gets the gradients that there are, at least one.
    pub fn record_all<const N: usize>(
        &mut self,
        name: &str,
        values: [Tensor; N],
        backward: impl FnOnce(&mut Backward, [Option<Tensor>; N]) + 'static,
    ) -> [Var; N] {
        let vars = values.map(|value| {
            self.inspect(name, &value);
            self.variable(value)
        });
        if let Some(tape) = &mut self.tape {
            let outputs = vars.iter().filter_map(|var| var.slot).collect();
            let backward: BackwardPart = Box::new(|back, dys| {
                backward(back, dys.try_into().expect("a gradient a result"));
            });
            tape.nodes.push(Node { outputs, backward });
        }
        vars
    }

    /// Runs `layer` on `x` and keeps only `x`; the backward pass runs it again, recording. The same bits as without.
    pub fn recomputed(&mut self, x: Var, layer: impl for<'b> Fn(&mut Graph<'b>, Var) -> Var + 'static) -> Var {
        let tape = self.tape.take();
        let kept = x.clone();
        let y = layer(self, Var { value: x.value, slot: None });
        self.tape = tape;
        self.record("layer", y.value, move |back, dy| {
            let mut again = Graph::training(back.context.clone(), back.grads);
            let x = again.variable(kept.value.clone());
            let y = layer(&mut again, x.clone());
            again.recording().expect("made for training").give(y.gradient(), dy);
            drop(y);
            let dx = again.backward().remove(x.slot.expect("made while recording"));
            back.give(kept.gradient(), dx.expect("a layer's output depends on its input"));
        })
    }

    /// Tells that a layer begins here, so that the backward pass tells [`Grads`] when it has left it.
    pub(crate) fn begin_layer(&mut self, layer: usize) {
        if let Some(tape) = &mut self.tape {
            let backward: BackwardPart = Box::new(move |back, _| back.grads.layer_is_complete(layer));
            tape.nodes.push(Node { outputs: Vec::new(), backward });
        }
    }

    /// Runs the backward parts in reverse and returns the gradients that none of them took.
    ///
    /// # Panics
    /// If the pass did not record.
    pub fn backward(self) -> Vec<Option<Tensor>> {
        let Tape { mut nodes, mut backward } = self.tape.expect("a pass that recorded");
        while let Some(node) = nodes.pop() {
            let dys: Vec<_> = node.outputs.iter().map(|output| backward.gradients[*output].take()).collect();
            if dys.is_empty() || dys.iter().any(Option::is_some) {
                (node.backward)(&mut backward, dys);
            }
        }
        backward.gradients
    }

    /// From now on looks at every result for infinities and NaN.
    pub fn watch(&mut self) {
        self.watch = Some(Watch::default());
    }

    /// Names the part of the model that follows, for [`Graph::first_non_finite`].
    pub fn enter(&mut self, place: &str) {
        if let Some(watch) = &mut self.watch {
            watch.place.clear();
            watch.place.push_str(place);
        }
    }

    /// Looks at what the operation `name` gave, if this pass looks for values that are not finite.
    pub fn inspect(&mut self, name: &str, value: &Tensor) {
        if let Some(watch) = &mut self.watch
            && watch.found.is_none()
            && !value.device().is_finite(value)
        {
            watch.found = Some(format!("{} ({name})", watch.place));
        }
    }

    /// The part of the model and the operation that gave the first value that is not finite.
    pub fn first_non_finite(&self) -> Option<&str> {
        self.watch.as_ref()?.found.as_deref()
    }
}

impl<'a> Backward<'a> {
    /// An f32 tensor with arbitrary contents.
    pub fn tensor(&self, rows: usize, cols: usize) -> Tensor {
        self.context.execution.pool.tensor(rows, cols)
    }

    /// A tensor with arbitrary contents.
    pub fn tensor_of(&self, dtype: Dtype, rows: usize, cols: usize) -> Tensor {
        self.context.execution.pool.tensor_of(dtype, rows, cols)
    }

    /// A tensor as large as a variable's gradient, in its number format.
    pub fn like(&self, of: GradientOf) -> Tensor {
        self.tensor_of(of.dtype, of.rows, of.cols)
    }

    /// What computes.
    pub fn device(&self) -> &'a dyn Device {
        &**self.context.execution.device()
    }

    /// Which rows of the batch are one sequence.
    pub fn sequences(&self) -> Arc<Sequences> {
        Arc::clone(&self.context.sequences)
    }

    /// The values of a parameter.
    pub fn weight(&self, weight: Weight) -> &'a Tensor {
        self.context.params.of(weight)
    }

    /// The same in f32, however it is stored: of one that is packed, brought back for as long as it is held.
    pub fn unpacked(&self, weight: Weight) -> Tensor {
        match self.context.params.stored(weight) {
            WeightRef::Plain(values) => values.clone(),
            WeightRef::Packed(packed) => {
                let mut values = self.tensor(weight.rows, weight.cols);
                values.set(0, &self.device().unpack(packed));
                values
            }
        }
    }

    /// Lets `write` add to a variable's gradient: `write` is told whether it comes first.
    pub fn accumulate(&mut self, of: GradientOf, write: impl FnOnce(&mut Tensor, Start)) {
        if of.slot.is_some() {
            let (mut gradient, start) = self.begin(of);
            write(&mut gradient, start);
            self.put(of, gradient);
        }
    }

    /// Takes a variable's gradient out to be added to; it goes back with [`Backward::put`].
    pub fn begin(&mut self, of: GradientOf) -> (Tensor, Start) {
        match self.take(of) {
            Some(gradient) => (gradient.into_unshared(), Start::Continue),
            None => (self.like(of), Start::Zero),
        }
    }

    /// Sets a variable's gradient.
    pub fn put(&mut self, of: GradientOf, gradient: Tensor) {
        if let Some(slot) = of.slot {
            self.gradients[slot] = Some(gradient);
        }
    }

    /// Adds a finished contribution to a variable's gradient; the first is taken over as it is.
    pub fn give(&mut self, of: GradientOf, contribution: Tensor) {
        let sum = match self.take(of) {
            None => contribution,
            Some(gradient) => {
                let mut gradient = gradient.into_unshared();
                self.device().add(&contribution, &mut gradient);
                gradient
            }
        };
        self.put(of, sum);
    }

    /// Takes a gradient away: for the further outputs of an operation.
    pub fn take(&mut self, of: GradientOf) -> Option<Tensor> {
        self.gradients[of.slot?].take()
    }

    /// Lets `write` add to a parameter's gradient, continuing its chains over the tokens; not if that has none.
    pub fn parameter(&mut self, weight: Weight, write: impl FnOnce(&mut Tensor, Start)) {
        if self.grads.is_frozen(weight) {
            return;
        }
        match self.grads.sum_of(weight) {
            None => self.grads.accumulate(weight, write),
            Some(sum) => {
                let mut of_ranks = self.tensor(weight.rows, weight.cols);
                write(&mut of_ranks, Start::Zero);
                self.sum_over_ranks(weight, &of_ranks, sum);
            }
        }
    }

    /// [`Backward::parameter`] for an operation that has to be done in any case: without a gradient it is told so.
    pub fn parameter_if_any(&mut self, weight: Weight, write: impl FnOnce(Option<(&mut Tensor, Start)>)) {
        match self.grads.is_frozen(weight) {
            true => write(None),
            false => self.parameter(weight, |gradient, start| write(Some((gradient, start)))),
        }
    }

    /// Lets `write` add to the gradients of different parameters, in their order, as [`Backward::parameter`].
    pub fn parameters(&mut self, weights: &[Weight], write: impl FnOnce(Vec<(&mut Tensor, Start)>)) {
        if weights.iter().any(|weight| self.grads.is_frozen(*weight)) {
            return;
        }
        let Some(sum) = weights.first().and_then(|weight| self.grads.sum_of(*weight)) else {
            return self.grads.accumulate_all(weights, write);
        };
        let mut of_ranks: Vec<Tensor> = weights.iter().map(|weight| self.tensor(weight.rows, weight.cols)).collect();
        write(of_ranks.iter_mut().map(|of_ranks| (of_ranks, Start::Zero)).collect());
        weights.iter().zip(&of_ranks).for_each(|(weight, of_ranks)| self.sum_over_ranks(*weight, of_ranks, sum));
    }

    /// Sets the gradient of experts from those of the ranks' shards.
    ///
    /// # Panics
    /// If it is set already: ranks have more than one micro-batch.
    fn sum_over_ranks(&mut self, weight: Weight, of_ranks: &Tensor, (experts, ranks): (usize, usize)) {
        let pool = &self.context.execution.pool;
        let sum = sum_over_ranks(of_ranks, experts, ranks, &|rows, cols| pool.tensor(rows, cols));
        self.grads.accumulate(weight, |values, start| {
            assert_eq!(start, Start::Zero, "one micro-batch of each rank");
            values.device().clone().copy_rows(&sum, 0, values, 0, sum.rows());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ModelConfig;
    use crate::presets;
    use wels_cpu::testing::{device, edit};

    /// y = factor · x, with the backward part that a kernel with [`Start`] would have.
    fn times(g: &mut Graph, x: &Var, factor: f32) -> Var {
        let mut y = g.tensor(x.rows(), x.cols());
        edit(&mut y, |y| y.iter_mut().zip(&*x.to_host()).for_each(|(y, x)| *y = factor * x));
        let dx = x.gradient();
        g.record("times", y, move |back, dy| {
            back.accumulate(dx, |dx, start| {
                edit(dx, |dx| {
                    for (dx, dy) in dx.iter_mut().zip(&*dy.to_host()) {
                        *dx = factor * dy + if start == Start::Zero { 0.0 } else { *dx };
                    }
                });
            });
        })
    }

    fn parts() -> (Params, Grads, Execution) {
        let config = presets::preset("smollm2-135m").expect("a preset");
        let config = ModelConfig { layers: 0, vocab_size: 1, ..config };
        let device = device();
        let (params, grads) = (Params::zeros(&device, &config), Grads::new(&device, &config, &[0, 1]));
        (params, grads, Execution::new(device))
    }

    /// A tensor of the pool, `[2, 1]`.
    fn column(execution: &Execution, values: [f32; 2]) -> Tensor {
        let mut tensor = execution.pool.tensor(2, 1);
        tensor.set(0, &values);
        tensor
    }

    fn context<'a>(params: &'a Params, execution: &'a Execution) -> Context<'a> {
        let sequences = Arc::new(Sequences::packed(&[0, 2]));
        let (balance_coefficient, indexer_coefficient) = (0.0, 0.0);
        Context { params, execution, sequences, balance_coefficient, indexer_coefficient, adapted: Arc::default() }
    }

    #[test]
    fn contributions_add_up_and_unused_results_are_skipped() {
        let (params, mut grads, execution) = parts();
        let mut g = Graph::training(context(&params, &execution), &mut grads);
        let x = g.variable(column(&execution, [1.0, 2.0]));
        let y = times(&mut g, &x, 3.0);
        let _unused = times(&mut g, &y, 100.0);
        let z = times(&mut g, &y, 5.0);
        let back = g.recording().expect("it records");
        let dz = back.tensor(2, 1);
        back.give(z.gradient(), dz);
        back.accumulate(z.gradient(), |dz, start| {
            assert_eq!(start, Start::Continue);
            dz.set(0, &[1.0, 1.0]);
        });
        let one = column(&execution, [1.0, 0.5]);
        back.give(y.gradient(), one);
        let gradients = g.backward();
        let dx = gradients[0].as_ref().expect("a gradient of x");
        assert_eq!(dx.to_host()[..], [3.0 * (5.0 + 1.0), 3.0 * (5.0 + 0.5)]);
    }

    #[test]
    fn results_of_one_operation_go_back_together() {
        let (params, mut grads, execution) = parts();
        let mut g = Graph::training(context(&params, &execution), &mut grads);
        let x = g.variable(column(&execution, [1.0, 2.0]));
        let dx = x.gradient();
        for used in 0..3 {
            let values = [(); 3].map(|()| column(&execution, [0.0, 0.0]));
            let ys = g.record_all("three", values, move |back, dys| {
                assert_eq!(dys.each_ref().map(Option::is_some), std::array::from_fn(|i| i == used));
                dys.into_iter().flatten().for_each(|dy| back.give(dx, dy));
            });
            let dy = column(&execution, [1.0, used as f32]);
            g.recording().expect("it records").give(ys[used].gradient(), dy);
        }
        let _unused = g.record_all("unused", [column(&execution, [0.0, 0.0])], |_, _| panic!("nothing to go back"));
        let gradients = g.backward();
        assert_eq!(gradients[0].as_ref().expect("a gradient of x").to_host()[..], [3.0, 3.0]);
    }

    #[test]
    fn a_shared_gradient_is_not_changed_by_its_other_owner() {
        let (params, mut grads, execution) = parts();
        let mut g = Graph::training(context(&params, &execution), &mut grads);
        let x = g.variable(column(&execution, [1.0, 2.0]));
        let w = g.variable(column(&execution, [1.0, 2.0]));
        let back = g.recording().expect("it records");
        let shared = column(&execution, [1.0, 2.0]);
        back.give(x.gradient(), shared.clone());
        back.give(w.gradient(), shared);
        back.accumulate(x.gradient(), |dx, _| dx.fill(7.0));
        let gradients = g.backward();
        assert_eq!(gradients[1].as_ref().map(|dw| dw.to_host().into_owned()), Some(vec![1.0, 2.0]));
    }

    #[test]
    fn inference_keeps_nothing() {
        let (params, _, execution) = parts();
        let mut g = Graph::inference(context(&params, &execution), None);
        let x = g.variable(column(&execution, [1.0, 2.0]));
        let y = times(&mut g, &x, 3.0);
        drop((x, y));
        assert_eq!(execution.pool.usage().live_bytes, 0);
    }
}

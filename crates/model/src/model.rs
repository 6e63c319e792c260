//! The model: embedding, decoder layers, final norm, head, and MTP layers; what a trainer and a sampler call.
//!
//! A [`Model`] holds no numbers, only which parameter belongs where ([`Params`] has the numbers). Every entry point
//! takes the weights and an [`Execution`], and each of them runs the same layers.

use crate::config::{ModelConfig, RopeConfig, RopeLayout, RopeScaling};
use crate::layers::{Block, Connection, Mtp};
use crate::names::param_specs;
use crate::ops::{self, Head};
use crate::params::{Grads, Params, Weight, Wiring};
use crate::tape::{Context, Execution, Graph, Routing, Sequences, Var};
use std::sync::Arc;
use wels_device::host::{Layout, Scaling, Table};
use wels_device::{Coefficient, Device, Divergence, IGNORE, Ids, Rotary, TeacherHead, Tensor};

/// Tokens to learn from: sequences one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// `[T]`: token ids.
    pub tokens: Vec<u32>,
    /// `[T]`: what follows each token; [`IGNORE`] where nothing is to be learnt.
    pub targets: Vec<u32>,
    /// Where each sequence begins, and T at the end.
    pub starts: Vec<u32>,
}

/// What to minimise. Micro-batches of a step share their coefficients, so that gradients add up to those of the step.
#[derive(Clone, Copy)]
pub struct Objective<'a> {
    /// −∂loss/∂logp of a token, given its place in the batch and its log-probability: 1/N for the mean over a step's N
    /// targets. With a teacher, the factor on what a token's divergence and cross-entropy add up to.
    pub coefficient: Coefficient<'a>,
    /// The same for each MTP target of each depth: λ/(D·N); 0 leaves MTP out.
    pub mtp_coefficient: f32,
    /// Factor on the balance loss of each layer and sequence: α divided by the step's sequences; 0 for none.
    pub balance_coefficient: f32,
    /// Factor on the indexer loss of each layer and token: its weight divided by the step's tokens; 0 for none, where
    /// indexers learn nothing.
    pub indexer_coefficient: f32,
    /// What the model is drawn to besides the targets.
    pub teacher: Option<Teacher<'a>>,
}

/// A model with the same vocabulary, whose distribution of the next token another one learns.
#[derive(Clone, Copy)]
pub struct Teacher<'a> {
    /// Which it is.
    pub model: &'a Model,
    /// Its weights.
    pub params: &'a Params,
    /// Which way the divergence is taken.
    pub divergence: Divergence,
    /// τ of both softmaxes.
    pub temperature: f32,
    /// The share of the cross-entropy with the targets in the loss, 0 to 1; the divergence has the rest.
    pub cross_entropy: f32,
}

/// What a step has seen so far. Sums are chains over the tokens in order, so micro-batches change no bit.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses {
    /// Of the next token.
    pub main: Nll,
    /// Sum over the same targets of the divergence from the teacher, nats; 0 without one.
    pub divergence: f64,
    /// Of the tokens further ahead, one a depth of MTP.
    pub mtp: Vec<Nll>,
    /// Of each indexer the sum over the tokens, nats, in the order of the layers, MTP layers last; empty without, or
    /// where none learns.
    pub indexer: Vec<f64>,
    /// Of layers with experts, in order.
    pub experts: Vec<ExpertLoad>,
}

/// Negative log-likelihood in nats.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Nll {
    /// Sum over the targets.
    pub sum: f64,
    /// How many targets.
    pub tokens: u64,
}

impl Nll {
    /// Nats a target.
    pub fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }

    pub(crate) fn add(&mut self, logp: &[f32], targets: &[u32]) {
        for (logp, _) in logp.iter().zip(targets).filter(|(_, target)| **target != IGNORE) {
            self.sum -= f64::from(*logp);
            self.tokens += 1;
        }
    }
}

/// What the router of one layer did.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertLoad {
    /// The layer, MTP layers counting on from the last.
    pub layer: usize,
    /// Tokens that went to each expert.
    pub tokens: Vec<u64>,
    /// Sum over the sequences of the balance loss, without coefficient; 1 a sequence is a perfect balance.
    pub balance: f64,
}

impl Losses {
    /// Of no tokens, with a place for whatever a pass of a model of this configuration gives, with or without MTP.
    pub fn none(config: &ModelConfig, mtp: bool) -> Self {
        let depth = if mtp { config.mtp_depth } else { 0 };
        let layers = (0..config.layers + depth).filter(|&layer| config.is_moe_layer(layer));
        let experts = config.moe.as_ref().map_or(0, |moe| moe.experts);
        Losses {
            mtp: vec![Nll::default(); depth],
            indexer: vec![0.0; config.indexers(mtp)],
            experts: layers.map(|layer| ExpertLoad { layer, tokens: vec![0; experts], balance: 0.0 }).collect(),
            ..Losses::default()
        }
    }

    /// Adds those of other tokens.
    ///
    /// # Panics
    /// If they are of another model.
    pub fn add(&mut self, other: &Losses) {
        let lens = |losses: &Losses| [losses.mtp.len(), losses.indexer.len(), losses.experts.len()];
        assert_eq!(lens(self), lens(other), "losses of one model");
        let add =
            |sum: &mut Nll, other: &Nll| *sum = Nll { sum: sum.sum + other.sum, tokens: sum.tokens + other.tokens };
        add(&mut self.main, &other.main);
        self.divergence += other.divergence;
        self.mtp.iter_mut().zip(&other.mtp).for_each(|(sum, other)| add(sum, other));
        self.indexer.iter_mut().zip(&other.indexer).for_each(|(sum, other)| *sum += other);
        for (sum, other) in self.experts.iter_mut().zip(&other.experts) {
            sum.tokens.iter_mut().zip(&other.tokens).for_each(|(sum, tokens)| *sum += tokens);
            sum.balance += other.balance;
        }
    }

    /// All of it as words, for another rank: see [`Losses::set_numbers`].
    pub fn numbers(&self) -> Vec<u64> {
        let mut numbers = vec![self.divergence.to_bits()];
        for nll in std::iter::once(&self.main).chain(&self.mtp) {
            numbers.extend([nll.sum.to_bits(), nll.tokens]);
        }
        numbers.extend(self.indexer.iter().map(|sum| sum.to_bits()));
        for experts in &self.experts {
            numbers.push(experts.balance.to_bits());
            numbers.extend(&experts.tokens);
        }
        numbers
    }

    /// Takes over what [`Losses::numbers`] gave of a rank of the same model.
    ///
    /// # Panics
    /// If they are too few.
    pub fn set_numbers(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let mut numbers = numbers.into_iter();
        let mut next = || numbers.next().expect("numbers of the same model's losses");
        self.divergence = f64::from_bits(next());
        for nll in std::iter::once(&mut self.main).chain(&mut self.mtp) {
            *nll = Nll { sum: f64::from_bits(next()), tokens: next() };
        }
        self.indexer.iter_mut().for_each(|sum| *sum = f64::from_bits(next()));
        for experts in &mut self.experts {
            experts.balance = f64::from_bits(next());
            experts.tokens.iter_mut().for_each(|tokens| *tokens = next());
        }
    }

    pub(crate) fn add_routings(&mut self, device: &dyn Device, routings: Vec<Routing>) {
        for Routing { layer, dispatch, balance } in routings {
            let load = device.loads(&dispatch);
            let balance = balance.map_or_else(Vec::new, |balance| device.balance_losses(&balance));
            let place = self.experts.iter().position(|experts| experts.layer == layer);
            let place = place.unwrap_or_else(|| {
                self.experts.push(ExpertLoad { layer, tokens: vec![0; load.len()], balance: 0.0 });
                self.experts.len() - 1
            });
            let experts = &mut self.experts[place];
            experts.tokens.iter_mut().zip(load).for_each(|(sum, tokens)| *sum += u64::from(tokens));
            experts.balance = balance.iter().fold(experts.balance, |sum, loss| sum + f64::from(*loss));
        }
    }
}

/// A model of some configuration.
pub struct Model {
    config: ModelConfig,
    embed: Weight,
    layers: Vec<Arc<Block>>,
    /// What the final norm reads the streams by, where there are several.
    connection: Option<Connection>,
    norm: Weight,
    head: Weight,
    mtp: Vec<Mtp>,
    context_len: usize,
    /// The parameter of each gradient slot, see [`Grads`].
    slots: Vec<usize>,
}

impl Model {
    /// For sequences of up to `context_len` tokens. With LongRoPE's frequencies it decides which list of divisors all
    /// sequences have, however short: keys that are kept would otherwise have to turn when a sequence grows.
    ///
    /// # Panics
    /// If the context is longer than the configuration's `max_positions`.
    pub fn new(config: ModelConfig, context_len: usize) -> Self {
        let mut wiring = Wiring::new(&config);
        let model = Self::wired(&mut wiring, config, context_len);
        Model { slots: wiring.into_slots(), ..model }
    }

    /// [`Model::new`] as a part of something that has its parameters, and more, and the gradients of all.
    pub(crate) fn wired(wiring: &mut Wiring, config: ModelConfig, context_len: usize) -> Self {
        let max = config.rope.max_positions;
        assert!(context_len <= max, "a context of {context_len} tokens for a model of at most {max}");
        let rotary = Rotaries::new(&config, context_len);
        let head = if config.tied_head { "model.embed_tokens.weight" } else { "lm_head.weight" };
        Model {
            embed: wiring.weight("model.embed_tokens.weight"),
            layers: (0..config.layers).map(|i| Arc::new(Block::new(wiring, &config, i, rotary.of(i)))).collect(),
            connection: config.streams.map(|streams| Connection::before_head(wiring, streams, config.norm_eps)),
            norm: wiring.weight("model.norm.weight"),
            head: wiring.weight(head),
            mtp: (1..=config.mtp_depth).map(|k| Mtp::new(wiring, &config, k, head, &rotary.usual)).collect(),
            context_len,
            slots: Vec::new(),
            config,
        }
    }

    /// The configuration it was made from.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The longest sequence it was made for.
    pub fn context_len(&self) -> usize {
        self.context_len
    }

    /// Room for gradients.
    pub fn grads(&self, device: &Arc<dyn Device>) -> Grads {
        Grads::new(device, &self.config, &self.slots)
    }

    /// Room for the gradients of what is learnt of `params`: of an adapter among them, or else of all; of ranks of
    /// which so many share the experts, for one micro-batch each (with more it grows).
    pub fn grads_of(&self, params: &Params, ranks: usize) -> Grads {
        if params.frozen() > 0 {
            return Grads::of_adapter(params);
        }
        Grads::listed(params.device(), param_specs(&self.config), &self.slots, (ranks > 1).then_some(ranks))
    }

    /// Adds a micro-batch's gradients of the objective to `grads` and its losses to `losses`; returns the
    /// log-probability of each target (0 for [`IGNORE`]).
    ///
    /// # Panics
    /// If tokens, targets and starts do not fit together, a sequence is longer than the context (the teacher's too), or
    /// the teacher has another vocabulary.
    pub fn accumulate(
        &self,
        params: &Params,
        grads: &mut Grads,
        execution: &Execution,
        batch: &Batch,
        objective: &Objective,
        losses: &mut Losses,
    ) -> Vec<f32> {
        let Batch { tokens, targets, starts } = batch;
        assert_eq!(tokens.len(), targets.len(), "tokens and targets");
        let context = self.packed(params, execution, starts, tokens.len(), objective.balance_coefficient);
        let context = Context { indexer_coefficient: objective.indexer_coefficient, ..context };
        let mut g = Graph::training(context, grads);

        let ids = Ids::from(&tokens[..]);
        let mut h = self.hidden(&mut g, &ids);
        let mut divergence = None;
        let logp = match objective.teacher {
            None => ops::head_loss(&mut g, &h, self.head(), targets, objective.coefficient),
            Some(teacher) => {
                let states = teacher.states(execution, &ids, starts);
                let teacher = teacher.head_on(&states, self.config.vocab_size);
                let coefficient = objective.coefficient;
                let [logp, diverged] = ops::distil_loss(&mut g, &h, self.head(), targets, &teacher, coefficient);
                divergence = Some(diverged);
                logp
            }
        };

        let mtp = if objective.mtp_coefficient == 0.0 { &[] } else { &self.mtp[..] };
        let mut ahead = Vec::with_capacity(mtp.len());
        for (depth, mtp) in mtp.iter().enumerate() {
            g.begin_layer(self.layers.len() + depth);
            h = mtp.forward(&mut g, &h, tokens);
            let targets = mtp.targets(targets, starts);
            let coefficient = Coefficient::Uniform(objective.mtp_coefficient);
            ahead.push((ops::head_loss(&mut g, &h, self.head_of(mtp), &targets, coefficient), targets));
        }
        let routings = std::mem::take(&mut g.routings);
        let index_losses = std::mem::take(&mut g.index_losses);
        drop(h);
        g.backward();

        // Only now does the host look at what the device has computed.
        let logp = logp.to_host().into_owned();
        losses.main.add(&logp, targets);
        if let Some(divergence) = divergence {
            losses.divergence = divergence.to_host().iter().fold(losses.divergence, |sum, d| sum + f64::from(*d));
        }
        losses.mtp.resize(mtp.len(), Nll::default());
        losses.mtp.iter_mut().zip(&ahead).for_each(|(nll, (logp, targets))| nll.add(&logp.to_host(), targets));
        losses.indexer.resize(index_losses.len().max(losses.indexer.len()), 0.0);
        for (sum, losses) in losses.indexer.iter_mut().zip(&index_losses) {
            *sum = losses.to_host().iter().fold(*sum, |sum, loss| sum + f64::from(*loss));
        }
        losses.add_routings(&**execution.device(), routings);
        logp
    }

    /// What a rank that has no tokens left does while others of its group do [`Model::accumulate`], with MTP or
    /// without: computes its experts over their rows, and adds the gradients of these to `grads`.
    ///
    /// # Panics
    /// If the experts are not over ranks.
    pub fn attend(&self, params: &Params, grads: &mut Grads, execution: &Execution, mtp: bool) {
        let context = self.packed(params, execution, &[0], 0, 0.0);
        let mut g = Graph::training(context, grads);
        let h = self.attend_layers(&mut g, mtp);
        let dh = g.tensor(0, h.cols());
        g.recording().expect("made for training").give(h.gradient(), dh);
        drop(h);
        g.backward();
    }

    /// [`Model::attend`] to [`Model::logprobs`], or with MTP to [`Model::first_non_finite_result`].
    ///
    /// # Panics
    /// If the experts are not over ranks.
    pub fn attend_forward(&self, params: &Params, execution: &Execution, mtp: bool) {
        let context = self.packed(params, execution, &[0], 0, 0.0);
        self.attend_layers(&mut Graph::inference(context, None), mtp);
    }

    fn attend_layers(&self, g: &mut Graph, mtp: bool) -> Var {
        let none = g.tensor(0, self.config.hidden_size);
        let mtp = if mtp { &self.mtp[..] } else { &[] };
        let blocks = self.layers.iter().chain(mtp.iter().map(|mtp| &mtp.block));
        let none = g.variable(none);
        blocks.fold(none, |h, block| block.attend(g, h))
    }

    /// The log-probability of each target (0 for [`IGNORE`]), to the bits of [`Model::accumulate`].
    pub fn logprobs(&self, params: &Params, execution: &Execution, batch: &Batch) -> Vec<f32> {
        let Batch { tokens, targets, starts } = batch;
        assert_eq!(tokens.len(), targets.len(), "tokens and targets");
        let context = self.packed(params, execution, starts, tokens.len(), 0.0);
        let mut g = Graph::inference(context, None);
        let x = self.hidden(&mut g, &Ids::from(&tokens[..]));
        ops::head_loss(&mut g, &x, self.head(), targets, Coefficient::Uniform(0.0)).to_host().into_owned()
    }

    /// The logits `[T, V]` of packed sequences.
    pub fn logits(&self, params: &Params, execution: &Execution, tokens: &[u32], starts: &[u32]) -> Tensor {
        let context = self.packed(params, execution, starts, tokens.len(), 0.0);
        let mut g = Graph::inference(context, None);
        let x = self.hidden(&mut g, &tokens.into());
        ops::logits(&mut g, &x, self.head())
    }

    /// What the head reads, `[T, D]`, of packed sequences: the states after the final norm.
    pub fn states(&self, params: &Params, execution: &Execution, tokens: &[u32], starts: &[u32]) -> Tensor {
        let context = self.packed(params, execution, starts, tokens.len(), 0.0);
        let mut g = Graph::inference(context, None);
        self.hidden(&mut g, &tokens.into()).into_value()
    }

    /// What each depth of MTP expects, `[T, V]` each: the logits of the token `depth + 1` places on. Those of a
    /// sequence's last `depth` tokens mean nothing.
    pub fn mtp_logits(&self, params: &Params, execution: &Execution, tokens: &[u32], starts: &[u32]) -> Vec<Tensor> {
        let context = self.packed(params, execution, starts, tokens.len(), 0.0);
        let mut g = Graph::inference(context, None);
        let mut h = self.hidden(&mut g, &tokens.into());
        let depth = |mtp: &Mtp| {
            h = mtp.forward(&mut g, &h, tokens);
            ops::logits(&mut g, &h, self.head_of(mtp))
        };
        self.mtp.iter().map(depth).collect()
    }

    /// Runs the forward pass on a batch that gave a loss that is not finite, looking at every result: the layer and the
    /// operation that gave the first infinity or NaN.
    pub fn first_non_finite(&self, params: &Params, execution: &Execution, batch: &Batch) -> Option<String> {
        match params.first_non_finite() {
            Some(name) => Some(format!("weight {name}")),
            None => self.first_non_finite_result(params, execution, batch),
        }
    }

    /// [`Model::first_non_finite`] of weights that are.
    pub fn first_non_finite_result(&self, params: &Params, execution: &Execution, batch: &Batch) -> Option<String> {
        let context = self.packed(params, execution, &batch.starts, batch.tokens.len(), 0.0);
        let mut g = Graph::inference(context, None);
        g.watch();
        let mut h = self.hidden(&mut g, &Ids::from(&batch.tokens[..]));
        ops::head_loss(&mut g, &h, self.head(), &batch.targets, Coefficient::Uniform(0.0));
        for mtp in &self.mtp {
            h = mtp.forward(&mut g, &h, &batch.tokens);
        }
        g.first_non_finite().map(str::to_owned)
    }

    /// What a layer is given of tokens, `[T, D]`.
    pub fn embeddings(&self, params: &Params, execution: &Execution, tokens: &[u32]) -> Tensor {
        let starts: Vec<u32> = (0..=tokens.len() as u32).collect();
        let context = self.packed(params, execution, &starts, tokens.len(), 0.0);
        self.embed(&mut Graph::inference(context, None), &tokens.into()).into_value()
    }

    /// [`Model::states`] of one sequence of embeddings `[T, D]`, of tokens or of something else.
    pub fn states_of(&self, params: &Params, execution: &Execution, embeddings: Tensor) -> Tensor {
        let tokens = embeddings.rows();
        let context = self.packed(params, execution, &[0, tokens as u32], tokens, 0.0);
        let mut g = Graph::inference(context, None);
        let h = g.variable(embeddings);
        let h = self.through_layers(&mut g, h);
        self.final_norm(&mut g, h).into_value()
    }

    /// The logits `[T, V]` of [`Model::states`].
    pub fn logits_of(&self, params: &Params, execution: &Execution, states: Tensor) -> Tensor {
        let tokens = states.rows();
        let context = self.packed(params, execution, &[0, tokens as u32], tokens, 0.0);
        let mut g = Graph::inference(context, None);
        let states = g.variable(states);
        ops::logits(&mut g, &states, self.head())
    }

    /// What the head reads, `[T, D]`: the state after the final norm.
    fn hidden(&self, g: &mut Graph, tokens: &Ids) -> Var {
        let h = self.last_layer(g, tokens);
        self.final_norm(g, h)
    }

    /// `[T, D]`: the state after the last layer.
    pub(crate) fn last_layer(&self, g: &mut Graph, tokens: &Ids) -> Var {
        let h = self.embed(g, tokens);
        self.through_layers(g, h)
    }

    /// `[T, D]`: what the layers are given of tokens.
    pub(crate) fn embed(&self, g: &mut Graph, tokens: &Ids) -> Var {
        g.enter("model.embed_tokens");
        g.follow(self.embed);
        g.tell_tokens(tokens);
        ops::embedding(g, self.embed, tokens, self.config.embedding_scale())
    }

    /// `[T, D]` to `[T, D]`.
    pub(crate) fn through_layers(&self, g: &mut Graph, h: Var) -> Var {
        let h = match &self.config.streams {
            Some(streams) => ops::spread_streams(g, &h, streams.count),
            None => h,
        };
        let h = self.layers.iter().enumerate().fold(h, |h, (number, layer)| {
            g.begin_layer(number);
            layer.run(g, h)
        });
        match &self.connection {
            Some(connection) => connection.read(g, &h).0,
            None => h,
        }
    }

    /// `[T, D]` to `[T, D]`.
    pub(crate) fn final_norm(&self, g: &mut Graph, h: Var) -> Var {
        g.enter("model.norm and head");
        g.follow(self.norm);
        let h = ops::bring(g, h);
        ops::rms_norm(g, &h, self.norm, self.config.norm_eps)
    }

    /// MLA's up-projections, with the widths of a head's keys and values.
    fn up_projections(&self) -> impl Iterator<Item = (Weight, usize, usize)> {
        self.layers.iter().chain(self.mtp.iter().map(|mtp| &mtp.block)).filter_map(|block| block.up_projection())
    }

    pub(crate) fn head(&self) -> Head {
        Head { weight: self.head, cap: self.config.logit_cap }
    }

    pub(crate) fn head_of(&self, mtp: &Mtp) -> Head {
        Head { weight: mtp.head, ..self.head() }
    }

    /// # Panics
    /// If the model has no such depth.
    pub(crate) fn mtp(&self, depth: usize) -> &Mtp {
        assert!((1..=self.mtp.len()).contains(&depth), "MTP depth {depth} of {}", self.mtp.len());
        &self.mtp[depth - 1]
    }

    pub(crate) fn packed<'a>(
        &self,
        params: &'a Params,
        execution: &'a Execution,
        starts: &[u32],
        tokens: usize,
        balance_coefficient: f32,
    ) -> Context<'a> {
        let Sequences { starts, positions } = Sequences::packed(starts);
        assert_eq!(positions.len(), tokens, "rows by starts, and tokens");
        Context { balance_coefficient, ..self.context(params, execution, starts, positions) }
    }

    /// # Panics
    /// If a position is beyond the context.
    pub(crate) fn context<'a>(
        &self,
        params: &'a Params,
        execution: &'a Execution,
        starts: Ids,
        positions: Ids,
    ) -> Context<'a> {
        let (last, room) = (positions.iter().max(), self.context_len);
        assert!(last.is_none_or(|&last| (last as usize) < room), "position {last:?} in a context of {room} tokens");
        let sequences = Arc::new(Sequences { starts, positions });
        let (balance_coefficient, indexer_coefficient, tokens) = (0.0, 0.0, None);
        let adapted = Arc::default();
        Context { params, execution, sequences, tokens, balance_coefficient, indexer_coefficient, adapted }
    }
}

impl Params {
    /// Makes ready for pages of latents: from the values as they are now, where the file did not have the halves. Does
    /// nothing for a model without latents.
    pub fn prepare_latent(&mut self, model: &Model) {
        for (weight, nope, v) in model.up_projections() {
            self.absorb(weight, nope, v);
        }
    }
}

impl Teacher<'_> {
    /// What its head reads, `[T, D]`.
    fn states(&self, execution: &Execution, tokens: &Ids, starts: &[u32]) -> Var {
        let context = self.model.packed(self.params, execution, starts, tokens.len(), 0.0);
        self.model.hidden(&mut Graph::inference(context, None), tokens)
    }

    fn head_on<'a>(&'a self, states: &'a Tensor, vocab_size: usize) -> TeacherHead<'a> {
        let Teacher { model, params, divergence, temperature, cross_entropy } = *self;
        assert_eq!(model.config.vocab_size, vocab_size, "the vocabularies of teacher and student");
        TeacherHead {
            states,
            head: params.stored(model.head),
            cap: model.config.logit_cap,
            divergence,
            temperature,
            cross_entropy,
        }
    }
}

/// Cosines and sines of the layers.
struct Rotaries {
    usual: Rotary,
    /// Of layers that rotate otherwise, and which they are.
    local: Option<(Rotary, Vec<bool>)>,
}

impl Rotaries {
    fn new(config: &ModelConfig, positions: usize) -> Self {
        let (rope, dim) = (&config.rope, config.attention.rope_dim());
        let local = rope.local.as_ref().map(|local| {
            let unscaled = RopeConfig { base: local.base, scaling: RopeScaling::None, local: None, ..rope.clone() };
            (rotary(&unscaled, dim, positions), local.layers.clone())
        });
        Rotaries { usual: rotary(rope, dim, positions), local }
    }

    fn of(&self, layer: usize) -> &Rotary {
        match &self.local {
            Some((rotary, layers)) if layers[layer] => rotary,
            _ => &self.usual,
        }
    }
}

fn rotary(config: &RopeConfig, dim: usize, positions: usize) -> Rotary {
    let scaling = match config.scaling {
        RopeScaling::Long { ref short, ref long, original_max_positions, table_scale } => {
            let divisors = if positions > original_max_positions { long } else { short };
            Scaling::Long { divisors: divisors.clone(), table_scale }
        }
        RopeScaling::None => Scaling::None,
        RopeScaling::Linear { factor } => Scaling::Linear { factor },
        RopeScaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, table_scale, .. } => {
            Scaling::Yarn { factor, beta_fast, beta_slow, original_max_positions, truncate, table_scale }
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions }
        }
    };
    let layout = match config.layout {
        RopeLayout::Interleaved => Layout::Interleaved,
        RopeLayout::HalfSplit => Layout::HalfSplit,
    };
    Rotary::new(Table::new(dim, config.base, &scaling, positions), layout)
}

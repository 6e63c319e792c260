//! A Janus model as it learns: the language model with the aligners, the embeddings and the head of codes, and in its
//! last stage the tower that sees. Before, the tower's states come in place of pixels. Codes come from whatever makes
//! them.
//!
//! A [`Network`] holds no numbers, only which parameter belongs where, as [`Model`] does of text alone; its parameters
//! are the language model's and [`specs`]'.

use std::sync::Arc;

use super::batch::{Input, JanusBatch, Part, Target};
use super::config::{JanusConfig, VisionConfig};
use super::draw::Painter;
use super::names::{self, JanusTensor, image_tensors};
use super::tower::Tower;
use crate::model::{Losses, Model, Nll};
use crate::names::{ParamKind, ParamSpec, param_specs};
use crate::ops::{self, Head, Map};
use crate::paged::{Chunk, PagedCache};
use crate::params::{Grads, Params, Weight, Wiring};
use crate::tape::{Context, Execution, Graph, Var};
use wels_device::{Coefficient, Device, Ids, Tensor};

/// The head of codes as one parameter, `[codes, width + 1]`: the bias is the last column, and what it is multiplied
/// with has a 1 there. So its loss is the language model's kernel, and its logits never exist.
pub const CODE_HEAD: &str = "model.generation_head.vision_head";

const CODE_EMBEDDINGS: &str = "model.generation_embeddings.weight";

/// What to minimise. Micro-batches of a step share their coefficients, so that gradients add up to those of the step.
#[derive(Clone, Copy, Debug)]
pub struct JanusObjective<'a> {
    /// −∂loss/∂logp of each target of text, of which only these are counted.
    pub text: Coefficient<'a>,
    /// The same of codes.
    pub codes: Coefficient<'a>,
    /// Factor on the balance loss of each layer and sequence.
    pub balance_coefficient: f32,
}

/// What a step has seen so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JanusLosses {
    /// Of the targets of text, and what routers did.
    pub text: Losses,
    pub codes: Nll,
}

/// Log-probabilities of a batch's targets, each in the order of the rows.
#[derive(Clone, Debug, PartialEq)]
pub struct JanusLogprobs {
    pub text: Vec<f32>,
    pub codes: Vec<f32>,
}

/// What a model that learns is shown of pictures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// The states of a tower that stays as it is.
    States,
    /// The pixels of patches, of which a tower makes states that learns too.
    Patches,
}

/// All that learns, with its parameters by place.
pub struct Network {
    config: JanusConfig,
    language: Model,
    tower: Option<Tower>,
    aligner: Vec<Map>,
    code_embeddings: Weight,
    code_aligner: Vec<Map>,
    head_in: Map,
    head_out: Head,
    /// The parameter of each gradient slot.
    slots: Vec<usize>,
}

/// All parameters that learn: the language model's, then the tower's if it learns, the aligner's and those of codes, by
/// their names in the file but for [`CODE_HEAD`]; of a convolution the matrix that its windows are multiplied with.
pub fn specs(config: &JanusConfig, sight: Sight) -> Vec<ParamSpec> {
    let mut specs = param_specs(&config.text);
    let learns = |part| match part {
        names::Part::Vq => false,
        names::Part::Vision => sight == Sight::Patches,
        _ => true,
    };
    for JanusTensor { name, shape, .. } in image_tensors(config).into_iter().filter(|tensor| learns(tensor.part)) {
        if !name.starts_with(CODE_HEAD) {
            let is_vector = shape.len() == 1;
            let rows = if is_vector { 1 } else { shape[0] };
            let (kind, cols) = (kind(&name, is_vector), shape.iter().product::<usize>() / rows);
            specs.push(ParamSpec { name, rows, cols, kind });
        }
    }
    let (rows, cols) = (config.vq.codes, config.vq.head_width + 1);
    specs.push(ParamSpec { name: CODE_HEAD.to_owned(), rows, cols, kind: ParamKind::Head });
    specs
}

fn kind(name: &str, is_vector: bool) -> ParamKind {
    match name {
        _ if name.ends_with(".bias") => ParamKind::Bias,
        _ if is_vector => ParamKind::Norm,
        _ if name == CODE_EMBEDDINGS || name.ends_with("position_embedding.weight") => ParamKind::Embedding,
        _ => ParamKind::Matrix,
    }
}

/// Before training: as [`Params::init`], embeddings of codes normal with a deviation of 1, no bias of codes.
pub fn init(device: &Arc<dyn Device>, config: &JanusConfig, sight: Sight, seed: u64) -> Params {
    let std = config.text.init_std;
    let mut params = Params::init_of(device, specs(config, sight), std, seed);
    let mut change = |name: &str, change: &dyn Fn(&mut [f32])| {
        let param = params.position(name).expect("a parameter of specs");
        let mut values = params.tensors()[param].to_host().into_owned();
        change(&mut values);
        params.set_values(param, &values);
    };
    change(CODE_EMBEDDINGS, &|values| values.iter_mut().for_each(|x| *x /= std));
    let width = config.vq.head_width;
    change(CODE_HEAD, &|values| values.chunks_exact_mut(width + 1).for_each(|row| row[width] = 0.0));
    params
}

impl Network {
    /// For sequences of up to `context` rows.
    ///
    /// # Panics
    /// If the context is longer than the language model's `max_positions`.
    pub fn new(config: JanusConfig, sight: Sight, context: usize) -> Network {
        let mut wiring = Wiring::listed(specs(&config, sight));
        let language = Model::wired(&mut wiring, config.text.clone(), context);
        let head_in = "model.generation_head.proj_out";
        Network {
            language,
            tower: (sight == Sight::Patches).then(|| Tower::new(&mut wiring, &config.vision)),
            aligner: aligner(&mut wiring, "model.aligner", config.vision.aligner_layers),
            code_embeddings: wiring.weight(CODE_EMBEDDINGS),
            code_aligner: aligner(&mut wiring, "model.generation_aligner", config.vq.aligner_layers),
            head_in: Map::named(&mut wiring, head_in),
            head_out: Head { weight: wiring.weight(CODE_HEAD), cap: None },
            slots: wiring.into_slots(),
            config,
        }
    }

    /// What it was made from.
    pub fn config(&self) -> &JanusConfig {
        &self.config
    }

    /// What it is shown of pictures.
    pub fn sight(&self) -> Sight {
        if self.tower.is_some() { Sight::Patches } else { Sight::States }
    }

    /// The language model, with the parameters of all of it.
    pub fn language(&self) -> &Model {
        &self.language
    }

    /// Room for gradients.
    pub fn grads(&self, device: &Arc<dyn Device>) -> Grads {
        Grads::listed(device, specs(&self.config, self.sight()), &self.slots, None)
    }

    /// Adds a micro-batch's gradients of the objective to `grads` and its losses to `losses`; returns the
    /// log-probability of each target.
    ///
    /// # Panics
    /// If the parts of the batch do not fit together, or a sequence is longer than the context.
    pub fn accumulate(
        &self,
        params: &Params,
        grads: &mut Grads,
        execution: &Execution,
        batch: &JanusBatch,
        objective: &JanusObjective,
        losses: &mut JanusLosses,
    ) -> JanusLogprobs {
        let context = self.context(params, execution, batch, objective.balance_coefficient);
        let mut g = Graph::training(context, grads);
        let found = self.pass(&mut g, batch, objective);
        let routings = std::mem::take(&mut g.routings);
        g.backward();
        let logprobs = found.each_ref().map(Scored::logprobs);
        losses.text.main.add(&logprobs[0], &found[0].part.ids);
        losses.codes.add(&logprobs[1], &found[1].part.ids);
        losses.text.add_routings(&**execution.device(), routings);
        let [text, codes] = logprobs;
        JanusLogprobs { text, codes }
    }

    /// The log-probability of each target, to the bits of [`Network::accumulate`].
    pub fn logprobs(&self, params: &Params, execution: &Execution, batch: &JanusBatch) -> JanusLogprobs {
        let mut g = Graph::inference(self.context(params, execution, batch, 0.0), None);
        let nothing = Coefficient::Uniform(0.0);
        let objective = JanusObjective { text: nothing, codes: nothing, balance_coefficient: 0.0 };
        let [text, codes] = self.pass(&mut g, batch, &objective).map(|found| found.logprobs());
        JanusLogprobs { text, codes }
    }

    /// The likeliest token of text behind each sequence, the first of several.
    pub fn next_tokens(&self, params: &Params, execution: &Execution, batch: &JanusBatch) -> Vec<u32> {
        let mut g = Graph::inference(self.context(params, execution, batch, 0.0), None);
        let h = self.embed(&mut g, batch, &batch.starts);
        let h = self.language.through_layers(&mut g, h);
        let h = self.language.final_norm(&mut g, h);
        let last: Vec<u32> = batch.starts[1..].iter().map(|end| end - 1).collect();
        let x = ops::rows(&mut g, &h, &last.into());
        let logits = ops::logits(&mut g, &x, self.language.head());
        let likeliest = |row: &[f32]| (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        logits.to_host().chunks_exact(logits.cols()).map(|row| likeliest(row) as u32).collect()
    }

    /// What the layers are given, `[T, D]`, of inputs none of which is seen.
    pub fn embeddings(&self, params: &Params, execution: &Execution, inputs: &[Input]) -> Tensor {
        let batch = JanusBatch { inputs: inputs.to_vec(), ..JanusBatch::default() };
        let mut g = Graph::inference(self.single_rows(params, execution, inputs.len()), None);
        self.embed(&mut g, &batch, &(0..=inputs.len() as u32).collect::<Vec<u32>>()).into_value()
    }

    /// The logits `[T, codes]` of states `[T, D]`.
    pub fn code_logits(&self, params: &Params, execution: &Execution, states: Tensor) -> Tensor {
        let context = self.single_rows(params, execution, states.rows());
        let starts = context.sequences.starts.clone();
        let mut g = Graph::inference(context, None);
        let states = g.variable(states);
        let x = self.head_input(&mut g, &states, &starts);
        ops::logits(&mut g, &x, self.head_out)
    }

    fn context<'a>(
        &self,
        params: &'a Params,
        execution: &'a Execution,
        batch: &JanusBatch,
        balance_coefficient: f32,
    ) -> Context<'a> {
        batch.check();
        self.language.packed(params, execution, &batch.starts, batch.inputs.len(), balance_coefficient)
    }

    /// Of rows that do not see each other.
    fn single_rows<'a>(&self, params: &'a Params, execution: &'a Execution, rows: usize) -> Context<'a> {
        let starts: Vec<u32> = (0..=rows as u32).collect();
        self.language.packed(params, execution, &starts, rows, 0.0)
    }

    /// The log-probabilities of targets of text and of codes; while recording, with the gradients of the objective.
    fn pass(&self, g: &mut Graph, batch: &JanusBatch, objective: &JanusObjective) -> [Scored; 2] {
        let h = self.embed(g, batch, &batch.starts);
        let h = self.language.through_layers(g, h);
        let h = self.language.final_norm(g, h);
        let text = |target| if let Target::Token(token) = target { Some(token) } else { None };
        let code = |target| if let Target::Code(code) = target { Some(code) } else { None };
        let text = Part::of(&batch.targets, &batch.starts, text);
        let codes = Part::of(&batch.targets, &batch.starts, code);
        let of_text = (!text.is_empty()).then(|| {
            let x = ops::rows(g, &h, &text.rows);
            ops::head_loss_of_rows(g, &x, self.language.head(), &text.ids, objective.text, &text.starts)
        });
        let of_codes = (!codes.is_empty()).then(|| {
            let x = ops::rows(g, &h, &codes.rows);
            let x = self.head_input(g, &x, &codes.starts);
            ops::head_loss_of_rows(g, &x, self.head_out, &codes.ids, objective.codes, &codes.starts)
        });
        [Scored { part: text, logp: of_text }, Scored { part: codes, logp: of_codes }]
    }

    /// What the layers are given, `[T, D]`.
    fn embed(&self, g: &mut Graph, batch: &JanusBatch, starts: &[u32]) -> Var {
        let token = |input| if let Input::Token(token) = input { Some(token) } else { None };
        let code = |input| if let Input::Code(code) = input { Some(code) } else { None };
        let seen = |input| (input == Input::Seen).then_some(0);
        let mut parts = Vec::new();
        let text = Part::of(&batch.inputs, starts, token);
        if !text.is_empty() {
            parts.push((self.language.embed(g, &text.ids.into()), text.rows));
        }
        let codes = Part::of(&batch.inputs, starts, code);
        if !codes.is_empty() {
            g.enter("generation embeddings and aligner");
            let x = ops::embedding(g, self.code_embeddings, &codes.ids.into(), None);
            parts.push((align(g, x, &self.code_aligner, &codes.starts), codes.rows));
        }
        let seen = Part::of(&batch.inputs, starts, seen);
        if !seen.is_empty() {
            parts.push((self.features(g, batch, &seen), seen.rows));
        }
        ops::from_rows(g, parts, batch.inputs.len())
    }

    /// `[rows, D]` of what is seen.
    fn features(&self, g: &mut Graph, batch: &JanusBatch, seen: &Part) -> Var {
        let VisionConfig { channels, patch_size, hidden_size, .. } = self.config.vision;
        let width = if self.tower.is_some() { channels * patch_size * patch_size } else { hidden_size };
        let rows = seen.ids.len();
        assert_eq!(batch.seen.len(), rows * width, "what is seen in {rows} rows of {width} numbers");
        let mut values = g.tensor(rows, width);
        values.set(0, &batch.seen);
        let values = g.constant(values);
        let states = match &self.tower {
            None => values,
            Some(tower) => tower.states(g, &values, &seen.starts),
        };
        g.enter("aligner");
        align(g, states, &self.aligner, &seen.starts)
    }

    /// `[T, width + 1]` of states `[T, D]`: what [`CODE_HEAD`] is multiplied with.
    fn head_input(&self, g: &mut Graph, states: &Var, starts: &Ids) -> Var {
        g.enter("generation head");
        let inner = ops::dense(g, states, self.head_in, starts);
        let inner = ops::gelu(g, &inner);
        let mut ones = g.tensor(states.rows(), 1);
        ones.fill(1.0);
        let ones = g.constant(ones);
        ops::beside(g, inner, ones)
    }
}

/// A network and its parameters, to draw by.
#[derive(Clone, Copy)]
pub struct Weighted<'a> {
    pub network: &'a Network,
    pub params: &'a Params,
}

impl Painter for Weighted<'_> {
    fn config(&self) -> &JanusConfig {
        &self.network.config
    }

    fn language(&self) -> &Model {
        &self.network.language
    }

    fn token_states(&self, execution: &Execution, tokens: &[u32]) -> Tensor {
        let inputs: Vec<Input> = tokens.iter().map(|token| Input::Token(*token)).collect();
        self.network.embeddings(self.params, execution, &inputs)
    }

    fn code_states(&self, execution: &Execution, codes: &[u32]) -> Tensor {
        let inputs: Vec<Input> = codes.iter().map(|code| Input::Code(*code)).collect();
        self.network.embeddings(self.params, execution, &inputs)
    }

    fn next_code_logits(
        &self,
        execution: &Execution,
        cache: &mut PagedCache,
        chunks: &[Chunk],
        embeddings: Tensor,
    ) -> Tensor {
        let states = self.network.language.step_states(self.params, execution, cache, chunks, embeddings);
        self.network.code_logits(self.params, execution, states)
    }
}

/// Targets of one sort and their log-probabilities, if there are any.
struct Scored {
    part: Part,
    logp: Option<Tensor>,
}

impl Scored {
    fn logprobs(&self) -> Vec<f32> {
        self.logp.as_ref().map_or_else(Vec::new, |logp| logp.to_host().into_owned())
    }
}

/// Linear maps with GELU between them.
fn aligner(wiring: &mut Wiring, name: &str, layers: usize) -> Vec<Map> {
    let others = (0..layers - 1).map(|i| format!("{name}.hidden_layers.{i}"));
    std::iter::once(format!("{name}.fc1")).chain(others).map(|name| Map::named(wiring, &name)).collect()
}

fn align(g: &mut Graph, x: Var, maps: &[Map], starts: &Ids) -> Var {
    let first = ops::dense(g, &x, maps[0], starts);
    maps[1..].iter().fold(first, |x, map| {
        let x = ops::gelu(g, &x);
        ops::dense(g, &x, *map, starts)
    })
}

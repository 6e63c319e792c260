//! The trainer and its one step, whatever the stage.
//!
//! ```text
//! gradients of the objective over the whole batch: Trainer::gradients touches no weight
//! stop if anything is not finite
//! clip by the global norm;  AdamW;  b_i += γ·sign(mean load − load_i) for every router: Trainer::update
//! ```
//! Pretraining and fine-tuning minimise the mean loss over the batch's targets plus λ/D Σ MTP losses plus
//! α Σ_layers mean balance loss, [`Trainer::step`]. Reinforcement learning gives the gradients another coefficient a
//! token, and looks at the log-probabilities before it updates.
//!
//! The batch goes through the model in micro-batches of whole sequences. All sums over tokens are chains that one
//! micro-batch continues from the one before it, and every coefficient is the whole batch's, so the split changes no
//! bit.
//!
//! Source: DeepSeek-V3 report §2.1.2 (balancing), §2.2 (MTP), §4.2 (optimizer).

use std::sync::Arc;

use thiserror::Error;
use wels_device::{AdamW, Coefficient, IGNORE, Tensor};
use wels_model::config::ModelConfig;
use wels_model::model::{Batch, ExpertLoad, Losses, Model, Nll, Objective, Teacher};
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::params::{Grads, Params};
use wels_model::tape::Execution;

use crate::schedule::{LearningRate, Switch};

/// The mathematics of a training: all that decides about the weights besides data and initial values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    /// Learning rate of each step.
    pub learning_rate: LearningRate,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// AdamW's decoupled weight decay, see [`decays`].
    pub weight_decay: f64,
    /// Greatest global norm of the gradient.
    pub clip_norm: f64,
    /// γ of the router's selection biases.
    pub bias_update_speed: f64,
    /// Steps after which the biases stand still.
    pub bias_update_steps: u64,
    /// α of the sequence-wise balance loss.
    pub balance_alpha: f64,
    /// λ of multi-token prediction.
    pub mtp_lambda: Switch,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct StepReport {
    /// Counted from 1.
    pub step: u64,
    /// Targets that the loss is the mean of.
    pub targets: u64,
    /// Mean negative log-likelihood of the next token, nats.
    pub loss: f64,
    /// Mean divergence from the teacher, nats; 0 without one.
    pub divergence: f64,
    /// The same as `loss` for each depth of MTP.
    pub mtp_losses: Vec<f64>,
    /// Balance loss without α, mean over sequences and layers with experts; 1 is a perfect balance.
    pub balance: f64,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Learning rate.
    pub learning_rate: f64,
    /// Layers with experts.
    pub experts: Vec<ExpertReport>,
}

/// What one layer's router did in a step.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpertReport {
    /// The layer, MTP layers counting on from the last.
    pub layer: usize,
    /// Tokens that went to each expert.
    pub load: Vec<u64>,
    /// (greatest load − mean load) / mean load.
    pub max_violation: f64,
    /// Least and greatest selection bias after the step; `None` for routers without one.
    pub bias_range: Option<(f32, f32)>,
}

/// The gradients of a batch, and what was seen on the way; no weight has been touched.
#[derive(Debug)]
#[must_use = "gradients are for Trainer::update"]
pub struct Pass {
    /// Losses of the whole batch.
    pub losses: Losses,
    /// `[T]`: log-probability of each target, 0 for [`IGNORE`].
    pub logprobs: Vec<f32>,
    /// Sequences of the batch.
    sequences: usize,
}

/// A loss or gradient that is not a finite number. No weight was touched.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("the {what} of step {step} is not a finite number, first in {place}; the weights are still those of step {}", step - 1)]
pub struct NonFinite {
    /// `loss` or `gradient`.
    pub what: &'static str,
    /// The step that failed.
    pub step: u64,
    /// Layer and operation, or parameter.
    pub place: String,
}

impl NonFinite {
    /// What to do about it.
    pub fn hint(&self) -> String {
        "lower the stage's learning_rate or clip_norm, or lengthen its warmup_steps, in a recipe of another run.name"
            .into()
    }
}

/// A model in training.
pub struct Trainer {
    model: Arc<Model>,
    execution: Execution,
    hyper: Hyperparameters,
    grads: Grads,
    /// One a parameter: whether it stays as it is.
    frozen: Vec<bool>,
    /// What is learnt and what the optimizer remembers; public, to be saved and loaded.
    pub state: State,
}

/// Everything that a step changes: saved and loaded, training goes on with the same bits.
pub struct State {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub params: Params,
    /// AdamW's mean of gradients, one a parameter; `[0, cols]` for router biases.
    pub m: Vec<Tensor>,
    /// AdamW's mean of squared gradients, likewise.
    pub v: Vec<Tensor>,
}

impl State {
    /// Before the first step.
    pub fn new(params: Params) -> State {
        let rows = |spec: &ParamSpec| if spec.kind == ParamKind::RouterBias { 0 } else { spec.rows };
        let zeros = |params: &Params| -> Vec<Tensor> {
            params.specs().iter().map(|spec| Tensor::zeros(params.device(), rows(spec), spec.cols)).collect()
        };
        State { step: 0, m: zeros(&params), v: zeros(&params), params }
    }
}

impl Trainer {
    /// Trains `state` with sequences of up to `context` tokens.
    pub fn new(
        config: ModelConfig,
        context: usize,
        state: State,
        hyper: Hyperparameters,
        execution: Execution,
    ) -> Trainer {
        let model = Arc::new(Model::new(config, context));
        let frozen = vec![false; state.params.specs().len()];
        Trainer { grads: model.grads(execution.device()), model, execution, hyper, frozen, state }
    }

    /// Leaves the layers of multi-token prediction as they are: no update, no weight decay, no bias moves. Their loss
    /// is left out too, so the main model's gradients are those of its own loss alone.
    pub fn freeze_mtp(&mut self) {
        let layers = self.model.config().layers;
        self.frozen = self.state.params.specs().iter().map(|spec| layer_of(&spec.name) >= Some(layers)).collect();
        self.hyper.mtp_lambda = Switch { early: 0.0, late: 0.0, late_step: 0 };
    }

    /// The mathematics.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyper
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// How it computes.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// Bytes that the gradients take.
    pub fn grads_bytes(&self) -> usize {
        self.grads.bytes()
    }

    /// One step on the mean loss over the targets of `batch`, whose rows go through the model at most `micro_rows` at a
    /// time.
    ///
    /// # Errors
    /// [`NonFinite`]; the state is then what it was.
    ///
    /// # Panics
    /// If the batch has no target.
    pub fn step(&mut self, batch: &Batch, micro_rows: usize) -> Result<StepReport, NonFinite> {
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        let coefficient = 1.0 / targets as f32;
        let pass = self.gradients(batch, micro_rows, Coefficient::Uniform(coefficient))?;
        self.update(pass)
    }

    /// The gradients of the whole batch, for [`Trainer::update`]. `coefficient` is −∂loss/∂logp of the target of a row
    /// of `batch`, given its log-probability; the losses of MTP and balance are added as the hyperparameters say,
    /// MTP's divided by the number of targets.
    ///
    /// # Errors
    /// [`NonFinite`] if a loss is not finite.
    ///
    /// # Panics
    /// If the batch has no target.
    pub fn gradients(&mut self, batch: &Batch, micro_rows: usize, coefficient: Coefficient) -> Result<Pass, NonFinite> {
        self.pass(batch, micro_rows, coefficient, None)
    }

    /// The gradients of a student: [`Trainer::gradients`] of the mean, over the targets of `batch`, of the divergence
    /// from `teacher` and of the cross-entropy, as the teacher weighs them.
    ///
    /// # Errors
    /// [`NonFinite`] if a loss is not finite.
    ///
    /// # Panics
    /// If the batch has no target, or the teacher another vocabulary.
    pub fn gradients_towards(
        &mut self,
        teacher: &Teacher,
        batch: &Batch,
        micro_rows: usize,
    ) -> Result<Pass, NonFinite> {
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        let coefficient = 1.0 / targets as f32;
        self.pass(batch, micro_rows, Coefficient::Uniform(coefficient), Some(*teacher))
    }

    fn pass(
        &mut self,
        batch: &Batch,
        micro_rows: usize,
        coefficient: Coefficient,
        teacher: Option<Teacher>,
    ) -> Result<Pass, NonFinite> {
        let step = self.state.step + 1;
        let targets = batch.targets.iter().filter(|target| **target != IGNORE).count();
        assert!(targets > 0, "a batch without targets");
        let lambda = self.hyper.mtp_lambda.at(step);
        let mtp_depth = self.model.config().mtp_depth.max(1);
        let sequences = batch.starts.len() - 1;
        let mut losses = Losses::default();
        let mut logprobs = Vec::with_capacity(batch.tokens.len());
        self.grads.begin();
        for micro in micro_batches(batch, micro_rows) {
            let first = logprobs.len();
            let objective = Objective {
                coefficient: coefficient.rows(first..first + micro.tokens.len()),
                mtp_coefficient: (lambda / (mtp_depth * targets) as f64) as f32,
                balance_coefficient: (self.hyper.balance_alpha / sequences as f64) as f32,
                teacher,
            };
            let (params, grads) = (&self.state.params, &mut self.grads);
            logprobs.extend(self.model.accumulate(params, grads, &self.execution, &micro, &objective, &mut losses));
            let sum = losses.mtp.iter().fold(losses.main.sum + losses.divergence, |sum, depth| sum + depth.sum);
            if !sum.is_finite() {
                let of_teacher = |it: Teacher| it.model.first_non_finite(it.params, &self.execution, &micro);
                let place = self.model.first_non_finite(params, &self.execution, &micro);
                let place = place.or_else(|| Some(format!("the teacher's {}", teacher.and_then(of_teacher)?)));
                let place = place.unwrap_or_else(|| "the output head".into());
                return Err(NonFinite { what: "loss", step, place });
            }
        }
        self.grads.finish();
        Ok(Pass { losses, logprobs, sequences })
    }

    /// Changes the weights by the gradients of `pass`, the last one that [`Trainer::gradients`] gave.
    ///
    /// # Errors
    /// [`NonFinite`] if the gradient is not; the state is then what it was.
    pub fn update(&mut self, pass: Pass) -> Result<StepReport, NonFinite> {
        let Pass { losses, sequences, .. } = pass;
        let step = self.state.step + 1;
        let device = self.execution.device();
        let grad_norm = self.grads.values().iter().map(|grad| device.sum_of_squares(grad)).sum::<f64>().sqrt();
        if !grad_norm.is_finite() {
            let place =
                self.grads.first_non_finite().map_or("the norm of all".into(), |name| format!("that of {name}"));
            return Err(NonFinite { what: "gradient", step, place });
        }
        let learning_rate = self.hyper.learning_rate.at(step);
        self.update_weights(step, learning_rate, grad_norm);
        self.update_biases(step, &losses.experts);
        self.state.step = step;
        let balance = losses.experts.iter().map(|layer| layer.balance / sequences as f64).sum::<f64>();
        Ok(StepReport {
            step,
            targets: losses.main.tokens,
            loss: losses.main.mean(),
            divergence: losses.divergence / losses.main.tokens as f64,
            mtp_losses: losses.mtp.iter().map(Nll::mean).collect(),
            balance: balance / losses.experts.len().max(1) as f64,
            grad_norm,
            learning_rate,
            experts: losses.experts.into_iter().map(|load| self.expert_report(load)).collect(),
        })
    }

    fn update_weights(&mut self, step: u64, learning_rate: f64, grad_norm: f64) {
        let Hyperparameters { beta1, beta2, epsilon, weight_decay, clip_norm, .. } = self.hyper;
        let scale = if grad_norm > clip_norm { (clip_norm / grad_norm) as f32 } else { 1.0 };
        let State { params, m, v, .. } = &mut self.state;
        let decay: Vec<bool> = params.specs().iter().map(|spec| decays(spec.kind)).collect();
        let device = self.execution.device();
        for (i, grad) in self.grads.values().iter().enumerate() {
            if grad.is_empty() || self.frozen[i] {
                continue;
            }
            let weight_decay = if decay[i] { weight_decay } else { 0.0 };
            let rule = AdamW { lr: learning_rate, beta1, beta2, eps: epsilon, weight_decay, step };
            device.adamw(params.tensor_mut(i), grad, &mut m[i], &mut v[i], &rule, scale);
        }
    }

    /// b_i += γ·sign(c̄ − c_i), c the tokens of the whole batch.
    fn update_biases(&mut self, step: u64, experts: &[ExpertLoad]) {
        if step > self.hyper.bias_update_steps {
            return;
        }
        let speed = self.hyper.bias_update_speed as f32;
        for layer in experts {
            let Some(param) = self.state.params.position(&bias_name(layer.layer)) else { continue };
            if self.frozen[param] {
                continue;
            }
            let total: u64 = layer.tokens.iter().sum();
            let tensor = self.state.params.tensor_mut(param);
            let mut biases = tensor.to_host().into_owned();
            for (bias, load) in biases.iter_mut().zip(&layer.tokens) {
                // c̄ − c_i times the number of experts: whole numbers, so its sign is exact.
                match (load * layer.tokens.len() as u64).cmp(&total) {
                    std::cmp::Ordering::Less => *bias += speed,
                    std::cmp::Ordering::Greater => *bias -= speed,
                    std::cmp::Ordering::Equal => {}
                }
            }
            tensor.set(0, &biases);
        }
    }

    fn expert_report(&self, load: ExpertLoad) -> ExpertReport {
        let mean = load.tokens.iter().sum::<u64>() as f64 / load.tokens.len() as f64;
        let max = load.tokens.iter().copied().max().unwrap_or(0) as f64;
        let bias_range = self.state.params.position(&bias_name(load.layer)).map(|param| {
            let bias = self.state.params.tensors()[param].to_host();
            bias.iter().fold((f32::MAX, f32::MIN), |(low, high), b| (low.min(*b), high.max(*b)))
        });
        ExpertReport { layer: load.layer, load: load.tokens, max_violation: (max - mean) / mean, bias_range }
    }

    /// Log-probability of each target of `batch` under the weights as they are, at most `micro_rows` rows at a time.
    pub fn logprobs(&self, batch: &Batch, micro_rows: usize) -> Vec<f32> {
        self.logprobs_of(&self.state.params, batch, micro_rows)
    }

    /// The same under other weights of the same model, those of a reference.
    pub fn logprobs_of(&self, params: &Params, batch: &Batch, micro_rows: usize) -> Vec<f32> {
        let logprobs = |micro| self.model.logprobs(params, &self.execution, &micro);
        micro_batches(batch, micro_rows).flat_map(logprobs).collect()
    }
}

/// Whether weight decay acts on a parameter: on everything with two dimensions, embedding and head among them (the
/// practice of GPT-3 and its open copies; DeepSeek does not say); not on norms and biases.
pub fn decays(kind: ParamKind) -> bool {
    !matches!(kind, ParamKind::Norm | ParamKind::Bias | ParamKind::RouterBias)
}

fn bias_name(layer: usize) -> String {
    format!("model.layers.{layer}.mlp.gate.e_score_correction_bias")
}

/// The layer that a parameter belongs to, from `model.layers.N.…`.
fn layer_of(name: &str) -> Option<usize> {
    name.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Pieces of whole sequences, as many as fit into `rows` rows; a longer sequence is a piece by itself.
fn micro_batches(batch: &Batch, rows: usize) -> impl Iterator<Item = Batch> {
    let starts = &batch.starts;
    let mut from = 0;
    std::iter::from_fn(move || {
        let begin = *starts.get(from)? as usize;
        let to = starts.partition_point(|start| *start as usize <= begin + rows) - 1;
        let to = to.max(from + 1).min(starts.len() - 1);
        if to == from {
            return None;
        }
        let end = starts[to] as usize;
        let piece = Batch {
            tokens: batch.tokens[begin..end].to_vec(),
            targets: batch.targets[begin..end].to_vec(),
            starts: starts[from..=to].iter().map(|start| start - begin as u32).collect(),
        };
        from = to;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn micro_batches_are_whole_sequences() {
        let starts = vec![0, 3, 4, 9, 10];
        let batch = Batch { tokens: (0..10).collect(), targets: (1..11).collect(), starts };
        let cut = |rows| micro_batches(&batch, rows).map(|piece| (piece.tokens, piece.starts)).collect::<Vec<_>>();
        let expected: [(Vec<u32>, Vec<u32>); 3] =
            [(vec![0, 1, 2, 3], vec![0, 3, 4]), (vec![4, 5, 6, 7, 8], vec![0, 5]), (vec![9], vec![0, 1])];
        assert_eq!(cut(4), expected);
        assert_eq!(cut(100).len(), 1);
        for rows in 1..12 {
            let tokens: Vec<u32> = cut(rows).into_iter().flat_map(|(tokens, _)| tokens).collect();
            assert_eq!(tokens, batch.tokens, "{rows} rows");
        }
    }
}

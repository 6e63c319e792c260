//! One step on text and pictures.
//!
//! Cross-entropy alone: the loss is the mean over a step's targets, those of text and of codes with a weight each. The
//! batch goes through the model in micro-batches of whole sequences, which change no bit of an update.

use std::sync::Arc;

use wels_comm::Single;
use wels_device::Coefficient;
use wels_model::config::ModelConfig;
use wels_model::janus::batch::{JanusBatch, Targets};
use wels_model::janus::config::JanusConfig;
use wels_model::janus::network::{JanusLogprobs, JanusLosses, JanusObjective, Network, Sight};
use wels_model::model::Nll;
use wels_model::params::{Grads, Params};
use wels_model::tape::Execution;

use crate::sharded::Owned;
use crate::trainer::{Hyperparameters, State, StepError, learnt, move_biases};

/// What a target counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    pub text: f64,
    pub codes: f64,
}

impl Default for Weights {
    fn default() -> Self {
        Weights { text: 1.0, codes: 1.0 }
    }
}

/// The gradients of a batch, and what was seen on the way; no weight has been touched.
#[derive(Debug)]
#[must_use = "gradients are for JanusTrainer::update"]
pub struct JanusPass {
    pub losses: JanusLosses,
    /// Of each target.
    pub logprobs: JanusLogprobs,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct JanusReport {
    /// Counted from 1.
    pub step: u64,
    /// Negative log-likelihood of the targets of text.
    pub text: Nll,
    /// Of those of codes.
    pub codes: Nll,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
}

/// A model in training, on one rank.
pub struct JanusTrainer {
    network: Arc<Network>,
    execution: Execution,
    hyper: Hyperparameters,
    grads: Grads,
    owned: Owned,
    frozen: Vec<bool>,
    /// What is learnt and what the optimizer remembers; public, to be saved and loaded.
    pub state: State,
}

impl JanusTrainer {
    /// Trains `state`, of the parameters of `wels_model::janus::network::specs`, with sequences of up to `context`
    /// rows. Of `hyper`, multi-token prediction and gradient shards are not used.
    ///
    /// # Panics
    /// If the language model has layers of multi-token prediction, which would learn nothing.
    pub fn new(
        config: JanusConfig,
        sight: Sight,
        context: usize,
        state: State,
        hyper: Hyperparameters,
        execution: Execution,
    ) -> Self {
        assert_eq!(config.text.mtp_depth, 0, "layers of multi-token prediction in a Janus model");
        let network = Arc::new(Network::new(config, sight, context));
        let frozen = vec![false; state.params.specs().len()];
        let (grads, owned) = (network.grads(execution.device()), Owned::new(&state.params, hyper.rule, 0, 1));
        JanusTrainer { network, execution, hyper, grads, owned, frozen, state }
    }

    /// Leaves parameters as they are, by their names: Janus-Pro's first stage trains nothing of the language model
    /// ([`is_language`]).
    pub fn freeze(&mut self, frozen: impl Fn(&str) -> bool) {
        self.frozen = self.state.params.specs().iter().map(|spec| frozen(&spec.name)).collect();
    }

    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// How it computes.
    pub fn execution(&self) -> &Execution {
        &self.execution
    }

    /// One step on the weighted mean loss over the targets of `batch`, whose rows go through the model at most
    /// `micro_rows` at a time.
    ///
    /// # Errors
    /// [`StepError`]; the state is then what it was.
    ///
    /// # Panics
    /// If no target has a weight.
    pub fn step(&mut self, batch: &JanusBatch, micro_rows: usize, weights: Weights) -> Result<JanusReport, StepError> {
        let Targets { text, codes } = batch.target_counts();
        let sum = weights.text * text as f64 + weights.codes * codes as f64;
        assert!(sum > 0.0, "a batch of {text} targets of text and {codes} codes, with {weights:?}");
        let part = |weight: f64| Coefficient::Uniform((weight / sum) as f32);
        let pass = self.gradients(batch, micro_rows, part(weights.text), part(weights.codes))?;
        self.update(pass)
    }

    /// The gradients of the whole batch, for [`JanusTrainer::update`]: the coefficients are −∂loss/∂logp of the targets
    /// of text and of codes, each sort counted by itself.
    ///
    /// # Errors
    /// [`StepError`] if a loss is not finite.
    pub fn gradients(
        &mut self,
        batch: &JanusBatch,
        micro_rows: usize,
        text: Coefficient,
        codes: Coefficient,
    ) -> Result<JanusPass, StepError> {
        let balance_coefficient = (self.hyper.balance_alpha / batch.sequences() as f64) as f32;
        let mut logprobs = JanusLogprobs { text: Vec::new(), codes: Vec::new() };
        let mut losses = JanusLosses::default();
        self.grads.begin();
        for sequences in batch.micro_batches(micro_rows) {
            let micro = batch.cut(sequences);
            let Targets { text: more_text, codes: more_codes } = micro.target_counts();
            let (done_text, done_codes) = (logprobs.text.len(), logprobs.codes.len());
            let objective = JanusObjective {
                text: text.rows(done_text..done_text + more_text),
                codes: codes.rows(done_codes..done_codes + more_codes),
                balance_coefficient,
            };
            let (params, grads) = (&self.state.params, &mut self.grads);
            let found = self.network.accumulate(params, grads, &self.execution, &micro, &objective, &mut losses);
            logprobs.text.extend(found.text);
            logprobs.codes.extend(found.codes);
            if !(losses.text.main.sum + losses.codes.sum).is_finite() {
                return Err(self.non_finite("loss", self.state.params.first_non_finite()));
            }
        }
        self.grads.finish();
        Ok(JanusPass { losses, logprobs })
    }

    /// The log-probability of each target under some weights of the model.
    pub fn logprobs_of(&self, params: &Params, batch: &JanusBatch, micro_rows: usize) -> JanusLogprobs {
        let mut logprobs = JanusLogprobs { text: Vec::new(), codes: Vec::new() };
        for sequences in batch.micro_batches(micro_rows) {
            let found = self.network.logprobs(params, &self.execution, &batch.cut(sequences));
            logprobs.text.extend(found.text);
            logprobs.codes.extend(found.codes);
        }
        logprobs
    }

    /// Changes the weights by the gradients of `pass`, the last one that [`JanusTrainer::gradients`] gave.
    ///
    /// # Errors
    /// [`StepError`] if the gradient is not finite; the state is then what it was.
    pub fn update(&mut self, pass: JanusPass) -> Result<JanusReport, StepError> {
        let (step, losses) = (self.state.step + 1, pass.losses);
        let gradients = self.grads.values().to_vec();
        let grad_norm = self.owned.norm(&Single, &gradients)?;
        if !grad_norm.is_finite() {
            return Err(self.non_finite("gradient", self.grads.first_non_finite()));
        }
        let learning_rate = self.hyper.learning_rate.at(step);
        let learnt = learnt(&self.state.params, &self.frozen);
        let learnt: Vec<usize> = (0..learnt.len()).filter(|param| learnt[*param]).collect();
        self.hyper.follow(&self.execution, &mut self.state, &self.owned, &learnt, &gradients, (step, grad_norm));
        move_biases(&mut self.state.params, &self.hyper, &self.frozen, step, &losses.text.experts);
        self.state.step = step;
        Ok(JanusReport { step, text: losses.text.main, codes: losses.codes, grad_norm, learning_rate })
    }

    fn non_finite(&self, what: &'static str, param: Option<&str>) -> StepError {
        let place = param.map_or("the model's activations".into(), |name| match what {
            "loss" => format!("weight {name}"),
            _ => format!("that of {name}"),
        });
        StepError::NonFinite { what, step: self.state.step + 1, place }
    }
}

/// Names of the language model's own parameters: what Janus-Pro's first stage leaves as it is.
pub fn is_language(config: &ModelConfig, name: &str) -> bool {
    wels_model::names::param_specs(config).iter().any(|spec| spec.name == name)
}

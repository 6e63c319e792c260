//! From gradients to weights: the optimizer over ranks, the routers' biases, the report of a step.

use std::collections::VecDeque;

use wels_comm::Lost;
use wels_device::{AdamW, Tensor};
use wels_model::model::{ExpertLoad, Nll};
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::Execution;

use super::{ExpertReport, Hyperparameters, Pass, State, StepError, StepReport, Trainer, bias_name};
use crate::muon;
use crate::sharded::Owned;

impl Trainer {
    /// Changes the weights by the gradients of `pass`, the last one that [`Trainer::gradients`] gave.
    ///
    /// # Errors
    /// [`StepError`] if the gradient is not finite, or a rank is gone; the state is then what it was.
    pub fn update(&mut self, pass: Pass) -> Result<StepReport, StepError> {
        let Pass { losses, sequences, tokens, .. } = pass;
        let step = self.state.step + 1;
        self.count_sent()?;
        let gradients = self.reduction.lock().finish(&self.grads)?;
        let grad_norm = self.owned.norm(&*self.comm, &gradients)?;
        if !grad_norm.is_finite() {
            let place = self.owned.first_non_finite(&*self.comm, &gradients)?;
            let place = place
                .map_or("the norm of all".into(), |param| format!("that of {}", self.state.params.specs()[param].name));
            return Err(StepError::NonFinite { what: "gradient", step, place });
        }
        let learning_rate = self.hyper.learning_rate.at(step);
        self.update_weights(step, grad_norm, &gradients)?;
        move_biases(&mut self.state.params, &self.hyper, &self.frozen, step, &losses.experts);
        self.state.step = step;
        let balance = losses.experts.iter().map(|layer| layer.balance / sequences as f64).sum::<f64>();
        Ok(StepReport {
            step,
            targets: losses.main.tokens,
            loss: losses.main.mean(),
            divergence: losses.divergence / losses.main.tokens as f64,
            mtp_losses: losses.mtp.iter().map(Nll::mean).collect(),
            balance: balance / losses.experts.len().max(1) as f64,
            indexer: self.indexers_learn().then(|| mean(&losses.indexer) / tokens as f64),
            grad_norm,
            learning_rate,
            experts: losses.experts.into_iter().map(|load| self.expert_report(load)).collect(),
        })
    }

    /// Bucket by bucket, of which one is on its way to the other ranks while the optimizer is at the next.
    fn update_weights(&mut self, step: u64, grad_norm: f64, gradients: &[Tensor]) -> Result<(), Lost> {
        let learnt = learnt(&self.state.params, &self.frozen);
        let (comm, owned, reduction) = (&*self.comm, &self.owned, self.reduction.lock());
        let follow = |state: &mut State, chosen: &[usize]| {
            self.hyper.follow(&self.execution, state, owned, chosen, gradients, (step, grad_norm));
        };
        if reduction.buckets().is_empty() {
            let chosen: Vec<usize> = (0..learnt.len()).filter(|param| learnt[*param]).collect();
            follow(&mut self.state, &chosen);
            return match comm.world() {
                1 => Ok(()),
                _ => owned.exchange_by_link(comm, &mut self.state.params, &chosen),
            };
        }
        let mut under_way = VecDeque::new();
        for bucket in reduction.buckets() {
            let chosen: Vec<usize> = bucket.params.iter().copied().filter(|param| learnt[*param]).collect();
            follow(&mut self.state, &chosen);
            let pending = owned.begin_exchange(comm, &self.state.params, &chosen);
            under_way.push_back((chosen, pending));
            while let Some((chosen, pending)) = under_way.pop_front_if(|(_, pending)| pending.has_come()) {
                owned.take(&mut self.state.params, &chosen, &pending.wait()?);
            }
        }
        for (chosen, pending) in under_way {
            owned.take(&mut self.state.params, &chosen, &pending.wait()?);
        }
        Ok(())
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
}

impl Hyperparameters {
    /// One step of the optimizer, the `step`-th, on what this rank owns of the `chosen` parameters. The gradients of
    /// all ranks together have the norm `grad_norm`.
    pub(crate) fn follow(
        &self,
        execution: &Execution,
        state: &mut State,
        owned: &Owned,
        chosen: &[usize],
        gradients: &[Tensor],
        (step, grad_norm): (u64, f64),
    ) {
        let Hyperparameters { rule, beta1, beta2, epsilon, weight_decay, clip_norm, .. } = *self;
        let rate = self.learning_rate.at(step);
        let scale = if grad_norm > clip_norm { (clip_norm / grad_norm) as f32 } else { 1.0 };
        let State { params, m, v, .. } = state;
        for (i, gradient) in chosen.iter().map(|&i| (i, &gradients[i])) {
            let spec = &params.specs()[i];
            let weight_decay = if decays(spec.kind) { weight_decay } else { 0.0 };
            if let Some(momentum) = rule.momentum(spec.kind) {
                let matrices = muon::Matrices { spec: owned.held(i, spec), rate, weight_decay, momentum };
                matrices.update(execution, params.tensor_mut(i), gradient, &mut m[i], scale);
                continue;
            }
            let rule = AdamW { lr: rate, beta1, beta2, eps: epsilon, weight_decay, step };
            let to = (params.tensor_mut(i), owned.part(i).start);
            execution.device().adamw(to, gradient, (&mut m[i], &mut v[i]), &rule, scale);
        }
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// One a parameter: whether gradients change it.
pub(crate) fn learnt(params: &Params, frozen: &[bool]) -> Vec<bool> {
    params.specs().iter().zip(frozen).map(|(spec, frozen)| !frozen && spec.kind.is_learnt()).collect()
}

/// b_i += γ·sign(c̄ − c_i), c the tokens of the whole batch.
pub(crate) fn move_biases(
    params: &mut Params,
    hyper: &Hyperparameters,
    frozen: &[bool],
    step: u64,
    experts: &[ExpertLoad],
) {
    if step > hyper.bias_update_steps {
        return;
    }
    let speed = hyper.bias_update_speed as f32;
    for layer in experts {
        let Some(param) = params.position(&bias_name(layer.layer)) else { continue };
        if frozen[param] {
            continue;
        }
        let total: u64 = layer.tokens.iter().sum();
        let tensor = params.tensor_mut(param);
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

/// Whether weight decay acts on a parameter: on everything with two dimensions, embedding and head among them (the
/// practice of GPT-3 and its open copies; DeepSeek does not say); not on norms and biases.
pub fn decays(kind: ParamKind) -> bool {
    let biases = matches!(kind, ParamKind::Bias | ParamKind::ExpertBiases(_) | ParamKind::PlaceBias);
    !biases && kind.is_learnt() && kind != ParamKind::Norm
}

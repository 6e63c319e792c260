//! A recipe's words for the optimizer and for how to compute, as `wels_train` and `wels_model` take them.

use std::sync::Arc;

use wels_device::{Device, Pool};
use wels_kernels::gemm;
use wels_model::config::ModelConfig;
use wels_model::tape::{Execution, Recompute};
use wels_runs::recipe::{self, Answering, Optimization, Optimizer, Precision, PretrainSection};
use wels_train::muon::Rule;
use wels_train::rollout::RolloutOptions;
use wels_train::schedule::{LearningRate, Switch};
use wels_train::trainer::Hyperparameters;

/// Parts of a training that begin or end at an update, counted from 1.
struct Updates {
    /// All of them.
    all: u64,
    /// Those at the end in which the learning rate falls.
    decay: u64,
    /// Those in which router biases move.
    biases: u64,
    /// λ of multi-token prediction from an update on.
    mtp_lambda_late: (f64, u64),
}

/// The mathematics of `[pretrain]`, which has an update a step.
pub fn of_pretraining(section: &PretrainSection) -> Hyperparameters {
    hyperparameters(
        &section.optimizer,
        Updates {
            all: section.steps,
            decay: section.decay_steps,
            biases: section.bias_update_steps,
            mtp_lambda_late: (section.mtp_lambda_late, section.mtp_lambda_late_step),
        },
    )
}

/// The mathematics of a `[[stage]]` of `updates` updates.
pub fn of_stage(of: &Optimization, updates: u64) -> Hyperparameters {
    let decay = (updates as f64 * of.decay_fraction).round() as u64;
    let mtp_lambda_late = (of.optimizer.mtp_lambda, 0);
    hyperparameters(&of.optimizer, Updates { all: updates, decay, biases: updates, mtp_lambda_late })
}

fn hyperparameters(of: &Optimizer, updates: Updates) -> Hyperparameters {
    Hyperparameters {
        learning_rate: LearningRate {
            peak: of.learning_rate,
            min: of.learning_rate_min,
            steps: updates.all,
            warmup_steps: of.warmup_steps,
            decay_steps: updates.decay,
            decay: of.decay,
        },
        rule: rule(of),
        beta1: of.beta1,
        beta2: of.beta2,
        epsilon: of.epsilon,
        weight_decay: of.weight_decay,
        clip_norm: of.clip_norm,
        gradient_shards: of.gradient_shards,
        bias_update_speed: of.bias_update_speed,
        bias_update_steps: updates.biases,
        balance_alpha: of.balance_alpha,
        indexer_weight: of.indexer_weight,
        mtp_lambda: Switch {
            early: of.mtp_lambda,
            late: updates.mtp_lambda_late.0,
            late_step: updates.mtp_lambda_late.1,
        },
    }
}

/// What moves the matrices.
pub fn rule(of: &Optimizer) -> Rule {
    match of.optimizer {
        recipe::Rule::AdamW => Rule::AdamW,
        recipe::Rule::Muon => Rule::Muon { momentum: of.momentum },
    }
}

/// How `[pretrain]` is computed.
pub fn execution(section: &PretrainSection, device: &Arc<dyn Device>) -> Execution {
    Execution {
        pool: Pool::new(Arc::clone(device)),
        precision: section.precision,
        recompute: Recompute::Layers(section.recompute_layers.clone()),
        other: None,
    }
}

/// How a `[[stage]]` is computed.
pub(crate) fn stage_execution(precision: Precision, device: &Arc<dyn Device>) -> Execution {
    Execution { precision, ..Execution::new(Arc::clone(device)) }
}

/// What people should know of how `[pretrain]` is computed on this machine.
pub fn slow_precision(section: &PretrainSection) -> Option<&'static str> {
    let emulated = section.precision == Precision::F16 && !gemm::half::is_native();
    emulated.then_some("this machine has no AVX512-FP16: f16 products are emulated, ten times slower than f32")
}

/// How a model of this configuration answers.
pub(crate) fn rollout_options(
    of: &Answering,
    precision: Precision,
    temperature: f64,
    config: &ModelConfig,
) -> RolloutOptions {
    RolloutOptions {
        samples: of.samples,
        max_tokens: of.max_tokens,
        turns: of.max_turns,
        turn_tokens: of.max_turn_tokens,
        temperature: temperature as f32,
        stop_tokens: config.eos_ids.clone(),
        running: of.running,
        precision,
    }
}

//! Training of a VQ tokenizer: one step, as [`Trainer`](crate::trainer::Trainer)'s for language models.
//!
//! ```text
//! gradients of the objective over the whole batch (wels_model::janus::VqObjective), in micro-batches of whole pictures
//! stop if anything is not finite
//! clip by the global norm;  AdamW;  codes to length 1
//! codes that `dead_after` steps in a row had no latent become latents of the batch, drawn by (seed, step, code) with
//! weights |z − e|², as k-means++ does: of what already has a code near to it, a second one would only make noise
//! ```
//! All sums over rows and pictures are chains that one micro-batch continues from the one before it.
//!
//! The second stage, [`VqTrainer::step_decoder`], fits the decoder alone to codes that stay: without an encoder it sees
//! more pictures in the same time, of codes that no longer move.

use std::sync::Arc;

use thiserror::Error;
use wels_device::host::random::Key;
use wels_device::{AdamW, Device, Tensor};
use wels_model::janus::config::VqConfig;
use wels_model::janus::{Vq, VqNetwork, VqObjective, VqSeen};
use wels_model::params::{Grads, Params};
use wels_model::tape::Execution;

use crate::schedule::LearningRate;

/// The mathematics of a training.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VqHyperparameters {
    /// Of each step.
    pub learning_rate: LearningRate,
    /// AdamW's β₁.
    pub beta1: f64,
    /// AdamW's β₂.
    pub beta2: f64,
    /// AdamW's ε.
    pub epsilon: f64,
    /// Greatest global norm of the gradient.
    pub clip_norm: f64,
    /// Factor of the mean absolute difference of pixels.
    pub l1: f32,
    /// Factor of the mean squared difference of pixels.
    pub l2: f32,
    /// β, factor of the distance of latents from their codes.
    pub commitment: f32,
    /// Steps in a row without a latent after which a code is put elsewhere.
    pub dead_after: u32,
    /// Of the draws of where.
    pub seed: u64,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq)]
pub struct VqReport {
    /// Counted from 1.
    pub step: u64,
    /// Mean absolute difference of pixels, of which white and black are 2 apart.
    pub absolute: f64,
    /// Mean squared difference.
    pub squared: f64,
    /// Mean squared difference of latents and codes.
    pub distance: f64,
    /// Codes that the batch used.
    pub used: usize,
    /// Share of latents that are nearest to the code that they were given.
    pub found: f64,
    /// Entropy of the batch's codes, in nats: what a model that draws has to learn, and no more than a picture needs.
    pub entropy: f64,
    /// Codes that were put elsewhere.
    pub restarted: usize,
    /// Global norm of the gradient before clipping.
    pub grad_norm: f64,
    pub learning_rate: f64,
}

/// A gradient or a loss is not a finite number. No weight was touched.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("the {what} of step {step} of the VQ tokenizer is not a finite number; lower the learning rate")]
pub struct NonFinite {
    /// `loss` or `gradient`.
    pub what: &'static str,
    /// The step that failed.
    pub step: u64,
}

/// Everything that a step changes: saved and loaded, training goes on with the same bits.
#[derive(Clone)]
pub struct VqState {
    /// Steps done.
    pub step: u64,
    /// The weights.
    pub params: Params,
    /// AdamW's mean of gradients, one a parameter.
    pub m: Vec<Tensor>,
    /// AdamW's mean of squared gradients, likewise.
    pub v: Vec<Tensor>,
    /// Steps since each code had a latent.
    pub idle: Vec<u32>,
}

impl VqState {
    /// Before the first step.
    pub fn new(config: &VqConfig, device: &Arc<dyn Device>, seed: u64) -> VqState {
        VqState::of(VqNetwork::new(config).init(device, seed), config.codes)
    }

    /// Weights whose optimizer has seen nothing.
    pub fn of(params: Params, codes: usize) -> VqState {
        let zeros = || params.tensors().iter().map(|x| Tensor::zeros(params.device(), x.rows(), x.cols())).collect();
        VqState { step: 0, m: zeros(), v: zeros(), idle: vec![0; codes], params }
    }
}

/// Which code stands for a latent in a step.
#[derive(Clone, Copy)]
enum Codes<'a> {
    Nearest,
    /// Which latents are drawn to.
    Given(&'a [u32]),
    /// Of which the decoder alone learns.
    Kept(&'a [u32]),
}

/// A tokenizer in training.
pub struct VqTrainer {
    network: VqNetwork,
    execution: Execution,
    hyper: VqHyperparameters,
    grads: Grads,
    /// One a parameter: whether it is the decoder's.
    of_decoder: Vec<bool>,
    /// The table's place among the parameters.
    table: usize,
    /// Public, to be saved and loaded.
    pub state: VqState,
}

impl VqTrainer {
    /// # Panics
    /// If `execution`'s device has no operations of images.
    pub fn new(config: &VqConfig, state: VqState, hyper: VqHyperparameters, execution: Execution) -> VqTrainer {
        assert!(execution.device().images().is_some(), "{} has no operations of images", execution.device().in_words());
        let network = VqNetwork::new(config);
        let names = || state.params.specs().iter().map(|spec| &spec.name);
        let of_decoder = names().map(|name| name.contains(".decoder.") || name.contains(".post_quant_conv.")).collect();
        let table = names().position(|name| name.ends_with(".quantize.embedding.weight")).expect("a table of codes");
        let grads = network.grads(execution.device());
        VqTrainer { network, execution, hyper, grads, of_decoder, table, state }
    }

    pub fn hyperparameters(&self) -> &VqHyperparameters {
        &self.hyper
    }

    /// Puts the first codes where `places` says, brought to length 1.
    ///
    /// # Panics
    /// If there are more places than codes, or they have another number of dimensions.
    pub fn place_codes(&mut self, places: &[Vec<f32>]) {
        for (code, place) in places.iter().enumerate() {
            assert_eq!(place.len(), self.network.config().code_dim, "dimensions of a code");
            self.state.params.set_rows(self.table, code, place);
        }
        self.unit_codes();
    }

    /// The tokenizer as it is now.
    pub fn tokenizer(&self) -> Vq {
        Vq::new(VqNetwork::new(self.network.config()), self.state.params.clone())
    }

    /// One step on pictures `[P, side², channels]`, at most `micro` at a time.
    ///
    /// # Errors
    /// [`NonFinite`]; the state is then what it was.
    ///
    /// # Panics
    /// If there are no whole pictures.
    pub fn step(&mut self, pixels: &[f32], micro: usize) -> Result<VqReport, NonFinite> {
        let seen = self.gradients(pixels, Codes::Nearest, micro);
        let mut report = self.update(&seen, pixels.len(), false)?;
        report.restarted = self.restart(&seen);
        Ok(report)
    }

    /// One step in which the encoder learns to find given codes `[P, tokens]`, and codes and decoder what they are for.
    ///
    /// # Errors
    /// [`NonFinite`]; the state is then what it was.
    ///
    /// # Panics
    /// As [`VqTrainer::step`].
    pub fn step_towards(&mut self, pixels: &[f32], codes: &[u32], micro: usize) -> Result<VqReport, NonFinite> {
        let seen = self.gradients(pixels, Codes::Given(codes), micro);
        self.update(&seen, pixels.len(), false)
    }

    /// One step of the decoder alone on pictures with their codes `[P, tokens]`.
    ///
    /// # Errors
    /// [`NonFinite`]; the state is then what it was.
    ///
    /// # Panics
    /// As [`VqTrainer::step`].
    pub fn step_decoder(&mut self, pixels: &[f32], codes: &[u32], micro: usize) -> Result<VqReport, NonFinite> {
        let seen = self.gradients(pixels, Codes::Kept(codes), micro);
        self.update(&seen, pixels.len(), true)
    }

    fn gradients(&mut self, pixels: &[f32], codes: Codes, micro: usize) -> VqSeen {
        let config = self.network.config();
        let (channels, area) = (config.in_channels, config.image_size().pow(2));
        let (size, tokens) = (channels * area, config.tokens());
        assert!(!pixels.is_empty() && pixels.len().is_multiple_of(size), "{} numbers of pictures", pixels.len());
        let VqHyperparameters { l1, l2, commitment, .. } = self.hyper;
        let objective = VqObjective { pictures: pixels.len() / size, l1, l2, commitment };
        let mut all = VqSeen::default();
        self.grads.begin();
        for (part, pixels) in pixels.chunks(micro * size).enumerate() {
            let pictures = pixels.len() / size;
            let pixels = Tensor::of(self.execution.device(), pictures * area, channels, pixels);
            let (params, grads) = (&self.state.params, &mut self.grads);
            let these = part * micro * tokens..(part * micro + pictures) * tokens;
            let (network, execution) = (&self.network, &self.execution);
            let seen = match codes {
                Codes::Nearest => network.accumulate(params, grads, execution, &pixels, None, &objective),
                Codes::Given(codes) => {
                    network.accumulate(params, grads, execution, &pixels, Some(&codes[these]), &objective)
                }
                Codes::Kept(codes) => {
                    network.accumulate_decoder(params, grads, execution, &pixels, &codes[these], &objective)
                }
            };
            all.add(seen);
        }
        self.grads.finish();
        all
    }

    fn update(&mut self, seen: &VqSeen, numbers: usize, decoder: bool) -> Result<VqReport, NonFinite> {
        let step = self.state.step + 1;
        let device = self.execution.device().clone();
        let chosen: Vec<usize> = (0..self.of_decoder.len()).filter(|i| !decoder || self.of_decoder[*i]).collect();
        let squares = chosen.iter().flat_map(|i| device.squares(&self.grads.values()[*i]));
        let grad_norm = squares.fold(0.0, |sum, x| sum + f64::from(x)).sqrt();
        for (what, value) in [("loss", seen.absolute + seen.squared + seen.distance), ("gradient", grad_norm)] {
            if !value.is_finite() {
                return Err(NonFinite { what, step });
            }
        }
        let VqHyperparameters { learning_rate, beta1, beta2, epsilon: eps, clip_norm, .. } = self.hyper;
        let rule = AdamW { lr: learning_rate.at(step), beta1, beta2, eps, weight_decay: 0.0, step };
        let scale = (clip_norm / grad_norm).min(1.0) as f32;
        let VqState { params, m, v, .. } = &mut self.state;
        for i in chosen {
            // A clone of the state shares them until now.
            m[i].make_unshared();
            v[i].make_unshared();
            let moments = (&mut m[i], &mut v[i]);
            device.adamw((params.tensor_mut(i), 0), &self.grads.values()[i], moments, &rule, scale);
        }
        self.state.step = step;
        if !decoder {
            self.unit_codes();
        }
        Ok(self.report(seen, numbers, grad_norm, rule.lr))
    }

    fn report(&self, seen: &VqSeen, numbers: usize, grad_norm: f64, learning_rate: f64) -> VqReport {
        let config = self.network.config();
        let mut counts = vec![0u64; config.codes];
        seen.codes.iter().for_each(|code| counts[*code as usize] += 1);
        let shares = counts.iter().filter(|count| **count > 0).map(|count| *count as f64 / seen.codes.len() as f64);
        VqReport {
            step: self.state.step,
            absolute: seen.absolute / numbers as f64,
            squared: seen.squared / numbers as f64,
            distance: seen.distance / (seen.codes.len() * config.code_dim) as f64,
            used: shares.clone().count(),
            found: seen.found as f64 / seen.codes.len() as f64,
            entropy: -shares.map(|share| share * libm::log(share)).sum::<f64>(),
            restarted: 0,
            grad_norm,
            learning_rate,
        }
    }

    fn unit_codes(&mut self) {
        let device = self.execution.device().clone();
        let table = &self.state.params.tensors()[self.table];
        let new = |cols| self.execution.pool.tensor(table.rows(), cols);
        let (mut unit, mut lengths) = (new(table.cols()), new(1));
        device.images().expect("asked when this was made").unit_rows(table, &mut unit, &mut lengths);
        device.copy_rows(&unit, 0, self.state.params.tensor_mut(self.table), 0, unit.rows());
    }

    /// Σ|z − e|² of the batch's latents up to each.
    fn distances(&self, seen: &VqSeen) -> Vec<f64> {
        let dim = self.network.config().code_dim;
        let table = self.state.params.tensors()[self.table].to_host();
        let distance = |(latent, code): (&[f32], &u32)| {
            let pairs = latent.iter().zip(&table[*code as usize * dim..][..dim]);
            pairs.map(|(z, e)| f64::from(z - e).powi(2)).sum::<f64>()
        };
        let distances = seen.latents.chunks_exact(dim).zip(&seen.codes).map(distance);
        distances
            .scan(0.0, |sum, distance| {
                *sum += distance;
                Some(*sum)
            })
            .collect()
    }

    /// Puts codes that nothing was near to for long where a latent of the batch is. How many.
    fn restart(&mut self, seen: &VqSeen) -> usize {
        self.state.idle.iter_mut().for_each(|idle| *idle = idle.saturating_add(1));
        seen.codes.iter().for_each(|code| self.state.idle[*code as usize] = 0);
        let dead = |idle: &u32| *idle >= self.hyper.dead_after;
        let codes: Vec<usize> = (0..self.state.idle.len()).filter(|code| dead(&self.state.idle[*code])).collect();
        if codes.is_empty() {
            return 0;
        }
        let dim = self.network.config().code_dim;
        let key = Key { seed: self.hyper.seed, stream: self.state.step };
        let sums = self.distances(seen);
        let all = sums.last().copied().unwrap_or_default();
        for &code in &codes {
            let at = key.uniform_at(code as u64) * all;
            let row = sums.partition_point(|sum| *sum <= at).min(sums.len() - 1);
            self.state.params.set_rows(self.table, code, &seen.latents[row * dim..][..dim]);
            for moments in [&mut self.state.m, &mut self.state.v] {
                moments[self.table].set(code * dim, &vec![0.0; dim]);
            }
            self.state.idle[code] = 0;
        }
        codes.len()
    }
}

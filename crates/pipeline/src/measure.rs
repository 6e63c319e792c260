//! Rates of this machine: its limit, and steps of random tokens.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use wels_device::{Device, Precision};
use wels_kernels::peak;
use wels_kernels::random::Key;
use wels_model::model::Batch;
use wels_model::params::Params;
use wels_runs::recipe::Recipe;
use wels_train::trainer::{State, Trainer};

use crate::hyper::{execution, of_pretraining, rule};

/// The machine's limit with all threads.
pub fn fma_peak_flops() -> f64 {
    peak::fma_flops_per_second(Duration::from_millis(100))
}

/// The limit of a device in a precision: the device's own, or for the processor what is measured now.
pub fn peak_flops(device: &dyn Device, precision: Precision) -> f64 {
    device.peak_flops(precision).unwrap_or_else(fma_peak_flops)
}

/// Whose limit [`peak_flops`] is, in words.
pub fn whose_peak(device: &dyn Device, precision: Precision) -> &'static str {
    match (device.peak_flops(precision), precision) {
        (None, _) => "the processor's FMA peak, measured",
        (Some(_), Precision::F32) => "the card's peak in f32",
        (Some(_), Precision::Bf16 | Precision::F16) => "the card's dense peak in 16 bits",
    }
}

/// Tokens a second of training steps of a recipe: the median of three, after one that is not timed. A batch of more
/// than four micro-batches is cut to four, which tells the same in less time.
pub fn training_rate(recipe: &Recipe, device: &Arc<dyn Device>) -> Result<f64> {
    let (section, config, context) = (&recipe.pretrain, recipe.model.config(), recipe.data.sequence_length);
    let state = State::new(Params::init(device, config, recipe.run.seed), rule(&section.optimizer));
    let mut trainer = Trainer::new(config.clone(), context, state, of_pretraining(section), execution(section, device));
    let tokens = section.batch_tokens.min((4 * section.micro_batch * context) as u64);
    steady_rate(3, |step| {
        let batch = random_batch(step, tokens as usize, context, config.vocab_size);
        trainer.step(&batch, section.micro_batch * context)?;
        Ok(tokens)
    })
}

/// Tokens a second of `work`, which says how many it did: the median of so many repetitions at least, and of as many as
/// a second has. The first is not counted, since it also takes memory from the system.
pub fn steady_rate(repetitions: usize, mut work: impl FnMut(u64) -> Result<u64>) -> Result<f64> {
    work(0)?;
    let (mut rates, begin) = (Vec::new(), Instant::now());
    while rates.len() < repetitions || begin.elapsed() < Duration::from_secs(1) {
        let one = Instant::now();
        let tokens = work(1 + rates.len() as u64)?;
        rates.push(tokens as f64 / one.elapsed().as_secs_f64());
    }
    rates.sort_by(f64::total_cmp);
    Ok(rates[rates.len() / 2])
}

/// Tokens without any pattern.
pub fn random_batch(step: u64, tokens: usize, context: usize, vocab_size: usize) -> Batch {
    let key = Key { seed: 0, stream: step };
    let drawn: Vec<u32> = (0..=tokens as u64).map(|i| key.below_at(i, vocab_size as u64) as u32).collect();
    Batch {
        tokens: drawn[..tokens].to_vec(),
        targets: drawn[1..].to_vec(),
        starts: (0..=tokens).step_by(context).map(|start| start as u32).collect(),
    }
}

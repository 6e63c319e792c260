//! A card that is emulated, beside the processor: a mixture of experts with latent attention and MTP learns the same,
//! step by step, in any micro-batches and in any order of blocks, warps and lanes; and its sampler is its trainer.

use std::sync::Arc;

use wels_cpu::testing::emulator;
use wels_device::host::random::Key;
use wels_device::{Device, Precision};
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};
use wels_train::rl::{Prompter, learn as learn_from, sample};
use wels_train::schedule::LearningRate;
use wels_train::trainer::{Hyperparameters, State, Trainer};

use crate::rl::{Even, options, tokenizer, trainer_on};
use crate::trainer::{T, batch, bits, config, hyper};

/// On a device, in some precision.
fn on(device: &Arc<dyn Device>, precision: Precision) -> Execution {
    Execution { precision, ..Execution::new(device.clone()) }
}

/// The losses of so many steps, and the bits of all that they have made of the parameters. The learning rate is one at
/// which a small difference stays small: at 1e-2, f32 and bf16 on the processor are 1% apart themselves.
fn learn(execution: Execution, rows: usize, steps: u64) -> (Vec<f64>, Vec<Vec<u32>>) {
    let of = hyper();
    let state = State::new(Params::init(execution.device(), &config(), 5), of.rule);
    let learning_rate = LearningRate { peak: 3e-3, min: 3e-4, ..of.learning_rate };
    let mut trainer = Trainer::new(config(), T, state, Hyperparameters { learning_rate, ..of }, execution);
    let losses = (0..steps).map(|step| trainer.step(&batch(step), rows).unwrap().loss).collect();
    (losses, bits(&trainer))
}

fn assert_near(got: &[f64], expected: &[f64]) {
    assert!(expected[19] < 0.8 * expected[0], "{expected:?}");
    for (step, (expected, got)) in expected.iter().zip(got).enumerate() {
        assert!((got - expected).abs() <= 0.01 * expected, "step {step}: a loss of {got} and not {expected}");
    }
}

#[test]
fn twenty_steps_are_those_of_the_processor() {
    let Some(card) = emulator(1) else { return };
    let expected = learn(on(&wels_cpu::device(), Precision::F32), 4 * T, 20);
    let got = learn(on(&card, Precision::F32), 4 * T, 20);
    assert_near(&got.0, &expected.0);
    // And not only nearly.
    assert!(got == expected, "{:?} and not {:?}", got.0, expected.0);
}

#[test]
fn twenty_steps_on_tensor_cores_are_near_those_of_the_processor() {
    let Some(card) = emulator(1) else { return };
    let expected = learn(on(&wels_cpu::device(), Precision::Bf16), 4 * T, 20);
    let got = learn(on(&card, Precision::Bf16), 4 * T, 20);
    assert_near(&got.0, &expected.0);
    assert!(got.1 != expected.1, "tensor cores have bits of their own");
}

#[test]
fn micro_batches_and_orders_change_no_bit() {
    for precision in [Precision::F32, Precision::Bf16] {
        let cards = [emulator(2), emulator(3), emulator(4)];
        let [Some(one), Some(two), Some(three)] = cards else { return };
        let whole = learn(on(&one, precision), 4 * T, 6);
        assert!(learn(on(&two, precision), T, 6) == whole, "{precision:?}, a sequence at a time");
        let again = Execution { recompute: Recompute::All, ..on(&three, precision) };
        assert!(learn(again, 3 * T, 6) == whole, "{precision:?}, three sequences at a time, computed again");
    }
}

/// A step fails if a log-probability that was sampled, token by token, is not what training computes.
#[test]
fn the_sampler_is_the_trainer() {
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(card) = emulator(5) else { return };
        let tokenizer = tokenizer();
        let prompter = Prompter { tokenizer: &tokenizer, template: None };
        let mut options = options(16);
        options.rollout.precision = precision;
        let mut trainer = trainer_on(on(&card, precision), 1);
        for step in 0..2 {
            let rollout = sample(&trainer, &Even, &prompter, &options, 5, step * 5, &mut |_, _| {}).unwrap();
            let report = learn_from(&mut trainer, None, &rollout, &options, Key { seed: 5, stream: step }).unwrap();
            assert_eq!(report.logprob_difference_max, 0.0, "{precision:?}");
            assert!(!report.updates.is_empty(), "{precision:?}: nothing was learnt from");
        }
    }
}

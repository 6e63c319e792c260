//! A card that is emulated, beside the processor: a mixture of experts with latent attention and MTP learns the same,
//! step by step, in any micro-batches and in any order of blocks, warps and lanes.

use std::sync::Arc;

use wels_cpu::testing::emulator;
use wels_device::Device;
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};
use wels_train::trainer::{State, Trainer};

use crate::trainer::{T, batch, bits, config, hyper};

/// The losses of twenty steps, and the bits of all that they have made of the parameters.
fn learn(device: &Arc<dyn Device>, rows: usize, recompute: Recompute) -> (Vec<f64>, Vec<Vec<u32>>) {
    let state = State::new(Params::init(device, &config(), 5));
    let execution = Execution { recompute, ..Execution::new(device.clone()) };
    let mut trainer = Trainer::new(config(), T, state, hyper(), execution);
    let losses = (0..20).map(|step| trainer.step(&batch(step), rows).unwrap().loss).collect();
    (losses, bits(&trainer))
}

#[test]
fn twenty_steps_are_those_of_the_processor() {
    let Some(card) = emulator(1) else { return };
    let expected = learn(&wels_cpu::device(), 4 * T, Recompute::None);
    assert!(expected.0[19] < 0.8 * expected.0[0], "{:?}", expected.0);
    let got = learn(&card, 4 * T, Recompute::None);
    for (step, (expected, got)) in expected.0.iter().zip(&got.0).enumerate() {
        assert!((got - expected).abs() <= 0.01 * expected, "step {step}: a loss of {got} and not {expected}");
    }
    // And not only nearly.
    assert!(got == expected, "{:?} and not {:?}", got.0, expected.0);
}

#[test]
fn micro_batches_and_orders_change_no_bit() {
    let cards = [emulator(2), emulator(3), emulator(4)];
    let [Some(one), Some(two), Some(three)] = cards else { return };
    let whole = learn(&one, 4 * T, Recompute::None);
    assert!(learn(&two, T, Recompute::None) == whole);
    assert!(learn(&three, 3 * T, Recompute::All) == whole);
}

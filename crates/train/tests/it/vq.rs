//! Training of a VQ tokenizer: learns, goes on from where it was, and does not depend on how it is computed.

use std::sync::Arc;

use wels_cpu::naive::Naive;
use wels_device::Device;
use wels_device::host::random::Key;
use wels_kernels::par;
use wels_model::janus::config::VqConfig;
use wels_model::tape::Execution;
use wels_train::schedule::{Decay, LearningRate};
use wels_train::vq::{NonFinite, VqHyperparameters, VqState, VqTrainer};

const CONFIG: VqConfig = VqConfig {
    code_dim: 4,
    codes: 12,
    latent_channels: 8,
    in_channels: 3,
    out_channels: 3,
    base_channels: 32,
    multipliers: Vec::new(),
    res_blocks: 1,
    grid: 2,
    aligner_layers: 1,
    head_width: 4,
};

fn config() -> VqConfig {
    VqConfig { multipliers: vec![1, 1], ..CONFIG }
}

fn hyperparameters() -> VqHyperparameters {
    let learning_rate =
        LearningRate { peak: 3e-3, min: 1e-4, steps: 160, warmup_steps: 2, decay_steps: 160, decay: Decay::Linear };
    VqHyperparameters {
        learning_rate,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        clip_norm: 1.0,
        l1: 0.3,
        l2: 1.0,
        commitment: 0.25,
        dead_after: 3,
        seed: 5,
    }
}

fn trainer(device: Arc<dyn Device>) -> VqTrainer {
    let state = VqState::new(&config(), &device, 5);
    VqTrainer::new(&config(), state, hyperparameters(), Execution::new(device))
}

/// Six pictures of a step: squares of four by four pixels whose quarters have one of three colours.
fn pictures(step: u64) -> Vec<f32> {
    let key = Key { seed: 6, stream: step };
    let colours = [[-1.0, -1.0, -0.9], [0.9, -0.8, -0.7], [-0.6, 0.2, 1.0]];
    let pixel = |at: u64| {
        let (picture, row, column) = (at / 16, at / 8 % 2, at / 2 % 2);
        colours[key.below_at(picture * 4 + row * 2 + column, 3) as usize]
    };
    (0..6 * 16).flat_map(pixel).collect()
}

fn run(trainer: &mut VqTrainer, steps: std::ops::RangeInclusive<u64>, micro: usize) {
    for step in steps {
        trainer.step(&pictures(step), micro).expect("finite numbers");
    }
}

fn bits(trainer: &VqTrainer) -> Vec<u32> {
    let VqState { params, m, v, idle, .. } = &trainer.state;
    let tensors = params.tensors().iter().chain(m).chain(v);
    let values = tensors.flat_map(|x| x.to_host().iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
    values.chain(idle.iter().copied()).collect()
}

#[test]
fn pictures_are_learnt_and_codes_that_nothing_is_near_to_are_put_elsewhere() {
    let mut trainer = trainer(wels_cpu::device());
    let reports: Vec<_> = (1..=160).map(|step| trainer.step(&pictures(step), 6).expect("finite numbers")).collect();
    let mean = |range: &[_]| range.iter().map(|report: &wels_train::vq::VqReport| report.squared).sum::<f64>() / 5.0;
    let (first, last) = (mean(&reports[..5]), mean(&reports[155..]));
    assert!(last < 0.5 * first, "mean squares {first} at first, {last} at last");
    assert!(reports.iter().any(|report| report.restarted > 0), "no code was put elsewhere");
    let table = trainer.state.params.position("model.vqmodel.quantize.embedding.weight").expect("a table");
    for code in trainer.state.params.tensors()[table].to_host().chunks(4) {
        let length = code.iter().map(|x| x * x).sum::<f32>();
        assert!((length - 1.0).abs() < 1e-5, "a code of squared length {length}");
    }
}

#[test]
fn threads_devices_and_micro_batches_change_no_bit() {
    let bits_of = |device: Arc<dyn Device>, micro: usize| {
        let mut trainer = trainer(device);
        run(&mut trainer, 1..=5, micro);
        bits(&trainer)
    };
    let expected = bits_of(Naive::new(), 6);
    for (threads, micro) in [(1, 6), (2, 2), (3, 4)] {
        let found = par::with_threads(threads, || bits_of(wels_cpu::device(), micro));
        assert!(found == expected, "{threads} threads, {micro} pictures at a time");
    }
}

#[test]
fn what_goes_on_from_a_saved_state_has_the_same_bits() {
    let mut whole = trainer(wels_cpu::device());
    run(&mut whole, 1..=3, 6);
    let saved = whole.state.clone();
    run(&mut whole, 4..=8, 6);
    let mut again = VqTrainer::new(&config(), saved, hyperparameters(), Execution::new(wels_cpu::device()));
    run(&mut again, 4..=8, 6);
    assert!(bits(&whole) == bits(&again));
}

#[test]
fn the_decoder_alone_leaves_the_codes_of_pictures_as_they_are() {
    let mut trainer = trainer(wels_cpu::device());
    run(&mut trainer, 1..=10, 6);
    let execution = Execution::new(wels_cpu::device());
    let pixels = pictures(1);
    let planes = |picture: &[f32]| -> Vec<f32> {
        (0..3).flat_map(|channel| picture[channel..].iter().step_by(3).copied().collect::<Vec<f32>>()).collect()
    };
    let codes = |trainer: &VqTrainer| -> Vec<u32> {
        let tokenizer = trainer.tokenizer();
        pixels.chunks(48).flat_map(|picture| tokenizer.encode(&execution, &planes(picture))).collect()
    };
    let before = codes(&trainer);
    let reports: Vec<f64> =
        (0..20).map(|_| trainer.step_decoder(&pixels, &before, 6).expect("finite numbers").squared).collect();
    assert!(reports[19] < 0.7 * reports[0], "{reports:?}");
    assert_eq!(codes(&trainer), before);
}

#[test]
fn a_step_that_is_not_finite_changes_nothing() {
    let mut trainer = trainer(wels_cpu::device());
    let before = bits(&trainer);
    let mut pixels = pictures(1);
    pixels[7] = f32::NAN;
    let error = trainer.step(&pixels, 6).expect_err("an error");
    assert_eq!(error, NonFinite { what: "loss", step: 1 });
    assert!(bits(&trainer) == before);
}

#[test]
fn an_encoder_learns_to_find_codes_that_are_given_and_stay() {
    let mut trainer = trainer(wels_cpu::device());
    let table =
        |trainer: &VqTrainer| trainer.tokenizer().params().of(trainer.tokenizer().network().codes()).to_host().to_vec();
    let before = table(&trainer);
    // A quarter's code says which of the three colours it has: blue tells them apart.
    let codes = |pixels: &[f32]| -> Vec<u32> {
        let quarter = |at: usize| pixels[3 * (at / 4 * 16 + at % 4 / 2 * 8 + at % 2 * 2) + 2];
        let code = |blue: f32| {
            if blue < -0.8 {
                1
            } else if blue < 0.0 {
                4
            } else {
                7
            }
        };
        (0..24).map(quarter).map(code).collect()
    };
    let found: Vec<f64> = (1..=80)
        .map(|step| {
            let pixels = pictures(step);
            trainer.step_towards(&pixels, &codes(&pixels), 3).expect("finite numbers").found
        })
        .collect();
    assert!(found[0] < 0.9 && found[70..].iter().all(|found| *found > 0.95), "{found:?}");
    // They have length 1 before and after; what moves is rounding.
    let apart = before.iter().zip(table(&trainer)).map(|(a, b)| (a - b).abs()).fold(0.0f32, f32::max);
    assert!(apart < 1e-5, "codes moved by {apart}");
}

#[test]
fn placed_codes_have_length_1_and_stay_where_they_are_while_the_encoder_learns_to_find_them() {
    let mut trainer = trainer(wels_cpu::device());
    let before = trainer.tokenizer().params().of(trainer.tokenizer().network().codes()).to_host().into_owned();
    trainer.place_codes(&[vec![3.0, 0.0, 0.0, 4.0], vec![0.0, -2.0, 0.0, 0.0]]);
    let codes = |trainer: &VqTrainer| {
        let tokenizer = trainer.tokenizer();
        tokenizer.params().of(tokenizer.network().codes()).to_host().into_owned()
    };
    let placed = codes(&trainer);
    assert_eq!(placed[..8], [0.6, 0.0, 0.0, 0.8, 0.0, -1.0, 0.0, 0.0]);
    let moved = placed[8..].iter().zip(&before[8..]).map(|(now, then)| (now - then).abs()).fold(0.0, f32::max);
    assert!(moved < 1e-6, "the others are where they were: {moved}");
    trainer.step_towards(&pictures(1), &[0; 24], 3).unwrap();
    assert_eq!(codes(&trainer)[..8], placed[..8]);
}

//! Trains a VQ tokenizer of a drawn world from nothing and grades its reconstructions.
//!
//! ```text
//! cargo run --release -p wels-train --example vq -- [--world grid-24] [--steps 900] [--decoder-steps 250]
//!     [--batch 32] [--rate 0.002] [--codes 256] [--pool 4096] [--seed 1]
//! ```
//! Prints a line every 50 steps, and after each stage what the grader says of reconstructions of held-out scenes.

use std::sync::Arc;
use std::time::Instant;

use wels_device::Device;
use wels_device::host::random::Key;
use wels_model::janus::Vq;
use wels_model::janus::config::VqConfig;
use wels_model::tape::Execution;
use wels_scenes::{Kind, Rgb, Scene, Split, World, grade};
use wels_train::schedule::{Decay, LearningRate};
use wels_train::vq::{VqHyperparameters, VqReport, VqState, VqTrainer};

struct Options {
    world: World,
    steps: u64,
    decoder_steps: u64,
    batch: usize,
    rate: f64,
    codes: usize,
    pool: u64,
    seed: u64,
}

fn main() {
    let options = options();
    let world = &options.world;
    let device: Arc<dyn Device> = wels_cpu::device();
    let execution = Execution::new(device.clone());
    let begun = Instant::now();
    let config = config(world, options.codes);
    let scenes: Vec<Scene> = (0..options.pool).map(|i| scene(world, Split::Train, options.seed, i)).collect();
    let pictures: Vec<Vec<f32>> = scenes.iter().map(|scene| numbers(&scene.picture)).collect();
    let held_out: Vec<Scene> = (0..600).map(|i| scene(world, Split::HeldOut, options.seed + 1, i)).collect();

    let state = VqState::new(&config, &device, options.seed);
    let parameters: usize = state.params.tensors().iter().map(|tensor| tensor.len()).sum();
    println!("{} parameters, {} pictures of {}", parameters, pictures.len(), world.name());
    let hyper = hyperparameters(&options, options.steps, options.rate);
    let mut trainer = VqTrainer::new(&config, state, hyper, execution.clone());
    let draw = |step: u64| draw(&options, step);
    for step in 1..=options.steps {
        let batch: Vec<f32> = draw(step).iter().flat_map(|i| pictures[*i].iter().copied()).collect();
        show(&trainer.step(&batch, 16).expect("finite numbers"), begun);
    }
    judge(&trainer.tokenizer(), &execution, &held_out, &config);

    let tokenizer = trainer.tokenizer();
    let codes: Vec<Vec<u32>> = scenes.iter().map(|scene| encode(&tokenizer, &execution, &scene.picture)).collect();
    println!("codes of all pictures after {:.0} s", begun.elapsed().as_secs_f64());
    let hyper = hyperparameters(&options, options.decoder_steps, options.rate);
    let mut state = VqState::of(trainer.state.params.clone(), config.codes);
    state.idle.clone_from(&trainer.state.idle);
    let mut trainer = VqTrainer::new(&config, state, hyper, execution.clone());
    for step in 1..=options.decoder_steps {
        let chosen = draw(options.steps + step);
        let batch: Vec<f32> = chosen.iter().flat_map(|i| pictures[*i].iter().copied()).collect();
        let codes: Vec<u32> = chosen.iter().flat_map(|i| codes[*i].iter().copied()).collect();
        show(&trainer.step_decoder(&batch, &codes, 16).expect("finite numbers"), begun);
    }
    judge(&trainer.tokenizer(), &execution, &held_out, &config);
    println!("{:.0} s", begun.elapsed().as_secs_f64());
}

fn options() -> Options {
    let world = World::named("grid-24").expect("a world");
    let mut options =
        Options { world, steps: 900, decoder_steps: 250, batch: 32, rate: 2e-3, codes: 256, pool: 4096, seed: 1 };
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { panic!("{} without a value", pair[0]) };
        let whole = || value.parse::<u64>().unwrap_or_else(|error| panic!("{name} {value}: {error}"));
        match name.as_str() {
            "--world" => options.world = World::named(value).unwrap_or_else(|error| panic!("{error}")),
            "--steps" => options.steps = whole(),
            "--decoder-steps" => options.decoder_steps = whole(),
            "--batch" => options.batch = whole() as usize,
            "--rate" => options.rate = value.parse().unwrap_or_else(|error| panic!("{name} {value}: {error}")),
            "--codes" => options.codes = whole() as usize,
            "--pool" => options.pool = whole(),
            "--seed" => options.seed = whole(),
            other => panic!("there is no {other}"),
        }
    }
    options
}

/// A grid of codes of a quarter of the picture's side.
fn config(world: &World, codes: usize) -> VqConfig {
    VqConfig {
        code_dim: 8,
        codes,
        latent_channels: 32,
        in_channels: 3,
        out_channels: 3,
        base_channels: 32,
        multipliers: vec![1, 1, 2],
        res_blocks: 1,
        grid: world.side() / 4,
        aligner_layers: 1,
        head_width: 8,
    }
}

fn hyperparameters(options: &Options, steps: u64, peak: f64) -> VqHyperparameters {
    let warmup_steps = (steps / 20).clamp(1, 50);
    let learning_rate =
        LearningRate { peak, min: peak / 50.0, steps, warmup_steps, decay_steps: steps, decay: Decay::Cosine };
    VqHyperparameters {
        learning_rate,
        beta1: 0.9,
        beta2: 0.99,
        epsilon: 1e-8,
        clip_norm: 1.0,
        l1: 0.3,
        l2: 1.0,
        commitment: 0.25,
        dead_after: 30,
        seed: options.seed,
    }
}

fn scene(world: &World, split: Split, seed: u64, number: u64) -> Scene {
    world.scene(split, Kind::ALL[(number % 6) as usize], seed, number)
}

/// `[side², 3]`, −1 to 1.
fn numbers(picture: &Rgb) -> Vec<f32> {
    picture.bytes.iter().map(|byte| f32::from(*byte) / 127.5 - 1.0).collect()
}

/// Which pictures a step is of.
fn draw(options: &Options, step: u64) -> Vec<usize> {
    let key = Key { seed: options.seed, stream: step };
    (0..options.batch as u64).map(|i| key.below_at(i, options.pool) as usize).collect()
}

fn show(report: &VqReport, begun: Instant) {
    if report.step.is_multiple_of(50) || report.step == 1 {
        let VqReport { step, absolute, squared, distance, used, entropy, restarted, grad_norm, learning_rate, .. } =
            report;
        println!(
            "step {step}, {:.0} s: |x̂ − x| {absolute:.4}, squares {squared:.5}, to codes {distance:.5}, {used} codes of {entropy:.2} nats, \
             {restarted} restarted, norm {grad_norm:.3}, rate {learning_rate:.5}",
            begun.elapsed().as_secs_f64()
        );
    }
}

fn encode(tokenizer: &Vq, execution: &Execution, picture: &Rgb) -> Vec<u32> {
    let numbers = numbers(picture);
    let planes: Vec<f32> = (0..3).flat_map(|channel| numbers[channel..].iter().step_by(3).copied()).collect();
    tokenizer.encode(execution, &planes)
}

/// What becomes of held-out pictures.
fn judge(tokenizer: &Vq, execution: &Execution, scenes: &[Scene], config: &VqConfig) {
    let (mut passed, mut squares, mut used) = (0, 0.0, vec![false; config.codes]);
    let mut of_kinds = [(0, 0); 6];
    for (i, scene) in scenes.iter().enumerate() {
        let codes = encode(tokenizer, execution, &scene.picture);
        codes.iter().for_each(|code| used[*code as usize] = true);
        let planes = tokenizer.decode(execution, &codes);
        let size = planes.len() / 3;
        let byte = |at: usize| ((planes[at % 3 * size + at / 3] + 1.0) * 127.5).round().clamp(0.0, 255.0) as u8;
        let bytes: Vec<u8> = (0..planes.len()).map(byte).collect();
        let pairs = bytes.iter().zip(&scene.picture.bytes);
        squares += pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>();
        let picture = Rgb { bytes, ..scene.picture };
        let passes = grade(&scene.world, &scene.spec, &picture).passes();
        passed += usize::from(passes);
        of_kinds[i % 6].0 += usize::from(passes);
        of_kinds[i % 6].1 += 1;
    }
    let count = scenes.len() * 3 * scenes[0].picture.width * scenes[0].picture.height;
    let used = used.iter().filter(|used| **used).count();
    println!(
        "held out: {:.1}% of {} accepted {of_kinds:?}, PSNR {:.1} dB, {used} of {} codes used",
        100.0 * passed as f64 / scenes.len() as f64,
        scenes.len(),
        10.0 * (255.0f64.powi(2) * count as f64 / squares).log10(),
        config.codes
    );
}

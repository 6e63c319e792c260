//! Micro-batches, recomputation, threads and instruction sets change no bit of gradients and losses.

use std::sync::{Arc, Mutex};

use crate::shapes;
use wels_cpu::testing::device;
use wels_device::Coefficient;
use wels_device::Precision;
use wels_kernels::isa::{self, Isa};
use wels_kernels::par;
use wels_model::config::{ModelConfig, RopeScaling};
use wels_model::model::{Batch, Losses, Model, Objective};
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};

/// Gradients and losses of one step over `batch`, cut into pieces of these numbers of sequences.
fn step(config: &ModelConfig, batch: &Batch, pieces: &[usize], execution: &Execution) -> (Vec<Vec<f32>>, Losses) {
    let model = Model::new(config.clone(), 64);
    let params = Params::init(&device(), config, 7);
    let mut grads = model.grads(&device());
    let mut losses = Losses::default();
    let n = batch.targets.len() as f32;
    let objective = Objective {
        coefficient: Coefficient::Uniform(1.0 / n),
        mtp_coefficient: 0.3 / n,
        balance_coefficient: 0.01 / batch.starts.len() as f32,
        indexer_coefficient: 0.7 / n,
        teacher: None,
    };
    // A step before this one leaves its gradients behind, which must not show.
    model.accumulate(&params, &mut grads, execution, batch, &objective, &mut Losses::default());
    grads.begin();
    let mut first = 0;
    for &sequences in pieces {
        let piece = shapes::part(batch, first, first + sequences);
        model.accumulate(&params, &mut grads, execution, &piece, &objective, &mut losses);
        first += sequences;
    }
    grads.finish();
    assert_eq!(first + 1, batch.starts.len(), "the pieces are the batch");
    (shapes::values(grads.values()), losses)
}

fn assert_same(name: &str, config: &ModelConfig, a: &(Vec<Vec<f32>>, Losses), b: &(Vec<Vec<f32>>, Losses)) {
    let specs = wels_model::names::param_specs(config);
    for ((spec, a), b) in specs.iter().zip(&a.0).zip(&b.0) {
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert!(bits(a) == bits(b), "{name}: the gradient of {} differs", spec.name);
    }
    assert_eq!(a.1, b.1, "{name}: losses");
}

#[test]
fn the_split_into_micro_batches() {
    let batch = shapes::batch(1, &[7, 12, 1, 20]);
    for (name, config) in shapes::all() {
        for precision in [Precision::F32, Precision::Bf16] {
            let execution = Execution { precision, ..Execution::new(device()) };
            let whole = step(&config, &batch, &[4], &execution);
            assert_same(name, &config, &whole, &step(&config, &batch, &[1, 1, 1, 1], &execution));
            assert_same(name, &config, &whole, &step(&config, &batch, &[3, 1], &execution));
        }
    }
}

#[test]
fn recomputation() {
    let batch = shapes::batch(2, &[9, 14]);
    for (name, config) in shapes::all() {
        let keep = step(&config, &batch, &[2], &Execution::new(device()));
        for recompute in [Recompute::All, Recompute::Layers(vec![1])] {
            let execution = Execution { recompute, ..Execution::new(device()) };
            assert_same(name, &config, &keep, &step(&config, &batch, &[2], &execution));
        }
    }
}

/// What a layer's parameters have when the backward pass tells that it has left the layer is what they have at the end.
#[test]
fn gradients_are_complete_when_their_layer_is() {
    type Told = Vec<(usize, Vec<(usize, Vec<f32>)>)>;
    let batch = shapes::batch(2, &[9, 14]);
    for (name, config) in shapes::all() {
        for recompute in [Recompute::None, Recompute::Layers(vec![1])] {
            let execution = Execution { recompute, ..Execution::new(device()) };
            let (model, params) = (Model::new(config.clone(), 64), Params::init(&device(), &config, 7));
            let (mut grads, told) = (model.grads(&device()), Arc::new(Mutex::new(Told::new())));
            let (specs, tell) = (wels_model::names::param_specs(&config), told.clone());
            grads.set_on_layer(Some(Box::new(move |grads, layer| {
                let prefix = format!("model.layers.{layer}.");
                let of_layer = |param: &usize| specs[*param].name.starts_with(&prefix);
                let of_layer: Vec<usize> = (0..specs.len()).filter(of_layer).collect();
                let complete = of_layer.into_iter().filter(|param| grads.is_complete_with_its_layer(*param));
                let complete: Vec<usize> = complete.collect();
                let values = complete.iter().map(|&param| (param, grads.completed(param).to_host().into_owned()));
                tell.lock().unwrap().push((layer, values.collect()));
            })));
            let objective = Objective {
                coefficient: Coefficient::Uniform(0.1),
                mtp_coefficient: 0.3,
                balance_coefficient: 0.01,
                indexer_coefficient: 0.1,
                teacher: None,
            };
            model.accumulate(&params, &mut grads, &execution, &batch, &objective, &mut Losses::default());
            grads.finish();
            let told = std::mem::take(&mut *told.lock().unwrap());
            let layers: Vec<usize> = told.iter().map(|(layer, _)| *layer).collect();
            assert_eq!(layers, (0..config.layers + config.mtp_depth).rev().collect::<Vec<_>>(), "{name}");
            for (param, values) in told.into_iter().flat_map(|(_, values)| values) {
                assert!(grads.values()[param].to_host() == values, "{name}: parameter {param}");
            }
        }
    }
}

#[test]
fn threads_and_instruction_sets() {
    let batch = shapes::batch(3, &[9, 14, 5]);
    for (name, config) in shapes::all() {
        let run = |threads, isa| {
            par::with_threads(threads, || isa::with(isa, || step(&config, &batch, &[3], &Execution::new(device()))))
        };
        let plain = run(1, Isa::Plain);
        for isa in Isa::all_available() {
            for threads in [1, 2] {
                assert_same(&format!("{name}, {threads} threads, {}", isa.name()), &config, &plain, &run(threads, isa));
            }
        }
    }
}

#[test]
fn recomputation_takes_less_memory() {
    let batch = shapes::batch(4, &[60, 60, 60, 60]);
    let config = ModelConfig { layers: 6, ..shapes::llama() };
    let peak = |recompute| {
        let execution = Execution { recompute, ..Execution::new(device()) };
        step(&config, &batch, &[4], &execution);
        let usage = execution.pool.usage();
        assert_eq!(usage.live_bytes, 0, "all tensors have come back");
        usage.live_bytes_max
    };
    let (keep, again) = (peak(Recompute::None), peak(Recompute::All));
    assert!(3 * again < 2 * keep, "{again} bytes with recomputation, {keep} without");
}

/// With LongRoPE the context that a model is opened for chooses the divisors, so that a sequence that outgrows the
/// first training's context keeps the bits of what it was.
#[test]
fn a_sequence_that_outgrows_longropes_first_context_keeps_its_bits() {
    let mut config = shapes::phi3();
    let (short, long) = (vec![1.0, 1.25, 1.5], vec![1.5, 4.0, 9.0]);
    config.rope.scaling = RopeScaling::Long { short, long, original_max_positions: 8, table_scale: 1.25 };
    let params = Params::init(&device(), &config, 1);
    let execution = Execution::new(device());
    let tokens: Vec<u32> = (0..20).map(|i| i * 7 % 61).collect();
    let logits = |context: usize, count: usize| {
        let model = Model::new(config.clone(), context);
        model.logits(&params, &execution, &tokens[..count], &[0, count as u32]).to_host().into_owned()
    };
    let (whole, row) = (logits(64, 20), config.vocab_size);
    for count in [1, 7, 8, 9] {
        assert_eq!(logits(64, count), whole[..count * row], "{count} tokens of a long context");
    }
    assert_eq!(logits(9, 8), whole[..8 * row]);
    assert!(logits(8, 8) != whole[..8 * row], "the divisors of short contexts are others");
}

//! Gradients against finite differences of the loss, and special cases.

use crate::shapes;
use wels_cpu::testing::{device, edit};
use wels_device::Coefficient;
use wels_device::host::random::Key;
use wels_model::config::{Indexer, ModelConfig};
use wels_model::model::{Batch, Losses, Model, Objective};
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::Execution;

const MTP: f32 = 0.3;
const BALANCE: f32 = 0.5;
const INDEXER: f32 = 0.2;

/// The objective's value but for what indexers learn by, that, and the gradients by parameter.
fn run(model: &Model, params: &Params, batch: &Batch, execution: &Execution) -> ([f64; 2], Vec<Vec<f32>>) {
    let mut grads = model.grads(&device());
    let mut losses = Losses::default();
    let objective = Objective {
        coefficient: Coefficient::Uniform(1.0),
        mtp_coefficient: MTP,
        balance_coefficient: BALANCE,
        indexer_coefficient: INDEXER,
        teacher: None,
    };
    grads.begin();
    model.accumulate(params, &mut grads, execution, batch, &objective, &mut losses);
    grads.finish();
    let mtp: f64 = losses.mtp.iter().map(|nll| nll.sum).sum();
    let balance: f64 = losses.experts.iter().map(|experts| experts.balance).sum();
    let indexers = f64::from(INDEXER) * losses.indexer.iter().sum::<f64>();
    ([losses.main.sum + f64::from(MTP) * mtp + f64::from(BALANCE) * balance, indexers], shapes::values(grads.values()))
}

/// A model whose router is far from indifferent, so that a small change of weights changes no choice.
fn decided(config: &ModelConfig) -> Params {
    let mut params = Params::init(&device(), config, 11);
    for i in 0..params.specs().len() {
        match params.specs()[i].kind {
            ParamKind::Norm => {
                let key = Key { seed: 3, stream: i as u64 };
                edit(params.tensor_mut(i), |norm| {
                    norm.iter_mut().zip(0..).for_each(|(x, j)| *x += 0.2 * key.normal_at(j) as f32);
                });
            }
            ParamKind::Bias => edit(params.tensor_mut(i), |bias| {
                bias.iter_mut().zip(0u16..).for_each(|(x, j)| *x = 0.01 * f32::from(j));
            }),
            _ => {}
        }
    }
    params
}

#[test]
fn finite_differences() {
    let batch = shapes::batch(5, &[6, 9]);
    let execution = Execution::new(device());
    for (name, mut config) in shapes::all() {
        // A small change of weights changes the choice of some key, and the loss jumps; the oracles have such choices.
        config.indexer = config.indexer.map(|indexer| Indexer { top_k: 64, ..indexer });
        let model = Model::new(config.clone(), 64);
        let params = decided(&config);
        let (_, gradients) = run(&model, &params, &batch, &execution);
        for (i, spec) in params.specs().iter().enumerate() {
            if !spec.kind.is_learnt() {
                assert!(gradients[i].is_empty(), "{name}: {} has a gradient", spec.name);
                continue;
            }
            // Along the gradient itself, where the loss changes most: the slope is its length.
            let length = gradients[i].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
            assert!(length > 0.0, "{name}: {} has no gradient", spec.name);
            let at = |by: f64| {
                let mut params = params.clone();
                edit(params.tensor_mut(i), |values| {
                    let values = values.iter_mut().zip(&gradients[i]);
                    values.for_each(|(w, g)| *w += (by * f64::from(*g) / length) as f32);
                });
                // Attention and what it reads learn nothing by what indexers learn by, and those by nothing else.
                run(&model, &params, &batch, &execution).0[usize::from(spec.is_of_indexer())]
            };
            // A longer way is rounded less; where the choice of an expert turns on it, the loss jumps, and a shorter
            // one is looked at.
            let slopes = [1e-2, 1e-3, 1e-4].map(|step| (at(step) - at(-step)) / (2.0 * step));
            let is_near = |slope: &f64| (slope / length - 1.0).abs() < 0.01;
            assert!(slopes.iter().any(is_near), "{name}: {}: slopes {slopes:?}, gradient {length}", spec.name);
        }
    }
}

#[test]
fn an_expert_without_tokens_has_no_gradient() {
    let config = shapes::deepseek_v3();
    let model = Model::new(config.clone(), 64);
    let mut params = Params::init(&device(), &config, 1);
    let bias = params.position("model.layers.1.mlp.gate.e_score_correction_bias").expect("a router bias");
    // Experts 4 to 7 are never chosen.
    params.set_values(bias, &[0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0]);
    let batch = shapes::batch(6, &[8]);
    let objective = Objective {
        coefficient: Coefficient::Uniform(1.0),
        mtp_coefficient: 0.0,
        balance_coefficient: 0.0,
        indexer_coefficient: 0.0,
        teacher: None,
    };
    let gate = params.position("model.layers.1.mlp.experts.gate_proj").expect("experts");
    let mut grads = model.grads(&device());
    for _ in 0..2 {
        // First with the bias, then without it and with what was left in the buffers, then again.
        grads.begin();
        model.accumulate(&params, &mut grads, &Execution::new(device()), &batch, &objective, &mut Losses::default());
        grads.finish();
        let of_gate = grads.values()[gate].to_host();
        let of_expert = |e: usize| of_gate[e * 240..(e + 1) * 240].iter().any(|g| *g != 0.0);
        assert!((0..4).any(of_expert) && !(4..8).any(of_expert), "gradients of experts");
        // The next step begins with gradients of all experts in the buffers.
        let mut unbiased = params.clone();
        unbiased.set_values(bias, &[0.0, 0.0, 0.0, 0.0, 0.0, 9.0, 0.0, 0.0]);
        grads.begin();
        model.accumulate(&unbiased, &mut grads, &Execution::new(device()), &batch, &objective, &mut Losses::default());
        grads.finish();
    }
}

#[test]
fn a_non_finite_value_is_traced_to_its_layer() {
    let config = shapes::deepseek_v3();
    let model = Model::new(config.clone(), 64);
    let mut params = Params::init(&device(), &config, 1);
    let batch = shapes::batch(6, &[8]);
    let execution = Execution::new(device());
    assert_eq!(model.first_non_finite(&params, &execution, &batch), None);
    let weight = params.position("model.layers.1.self_attn.o_proj.weight").expect("a weight");
    params.tensor_mut(weight).set(3, &[1e38, 1e38]);
    let norm = params.position("model.layers.1.self_attn.kv_a_layernorm.weight").expect("a norm");
    params.tensor_mut(norm).fill(1e3);
    let found = model.first_non_finite(&params, &execution, &batch);
    assert_eq!(found.as_deref(), Some("model.layers.1 (linear)"));
    params.tensor_mut(weight).set(3, &[f32::NAN]);
    let found = model.first_non_finite(&params, &execution, &batch);
    assert_eq!(found.as_deref(), Some("weight model.layers.1.self_attn.o_proj.weight"));

    let mut params = Params::init(&device(), &config, 1);
    let head = params.position("lm_head.weight").expect("a head");
    params.tensor_mut(head).fill(3e38);
    let found = model.first_non_finite(&params, &execution, &batch);
    assert_eq!(found.as_deref(), Some("model.norm and head (log-probabilities)"));
}

//! The trainer on a tiny mixture of experts with MTP: what a step changes, what it leaves alone, and what changes no
//! bit.

use wels_cpu::testing::device;
use wels_device::IGNORE;
use wels_device::host::random::Key;
use wels_model::config::ModelConfig;
use wels_model::model::Batch;
use wels_model::names::ParamKind;
use wels_model::params::Params;
use wels_model::tape::{Execution, Recompute};
use wels_train::muon::Rule;
use wels_train::schedule::{Decay, LearningRate, Switch};
use wels_train::trainer::{Hyperparameters, State, StepError, Trainer};

pub const T: usize = 16;

pub fn config() -> ModelConfig {
    let json = r#"{"model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "num_attention_heads": 2,
        "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "vocab_size": 60, "max_position_embeddings": 32, "rope_theta": 10000.0,
        "initializer_range": 0.1, "num_nextn_predict_layers": 1}"#;
    ModelConfig::from_hf_json(json).unwrap().0
}

pub fn hyper() -> Hyperparameters {
    Hyperparameters {
        gradient_shards: 1,
        rule: Rule::AdamW,
        learning_rate: LearningRate {
            peak: 1e-2,
            min: 1e-3,
            steps: 20,
            warmup_steps: 2,
            decay_steps: 5,
            decay: Decay::Cosine,
        },
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
        bias_update_speed: 0.01,
        bias_update_steps: 3,
        balance_alpha: 1e-4,
        indexer_weight: 0.0,
        mtp_lambda: Switch { early: 0.3, late: 0.1, late_step: 3 },
    }
}

fn trainer(hyper: Hyperparameters, recompute: Recompute) -> Trainer {
    let config = config();
    let state = State::new(Params::init(&device(), &config, 5), hyper.rule);
    Trainer::new(config, T, state, hyper, Execution { recompute, ..Execution::new(device()) })
}

/// Four sequences of a pattern that can be learnt.
pub fn batch(step: u64) -> Batch {
    let key = Key { seed: 9, stream: step };
    let sequence = |s: u64| (0..=T as u64).map(move |t| ((key.below_at(s, 50) + 3 * t) % 60) as u32);
    let all: Vec<Vec<u32>> = (0..4).map(|s| sequence(s).collect()).collect();
    Batch {
        tokens: all.iter().flat_map(|s| s[..T].to_vec()).collect(),
        targets: all.iter().flat_map(|s| s[1..].to_vec()).collect(),
        starts: (0..=4).map(|s| s * T as u32).collect(),
    }
}

pub fn bits(trainer: &Trainer) -> Vec<Vec<u32>> {
    let State { params, m, v, .. } = &trainer.state;
    let tensors = params.tensors().iter().chain(m).chain(v);
    tensors.map(|tensor| tensor.to_host().iter().map(|x| x.to_bits()).collect()).collect()
}

#[test]
fn micro_batches_and_recomputation_change_no_bit() {
    let run = |rows, recompute| {
        let mut trainer = trainer(hyper(), recompute);
        let reports: Vec<_> = (0..6).map(|step| trainer.step(&batch(step), rows).unwrap()).collect();
        (bits(&trainer), reports)
    };
    let whole = run(4 * T, Recompute::None);
    assert!(whole.1[5].loss < whole.1[0].loss, "{:?}", whole.1);
    for (rows, recompute) in [(T, Recompute::None), (3 * T, Recompute::All), (2 * T, Recompute::Layers(vec![1]))] {
        assert!(run(rows, recompute.clone()) == whole, "{rows} rows, {recompute:?}");
    }
}

#[test]
fn biases_move_against_the_load_and_then_stand_still() {
    let mut trainer = trainer(hyper(), Recompute::None);
    let param = trainer.state.params.position("model.layers.1.mlp.gate.e_score_correction_bias").unwrap();
    for step in 0..5 {
        let before = trainer.state.params.tensors()[param].to_host().into_owned();
        let report = trainer.step(&batch(step), 4 * T).unwrap();
        let experts = &report.experts[0];
        assert_eq!((experts.layer, experts.load.iter().sum::<u64>()), (1, 2 * 4 * T as u64));
        let mean = 2 * 4 * T as u64 / 4;
        assert_eq!(experts.max_violation, *experts.load.iter().max().unwrap() as f64 / mean as f64 - 1.0);
        let after = trainer.state.params.tensors()[param].to_host();
        for (expert, load) in experts.load.iter().enumerate() {
            let moved = match load.cmp(&mean) {
                _ if step >= 3 => 0.0,
                std::cmp::Ordering::Less => 0.01,
                std::cmp::Ordering::Greater => -0.01,
                std::cmp::Ordering::Equal => 0.0,
            };
            assert_eq!(after[expert], before[expert] + moved, "expert {expert}");
        }
    }
}

#[test]
fn a_gradient_that_is_not_finite_touches_nothing() {
    let mut trainer = trainer(hyper(), Recompute::None);
    trainer.step(&batch(0), 4 * T).unwrap();
    let norm = trainer.state.params.position("model.layers.1.input_layernorm.weight").unwrap();
    trainer.state.params.tensor_mut(norm).set(3, &[f32::NAN]);
    let before = bits(&trainer);
    let failure = trainer.step(&batch(1), 4 * T).unwrap_err();
    let StepError::NonFinite { what: "loss", step: 2, place } = &failure else { panic!("{failure}") };
    assert!(place.contains("model.layers.1.input_layernorm.weight"), "{failure}");
    assert!(bits(&trainer) == before);
    assert_eq!(trainer.state.step, 1);
}

#[test]
fn decay_acts_on_matrices_alone() {
    // With all targets but one left out and a rate of almost nothing, decay is what moves a weight without gradient.
    let mut hyper = hyper();
    hyper.weight_decay = 0.5;
    let mut trainer = trainer(hyper, Recompute::None);
    let mut batch = batch(0);
    batch.targets[1..].fill(IGNORE);
    let before = trainer.state.params.clone();
    let rate = trainer.step(&batch, 4 * T).unwrap().learning_rate;
    let embedding = trainer.state.params.position("model.embed_tokens.weight").unwrap();
    assert_eq!(before.specs()[embedding].kind, ParamKind::Embedding);
    let unused = (0..60).find(|token| !batch.tokens.contains(token)).expect("a token that the batch lacks") as usize;
    let at = |params: &Params| params.tensors()[embedding].to_host()[unused * 32];
    let (was, is) = (at(&before), at(&trainer.state.params));
    assert_eq!(is, was * (1.0 - rate * 0.5) as f32);
}

#[test]
fn frozen_mtp_stays_as_it_is_and_adds_no_gradient() {
    let mut frozen = trainer(hyper(), Recompute::None);
    frozen.freeze_mtp();
    let mut without = trainer(
        Hyperparameters { mtp_lambda: Switch { early: 0.0, late: 0.0, late_step: 0 }, ..hyper() },
        Recompute::None,
    );
    let before = frozen.state.params.clone();
    for step in 0..4 {
        assert!(frozen.step(&batch(step), 4 * T).unwrap().mtp_losses.is_empty());
        without.step(&batch(step), 4 * T).unwrap();
    }
    let specs = before.specs();
    let mut mtp = 0;
    for (i, spec) in specs.iter().enumerate() {
        let is_mtp = spec.name.starts_with("model.layers.2.");
        mtp += usize::from(is_mtp);
        let values = |params: &Params| params.tensors()[i].to_host().into_owned();
        let expected = values(if is_mtp { &before } else { &without.state.params });
        let got = values(&frozen.state.params);
        assert!(got == expected, "{}", spec.name);
        assert!(is_mtp || got != values(&before), "{} did not move", spec.name);
    }
    assert!(mtp > 10, "{mtp} parameters of MTP");
}

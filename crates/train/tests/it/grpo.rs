//! GRPO against PyTorch (`scripts/oracle/make_grpo.py`) on recorded rollouts, through a whole model: advantages, KL,
//! loss, and the gradients of log-probabilities and of weights.

use serde_json::Value;
use std::path::PathBuf;
use wels_cpu::testing::device;
use wels_device::host::random::Key;
use wels_device::{Coefficient, IGNORE, Tensor};
use wels_model::config::ModelConfig;
use wels_model::model::{Losses, Model, Objective};
use wels_model::names::{ParamKind, Role, hf_tensors};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_train::grpo::{Aggregation, Group, Grpo, Overlong, PolicyBatch, Sample, Scale, Surrogate, advantages};

/// Greatest difference of a vector, as a part of its norm.
const TOLERANCE: f64 = 1e-5;
/// Greatest difference of a mean over tokens, whose terms are about 1.
const MEAN_TOLERANCE: f64 = 1e-6;

pub fn read(file: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/oracle").join(file);
    serde_json::from_str(&std::fs::read_to_string(path).expect(file)).expect("JSON")
}

pub fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().expect("a list").iter().map(|x| x.as_f64().expect("a number")).collect()
}

pub fn ids(value: &Value) -> Vec<u32> {
    numbers(value).into_iter().map(|x| x as u32).collect()
}

fn close(what: &str, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(a, b)| a - b));
    let scale = norm(&mut expected.iter().copied()).max(1e-3);
    assert!(difference <= TOLERANCE * scale, "{what}: {difference:e} of {scale:e}");
}

fn objective(variant: &Value) -> Grpo {
    let number = |key: &str| variant[key].as_f64().expect(key);
    Grpo {
        surrogate: match variant["surrogate"].as_str().expect("surrogate") {
            "token" => Surrogate::Token,
            "sequence" => Surrogate::Sequence,
            _ => Surrogate::Weight,
        },
        scale: match variant["scale"].as_str().expect("scale") {
            "deviation" => Scale::Deviation,
            "sample_deviation" => Scale::SampleDeviation,
            _ => Scale::None,
        },
        aggregation: match variant["aggregation"].as_str().expect("aggregation") {
            "sequence_mean" => Aggregation::SequenceMean,
            "token_mean" => Aggregation::TokenMean,
            _ => Aggregation::Constant(number("length")),
        },
        clip_low: number("clip_low"),
        clip_high: number("clip_high"),
        kl: number("kl"),
        overlong: Overlong::Keep,
    }
}

/// The recorded groups, and the reference's log-probabilities of each answer.
fn recorded(oracle: &Value) -> (Vec<Group>, Vec<Vec<Vec<f32>>>) {
    let mut groups: Vec<Group> = Vec::new();
    let mut references: Vec<Vec<Vec<f32>>> = Vec::new();
    let floats = |value: &Value| numbers(value).into_iter().map(|x| x as f32).collect::<Vec<_>>();
    for sample in oracle["samples"].as_array().expect("samples") {
        let group = sample["group"].as_u64().expect("group") as usize;
        if group == groups.len() {
            groups.push(Group { prompt: ids(&sample["prompt"]), samples: Vec::new() });
            references.push(Vec::new());
        }
        groups[group].samples.push(Sample {
            tokens: ids(&sample["answer"]),
            logprobs: floats(&sample["logprobs"]),
            given: Vec::new(),
            truncated: false,
            reward: sample["reward"].as_f64().expect("reward"),
        });
        references[group].push(floats(&sample["reference"]));
    }
    (groups, references)
}

/// The oracle model of this name.
pub fn model(name: &str) -> (Model, Params) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../model/tests/oracle/{name}/config.json"));
    let (config, _) = ModelConfig::from_hf_json(&std::fs::read_to_string(path).expect("config.json")).expect("valid");
    let mut params = Params::zeros(&device(), &config);
    for tensor in hf_tensors(&config).iter().filter(|tensor| tensor.role == Role::Own) {
        params.set_rows(tensor.param, tensor.first_row, &weight(&tensor.name, &tensor.shape));
    }
    (Model::new(config, 64), params)
}

#[test]
fn advantages_kl_loss_and_gradients_are_pytorchs() {
    let oracle = read("grpo.json");
    let (groups, references) = recorded(&oracle);
    let (model, params) = model("deepseek_v3_no_q_lora");
    let variants = oracle["variants"].as_array().expect("variants");
    assert_eq!(variants.len(), 10);
    for variant in variants {
        let name = variant["name"].as_str().expect("name");
        let grpo = objective(variant);
        let mut live = Vec::new();
        for (g, expected) in variant["advantages"].as_array().expect("advantages").iter().enumerate() {
            let rewards: Vec<f64> = groups[g].samples.iter().map(|sample| sample.reward).collect();
            match advantages(&rewards, grpo.scale) {
                None => assert!(expected.is_null(), "{name}: group {g}"),
                Some(got) => {
                    close(&format!("{name}: advantages of group {g}"), &got, &numbers(expected));
                    live.extend(&references[g]);
                }
            }
        }
        let (mut batches, dead) = PolicyBatch::of(&groups, &grpo, 1, Key { seed: 0, stream: 0 }).unwrap();
        assert_eq!((batches.len(), dead), (1, 1));
        let mut policy = batches.remove(0);
        let mut reference = policy.batch.targets.iter().map(|_| 0.0).collect::<Vec<f32>>();
        let rows = policy.batch.targets.iter().enumerate().filter(|(_, target)| **target != IGNORE);
        let rows: Vec<usize> = rows.map(|(row, _)| row).collect();
        rows.iter().zip(live.into_iter().flatten()).for_each(|(row, logp)| reference[*row] = *logp);
        policy.set_reference(&reference);

        let mut grads = model.grads(&device());
        grads.begin();
        let execution = Execution::new(device());
        // Objectives of more than a token's own log-probability need those of the whole batch before.
        let each = policy.coefficients(&model.logprobs(&params, &execution, &policy.batch));
        assert_eq!(each.is_none(), grpo.surrogate == Surrogate::Token);
        let coefficient = each.as_deref().map_or_else(|| policy.coefficient(), Coefficient::PerToken);
        let objective = Objective {
            coefficient,
            mtp_coefficient: 0.0,
            balance_coefficient: 0.0,
            indexer_coefficient: 0.0,
            teacher: None,
        };
        let mut losses = Losses::default();
        let logprobs = model.accumulate(&params, &mut grads, &execution, &policy.batch, &objective, &mut losses);
        grads.finish();

        let report = policy.report(&logprobs);
        let number = |key: &str| variant[key].as_f64().expect(key);
        let k3 = if grpo.kl == 0.0 { 0.0 } else { number("k3") };
        for (what, got, expected) in [("loss", report.loss, number("loss")), ("k3", report.kl, k3)] {
            assert!((got - expected).abs() <= MEAN_TOLERANCE, "{name}: {what} {got} instead of {expected}");
        }
        assert!(report.clipped_high + report.clipped_low <= number("outside") + TOLERANCE, "{name}: {report:?}");
        let token_gradients = variant["token_gradients"].as_array().expect("token_gradients").iter();
        let token_gradients: Vec<f64> = token_gradients.flat_map(numbers).collect();
        let got: Vec<f64> = rows.iter().map(|&row| -f64::from(coefficient.at(row, logprobs[row]))).collect();
        close(&format!("{name}: gradients of log-probabilities"), &got, &token_gradients);
        compare_weights(name, variant, model.config(), grads.values());
    }
}

pub fn compare_weights(name: &str, variant: &Value, config: &ModelConfig, grads: &[Tensor]) {
    let specs = wels_model::names::param_specs(config);
    let mut whole = 0;
    for tensor in hf_tensors(config).iter().filter(|tensor| tensor.role == Role::Own) {
        let spec = &specs[tensor.param];
        if spec.kind == ParamKind::RouterBias {
            continue;
        }
        let (from, to) = (tensor.first_row * spec.cols, (tensor.first_row + tensor.rows) * spec.cols);
        let got: Vec<f64> = grads[tensor.param].to_host()[from..to].iter().map(|x| f64::from(*x)).collect();
        let norm = got.iter().map(|x| x * x).sum::<f64>().sqrt();
        let product: f64 = (0..).zip(&got).map(|(i, x)| x * uniform(&tensor.name, i)).sum();
        let expected = numbers(&variant["gradients"][&tensor.name]);
        let scale = expected[0].max(1e-4);
        let difference = (norm - expected[0]).abs().max((product - expected[1]).abs());
        assert!(difference <= TOLERANCE * scale, "{name}: gradient of {}: {difference:e} of {scale:e}", tensor.name);
        if let Some(expected) = variant["whole"].get(&tensor.name) {
            close(&format!("{name}: gradient of {}", tensor.name), &got, &numbers(expected));
            whole += 1;
        }
    }
    assert!(whole > 0 && Some(whole) == variant["whole"].as_object().map(|tensors| tensors.len()));
}

/// A number in [−1, 1): see scripts/oracle/weights.py.
fn uniform(name: &str, i: u64) -> f64 {
    let hash = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let z = hash.wrapping_add(i).wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    2.0 * (((z ^ (z >> 31)) >> 40) as f64 / f64::from(1 << 24)) - 1.0
}

/// The tensor with this name and shape: see scripts/oracle/weights.py.
fn weight(name: &str, shape: &[usize]) -> Vec<f32> {
    let (offset, scale) = match name {
        _ if name.ends_with("e_score_correction_bias") => (0.0, 0.02),
        _ if name.ends_with("embed_tokens.weight") => (0.0, 1.0),
        _ if shape.len() == 1 => (1.0, 0.1),
        _ => (0.0, (3.0 / shape[1] as f64).sqrt()),
    };
    (0..shape.iter().product::<usize>() as u64).map(|i| (offset + scale * uniform(name, i)) as f32).collect()
}

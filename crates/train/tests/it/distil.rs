//! Distillation against PyTorch (`scripts/oracle/make_distil.py`), from a mixture of experts to a dense model of
//! another width; micro-batches, answers at a time and a new process change no bit; a student becomes like its teacher.

use wels_cpu::testing::device;
use wels_device::host::random::Key;
use wels_device::{Coefficient, Divergence};
use wels_model::config::ModelConfig;
use wels_model::model::{Losses, Model, Objective, Teacher};
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_train::distil::{OwnOptions, OwnReport, learn, sample, step};
use wels_train::example::{Example, pack};
use wels_train::rl::{Prompter, RlError};
use wels_train::rollout::RolloutOptions;
use wels_train::trainer::{StepError, StepReport, Trainer};

use crate::grpo::{compare_weights, ids, model, read};
use crate::rl::{self, Even, bits, tokenizer, trainer};

/// Greatest difference of a mean over tokens, as a part of it.
const TOLERANCE: f64 = 1e-5;

#[test]
fn divergence_loss_and_gradients_are_pytorchs() {
    let oracle = read("distil.json");
    let example = |it: &serde_json::Value| Example::answer(&ids(&it["prompt"]), &ids(&it["answer"]));
    let examples: Vec<Example> = oracle["examples"].as_array().expect("examples").iter().map(example).collect();
    let batch = pack(&examples);
    let targets: usize = examples.iter().map(|it| it.learn.iter().filter(|learn| **learn).count()).sum();
    let (teacher, teacher_params) = model(oracle["teacher"].as_str().expect("teacher"));
    let (student, params) = model(oracle["student"].as_str().expect("student"));
    assert_ne!(teacher.config().hidden_size, student.config().hidden_size);
    let variants = oracle["variants"].as_array().expect("variants");
    assert_eq!(variants.len(), 5);
    for variant in variants {
        let number = |key: &str| variant[key].as_f64().expect(key);
        let name = variant["divergence"].as_str().expect("divergence");
        let teacher = Teacher {
            model: &teacher,
            params: &teacher_params,
            divergence: if name == "forward_kl" { Divergence::Forward } else { Divergence::Reverse },
            temperature: number("temperature") as f32,
            cross_entropy: number("cross_entropy") as f32,
        };
        let mut grads = student.grads(&device());
        grads.begin();
        let coefficient = 1.0 / targets as f32;
        let objective = Objective {
            coefficient: Coefficient::Uniform(coefficient),
            mtp_coefficient: 0.0,
            balance_coefficient: 0.0,
            indexer_coefficient: 0.0,
            teacher: Some(teacher),
        };
        let mut losses = Losses::default();
        student.accumulate(&params, &mut grads, &Execution::new(device()), &batch, &objective, &mut losses);
        grads.finish();
        assert_eq!(losses.main.tokens as usize, targets);
        for (what, got) in [("kl", losses.divergence / targets as f64), ("nll", losses.main.mean())] {
            let expected = number(what);
            assert!((got - expected).abs() <= TOLERANCE * expected, "{name}: {what} {got} instead of {expected}");
        }
        let case = format!("{name} τ={} a={}", teacher.temperature, teacher.cross_entropy);
        compare_weights(&case, variant, student.config(), grads.values());
    }
}

/// A dense model with the vocabulary of the students of `rl.rs`.
pub fn teacher_model() -> (Model, Params) {
    let json = r#"{"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 1, "intermediate_size": 40,
        "num_attention_heads": 2, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "vocab_size": 300,
        "max_position_embeddings": 48, "rope_theta": 10000.0, "tie_word_embeddings": false, "bos_token_id": 0,
        "eos_token_id": 1, "initializer_range": 0.3}"#;
    let config = ModelConfig::from_hf_json(json).unwrap().0;
    let params = Params::init(&device(), &config, 3);
    (Model::new(config, 48), params)
}

fn options(running: usize, micro_rows: usize) -> OwnOptions {
    let rollout = RolloutOptions { running, samples: 2, ..rl::options(running).rollout };
    OwnOptions { prompts: 6, rollout, mini_batches: 3, micro_rows }
}

/// So many steps from the beginning on the student's own answers.
fn run(student: &mut Trainer, options: &OwnOptions, steps: std::ops::Range<u64>) -> Vec<OwnReport> {
    let (model, params) = teacher_model();
    let teacher = Teacher {
        model: &model,
        params: &params,
        divergence: Divergence::Reverse,
        temperature: 1.0,
        cross_entropy: 0.0,
    };
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let step = |step: u64| {
        let first = step * options.prompts as u64;
        let answered = sample(student, &Even, &prompter, options, 5, first, &mut |_, _| {}).unwrap();
        learn(student, &teacher, &answered, options, Key { seed: 5, stream: step }).unwrap()
    };
    steps.map(step).collect()
}

#[test]
fn steps_on_own_answers_are_functions_of_seed_and_state() {
    let mut whole = trainer();
    let reports = run(&mut whole, &options(16, 64), 0..4);
    for report in &reports {
        assert_eq!((report.updates.len(), report.logprob_difference_max), (3, 0.0));
        assert!(report.sampled_tokens > 0 && report.mean(|update| update.divergence) > 0.0, "{report:?}");
    }
    let mut split = trainer();
    let mut again = run(&mut split, &options(3, 17), 0..2);
    again.extend(run(&mut split, &options(5, 1), 2..4));
    assert!(again == reports);
    assert!(bits(&split) == bits(&whole));
}

#[test]
fn a_sampler_that_is_off_by_one_bit_stops_the_step() {
    let mut student = trainer();
    let (model, params) = teacher_model();
    let teacher = Teacher {
        model: &model,
        params: &params,
        divergence: Divergence::Forward,
        temperature: 1.0,
        cross_entropy: 0.0,
    };
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let options = options(16, 64);
    let mut answered = sample(&student, &Even, &prompter, &options, 5, 0, &mut |_, _| {}).unwrap();
    for it in answered.iter_mut().flat_map(|group| &mut group.answers) {
        it.answer.logprobs[0] = f32::from_bits(it.answer.logprobs[0].to_bits() + 1);
    }
    let before = bits(&student);
    let error = learn(&mut student, &teacher, &answered, &options, Key { seed: 5, stream: 0 }).unwrap_err();
    assert!(matches!(error, RlError::Mismatch { difference } if difference > 0.0 && difference < 1e-5), "{error}");
    assert!(bits(&student) == before);
}

/// Sequences of the student's vocabulary, the first half of each a prompt.
fn given() -> Vec<Example> {
    let key = Key { seed: 2, stream: 9 };
    let sequence = |s: u64| (0..16).map(move |t| key.below_at(16 * s + t, 300) as u32).collect::<Vec<u32>>();
    (0..6).map(|s| Example::answer(&sequence(s)[..8], &sequence(s)[8..])).collect()
}

#[test]
fn a_student_becomes_like_its_teacher_whatever_the_micro_batches() {
    let (model, params) = teacher_model();
    let batch = pack(&given());
    for divergence in [Divergence::Forward, Divergence::Reverse] {
        let teacher = Teacher { model: &model, params: &params, divergence, temperature: 2.0, cross_entropy: 0.1 };
        let learn = |micro_rows: usize| {
            let mut student = trainer();
            let steps: Vec<StepReport> =
                (0..60).map(|_| step(&mut student, &teacher, &batch, micro_rows).unwrap()).collect();
            (bits(&student), steps)
        };
        let (weights, steps) = learn(1000);
        let (first, last) = (steps[0].divergence, steps[59].divergence);
        // The share of the cross-entropy keeps it away from 0.
        assert!(last < first / 2.0, "{divergence:?}: from {first} to {last}");
        let (again, others) = learn(20);
        assert!(again == weights && others == steps, "{divergence:?}: micro-batches change bits");
    }
}

#[test]
fn a_teacher_that_is_not_finite_is_named() {
    let (model, mut params) = teacher_model();
    params.tensor_mut(2).set(5, &[f32::NAN]);
    let teacher = Teacher {
        model: &model,
        params: &params,
        divergence: Divergence::Forward,
        temperature: 1.0,
        cross_entropy: 0.0,
    };
    let mut student = trainer();
    let before = bits(&student);
    let failure = step(&mut student, &teacher, &pack(&given()), 64).unwrap_err();
    let StepError::NonFinite { what: "loss", place, .. } = failure else { panic!("{failure}") };
    assert!(place.starts_with("the teacher's weight model."), "{place}");
    assert!(bits(&student) == before);
}

//! Reinforcement learning on a tiny mixture of experts: rollouts agree with the trainer bit for bit, whatever runs
//! beside them; steps are functions of seed and state; what must not be learnt from is refused.

use std::sync::Arc;

use wels_cpu::testing::device;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, Tokenizer};
use wels_device::host::random::Key;
use wels_model::config::ModelConfig;
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_tasks::{AnswerStyle, Format, Item, Prompt, Reason, Reference, RewardWeights, Task, TaskError, Thinking};
use wels_train::grpo::{Aggregation, Grpo, Overlong, Scale, Surrogate};
use wels_train::muon::Rule;
use wels_train::rl::{Prompter, RlError, RlOptions, RlReport, learn, sample, training_item};
use wels_train::rollout::{Question, RolloutOptions, rollout};
use wels_train::schedule::{Decay, LearningRate, Switch};
use wels_train::trainer::{Hyperparameters, State, Trainer};

const VOCAB: usize = 300;
pub const CONTEXT: usize = 48;

pub fn config() -> ModelConfig {
    let json = r#"{"model_type": "deepseek_v3", "hidden_size": 32, "num_hidden_layers": 2, "first_k_dense_replace": 1,
        "intermediate_size": 48, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 16, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0, "num_attention_heads": 2,
        "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
        "v_head_dim": 16, "vocab_size": 300, "max_position_embeddings": 48, "rope_theta": 10000.0,
        "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.2, "num_nextn_predict_layers": 1}"#;
    ModelConfig::from_hf_json(json).unwrap().0
}

pub fn tokenizer() -> Tokenizer {
    let mut trainer = BpeTrainer::new(VOCAB, SpecialTokens::default()).unwrap();
    trainer.feed(&["the river waits under the old bridge, and the catfish waits in the river"]);
    trainer.train().unwrap()
}

/// Right is an answer whose number of bytes is even: random answers are both.
pub struct Even;

impl Task for Even {
    fn name(&self) -> &str {
        "even"
    }

    fn len(&self) -> Option<u64> {
        Some(7)
    }

    fn item(&self, index: u64) -> Result<Item, TaskError> {
        let prompt = Prompt::Text("the river waits ".repeat(1 + index as usize % 3));
        Ok(Item { id: index.to_string(), prompt, reference: Reference::Expression { numbers: vec![], target: 0 } })
    }

    fn format(&self) -> Format {
        Format { thinking: Thinking::Free, answer: AnswerStyle::Whole }
    }

    fn check(&self, _: &Item, answer: &str) -> Result<Reason, TaskError> {
        Ok(if answer.len().is_multiple_of(2) { Reason::Right } else { Reason::Wrong("odd".into()) })
    }
}

pub fn trainer() -> Trainer {
    trainer_with_shards(1)
}

pub fn trainer_with_shards(gradient_shards: usize) -> Trainer {
    trainer_on(Execution::new(device()), gradient_shards)
}

pub fn trainer_on(execution: Execution, gradient_shards: usize) -> Trainer {
    let rate = 3e-3;
    let hyper = Hyperparameters {
        rule: Rule::AdamW,
        gradient_shards,
        learning_rate: LearningRate {
            peak: rate,
            min: rate,
            steps: 100,
            warmup_steps: 0,
            decay_steps: 0,
            decay: Decay::Linear,
        },
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip_norm: 1.0,
        bias_update_speed: 0.0,
        bias_update_steps: 0,
        balance_alpha: 0.0,
        indexer_weight: 0.0,
        mtp_lambda: Switch { early: 0.0, late: 0.0, late_step: 0 },
    };
    let state = State::new(Params::init(execution.device(), &config(), 11), hyper.rule);
    let mut trainer = Trainer::new(config(), CONTEXT, state, hyper, execution);
    trainer.freeze_mtp();
    trainer
}

pub fn options(running: usize) -> RlOptions {
    RlOptions {
        prompts: 5,
        rollout: RolloutOptions {
            samples: 4,
            max_tokens: 20,
            turns: 8,
            turn_tokens: 20,
            temperature: 1.0,
            stop_tokens: vec![1, 60, 61, 62, 63, 64, 65, 66, 67],
            running,
            precision: wels_device::Precision::F32,
        },
        grpo: Grpo {
            surrogate: Surrogate::Token,
            scale: Scale::Deviation,
            aggregation: Aggregation::TokenMean,
            clip_low: 0.2,
            clip_high: 0.28,
            kl: 0.0,
            overlong: Overlong::Keep,
        },
        weights: RewardWeights { accuracy: 1.0, format: 0.0, language: 0.0 },
        mini_batches: 1,
        rounds: 1,
        micro_rows: 64,
    }
}

pub fn bits(trainer: &Trainer) -> Vec<Vec<u32>> {
    let State { params, m, v, .. } = &trainer.state;
    let tensors = params.tensors().iter().chain(m).chain(v);
    tensors.map(|tensor| tensor.to_host().iter().map(|x| x.to_bits()).collect()).collect()
}

/// So many steps from the beginning.
fn run(trainer: &mut Trainer, options: &RlOptions, steps: std::ops::Range<u64>) -> Vec<RlReport> {
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let reference = Params::init(&device(), &config(), 11);
    let mut first = steps.start * options.prompts as u64;
    let step = |step| {
        let rollout = sample(trainer, &Even, &prompter, options, 5, first, &mut |_, _| {}).unwrap();
        first += rollout.items;
        learn(trainer, Some(&reference), &rollout, options, Key { seed: 5, stream: step }).unwrap()
    };
    steps.map(step).collect()
}

#[test]
fn rollouts_are_the_trainers_log_probabilities_whatever_runs_beside_them() {
    let trainer = trainer();
    let (model, params) = (trainer.model(), Arc::new(trainer.state.params.clone()));
    // Prompts that share pages of the cache, and one that is shorter than a page.
    let long: Vec<u32> = (0..21).map(|i| 100 + 7 * i % 150).collect();
    let prompts = [long.clone(), [&long[..], &[9, 8]].concat(), vec![5, 6, 7], long];
    let question = |(i, prompt): (usize, &Vec<u32>)| Question { prompt: prompt.clone(), seed: i as u64 };
    let questions: Vec<Question> = prompts.iter().enumerate().map(question).collect();
    let answers = |running| rollout(model, &params, &questions, &options(running).rollout, &mut |_, _| {}).unwrap();
    let all = answers(16);
    for running in [1, 3] {
        assert!(answers(running) == all, "{running} at a time");
    }
    let mut lengths = std::collections::BTreeSet::new();
    for (question, answers) in questions.iter().zip(&all) {
        assert!(answers.windows(2).any(|pair| pair[0] != pair[1]), "the answers to a prompt differ");
        for answer in answers {
            lengths.insert(answer.tokens.len());
            let tokens = [&question.prompt[..], &answer.tokens].concat();
            let rows = tokens.len() - 1;
            let batch = wels_model::model::Batch {
                tokens: tokens[..rows].to_vec(),
                targets: tokens[1..].to_vec(),
                starts: vec![0, rows as u32],
            };
            let recomputed = trainer.logprobs(&batch, 64).unwrap();
            assert!(recomputed[question.prompt.len() - 1..] == answer.logprobs);
            let ended = options(1).rollout.stop_tokens.contains(answer.tokens.last().unwrap());
            assert_eq!(answer.truncated, !ended);
            assert!(ended || answer.tokens.len() == 20);
        }
    }
    assert!(lengths.len() > 3, "lengths {lengths:?}");
}

#[test]
fn steps_are_functions_of_seed_and_state() {
    let variants = [
        options(16),
        RlOptions { mini_batches: 3, grpo: Grpo { kl: 0.1, ..options(1).grpo }, ..options(16) },
        RlOptions { rounds: 3, ..options(16) },
    ];
    for options in variants {
        let mut whole = trainer();
        let reports = run(&mut whole, &options, 0..4);
        assert!(reports.iter().all(|report| report.logprob_difference_max == 0.0));
        assert!(reports.iter().any(|report| !report.updates.is_empty()), "nothing was learnt");
        // Another number of answers at a time and other micro-batches, and a new process in the middle.
        let rollout = RolloutOptions { running: 3, ..options.rollout.clone() };
        let other = RlOptions { rollout, micro_rows: 17, ..options.clone() };
        if options.rounds == 1 {
            let mut split = trainer();
            let mut again = run(&mut split, &other, 0..2);
            again.extend(run(&mut split, &other, 2..4));
            assert!(again == reports);
            assert!(bits(&split) == bits(&whole));
        } else {
            let mut again = trainer();
            assert!(run(&mut again, &other, 0..4) == reports);
        }
    }
}

#[test]
fn what_is_sampled_anew_is_in_the_report_and_not_learnt() {
    let (tokenizer, options) = (tokenizer(), RlOptions { rounds: 3, ..options(16) });
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    let mut trainer = trainer();
    // Where nothing is worth anything all rewards are equal.
    let nothing = RewardWeights { accuracy: 0.0, format: 0.0, language: 0.0 };
    let worthless = RlOptions { weights: nothing, ..options.clone() };
    let rollout = sample(&trainer, &Even, &prompter, &worthless, 5, 0, &mut |_, _| {}).unwrap();
    assert_eq!(
        (rollout.answered.len(), rollout.passed_over, rollout.chosen.len()),
        (3 * options.prompts, 3 * options.prompts, 0)
    );
    let report = learn(&mut trainer, None, &rollout, &worthless, Key { seed: 5, stream: 0 }).unwrap();
    assert_eq!((report.reward, report.dead_groups, report.updates.len()), (0.0, 1.0, 0));
    assert!(report.accuracy > 0.0 && report.length > 0.0 && report.entropy > 0.0);
    let rollout = sample(&trainer, &Even, &prompter, &options, 5, 0, &mut |_, _| {}).unwrap();
    assert!(
        rollout.chosen.len() <= options.prompts && rollout.chosen.len() + rollout.passed_over <= rollout.answered.len()
    );
    let mixed = |at: &usize| {
        let right = rollout.answered[*at].answers.iter().filter(|it| it.reward.grade.correct).count();
        0 < right && right < rollout.answered[*at].answers.len()
    };
    assert!(!rollout.chosen.is_empty() && rollout.chosen.iter().all(mixed));
}

#[test]
fn later_mini_batches_leave_the_policy_that_sampled() {
    let options = RlOptions { mini_batches: 4, ..options(16) };
    let reports = run(&mut trainer(), &options, 0..2);
    assert!(reports.iter().all(|report| report.updates.len() == 4));
    assert!(reports[0].policy.logprob_difference_max > 0.0, "the second part is off-policy");
}

#[test]
fn a_sampler_that_is_off_by_one_bit_stops_the_step() {
    let mut trainer = trainer();
    let tokenizer = tokenizer();
    let prompter = Prompter { tokenizer: &tokenizer, template: None };
    for mini_batches in [1, 3] {
        let options = RlOptions { mini_batches, ..options(16) };
        let mut rollout = sample(&trainer, &Even, &prompter, &options, 5, 0, &mut |_, _| {}).unwrap();
        for it in rollout.answered.iter_mut().flat_map(|group| &mut group.answers) {
            it.answer.logprobs[0] = f32::from_bits(it.answer.logprobs[0].to_bits() + 1);
        }
        let before = bits(&trainer);
        let error = learn(&mut trainer, None, &rollout, &options, Key { seed: 5, stream: 0 }).unwrap_err();
        assert!(matches!(error, RlError::Mismatch { difference } if difference > 0.0 && difference < 1e-5), "{error}");
        assert!(bits(&trainer) == before);
    }
}

#[test]
fn every_item_comes_once_a_round() {
    let ids =
        |round: u64| -> Vec<String> { (0..7).map(|n| training_item(&Even, 3, 7 * round + n).unwrap().id).collect() };
    let sorted = |round| {
        let mut ids = ids(round);
        ids.sort();
        ids
    };
    assert_eq!(sorted(0), ["0", "1", "2", "3", "4", "5", "6"]);
    assert_eq!(sorted(0), sorted(1));
    assert_ne!(ids(0), ids(1));
}

//! Training of a Janus model: the same bits however it is split, what is learnt, and what rewards do.

use wels_cpu::naive::Naive;
use wels_device::host::random::Key;
use wels_kernels::par;
use wels_model::config::{Attention, ModelConfig};
use wels_model::generate::Sampling;
use wels_model::janus::config::{JanusConfig, VisionConfig, VqConfig};
use wels_model::janus::network::{self, Sight, Weighted};
use wels_model::janus::{DrawPrompt, draw_all};
use wels_model::presets;
use wels_model::schedule::{Decay, LearningRate, Switch};
use wels_model::tape::Execution;
use wels_train::example::Example;
use wels_train::grpo::{Aggregation, Grpo, Overlong, Scale, Surrogate};
use wels_train::janus::policy::{self, PictureError, PictureOptions};
use wels_train::janus::trainer::is_language;
use wels_train::janus::{JanusExample, JanusTrainer, Weights, pack};
use wels_train::muon::Rule;
use wels_train::trainer::{Hyperparameters, State, StepError};

const CODES: usize = 11;
const GRID: usize = 3;
const SEEN: usize = 5;
const CONTEXT: usize = 32;

fn config() -> JanusConfig {
    let preset = presets::preset("smollm2-135m").expect("a preset");
    let attention = Attention::gqa(4, 2, 8);
    let text = ModelConfig { layers: 2, hidden_size: 32, vocab_size: 20, dense_intermediate: 48, ..preset };
    let softmax_scale = 1.0 / (attention.qk_dim() as f32).sqrt();
    JanusConfig {
        text: ModelConfig { softmax_scale, attention, tied_head: false, init_std: 0.1, ..text },
        vision: VisionConfig {
            hidden_size: SEEN,
            layers: 0,
            heads: 1,
            channels: 3,
            image_size: 4,
            patch_size: 2,
            intermediate: 1,
            norm_eps: 1e-6,
            qkv_bias: true,
            aligner_layers: 2,
        },
        vq: VqConfig {
            code_dim: 4,
            codes: CODES,
            latent_channels: 1,
            in_channels: 3,
            out_channels: 3,
            base_channels: 32,
            multipliers: vec![1],
            res_blocks: 0,
            grid: GRID,
            aligner_layers: 2,
            head_width: 32,
        },
        image_token_id: 0,
    }
}

/// With a tower of a layer, in whose place [`SEEN`] numbers a patch stand otherwise.
fn config_with_tower() -> JanusConfig {
    let config = config();
    let vision = VisionConfig { hidden_size: 8, layers: 1, heads: 2, intermediate: 16, ..config.vision };
    JanusConfig { vision, ..config }
}

/// Numbers of a patch's pixels.
const PIXELS: usize = 3 * 2 * 2;

const MUON: Rule = Rule::Muon { momentum: 0.95 };

fn hyperparameters(rule: Rule) -> Hyperparameters {
    let decay = Decay::Linear;
    Hyperparameters {
        learning_rate: LearningRate { peak: 1e-2, min: 1e-2, steps: 1000, warmup_steps: 1, decay_steps: 0, decay },
        rule,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.01,
        clip_norm: 1.0,
        bias_update_speed: 0.0,
        bias_update_steps: 0,
        balance_alpha: 0.0,
        indexer_weight: 0.0,
        mtp_lambda: Switch { early: 0.0, late: 0.0, late_step: 0 },
        gradient_shards: 1,
    }
}

fn trainer(execution: Execution) -> JanusTrainer {
    trainer_of(Sight::States, Rule::AdamW, execution)
}

fn trainer_of(sight: Sight, rule: Rule, execution: Execution) -> JanusTrainer {
    let config = if sight == Sight::Patches { config_with_tower() } else { config() };
    let state = State::new(network::init(execution.device(), &config, sight, 3), rule);
    JanusTrainer::new(config, sight, CONTEXT, state, hyperparameters(rule), execution)
}

/// The picture that a caption of two tokens stands for.
fn picture(first: u32, second: u32) -> Vec<u32> {
    (0..(GRID * GRID) as u32).map(|place| (first + place * second) % CODES as u32).collect()
}

/// Pictures to draw, answers about what is seen, and text.
fn examples(n: u64) -> Vec<JanusExample> {
    examples_of(n, SEEN)
}

/// Of as many numbers a patch.
fn examples_of(n: u64, width: usize) -> Vec<JanusExample> {
    let key = Key { seed: 5, stream: n };
    let one = |i: u64| {
        let [a, b] = [0, 1].map(|j| 3 + key.below_at(2 * i + j, 4) as u32);
        let seen = (0..4 * width).map(|place| f32::from(u8::from(place % width == a as usize - 3))).collect();
        match i % 4 {
            0 => JanusExample::Text(Example::answer(&[1, a, b], &[b, a, b])),
            1 => JanusExample::See { before: vec![1], seen, rows: 4, talk: Example::answer(&[8], &[a]) },
            _ => JanusExample::Draw { prompt: vec![1, a, b, 2], codes: picture(a, b) },
        }
    };
    (0..16).map(one).collect()
}

/// The bits of all weights after three steps, and the losses.
fn three_steps(sight: Sight, rule: Rule, execution: Execution, micro_rows: usize) -> (Vec<u32>, Vec<String>) {
    let mut trainer = trainer_of(sight, rule, execution);
    let width = if sight == Sight::Patches { PIXELS } else { SEEN };
    let step = |n| {
        let weights = Weights { text: 0.5, codes: 1.0 };
        let report = trainer.step(&pack(&examples_of(n, width)), micro_rows, weights).expect("a step");
        format!("{report:?}")
    };
    let reports = (0..3).map(step).collect();
    let weights = trainer.state.params.tensors().iter().flat_map(|tensor| tensor.to_host().into_owned());
    (weights.map(f32::to_bits).collect(), reports)
}

#[test]
fn micro_batches_threads_and_devices_change_no_bit() {
    let mut seen = Vec::new();
    for (sight, rule) in [(Sight::States, Rule::AdamW), (Sight::Patches, Rule::AdamW), (Sight::Patches, MUON)] {
        let steps = |rows| three_steps(sight, rule, Execution::new(wels_cpu::device()), rows);
        let expected = steps(10_000);
        for (threads, rows) in [(1, 1), (2, 40), (3, 100)] {
            let found = par::with_threads(threads, || steps(rows));
            let what = format!("{sight:?} by {rule:?}, {threads} threads, {rows} rows");
            assert!(found == expected, "{what}: {:?} for {:?}", found.1, expected.1);
        }
        assert!(three_steps(sight, rule, Execution::new(Naive::new()), 60) == expected, "plain loops, {rule:?}");
        assert!(!seen.contains(&expected), "{sight:?} by {rule:?} is like another");
        seen.push(expected);
    }
}

#[test]
fn a_network_with_the_tower_learns_from_pixels() {
    for rule in [Rule::AdamW, MUON] {
        let mut trainer = trainer_of(Sight::Patches, rule, Execution::new(wels_cpu::device()));
        let before = trainer.state.params.clone();
        let mut step = |n| trainer.step(&pack(&examples_of(n, PIXELS)), 10_000, Weights::default()).expect("a step");
        let first = step(0);
        let last = (1..200).map(&mut step).last().expect("steps");
        assert!(first.text.mean() > 2.0 && last.text.mean() < 0.2, "{rule:?}: {:?} to {:?}", first.text, last.text);
        for ((spec, before), after) in before.specs().iter().zip(before.tensors()).zip(trainer.state.params.tensors()) {
            assert!(before.to_host() != after.to_host(), "{} has learnt nothing", spec.name);
        }
    }
}

#[test]
fn a_frozen_tower_stays_and_the_rest_learns() {
    let mut trainer = trainer_of(Sight::Patches, MUON, Execution::new(wels_cpu::device()));
    let is_tower = |name: &str| name.starts_with("model.vision_model.");
    trainer.freeze(is_tower);
    let before = trainer.state.params.clone();
    trainer.step(&pack(&examples_of(0, PIXELS)), 10_000, Weights::default()).expect("a step");
    for ((spec, before), after) in before.specs().iter().zip(before.tensors()).zip(trainer.state.params.tensors()) {
        assert_eq!(before.to_host() == after.to_host(), is_tower(&spec.name), "{}", spec.name);
    }
}

#[test]
fn all_three_sorts_are_learnt_together() {
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let mut step = |n| trainer.step(&pack(&examples(n)), 10_000, Weights::default()).expect("a step");
    let first = step(0);
    let last = (1..300).map(step).last().expect("steps");
    assert_eq!((last.step, last.text.tokens, last.codes.tokens), (300, 16, 72));
    assert!(first.codes.mean() > 2.0 && last.codes.mean() < 0.05, "codes: {:?} to {:?}", first.codes, last.codes);
    assert!(first.text.mean() > 2.0 && last.text.mean() < 0.1, "text: {:?} to {:?}", first.text, last.text);
    let text = [1, 5, 6, 2];
    let prompt = DrawPrompt { tokens: &text, unconditional: &[], guidance: 1.0 };
    let painter = Weighted { network: trainer.network(), params: &trainer.state.params };
    let drawn = draw_all(&painter, trainer.execution(), &[(prompt, vec![Sampling::Greedy])]).expect("drawn");
    assert_eq!(drawn[0][0].codes, picture(5, 6));
}

#[test]
fn what_is_frozen_stays() {
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let text = config().text;
    trainer.freeze(|name| is_language(&text, name));
    let before = trainer.state.params.clone();
    trainer.step(&pack(&examples(0)), 10_000, Weights::default()).expect("a step");
    let after = &trainer.state.params;
    for ((spec, before), after) in before.specs().iter().zip(before.tensors()).zip(after.tensors()) {
        let same = before.to_host() == after.to_host();
        assert_eq!(same, is_language(&text, &spec.name), "{}", spec.name);
    }
}

#[test]
fn a_loss_that_is_no_number_changes_no_weight() {
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let param = trainer.state.params.position(network::CODE_HEAD).expect("the head of codes");
    trainer.state.params.tensor_mut(param).set(0, &[f32::NAN]);
    let error = trainer.step(&pack(&examples(0)), 10_000, Weights::default()).expect_err("an error");
    let place = format!("weight {}", network::CODE_HEAD);
    assert_eq!(error, StepError::NonFinite { what: "loss", step: 1, place });
    assert_eq!(trainer.state.step, 0);
}

fn options(kl: f64, mini_batches: usize) -> PictureOptions {
    let aggregation = Aggregation::TokenMean;
    let grpo = Grpo {
        surrogate: Surrogate::Token,
        scale: Scale::Deviation,
        aggregation,
        clip_low: 0.2,
        clip_high: 0.2,
        kl,
        overlong: Overlong::Keep,
    };
    PictureOptions { pictures: 8, grpo, mini_batches, micro_rows: 200, seed: 9 }
}

/// The share of codes that are the first token of the prompt.
fn share(prompts: &[Vec<u32>]) -> impl Fn(usize, &[u32]) -> f64 {
    |prompt, codes| codes.iter().filter(|code| **code == prompts[prompt][1]).count() as f64 / codes.len() as f64
}

#[test]
fn rewarded_pictures_become_likelier() {
    let prompts: Vec<Vec<u32>> = (3..7).map(|token| vec![1, token, 2]).collect();
    let run = |micro_rows| {
        let mut trainer = trainer(Execution::new(wels_cpu::device()));
        let options = PictureOptions { micro_rows, ..options(0.0, 1) };
        let step = |_| policy::step(&mut trainer, &prompts, share(&prompts), None, &options).expect("a step").0;
        (0..25).map(step).collect::<Vec<_>>()
    };
    let reports = run(200);
    assert!(reports.iter().all(|report| report.policy.logprob_difference_max == 0.0 && report.updates == 1));
    let mean = |reports: &[policy::PictureReport]| reports.iter().map(|it| it.reward).sum::<f64>() / 5.0;
    let (first, last) = (mean(&reports[..5]), mean(&reports[20..]));
    assert!(first < 0.3 && last > first + 0.25, "rewards {first} to {last}");
    assert_eq!(run(30), reports, "other micro-batches");
}

/// How far the codes of a picture have come from their likelihoods under a reference, in nats, after ten steps.
fn drift(kl: f64) -> f64 {
    let prompts = vec![vec![1, 4, 2], vec![1, 5, 2]];
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let reference = trainer.state.params.clone();
    for _ in 0..10 {
        let reward = share(&prompts);
        policy::step(&mut trainer, &prompts, reward, Some(&reference), &options(kl, 2)).expect("a step");
    }
    let batch = pack(&examples(0));
    let [now, before] =
        [&trainer.state.params, &reference].map(|params| trainer.logprobs_of(params, &batch, 100).codes);
    now.iter().zip(&before).map(|(now, before)| f64::from((now - before).abs())).sum::<f64>() / now.len() as f64
}

#[test]
fn a_reference_holds_the_policy_back() {
    let (free, held) = (drift(0.0), drift(1.0));
    assert!(free > 0.2 && held < 0.7 * free, "{free} nats free, {held} held");
}

#[test]
fn a_reward_that_is_no_number_changes_no_weight() {
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let error = policy::step(&mut trainer, &[vec![1, 4, 2]], |_, _| f64::NAN, None, &options(0.0, 1));
    let error = error.map(drop).expect_err("an error");
    assert!(matches!(error, PictureError::Reward(_)), "{error}");
    assert_eq!(trainer.state.step, 0);
}

#[test]
fn a_prompt_that_nothing_can_be_drawn_after_is_an_error() {
    let mut trainer = trainer(Execution::new(wels_cpu::device()));
    let mut refused = |prompt: Vec<u32>| {
        let prompts = [vec![1, 4, 2], prompt];
        policy::step(&mut trainer, &prompts, |_, _| 0.0, None, &options(0.0, 1)).map(drop).expect_err("an error")
    };
    assert_eq!(refused(vec![]).to_string(), "there are no tokens");
    assert_eq!(refused(vec![20]).to_string(), "token 20, where there are 20");
    assert_eq!(refused(vec![1; 30]).to_string(), "39 tokens, more than the context of 32");
    assert_eq!(trainer.state.step, 0);
}

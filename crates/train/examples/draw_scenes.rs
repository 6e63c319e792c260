//! A small Janus model learns captions → pictures of `grid-24`, and answers about them, and draws; what it draws is
//! graded exactly. The code of a patch of 4 × 4 pixels is its number among those that scenes have, so that codes lose
//! nothing; what is seen are the pixels of the patches.
//!
//! ```text
//! cargo run --release -p wels-train --example draw_scenes -- [STEPS] [STEPS OF GRPO] [LEARNING RATE]
//! ```

use std::collections::BTreeMap;
use std::time::Instant;

use wels_device::host::random::Key;
use wels_model::config::{Attention, ModelConfig};
use wels_model::generate::Sampling;
use wels_model::janus::batch::JanusBatch;
use wels_model::janus::config::{JanusConfig, VisionConfig, VqConfig};
use wels_model::janus::network::{self, Sight, Weighted};
use wels_model::janus::{DrawPrompt, draw_all};
use wels_model::presets;
use wels_model::schedule::{Decay, LearningRate, Switch};
use wels_model::tape::Execution;
use wels_scenes::{Kind, Rgb, Scene, Spec, Split, World, grade};
use wels_train::grpo::{Aggregation, Grpo, Overlong, Scale};
use wels_train::janus::policy::{self, PictureOptions};
use wels_train::janus::{JanusExample, JanusTrainer, Weights, pack, without_captions};
use wels_train::muon::Rule;
use wels_train::trainer::{Hyperparameters, State};

/// Side of a patch, in pixels, and patches on a side of a picture.
const PATCH: usize = 4;
const GRID: usize = 6;
const WIDTH: usize = 128;
const SEED: u64 = 1;
/// Scenes of a step: as many pictures to draw, and a question about each of the first so many.
const DRAWN: u64 = 64;
const ASKED: usize = 16;
/// Captions of a kind and split that are graded.
const GRADED: u64 = 60;
const PROMPTS: u64 = 16;
const RULE: Rule = Rule::Muon { momentum: 0.95 };
/// Of training, in that order.
const KINDS: [Kind; 10] = [
    Kind::Single,
    Kind::Colours,
    Kind::Two,
    Kind::Two,
    Kind::Counting,
    Kind::Counting,
    Kind::Position,
    Kind::Position,
    Kind::Attributes,
    Kind::Attributes,
];

/// Tokens that are no words.
const PADDING: u32 = 0;
const BEGIN: u32 = 1;
const DRAW: u32 = 2;
const FIRST_WORD: u32 = 3;

/// A world with the numbers of its words and patches.
struct Codes {
    world: World,
    words: BTreeMap<&'static str, u32>,
    numbers: BTreeMap<Vec<u8>, u32>,
    patches: Vec<Vec<u8>>,
}

impl Codes {
    /// The patches of so many scenes of each kind.
    fn new(scenes: u64) -> Codes {
        let world = World::named("grid-24").expect("a world");
        let mut patches = std::collections::BTreeSet::new();
        for (kind, number) in Kind::ALL.into_iter().flat_map(|kind| (0..scenes).map(move |number| (kind, number))) {
            patches.extend(cut(&world.scene(Split::Train, kind, 77, number).picture));
        }
        let patches: Vec<Vec<u8>> = patches.into_iter().collect();
        Codes {
            words: world.words().into_iter().zip(FIRST_WORD..).collect(),
            numbers: patches.iter().cloned().zip(0..).collect(),
            patches,
            world,
        }
    }

    fn tokens(&self, text: &str) -> Vec<u32> {
        text.split(' ').map(|word| *self.words.get(word).unwrap_or_else(|| panic!("the word {word}"))).collect()
    }

    fn prompt(&self, caption: &str) -> Vec<u32> {
        [vec![BEGIN], self.tokens(caption), vec![DRAW]].concat()
    }

    /// None where a patch is of none of the scenes.
    fn codes(&self, picture: &Rgb) -> Option<Vec<u32>> {
        cut(picture).iter().map(|patch| self.numbers.get(patch).copied()).collect()
    }

    fn picture(&self, codes: &[u32]) -> Rgb {
        let mut picture = Rgb::filled(GRID * PATCH, GRID * PATCH, [0; 3]);
        for (place, code) in codes.iter().enumerate() {
            for (pixel, colour) in self.patches[*code as usize].as_chunks::<3>().0.iter().enumerate() {
                let (x, y) = (place % GRID * PATCH + pixel % PATCH, place / GRID * PATCH + pixel / PATCH);
                picture.set(x, y, *colour);
            }
        }
        picture
    }

    fn scene(&self, split: Split, number: u64, seed: u64) -> Scene {
        self.world.scene(split, KINDS[number as usize % KINDS.len()], seed, number / KINDS.len() as u64)
    }

    /// A picture to draw, and a question about it of all that there are.
    fn examples(&self, number: u64) -> [JanusExample; 2] {
        let scene = self.scene(Split::Train, number, SEED);
        let codes = self.codes(&scene.picture).expect("patches of the world");
        let questions = scene.questions(number);
        let question = &questions[Key { seed: SEED, stream: 5 }.below_at(number, questions.len() as u64) as usize];
        let see = JanusExample::See {
            before: vec![BEGIN],
            seen: pixels(&scene.picture),
            rows: GRID * GRID,
            question: self.tokens(&question.text),
            answer: self.tokens(&question.answer),
        };
        [JanusExample::Draw { prompt: self.prompt(&scene.caption), codes }, see]
    }

    fn config(&self) -> JanusConfig {
        let preset = presets::preset("smollm2-135m").expect("a preset");
        let text = ModelConfig { layers: 4, hidden_size: WIDTH, dense_intermediate: 352, ..preset };
        let text = ModelConfig { vocab_size: FIRST_WORD as usize + self.words.len(), tied_head: false, ..text };
        let attention = Attention::gqa(4, 4, WIDTH / 4);
        JanusConfig {
            text: ModelConfig {
                softmax_scale: 1.0 / (attention.qk_dim() as f32).sqrt(),
                attention,
                init_std: 0.04,
                ..text
            },
            vision: VisionConfig {
                hidden_size: 3 * PATCH * PATCH,
                layers: 0,
                heads: 1,
                channels: 3,
                image_size: GRID * PATCH,
                patch_size: PATCH,
                intermediate: 1,
                norm_eps: 1e-6,
                qkv_bias: true,
                aligner_layers: 2,
            },
            vq: VqConfig {
                code_dim: 16,
                codes: self.patches.len(),
                latent_channels: 1,
                in_channels: 3,
                out_channels: 3,
                base_channels: 32,
                multipliers: vec![1, 1, 1],
                res_blocks: 0,
                grid: GRID,
                aligner_layers: 2,
                head_width: WIDTH,
            },
            image_token_id: PADDING,
        }
    }
}

/// Its patches, row by row.
fn cut(picture: &Rgb) -> Vec<Vec<u8>> {
    let patch = |place: usize| {
        let pixel = |i: usize| picture.get(place % GRID * PATCH + i % PATCH, place / GRID * PATCH + i / PATCH);
        (0..PATCH * PATCH).flat_map(pixel).collect()
    };
    (0..GRID * GRID).map(patch).collect()
}

/// The pixels of each patch, from −1 to 1.
fn pixels(picture: &Rgb) -> Vec<f32> {
    cut(picture).concat().into_iter().map(|byte| f32::from(byte) / 127.5 - 1.0).collect()
}

fn hyperparameters(steps: u64, peak: f64) -> Hyperparameters {
    let decay_steps = steps * 2 / 5;
    Hyperparameters {
        learning_rate: LearningRate { peak, min: 0.0, steps, warmup_steps: 40, decay_steps, decay: Decay::Linear },
        rule: RULE,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.0,
        clip_norm: 1.0,
        bias_update_speed: 0.0,
        bias_update_steps: 0,
        balance_alpha: 0.0,
        mtp_lambda: Switch { early: 0.0, late: 0.0, late_step: 0 },
        gradient_shards: 1,
    }
}

/// Percent of drawn pictures that the grader accepts, by kind: of captions of a split, at temperature 1.
fn drawn_right(codes: &Codes, trainer: &JanusTrainer, split: Split) -> (f64, Vec<f64>) {
    let kinds = Kind::ALL.into_iter().filter(|kind| split == Split::Train || *kind != Kind::Single);
    let of_kind = |kind: Kind| {
        let scenes: Vec<Scene> = (0..GRADED).map(|n| codes.world.scene(split, kind, 1000, n)).collect();
        let prompts: Vec<Vec<u32>> = scenes.iter().map(|scene| codes.prompt(&scene.caption)).collect();
        let sampling = |seed| Sampling::Random { temperature: 1.0, top_p: 1.0, seed };
        let prompts: Vec<(DrawPrompt, Vec<Sampling>)> = (0..)
            .zip(&prompts)
            .map(|(seed, tokens)| (DrawPrompt { tokens, unconditional: &[], guidance: 1.0 }, vec![sampling(seed)]))
            .collect();
        let painter = Weighted { network: trainer.network(), params: &trainer.state.params };
        let drawn = draw_all(&painter, trainer.execution(), &prompts).expect("prompts of the world").concat();
        let right = scenes.iter().zip(&drawn).filter(|(scene, drawn)| reward(codes, &scene.spec, &drawn.codes) == 1.0);
        100.0 * right.count() as f64 / GRADED as f64
    };
    let by_kind: Vec<f64> = kinds.map(of_kind).collect();
    (by_kind.iter().sum::<f64>() / by_kind.len() as f64, by_kind)
}

fn reward(codes: &Codes, spec: &Spec, drawn: &[u32]) -> f64 {
    f64::from(u8::from(grade(&codes.world, spec, &codes.picture(drawn)).passes()))
}

/// Percent of questions about scenes of a split whose answer is likelier than all others of the world's answers.
fn answered_right(codes: &Codes, trainer: &JanusTrainer, split: Split) -> f64 {
    let mut asked: Vec<(Vec<f32>, Vec<u32>, Vec<u32>)> = Vec::new();
    for number in 0..200 {
        let scene = codes.scene(split, number, 2000);
        for question in scene.questions(number) {
            asked.push((pixels(&scene.picture), codes.tokens(&question.text), codes.tokens(&question.answer)));
        }
    }
    let mut answers: Vec<Vec<u32>> = asked.iter().map(|(.., answer)| answer.clone()).collect();
    answers.sort();
    answers.dedup();
    let right = asked.iter().take(400).filter(|(seen, question, answer)| {
        let example = |answer: &Vec<u32>| JanusExample::See {
            before: vec![BEGIN],
            seen: seen.clone(),
            rows: GRID * GRID,
            question: question.clone(),
            answer: answer.clone(),
        };
        let batch = pack(&answers.iter().map(example).collect::<Vec<_>>());
        let logprobs = trainer.logprobs_of(&trainer.state.params, &batch, 4096).text;
        let mut rest = &logprobs[..];
        let sums = answers.iter().map(|answer| {
            let (these, others) = rest.split_at(answer.len());
            rest = others;
            these.iter().sum::<f32>()
        });
        let sums: Vec<f32> = sums.collect();
        let best = (0..sums.len()).fold(0, |best, i| if sums[i] > sums[best] { i } else { best });
        answers[best] == *answer
    });
    100.0 * right.count() as f64 / asked.len().min(400) as f64
}

fn report(codes: &Codes, trainer: &JanusTrainer, name: &str, seconds: f64) {
    for split in [Split::Train, Split::HeldOut] {
        let (all, by_kind) = drawn_right(codes, trainer, split);
        let by_kind: Vec<String> = by_kind.iter().map(|percent| format!("{percent:.0}")).collect();
        println!("{name}, {seconds:.0} s, {split:?}: {all:.1}% of pictures right ({})", by_kind.join(" "));
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<f64>().expect("a number"));
    let [steps, of_grpo, peak] = [1400.0, 0.0, 4e-3].map(|default| arguments.next().unwrap_or(default));
    let codes = Codes::new(3000);
    let config = codes.config();
    let execution = Execution::new(wels_cpu::device());
    let params = network::init(execution.device(), &config, Sight::States, SEED);
    let count: usize = params.specs().iter().map(|spec| spec.len()).sum();
    println!("{} patches, {} words, {count} parameters", codes.patches.len(), codes.words.len());

    let steps = steps as u64;
    let hyper = hyperparameters(steps, peak);
    let mut trainer = JanusTrainer::new(config, Sight::States, 96, State::new(params, RULE), hyper, execution);
    let (mut spent, mut next) = (0.0, 0.25);
    for step in 0..steps {
        let started = Instant::now();
        let batch = batch(&codes, step);
        let report_of = trainer.step(&batch, 4096, Weights::default()).expect("a step");
        spent += started.elapsed().as_secs_f64();
        if (step + 1) % 25 == 0 {
            let (codes, text) = (report_of.codes.mean(), report_of.text.mean());
            println!("step {}, {spent:.0} s: {codes:.3} nats a code, {text:.3} a word of an answer", step + 1);
        }
        if (step + 1) as f64 >= next * steps as f64 {
            report(&codes, &trainer, &format!("step {}", step + 1), spent);
            next += 0.25;
        }
    }
    for split in [Split::Train, Split::HeldOut] {
        println!("{split:?}: {:.1}% of questions right", answered_right(&codes, &trainer, split));
    }
    if of_grpo > 0.0 {
        reinforce(&codes, trainer, of_grpo as usize);
    }
}

fn batch(codes: &Codes, step: u64) -> JanusBatch {
    let pairs = (step * DRAWN..(step + 1) * DRAWN).map(|number| codes.examples(number));
    let (mut draw, see): (Vec<_>, Vec<_>) = pairs.map(|[draw, see]| (draw, see)).unzip();
    without_captions(&mut draw, 0.1, PADDING, Key { seed: SEED, stream: 6 }, step * DRAWN);
    pack(draw.iter().chain(&see[..ASKED]))
}

/// GRPO on captions of training, with the grader as reward.
fn reinforce(codes: &Codes, trained: JanusTrainer, steps: usize) {
    let state = State::new(trained.state.params.clone(), RULE);
    let rate =
        LearningRate { peak: 3e-4, min: 3e-4, steps: 1000, warmup_steps: 5, decay_steps: 0, decay: Decay::Linear };
    let hyper = Hyperparameters { learning_rate: rate, clip_norm: 0.5, ..hyperparameters(1000, 3e-4) };
    let mut trainer = JanusTrainer::new(codes.config(), Sight::States, 96, state, hyper, trained.execution().clone());
    let grpo = Grpo {
        scale: Scale::Deviation,
        aggregation: Aggregation::TokenMean,
        clip_low: 0.2,
        clip_high: 0.2,
        kl: 0.0,
        overlong: Overlong::Keep,
    };
    let options = PictureOptions { pictures: 8, grpo, mini_batches: 1, micro_rows: 4096, seed: SEED };
    let (started, mut rewards) = (Instant::now(), Vec::new());
    while rewards.len() < steps {
        let first = rewards.len() as u64 * PROMPTS;
        let scenes: Vec<Scene> = (first..first + PROMPTS).map(|n| codes.scene(Split::Train, n, 3000)).collect();
        let prompts: Vec<Vec<u32>> = scenes.iter().map(|scene| codes.prompt(&scene.caption)).collect();
        let reward = |prompt: usize, drawn: &[u32]| reward(codes, &scenes[prompt].spec, drawn);
        let (report, _) = policy::step(&mut trainer, &prompts, reward, None, &options).expect("a step");
        rewards.push(report.reward);
        if rewards.len() % 10 == 0 {
            let mean = rewards[rewards.len() - 10..].iter().sum::<f64>() / 10.0;
            let seconds = started.elapsed().as_secs_f64();
            println!("GRPO step {}, {seconds:.0} s: reward {mean:.3}, {} dead", rewards.len(), report.dead);
        }
    }
    report(codes, &trainer, &format!("after {} steps of GRPO", rewards.len()), started.elapsed().as_secs_f64());
}

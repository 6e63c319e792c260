//! `wels bench rl`: what a step of GRPO takes, sampling and learning apart, with answers of given length, and how fast
//! the same answers are sampled one at a time.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_kernels::head::IGNORE;
use wels_kernels::random::Key;
use wels_kernels::{isa, par};
use wels_model::count;
use wels_model::model::Model;
use wels_model::params::Params;
use wels_model::tape::Execution;
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::machine;
use wels_train::grpo::{Aggregation, Group, Grpo, Overlong, PolicyBatch, Sample, Scale, Surrogate};
use wels_train::muon::Rule;
use wels_train::rollout::{Answer, Question, RolloutOptions, rollout};
use wels_train::schedule::{Decay, LearningRate, Switch};
use wels_train::trainer::{Hyperparameters, State, Trainer};

use super::made::{self, PrecisionArg};
use crate::device::DeviceArgs;
use crate::model::{load_params, locate, read_config, report};
use crate::output;

/// The objective: DAPO's, without KL.
const GRPO: Grpo = Grpo {
    surrogate: Surrogate::Token,
    scale: Scale::Deviation,
    aggregation: Aggregation::TokenMean,
    clip_low: 0.2,
    clip_high: 0.28,
    kl: 0.0,
    overlong: Overlong::Keep,
};

#[derive(clap::Args)]
pub struct RlArgs {
    #[command(flatten)]
    device: DeviceArgs,
    /// A Hugging Face directory, the directory of a run, a GGUF file, or a recipe (.toml) whose model is made up
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Prompts of a step
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..))]
    prompts: u32,
    /// Answers to each prompt
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(2..))]
    samples: u32,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens of each answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Steps that are timed, after one that is not
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    steps: u32,
    /// Answers that are sampled at the same time
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    running: u32,
    /// Rows that are learnt from at the same time
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..))]
    micro_rows: u32,
    /// Number format of the factors of products
    #[arg(long, value_enum, default_value_t)]
    precision: PrecisionArg,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// What is written. Times are medians over the steps.
#[derive(Serialize)]
struct RlBench {
    model: String,
    parameters: u64,
    isa: &'static str,
    threads: usize,
    prompts: u32,
    samples: u32,
    prompt_tokens: u32,
    answer_tokens: u32,
    steps: u32,
    step_seconds: f64,
    rollout_seconds: f64,
    learn_seconds: f64,
    sampled_tokens_per_second: f64,
    /// Of a few of the answers, sampled one after the other.
    one_at_a_time_tokens_per_second: f64,
    logprob_difference_max: f64,
    peak_rss_bytes: Option<u64>,
}

/// Measures.
pub fn rl(args: &RlArgs) -> Result<()> {
    let made = made::config_of(&args.model)?;
    let (config, files) = match made {
        Some(config) => (config, None),
        None => {
            let location = locate(&args.model)?;
            let (config, notes) = read_config(&location)?;
            report(&notes);
            (config, Some(location))
        }
    };
    let context = (args.prompt + args.tokens) as usize;
    if context > config.rope.max_positions {
        let message = format!("{context} tokens do not fit the model's context of {}", config.rope.max_positions);
        return Err(refuse(message, "give a smaller --prompt or --tokens"));
    }
    let device = args.device.open()?;
    let params = match &files {
        Some(location) => load_params(&device, location, &config)?,
        None => Params::init(&device, &config, 0),
    };
    let state = State::new(params, Rule::AdamW);
    let parameters = count::params(&config).total.0;
    let execution = Execution { precision: args.precision.into(), ..Execution::new(device) };
    let mut trainer = Trainer::new(config, context, state, hyperparameters(), execution);
    trainer.freeze_mtp();
    let mut timed = Vec::new();
    let mut difference: f64 = 0.0;
    for number in 0..=args.steps {
        let step = step(args, &mut trainer, number)?;
        difference = difference.max(step.difference);
        timed.push(step);
    }
    let median = |of: &dyn Fn(&Step) -> f64| {
        let mut seconds: Vec<f64> = timed[1..].iter().map(of).collect(); // the first step also takes memory
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    };
    let (sampling, learning) = (median(&|step| step.sampling), median(&|step| step.learning));
    let tokens = f64::from(args.prompts * args.samples * args.tokens);
    let result = RlBench {
        model: args.model.display().to_string(),
        parameters,
        isa: isa::active().name(),
        threads: par::threads(),
        prompts: args.prompts,
        samples: args.samples,
        prompt_tokens: args.prompt,
        answer_tokens: args.tokens,
        steps: args.steps,
        step_seconds: median(&|step| step.sampling + step.learning),
        rollout_seconds: sampling,
        learn_seconds: learning,
        sampled_tokens_per_second: tokens / sampling,
        one_at_a_time_tokens_per_second: one_at_a_time(args, &trainer)?,
        logprob_difference_max: difference,
        peak_rss_bytes: machine::peak_rss_bytes(),
    };
    if args.json {
        output::json(&result)?
    } else {
        result.print()?
    }
    Ok(())
}

/// A step, in seconds.
struct Step {
    sampling: f64,
    learning: f64,
    /// Greatest |logp sampled − logp recomputed|.
    difference: f64,
}

fn step(args: &RlArgs, trainer: &mut Trainer, number: u32) -> Result<Step> {
    let begin = Instant::now();
    let params = Arc::new(trainer.state.params.clone());
    let questions = questions(args, trainer.model(), number);
    let answers = rollout(trainer.model(), &params, &questions, &options(args), &mut |_, _| {})?;
    drop(params);
    let sampling = begin.elapsed().as_secs_f64();
    let groups: Vec<Group> = questions.into_iter().zip(answers).map(group).collect();
    let (mut parts, _) = PolicyBatch::of(&groups, &GRPO, 1, Key { seed: 0, stream: 0 })?;
    let part = parts.remove(0);
    let pass = trainer.gradients(&part.batch, args.micro_rows as usize, part.coefficient())?;
    let rows = part.sampled_logprobs().zip(&pass.logprobs).zip(&part.batch.targets);
    let differs = rows.filter(|(_, target)| **target != IGNORE).map(|((a, b), _)| f64::from((a - b).abs()));
    let difference = differs.fold(0.0, f64::max);
    let _ = trainer.update(pass)?;
    Ok(Step { sampling, learning: begin.elapsed().as_secs_f64() - sampling, difference })
}

/// Random prompts; no token ends an answer, so all have full length.
fn questions(args: &RlArgs, model: &Model, step: u32) -> Vec<Question> {
    let vocabulary = model.config().vocab_size as u64;
    let prompt = |n: u32| {
        let key = Key { seed: u64::from(step), stream: u64::from(n) };
        let tokens = (0..u64::from(args.prompt)).map(|i| key.below_at(i, vocabulary) as u32).collect();
        Question { prompt: tokens, seed: key.u64_at(u64::from(args.prompt)) }
    };
    (0..args.prompts).map(prompt).collect()
}

fn options(args: &RlArgs) -> RolloutOptions {
    RolloutOptions {
        samples: args.samples as usize,
        max_tokens: args.tokens as usize,
        turns: 1,
        turn_tokens: args.tokens as usize,
        temperature: 1.0,
        stop_tokens: Vec::new(),
        running: args.running as usize,
        precision: args.precision.into(),
    }
}

/// Every second answer is right.
fn group((question, answers): (Question, Vec<Answer>)) -> Group {
    let sample = |(i, it): (usize, Answer)| Sample {
        tokens: it.tokens,
        logprobs: it.logprobs,
        given: it.given,
        truncated: it.truncated,
        reward: (i % 2) as f64,
    };
    Group { prompt: question.prompt, samples: answers.into_iter().enumerate().map(sample).collect() }
}

/// Tokens a second, of the first answers to the first prompt.
fn one_at_a_time(args: &RlArgs, trainer: &Trainer) -> Result<f64> {
    const ANSWERS: usize = 4;
    let params = Arc::new(trainer.state.params.clone());
    let first = questions(args, trainer.model(), 1).swap_remove(0);
    let options = RolloutOptions { samples: ANSWERS, running: 1, ..options(args) };
    let begin = Instant::now();
    rollout(trainer.model(), &params, &[first], &options, &mut |_, _| {})?;
    Ok((ANSWERS * args.tokens as usize) as f64 / begin.elapsed().as_secs_f64())
}

/// A small step that changes the weights as any other.
fn hyperparameters() -> Hyperparameters {
    let rate = 1e-6;
    let (steps, warmup_steps, decay_steps) = (1_000_000, 0, 0);
    Hyperparameters {
        gradient_shards: 1,
        rule: Rule::AdamW,
        learning_rate: LearningRate { peak: rate, min: rate, steps, warmup_steps, decay_steps, decay: Decay::Linear },
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
    }
}

impl RlBench {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!(
            "{}: a step of {} × {} answers of {} tokens takes {:.2} s, {:.0}% of it in rollouts ({} threads, {})",
            self.model,
            self.prompts,
            self.samples,
            self.answer_tokens,
            self.step_seconds,
            100.0 * self.rollout_seconds / (self.rollout_seconds + self.learn_seconds),
            self.threads,
            self.isa,
        ))?;
        output::line(&format!(
            "sampling {} tok/s, one answer at a time {} tok/s: {:.1}×; logp difference {}",
            short(self.sampled_tokens_per_second),
            short(self.one_at_a_time_tokens_per_second),
            self.sampled_tokens_per_second / self.one_at_a_time_tokens_per_second,
            self.logprob_difference_max,
        ))
    }
}

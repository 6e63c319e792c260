//! `wels bench speculation MODEL`: decoding with and without speculation, in turns, at equal answers.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Result, ensure};
use serde::Serialize;
use wels_data::chat::{ChatTemplate, Message, RenderOptions};
use wels_data::tokenizer::Tokenizer;
use wels_engine::{Engine, Event, LoadedModel, Options, Request, Sampling, Speculation, Usage};
use wels_kernels::{isa, par};
use wels_pipeline::refusal::refuse;

use crate::model::{LoadArgs, OpenModel, locate};
use crate::output;

#[derive(clap::Args)]
pub struct SpeculationArgs {
    /// A run, a Hugging Face directory, a .gguf file, or a name: ORG/NAME, r1:1.5b
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// A text to continue; may be given several times
    #[arg(long = "prompt", value_name = "TEXT", default_values = ["use std::", "fn main() {", "/// Returns the"])]
    prompts: Vec<String>,
    /// Take the texts for a user's messages, to be answered
    #[arg(long)]
    chat: bool,
    /// Tokens of each answer
    #[arg(long, default_value_t = 256, value_name = "N")]
    tokens: usize,
    /// 0 for the likeliest token each time
    #[arg(long, default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// The most tokens drafted at a time
    #[arg(long, default_value_t = 4, value_name = "N")]
    max_draft: usize,
    /// Turns; the figures are medians over them
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    #[command(flatten)]
    load: LoadArgs,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// What is written. Rates are of tokens after the first of each answer, all prompts together; medians over the rounds.
#[derive(Serialize)]
struct SpeculationBench {
    drafts_by: &'static str,
    isa: &'static str,
    threads: usize,
    rounds: u64,
    temperature: f32,
    max_draft: usize,
    tokens: usize,
    plain_tokens_per_second: f64,
    tokens_per_second: f64,
    /// Of each round's rates.
    ratio: f64,
    ratio_min: f64,
    ratio_max: f64,
    drafted: usize,
    accepted: usize,
    tokens_per_pass: f64,
}

/// All prompts, one after the other.
struct RoundResult {
    answers: Vec<Vec<u32>>,
    tokens: usize,
    passes: u64,
    seconds: f64,
    drafted: usize,
    accepted: usize,
}

pub fn speculation(args: &SpeculationArgs) -> Result<()> {
    let open = OpenModel::open(&locate(&args.model)?)?;
    let no_tokenizer = || refuse("the model has no tokenizer", "put its tokenizer.json beside it");
    let tokenizer = open.tokenizer.as_ref().ok_or_else(no_tokenizer)?;
    let config = &open.config;
    let prompts = prompts(args, tokenizer)?;
    // A text goes on to its full length, an answer ends.
    let ends = config.eos_ids.iter().copied().chain(tokenizer.special().eos).filter(|_| args.chat).collect();
    let sampling = Sampling { temperature: args.temperature, ..Sampling::default() };
    let request = Request { stop_tokens: ends, sampling, ..Request::new(Vec::new(), args.tokens) };
    let drafts_by = if config.mtp_depth > 0 { "MTP" } else { "lookup" };
    let context = config.rope.max_positions.min(4096);
    let (model, params) = args.load.take(&open, context, 2 * Options::default().cache_bytes)?; // two engines
    let whole = args.load.options(params.placement(), config);
    let loaded = LoadedModel { model: Arc::new(model), params: Arc::new(params), tokenizer: None, janus: None };
    let engine = |speculation| {
        // Without a prefix cache each turn does the same work.
        Engine::new(loaded.clone(), Options { speculation, prefix_cache: false, ..whole.clone() })
    };
    let mut plain = engine(Speculation::Off)?;
    let mut speculating = engine(Speculation::Auto { max_draft: args.max_draft })?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..=args.rounds {
        let pair = (turn(&mut plain, &request, &prompts)?, turn(&mut speculating, &request, &prompts)?);
        ensure!(pair.0.answers == pair.1.answers, "speculation changed an answer");
        // The first round also takes memory from the system.
        if round > 0 {
            without.push(pair.0);
            with.push(pair.1);
        }
    }
    let rate = |turn: &RoundResult| turn.tokens as f64 / turn.seconds;
    let ratios = sorted(without.iter().zip(&with).map(|(without, with)| rate(with) / rate(without)));
    let last = with.last().expect("a round at least");
    let result = SpeculationBench {
        drafts_by,
        isa: isa::active().name(),
        threads: par::threads(),
        rounds: args.rounds,
        temperature: args.temperature,
        max_draft: args.max_draft,
        tokens: last.tokens,
        plain_tokens_per_second: middle(&sorted(without.iter().map(rate))),
        tokens_per_second: middle(&sorted(with.iter().map(rate))),
        ratio: middle(&ratios),
        ratio_min: ratios[0],
        ratio_max: ratios[ratios.len() - 1],
        drafted: last.drafted,
        accepted: last.accepted,
        tokens_per_pass: last.tokens as f64 / last.passes as f64,
    };
    if args.json {
        output::json(&result)?
    } else {
        result.print()?
    }
    Ok(())
}

fn prompts(args: &SpeculationArgs, tokenizer: &Tokenizer) -> Result<Vec<Vec<u32>>> {
    let template = if args.chat { ChatTemplate::of(tokenizer)? } else { None };
    if args.chat && template.is_none() {
        return Err(refuse("the model has no chat template", "leave out --chat"));
    }
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    let ids = |prompt: &String| match &template {
        Some(template) => Ok(tokenizer.encode(&template.render(&[Message::new("user", prompt)], &options)?)?),
        None => {
            let ids = tokenizer.encode_ordinary(prompt)?;
            Ok(tokenizer.special().bos.into_iter().chain(ids).collect())
        }
    };
    args.prompts.iter().map(ids).collect()
}

fn turn(engine: &mut Engine, request: &Request, prompts: &[Vec<u32>]) -> Result<RoundResult> {
    let mut turn = RoundResult { answers: vec![], tokens: 0, passes: 0, seconds: 0.0, drafted: 0, accepted: 0 };
    for prompt in prompts {
        engine.enqueue(Request { prompt: prompt.clone(), ..request.clone() })?;
        let mut answer = Vec::new();
        let mut begun: Option<(Instant, u64)> = None;
        let mut first = 0;
        while !engine.is_idle() {
            for event in engine.step() {
                match event {
                    Event::Token(token) => answer.push(token.token),
                    Event::Embedding { .. } => {} // nobody asks for one here
                    Event::Finished(end) => {
                        let Usage { drafted, accepted, .. } = end.usage;
                        turn.drafted += drafted;
                        turn.accepted += accepted;
                    }
                }
            }
            if !answer.is_empty() && begun.is_none() {
                begun = Some((Instant::now(), engine.status().counters.steps));
                first = answer.len();
            }
        }
        let (begin, steps) = begun.expect("an answer has a token");
        turn.seconds += begin.elapsed().as_secs_f64();
        turn.passes += engine.status().counters.steps - steps;
        turn.tokens += answer.len() - first;
        turn.answers.push(answer);
    }
    Ok(turn)
}

fn sorted(numbers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut numbers: Vec<f64> = numbers.collect();
    numbers.sort_by(f64::total_cmp);
    numbers
}

fn middle(sorted: &[f64]) -> f64 {
    sorted[sorted.len() / 2]
}

impl SpeculationBench {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!(
            "drafts by {}: {:.1} tokens/s, without {:.1}: {:.2} times ({:.2} to {:.2} in {} rounds; {}, {} threads)",
            self.drafts_by,
            self.tokens_per_second,
            self.plain_tokens_per_second,
            self.ratio,
            self.ratio_min,
            self.ratio_max,
            self.rounds,
            self.isa,
            self.threads,
        ))?;
        output::line(&format!(
            "{} tokens, the same with and without; {:.2} tokens a pass, {} of {} drafted tokens accepted",
            self.tokens, self.tokens_per_pass, self.accepted, self.drafted,
        ))
    }
}

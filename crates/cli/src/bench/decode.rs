//! `wels bench decode`: how fast a model reads prompts and answers, next to the rate at which the machine reads memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use wels_kernels::par::{self, Counts};
use wels_kernels::random::Key;
use wels_kernels::{isa, peak};
use wels_model::config::ModelConfig;
use wels_model::count;
use wels_model::model::Model;
use wels_model::names::{ParamKind, ParamSpec};
use wels_model::paged::{CacheDtype, CacheLayout, Chunk, PAGE_TOKENS, PagedCache};
use wels_model::params::Params;
use wels_model::placement::{Place, Placement};
use wels_model::tape::Execution;
use wels_pipeline::refusal::refuse;
use wels_pipeline::words::short;
use wels_runs::machine;

use super::made;
use crate::model::{LoadArgs, OpenModel, locate};
use crate::output;
use crate::placement::{self, Demand};

#[derive(clap::Args)]
pub struct DecodeArgs {
    /// A Hugging Face directory, the directory of a run, a GGUF file, or a recipe (.toml) whose model is made up
    #[arg(value_name = "MODEL")]
    model: PathBuf,
    /// Tokens of each stream's prompt
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    prompt: u32,
    /// Tokens that each stream answers with
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    tokens: u32,
    /// Streams that are answered at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    streams: u32,
    /// Tokens of a prompt in one step
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    chunk: u32,
    /// How often prompts are read and timed, behind a time that is not timed
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_rounds: u32,
    #[command(flatten)]
    load: LoadArgs,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

impl DecodeArgs {
    /// Pages of all streams.
    fn pages(&self) -> u32 {
        (self.prompt + self.tokens).div_ceil(PAGE_TOKENS as u32) * self.streams
    }
}

/// What is written. Times of single steps are medians.
#[derive(Serialize)]
pub(super) struct DecodeBench {
    model: String,
    device: String,
    isa: &'static str,
    threads: usize,
    pub(super) load_seconds: f64,
    prompt_tokens: u32,
    streams: u32,
    pub(super) prompt_tokens_per_second: f64,
    /// Operations of reading prompts.
    pub(super) prompt_flops_per_second: f64,
    /// Their share of the device's peak; none where that is not known without measuring.
    prompt_of_peak: Option<f64>,
    decoded_tokens: u32,
    decode_tokens_per_second: f64,
    pub(super) step_seconds: f64,
    step_seconds_min: f64,
    /// Weights and past keys and values, of the step in the middle; of experts as many as are expected to be chosen.
    pub(super) step_bytes: f64,
    read_bytes_per_second: f64,
    /// The card's, or the processor's without computing, or both, one after the other; the better of before and after.
    pub(super) read_bytes_per_second_max: f64,
    of_read_bandwidth: f64,
    peak_rss_bytes: Option<u64>,
    /// The most that was held of a device's own memory.
    peak_device_bytes: Option<u64>,
    /// What the threads shared while answering.
    #[serde(skip)]
    pub(super) counts: Counts,
}

/// Measures and prints.
pub fn decode(args: &DecodeArgs) -> Result<()> {
    let result = measure(args)?;
    if args.json {
        output::json(&result)?
    } else {
        result.print()?
    }
    Ok(())
}

/// Prefill and decoding with the arguments of `wels bench decode`, and the peer beside it.
pub(super) fn measure(args: &DecodeArgs) -> Result<DecodeBench> {
    let begin = Instant::now();
    let made = made::config_of(&args.model)?;
    let open = if made.is_some() { None } else { Some(OpenModel::open(&locate(&args.model)?)?) };
    let config = made.as_ref().or(open.as_ref().map(|open| &open.config)).expect("one of both");
    let context = (args.prompt + args.tokens) as usize;
    if context > config.rope.max_positions {
        let message = format!("{context} tokens do not fit the model's context of {}", config.rope.max_positions);
        return Err(refuse(message, "give a smaller --prompt or --tokens"));
    }
    let (model, params, demand) = take(args, open.as_ref(), config, context)?;
    let (placement, layout, [main, other]) = (params.placement(), demand.layout, demand.numbers);
    let (device, precision) = (Arc::clone(params.device()), main.precision);
    let load_seconds = begin.elapsed().as_secs_f64();

    let middle = f64::from(args.streams) * (f64::from(args.prompt) + f64::from(args.tokens) / 2.0);
    let of_weights = weight_bytes(config, &params, layout, args.streams);
    let of_pages = placement::pages(placement, config, &demand).map(|bytes| middle * bytes as f64 / PAGE_TOKENS as f64);
    let bytes = [of_weights[0] + of_pages[0], of_weights[1] + of_pages[1]];
    let step_bytes = bytes[0] + bytes[1];
    let before = bandwidth(placement, bytes);
    let execution = Execution::placed(placement, precision, other.precision);
    let mut run = Run::new(args, (&model, &params, execution), layout, demand.numbers.map(|it| it.cache_dtype));
    let prompt_seconds = run.prompts();
    super::say_profile(&*device, 1);
    let counts = par::counts();
    let mut seconds = run.answers();
    let counts = Counts { calls: par::counts().calls - counts.calls, tasks: par::counts().tasks - counts.tasks };
    super::say_profile(&*device, args.tokens.into());
    let after = bandwidth(placement, bytes);

    let decode_seconds: f64 = seconds.iter().sum();
    seconds.sort_by(f64::total_cmp);
    let step_seconds = seconds[seconds.len() / 2];
    let streams = f64::from(args.streams);
    let prompt_flops = streams * prompt_flops(config, args.prompt) / prompt_seconds;
    Ok(DecodeBench {
        model: args.model.display().to_string(),
        device: placement::in_words(placement, config),
        isa: isa::active().name(),
        threads: par::threads(),
        load_seconds,
        prompt_tokens: args.prompt,
        streams: args.streams,
        prompt_tokens_per_second: streams * f64::from(args.prompt) / prompt_seconds,
        prompt_flops_per_second: prompt_flops,
        prompt_of_peak: device.peak_flops(precision).map(|peak| prompt_flops / peak),
        decoded_tokens: args.tokens,
        decode_tokens_per_second: streams * f64::from(args.tokens) / decode_seconds,
        step_seconds,
        step_seconds_min: seconds[0],
        step_bytes,
        read_bytes_per_second: step_bytes / step_seconds,
        read_bytes_per_second_max: before.max(after),
        of_read_bandwidth: step_bytes / step_seconds / before.max(after),
        peak_rss_bytes: machine::peak_rss_bytes(),
        peak_device_bytes: device.memory().map(|memory| memory.peak),
        counts,
    })
}

/// The model with the weights of its files, or made up, where there is room for them and all streams' pages.
fn take(
    args: &DecodeArgs,
    open: Option<&OpenModel>,
    config: &ModelConfig,
    context: usize,
) -> Result<(Model, Params, Demand)> {
    let placement = args.load.place.open(config)?;
    let mut demand = args.load.demand(&placement, config, 0, args.chunk.max(args.streams) as usize);
    demand.cache_bytes = placement::pages(&placement, config, &demand).iter().sum::<usize>() * args.pages() as usize;
    let quant = args.load.quant;
    let params = match open {
        Some(open) => open.inference_params(&placement, quant.into(), demand, None)?,
        None => {
            placement::check(&placement, config, &made::sizes(config, demand.layout, quant), demand)?;
            made::params(&placement, config, quant)
        }
    };
    let (model, params) = args.load.prepare(config, params, context);
    Ok((model, params, demand))
}

/// The most bytes of a second in which each device reads its own, one after the other.
fn bandwidth(placement: &Placement, bytes: [f64; 2]) -> f64 {
    let measured = || peak::read_bytes_per_second(Duration::from_millis(200));
    let seconds = bytes.into_iter().zip([Place::Main, Place::Other]).filter(|(bytes, _)| *bytes > 0.0);
    let seconds =
        seconds.map(|(bytes, place)| bytes / placement.device(place).peak_bytes_per_second().unwrap_or_else(measured));
    (bytes[0] + bytes[1]) / seconds.sum::<f64>()
}

/// Bytes of weights that a step of one token a stream reads, of the main device's memory and of the other's.
fn weight_bytes(config: &ModelConfig, params: &Params, layout: CacheLayout, streams: u32) -> [f64; 2] {
    let of_mtp = |spec: &ParamSpec| spec.layer().is_some_and(|layer| layer >= config.layers);
    let bytes = |param: usize| {
        let (spec, bytes) = (&params.specs()[param], params.bytes(param, layout) as f64);
        match spec.kind {
            ParamKind::Embedding if !config.tied_head => 0.0,
            ParamKind::Experts(experts) => {
                let chosen = config.moe.as_ref().map_or(experts, |moe| moe.top_k) as f64 / experts as f64;
                bytes * (1.0 - (1.0 - chosen).powi(streams as i32))
            }
            _ => bytes,
        }
    };
    let mut sums = [0.0; 2];
    for (param, spec) in params.specs().iter().enumerate().filter(|(_, spec)| !of_mtp(spec)) {
        sums[usize::from(params.placement().of(config, spec) == Place::Other)] += bytes(param);
    }
    sums
}

/// Operations of reading a prompt, of which the last token alone goes through the head.
fn prompt_flops(config: &ModelConfig, prompt: u32) -> f64 {
    let of_token = count::forward_flops(config, count::Context::Causal { tokens: prompt as usize });
    f64::from(prompt) * (of_token.total().0 - of_token.head.0) as f64 + of_token.head.0 as f64
}

/// Streams under way.
struct Run<'a> {
    args: &'a DecodeArgs,
    model: &'a Model,
    params: &'a Params,
    execution: Execution,
    cache: PagedCache,
    /// The pages of each stream.
    pages: Vec<Vec<u32>>,
    /// The next token of each stream.
    next: Vec<u32>,
}

impl<'a> Run<'a> {
    fn new(
        args: &'a DecodeArgs,
        (model, params, execution): (&'a Model, &'a Params, Execution),
        layout: CacheLayout,
        dtypes: [CacheDtype; 2],
    ) -> Self {
        let per_stream = args.pages() / args.streams;
        let cache = PagedCache::placed(params.placement(), model.config(), layout, dtypes, args.pages() as usize);
        let pages = (0..args.streams).map(|stream| (stream * per_stream..(stream + 1) * per_stream).collect());
        let next = vec![0; args.streams as usize];
        Run { args, model, params, execution, cache, pages: pages.collect(), next }
    }

    /// Reads the prompts, one stream after the other, several times; the seconds of the time in the middle, without the
    /// first.
    fn prompts(&mut self) -> f64 {
        let vocabulary = self.model.config().vocab_size as u64;
        let mut seconds = Vec::new();
        for _ in 0..=self.args.prompt_rounds {
            let begin = Instant::now();
            for stream in 0..self.pages.len() {
                let key = Key { seed: 0, stream: stream as u64 };
                let tokens: Vec<u32> =
                    (0..u64::from(self.args.prompt)).map(|i| key.below_at(i, vocabulary) as u32).collect();
                let mut past = 0;
                for chunk in tokens.chunks(self.args.chunk as usize) {
                    let last = past + chunk.len() == tokens.len();
                    self.step(&[stream], past, &[chunk], usize::from(last));
                    past += chunk.len();
                }
            }
            seconds.push(begin.elapsed().as_secs_f64());
        }
        let timed = &mut seconds[1..];
        timed.sort_by(f64::total_cmp);
        timed[timed.len() / 2]
    }

    /// Answers greedily, all streams in each step; the seconds of each step.
    fn answers(&mut self) -> Vec<f64> {
        let streams: Vec<usize> = (0..self.pages.len()).collect();
        let args = self.args;
        let step = |i: u32| {
            let begin = Instant::now();
            let next = self.next.clone();
            let tokens: Vec<&[u32]> = next.iter().map(std::slice::from_ref).collect();
            self.step(&streams, (args.prompt + i) as usize, &tokens, 1);
            begin.elapsed().as_secs_f64()
        };
        (0..args.tokens).map(step).collect()
    }

    fn step(&mut self, streams: &[usize], past: usize, tokens: &[&[u32]], logits: usize) {
        let chunks: Vec<Chunk> = streams
            .iter()
            .zip(tokens)
            .map(|(stream, tokens)| Chunk { tokens, past, pages: &self.pages[*stream], logits, states: 0 })
            .collect();
        let output = self.model.step(self.params, &self.execution, &mut self.cache, &chunks);
        let all = output.logits.to_host();
        for (stream, logits) in streams.iter().zip(all.chunks_exact(output.logits.cols())) {
            let best = (0..logits.len()).fold(0, |best, i| if logits[i] > logits[best] { i } else { best });
            self.next[*stream] = best as u32;
        }
    }
}

impl DecodeBench {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!(
            "{}: loaded in {:.2} s; prompts {} tok/s; {} streams decode {} tok/s ({} threads, {})",
            self.model,
            self.load_seconds,
            short(self.prompt_tokens_per_second),
            self.streams,
            short(self.decode_tokens_per_second),
            self.threads,
            self.isa,
        ))?;
        output::line(&format!(
            "a step {:.3} ms ({:.3} ms the fastest) for {}B: {}B/s, {:.0}% of the {}B/s at which the machine reads memory",
            1e3 * self.step_seconds,
            1e3 * self.step_seconds_min,
            short(self.step_bytes),
            short(self.read_bytes_per_second),
            100.0 * self.of_read_bandwidth,
            short(self.read_bytes_per_second_max),
        ))
    }
}

//! `wels bench`: what this machine does, next to what it could.

mod decode;
mod gemm;
mod quant;
mod rl;
mod speculation;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_kernels::{isa, par};
use wels_model::count;
use wels_model::params::Params;
use wels_pipeline::hyper::{execution, of_pretraining, slow_precision};
use wels_pipeline::measure::{fma_peak_flops, random_batch};
use wels_pipeline::words::short;
use wels_runs::machine::{self, Measurements};
use wels_runs::recipe::Recipe;
use wels_train::trainer::{State, Trainer};

use crate::device::DeviceArgs;
use crate::output;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: BenchCommand,
}

#[derive(clap::Subcommand)]
enum BenchCommand {
    /// Training steps of a recipe on random tokens: forward, backward, optimizer
    Train(TrainArgs),
    /// Matrix products at training shapes, forward and backward, beside the FMA peak
    Gemm(gemm::GemmArgs),
    /// Products of inference with weights in each format, beside the memory's and the processor's limits
    Quant(quant::QuantArgs),
    /// Reading prompts and answering them, beside the rate of reading memory
    Decode(decode::DecodeArgs),
    /// Steps of reinforcement at given lengths: sampling and learning, beside answers one at a time
    Rl(rl::RlArgs),
    /// Decoding with and without speculation, at equal answers
    Speculation(speculation::SpeculationArgs),
}

#[derive(clap::Args)]
struct TrainArgs {
    /// A recipe, such as recipes/moe-28m.toml
    #[arg(value_name = "CONFIG")]
    recipe: PathBuf,
    /// Steps that are timed, after one that is not
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// What is written. Times are medians over the steps.
#[derive(Serialize)]
struct TrainBench {
    recipe: String,
    parameters: u64,
    isa: &'static str,
    threads: usize,
    tokens_per_step: u64,
    steps: u64,
    seconds_per_step: f64,
    seconds_per_step_min: f64,
    tokens_per_second: f64,
    flops_per_token: u64,
    flops_per_second: f64,
    /// Measured before and after the steps; the better one.
    fma_peak_flops_per_second: f64,
    mfu: f64,
    peak_rss_bytes: Option<u64>,
    last_loss: f64,
}

/// Measures.
pub fn bench(args: &Args) -> Result<()> {
    match &args.what {
        BenchCommand::Train(args) => train(args),
        BenchCommand::Gemm(args) => gemm::gemm(args),
        BenchCommand::Quant(args) => quant::quant(args),
        BenchCommand::Decode(args) => decode::decode(args),
        BenchCommand::Rl(args) => rl::rl(args),
        BenchCommand::Speculation(args) => speculation::speculation(args),
    }
}

fn train(args: &TrainArgs) -> Result<()> {
    let recipe = Recipe::load(&args.recipe)?;
    let config = recipe.model.config();
    let (section, context) = (&recipe.pretrain, recipe.data.sequence_length);
    if let Some(note) = slow_precision(section) {
        eprintln!("note: {note}");
    }
    let device = args.device.open()?;
    let state = State::new(Params::init(&device, config, recipe.run.seed));
    let execution = execution(section, &device);
    let mut trainer = Trainer::new(config.clone(), context, state, of_pretraining(section), execution);
    let tokens = section.batch_tokens;
    let peak_before = fma_peak_flops();
    let mut seconds = Vec::new();
    let mut last_loss = 0.0;
    for step in 0..=args.steps {
        let batch = random_batch(step, tokens as usize, context, config.vocab_size);
        let begin = Instant::now();
        last_loss = trainer.step(&batch, section.micro_batch * context)?.loss;
        seconds.push(begin.elapsed().as_secs_f64());
    }
    let mut seconds = seconds.split_off(1); // the first step also takes memory from the system
    seconds.sort_by(f64::total_cmp);
    let seconds_per_step = seconds[seconds.len() / 2];
    let peak = fma_peak_flops().max(peak_before);
    let flops_per_token = count::forward_flops(config, count::Context::Causal { tokens: context }).training().0;
    let flops_per_second = (flops_per_token * tokens) as f64 / seconds_per_step;
    let result = TrainBench {
        recipe: recipe.run.name.clone(),
        parameters: count::params(config).total.0,
        isa: isa::active().name(),
        threads: par::threads(),
        tokens_per_step: tokens,
        steps: args.steps,
        seconds_per_step,
        seconds_per_step_min: seconds[0],
        tokens_per_second: tokens as f64 / seconds_per_step,
        flops_per_token,
        flops_per_second,
        fma_peak_flops_per_second: peak,
        mfu: flops_per_second / peak,
        peak_rss_bytes: machine::peak_rss_bytes(),
        last_loss,
    };
    let work = Measurements::work(&recipe, par::threads());
    if let Err(error) = Measurements::keep(work, result.tokens_per_second) {
        eprintln!("note: wels plan will not know this rate, for it cannot be kept: {error}");
    }
    if args.json {
        output::json(&result)?
    } else {
        result.print()?
    }
    Ok(())
}

impl TrainBench {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!(
            "{}: {:.3} s a step of {} tokens ({:.3} s the fastest of {}), {} tok/s",
            self.recipe,
            self.seconds_per_step,
            self.tokens_per_step,
            self.seconds_per_step_min,
            self.steps,
            short(self.tokens_per_second),
        ))?;
        output::line(&format!(
            "{}FLOP/s of {}FLOP/s peak ({}, {} threads): MFU {:.1}%",
            short(self.flops_per_second),
            short(self.fma_peak_flops_per_second),
            self.isa,
            self.threads,
            100.0 * self.mfu,
        ))
    }
}

//! `wels bench`: what this machine does, next to what it could.

mod all;
mod decode;
mod gemm;
mod made;
mod quant;
mod rl;
mod speculation;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use wels_device::{Device, KernelTime};
use wels_kernels::{isa, par};
use wels_model::count;
use wels_model::params::Params;
use wels_pipeline::attention;
use wels_pipeline::forecast::name_on;
use wels_pipeline::hyper::{execution, of_pretraining, rule, slow_precision};
use wels_pipeline::measure::{peak_flops, random_batch, whose_peak};
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
    /// Every figure of the processor beside its limit, as a page that can be compared across machines
    All(all::AllArgs),
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
    device: String,
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
    /// The device's; the processor's is measured before and after the steps, and is the better one.
    peak_flops_per_second: f64,
    /// Whose that is.
    peak: &'static str,
    mfu: f64,
    peak_rss_bytes: Option<u64>,
    /// The most that was held of a device's own memory.
    peak_device_bytes: Option<u64>,
    /// Of the device, a step; none where nothing counts.
    joules_per_step: Option<f64>,
    last_loss: f64,
}

/// Measures.
pub fn bench(args: &Args) -> Result<()> {
    match &args.what {
        BenchCommand::All(args) => all::all(args),
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
    if let Some(note) = slow_precision(&recipe.pretrain) {
        eprintln!("note: {note}");
    }
    let device = args.device.open()?;
    let result = measure_training(&recipe, args.steps, &device)?;
    let work = name_on(&*device, Measurements::work(&recipe, par::threads()));
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

/// Steps of a recipe on random tokens.
fn measure_training(recipe: &Recipe, steps: u64, device: &Arc<dyn Device>) -> Result<TrainBench> {
    let config = recipe.model.config();
    let (section, context) = (&recipe.pretrain, recipe.data.sequence_length);
    attention::check(config, &**device)?;
    let state = State::new(Params::init(device, config, recipe.run.seed), rule(&section.optimizer));
    let execution = execution(section, device);
    let mut trainer = Trainer::new(config.clone(), context, state, of_pretraining(section), execution);
    let tokens = section.batch_tokens;
    let peak = || peak_flops(&**device, section.precision);
    let peak_before = peak();
    let Steps { seconds, last_loss, joules } = steps_of(&mut trainer, recipe, steps)?;
    let seconds_per_step = seconds[seconds.len() / 2];
    let peak = peak().max(peak_before);
    let flops_per_token = count::forward_flops(config, count::Context::Causal { tokens: context }).training().0;
    let flops_per_second = (flops_per_token * tokens) as f64 / seconds_per_step;
    Ok(TrainBench {
        recipe: recipe.run.name.clone(),
        device: device.in_words(),
        parameters: count::params(config).total.0,
        isa: isa::active().name(),
        threads: par::threads(),
        tokens_per_step: tokens,
        steps,
        seconds_per_step,
        seconds_per_step_min: seconds[0],
        tokens_per_second: tokens as f64 / seconds_per_step,
        flops_per_token,
        flops_per_second,
        peak_flops_per_second: peak,
        peak: whose_peak(&**device, section.precision),
        mfu: flops_per_second / peak,
        peak_rss_bytes: machine::peak_rss_bytes(),
        peak_device_bytes: device.memory().map(|memory| memory.peak),
        joules_per_step: joules.map(|joules| joules / steps as f64),
        last_loss,
    })
}

/// What steps took.
struct Steps {
    /// In order of size.
    seconds: Vec<f64>,
    last_loss: f64,
    /// Of all that are timed.
    joules: Option<f64>,
}

/// Does and times steps, behind one that is not timed: it also takes memory from the system.
fn steps_of(trainer: &mut Trainer, recipe: &Recipe, count: u64) -> Result<Steps> {
    let (section, context) = (&recipe.pretrain, recipe.data.sequence_length);
    let device = Arc::clone(trainer.state.params.device());
    let mut step = |step| -> Result<(f64, f64)> {
        let vocabulary = recipe.model.config().vocab_size;
        let batch = random_batch(step, section.batch_tokens as usize, context, vocabulary);
        let begin = Instant::now();
        let loss = trainer.step(&batch, section.micro_batch * context)?.loss;
        Ok((begin.elapsed().as_secs_f64(), loss))
    };
    step(0)?;
    let before = device.energy_joules();
    device.profile();
    let timed = (1..=count).map(step).collect::<Result<Vec<_>>>()?;
    say_profile(&*device, count);
    let joules = device.energy_joules().zip(before).map(|(now, before)| now - before);
    let (mut seconds, losses): (Vec<f64>, Vec<f64>) = timed.into_iter().unzip();
    seconds.sort_by(f64::total_cmp);
    Ok(Steps { seconds, last_loss: losses[losses.len() - 1], joules })
}

/// Says on stderr what kernels have taken, where `WELS_CUDA_PROFILE` asks for it.
fn say_profile(device: &dyn Device, steps: u64) {
    for KernelTime { kernel, launches, seconds } in device.profile() {
        let (launches, milliseconds) = (launches as f64 / steps as f64, 1e3 * seconds / steps as f64);
        eprintln!("{milliseconds:10.3} ms a step  {launches:8.1} launches  {kernel}");
    }
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
            "{}FLOP/s of {}FLOP/s ({}; {}, {} threads): MFU {:.1}%",
            short(self.flops_per_second),
            short(self.peak_flops_per_second),
            self.peak,
            self.isa,
            self.threads,
            100.0 * self.mfu,
        ))
    }
}

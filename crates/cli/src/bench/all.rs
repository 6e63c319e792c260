//! `wels bench all`: what this processor does in all that the program is for, each figure beside what the machine could
//! do at most, as a page of Markdown and as JSON, which another machine's figures can be held against.

mod page;
mod peer;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use wels_kernels::gemm::Precision;
use wels_kernels::quant::BlockType;
use wels_kernels::{isa, par, peak};
use wels_model::config::Dtype;
use wels_model::params::Params;
use wels_model::weights::{DEFAULT_SHARD_BYTES, save_dir};
use wels_pipeline::refusal::refuse;
use wels_runs::machine;
use wels_runs::recipe::Recipe;

use super::decode::{self, DecodeArgs};
use super::{gemm, quant};
use crate::device::DeviceKind;
use crate::output;
use page::{Figure, Limit, Page, Peer, Waits};

#[derive(clap::Args)]
pub struct AllArgs {
    /// Write JSON: to this file, beside the page; without a name in place of the page
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-")]
    json: Option<PathBuf>,
    /// Put figures that `--json` wrote beside those of this machine
    #[arg(long, value_name = "FILE")]
    compare: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Turns of each measurement, of which the middle one counts
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Let this model answer too; a GGUF file also by llama.cpp, where there is a `llama-bench`
    #[arg(long, value_name = "MODEL")]
    model: Option<PathBuf>,
    /// llama.cpp's `llama-bench`, where it is not in PATH
    #[arg(long, value_name = "PROGRAM", requires = "model")]
    llama_bench: Option<PathBuf>,
}

/// A part of the page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Part {
    /// Products of training
    Gemm,
    /// Products with quantised weights
    Quant,
    /// Steps of training
    Train,
    /// Prompts and answers
    Decode,
    /// Reading a model from its file
    Load,
}

/// Recipes whose steps are timed, and models that answer.
const TRAINED: [(&str, &str); 2] = [
    ("dense-7m", include_str!("../../../../recipes/dense-7m.toml")),
    ("moe-28m", include_str!("../../../../recipes/moe-28m.toml")),
];
const ANSWERING: [(&str, &str); 2] =
    [("dense-1b", include_str!("shapes/dense-1b.toml")), ("moe-1b", include_str!("shapes/moe-1b.toml"))];
const LOADED: (&str, &str) = ("dense-134m", include_str!("shapes/dense-134m.toml"));

/// Tokens of a prompt and of an answer.
const PROMPT: u32 = 128;
const ANSWER: u32 = 32;

/// Adds a part's figures, of so many rounds, to the page.
type Measure = fn(&mut Page, u64) -> Result<()>;

/// Measures a processor: each part, then the page, and what was asked to be written or compared.
pub fn all(args: &AllArgs) -> Result<()> {
    let other = args.compare.as_deref().map(read).transpose()?;
    let begin = Instant::now();
    let mut page = Page::of_this_machine();
    let parts: [(Part, Measure); 5] = [
        (Part::Gemm, products),
        (Part::Quant, quantised),
        (Part::Train, training),
        (Part::Decode, answers),
        (Part::Load, loading),
    ];
    for (part, measure) in parts {
        if args.only.is_empty() || args.only.contains(&part) {
            eprintln!("{:4.0} s: measuring {part:?}", begin.elapsed().as_secs_f64());
            measure(&mut page, args.rounds)?;
        }
    }
    if let Some(model) = &args.model {
        given_model(&mut page, model, args)?;
    }
    page.seconds = begin.elapsed().as_secs_f64();
    if let Some(path) = &args.json {
        if path == Path::new("-") {
            return Ok(output::json(&page)?);
        }
        let text = serde_json::to_string_pretty(&page).expect("plain data") + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    output::line(page.markdown(other.as_ref()).trim_end())?;
    Ok(())
}

/// Figures that `--json` wrote.
fn read(path: &Path) -> Result<Page> {
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let hint = "--compare takes a file that `wels bench all --json FILE` wrote";
    let page: Page = serde_json::from_str(&text)
        .map_err(|error| refuse(format!("{} has no figures of a machine: {error}", path.display()), hint))?;
    match page.schema {
        page::SCHEMA => Ok(page),
        other => Err(refuse(format!("{} has figures of another form ({other})", path.display()), hint)),
    }
}

/// Matrix products of training, beside the FMA peak.
fn products(page: &mut Page, rounds: u64) -> Result<()> {
    for (precision, name) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
        let results = gemm::measure(precision, (2048, 1024, 1024), rounds);
        for (product, result) in ["forward", "input gradient", "weight gradient"].into_iter().zip(results) {
            page.figures.push(Figure {
                name: format!("product in {name}, {product}, 2048×1024×1024"),
                value: result.flops_per_second,
                unit: "FLOP/s".into(),
                limit: Some(Limit::shared(result.fma_peak_flops_per_second, "multiply-adds in f32", result.of_peak)),
                peer: None,
            });
        }
    }
    Ok(())
}

/// Products with quantised weights: of one token beside reading, of a prompt beside products of bytes.
fn quantised(page: &mut Page, rounds: u64) -> Result<()> {
    for format in [BlockType::Q4_0, BlockType::Q8_0, BlockType::Q4K] {
        for tokens in [1, 512] {
            let result = quant::measure(format, (tokens, 2048, 8192), rounds);
            let (value, unit, most, of) = match tokens {
                1 => (result.bytes_per_second, "B/s", result.read_bytes_per_second, "reading"),
                _ => (result.ops_per_second, "OP/s", result.peak_ops_per_second, "products of bytes"),
            };
            page.figures.push(Figure {
                name: format!("product with {}, {tokens}×2048×8192", format.name()),
                value,
                unit: unit.into(),
                limit: Some(Limit::shared(most, of, result.of_limit)),
                peer: None,
            });
        }
    }
    Ok(())
}

/// Steps of training, beside the FMA peak.
fn training(page: &mut Page, rounds: u64) -> Result<()> {
    for (name, text) in TRAINED {
        let recipe = Recipe::parse(name, text, Path::new(""))?;
        let before = par::counts();
        let steps = 2 * rounds;
        let result = super::measure_training(&recipe, steps, &DeviceKind::Cpu.open()?)?;
        // One step more than are timed.
        page.waits.push(Waits::between(before, &format!("a step of {name}"), steps + 1, result.seconds_per_step));
        page.figures.push(Figure {
            name: format!("training {name}"),
            value: result.tokens_per_second,
            unit: "tok/s".into(),
            limit: Some(Limit::of(
                result.peak_flops_per_second / result.flops_per_token as f64,
                "multiply-adds in f32",
                result.tokens_per_second,
            )),
            peer: None,
        });
    }
    Ok(())
}

/// Prompts and answers of models that are made up.
fn answers(page: &mut Page, rounds: u64) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a folder for the shapes of models")?;
    for (name, text) in ANSWERING {
        let path = folder.path().join(format!("{name}.toml"));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        match answer(page, &path, &format!("{name} in Q4_0"), rounds, &["--quant", "q4"]) {
            Ok(_) => {}
            Err(error) => page.notes.push(format!("{name} is left out: {error:#}")),
        }
    }
    Ok(())
}

/// What `wels bench decode` takes, for its defaults.
#[derive(Parser)]
struct Decoding {
    #[command(flatten)]
    args: DecodeArgs,
}

/// Has a model read a prompt and answer.
fn answer(page: &mut Page, model: &Path, name: &str, rounds: u64, more: &[&str]) -> Result<decode::DecodeBench> {
    let (prompt, tokens, rounds) = (PROMPT.to_string(), ANSWER.to_string(), rounds.to_string());
    let mut line = vec![Path::new("decode").as_os_str(), model.as_os_str()];
    let options = ["--device", "cpu", "--prompt", &prompt, "--tokens", &tokens, "--prompt-rounds", &rounds];
    line.extend(options.iter().chain(more).map(std::ffi::OsStr::new));
    let args = Decoding::try_parse_from(line).map_err(|error| anyhow::anyhow!("{error}"))?.args;
    let peak = peak::dot_ops_per_second(Duration::from_millis(50));
    let result = decode::measure(&args)?;
    let prompt_rate = result.prompt_tokens_per_second;
    let most = prompt_rate * peak / result.prompt_flops_per_second;
    page.figures.push(Figure {
        name: format!("prompts of {PROMPT} by {name}"),
        value: prompt_rate,
        unit: "tok/s".into(),
        limit: Some(Limit::of(most, "products of bytes", prompt_rate)),
        peer: None,
    });
    page.figures.push(Figure {
        name: format!("answers by {name}"),
        value: 1.0 / result.step_seconds,
        unit: "tok/s".into(),
        limit: Some(Limit::of(
            result.read_bytes_per_second_max / result.step_bytes,
            "reading",
            1.0 / result.step_seconds,
        )),
        peer: None,
    });
    let counts = result.counts;
    page.waits.push(Waits {
        what: format!("a token of {name}"),
        calls: counts.calls as f64 / f64::from(ANSWER),
        tasks: counts.tasks as f64 / f64::from(ANSWER),
        seconds: result.step_seconds,
    });
    Ok(result)
}

/// A model in bf16, written as a directory and loaded, as after a start: its bytes are in the system's cache.
fn loading(page: &mut Page, rounds: u64) -> Result<()> {
    let (name, text) = LOADED;
    let recipe = Recipe::parse(name, text, Path::new(""))?;
    let config = recipe.model.config();
    let folder = tempfile::tempdir().context("cannot make a folder for a model")?;
    let params = Params::init(&DeviceKind::Cpu.open()?, config, 1);
    let values = |param: usize| params.tensors()[param].to_host();
    save_dir(folder.path(), config, Dtype::Bf16, DEFAULT_SHARD_BYTES, &values)?;
    let bytes = 2 * wels_model::count::params(config).total.0;
    drop(params);
    let mut seconds = (0..rounds).map(|_| load_seconds(folder.path())).collect::<Result<Vec<_>>>()?;
    seconds.sort_by(f64::total_cmp);
    let rate = bytes as f64 / seconds[seconds.len() / 2];
    let read = peak::read_bytes_per_second(Duration::from_millis(100));
    page.figures.push(Figure {
        name: format!("loading {name} in bf16"),
        value: rate,
        unit: "B/s".into(),
        limit: Some(Limit::of(read, "reading", rate)),
        peer: None,
    });
    Ok(())
}

fn load_seconds(model: &Path) -> Result<f64> {
    let line = [Path::new("decode").as_os_str(), model.as_os_str()];
    let options = ["--device", "cpu", "--prompt", "1", "--tokens", "1", "--prompt-rounds", "1"];
    let line = line.into_iter().chain(options.iter().map(std::ffi::OsStr::new));
    let args = Decoding::try_parse_from(line).map_err(|error| anyhow::anyhow!("{error}"))?.args;
    Ok(decode::measure(&args)?.load_seconds)
}

/// The model of the command line, and llama.cpp with it.
fn given_model(page: &mut Page, model: &Path, args: &AllArgs) -> Result<()> {
    let name = model.file_name().map_or("the model".into(), |name| name.to_string_lossy());
    answer(page, model, &name, args.rounds, &[])?;
    let gguf = model.extension().is_some_and(|extension| extension == "gguf");
    let program = args.llama_bench.clone().or_else(|| peer::in_path("llama-bench"));
    let Some(program) = program.filter(|_| gguf) else {
        page.notes.push("no llama.cpp beside: it takes a GGUF file, and a `llama-bench` in PATH".into());
        return Ok(());
    };
    let rates = peer::llama_bench(&program, model, PROMPT, ANSWER, args.rounds)?;
    let figures = page.figures.len();
    for (figure, rate) in page.figures[figures - 2..].iter_mut().zip(rates) {
        figure.peer = Some(Peer { name: "llama.cpp".into(), value: rate });
    }
    Ok(())
}

impl Page {
    /// Without figures yet, but the limits.
    fn of_this_machine() -> Page {
        let name = machine::cpu_name();
        Page {
            schema: page::SCHEMA,
            version: env!("CARGO_PKG_VERSION").into(),
            processor: if name.is_empty() { "unknown processor".into() } else { name },
            architecture: std::env::consts::ARCH.into(),
            system: std::env::consts::OS.into(),
            isa: isa::active().name().into(),
            lacking: isa::missing().into_iter().map(String::from).collect(),
            threads: par::threads(),
            cores: par::cores(),
            seconds: 0.0,
            fma_flops_per_second: peak::fma_flops_per_second(Duration::from_millis(200)),
            dot_ops_per_second: peak::dot_ops_per_second(Duration::from_millis(200)),
            read_bytes_per_second: peak::read_bytes_per_second(Duration::from_millis(300)),
            figures: Vec::new(),
            waits: Vec::new(),
            notes: Vec::new(),
        }
    }
}

//! `wels bench quant`: products of inference with weights in each format. First a table of all formats on all
//! instruction sets of the machine, then the shapes of models next to what memory and processor can do, measured in
//! turns.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use wels_kernels::isa::{self, Isa};
use wels_kernels::quant::{self, BlockType, QuantMatrix};
use wels_kernels::random::Key;
use wels_kernels::{par, peak};
use wels_pipeline::words::short;

use crate::output;

#[derive(clap::Args)]
pub struct QuantArgs {
    /// Turns of each product; the figures are medians over them
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Only formats of this name, such as Q4_K
    #[arg(long, value_name = "NAME")]
    format: Option<String>,
    /// Only the table of formats and instruction sets
    #[arg(long)]
    table: bool,
    /// Write a line of JSON for each product
    #[arg(long)]
    json: bool,
}

/// Models, and the input and output widths of their matrices: those of a layer, then the head.
const MODELS: [(&str, &[(usize, usize)]); 2] = [
    ("SmolLM2-135M", &[(576, 576), (576, 192), (576, 1536), (1536, 576), (576, 49_152)]),
    ("DeepSeek-V2-Lite", &[(2048, 2048), (2048, 1408), (1408, 2048), (2048, 10_944), (10_944, 2048), (2048, 102_400)]),
];
/// Rows of x: a token of an answer, a prompt.
const TOKENS: [usize; 2] = [1, 512];
/// Weights that turns go through, so that each finds them in memory and not in a cache.
const COPIES_BYTES: usize = 128 << 20;

/// One product. `of_limit` is the median over the rounds of a round's rate over the limit measured just before it:
/// bytes of weights over the rate of reading for one token, else operations over their peak.
#[derive(Serialize)]
pub(super) struct QuantBench {
    model: &'static str,
    format: &'static str,
    tokens: usize,
    inputs: usize,
    outputs: usize,
    isa: &'static str,
    threads: usize,
    weight_bytes: usize,
    pub(super) bytes_per_second: f64,
    pub(super) ops_per_second: f64,
    pub(super) read_bytes_per_second: f64,
    pub(super) peak_ops_per_second: f64,
    pub(super) of_limit: f64,
    of_limit_min: f64,
    of_limit_max: f64,
}

pub fn quant(args: &QuantArgs) -> Result<()> {
    let known: Vec<&str> = BlockType::ALL.iter().map(|format| format.name()).collect();
    if let Some(name) = &args.format {
        anyhow::ensure!(
            known.contains(&name.as_str()),
            "no format is named '{name}'\nhint: one of {}",
            known.join(", ")
        );
    }
    let formats =
        || BlockType::ALL.into_iter().filter(|format| args.format.as_deref().is_none_or(|n| n == format.name()));
    table(formats(), args)?;
    if args.table {
        return Ok(());
    }
    for format in formats() {
        for (model, shapes) in MODELS {
            for &(inputs, outputs) in shapes {
                if inputs % format.len() != 0 {
                    continue; // rows are whole blocks
                }
                for tokens in TOKENS {
                    let result = measure(format, (tokens, inputs, outputs), args.rounds);
                    let result = QuantBench { model, ..result };
                    if args.json { output::json(&result)? } else { result.print()? }
                }
            }
        }
    }
    Ok(())
}

/// Input and output width of the table's products, whose rows are whole blocks in all formats.
const TABLE_SHAPE: (usize, usize) = (1536, 576);
/// Rows of x in the table: a token of an answer, a prompt.
const TABLE_TOKENS: [usize; 2] = [1, 256];

/// A format's products on one instruction set: bytes of weights a second for a token of an answer, operations a second
/// for a prompt.
#[derive(Serialize)]
struct SetBench {
    format: &'static str,
    isa: &'static str,
    threads: usize,
    inputs: usize,
    outputs: usize,
    answer_weight_bytes_per_second: f64,
    answer_ops_per_second: f64,
    prompt_ops_per_second: f64,
}

/// All formats on all instruction sets, the sets in turns.
fn table(formats: impl Iterator<Item = BlockType>, args: &QuantArgs) -> Result<()> {
    let sets: Vec<Isa> = Isa::all_available().collect();
    if !args.json {
        let (inputs, outputs) = TABLE_SHAPE;
        output::line(&format!(
            "{inputs}×{outputs}, {} threads: for one token GB/s of weights and GOP/s, for {} tokens GOP/s",
            par::threads(),
            TABLE_TOKENS[1]
        ))?;
        let heads: Vec<String> = sets.iter().map(|set| format!("{:>26}", set.name())).collect();
        output::line(&format!("{:6}{}", "", heads.concat()))?;
    }
    for format in formats {
        let rows = sets_of(format, &sets, args.rounds);
        if args.json {
            rows.iter().try_for_each(output::json)?;
            continue;
        }
        let cell = |row: &SetBench| {
            let rates = [row.answer_weight_bytes_per_second, row.answer_ops_per_second, row.prompt_ops_per_second];
            let [bytes, answer, prompt] = rates.map(|rate| rate / 1e9);
            format!("{bytes:10.1}{answer:8.1}{prompt:8.1}")
        };
        output::line(&format!("{:6}{}", format.name(), rows.iter().map(cell).collect::<String>()))?;
    }
    Ok(())
}

fn sets_of(format: BlockType, sets: &[Isa], rounds: u64) -> Vec<SetBench> {
    let (inputs, outputs) = TABLE_SHAPE;
    let [answer, prompt] = TABLE_TOKENS.map(|tokens| numbers(tokens * inputs));
    let weights = copies(format, TABLE_SHAPE, TABLE_COPIES);
    let mut y = vec![0.0; TABLE_TOKENS[1] * outputs];
    let mut seconds = vec![[const { Vec::new() }; 2]; sets.len()];
    for _ in 0..rounds {
        for (set, [of_answer, of_prompt]) in sets.iter().zip(&mut seconds) {
            isa::with(*set, || {
                of_answer.push(seconds_per_product(&answer, inputs, &weights, &mut y[..outputs]));
                of_prompt.push(seconds_per_product(&prompt, inputs, &weights[..1], &mut y));
            });
        }
    }
    let ops = (2 * inputs * outputs) as f64;
    let row = |(set, seconds): (&Isa, [Vec<f64>; 2])| {
        let [answer, prompt] = seconds.map(|mut seconds| median(&mut seconds));
        SetBench {
            format: format.name(),
            isa: set.name(),
            threads: par::threads(),
            inputs,
            outputs,
            answer_weight_bytes_per_second: weights[0].bytes() as f64 / answer,
            answer_ops_per_second: ops / answer,
            prompt_ops_per_second: ops * TABLE_TOKENS[1] as f64 / prompt,
        }
    };
    sets.iter().zip(seconds).map(row).collect()
}

/// Weights that the table's turns go through: little enough that products and not memory are compared, which the lines
/// below the table are for.
const TABLE_COPIES: usize = 4;

/// Numbers in −0.5..0.5.
fn numbers(len: usize) -> Vec<f32> {
    let key = Key { seed: 0, stream: 0 };
    (0..len as u64).map(|i| key.uniform_at(i) as f32 - 0.5).collect()
}

/// Matrices of blocks of any bits, which have values of any size, and of a size that does not matter here.
fn copies(format: BlockType, (inputs, outputs): (usize, usize), count: usize) -> Vec<QuantMatrix> {
    let len = outputs * inputs / format.len() * format.bytes();
    let bytes: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 & 0x3f).collect();
    (0..count).map(|_| QuantMatrix::from_blocks(format, &bytes, outputs, inputs)).collect()
}

fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

/// A shape's product and the limit that it meets, in turns.
pub(super) fn measure(format: BlockType, (tokens, inputs, outputs): (usize, usize, usize), rounds: u64) -> QuantBench {
    let x = numbers(tokens * inputs);
    let len = outputs * inputs / format.len() * format.bytes();
    let count = if tokens == 1 { (COPIES_BYTES / len).clamp(1, 64) } else { 1 };
    let weights = copies(format, (inputs, outputs), count);
    let mut y = vec![0.0; tokens * outputs];
    let (mut seconds, mut shares) = (Vec::new(), Vec::new());
    let (mut reads, mut peaks) = (Vec::new(), Vec::new());
    let (ops, weight_bytes) = ((2 * tokens * inputs * outputs) as f64, weights[0].bytes());
    for _ in 0..rounds {
        let read = peak::read_bytes_per_second(Duration::from_millis(20));
        let peak = peak::dot_ops_per_second(Duration::from_millis(5));
        let time = seconds_per_product(&x, inputs, &weights, &mut y);
        shares.push(if tokens == 1 { weight_bytes as f64 / time / read } else { ops / time / peak });
        seconds.push(time);
        reads.push(read);
        peaks.push(peak);
    }
    let time = median(&mut seconds);
    QuantBench {
        model: "",
        format: format.name(),
        tokens,
        inputs,
        outputs,
        isa: isa::active().name(),
        threads: par::threads(),
        weight_bytes,
        bytes_per_second: weight_bytes as f64 / time,
        ops_per_second: ops / time,
        read_bytes_per_second: median(&mut reads),
        peak_ops_per_second: median(&mut peaks),
        of_limit: median(&mut shares),
        of_limit_min: shares[0],
        of_limit_max: shares[shares.len() - 1],
    }
}

/// Over all copies of the weights, quantising x for each, after one call that is not counted.
fn seconds_per_product(x: &[f32], inputs: usize, weights: &[QuantMatrix], y: &mut [f32]) -> f64 {
    quant::linear(&quant::quantise_rows(x, inputs), &weights[0], y);
    let begin = Instant::now();
    for weights in weights {
        quant::linear(&quant::quantise_rows(x, inputs), weights, y);
    }
    begin.elapsed().as_secs_f64() / weights.len() as f64
}

impl QuantBench {
    fn print(&self) -> std::io::Result<()> {
        let (rate, limit) = if self.tokens == 1 {
            let limit = format!("{}B/s of reading", short(self.read_bytes_per_second));
            (format!("{}B/s", short(self.bytes_per_second)), limit)
        } else {
            (
                format!("{}OP/s", short(self.ops_per_second)),
                format!("{}OP/s in 8 bits", short(self.peak_ops_per_second)),
            )
        };
        output::line(&format!(
            "{:16} {:4} {}×{}×{}: {rate}, {:.0}% of {limit} ({:.0} to {:.0}%; {}, {} threads)",
            self.model,
            self.format,
            self.tokens,
            self.inputs,
            self.outputs,
            100.0 * self.of_limit,
            100.0 * self.of_limit_min,
            100.0 * self.of_limit_max,
            self.isa,
            self.threads,
        ))
    }
}

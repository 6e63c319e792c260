//! `wels bench quant`: products of inference with weights in each format, next to what memory and processor can do,
//! measured in turns.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use wels_kernels::quant::{self, BlockType, QuantMatrix};
use wels_kernels::random::Key;
use wels_kernels::{isa, par, peak};
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
struct QuantBench {
    model: &'static str,
    format: &'static str,
    tokens: usize,
    inputs: usize,
    outputs: usize,
    isa: &'static str,
    threads: usize,
    weight_bytes: usize,
    bytes_per_second: f64,
    ops_per_second: f64,
    read_bytes_per_second: f64,
    peak_ops_per_second: f64,
    of_limit: f64,
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
    for format in BlockType::ALL {
        if args.format.as_ref().is_some_and(|name| name != format.name()) {
            continue;
        }
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

/// A shape's product and the limit that it meets, in turns.
fn measure(format: BlockType, (tokens, inputs, outputs): (usize, usize, usize), rounds: u64) -> QuantBench {
    let key = Key { seed: 0, stream: 0 };
    let x: Vec<f32> = (0..(tokens * inputs) as u64).map(|i| key.uniform_at(i) as f32 - 0.5).collect();
    let len = outputs * inputs / format.len() * format.bytes();
    // Blocks of any bits have values of any size, and of a size that does not matter here.
    let bytes: Vec<u8> = (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8 & 0x3f).collect();
    let copies = if tokens == 1 { (COPIES_BYTES / len).clamp(1, 64) } else { 1 };
    let weights: Vec<_> = (0..copies).map(|_| QuantMatrix::from_blocks(format, &bytes, outputs, inputs)).collect();
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
    let median = |numbers: &mut Vec<f64>| {
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
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

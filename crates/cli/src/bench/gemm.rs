//! `wels bench gemm`: matrix products of training next to the FMA peak, measured in turns.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;
use wels_kernels::gemm::{self, Precision, Start};
use wels_kernels::memory::Buffer;
use wels_kernels::random::Key;
use wels_kernels::{isa, par, peak};
use wels_pipeline::words::short;

use crate::output;

#[derive(clap::Args)]
pub struct GemmArgs {
    /// Turns of each product; the figures are medians over them
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(1..))]
    rounds: u64,
    /// Write a line of JSON for each product
    #[arg(long)]
    json: bool,
}

/// Tokens, input width, output width.
const SHAPES: [(usize, usize, usize); 5] =
    [(2048, 256, 768), (2048, 768, 256), (2048, 256, 4096), (2048, 1024, 1024), (2048, 2048, 2048)];

/// One product. `of_peak` is the median over the rounds of a round's rate over the FMA peak just before it.
#[derive(Serialize)]
pub(super) struct GemmBench {
    product: &'static str,
    precision: &'static str,
    tokens: usize,
    inputs: usize,
    outputs: usize,
    isa: &'static str,
    threads: usize,
    pub(super) flops_per_second: f64,
    pub(super) fma_peak_flops_per_second: f64,
    pub(super) of_peak: f64,
    of_peak_min: f64,
    of_peak_max: f64,
}

pub fn gemm(args: &GemmArgs) -> Result<()> {
    for (precision, name) in [(Precision::F32, "f32"), (Precision::Bf16, "bf16")] {
        for shape in SHAPES {
            for (product, result) in
                ["forward", "input gradient", "weight gradient"].iter().zip(measure(precision, shape, args.rounds))
            {
                let result = GemmBench { product, precision: name, ..result };
                if args.json { output::json(&result)? } else { result.print()? }
            }
        }
    }
    Ok(())
}

/// Forward, input gradient and weight gradient of a shape, and the peak, in turns.
pub(super) fn measure(
    precision: Precision,
    (tokens, inputs, outputs): (usize, usize, usize),
    rounds: u64,
) -> [GemmBench; 3] {
    let numbers = |stream, len: usize| {
        let key = Key { seed: 0, stream };
        let mut numbers = Buffer::zeros(len);
        numbers.iter_mut().zip(0..).for_each(|(x, i)| *x = key.uniform_at(i) as f32 - 0.5);
        numbers
    };
    let (x, w) = (numbers(0, tokens * inputs), numbers(1, outputs * inputs));
    let dy = numbers(2, tokens * outputs);
    let (mut y, mut dx, mut dw) = (Buffer::zeros(dy.len()), Buffer::zeros(x.len()), Buffer::zeros(w.len()));
    let mut rates = [const { Vec::new() }; 3];
    let mut shares = [const { Vec::new() }; 3];
    let mut peaks = Vec::new();
    for _ in 0..rounds {
        for which in 0..3 {
            let peak = peak::fma_flops_per_second(Duration::from_millis(5));
            let rate = rate(2 * tokens * inputs * outputs, || match which {
                0 => gemm::linear(precision, &x, &w, &mut y, inputs, outputs),
                1 => gemm::linear_dx(precision, &dy, &w, &mut dx, inputs, outputs, Start::Zero),
                _ => gemm::linear_dw(precision, &dy, &x, &mut dw, inputs, outputs, Start::Zero),
            });
            peaks.push(peak);
            rates[which].push(rate);
            shares[which].push(rate / peak);
        }
    }
    peaks.sort_by(f64::total_cmp);
    [0, 1, 2].map(|which| {
        rates[which].sort_by(f64::total_cmp);
        shares[which].sort_by(f64::total_cmp);
        GemmBench {
            product: "",
            precision: "",
            tokens,
            inputs,
            outputs,
            isa: isa::active().name(),
            threads: par::threads(),
            flops_per_second: rates[which][rates[which].len() / 2],
            fma_peak_flops_per_second: peaks[peaks.len() / 2],
            of_peak: shares[which][shares[which].len() / 2],
            of_peak_min: shares[which][0],
            of_peak_max: shares[which][shares[which].len() - 1],
        }
    })
}

/// Operations a second over some 20 ms, after one call that is not counted.
fn rate(flops: usize, mut product: impl FnMut()) -> f64 {
    product();
    let begin = Instant::now();
    let mut calls = 0;
    while calls < 3 || begin.elapsed() < Duration::from_millis(20) {
        product();
        calls += 1;
    }
    (flops * calls) as f64 / begin.elapsed().as_secs_f64()
}

impl GemmBench {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!(
            "{:4} {:15} {}×{}×{}: {}FLOP/s, {:.0}% of the f32 peak of {}FLOP/s ({:.0} to {:.0}%; {}, {} threads)",
            self.precision,
            self.product,
            self.tokens,
            self.inputs,
            self.outputs,
            short(self.flops_per_second),
            100.0 * self.of_peak,
            short(self.fma_peak_flops_per_second),
            100.0 * self.of_peak_min,
            100.0 * self.of_peak_max,
            self.isa,
            self.threads,
        ))
    }
}

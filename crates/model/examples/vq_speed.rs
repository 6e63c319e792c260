//! Times the decoder of Janus-Pro-1B's VQ tokenizer on one thread: each kind of convolution beside the greatest rate of
//! f32 multiply-adds of a core, GroupNorm, and a whole picture. On Linux the time is that on a core, so that a busy
//! machine shows little.
//!
//! ```text
//! cargo run --release -p wels-model --example vq_speed
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wels_device::{Activation, Device, GroupNorm, Precision, Step, Tensor, Windows};
use wels_kernels::peak::fma_flops_per_second;
use wels_model::janus::config::{NORM_GROUPS, VqConfig};
use wels_model::janus::names::vq_tensors;
use wels_model::janus::{Vq, VqNetwork, presets};
use wels_model::tape::Execution;

fn main() {
    wels_kernels::par::with_threads(1, measure);
}

fn measure() {
    let config = presets::preset("janus-pro-1b").expect("a preset").vq;
    let (device, peak) = (wels_cpu::device(), fma_flops_per_second(Duration::from_secs(1)));
    println!("peak {:.0} GFLOP/s", peak / 1e9);
    let (mut seconds, mut flops) = (0.0, 0.0);
    println!("  side  inputs outputs times   GFLOP       ms  GFLOP/s  of peak");
    for ((side, inputs, outputs), count) in convolutions(&config) {
        let of_each = 2.0 * (side * side * 9 * inputs * outputs) as f64;
        let time = convolution(&device, side, inputs, outputs);
        let (gflop, ms, rate) = (of_each / 1e9, time * 1e3, of_each / time);
        let (gflops, share) = (rate / 1e9, 100.0 * rate / peak);
        println!("{side:6} {inputs:7} {outputs:7} {count:5} {gflop:7.1} {ms:8.1} {gflops:8.0} {share:7.0}%");
        seconds += count as f64 * time;
        flops += count as f64 * of_each;
    }
    println!("all of them: {:.0} GFLOP in {seconds:.2} s, {:.0}%", flops / 1e9, 100.0 * flops / seconds / peak);
    let (side, channels) = (config.image_size(), config.channels(0));
    println!("GroupNorm with SiLU of {side}² pixels: {:.1} ms", 1e3 * norm(&device, side, channels));
    let network = VqNetwork::new(&config);
    let params = network.init(&device, 1);
    let (vq, execution) = (Vq::new(network, params), Execution::new(device));
    let codes: Vec<u32> = (0..config.tokens() as u32).collect();
    let decoding = best(|| drop(vq.decode(&execution, &codes)));
    let bytes = execution.pool.usage().live_bytes_max;
    println!("a picture: {decoding:.2} s, tensors of up to {} MB", bytes / 1_000_000);
}

/// The decoder's convolutions of three by three: side of the outputs, channels in and out, and how many.
fn convolutions(config: &VqConfig) -> BTreeMap<(usize, usize, usize), usize> {
    let mut counts = BTreeMap::new();
    let levels = config.multipliers.len();
    for tensor in vq_tensors(config) {
        let Some(name) = tensor.name.strip_prefix("model.vqmodel.decoder.") else { continue };
        let [outputs, inputs, 3, 3] = tensor.shape[..] else { continue };
        let level = match name.strip_prefix("up.").and_then(|name| name.split_once('.')) {
            Some((level, rest)) => level.parse::<usize>().expect("a level") + usize::from(rest.starts_with("upsample")),
            None if name.starts_with("conv_out") => levels - 1,
            None => 0,
        };
        *counts.entry((config.grid << level, inputs, outputs)).or_default() += 1;
    }
    counts
}

fn tensor(device: &Arc<dyn Device>, rows: usize, cols: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * cols).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect();
    Tensor::of(device, rows, cols, &values)
}

fn convolution(device: &Arc<dyn Device>, side: usize, inputs: usize, outputs: usize) -> f64 {
    let (x, w) = (tensor(device, side * side, inputs), tensor(device, outputs, 9 * inputs));
    let mut y = tensor(device, side * side, outputs);
    let of = Windows { pictures: 1, side, step: Step::One };
    best(|| device.images().expect("operations of images").conv(Precision::F32, of, &x, &w, &mut y))
}

fn norm(device: &Arc<dyn Device>, side: usize, channels: usize) -> f64 {
    let (x, w, b) = (tensor(device, side * side, channels), tensor(device, 1, channels), tensor(device, 1, channels));
    let (mut y, mut stats) = (tensor(device, side * side, channels), tensor(device, 2, channels));
    let of = GroupNorm { pictures: 1, groups: NORM_GROUPS, eps: 1e-6, activation: Activation::Silu };
    best(|| device.images().expect("operations of images").group_norm(of, &x, &w, &b, &mut y, &mut stats))
}

/// Seconds that this thread has had a core for, where the system says so.
fn seconds_on_core() -> Option<f64> {
    let nanoseconds = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    nanoseconds.split(' ').next()?.parse::<f64>().ok().map(|ns| ns / 1e9)
}

/// Seconds of the fastest of a few runs.
fn best(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let (begin, on_core) = (Instant::now(), seconds_on_core());
        run();
        seconds_on_core().zip(on_core).map_or_else(|| begin.elapsed().as_secs_f64(), |(end, begin)| end - begin)
    };
    (0..4).map(time).fold(f64::INFINITY, f64::min)
}

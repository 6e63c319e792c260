//! What serving takes on named devices: cache, rates bounded by bandwidth and by arithmetic, money per million tokens,
//! and what an API would have to cost to be dearer.
//!
//! A decoding step reads the weights that its tokens use and every sequence's cache, and computes each token's
//! operations; the slower of the two bounds it. With B tokens, of E experts of which each token takes K,
//! E·(1 − (1 − K/E)^B) are read. In MLA the latent cache is read with absorbed projections.

use serde::Serialize;
use wels_model::config::{Dtype, ModelConfig};
use wels_model::count::{self, CacheLayout, Context};

use super::devices::{Device, ProductFormat};
use super::prices::{INPUT_PER_OUTPUT, Price};
use super::training::FILLED;

/// What a serving plan rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    pub device: Device,
    /// How many hold one copy of the model; `None` for the fewest that hold weights and some caches.
    pub devices: Option<u64>,
    /// Format of the weights; caches are in bf16.
    pub precision: ProductFormat,
    /// Tokens of a sequence in the cache, on average.
    pub context: usize,
    /// Tokens of a prompt.
    pub prompt: usize,
    /// Sequences decoded side by side; `None` for as many as fit.
    pub batch: Option<u64>,
    /// The fraction of the bound that is reached.
    pub utilisation: f64,
}

/// What serving takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ServingPlan {
    /// What it rests on.
    pub assumptions: Assumptions,
    /// Devices of one copy.
    pub devices: u64,
    pub weights_bytes: f64,
    /// Bytes of cache of one token, bf16.
    pub cache_bytes_per_token: f64,
    /// Sequences of `context` tokens whose caches fit beside the weights.
    pub sequences_that_fit: u64,
    /// Sequences decoded side by side.
    pub batch: u64,
    /// Operations of one token that is decoded.
    pub decode_flops_per_token: f64,
    /// Operations of one token of a prompt, on average.
    pub prefill_flops_per_token: f64,
    /// Operations of the attention core for each byte of cache that it reads.
    pub core_flops_per_byte: f64,
    /// Output tokens a second of one copy, if reading were all.
    pub decode_bound_by_bandwidth: f64,
    /// The same, if arithmetic were all.
    pub decode_bound_by_arithmetic: f64,
    /// Output tokens a second of one copy at the stated utilisation of the lower bound.
    pub decode_tokens_per_second: f64,
    /// Output tokens a second of one sequence alone, bounded by bandwidth.
    pub single_stream_bound: f64,
    /// Prompt tokens a second of one copy at the stated utilisation.
    pub prefill_tokens_per_second: f64,
    /// Money for a million output tokens.
    pub usd_per_million_out: f64,
    /// Money for a million prompt tokens that no cache holds.
    pub usd_per_million_in: f64,
    /// Against APIs.
    pub break_even: Vec<BreakEven>,
}

/// One's own devices against an API, at three tokens read for one written.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BreakEven {
    /// The API's model.
    pub model: String,
    /// Its price of a million tokens, blended.
    pub usd_per_million: f64,
    /// What a million cost on one's own devices when they are always busy.
    pub own_usd_per_million: f64,
    /// Tokens a day, read and written, from which on the devices' day costs less; `None` if they cannot do as many.
    pub tokens_per_day: Option<f64>,
}

/// Plans serving `config`.
pub fn serving<'a>(
    config: &ModelConfig,
    assumptions: &Assumptions,
    prices: impl Iterator<Item = &'a Price>,
) -> ServingPlan {
    let Assumptions { device, precision, context, prompt, utilisation, .. } = assumptions;
    let weights = Weights::of(config, *precision);
    let cache = 2.0 * count::cache_elements_per_token(config, CacheLayout::Latent) as f64;
    let memory = FILLED * device.memory_bytes();
    // The caches get a fifth of the memory at least.
    let devices = assumptions.devices.unwrap_or_else(|| (weights.all / (0.8 * memory)).ceil().max(1.0) as u64);
    let room = (devices as f64 * memory - weights.all).max(0.0);
    let per_sequence = cache * (*context).max(1) as f64;
    let sequences_that_fit = (room / per_sequence) as u64;
    let batch = assumptions.batch.unwrap_or(sequences_that_fit).max(1);
    let forward = |context| count::forward_flops(config, context);
    let decode = forward(Context::DecodeAbsorbed { keys: *context });
    let prefill = forward(Context::Causal { tokens: *prompt }).total().0 as f64;
    let (bandwidth, peak) = (devices as f64 * device.bandwidth(), devices as f64 * device.peak_flops(*precision));
    let step_bytes = weights.read_by(batch) + batch as f64 * per_sequence;
    let by_bandwidth = batch as f64 / (step_bytes / bandwidth);
    let by_arithmetic = peak / decode.total().0 as f64;
    let decode_rate = utilisation * by_bandwidth.min(by_arithmetic);
    let prefill_rate = utilisation * peak / prefill;
    let usd_per_second = devices as f64 * device.usd_per_hour / 3600.0;
    let (usd_in, usd_out) = (1e6 * usd_per_second / prefill_rate, 1e6 * usd_per_second / decode_rate);
    ServingPlan {
        assumptions: assumptions.clone(),
        devices,
        weights_bytes: weights.all,
        cache_bytes_per_token: cache,
        sequences_that_fit,
        batch,
        decode_flops_per_token: decode.total().0 as f64,
        prefill_flops_per_token: prefill,
        core_flops_per_byte: decode.attention_core.0 as f64 / per_sequence,
        decode_bound_by_bandwidth: by_bandwidth,
        decode_bound_by_arithmetic: by_arithmetic,
        decode_tokens_per_second: decode_rate,
        single_stream_bound: bandwidth / (weights.read_by(1) + per_sequence),
        prefill_tokens_per_second: prefill_rate,
        usd_per_million_out: usd_out,
        usd_per_million_in: usd_in,
        break_even: prices.filter_map(|price| break_even(price, usd_in, usd_out, usd_per_second)).collect(),
    }
}

fn break_even(price: &Price, usd_in: f64, usd_out: f64, usd_per_second: f64) -> Option<BreakEven> {
    let theirs = price.blended()?;
    let own = (INPUT_PER_OUTPUT * usd_in + usd_out) / (INPUT_PER_OUTPUT + 1.0);
    let tokens_per_day = 86_400.0 * usd_per_second / (theirs / 1e6);
    Some(BreakEven {
        model: price.model.clone(),
        usd_per_million: theirs,
        own_usd_per_million: own,
        tokens_per_day: (own < theirs).then_some(tokens_per_day),
    })
}

/// Bytes of weights, by how they are used.
struct Weights {
    all: f64,
    /// Read in every step: all but the routed experts and the embedding, of which single rows are read.
    always: f64,
    experts: f64,
    /// K / E.
    taken: f64,
}

impl Weights {
    fn of(config: &ModelConfig, precision: ProductFormat) -> Weights {
        let config = ModelConfig { mtp_depth: 0, ..config.clone() };
        let dtype = match precision {
            ProductFormat::F32 => Dtype::F32,
            ProductFormat::Bf16 => Dtype::Bf16,
            ProductFormat::Fp8 => Dtype::Fp8,
        };
        let params = count::params(&config);
        let all = count::checkpoint(&config, dtype).bytes().0 as f64;
        let experts = params.routed_experts.0 as f64 * precision.bytes() as f64;
        let table = if config.tied_head { 0.0 } else { params.embedding.0 as f64 * precision.bytes().max(2) as f64 };
        let taken = config.moe.as_ref().map_or(1.0, |moe| moe.top_k as f64 / moe.experts as f64);
        Weights { all, always: all - experts - table, experts, taken }
    }

    /// Bytes that a step of `batch` tokens reads, if routing is even.
    fn read_by(&self, batch: u64) -> f64 {
        self.always + self.experts * (1.0 - (1.0 - self.taken).powf(batch as f64))
    }
}

//! Serving in units of many devices, as DeepSeek's service does: one kind reads prompts, the other writes answers.
//!
//! Attention and shared experts are data-parallel, so each device has all of them; routed experts and their replicas
//! are spread over a unit. A device's rate is bounded by arithmetic, by reading weights and caches, and by its link to
//! other nodes, which carries each token to its experts in FP8 and back in bf16.

use serde::Serialize;
use wels_model::config::ModelConfig;
use wels_model::count::{self, CacheLayout, Context};
use wels_model::traffic::Spread;

use super::{Cluster, constants};
use crate::plan::devices::ProductFormat;
use crate::plan::training::FILLED;

/// What a unit does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Prefill,
    Decode,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Prefill => "prefill",
            Phase::Decode => "decode",
        }
    }
}

/// One kind of unit.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Unit {
    pub phase: Phase,
    pub devices: usize,
    /// Routed experts and replicas of a layer on one device, and one shared.
    pub experts_per_device: usize,
    /// Weights on one device, FP8.
    pub weights_bytes: f64,
    /// What of a device's memory is left for caches.
    pub cache_bytes: f64,
    /// Sequences side by side on one device; of prefill none stays.
    pub streams_per_device: Option<f64>,
    /// Tokens a second of one device at most: by arithmetic, by memory, by its link.
    pub bound_by_arithmetic: f64,
    /// `None` for prefill, which reads no caches to speak of.
    pub bound_by_memory: Option<f64>,
    pub bound_by_link: f64,
    /// Of a node, at the part of the least bound that a service reaches. Of prefill with tokens that are found in a
    /// cache.
    pub tokens_per_second_per_node: f64,
}

/// Units as they were published: open-infra-index, day 6.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Units {
    pub prefill: Unit,
    pub decode: Unit,
    /// Prompts' tokens found in a cache, 342 of 608 billion.
    pub cached: f64,
    /// Keys of a decoded token.
    pub keys: usize,
}

const CACHED: f64 = 342.0 / 608.0;
const KEYS: usize = 4_989;
const REPLICAS: usize = 32;
/// Tokens a second of one sequence.
const STREAM: f64 = 21.0;
const PREFILL_DEVICES: usize = 32;
const DECODE_DEVICES: usize = 144;

impl Units {
    /// The published units with `config` and the devices of `cluster`; `None` if its experts cannot be spread so, or a
    /// device has no FP8.
    pub fn of(config: &ModelConfig, cluster: &Cluster, prompt: usize) -> Option<Units> {
        let moe = config.moe.as_ref()?;
        let spread = |devices| (moe.experts + REPLICAS).is_multiple_of(devices);
        if !spread(PREFILL_DEVICES) || !spread(DECODE_DEVICES) || cluster.device.tflops_fp8.is_none() {
            return None;
        }
        let unit = |phase, devices| unit(config, cluster, phase, devices, prompt);
        Some(Units {
            prefill: unit(Phase::Prefill, PREFILL_DEVICES)?,
            decode: unit(Phase::Decode, DECODE_DEVICES)?,
            cached: CACHED,
            keys: KEYS,
        })
    }

    pub fn all(&self) -> [&Unit; 2] {
        [&self.prefill, &self.decode]
    }
}

fn unit(config: &ModelConfig, cluster: &Cluster, phase: Phase, devices: usize, prompt: usize) -> Option<Unit> {
    let moe = config.moe.as_ref()?;
    let config = ModelConfig { mtp_depth: 0, ..config.clone() };
    let params = count::params(&config);
    let routed = params.routed_experts.0 as f64;
    let experts_per_device = (moe.experts + REPLICAS) / devices;
    // Embedding and head in bf16, all else in FP8.
    let weights_bytes = routed / moe.experts as f64 * experts_per_device as f64 + params.total.0 as f64 - routed
        + 2.0 * params.embedding.0 as f64;
    let cache = 2.0 * count::cache_elements_per_token(&config, CacheLayout::Latent) as f64;
    let cache_bytes = (FILLED * cluster.device.memory_bytes() - weights_bytes).max(0.0);
    let (context, bytes_per_token) = match phase {
        Phase::Prefill => (Context::Causal { tokens: prompt }, 0.0),
        Phase::Decode => (Context::DecodeAbsorbed { keys: KEYS }, cache * KEYS as f64),
    };
    let flops = count::forward_flops(&config, context).total().0 as f64;
    let by_arithmetic = cluster.rate(ProductFormat::Fp8) / flops;
    let layers = (config.layers - moe.first_dense_layers) as f64;
    let copies = match phase {
        // Once to each other node, and on from there.
        Phase::Prefill => {
            let spread = Spread { experts: moe.experts, devices, devices_per_node: cluster.devices_per_node as usize };
            spread.expected(moe).other_nodes
        }
        // To each routed expert and the shared one ("Insights into DeepSeek-V3", §2.3.2).
        Phase::Decode => (moe.top_k + 1) as f64,
    };
    // There in one byte a number, and back in two.
    let sent = 3.0 * copies * config.hidden_size as f64 * layers;
    let by_link = cluster.ib / sent;
    let served = |bound: f64| constants::SERVED * bound;
    // Reading weights once for all streams, and each stream's cache.
    let streams = served(by_arithmetic) / STREAM;
    let by_memory = match phase {
        Phase::Prefill => None,
        Phase::Decode => Some(streams * cluster.device.bandwidth() / (weights_bytes + streams * bytes_per_token)),
    };
    let rate = served(by_arithmetic).min(by_memory.unwrap_or(f64::INFINITY)).min(by_link);
    let through_cache = if phase == Phase::Prefill { 1.0 / (1.0 - CACHED) } else { 1.0 };
    Some(Unit {
        phase,
        devices,
        experts_per_device,
        weights_bytes,
        cache_bytes,
        streams_per_device: (phase == Phase::Decode).then_some(rate / STREAM),
        bound_by_arithmetic: by_arithmetic,
        bound_by_memory: by_memory,
        bound_by_link: by_link,
        tokens_per_second_per_node: rate * through_cache * cluster.devices_per_node as f64,
    })
}

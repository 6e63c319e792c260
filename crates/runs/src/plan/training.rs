//! What a training takes on named devices: operations, device-hours, money, memory, and whether it fits.

use serde::Serialize;
use wels_model::config::ModelConfig;
use wels_model::count::{self, Context, ForwardFlops};

use super::devices::{Device, ProductFormat};
use super::{kept_per_token, widest_backward_per_token};

/// What a training plan rests on.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Assumptions {
    /// Tokens to train on.
    pub tokens: f64,
    /// Tokens of a sequence (T).
    pub sequence_length: usize,
    /// The machine.
    pub device: Device,
    pub devices: u64,
    /// The fraction of the peak that is used, operations counted causally and with MTP.
    pub utilisation: f64,
    pub precision: ProductFormat,
}

/// What a training takes.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TrainingPlan {
    /// What it rests on.
    pub assumptions: Assumptions,
    /// Operations of one token, forward and backward, by component.
    pub flops_per_token: Components,
    /// Operations of all tokens.
    pub flops: f64,
    pub tokens_per_second_per_device: f64,
    /// Hours of all devices together.
    pub device_hours: f64,
    /// Days by the clock.
    pub days: f64,
    /// Money.
    pub usd: f64,
    pub memory: Memory,
}

/// Operations of one token by component.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Components {
    /// Projections of attention.
    pub attention_linear: f64,
    /// Scores and weighted values.
    pub attention_core: f64,
    /// Layers without experts.
    pub dense_ffn: f64,
    pub routed_experts: f64,
    pub shared_experts: f64,
    /// Router scores.
    pub router: f64,
    /// Output head.
    pub head: f64,
    /// Multi-token prediction.
    pub mtp: f64,
    /// All of them.
    pub total: f64,
}

impl Components {
    /// `times` the operations of a forward pass.
    pub fn of(flops: &ForwardFlops, times: u64) -> Components {
        let part = |part: count::Flops| (part * times).0 as f64;
        Components {
            attention_linear: part(flops.attention_linear),
            attention_core: part(flops.attention_core),
            dense_ffn: part(flops.dense_ffn),
            routed_experts: part(flops.routed_experts),
            shared_experts: part(flops.shared_experts),
            router: part(flops.router),
            head: part(flops.head),
            mtp: part(flops.mtp),
            total: part(flops.total() + flops.mtp),
        }
    }

    /// Name and value of each part, without the total.
    pub fn parts(&self) -> [(&'static str, f64); 8] {
        [
            ("attention, projections", self.attention_linear),
            ("attention, over the context", self.attention_core),
            ("dense feed-forward", self.dense_ffn),
            ("routed experts", self.routed_experts),
            ("shared experts", self.shared_experts),
            ("router", self.router),
            ("head", self.head),
            ("multi-token prediction", self.mtp),
        ]
    }
}

/// Bytes that a training holds, over all devices unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Memory {
    /// Weights that products read; 0 where they are the master weights.
    pub working_weights: f64,
    /// Master weights, f32.
    pub master_weights: f64,
    /// Gradients, f32.
    pub gradients: f64,
    /// AdamW's two means.
    pub optimizer: f64,
    /// Activations of one sequence on a device, kept whole.
    pub activations: f64,
    /// The same with every layer computed again in the backward pass.
    pub activations_recomputed: f64,
    /// An even share of weights, gradients and optimizer, and one sequence's activations, recomputed: what a device
    /// holds at least.
    pub per_device: f64,
    /// Whether that fits into nine tenths of a device's memory.
    pub fits: bool,
    /// The fewest devices on which it would; `None` if one sequence's activations alone are too many.
    pub fewest_devices: Option<u64>,
}

/// The part of a device's memory that a plan fills.
pub const FILLED: f64 = 0.9;

/// Plans the training of `config`.
pub fn training(config: &ModelConfig, assumptions: &Assumptions) -> TrainingPlan {
    let Assumptions { tokens, sequence_length, device, devices, utilisation, precision } = assumptions;
    let forward = count::forward_flops(config, Context::Causal { tokens: *sequence_length });
    let flops_per_token = Components::of(&forward, 3);
    let rate = utilisation * device.peak_flops(*precision) / flops_per_token.total;
    let device_hours = tokens / rate / 3600.0;
    TrainingPlan {
        flops: flops_per_token.total * tokens,
        tokens_per_second_per_device: rate,
        device_hours,
        days: device_hours / *devices as f64 / 24.0,
        usd: device_hours * device.usd_per_hour,
        memory: memory(config, assumptions),
        flops_per_token,
        assumptions: assumptions.clone(),
    }
}

fn memory(config: &ModelConfig, assumptions: &Assumptions) -> Memory {
    let Assumptions { sequence_length, device, devices, precision, .. } = assumptions;
    let parameters = count::training_bytes(config).weights.0 as f64 / 4.0;
    let (working, means) = match precision {
        ProductFormat::F32 => (0.0, 8.0),
        ProductFormat::Bf16 => (2.0, 8.0),
        ProductFormat::Fp8 => (1.0, 4.0),
    };
    // Norms, softmax and residuals stay in 16 bits also where products are in FP8.
    let number = precision.bytes().max(2) as f64;
    let layers = config.layers + config.mtp_depth;
    let kept: usize = (0..layers).map(|layer| kept_per_token(config, layer)).sum();
    let widest = (0..layers).map(|layer| kept_per_token(config, layer)).max().unwrap_or(0);
    let passing = widest_backward_per_token(config);
    let bytes = |per_token: usize| per_token as f64 * *sequence_length as f64 * number;
    let activations_recomputed = bytes(layers * config.hidden_size + widest + passing);
    let state = parameters * (working + 4.0 + 4.0 + means);
    let room = FILLED * device.memory_bytes() - activations_recomputed;
    let per_device = state / *devices as f64 + activations_recomputed;
    Memory {
        working_weights: parameters * working,
        master_weights: parameters * 4.0,
        gradients: parameters * 4.0,
        optimizer: parameters * means,
        activations: bytes(kept + passing),
        activations_recomputed,
        per_device,
        fits: per_device <= FILLED * device.memory_bytes(),
        fewest_devices: (room > 0.0).then(|| (state / room).ceil() as u64),
    }
}

/// The tokens that a published model was trained on; for others twenty an activated parameter (Hoffmann et al. 2022,
/// where loss is least for a given number of operations).
pub fn usual_tokens(model: &str, config: &ModelConfig) -> f64 {
    const PUBLISHED: [(&str, f64); 5] = [
        ("deepseek-v3", 14.8e12),
        ("deepseek-r1", 14.8e12),
        ("deepseek-v2", 8.1e12),
        ("deepseek-v2-lite", 5.7e12),
        ("smollm2-135m", 2e12),
    ];
    let published = PUBLISHED.iter().find(|(name, _)| name.eq_ignore_ascii_case(model));
    published.map_or(20.0 * count::params(config).activated.0 as f64, |(_, tokens)| *tokens)
}

//! Post-training by reinforcement learning: hours and money from their parts, and what the outputs need at least.

use serde::Deserialize;
use wels_model::config::ModelConfig;
use wels_model::count::{self, Context};

use super::{Checks, whole};
use crate::plan::devices::{Device, ProductFormat};

/// `[post_training]` of a claim.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostTraining {
    pub(super) device: String,
    usd_per_hour: f64,
    total_hours: f64,
    total_usd: f64,
    output_tokens_per_second_per_device: f64,
    part: Vec<Part>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    name: String,
    hours: f64,
    usd: f64,
    devices: Option<u64>,
    wall_hours: Option<f64>,
    rollouts: Option<Rollouts>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollouts {
    per_step: u64,
    lengths: Vec<Length>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Length {
    steps: u64,
    most_tokens: u64,
}

/// The utilisation of the training half of a step, as in pre-training.
const TRAINING_UTILISATION: f64 = 0.39;

impl PostTraining {
    pub(super) fn check(&self, config: &ModelConfig, device: &Device, checks: &mut Checks) {
        let price = self.usd_per_hour;
        for part in &self.part {
            let Part { name, hours, usd, .. } = part;
            if let (Some(devices), Some(wall_hours)) = (part.devices, part.wall_hours) {
                let how = format!("{devices} devices × {wall_hours} h");
                checks.compare(format!("hours of {name}"), *hours, devices as f64 * wall_hours, 0.005, "h", how);
            }
            let how = format!("{} h × ${price}", whole(*hours));
            checks.compare(format!("cost of {name}"), *usd, hours * price, 1e-9, "$", how);
            if let Some(rollouts) = &part.rollouts {
                self.check_rollouts(name, *hours, rollouts, config, device, checks);
            }
        }
        let sum: f64 = self.part.iter().map(|part| part.hours).sum();
        let parts: Vec<_> = self.part.iter().map(|part| whole(part.hours)).collect();
        checks.compare("hours in all", self.total_hours, sum, 1e-9, "h", parts.join(" + "));
        checks.compare("cost in all", self.total_usd, sum * price, 1e-9, "$", format!("{} h × ${price}", whole(sum)));
    }

    /// Hours that all outputs at their greatest length would take, sampled at a service's rate and trained on once.
    /// Real outputs are shorter, so the claimed hours must not be far above.
    fn check_rollouts(
        &self,
        name: &str,
        hours: f64,
        rollouts: &Rollouts,
        config: &ModelConfig,
        device: &Device,
        checks: &mut Checks,
    ) {
        let peak = device.peak_flops(ProductFormat::Bf16);
        let (mut outputs, mut tokens, mut training_hours) = (0.0, 0.0, 0.0);
        for length in &rollouts.lengths {
            let new = (length.steps * rollouts.per_step) as f64;
            let flops = count::forward_flops(config, Context::Causal { tokens: length.most_tokens as usize });
            outputs += new;
            tokens += new * length.most_tokens as f64;
            let flops = 3.0 * flops.total().0 as f64 * new * length.most_tokens as f64;
            training_hours += flops / (TRAINING_UTILISATION * peak) / 3600.0;
        }
        let sampling_hours = tokens / self.output_tokens_per_second_per_device / 3600.0;
        let steps: u64 = rollouts.lengths.iter().map(|length| length.steps).sum();
        let how = format!("{} steps × {}", whole(steps as f64), rollouts.per_step);
        checks.computed(format!("outputs of {name}"), outputs, "", how);
        let how = format!(
            "all {:.0}e9 tokens of the longest outputs: {} h to sample, {} h to train on at {:.0}%",
            tokens / 1e9,
            whole(sampling_hours),
            whole(training_hours),
            100.0 * TRAINING_UTILISATION
        );
        checks.computed(format!("hours of {name} at the greatest length"), sampling_hours + training_hours, "h", how);
        let ratio = 100.0 * hours / (sampling_hours + training_hours);
        let how = "shorter outputs leave room for waiting; far above 100 would ask for an explanation".to_string();
        checks.possible(format!("claimed hours of {name} against these"), ratio, 200.0, "%", how);
    }
}

//! A training: hours and money from their parts; the utilisation that tokens and hours imply.

use serde::Deserialize;
use wels_model::config::ModelConfig;
use wels_model::count::{self, Context};

use super::{Checks, whole};
use crate::plan::devices::{Device, ProductFormat};

/// `[training]` of a claim.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Training {
    tokens: f64,
    sequence_length: usize,
    pub(super) device: String,
    usd_per_hour: f64,
    devices: Option<u64>,
    hours_per_trillion_tokens: Option<f64>,
    total_hours: Option<f64>,
    total_usd: Option<f64>,
    /// Figures that circulate and are not the published ones.
    #[serde(default)]
    misquoted_hours: Vec<f64>,
    /// The first one is what the tokens were trained in.
    #[serde(default)]
    part: Vec<Part>,
    measured: Option<Measured>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    name: String,
    hours: f64,
    usd: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Measured {
    tokens_per_day: f64,
    step_tokens: f64,
    step_seconds: f64,
    utilisation_causal: f64,
    utilisation_non_causal: f64,
}

/// Half of the last digit in print, relative.
const PRINTED: f64 = 0.001;

impl Training {
    pub(super) fn check(&self, config: &ModelConfig, device: &Device, checks: &mut Checks) {
        self.check_sums(checks);
        let first = self.part.first().map(|part| part.hours);
        let from_rate = self.hours_per_trillion_tokens.map(|hours| hours * self.tokens / 1e12);
        let Some(hours) = first.or(from_rate) else { return };
        self.check_work(config, device, hours, checks);
        if let Some(measured) = &self.measured {
            self.check_measured(config, device, measured, checks);
        }
        for misquoted in &self.misquoted_hours {
            self.check_misquoted(config, device, *misquoted, checks);
        }
    }

    fn check_sums(&self, checks: &mut Checks) {
        let price = self.usd_per_hour;
        if let (Some(rate), Some(part)) = (self.hours_per_trillion_tokens, self.part.first()) {
            let how = format!("{} h a trillion × {} trillion tokens", whole(rate), self.tokens / 1e12);
            checks.compare(format!("hours of {}", part.name), part.hours, rate * self.tokens / 1e12, 1e-9, "h", how);
        }
        for part in &self.part {
            if let Some(usd) = part.usd {
                let how = format!("{} h × ${price}", whole(part.hours));
                checks.compare(format!("cost of {}", part.name), usd, part.hours * price, 1e-9, "$", how);
            }
        }
        let sum: f64 = self.part.iter().map(|part| part.hours).sum();
        if sum > 0.0 {
            let parts: Vec<_> = self.part.iter().map(|part| whole(part.hours)).collect();
            checks.maybe("hours in all", self.total_hours, sum, 1e-9, "h", parts.join(" + "));
            let how = format!("{} h × ${price}", whole(sum));
            checks.maybe("cost in all", self.total_usd, sum * price, 1e-9, "$", how);
        }
        if let (Some(devices), Some(part)) = (self.devices, self.part.first()) {
            let days = part.hours / devices as f64 / 24.0;
            checks.computed(
                format!("days of {}", part.name),
                days,
                "d",
                format!("on {} devices", whole(devices as f64)),
            );
        }
    }

    /// Tokens, operations and hours against the device's peak.
    fn check_work(&self, config: &ModelConfig, device: &Device, hours: f64, checks: &mut Checks) {
        let work = Work::of(config, self.sequence_length);
        let rate = self.tokens / (hours * 3600.0);
        let peak = device.peak_flops(ProductFormat::Bf16);
        let how = format!("{:.3e} tokens in {} h", self.tokens, whole(hours));
        checks.computed("tokens a second and device", rate, "", how);
        let billions = work.causal / 1e9;
        let how = format!("3 × forward, keys counted causally, {} tokens", whole(self.sequence_length as f64));
        checks.computed("operations a token, training", billions, "GFLOP", how);
        checks.computed("operations a second and device", rate * work.causal / 1e12, "TFLOP/s", String::new());
        let of_peak = |name: &str| format!("of {:.1} TFLOP/s, {name}", peak / 1e12);
        let used = |flops: f64| 100.0 * rate * flops / peak;
        checks.possible(
            "utilisation of the bf16 peak, causal",
            used(work.causal),
            65.0,
            "%",
            of_peak("possible up to 65"),
        );
        if work.mtp > 0.0 {
            checks.computed("the same with multi-token prediction", used(work.causal + work.mtp), "%", of_peak("bf16"));
        }
        checks.computed("the same, all keys counted", used(work.non_causal), "%", of_peak("bf16"));
        if let Some(fp8) = device.tflops_fp8.filter(|_| config.family.is_deepseek()) {
            let used = 100.0 * rate * work.causal / (fp8 * 1e12);
            checks.computed("utilisation of the FP8 peak", used, "%", format!("of {fp8} TFLOP/s"));
        }
        let all: f64 = self.part.iter().map(|part| part.hours).sum();
        if all > hours {
            let how = format!("the same tokens over all {} h", whole(all));
            checks.computed("utilisation over all hours", used(work.causal) * hours / all, "%", how);
        }
        let how = "operations a token × tokens".to_string();
        checks.computed("operations in all", work.causal * self.tokens, "FLOP", how.clone());
        if work.mtp > 0.0 {
            let all = (work.causal + work.mtp) * self.tokens;
            checks.computed("operations in all, with multi-token prediction", all, "FLOP", how);
        }
        let activated = count::params(config).activated.0 as f64;
        let how = format!("6 × {:.2}e9 activated × tokens: leaves out attention over the context", activated / 1e9);
        checks.computed("operations by the rule 6·N·D", 6.0 * activated * self.tokens, "FLOP", how);
    }

    fn check_measured(&self, config: &ModelConfig, device: &Device, measured: &Measured, checks: &mut Checks) {
        let Some(devices) = self.devices.map(|devices| devices as f64) else { return };
        let work = Work::of(config, self.sequence_length);
        let by_day = measured.tokens_per_day / 86_400.0 / devices;
        let by_step = measured.step_tokens / measured.step_seconds / devices;
        let how = format!("{:.2}e9 tokens a day / {} devices", measured.tokens_per_day / 1e9, whole(devices));
        checks.compare("measured step: tokens a second and device", by_day, by_step, PRINTED, "", how);
        let peak = device.peak_flops(ProductFormat::Bf16);
        for (name, claimed, flops) in [
            ("measured utilisation, causal", measured.utilisation_causal, work.causal),
            ("measured utilisation, all keys counted", measured.utilisation_non_causal, work.non_causal),
        ] {
            // The peak that the publication divided by is not known to the last digit.
            let how = "measured rate × operations / peak".to_string();
            checks.compare(name, 100.0 * claimed, 100.0 * by_step * flops / peak, 0.005, "%", how);
        }
    }

    /// A figure in circulation: what it would cost and how fast the devices would have had to be.
    fn check_misquoted(&self, config: &ModelConfig, device: &Device, hours: f64, checks: &mut Checks) {
        let used = 100.0 * self.tokens * Work::of(config, self.sequence_length).causal
            / (hours * 3600.0)
            / device.peak_flops(ProductFormat::Bf16);
        let usd = hours * self.usd_per_hour;
        let how = match used > 100.0 {
            true => format!("impossible: {used:.0}% of the peak would be needed; a digit is missing"),
            false => format!("{used:.1}% of the peak would be needed"),
        };
        checks.computed(format!("cost if it were {} h", whole(hours)), usd, "$", how);
    }
}

/// Operations of one token, forward and backward.
struct Work {
    causal: f64,
    non_causal: f64,
    mtp: f64,
}

impl Work {
    fn of(config: &ModelConfig, tokens: usize) -> Work {
        let flops = |context| count::forward_flops(config, context);
        let causal = flops(Context::Causal { tokens });
        Work {
            causal: 3.0 * causal.total().0 as f64,
            non_causal: 3.0 * flops(Context::NonCausal { tokens }).total().0 as f64,
            mtp: 3.0 * causal.mtp.0 as f64,
        }
    }
}

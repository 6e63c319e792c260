//! A service: cost, theoretical revenue, margin, and what a device would have to do.

use serde::Deserialize;
use wels_model::config::ModelConfig;
use wels_model::count::{self, CacheLayout, Context};

use super::{Checks, whole};
use crate::plan::devices::{Device, ProductFormat};

/// `[serving]` of a claim: one day.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Service {
    pub(super) device: String,
    usd_per_hour: f64,
    nodes: f64,
    devices_per_node: f64,
    usd_per_day: f64,
    input_tokens: f64,
    cached_tokens: f64,
    output_tokens: f64,
    usd_in_cached: f64,
    usd_in: f64,
    usd_out: f64,
    revenue_usd: f64,
    margin: f64,
    node_input_tokens_per_second: f64,
    node_output_tokens_per_second: f64,
    tokens_per_second_per_user: f64,
    context: usize,
    prompt: usize,
}

impl Service {
    pub(super) fn check(&self, config: &ModelConfig, device: &Device, checks: &mut Checks) {
        let cost = self.nodes * self.devices_per_node * 24.0 * self.usd_per_hour;
        let how = format!("{} nodes × {} × 24 h × ${}", self.nodes, self.devices_per_node, self.usd_per_hour);
        checks.compare("cost of a day", self.usd_per_day, cost, 1e-9, "$", how);
        let missed = self.input_tokens - self.cached_tokens;
        let millions = |tokens: f64| tokens / 1e6;
        let revenue = millions(self.cached_tokens) * self.usd_in_cached
            + millions(missed) * self.usd_in
            + millions(self.output_tokens) * self.usd_out;
        let billions = |tokens: f64| format!("{:.0}e9", tokens / 1e9);
        let how = format!(
            "{} × ${} + {} × ${} + {} × ${} a million: every token paid at R1's price",
            billions(self.cached_tokens),
            self.usd_in_cached,
            billions(missed),
            self.usd_in,
            billions(self.output_tokens),
            self.usd_out
        );
        checks.compare("theoretical revenue of a day", self.revenue_usd, revenue, 0.001, "$", how);
        let margin = 100.0 * (self.revenue_usd - cost) / cost;
        let how = format!("(${} − ${}) / ${}", whole(self.revenue_usd), whole(cost), whole(cost));
        checks.compare("margin over cost", 100.0 * self.margin, margin, 0.002, "%", how);
        let rounded = 100.0 * (revenue - cost) / cost;
        checks.computed("the same from the rounded tokens", rounded, "%", String::new());
        let of_revenue = 100.0 * (self.revenue_usd - cost) / self.revenue_usd;
        checks.computed("the same as a part of revenue", of_revenue, "%", "(revenue − cost) / revenue".into());
        let hits = 100.0 * self.cached_tokens / self.input_tokens;
        checks.computed("input found in the cache", hits, "%", String::new());
        self.check_device(config, device, checks);
    }

    /// What the published rates ask of one device.
    fn check_device(&self, config: &ModelConfig, device: &Device, checks: &mut Checks) {
        let output = self.node_output_tokens_per_second / self.devices_per_node;
        checks.computed("output tokens a second and device", output, "", "of a node's, an eighth".into());
        let decode = count::forward_flops(config, Context::DecodeAbsorbed { keys: self.context }).total().0 as f64;
        let peak = device.peak_flops(ProductFormat::Bf16) / 1e12;
        let rate = output * decode / 1e12;
        let how =
            format!("{:.1} GFLOP a token, absorbed, {} keys; the bf16 peak is {peak}", decode / 1e9, self.context);
        checks.possible("decoding, operations a second and device", rate, peak, "TFLOP/s", how);
        let streams = output / self.tokens_per_second_per_user;
        let how = format!("at {} tokens a second each", self.tokens_per_second_per_user);
        checks.computed("sequences side by side on a device", streams, "", how);
        let per_token = 2.0 * count::cache_elements_per_token(config, CacheLayout::Latent) as f64;
        let cache = streams.round() * self.context as f64 * per_token / 1e9;
        let how = format!("{} keys × {} bytes each; a device has {} GB", self.context, per_token, device.memory_gb);
        checks.possible("their caches", cache, device.memory_gb, "GB", how);
        let missed = 1.0 - self.cached_tokens / self.input_tokens;
        let prefill = count::forward_flops(config, Context::Causal { tokens: self.prompt }).total().0 as f64;
        let rate = self.node_input_tokens_per_second / self.devices_per_node * missed * prefill / 1e12;
        let how = format!("{:.2} GFLOP a token that no cache holds", prefill / 1e9);
        checks.possible("prefill, operations a second and device", rate, peak, "TFLOP/s", how);
    }
}

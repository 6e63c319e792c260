//! Counters for Prometheus.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::money::Tokens;
use crate::worker::Snapshot;

/// Upper bounds of the histograms, in seconds.
const BOUNDS_S: [f64; 10] = [0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0];

/// What the HTTP side counts.
#[derive(Default)]
pub(super) struct Metrics {
    pub connections: AtomicU64,
    pub connections_refused: AtomicU64,
    /// By outcome, see [`OUTCOMES`].
    outcomes: [AtomicU64; OUTCOMES.len()],
    hit_tokens: AtomicU64,
    miss_tokens: AtomicU64,
    output_tokens: AtomicU64,
    /// From a request's admission.
    pub first_token: Histogram,
    /// From a request's admission.
    pub whole: Histogram,
}

/// How a request can end.
const OUTCOMES: [&str; 6] = ["done", "refused", "cancelled", "slow_reader", "error", "other"];

impl Metrics {
    /// A request has ended.
    pub fn ended(&self, outcome: &str) {
        let at = OUTCOMES.iter().position(|known| *known == outcome).unwrap_or(OUTCOMES.len() - 1);
        self.outcomes[at].fetch_add(1, Relaxed);
    }

    /// A request was sent so many tokens in all.
    pub fn sent(&self, tokens: Tokens) {
        self.hit_tokens.fetch_add(tokens.hit, Relaxed);
        self.miss_tokens.fetch_add(tokens.miss, Relaxed);
        self.output_tokens.fetch_add(tokens.output, Relaxed);
    }

    /// In Prometheus' text format.
    pub fn text(&self, snapshot: &Snapshot) -> String {
        let mut text = String::new();
        let (status, counters) = (&snapshot.status, &snapshot.status.counters);
        let mut family = |name: &str, kind: &str, samples: &[(&str, f64)]| {
            let _ = writeln!(text, "# TYPE wels_{name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "wels_{name}{labels} {value}");
            }
        };
        let count = |counter: &AtomicU64| counter.load(Relaxed) as f64;
        let outcomes: Vec<(String, f64)> = OUTCOMES
            .iter()
            .zip(&self.outcomes)
            .map(|(outcome, counter)| (format!("{{outcome=\"{outcome}\"}}"), count(counter)))
            .collect();
        let outcomes: Vec<(&str, f64)> = outcomes.iter().map(|(labels, value)| (labels.as_str(), *value)).collect();
        family("requests_total", "counter", &outcomes);
        family(
            "tokens_total",
            "counter",
            &[
                ("{kind=\"cache_hit\"}", count(&self.hit_tokens)),
                ("{kind=\"cache_miss\"}", count(&self.miss_tokens)),
                ("{kind=\"output\"}", count(&self.output_tokens)),
            ],
        );
        family("connections", "gauge", &[("", count(&self.connections))]);
        family("connections_refused_total", "counter", &[("", count(&self.connections_refused))]);
        family("requests_running", "gauge", &[("", status.running as f64)]);
        family("requests_waiting", "gauge", &[("", status.waiting.len() as f64)]);
        family("engine_steps_total", "counter", &[("", counters.steps as f64)]);
        family("engine_step_seconds_total", "counter", &[("", snapshot.step_time.as_secs_f64())]);
        family("engine_generated_tokens_total", "counter", &[("", counters.generated_tokens as f64)]);
        family("engine_prompt_tokens_total", "counter", &[("", counters.prompt_tokens as f64)]);
        family("engine_cached_tokens_total", "counter", &[("", counters.cached_tokens as f64)]);
        family("engine_drafted_tokens_total", "counter", &[("", counters.drafted_tokens as f64)]);
        family("engine_accepted_tokens_total", "counter", &[("", counters.accepted_tokens as f64)]);
        family("engine_preemptions_total", "counter", &[("", counters.preemptions as f64)]);
        let pages = [
            ("{state=\"all\"}", status.pages as f64),
            ("{state=\"free\"}", status.pages_free as f64),
            ("{state=\"cached\"}", status.pages_cached as f64),
        ];
        family("cache_pages", "gauge", &pages);
        self.first_token.text("first_token_seconds", &mut text);
        self.whole.text("request_seconds", &mut text);
        text
    }
}

/// Times, counted by size.
#[derive(Default)]
pub(super) struct Histogram {
    buckets: [AtomicU64; BOUNDS_S.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    pub fn add(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        for (bound, bucket) in BOUNDS_S.iter().zip(&self.buckets) {
            if seconds <= *bound {
                bucket.fetch_add(1, Relaxed);
            }
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    fn text(&self, name: &str, text: &mut String) {
        let _ = writeln!(text, "# TYPE wels_{name} histogram");
        for (bound, bucket) in BOUNDS_S.iter().zip(&self.buckets) {
            let _ = writeln!(text, "wels_{name}_bucket{{le=\"{bound}\"}} {}", bucket.load(Relaxed));
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(text, "wels_{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(text, "wels_{name}_sum {}", self.sum_us.load(Relaxed) as f64 / 1e6);
        let _ = writeln!(text, "wels_{name}_count {count}");
    }
}

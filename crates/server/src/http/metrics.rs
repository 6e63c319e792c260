//! Counters for Prometheus. What vLLM counts too has its name and unit (`vllm:…`), so that dashboards made for it work;
//! what it does not is `wels_…`, what every process has is `process_…`.

mod histogram;

mod page;

mod process;

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::money::Tokens;
use crate::worker::Snapshot;
use histogram::Histogram;
use page::{Kind, Page};

/// Connections of the whole server.
#[derive(Default)]
pub(super) struct Connections {
    pub open: AtomicU64,
    pub refused: AtomicU64,
}

/// What the HTTP side counts of a model's requests.
#[derive(Default)]
pub(super) struct Metrics {
    /// By outcome, see [`OUTCOMES`].
    outcomes: [AtomicU64; OUTCOMES.len()],
    /// By reason, see [`REASONS`].
    reasons: [AtomicU64; REASONS.len()],
    hit_tokens: AtomicU64,
    miss_tokens: AtomicU64,
    output_tokens: AtomicU64,
    pub times: Times,
    prompt_tokens_of_request: Histogram<TOKENS>,
    output_tokens_of_request: Histogram<TOKENS>,
}

/// Spans in seconds.
#[derive(Default)]
pub(super) struct Times {
    /// From a request's arrival.
    pub first_token: Histogram<FIRST_TOKEN>,
    /// Between steps that gave an answer tokens.
    pub inter_token: Histogram<INTER_TOKEN>,
    /// From a request's arrival to its end.
    pub whole: Histogram<REQUEST>,
    /// In the engine's queue.
    pub queue: Histogram<REQUEST>,
    /// From there to the first token.
    pub prefill: Histogram<REQUEST>,
    /// From there to the end.
    pub decode: Histogram<REQUEST>,
}

// The bounds of histograms, by their place in `histogram::BOUNDS`.
pub(super) const FIRST_TOKEN: usize = 0;
pub(super) const INTER_TOKEN: usize = 1;
pub(super) const REQUEST: usize = 2;
pub(super) const TOKENS: usize = 3;

/// How a request can end.
const OUTCOMES: [&str; 6] = ["done", "refused", "cancelled", "slow_reader", "error", "other"];
/// Why an answer can end, in vLLM's words.
const REASONS: [&str; 4] = ["stop", "length", "abort", "error"];

/// All of it in Prometheus' text format: of models by their names, with their engines if they are loaded. What an
/// engine counts begins anew when its model is loaded again.
pub(super) fn text(connections: &Connections, models: &[(&str, &Metrics, Option<Snapshot>)]) -> String {
    let mut page = Page::default();
    for (name, metrics, snapshot) in models {
        page.begin_model(name);
        let loaded = f64::from(u8::from(snapshot.is_some()));
        let snapshot = snapshot.clone().unwrap_or_default();
        metrics.engine(&mut page, &snapshot);
        metrics.requests(&mut page);
        metrics.server(&mut page, &snapshot);
        page.family("wels_model_loaded", Kind::Gauge, "1 while the model is in memory.", &[("", loaded)]);
    }
    let open = connections.open.load(Relaxed) as f64;
    page.plain("wels_connections", Kind::Gauge, "Open connections.", open);
    let refused = connections.refused.load(Relaxed) as f64;
    page.plain("wels_connections_refused_total", Kind::Counter, "Connections above the limit.", refused);
    process::write(&mut page);
    page.text()
}

impl Metrics {
    /// A request has ended.
    pub fn ended(&self, outcome: &str) {
        let at = OUTCOMES.iter().position(|known| *known == outcome).unwrap_or(OUTCOMES.len() - 1);
        self.outcomes[at].fetch_add(1, Relaxed);
    }

    /// A request that the engine had has ended.
    pub fn finished(&self, reason: &str) {
        if let Some(at) = REASONS.iter().position(|known| *known == reason) {
            self.reasons[at].fetch_add(1, Relaxed);
        }
    }

    /// A request was sent so many tokens in all.
    pub fn sent(&self, tokens: Tokens) {
        self.hit_tokens.fetch_add(tokens.hit, Relaxed);
        self.miss_tokens.fetch_add(tokens.miss, Relaxed);
        self.output_tokens.fetch_add(tokens.output, Relaxed);
        self.prompt_tokens_of_request.add((tokens.hit + tokens.miss) as f64);
        self.output_tokens_of_request.add(tokens.output as f64);
    }

    /// What vLLM counts of its engine.
    fn engine(&self, page: &mut Page, snapshot: &Snapshot) {
        let (status, counters) = (&snapshot.status, &snapshot.status.counters);
        let used = status.pages.saturating_sub(status.pages_free + status.pages_cached);
        let usage = used as f64 / status.pages.max(1) as f64;
        let mut gauge = |name, help, value| page.family(name, Kind::Gauge, help, &[("", value)]);
        gauge("vllm:num_requests_running", "Requests that the engine works on.", status.running as f64);
        gauge("vllm:num_requests_waiting", "Requests that wait for the engine.", status.waiting.len() as f64);
        gauge("vllm:kv_cache_usage_perc", "Part of the KV cache that running requests hold; 1 is all of it.", usage);
        gauge("vllm:gpu_cache_usage_perc", "The same by vLLM's earlier name.", usage);
        let mut counter = |name, help, count: u64| page.family(name, Kind::Counter, help, &[("", count as f64)]);
        counter("vllm:prompt_tokens_total", "Tokens of prompts that began.", counters.prompt_tokens);
        counter("vllm:generation_tokens_total", "Tokens of answers.", counters.generated_tokens);
        counter("vllm:prefix_cache_queries_total", "Tokens looked up in the prefix cache.", counters.prompt_tokens);
        counter("vllm:prefix_cache_hits_total", "Tokens found in the prefix cache.", counters.cached_tokens);
        counter("vllm:num_preemptions_total", "Requests put back into the queue.", counters.preemptions);
        counter("vllm:spec_decode_num_draft_tokens_total", "Tokens drafted.", counters.drafted_tokens);
        counter("vllm:spec_decode_num_accepted_tokens_total", "Drafted tokens accepted.", counters.accepted_tokens);
    }

    /// What vLLM counts of requests.
    fn requests(&self, page: &mut Page) {
        let reasons = labelled("finished_reason", &REASONS, &self.reasons);
        let help = "Requests that the engine had and that ended, by why.";
        page.family("vllm:request_success_total", Kind::Counter, help, &borrowed(&reasons));
        let times = &self.times;
        let help = "From a request's arrival to its first token.";
        page.histogram("vllm:time_to_first_token_seconds", help, &times.first_token.counts());
        let help = "Between two steps that gave an answer tokens.";
        page.histogram("vllm:inter_token_latency_seconds", help, &times.inter_token.counts());
        let help = "The same by vLLM's earlier name.";
        page.histogram("vllm:time_per_output_token_seconds", help, &times.inter_token.counts());
        let help = "From a request's arrival to its end.";
        page.histogram("vllm:e2e_request_latency_seconds", help, &times.whole.counts());
        page.histogram("vllm:request_queue_time_seconds", "In the engine's queue.", &times.queue.counts());
        let help = "From the end of the queue to the first token.";
        page.histogram("vllm:request_prefill_time_seconds", help, &times.prefill.counts());
        page.histogram("vllm:request_decode_time_seconds", "From the first token to the end.", &times.decode.counts());
        let help = "Prompt tokens of a request.";
        page.histogram("vllm:request_prompt_tokens", help, &self.prompt_tokens_of_request.counts());
        let help = "Tokens that a request was sent.";
        page.histogram("vllm:request_generation_tokens", help, &self.output_tokens_of_request.counts());
    }

    /// What vLLM does not count.
    fn server(&self, page: &mut Page, snapshot: &Snapshot) {
        let (status, count) = (&snapshot.status, |counter: &AtomicU64| counter.load(Relaxed) as f64);
        let outcomes = labelled("outcome", &OUTCOMES, &self.outcomes);
        let help = "Requests that ended, by how; refused ones among them.";
        page.family("wels_requests_total", Kind::Counter, help, &borrowed(&outcomes));
        let tokens = [
            ("kind=\"cache_hit\"", count(&self.hit_tokens)),
            ("kind=\"cache_miss\"", count(&self.miss_tokens)),
            ("kind=\"output\"", count(&self.output_tokens)),
        ];
        page.family("wels_tokens_total", Kind::Counter, "Tokens on the account of requests that ended.", &tokens);
        let steps = status.counters.steps as f64;
        page.family("wels_engine_steps_total", Kind::Counter, "Forward passes.", &[("", steps)]);
        let seconds = snapshot.step_time.as_secs_f64();
        page.family("wels_engine_step_seconds_total", Kind::Counter, "Time of all forward passes.", &[("", seconds)]);
        let pages = [
            ("state=\"all\"", status.pages as f64),
            ("state=\"free\"", status.pages_free as f64),
            ("state=\"cached\"", status.pages_cached as f64),
        ];
        page.family("wels_cache_pages", Kind::Gauge, "Pages of the KV cache: all, without content, kept.", &pages);
    }
}

fn labelled(label: &str, names: &[&str], counters: &[AtomicU64]) -> Vec<(String, f64)> {
    let sample = |(name, counter): (&&str, &AtomicU64)| (format!("{label}=\"{name}\""), counter.load(Relaxed) as f64);
    names.iter().zip(counters).map(sample).collect()
}

fn borrowed(samples: &[(String, f64)]) -> Vec<(&str, f64)> {
    samples.iter().map(|(labels, value)| (labels.as_str(), *value)).collect()
}

//! A model behind an HTTP API of OpenAI's form.
//!
//! Servers refuse for a while (429, 503), stall, and count tokens as they like. A refusal is waited for as long as its
//! `Retry-After` says; a stall ends at the limit of time and is tried again; counts that cannot be are told, and with a
//! tokenizer at hand answers are counted here.

use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use serde_json::{Value, json};
use ureq::Agent;
use wels_data::tokenizer::Tokenizer;
use wels_pipeline::refusal::refuse;
use wels_runs::hash::sha256;
use wels_tasks::Prompt;

use super::Args;
use super::answer::{Answer, AnswerSink, Answerer, Questions, TOO_LONG, Work};
use crate::model::{OpenModel, locate};

/// Times that a request without an answer is made again.
const RETRIES: u32 = 4;
/// Times that one is made again that was refused for now: a busy server may say so for long.
const REFUSALS: u32 = 100;
/// The longest wait for one refusal.
const WAIT_MAX: Duration = Duration::from_secs(300);
/// The longest answer that is read.
const BODY_BYTES_MAX: u64 = 64 << 20;
/// Likeliest tokens that are asked for where choices are read from likelihoods.
const TOP_LOGPROBS: usize = 20;
/// Stop strings that OpenAI's API takes.
const STOPS_MAX: usize = 4;

/// A server.
pub struct Endpoint {
    agent: Agent,
    url: String,
    key: Option<String>,
    model: String,
    seed: u64,
    parallel: usize,
    can_chat: bool,
    tokenizer: Option<Tokenizer>,
    identity: Value,
    sums: Sums,
}

#[derive(Default)]
struct Sums {
    prompt_tokens: AtomicU64,
    cached_tokens: AtomicU64,
    generated_tokens: AtomicU64,
    implausible: AtomicU64,
    repeated: AtomicU64,
}

/// What became of one attempt.
enum Attempt {
    Answered(Value),
    /// The server asks to come again after this time, if it says when.
    Refused(Option<Duration>, String),
    /// No answer, or none that can be read.
    Failed(String),
    /// The prompt does not fit the model.
    TooLong,
}

impl Endpoint {
    /// For the model called `model` at `url`.
    pub fn new(args: &Args, url: &str, model: &Path) -> Result<Endpoint> {
        if !url.starts_with("http://") && !url.starts_with("https://") {
            let message = format!("{url} is no address of a server");
            return Err(refuse(message, "write it as http://HOST:PORT/v1"));
        }
        let timeout = Duration::from_secs(u64::from(args.endpoint.timeout.get()));
        let agent: Agent =
            Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build().into();
        let tokenizer = match &args.endpoint.tokenizer {
            Some(path) => {
                let none = || refuse(format!("{} has no tokenizer", path.display()), "name another --tokenizer");
                Some(OpenModel::open(&locate(path)?)?.tokenizer.ok_or_else(none)?)
            }
            None => None,
        };
        let model = model.display().to_string();
        let counted = tokenizer.as_ref().map(|tokenizer| json!({"tokenizer_sha256": tokenizer.sha256()}));
        let identity = json!({
            "endpoint": url.trim_end_matches('/'),
            "model": model,
            "tokens_counted_by": counted.unwrap_or_else(|| json!("the endpoint")),
        });
        Ok(Endpoint {
            agent,
            url: url.trim_end_matches('/').to_owned(),
            key: std::env::var(&args.endpoint.key_env).ok().filter(|key| !key.is_empty()),
            model,
            seed: args.what.seed,
            parallel: args.parallel.get(),
            can_chat: !matches!(args.how.prompt, Some(super::suite::PromptStyle::Plain)),
            tokenizer,
            identity,
            sums: Sums::default(),
        })
    }

    /// Asks one question, as often as it takes. `None` if it was stopped.
    fn ask(&self, asked: &dyn Questions, number: usize, stop: &AtomicBool) -> Result<Option<Answer>> {
        let begun = Instant::now();
        for shots in (0..=asked.shots()).rev() {
            let prompt = asked.prompt(number, shots);
            let (path, body) = self.request(asked, number, &prompt);
            let Some(reply) = self.post(path, &body, stop)? else { return Ok(None) };
            let text = match &prompt {
                Prompt::Text(text) => text.clone(),
                Prompt::Messages(messages) => json!(messages).to_string(),
            };
            let mut answer =
                Answer { prompt_sha256: sha256(text.as_bytes()), shots, end: TOO_LONG, ..Answer::default() };
            if let Some(reply) = reply {
                self.read(asked, number, &reply, &mut answer)?;
            } else if shots > 0 {
                continue;
            }
            answer.seconds = begun.elapsed().as_secs_f64();
            return Ok(Some(answer));
        }
        unreachable!("the last attempt has no examples and returns")
    }

    fn request(&self, asked: &dyn Questions, number: usize, prompt: &Prompt) -> (&'static str, Value) {
        let sampling = asked.sampling(number, self.seed);
        if asked.continuations(number).is_some() {
            let Prompt::Text(text) = prompt else { unreachable!("likelihoods continue text") };
            let body = json!({
                "model": self.model, "prompt": text, "max_tokens": 1, "temperature": 0, "logprobs": TOP_LOGPROBS,
            });
            return ("completions", body);
        }
        // Servers take seeds of different sizes; 31 bits suit all. Each sample has its own.
        let seed = wels_data::random::bits(sampling.seed, 0, u64::from(asked.sample(number)), 0) >> 33;
        let mut body = json!({
            "model": self.model,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": asked.max_tokens(),
            "seed": seed,
        });
        let stops = asked.stops();
        if !stops.is_empty() {
            body["stop"] = json!(stops[..stops.len().min(STOPS_MAX)]);
        }
        match prompt {
            Prompt::Text(text) => {
                body["prompt"] = json!(text);
                ("completions", body)
            }
            Prompt::Messages(messages) => {
                body["messages"] = json!(messages);
                ("chat/completions", body)
            }
        }
    }

    /// Posts until there is an answer. `None` if it was stopped; `Some(None)` if the prompt does not fit.
    fn post(&self, path: &str, body: &Value, stop: &AtomicBool) -> Result<Option<Option<Value>>> {
        let (mut failed, mut refused) = (0, 0);
        loop {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (wait, reason) = match self.attempt(path, body)? {
                Attempt::Answered(reply) => return Ok(Some(Some(reply))),
                Attempt::TooLong => return Ok(Some(None)),
                Attempt::Refused(after, reason) => {
                    refused += 1;
                    (after.unwrap_or(Duration::from_secs(1 << refused.min(6))).min(WAIT_MAX), reason)
                }
                Attempt::Failed(reason) => {
                    failed += 1;
                    (Duration::from_millis(250 << failed.min(8)), reason)
                }
            };
            if failed > RETRIES || refused > REFUSALS {
                let message =
                    format!("{}/{path} gives no answer after {} attempts: {reason}", self.url, failed + refused);
                return Err(refuse(message, "what was answered is kept; go on later with --resume"));
            }
            self.sums.repeated.fetch_add(1, Ordering::Relaxed);
            let until = Instant::now() + wait;
            while Instant::now() < until && !stop.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(20).min(wait));
            }
        }
    }

    fn attempt(&self, path: &str, body: &Value) -> Result<Attempt> {
        let mut post = self.agent.post(format!("{}/{path}", self.url)).header("content-type", "application/json");
        if let Some(key) = &self.key {
            post = post.header("authorization", format!("Bearer {key}"));
        }
        let mut reply = match post.send(body.to_string()) {
            Ok(reply) => reply,
            Err(error) => return Ok(Attempt::Failed(error.to_string())),
        };
        let status = reply.status().as_u16();
        let after =
            reply.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse::<f64>().ok());
        let after = after.filter(|seconds| (0.0..1e6).contains(seconds)).map(Duration::from_secs_f64);
        let text = match reply.body_mut().with_config().limit(BODY_BYTES_MAX).read_to_string() {
            Ok(text) => text,
            Err(error) => return Ok(Attempt::Failed(error.to_string())),
        };
        let said = || format!("status {status}: {}", text.chars().take(300).collect::<String>());
        Ok(match status {
            200 => match serde_json::from_str(&text) {
                Ok(reply) => Attempt::Answered(reply),
                Err(_) => Attempt::Failed(format!("an answer that is no JSON: {}", said())),
            },
            429 | 503 | 529 => Attempt::Refused(after, said()),
            408 | 500 | 502 | 504 => Attempt::Failed(said()),
            400 | 413 if text.contains("context_length") || text.contains("maximum context") => Attempt::TooLong,
            _ => {
                let hint = match status {
                    401 | 403 => "put a key into the variable that --key-env names",
                    404 => "check the address, which mostly ends with /v1, and the model's name",
                    _ => "the endpoint does not take such a request; try --choice generation or --prompt chat",
                };
                return Err(refuse(format!("{}/{path} refuses with {}", self.url, said()), hint));
            }
        })
    }

    /// Reads a reply into `answer`.
    fn read(&self, asked: &dyn Questions, number: usize, reply: &Value, answer: &mut Answer) -> Result<()> {
        let strange = || anyhow!("{} answers without `choices`: {:.300}", self.url, reply.to_string());
        let choice = reply["choices"].get(0).with_context(strange)?;
        answer.end = end(choice["finish_reason"].as_str());
        let usage = &reply["usage"];
        answer.prompt_tokens = usage["prompt_tokens"].as_u64();
        answer.cached_tokens = usage["prompt_tokens_details"]["cached_tokens"]
            .as_u64()
            .or(usage["prompt_cache_hit_tokens"].as_u64())
            .unwrap_or(0);
        if let Some(continuations) = asked.continuations(number) {
            answer.choices = letters(&choice["logprobs"], &continuations);
            (answer.end, answer.generated_tokens) = ("scored", Some(0));
        } else {
            answer.text = written(choice);
            if let Some(at) = asked.stops().iter().filter_map(|stop| answer.text.find(stop.as_str())).min() {
                answer.text.truncate(at);
            }
            let claimed = usage["completion_tokens"].as_u64();
            let whole = written(choice);
            let cannot_be =
                claimed.is_some_and(|tokens| tokens > asked.max_tokens() as u64 || tokens == 0 && !whole.is_empty());
            self.sums.implausible.fetch_add(u64::from(cannot_be), Ordering::Relaxed);
            answer.generated_tokens = match &self.tokenizer {
                Some(tokenizer) => Some(tokenizer.encode_ordinary(&whole)?.len() as u64),
                None => claimed.filter(|_| !cannot_be),
            };
        }
        let add = |sum: &AtomicU64, tokens: u64| _ = sum.fetch_add(tokens, Ordering::Relaxed);
        add(&self.sums.prompt_tokens, answer.prompt_tokens.unwrap_or(0));
        add(&self.sums.cached_tokens, answer.cached_tokens);
        add(&self.sums.generated_tokens, answer.generated_tokens.unwrap_or(0));
        Ok(())
    }
}

impl Answerer for Endpoint {
    fn answer(
        &mut self,
        questions: &dyn Questions,
        numbers: Range<usize>,
        stop: &dyn Fn() -> bool,
        hand_over: AnswerSink,
    ) -> Result<()> {
        let (next, stopped) = (AtomicUsize::new(numbers.start), AtomicBool::new(false));
        let (sender, receiver) = mpsc::channel();
        let this = &*self;
        std::thread::scope(|scope| {
            for _ in 0..self.parallel.min(numbers.len()) {
                let (sender, next, stopped) = (sender.clone(), &next, &stopped);
                scope.spawn(move || {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= numbers.end {
                            return;
                        }
                        let answer = this.ask(questions, number, stopped);
                        let ends = !matches!(answer, Ok(Some(_)));
                        if sender.send((number, answer)).is_err() || ends {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut result = Ok(());
            loop {
                match receiver.recv_timeout(Duration::from_millis(100)) {
                    Ok((number, answer)) => {
                        let handed =
                            answer.and_then(|answer| answer.map_or(Ok(()), |answer| hand_over(number, answer)));
                        result = std::mem::replace(&mut result, Ok(())).and(handed);
                    }
                    Err(mpsc::RecvTimeoutError::Timeout) => {}
                    Err(mpsc::RecvTimeoutError::Disconnected) => return result,
                }
                if stop() || result.is_err() {
                    stopped.store(true, Ordering::Relaxed);
                }
            }
        })
    }

    fn can_chat(&self) -> bool {
        self.can_chat
    }

    fn can_score(&self) -> bool {
        false
    }

    fn identity(&self) -> &Value {
        &self.identity
    }

    fn work(&self, elapsed: Duration) -> Work {
        let sum = |sum: &AtomicU64| sum.load(Ordering::Relaxed);
        Work {
            prompt_tokens: sum(&self.sums.prompt_tokens),
            cached_tokens: sum(&self.sums.cached_tokens),
            generated_tokens: sum(&self.sums.generated_tokens),
            seconds: elapsed.as_secs_f64(),
            implausible: sum(&self.sums.implausible),
            repeated: sum(&self.sums.repeated),
        }
    }
}

/// The text of a choice, with its thinking where that comes apart.
fn written(choice: &Value) -> String {
    let message = &choice["message"];
    let text = choice["text"].as_str().or(message["content"].as_str()).unwrap_or_default();
    match message["reasoning_content"].as_str().or(message["reasoning"].as_str()) {
        Some(thinking) if !thinking.is_empty() => format!("<think>{thinking}</think>{text}"),
        _ => text.to_owned(),
    }
}

fn end(reason: Option<&str>) -> &'static str {
    match reason {
        Some("stop") => "stop",
        Some("length") => "length",
        Some("content_filter") => "content filter",
        _ => "other",
    }
}

/// The log-probabilities of the letters among the likeliest tokens, with or without a space before them; the greater
/// where both are there.
fn letters(logprobs: &Value, continuations: &[String]) -> Vec<Option<f32>> {
    let top = &logprobs["top_logprobs"][0];
    let of = |continuation: &String| {
        let one = |token: &str| top[token].as_f64().map(|logprob| logprob as f32);
        let (with, without) = (one(continuation), one(continuation.trim_start()));
        with.into_iter().chain(without).reduce(f32::max)
    };
    continuations.iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_are_found_with_and_without_a_space() {
        let continuations = [" A", " B", " C"].map(str::to_owned);
        let logprobs = json!({"top_logprobs": [{" A": -1.0, "A": -2.0, "B": -0.5, "x": -0.1}]});
        assert_eq!(letters(&logprobs, &continuations), [Some(-1.0), Some(-0.5), None]);
        assert_eq!(letters(&Value::Null, &continuations), [None, None, None]);
    }

    #[test]
    fn thinking_is_put_before_the_answer() {
        let choice = json!({"message": {"content": "4", "reasoning_content": "2+2"}});
        assert_eq!(written(&choice), "<think>2+2</think>4");
        assert_eq!(written(&json!({"text": "4"})), "4");
        assert_eq!(written(&json!({"message": {"content": null}})), "");
    }
}

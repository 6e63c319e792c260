//! Rollouts: the policy's answers to prompts, through the engine that serves models, with the trainer's weights.
//!
//! The engine's log-probabilities are the trainer's, bit for bit: its caches hold what the training pass computes, and
//! neither batching nor the prefix that the answers to a prompt share changes a number. Answer `i` to a prompt is a
//! function of weights, prompt, seed and `i`: whatever was killed is sampled again the same.

use std::collections::HashMap;
use std::sync::Arc;

use thiserror::Error;
use wels_device::{Device, Precision, exact_cache};
use wels_engine::{Engine, EngineError, Event, FinishReason, LoadedModel, Options, Request, RequestError, RequestId};
use wels_engine::{Sampling, Speculation};
use wels_model::model::Model;
use wels_model::paged::{CacheLayout, PAGE_TOKENS, PagedCache};
use wels_model::params::Params;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutOptions {
    /// Answers to each prompt.
    pub samples: usize,
    /// The most tokens of an answer.
    pub max_tokens: usize,
    /// Of the softmax. Log-probabilities are those at temperature 1 whatever it is.
    pub temperature: f32,
    /// Tokens that end an answer and belong to it.
    pub stop_tokens: Vec<u32>,
    /// Answers that are sampled at the same time: speed and memory, no bit of an answer.
    pub running: usize,
    /// Arithmetic of linear and expert products.
    pub precision: Precision,
}

/// A prompt and what decides about its answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// Of the random numbers of all its answers.
    pub seed: u64,
}

/// An answer as it was sampled.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Its tokens, the stop token too.
    pub tokens: Vec<u32>,
    /// Natural logarithm of the probability of each.
    pub logprobs: Vec<f32>,
    /// Whether it ran into the limit.
    pub truncated: bool,
}

/// Why there are no answers.
#[derive(Debug, Error)]
pub enum RolloutError {
    /// Options that the engine refuses.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// A prompt that the engine refuses.
    #[error("prompt {prompt} cannot be answered: {source}")]
    Refused {
        /// From 0.
        prompt: usize,
        source: RequestError,
    },
    /// The model's logits are not finite.
    #[error("the logits behind prompt {prompt} are not finite numbers")]
    NotFinite {
        /// From 0.
        prompt: usize,
    },
}

/// The answers to each question, in order. `watch` hears how many answers are done and how many tokens are sampled.
///
/// # Errors
/// [`RolloutError`]; no answer is made up or left out.
pub fn rollout(
    model: &Arc<Model>,
    params: &Arc<Params>,
    questions: &[Question],
    options: &RolloutOptions,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<Vec<Vec<Answer>>, RolloutError> {
    let total = questions.len() * options.samples;
    let mut engine = Engine::new(
        LoadedModel { model: Arc::clone(model), params: Arc::clone(params), tokenizer: None, janus: None },
        engine_options(&**params.device(), model, options, total),
    )?;
    let mut places: HashMap<RequestId, (usize, usize)> = HashMap::new();
    for (prompt, question) in questions.iter().enumerate() {
        for sample in 0..options.samples {
            let request = Request {
                sampling: Sampling { temperature: options.temperature, seed: question.seed, ..Sampling::default() },
                choice: sample as u32,
                stop_tokens: options.stop_tokens.clone(),
                logprobs: Some(0),
                ..Request::new(question.prompt.clone(), options.max_tokens)
            };
            let id = engine.enqueue(request).map_err(|source| RolloutError::Refused { prompt, source })?;
            places.insert(id, (prompt, sample));
        }
    }
    let mut answers = vec![vec![Answer::default(); options.samples]; questions.len()];
    let (mut done, mut tokens) = (0, 0);
    while !engine.is_idle() {
        for event in engine.step() {
            match event {
                Event::Token(token) => {
                    let (prompt, sample) = places[&token.id];
                    let answer = &mut answers[prompt][sample];
                    answer.tokens.push(token.token);
                    answer.logprobs.push(token.logprob.expect("asked for"));
                    tokens += 1;
                }
                Event::Embedding { .. } => {} // nobody asks for one here
                Event::Finished(finished) => {
                    let (prompt, sample) = places[&finished.id];
                    match finished.reason {
                        FinishReason::Error => return Err(RolloutError::NotFinite { prompt }),
                        reason => answers[prompt][sample].truncated = reason == FinishReason::Length,
                    }
                    done += 1;
                }
            }
        }
        watch(done, tokens);
    }
    Ok(answers)
}

/// Room for as many answers of full length as run at a time, in the numbers of training.
fn engine_options(device: &dyn Device, model: &Model, options: &RolloutOptions, total: usize) -> Options {
    let running = options.running.clamp(1, total.max(1));
    let (layout, cache_dtype) = (CacheLayout::Expanded, exact_cache(device.activations(options.precision)));
    let page_bytes = PagedCache::bytes_per_page(model.config(), layout, cache_dtype);
    let sequence_pages = model.context_len().div_ceil(PAGE_TOKENS) + 1;
    Options {
        max_batch_tokens: (2 * running).max(512),
        max_running: running,
        max_waiting: total,
        waiting_kept: 0,
        max_drawing: 1,
        cache_bytes: (running + 1) * sequence_pages * page_bytes,
        prefix_cache: true,
        speculation: Speculation::Off,
        precision: options.precision,
        layout,
        cache_dtype,
        other: None,
    }
}

//! Rollouts: the policy's answers to prompts, through the engine that serves models, with the trainer's weights.
//!
//! The engine's log-probabilities are the trainer's, bit for bit: its caches hold what the training pass computes, and
//! neither batching nor the prefix that the answers to a prompt share changes a number. Answer `i` to a prompt is a
//! function of weights, prompt, seed and `i`: whatever was killed is sampled again the same.
//!
//! An answer may have several turns, between which a [`Partner`] speaks. Its tokens are put behind those that were
//! sampled, in the same sequence of the engine: nothing is computed again, and no token is another than it was.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use thiserror::Error;
use wels_device::{Device, Precision, exact_cache};
use wels_engine::{Counters, Engine, EngineError, Event, FinishReason, LoadedModel, Options, Request, RequestError};
use wels_engine::{RequestId, Sampling, Speculation};
use wels_model::model::Model;
use wels_model::paged::{CacheLayout, PAGE_TOKENS, PagedCache};
use wels_model::params::Params;

/// How to sample.
#[derive(Clone, Debug, PartialEq)]
pub struct RolloutOptions {
    /// Answers to each prompt.
    pub samples: usize,
    /// The most tokens of an answer, those of a partner among them.
    pub max_tokens: usize,
    /// In an environment the most turns of an answer.
    pub turns: usize,
    /// In an environment the most tokens of a turn.
    pub turn_tokens: usize,
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
    /// Natural logarithm of the probability of each; 0 of a partner's.
    pub logprobs: Vec<f32>,
    /// Where a partner's tokens are, in order.
    pub given: Vec<Range<usize>>,
    /// Whether it ran into the limit.
    pub truncated: bool,
}

impl Answer {
    /// How many tokens were sampled.
    pub fn chosen(&self) -> usize {
        self.tokens.len() - self.given.iter().map(ExactSizeIterator::len).sum::<usize>()
    }

    /// Log-probabilities of the tokens that were sampled.
    pub fn chosen_logprobs(&self) -> impl Iterator<Item = f32> {
        let given = |place: &usize| self.given.iter().any(|range| range.contains(place));
        (0..self.tokens.len()).filter(move |place| !given(place)).map(|place| self.logprobs[place])
    }

    /// Where the turn begins that is being sampled, or was last.
    pub fn turn(&self) -> usize {
        self.given.last().map_or(0, |range| range.end)
    }
}

/// Which answer: the place of its question, and which of the answers to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// From 0.
    pub prompt: usize,
    /// From 0.
    pub sample: usize,
}

/// What comes behind a turn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// These tokens, and another turn.
    Given(Vec<u32>),
    /// Nothing: the answer is over.
    Nothing,
    /// Nothing, for a limit of the partner's is reached: the answer is cut.
    Cut,
}

/// Who speaks between the turns of an answer.
pub trait Partner {
    /// Why it may fail.
    type Error: From<RolloutError>;

    /// Whether `answer` is over a turn with its last token. The engine's stop tokens end no answer where there is a
    /// partner: it hears of them here.
    fn ends_turn(&mut self, place: Place, answer: &Answer) -> bool;

    /// Replies to turns that are over.
    fn replies(&mut self, turns: &[(Place, &Answer)]) -> Result<Vec<Reply>, Self::Error>;
}

/// Nobody: an answer is one turn, and ends with a stop token.
struct Nobody;

impl Partner for Nobody {
    type Error = RolloutError;

    fn ends_turn(&mut self, _: Place, _: &Answer) -> bool {
        false
    }

    fn replies(&mut self, turns: &[(Place, &Answer)]) -> Result<Vec<Reply>, RolloutError> {
        Ok(vec![Reply::Nothing; turns.len()])
    }
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
    let mut run = Running::begin(model, params, questions, options, &options.stop_tokens)?;
    run.run_to_end(&mut Nobody, watch)?;
    Ok(run.answers)
}

/// The same with a partner. Also what the engine has computed: each token of prompts and answers once.
///
/// # Errors
/// As [`rollout`], or the partner's.
pub fn converse<P: Partner>(
    model: &Arc<Model>,
    params: &Arc<Params>,
    questions: &[Question],
    options: &RolloutOptions,
    partner: &mut P,
    watch: &mut dyn FnMut(usize, u64),
) -> Result<(Vec<Vec<Answer>>, Counters), P::Error> {
    let mut run = Running::begin(model, params, questions, options, &[])?;
    run.run_to_end(partner, watch)?;
    Ok((run.answers, run.engine.status().counters))
}

/// Answers that are being sampled.
struct Running<'a> {
    engine: Engine,
    options: &'a RolloutOptions,
    places: HashMap<RequestId, Place>,
    answers: Vec<Vec<Answer>>,
    /// Answers that have ended.
    done: usize,
    /// Tokens that were sampled.
    tokens: u64,
}

impl<'a> Running<'a> {
    fn begin(
        model: &Arc<Model>,
        params: &Arc<Params>,
        questions: &[Question],
        options: &'a RolloutOptions,
        stop_tokens: &[u32],
    ) -> Result<Running<'a>, RolloutError> {
        let total = questions.len() * options.samples;
        let mut engine = Engine::new(
            LoadedModel { model: Arc::clone(model), params: Arc::clone(params), tokenizer: None, janus: None },
            engine_options(&**params.device(), model, options, total),
        )?;
        let mut places = HashMap::new();
        for (prompt, question) in questions.iter().enumerate() {
            for sample in 0..options.samples {
                let request = Request {
                    sampling: Sampling { temperature: options.temperature, seed: question.seed, ..Sampling::default() },
                    choice: sample as u32,
                    stop_tokens: stop_tokens.to_vec(),
                    logprobs: Some(0),
                    ..Request::new(question.prompt.clone(), options.max_tokens)
                };
                let id = engine.enqueue(request).map_err(|source| RolloutError::Refused { prompt, source })?;
                places.insert(id, Place { prompt, sample });
            }
        }
        let answers = vec![vec![Answer::default(); options.samples]; questions.len()];
        Ok(Running { engine, options, places, answers, done: 0, tokens: 0 })
    }

    fn run_to_end<P: Partner>(&mut self, partner: &mut P, watch: &mut dyn FnMut(usize, u64)) -> Result<(), P::Error> {
        while !self.engine.is_idle() {
            let (mut over, mut ended) = (Vec::new(), HashSet::new());
            for event in self.engine.step() {
                match event {
                    Event::Token(token) => {
                        let place = self.places[&token.id];
                        let answer = &mut self.answers[place.prompt][place.sample];
                        answer.tokens.push(token.token);
                        answer.logprobs.push(token.logprob.expect("asked for"));
                        self.tokens += 1;
                        if partner.ends_turn(place, answer) {
                            over.push(token.id);
                        }
                    }
                    Event::Embedding { .. } => {} // nobody asks for one here
                    Event::Finished(finished) => {
                        let Place { prompt, sample } = self.places[&finished.id];
                        match finished.reason {
                            FinishReason::Error => Err(RolloutError::NotFinite { prompt })?,
                            FinishReason::Length => self.answers[prompt][sample].truncated = true,
                            _ => {}
                        }
                        ended.insert(finished.id);
                        self.done += 1;
                    }
                }
            }
            if !over.is_empty() {
                self.reply(partner, &over, &ended)?;
            }
            watch(self.done, self.tokens);
        }
        Ok(())
    }

    /// Puts the partner's replies behind turns that are over, before the engine's next step; `ended` have no room for
    /// one.
    fn reply<P: Partner>(
        &mut self,
        partner: &mut P,
        over: &[RequestId],
        ended: &HashSet<RequestId>,
    ) -> Result<(), P::Error> {
        let turns =
            over.iter().map(|id| (self.places[id], &self.answers[self.places[id].prompt][self.places[id].sample]));
        let turns: Vec<(Place, &Answer)> = turns.collect();
        let replies = partner.replies(&turns)?;
        assert_eq!(replies.len(), over.len(), "replies and turns");
        for (id, reply) in over.iter().zip(replies) {
            let Place { prompt, sample } = self.places[id];
            let answer = &mut self.answers[prompt][sample];
            answer.truncated = match reply {
                Reply::Given(tokens) => {
                    let (from, left) = (answer.tokens.len(), self.options.max_tokens - answer.tokens.len());
                    // One token of the next turn has to fit behind them.
                    let fits = !ended.contains(id) && tokens.len() < left;
                    match fits.then(|| self.engine.extend(*id, &tokens, left - tokens.len())) {
                        Some(Ok(())) => {
                            answer.given.push(from..from + tokens.len());
                            answer.logprobs.resize(from + tokens.len(), 0.0);
                            answer.tokens.extend(tokens);
                            continue;
                        }
                        None | Some(Err(RequestError::PromptTooLong { .. })) => true,
                        Some(Err(source)) => return Err(RolloutError::Refused { prompt, source }.into()),
                    }
                }
                Reply::Nothing => false,
                Reply::Cut => true,
            };
            self.engine.cancel(*id);
        }
        Ok(())
    }
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

//! The engine: takes requests, runs steps, gives out events.

use std::sync::Arc;

use wels_data::tokenizer::Tokenizer;
use wels_device::Precision;
use wels_model::janus::Janus;
use wels_model::model::Model;
use wels_model::paged::{CacheDtype, CacheLayout, PAGE_TOKENS, PagedCache};
use wels_model::params::Params;
use wels_model::tape::Execution;

use crate::constraint::{Prepared, Preparer};
use crate::draw::{Draws, Renderer};
use crate::embedding::Pooled;
use crate::event::{Counters, Event, FinishReason, Finished, Status, Usage};
use crate::pages::{Lease, PageTable};
use crate::picture::{self, Seer};
use crate::request::{Request, RequestError, RequestId};
use crate::sampler::{Sampler, Scratch};
use crate::sequence::Sequence;
use crate::speculate::DraftController;
use crate::text::TextStream;
use crate::thinking::Thinker;

/// What the engine runs.
#[derive(Clone)]
pub struct LoadedModel {
    pub model: Arc<Model>,
    /// Its weights; for [`CacheLayout::Latent`] prepared by [`Params::prepare_latent`].
    pub params: Arc<Params>,
    /// Without one, events have no text, and requests no stop strings and no constraints.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Whose language model this is, if it sees and draws pictures.
    pub janus: Option<Arc<Janus>>,
}

impl From<Arc<Janus>> for LoadedModel {
    fn from(janus: Arc<Janus>) -> LoadedModel {
        let (model, params) = (Arc::clone(janus.language()), Arc::clone(janus.params()));
        LoadedModel { model, params, tokenizer: None, janus: Some(janus) }
    }
}

/// Numbers that a device computes with and keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    /// Arithmetic of linear and expert products.
    pub precision: Precision,
    /// Number format of the KV cache.
    pub cache_dtype: CacheDtype,
}

/// How it runs. Only `precision`, `layout`, `cache_dtype` and `other` change what is computed; nothing else changes a
/// token.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Tokens that a step takes, so the longest that a running answer waits for somebody's prompt; a page more where
    /// answers alone fill it. At least 16.
    pub max_batch_tokens: usize,
    /// Requests that run at the same time.
    pub max_running: usize,
    /// Requests that wait; one more is refused.
    pub max_waiting: usize,
    /// How many of these places are kept for owners that have nothing waiting.
    pub waiting_kept: usize,
    /// Pictures that are drawn at the same time, with a cache of their own in the format of `cache_dtype`.
    pub max_drawing: usize,
    /// Bytes of the cache, taken from the system as they are used.
    pub cache_bytes: usize,
    /// Whether prompts are looked up in what earlier requests left in the cache.
    pub prefix_cache: bool,
    /// Whether tokens are drafted.
    pub speculation: Speculation,
    /// Arithmetic of linear and expert products.
    pub precision: Precision,
    /// What the cache keeps of a token. Rollouts need [`CacheLayout::Expanded`] and [`wels_device::exact_cache`], which
    /// have the bits of training.
    pub layout: CacheLayout,
    /// Number format of the KV cache.
    pub cache_dtype: CacheDtype,
    /// The numbers of the other device of the weights' placement; those of the main one if left out.
    pub other: Option<Numbers>,
}

impl Options {
    /// Those of the other device.
    fn of_other(&self) -> Numbers {
        self.other.unwrap_or(Numbers { precision: self.precision, cache_dtype: self.cache_dtype })
    }
}

impl Default for Options {
    fn default() -> Self {
        Options {
            max_batch_tokens: 512,
            max_running: 16,
            max_waiting: 256,
            waiting_kept: 0,
            max_drawing: 4,
            cache_bytes: 1 << 30,
            prefix_cache: true,
            speculation: Speculation::Auto { max_draft: 4 },
            precision: Precision::F32,
            layout: CacheLayout::Expanded,
            cache_dtype: CacheDtype::F32,
            other: None,
        }
    }
}

/// Speculative decoding. A drafted token counts only if it is what would have been chosen anyway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Speculation {
    Off,
    /// By the model's MTP layers if it has them, else by what followed the last tokens earlier in the sequence.
    Auto {
        /// The most tokens drafted at a time; how many pays is learnt from what was accepted.
        max_draft: usize,
    },
}

/// Why there is no engine.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum EngineError {
    /// An option that makes no sense.
    #[error("{name}: {reason}")]
    Option {
        /// Of [`Options`].
        name: &'static str,
        reason: String,
    },
    /// The tokenizer has tokens that the model does not know.
    #[error("the tokenizer has {tokenizer} tokens and the model {model}")]
    Vocabulary { tokenizer: usize, model: usize },
}

/// Bytes of pages not yet in use for which there is memory when an engine has been idle.
const POPULATED_AHEAD: usize = 256 << 20;
/// Bytes for which [`Engine::populate`] asks at a time.
const POPULATED_AT_ONCE: usize = 4 << 20;

/// A model and the requests that it works on.
pub struct Engine {
    pub(crate) loaded: LoadedModel,
    pub(crate) options: Options,
    pub(crate) execution: Execution,
    pub(crate) cache: PagedCache,
    pub(crate) table: PageTable,
    /// By [`Sequence::order`]: who gets what is scarce.
    pub(crate) running: Vec<Sequence>,
    /// By [`Sequence::order`]: who begins next.
    pub(crate) waiting: Vec<Sequence>,
    /// Of a model that draws.
    draws: Option<Draws>,
    pub(crate) events: Vec<Event>,
    pub(crate) counters: Counters,
    pub(crate) scratch: Scratch,
    preparer: Preparer,
    page_bytes: usize,
    /// Pages whose memory has been taken from the system.
    populated: usize,
    next_id: u64,
    pub(crate) next_turn: u64,
    /// Whether a request has ended, so that its owner's others come to other ranks.
    pub(crate) ended: bool,
}

impl Engine {
    /// An engine without requests.
    pub fn new(loaded: LoadedModel, options: Options) -> Result<Self, EngineError> {
        let option = |name, reason: String| Err(EngineError::Option { name, reason });
        let config = loaded.model.config();
        if options.max_running == 0 {
            return option("max_running", "must be at least 1".into());
        }
        if options.max_drawing == 0 {
            return option("max_drawing", "must be at least 1".into());
        }
        if options.max_batch_tokens < PAGE_TOKENS {
            return option("max_batch_tokens", format!("must be at least {PAGE_TOKENS}"));
        }
        if options.layout == CacheLayout::Latent && !config.attention.is_mla() {
            return option("layout", "this model has no latents".into());
        }
        let (placement, other) = (loaded.params.placement().clone(), options.of_other());
        let dtypes = [options.cache_dtype, other.cache_dtype];
        let [main, others] = PagedCache::bytes_per_page_at(&placement, config, options.layout, dtypes);
        let page_bytes = main + others;
        // More pages than every running request could fill serve prefixes only up to what ids can name.
        let pages = (options.cache_bytes / page_bytes).min(u32::MAX as usize);
        if pages == 0 {
            return option("cache_bytes", format!("a page takes {page_bytes} bytes"));
        }
        if let Some(tokenizer) = loaded.tokenizer.as_ref().filter(|t| t.vocab_size() > config.vocab_size) {
            return Err(EngineError::Vocabulary { tokenizer: tokenizer.vocab_size(), model: config.vocab_size });
        }
        let seer = loaded.janus.clone().map(|janus| Arc::new(Seer::new(janus)));
        let preparer = Preparer::new(loaded.tokenizer.clone(), config.vocab_size, seer);
        let draws = loaded.janus.clone().map(|janus| Draws::new(janus, options.cache_dtype, options.max_drawing));
        Ok(Engine {
            execution: Execution::placed(&placement, options.precision, other.precision),
            cache: PagedCache::placed(&placement, config, options.layout, dtypes, pages),
            page_bytes,
            table: PageTable::new(pages),
            loaded,
            options,
            running: Vec::new(),
            waiting: Vec::new(),
            draws,
            events: Vec::new(),
            counters: Counters::default(),
            scratch: Scratch::default(),
            preparer,
            populated: 0,
            next_id: 0,
            next_turn: 0,
            ended: false,
        })
    }

    /// What compiles constraints for this engine, on any thread.
    pub fn preparer(&self) -> Preparer {
        self.preparer.clone()
    }

    /// What makes pictures of the codes that this engine gives, if its model draws.
    pub fn renderer(&self) -> Option<Renderer> {
        self.loaded.janus.clone().map(Renderer)
    }

    /// Takes a request, to be begun in some later step. Its constraint is compiled here and now.
    pub fn enqueue(&mut self, request: Request) -> Result<RequestId, RequestError> {
        self.check(&request)?;
        let prepared = self.preparer.prepare(request)?;
        self.enqueue_prepared(prepared)
    }

    /// Takes a request that was made ready by this engine's [`Engine::preparer`].
    pub fn enqueue_prepared(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        self.check(&prepared.request)?;
        let Prepared { request, guide, features } = prepared;
        let vocab_size = self.loaded.model.config().vocab_size;
        let id = RequestId(self.next_id);
        self.next_id += 1;
        if request.draw.is_some() {
            self.draws.as_mut().expect("a request that was checked").push(id, request);
            return Ok(id);
        }
        let mut tokens = request.prompt.clone();
        for (picture, features) in request.pictures.iter().zip(&features) {
            tokens.splice(picture.at..picture.at + features.rows(), picture.ids(features.rows()));
        }
        let (rank, turn) = (self.rank_of_next(&request), self.next_turn());
        self.wait(Sequence {
            id,
            tokens,
            pictures: request.pictures.iter().map(|picture| picture.at).zip(features).collect(),
            computed: 0,
            lease: Lease::default(),
            sampler: Sampler::new(request.sampling.clone(), request.choice, &request.prompt),
            text: TextStream::new(self.loaded.tokenizer.as_ref(), request.stop.clone()),
            guide,
            thinker: request.thinking.map(|thinking| Thinker::new(thinking, vocab_size)),
            pooled: Pooled::default(),
            drafting: DraftController::new(),
            draft: Vec::new(),
            mtp_pending: Vec::new(),
            rank,
            turn,
            begun: false,
            usage: Usage { prompt: request.prompt.len(), ..Usage::default() },
            request,
        });
        Ok(id)
    }

    /// For times without requests: takes memory for the next pages from the system, some milliseconds' worth; whether
    /// there is more to take. Otherwise the steps that first touch it wait for it.
    pub fn populate(&mut self) -> bool {
        let page_bytes = self.page_bytes;
        let wanted = (self.table.used() + POPULATED_AHEAD / page_bytes).min(self.table.count());
        let begin = self.populated.max(self.table.used());
        let end = wanted.min(begin + (POPULATED_AT_ONCE / page_bytes).max(1));
        if begin < end {
            self.cache.populate(begin..end);
            self.populated = end;
        }
        end < wanted
    }

    /// Ends a request; the next step reports it. `false` if there is no such request any more.
    pub fn cancel(&mut self, id: RequestId) -> bool {
        let found = [&mut self.running, &mut self.waiting]
            .into_iter()
            .find_map(|list| list.iter().position(|sequence| sequence.id == id).map(|at| list.remove(at)));
        match found {
            Some(sequence) => {
                self.finish(sequence, FinishReason::Cancelled);
                true
            }
            None => match self.draws.as_mut().and_then(|draws| draws.cancel(id)) {
                Some(usage) => {
                    self.counters.finished += 1;
                    self.events.push(Event::Finished(Finished { id, reason: FinishReason::Cancelled, usage }));
                    true
                }
                None => false,
            },
        }
    }

    /// Puts tokens that somebody else says behind those that a request has, between two steps; the next one computes
    /// them as it computes a prompt, and the request goes on with at most `max_tokens` more of its own. Nothing that is
    /// in the cache is computed again. They count as tokens of the prompt.
    ///
    /// # Errors
    /// [`RequestError`] where they do not fit, or the model does not know one; the request is then as it was.
    ///
    /// # Panics
    /// If there is no such request, it has no answer yet, the engine speculates (a step may then have gone beyond the
    /// last token that was seen), or what the request asks for is more than an answer: thinking, a constraint.
    pub fn extend(&mut self, id: RequestId, tokens: &[u32], max_tokens: usize) -> Result<(), RequestError> {
        assert_eq!(self.options.speculation, Speculation::Off, "extending a request of an engine that speculates");
        let (room, vocab_size) = (self.room(), self.loaded.model.config().vocab_size);
        let mut live = self.running.iter_mut().chain(&mut self.waiting);
        let sequence = live.find(|sequence| sequence.id == id).unwrap_or_else(|| panic!("no request {id:?}"));
        assert!(sequence.usage.generated > 0, "{id:?} has no answer yet");
        assert!(sequence.guide.is_none() && sequence.thinker.is_none(), "{id:?} thinks, or has a constraint");
        if max_tokens == 0 {
            return Err(RequestError::Parameter { name: "max_tokens", reason: "must be at least 1".into() });
        }
        if sequence.tokens.len() + tokens.len() >= room {
            let (tokens, limit) = (sequence.tokens.len() + tokens.len(), room - 1);
            return Err(RequestError::PromptTooLong { tokens, limit });
        }
        if let Some(&token) = tokens.iter().find(|token| **token as usize >= vocab_size) {
            return Err(RequestError::UnknownToken { token, vocab_size });
        }
        sequence.sampler.given(tokens);
        sequence.tokens.extend_from_slice(tokens);
        sequence.text = TextStream::new(self.loaded.tokenizer.as_ref(), sequence.request.stop.clone());
        sequence.request.max_tokens = sequence.usage.generated + max_tokens;
        sequence.usage.prompt += tokens.len();
        self.counters.prompt_tokens += tokens.len() as u64;
        Ok(())
    }

    /// Whether there is nothing to do and nothing to report.
    pub fn is_idle(&self) -> bool {
        let drawing = self.draws.as_ref().is_some_and(|draws| !draws.is_empty());
        self.running.is_empty() && self.waiting.is_empty() && self.events.is_empty() && !drawing
    }

    /// One forward pass: a token, or several that were drafted, for each running answer, and a chunk of the
    /// prompts that are not yet computed. Returns what happened since the last step; without requests, at once.
    pub fn step(&mut self) -> Vec<Event> {
        if std::mem::take(&mut self.ended) {
            self.move_up();
        }
        self.admit();
        let work = self.plan();
        if !work.is_empty() {
            self.forward(work);
        }
        self.draw();
        std::mem::take(&mut self.events)
    }

    /// The next code of each picture.
    fn draw(&mut self) {
        let Some(draws) = &mut self.draws else { return };
        let before = self.events.len();
        draws.step(&mut self.events);
        for event in &self.events[before..] {
            match event {
                Event::Token(_) => self.counters.generated_tokens += 1,
                Event::Finished(_) => self.counters.finished += 1,
                Event::Embedding { .. } => {}
            }
        }
    }

    /// What is going on.
    pub fn status(&self) -> Status {
        let waiting = self.waiting.iter().map(|sequence| sequence.id);
        let (drawing, undrawn) =
            self.draws.as_ref().map_or((0, Vec::new()), |draws| (draws.running(), draws.waiting().collect()));
        Status {
            running: self.running.len() + drawing,
            waiting: waiting.chain(undrawn).collect(),
            pages: self.table.count(),
            pages_free: self.table.free(),
            pages_cached: self.table.idle(),
            page_tokens: PAGE_TOKENS,
            counters: self.counters,
        }
    }

    /// New weights of the same model, from the next step on. What the cache holds of the old ones is dropped, and
    /// running requests go on from their tokens.
    ///
    /// # Panics
    /// If the weights are another model's.
    pub fn set_params(&mut self, params: Arc<Params>) {
        assert_eq!(params.specs(), self.loaded.params.specs(), "weights of another model");
        assert!(self.loaded.janus.is_none(), "the weights of a model with pictures are its own");
        self.loaded.params = params;
        for sequence in &mut self.running {
            self.table.release(std::mem::take(&mut sequence.lease));
            sequence.computed = 0;
            sequence.draft.clear();
            sequence.mtp_pending.clear();
        }
        self.table.clear();
    }

    /// The longest that a sequence may become.
    pub(crate) fn room(&self) -> usize {
        self.loaded.model.context_len().min(self.table.count() * PAGE_TOKENS)
    }

    pub(crate) fn wait(&mut self, sequence: Sequence) {
        let place = self.waiting.partition_point(|other| other.order() < sequence.order());
        self.waiting.insert(place, sequence);
    }

    pub(crate) fn finish(&mut self, mut sequence: Sequence, reason: FinishReason) {
        self.counters.finished += 1;
        self.ended = true;
        self.table.release(std::mem::take(&mut sequence.lease));
        self.events.push(Event::Finished(Finished { id: sequence.id, reason, usage: sequence.usage }));
    }

    /// Whether the request can be taken now.
    fn check(&self, request: &Request) -> Result<(), RequestError> {
        request.check()?;
        picture::check(&request.pictures, self.loaded.janus.as_deref(), request.prompt.len())?;
        match (&request.draw, &self.draws) {
            (Some(draw), Some(draws)) => draws.check(request, draw)?,
            (Some(_), None) => {
                let reason = "the model draws no pictures".into();
                return Err(RequestError::Parameter { name: "draw", reason });
            }
            (None, _) => {}
        }
        let vocab_size = self.loaded.model.config().vocab_size;
        let limit = self.room() - 1;
        if request.prompt.len() > limit {
            return Err(RequestError::PromptTooLong { tokens: request.prompt.len(), limit });
        }
        let ends = request.thinking.iter().flat_map(|thinking| thinking.begin.into_iter().chain([thinking.end]));
        let named = request.prompt.iter().chain(&request.scored).copied().chain(ends);
        if let Some(token) = named.into_iter().find(|token| *token as usize >= vocab_size) {
            return Err(RequestError::UnknownToken { token, vocab_size });
        }
        if let Some((token, _)) = request.sampling.logit_bias.iter().find(|(token, _)| *token as usize >= vocab_size) {
            let reason = format!("token id {token} is not below the model's vocabulary of {vocab_size}");
            return Err(RequestError::Parameter { name: "logit_bias", reason });
        }
        if request.adapter.is_some() && self.loaded.params.frozen() > 0 {
            let reason = "the model has an adapter already".into();
            return Err(RequestError::Parameter { name: "adapter", reason });
        }
        if self.loaded.tokenizer.is_none() && !request.stop.is_empty() {
            return Err(RequestError::Parameter { name: "stop", reason: "the model has no tokenizer".into() });
        }
        self.check_queue(request.owner)
    }

    fn check_queue(&self, owner: u64) -> Result<(), RequestError> {
        let (undrawn, draws) = self.draws.as_ref().map_or((0, false), |draws| draws.queue_of(owner));
        let (waiting, most) = (self.waiting.len() + undrawn, self.options.max_waiting);
        let has_some = || draws || self.waiting.iter().any(|sequence| sequence.request.owner == owner);
        let full = waiting >= most || waiting + self.options.waiting_kept >= most && has_some();
        if full { Err(RequestError::QueueFull { waiting }) } else { Ok(()) }
    }
}

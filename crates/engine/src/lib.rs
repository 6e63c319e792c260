//! Inference over a model: sequences, caches, the scheduler, the sampler, speculation.
//!
//! A caller enqueues requests, calls [`Engine::step`] again and again and reads events. A token is a function of the
//! model, the prompt, the seed and the settings of its own request: not of the requests beside it, of chunking, of what
//! the cache held, of speculation, of threads.
//!
//! **Invariants.** No HTTP, no async, no clock, no file. One thread owns the engine; the kernels have threads of their
//! own. What a request asks for is checked when it is enqueued, and every refusal says what was wrong.

#![forbid(unsafe_code)]

mod request;

mod embedding;

mod picture;

mod draw;

mod event;

mod engine;

mod sequence;

mod schedule;

mod forward;

mod mtp;

mod pages;

mod speculate;

mod sampler;

mod constraint;

mod text;

mod thinking;

pub use constraint::{Prepared, Preparer};
pub use draw::{DRAW_PROMPT_MAX, Renderer};
pub use engine::{Engine, EngineError, LoadedModel, Numbers, Options, Speculation};
pub use event::{Counters, Event, FinishReason, Finished, Status, Token, Usage};
pub use picture::Picture;
pub use request::{Constraint, Draw, Pooling, Request, RequestError, RequestId, Sampling, Thinking};
pub use sampler::{Choice, Sampler, Scratch};
pub use wels_kernels::memory::give_free_back;
pub use wels_model::adapter::Adapter;
pub use wels_model::janus::picture as image;
pub use wels_model::janus::preprocess::Preprocessing;
pub use wels_model::janus::without_words;

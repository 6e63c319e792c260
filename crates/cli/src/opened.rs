//! A model whose files have been looked at, for a conversation or a server: one of text, or one that also sees and
//! draws.

use std::num::NonZeroUsize;
use std::sync::Arc;

use anyhow::Result;
use wels_data::tokenizer::Tokenizer;
use wels_engine::{Engine, LoadedModel, Options};
use wels_pipeline::refusal::refuse;
use wels_runs::machine;
use wels_server::prompt::ServedModel;

use crate::janus::OpenJanus;
use crate::model::{LoadArgs, Location, OpenModel, check_context, served_model};

/// Boxed, since they are large.
pub enum Opened {
    Text(Box<OpenModel>),
    Janus(Box<OpenJanus>),
}

impl Opened {
    pub fn find(location: &Location) -> Result<Opened> {
        Ok(match OpenJanus::find(location)? {
            Some(janus) => Opened::Janus(Box::new(janus)),
            None => Opened::Text(Box::new(OpenModel::open(location)?)),
        })
    }

    /// The model's own context.
    pub fn longest(&self) -> usize {
        match self {
            Opened::Text(open) => open.config.rope.max_positions,
            Opened::Janus(open) => open.config.text.rope.max_positions,
        }
    }

    /// What answers are made from besides the engine; the tokenizer is there from now on.
    pub fn served(&mut self, context: usize) -> Result<ServedModel> {
        match self {
            Opened::Janus(open) => open.served(context),
            Opened::Text(open) => {
                check_context(&open.config, context)?;
                let none = || refuse("the model has no tokenizer", "put its tokenizer.json beside the weights");
                let tokenizer = Arc::new(open.tokenizer.take().ok_or_else(none)?);
                served_model(&open.config, &tokenizer, context)
            }
        }
    }

    /// An engine with a KV cache of so many MiB, or as many as there is memory for; `own` changes the options.
    pub fn engine(
        &self,
        load: &LoadArgs,
        tokenizer: &Arc<Tokenizer>,
        context: usize,
        cache_mib: NonZeroUsize,
        own: impl FnOnce(Options) -> Options,
    ) -> Result<Engine> {
        match self {
            Opened::Janus(open) => {
                let cache_bytes = cache_mib.get().saturating_mul(1 << 20);
                open.engine(load, context, |options| own(Options { cache_bytes, ..options }))
            }
            Opened::Text(open) => {
                let (model, params, cache_bytes) = load.take_with_cache(open, context, cache_mib)?;
                let options = Options { cache_bytes, ..load.options(params.placement(), &open.config) };
                let (model, params, tokenizer) = (Arc::new(model), Arc::new(params), Some(Arc::clone(tokenizer)));
                Ok(Engine::new(LoadedModel { model, params, tokenizer, janus: None }, own(options))?)
            }
        }
    }

    /// Bytes that [`Opened::engine`] takes of the main device's memory, and how many that has left.
    pub fn memory(&self, load: &LoadArgs, cache_mib: NonZeroUsize) -> Result<(u64, Option<u64>)> {
        match self {
            Opened::Text(open) => load.memory(open, cache_mib),
            Opened::Janus(open) => {
                let cache = (cache_mib.get() as u64).saturating_mul(1 << 20);
                Ok((open.bytes().saturating_add(cache), machine::available_memory_bytes()))
            }
        }
    }
}

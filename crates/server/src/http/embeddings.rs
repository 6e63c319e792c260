//! `embeddings`: texts as vectors.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use wels_engine::{Event, FinishReason};

use super::app::{App, Model, json_response};
use super::generate::{Account, Admitted, prompt_limit, receive};
use super::record::Record;
use crate::ledger::Key;
use crate::loader::Lease;
use crate::money::Tokens;
use crate::wire::{ApiError, EmbeddingRequest};

/// The most texts of a request in the engine at once.
const AT_ONCE: usize = 16;

pub(super) async fn embeddings(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let record = Record::of(&request);
    let (key, (request, model, prompts), _) = receive(&app, request, |app, key, bytes| {
        let width = |model: &str| Ok(app.model(model)?.served.embedding_width);
        let request = EmbeddingRequest::parse(bytes, width)?;
        let model = app.model(&request.model)?;
        let prompts = model.served.plan_embeddings(&request, &prompt_limit(&model, key))?;
        Ok((request, model, prompts))
    })
    .await?;
    embed(&app, &key, record, &request, model, prompts).await
}

async fn embed(
    app: &Arc<App>,
    key: &Key,
    record: Record,
    request: &EmbeddingRequest,
    model: Arc<Model>,
    prompts: Vec<wels_engine::Request>,
) -> Result<Response, ApiError> {
    let tokens: usize = prompts.iter().map(|request| request.prompt.len()).sum();
    let at_once = key.at_once(AT_ONCE.min(prompts.len()));
    let begun = Admitted::begin(app, key, record, model, "embd-", &prompts, at_once, tokens);
    let Admitted { mut account, prices, .. } = begun.await?;
    let engine = account.load().await?;
    let mut vectors: Vec<Vec<f32>> = Vec::with_capacity(prompts.len());
    for some in prompts.chunks(at_once) {
        vectors.extend(vectors_of(&mut account, &engine, key, some).await?);
    }
    // Nothing of it is taken from the prefix cache.
    let tokens = Tokens { miss: tokens as u64, ..Tokens::default() };
    account.write(tokens).await.inspect_err(|_| account.settle("error"))?;
    account.settle("done");
    Ok(json_response(200, &request.reply(&vectors, tokens.miss, prices.cost(tokens))))
}

/// The vectors of some texts, which are in the engine together.
async fn vectors_of(
    account: &mut Account,
    engine: &Lease,
    key: &Key,
    prompts: &[wels_engine::Request],
) -> Result<Vec<Vec<f32>>, ApiError> {
    let mut ticket = account.submit(engine, key, prompts.to_vec(), "input").await?;
    let (mut found, mut ended) = (vec![Vec::new(); prompts.len()], 0);
    while ended < prompts.len() {
        let lost = || ApiError::overloaded("The engine has dropped the request.", 5);
        let event = ticket.events.recv().await.ok_or_else(lost).inspect_err(|_| account.settle("error"))?;
        account.record.event(&event, &account.model.metrics.times);
        match event.event {
            Event::Embedding { values, .. } => found[event.choice] = normalised(values),
            Event::Finished(end) if end.reason != FinishReason::Stop => {
                account.settle("error");
                return Err(ApiError::internal("The model failed on this request."));
            }
            Event::Finished(_) => ended += 1,
            Event::Token(_) => {}
        }
    }
    Ok(found)
}

/// Of length 1; a vector of zeros stays what it is.
fn normalised(mut values: Vec<f32>) -> Vec<f32> {
    let squares: f64 = values.iter().map(|value| f64::from(*value).powi(2)).sum();
    if squares > 0.0 {
        let scale = 1.0 / squares.sqrt();
        values.iter_mut().for_each(|value| *value = (f64::from(*value) * scale) as f32);
    }
    values
}

//! `images/generations`: pictures of a prompt.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use wels_engine::{Event, FinishReason, Renderer, image};

use super::app::{App, Model, json_response};
use super::generate::{Admitted, prompt_limit, receive};
use super::record::Record;
use crate::ledger::Key;
use crate::money::{Prices, Tokens};
use crate::wire::{ApiError, ImageRequest, images_reply};

pub(super) async fn images(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let record = Record::of(&request);
    let (key, (request, model, requests)) = receive(&app, request, |app, key, bytes| {
        let side = |model: &str| {
            let pictures = app.model(model)?.served.pictures.as_ref().map(|pictures| pictures.side);
            pictures.ok_or_else(|| ApiError::param("model", app.no_pictures(model, "draws")))
        };
        let request = ImageRequest::parse(bytes, side)?;
        let model = app.model(&request.model)?;
        let requests = model.served.plan_draw(&request, &prompt_limit(&model, key))?;
        Ok((request, model, requests))
    })
    .await?;
    draw(&app, &key, record, &request, model, requests).await
}

async fn draw(
    app: &Arc<App>,
    key: &Key,
    record: Record,
    request: &ImageRequest,
    model: Arc<Model>,
    requests: Vec<wels_engine::Request>,
) -> Result<Response, ApiError> {
    let prompt = requests[0].prompt.len();
    let seed = requests[0].sampling.seed;
    let begun = Admitted::begin(app, key, record, Arc::clone(&model), "img-", &requests, prompt).await?;
    let Admitted { mut account, prices, now_unix_ms } = begun;
    let engine = account.load().await?;
    let mut ticket = account.submit(&engine, key, requests.clone(), "prompt").await?;
    let (mut codes, mut ended) = (vec![Vec::new(); requests.len()], 0);
    while ended < requests.len() {
        let lost = || ApiError::overloaded("The engine has dropped the request.", 5);
        let event = ticket.events.recv().await.ok_or_else(lost)?;
        account.record.event(&event, &account.model.metrics.times);
        match event.event {
            Event::Token(token) => codes[event.choice].push(token.token),
            Event::Finished(end) if end.reason != FinishReason::Stop => {
                account.settle("error");
                return Err(ApiError::internal("The model failed on this request."));
            }
            Event::Finished(_) => ended += 1,
            Event::Embedding { .. } => {}
        }
    }
    let output: usize = codes.iter().map(Vec::len).sum();
    let renderer = engine.renderer().cloned();
    let renderer = renderer.ok_or_else(|| ApiError::internal("The engine draws no pictures."))?;
    let files = codes.into_iter().zip(0..).map(|(codes, number)| (codes, seed.wrapping_add(number)));
    let (files, described) = (files.collect(), describe(request, model.name()));
    let pictures = tokio::task::spawn_blocking(move || render(&renderer, files, &described));
    let pictures = pictures.await.map_err(|_| ApiError::internal("The pictures could not be made."))?;
    let pictures = pictures.map_err(ApiError::internal).inspect_err(|_| account.settle("error"))?;
    let tokens = Tokens { miss: prompt as u64, output: output as u64, ..Tokens::default() };
    account.write(tokens).await?;
    account.settle("done");
    let side = model.served.pictures.as_ref().map_or(0, |pictures| pictures.side);
    Ok(json_response(200, &images_reply(now_unix_ms / 1000, side, &pictures, usage(tokens, &prices))))
}

/// In OpenAI's form for pictures, with the cost.
fn usage(tokens: Tokens, prices: &Prices) -> serde_json::Value {
    let cost = prices.cost(tokens);
    json!({
        "input_tokens": tokens.miss, "output_tokens": tokens.output, "total_tokens": tokens.miss + tokens.output,
        "input_tokens_details": {"text_tokens": tokens.miss, "image_tokens": 0},
        "cost": cost.to_f64(), "cost_exact": cost.to_string(),
    })
}

/// What all pictures of a request have in common.
struct Described {
    prompt: String,
    model: String,
    cfg: f32,
    temperature: f32,
}

fn describe(request: &ImageRequest, model: &str) -> Described {
    let ImageRequest { prompt, cfg, temperature, .. } = request;
    Described { prompt: prompt.clone(), model: model.to_owned(), cfg: *cfg, temperature: *temperature }
}

/// PNG files in base64, each of codes and of the seed that it says.
fn render(
    renderer: &Renderer,
    drawn: Vec<(Vec<u32>, u64)>,
    described: &Described,
) -> Result<Vec<(String, u64)>, String> {
    let Described { prompt, model, cfg, temperature } = described;
    let file = |(codes, seed): (Vec<u32>, u64)| {
        let settings = json!({"prompt": prompt, "seed": seed, "cfg": shortest(*cfg),
            "temperature": shortest(*temperature), "model": model});
        let file = image::encode_drawn(&renderer.picture(&codes)?, prompt, &settings.to_string());
        Ok((STANDARD.encode(file), seed))
    };
    drawn.into_iter().map(file).collect()
}

/// The shortest number that is this one in 32 bits, as it was written.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

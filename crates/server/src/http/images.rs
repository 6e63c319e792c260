//! `images/generations`: pictures of a prompt, whole or as a stream.

mod stream;

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use wels_engine::{Event, FinishReason, Renderer, image};

use self::stream::Stream;
use super::app::{App, Model, json_response};
use super::generate::{Account, Admitted, denied_by_engine, prompt_limit, receive};
use super::hangup::Hangup;
use super::record::Record;
use crate::ledger::Key;
use crate::loader::Lease;
use crate::money::{Nanos, Prices, Tokens};
use crate::wire::{ApiError, ImageHead, ImageRequest};
use crate::worker::{ChoiceEvent, Ticket};

pub(super) async fn images(State(app): State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    let hangup = request.extensions().get::<Hangup>().cloned().unwrap_or_default();
    let record = Record::of(&request);
    let (key, (request, model, requests), _) = receive(&app, request, |app, key, bytes| {
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
    let drawing = Drawing::begin(&app, &key, record, &request, model, requests).await?;
    match request.streams {
        true => Ok(Stream::new(drawing, request.partial_images).response(hangup)),
        false => drawing.whole().await,
    }
}

/// The pictures of a request, under way.
struct Drawing {
    app: Arc<App>,
    key: Key,
    account: Account,
    /// Of all pictures.
    requests: Vec<wels_engine::Request>,
    /// The most of them that the engine has at once.
    at_once: usize,
    /// Of those that the engine has.
    ticket: Ticket,
    /// The picture that the ticket begins with.
    first: usize,
    engine: Lease,
    renderer: Renderer,
    prices: Prices,
    head: ImageHead,
    prompt_tokens: u64,
    described: Arc<Described>,
    pictures: Vec<Drawn>,
}

/// One of them.
#[derive(Clone)]
struct Drawn {
    codes: Vec<u32>,
    seed: u64,
    is_complete: bool,
}

/// What the files of all of them say.
struct Described {
    prompt: String,
    model: String,
    cfg: f32,
    temperature: f32,
    /// Codes of a picture.
    codes: usize,
}

impl Drawing {
    /// Admits the request to the ledger, then to the engine.
    async fn begin(
        app: &Arc<App>,
        key: &Key,
        record: Record,
        request: &ImageRequest,
        model: Arc<Model>,
        requests: Vec<wels_engine::Request>,
    ) -> Result<Drawing, ApiError> {
        let (prompt, seed, codes) = (requests[0].prompt.len(), requests[0].sampling.seed, requests[0].max_tokens);
        let at_once = key.at_once(requests.len());
        let begun = Admitted::begin(app, key, record, Arc::clone(&model), "img-", &requests, at_once, prompt);
        let Admitted { mut account, prices, now_unix_ms } = begun.await?;
        let engine = account.load().await?;
        let pictures = (0..requests.len() as u64)
            .map(|number| Drawn { codes: Vec::new(), seed: seed.wrapping_add(number), is_complete: false })
            .collect();
        let ticket = account.submit(&engine, key, requests[..at_once].to_vec(), "prompt").await?;
        let renderer = engine.renderer().cloned().ok_or_else(|| ApiError::internal("The engine draws no pictures."));
        let renderer = renderer.inspect_err(|_| account.settle("error"))?;
        let side = model.served.pictures.as_ref().map_or(0, |pictures| pictures.side);
        let head = ImageHead { created: now_unix_ms / 1000, side };
        let ImageRequest { prompt: words, cfg, temperature, .. } = request.clone();
        let described = Arc::new(Described { prompt: words, model: model.name().to_owned(), cfg, temperature, codes });
        let prompt_tokens = prompt as u64;
        Ok(Drawing {
            app: Arc::clone(app),
            key: key.clone(),
            account,
            requests,
            at_once,
            ticket,
            first: 0,
            engine,
            renderer,
            prices,
            head,
            prompt_tokens,
            described,
            pictures,
        })
    }

    /// What an event adds: the picture that it is about.
    fn take(&mut self, event: Option<ChoiceEvent>) -> Result<usize, ApiError> {
        let mut event = event.ok_or_else(|| ApiError::overloaded("The engine has dropped the request.", 5))?;
        event.choice += self.first;
        self.account.record.event(&event, &self.account.model.metrics.times);
        let picture = &mut self.pictures[event.choice];
        match event.event {
            Event::Token(token) => picture.codes.push(token.token),
            Event::Finished(end) if end.reason != FinishReason::Stop => {
                return Err(ApiError::internal("The model failed on this request."));
            }
            Event::Finished(_) => picture.is_complete = true,
            Event::Embedding { .. } => {}
        }
        Ok(event.choice)
    }

    /// Hands in the next pictures, once all before them are drawn: a key that may have fewer under way than a request
    /// asks for has them drawn in parts.
    async fn go_on(&mut self) -> Result<(), ApiError> {
        let (next, all) = (self.first + self.ticket.ids.len(), self.pictures.len());
        if next == all || !self.pictures[..next].iter().all(|picture| picture.is_complete) {
            return Ok(());
        }
        let some = self.requests[next..all.min(next + self.at_once)].to_vec();
        let submitted = self.engine.submit(self.key.id, some).await;
        self.ticket = submitted.map_err(|denied| denied_by_engine(denied, &self.engine, "prompt"))?;
        self.first = next;
        Ok(())
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let (pictures, tokens) = self.all().await.inspect_err(|_| self.account.settle("error"))?;
        self.account.settle("done");
        let usage = usage(tokens, self.prices.cost(tokens));
        Ok(json_response(200, &self.head.whole(&pictures, usage)))
    }

    /// All files in base64 with their seeds, once they are made and stand in the ledger, and what they took.
    async fn all(&mut self) -> Result<(Vec<(String, u64)>, Tokens), ApiError> {
        while !self.pictures.iter().all(|picture| picture.is_complete) {
            let event = self.ticket.events.recv().await;
            self.take(event)?;
            self.go_on().await?;
        }
        let mut pictures = Vec::with_capacity(self.pictures.len());
        for drawn in &self.pictures {
            let (renderer, described, seed) = (self.renderer.clone(), Arc::clone(&self.described), drawn.seed);
            let drawn = drawn.clone();
            let file = self.app.queue.render(move || file(&renderer, &drawn, &described)).await?;
            pictures.push((file, seed));
        }
        let output = self.pictures.iter().map(|picture| picture.codes.len() as u64).sum();
        let tokens = Tokens { miss: self.prompt_tokens, output, ..Tokens::default() };
        self.account.write(tokens).await?;
        Ok((pictures, tokens))
    }
}

/// In OpenAI's form for pictures, with the cost.
fn usage(tokens: Tokens, cost: Nanos) -> Value {
    json!({
        "input_tokens": tokens.miss, "output_tokens": tokens.output, "total_tokens": tokens.miss + tokens.output,
        "input_tokens_details": {"text_tokens": tokens.miss, "image_tokens": 0},
        "output_tokens_details": {"text_tokens": 0, "image_tokens": tokens.output},
        "cost": cost.to_f64(), "cost_exact": cost.to_string(),
    })
}

/// A finished picture's PNG file in base64, which says how it was drawn.
fn file(renderer: &Renderer, picture: &Drawn, described: &Described) -> Result<String, String> {
    let Described { prompt, model, cfg, temperature, .. } = described;
    let settings = json!({"prompt": prompt, "seed": picture.seed, "cfg": shortest(*cfg),
        "temperature": shortest(*temperature), "model": model});
    let file = image::encode_drawn(&renderer.picture(&picture.codes)?, prompt, &settings.to_string());
    Ok(STANDARD.encode(file))
}

/// The shortest number that is this one in 32 bits, as it was written.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

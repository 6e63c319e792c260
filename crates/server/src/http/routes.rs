//! The routes, and the small handlers.

use std::sync::Arc;

use axum::Extension;
use axum::Router;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, delete, get, post};
use serde_json::{Value, json};
use wels_data::chat::strftime;

use super::adapters;
use super::app::{App, Model, json_response};
use super::around;
use super::embeddings::embeddings;
use super::generate::{self, Endpoint};
use super::images::images;
use super::metrics;
use super::openapi;
use super::pages;
use super::record::Record;
use crate::money::Nanos;
use crate::prompt::ServedAdapter;
use crate::wire::ApiError;
use crate::worker::Snapshot;

impl App {
    /// The routes.
    pub fn router(self: &Arc<App>) -> Router {
        let mut router = Router::new()
            .route("/health", get(health))
            .route("/metrics", get(read_metrics))
            .route("/user/balance", get(balance))
            .route("/v1/user/balance", get(balance))
            .route("/v1/adapters", post(adapters::add).get(adapters::list))
            .route("/v1/adapters/{*name}", delete(adapters::remove));
        for prefix in ["", "/v1", "/beta", "/beta/v1"] {
            let beta = prefix.starts_with("/beta");
            router = router
                .route(&format!("{prefix}/models"), get(models))
                .route(&format!("{prefix}/models/{{*name}}"), get(model))
                .route(&format!("{prefix}/completions"), answers(Endpoint::Completions))
                .route(&format!("{prefix}/chat/completions"), answers(Endpoint::Chat { beta }))
                .route(&format!("{prefix}/responses"), answers(Endpoint::Responses))
                .route(&format!("{prefix}/embeddings"), post(embeddings))
                .route(&format!("{prefix}/images/generations"), post(images));
        }
        // DeepSeek has Anthropic's API at `/anthropic`.
        for prefix in ["", "/v1", "/anthropic", "/anthropic/v1"] {
            router = router
                .route(&format!("{prefix}/messages"), answers(Endpoint::Messages))
                .route(&format!("{prefix}/messages/count_tokens"), post(generate::count_tokens));
        }
        pages::routes(openapi::routes(router))
            .fallback(|| async { ApiError::no_path().into_response() })
            .method_not_allowed_fallback(|| async { ApiError::method().into_response() })
            .layer(axum::middleware::from_fn_with_state(Arc::clone(self), around::around))
            .with_state(Arc::clone(self))
    }
}

fn answers(endpoint: Endpoint) -> MethodRouter<Arc<App>> {
    post(move |state, request| generate::answer(state, request, endpoint))
}

/// For load balancers: 200 while requests are taken, the engine moves and the ledger can be written.
async fn health(State(app): State<Arc<App>>) -> Response {
    let models = app.models();
    let bases = || models.iter().filter(|model| model.served.adapter.is_none());
    let engines: Vec<Snapshot> = bases().filter_map(|model| app.engine(model)).collect();
    let (status, word) = if !engines.iter().all(|engine| engine.is_healthy(app.settings.stuck_after)) {
        (503, "the engine does not move")
    } else if !app.ledger.is_healthy() {
        (503, "the ledger cannot be written")
    } else if app.is_draining() {
        (503, "draining")
    } else {
        (200, "ok")
    };
    let running: usize = engines.iter().map(|engine| engine.status.running).sum();
    let queued: usize = engines.iter().map(|engine| engine.status.waiting.len()).sum();
    let waiting = queued + bases().map(|model| app.waiting_for(model)).sum::<usize>();
    json_response(status, &json!({"status": word, "running": running, "waiting": waiting}))
}

async fn read_metrics(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    if !app.authenticate(&headers, &record).await?.admin {
        let message = "Only keys made with `wels keys add NAME --admin` may read metrics.";
        return Err(ApiError::forbidden(message));
    }
    let models = app.models();
    // An adapter's engine is its base's.
    let engine = |model: &Model| if model.served.adapter.is_none() { app.engine(model) } else { None };
    let models = models.iter().map(|model| (model.name(), &model.metrics, engine(model)));
    let text = metrics::text(&app.connections, &models.collect::<Vec<_>>());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// The model as clients see it, in OpenAI's and Anthropic's form at once, with what the web chat wants to know.
fn describe(app: &App, model: &Model, name: &str) -> Value {
    let (served, tariff) = (&model.served, &model.tariff);
    let (prices, created) = (tariff.at(crate::ledger::now_unix_ms()), served.created_unix_s);
    json!({
        "id": name, "object": "model", "created": created, "owned_by": "wels", "type": "model", "display_name": name,
        "created_at": strftime(created, "%FT%H:%M:%SZ"),
        "context_length": served.context, "max_output_tokens": served.output_tokens_max,
        "thinking": served.thinks(), "images": served.pictures.is_some(), "loaded": app.engine(model).is_some(),
        "pricing": {"currency": tariff.currency, "per_million_tokens": prices},
        "adapter": served.adapter.as_ref().map(ServedAdapter::describe),
    })
}

async fn models(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.authenticate(&headers, &record).await?;
    let all = app.models();
    let named = all.iter().flat_map(|model| model.served.names.iter().map(move |name| (model, name)));
    let named: Vec<(&Arc<Model>, &String)> = named.collect();
    let models: Vec<Value> = named.iter().map(|(model, name)| describe(&app, model, name)).collect();
    let ends = (named.first().map(|named| named.1), named.last().map(|named| named.1));
    let list = json!({"object": "list", "data": models, "has_more": false, "first_id": ends.0, "last_id": ends.1});
    Ok(json_response(200, &list))
}

async fn model(
    State(app): State<Arc<App>>,
    name: Result<Path<String>, PathRejection>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.authenticate(&headers, &record).await?;
    // A name that is not UTF-8 is no model's.
    let Path(name) = name.map_err(|_| ApiError::no_path())?;
    let model = app.model(&name)?;
    Ok(json_response(200, &describe(&app, &model, &name)))
}

/// DeepSeek's. A key without a budget has no balance to show and is always available.
async fn balance(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Record>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let key = app.authenticate(&headers, &record).await?;
    let infos: Vec<Value> = key
        .balance()
        .map(|left| {
            json!({"currency": app.currency(), "total_balance": left.to_string(),
                "granted_balance": Nanos::ZERO.to_string(), "topped_up_balance": left.to_string()})
        })
        .into_iter()
        .collect();
    let available = key.balance().is_none_or(|left| left > Nanos::ZERO);
    Ok(json_response(200, &json!({"is_available": available, "balance_infos": infos})))
}

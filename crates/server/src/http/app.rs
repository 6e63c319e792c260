//! What every handler sees, the routes, and the small handlers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::generate;
use super::metrics::Metrics;
use super::pages;
use crate::ledger::{Clerk, ClerkError, Key};
use crate::money::{Nanos, Tariff};
use crate::prompt::Served;
use crate::wire::ApiError;
use crate::worker::Worker;

/// Requests whose bodies may be read at once.
const READING_MAX: usize = 32;

/// What may be set about the server.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// For the body to arrive.
    pub body_patience: Duration,
    /// For a connection's request line and headers to arrive, also while it is idle.
    pub header_patience: Duration,
    /// Connections at once; one more gets a 503.
    pub connections_max: usize,
    /// For a client to take the next piece of a stream.
    pub reader_patience: Duration,
    /// Between signs of life on a stream that has nothing to say.
    pub keep_alive: Duration,
    /// A step of the engine that takes longer makes `/health` fail.
    pub stuck_after: Duration,
    /// For requests under way, once the server is asked to stop.
    pub drain: Duration,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            body_bytes_max: 4 << 20,
            body_patience: Duration::from_secs(30),
            header_patience: Duration::from_secs(15),
            connections_max: 1024,
            reader_patience: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            stuck_after: Duration::from_secs(60),
            drain: Duration::from_secs(60),
        }
    }
}

/// What every handler sees.
pub struct App {
    /// The model.
    pub served: Served,
    /// The engine's thread.
    pub worker: Worker,
    /// The ledger's thread.
    pub clerk: Clerk,
    /// Prices.
    pub tariff: Tariff,
    /// Limits.
    pub settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) draining: AtomicBool,
    /// Requests whose bodies are read and planned at once: bodies are large, and templates are work.
    pub(super) reading: Semaphore,
}

impl App {
    /// Puts the parts together.
    pub fn new(served: Served, worker: Worker, clerk: Clerk, tariff: Tariff, settings: Settings) -> Arc<App> {
        let (metrics, draining) = (Metrics::default(), AtomicBool::new(false));
        let reading = Semaphore::new(READING_MAX);
        Arc::new(App { served, worker, clerk, tariff, settings, metrics, draining, reading })
    }

    /// The routes.
    pub fn router(self: &Arc<App>) -> Router {
        let mut router = Router::new()
            .route("/health", get(health))
            .route("/metrics", get(metrics))
            .route("/user/balance", get(balance))
            .route("/v1/user/balance", get(balance));
        for prefix in ["", "/v1", "/beta", "/beta/v1"] {
            let beta = prefix.starts_with("/beta");
            router = router
                .route(&format!("{prefix}/models"), get(models))
                .route(&format!("{prefix}/models/{{*name}}"), get(model))
                .route(&format!("{prefix}/completions"), post(generate::completions))
                .route(
                    &format!("{prefix}/chat/completions"),
                    post(move |state, request| generate::chat(state, request, beta)),
                );
        }
        pages::routes(router)
            .fallback(|| async { ApiError::no_path().into_response() })
            .method_not_allowed_fallback(|| async { ApiError::method().into_response() })
            .layer(axum::middleware::from_fn(finish))
            .with_state(Arc::clone(self))
    }

    /// The key that a request shows.
    pub(super) async fn authenticate(&self, headers: &HeaderMap) -> Result<Key, ApiError> {
        let secret = bearer(headers).ok_or_else(ApiError::unauthorized)?;
        let key = self.clerk.find_key(secret.to_owned()).await.map_err(ledger_failed)?;
        key.filter(|key| key.revoked_unix_ms.is_none()).ok_or_else(ApiError::unauthorized)
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, secret) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// The ledger is there again once it can be written; why it cannot is in the log.
pub(super) fn ledger_failed(_: ClerkError) -> ApiError {
    ApiError::overloaded("The account of requests cannot be written now, so none is taken.", 5)
}

/// What every response has.
async fn finish(request: Request, next: axum::middleware::Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == 401 {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

/// A response of JSON.
pub(super) fn json_response(status: u16, value: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("the statuses of this program are valid");
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// For load balancers: 200 while requests are taken and the engine moves.
async fn health(State(app): State<Arc<App>>) -> Response {
    let snapshot = app.worker.snapshot();
    let (status, word) = match (snapshot.is_healthy(app.settings.stuck_after), app.is_draining()) {
        (false, _) => (503, "the engine does not move"),
        (true, true) => (503, "draining"),
        (true, false) => (200, "ok"),
    };
    let (running, waiting) = (snapshot.status.running, snapshot.status.waiting.len());
    json_response(status, &json!({"status": word, "running": running, "waiting": waiting}))
}

async fn metrics(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.authenticate(&headers).await?;
    let text = app.metrics.text(&app.worker.snapshot());
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response())
}

/// The model as clients see it, with what the web chat wants to know.
fn describe(app: &App, name: &str) -> Value {
    let prices = app.tariff.at(crate::ledger::now_unix_ms());
    json!({
        "id": name, "object": "model", "created": app.served.created_unix_s, "owned_by": "wels",
        "context_length": app.served.context, "max_output_tokens": app.served.output_tokens_max,
        "pricing": {"currency": app.tariff.currency, "per_million_tokens": prices},
    })
}

async fn models(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    app.authenticate(&headers).await?;
    let models: Vec<Value> = app.served.names.iter().map(|name| describe(&app, name)).collect();
    Ok(json_response(200, &json!({"object": "list", "data": models})))
}

async fn model(
    State(app): State<Arc<App>>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    app.authenticate(&headers).await?;
    match app.served.is_named(&name) {
        true => Ok(json_response(200, &describe(&app, &name))),
        false => Err(ApiError::no_model(&name)),
    }
}

/// DeepSeek's. A key without a budget has no balance to show and is always available.
async fn balance(State(app): State<Arc<App>>, headers: HeaderMap) -> Result<Response, ApiError> {
    let key = app.authenticate(&headers).await?;
    let infos: Vec<Value> = key
        .balance()
        .map(|left| {
            json!({"currency": app.tariff.currency, "total_balance": left.to_string(),
                "granted_balance": Nanos::ZERO.to_string(), "topped_up_balance": left.to_string()})
        })
        .into_iter()
        .collect();
    let available = key.balance().is_none_or(|left| left > Nanos::ZERO);
    Ok(json_response(200, &json!({"is_available": available, "balance_infos": infos})))
}

//! What every handler sees: the server's parts and settings, who asks, how a response is made.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::cors::Cors;
use super::fair_queue::FairQueue;
use super::metrics::Metrics;
use super::record::Record;
use super::tls::Tls;
use crate::ledger::{Key, LedgerHandle, LedgerHandleError, Prechecked, Who};
use crate::money::Tariff;
use crate::prompt::ServedModel;
use crate::wire::ApiError;
use crate::worker::Worker;

/// What may be set about the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key, by its name, as which requests are served that show none that is known. Only for servers that nothing
    /// but their own machine reaches.
    pub without_key: Option<String>,
    /// Which web pages may call.
    pub cors: Cors,
    /// The certificate; without one, connections are not encrypted.
    pub tls: Option<Arc<Tls>>,
    /// Bytes of a request's body.
    pub body_bytes_max: usize,
    /// For the body to arrive.
    pub body_timeout: Duration,
    /// For a connection's request line and headers to arrive, also while it is idle.
    pub header_timeout: Duration,
    /// Connections at once; one more gets a 503.
    pub connections_max: usize,
    /// For a client to take the next piece of a stream, or of any other response.
    pub write_timeout: Duration,
    /// For the ledger to be there again, while an answer is ready to be sent.
    pub ledger_timeout: Duration,
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
            without_key: None,
            cors: Cors::Own,
            tls: None,
            body_bytes_max: 4 << 20,
            body_timeout: Duration::from_secs(30),
            header_timeout: Duration::from_secs(15),
            connections_max: 1024,
            write_timeout: Duration::from_secs(30),
            ledger_timeout: Duration::from_secs(30),
            keep_alive: Duration::from_secs(5),
            stuck_after: Duration::from_secs(60),
            drain: Duration::from_secs(60),
        }
    }
}

/// What every handler sees.
pub struct App {
    pub served: ServedModel,
    /// The engine's thread.
    pub worker: Worker,
    /// The ledger's thread.
    pub ledger: LedgerHandle,
    /// Prices.
    pub tariff: Tariff,
    /// Limits.
    pub settings: Settings,
    pub(super) metrics: Metrics,
    pub(super) draining: AtomicBool,
    /// Whose bodies are read and planned: bodies are large, and templates are work.
    pub(super) queue: FairQueue,
}

impl App {
    /// Puts the parts together.
    pub fn new(
        served: ServedModel,
        worker: Worker,
        ledger: LedgerHandle,
        tariff: Tariff,
        settings: Settings,
    ) -> Arc<App> {
        let (metrics, draining) = (Metrics::default(), AtomicBool::new(false));
        let queue = FairQueue::new(settings.body_bytes_max);
        Arc::new(App { served, worker, ledger, tariff, settings, metrics, draining, queue })
    }

    /// The key that a request shows.
    pub(super) async fn authenticate(&self, headers: &HeaderMap, record: &Record) -> Result<Key, ApiError> {
        let key = self.ledger.find_key(self.who(headers)?).await.map_err(ledger_failed)?;
        let key = key.filter(|key| key.revoked_unix_ms.is_none()).ok_or_else(ApiError::unauthorized)?;
        record.set_key(&key);
        Ok(key)
    }

    /// The key that a request for answers shows, and why it would be refused whatever it asks for: so that nothing is
    /// read of requests that cannot be admitted.
    pub(super) async fn precheck(&self, headers: &HeaderMap) -> Result<Prechecked, ApiError> {
        let found = self.ledger.precheck(self.who(headers)?).await.map_err(ledger_failed)?;
        found.filter(|found| found.key.revoked_unix_ms.is_none()).ok_or_else(ApiError::unauthorized)
    }

    fn who(&self, headers: &HeaderMap) -> Result<Who, ApiError> {
        let who = Who { secret: secret(headers).map(str::to_owned), otherwise: self.settings.without_key.clone() };
        match who {
            Who { secret: None, otherwise: None } => Err(ApiError::unauthorized()),
            who => Ok(who),
        }
    }

    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The key as OpenAI's clients send it, or as Anthropic's do.
fn secret(headers: &HeaderMap) -> Option<&str> {
    let bearer = headers.get(header::AUTHORIZATION).and_then(bearer);
    bearer.or_else(|| headers.get("x-api-key")?.to_str().ok())
}

fn bearer(value: &HeaderValue) -> Option<&str> {
    let (scheme, secret) = value.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(secret.trim())
}

/// The ledger is there again once it can be written; why it cannot is in the log.
pub(super) fn ledger_failed(error: LedgerHandleError) -> ApiError {
    ApiError::overloaded(
        match error {
            LedgerHandleError::Down => "The account of requests cannot be written now, so none is taken.",
            LedgerHandleError::Closed => {
                "Another server has closed the account of this request, so it is not answered."
            }
        },
        5,
    )
}

/// What a response that is an error carries of it for the log.
#[derive(Clone, Copy)]
pub(super) struct ErrorCode(pub &'static str);

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = json_response(self.status, &self.to_json());
        response.extensions_mut().insert(ErrorCode(self.code.unwrap_or(self.kind)));
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == 401 {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

pub(super) fn json_response(status: u16, value: &Value) -> Response {
    let status = StatusCode::from_u16(status).expect("the statuses of this program are valid");
    (status, [(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

//! What every handler sees: the server's parts and settings, who asks, how a response is made.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;

use super::adapters::{AdapterSource, LoadedAdapter};
use super::cors::Cors;
use super::fair_queue::FairQueue;
use super::fetch::ImageHosts;
use super::metrics::{Connections, Metrics};
use super::record::Record;
use super::tls::Tls;
use crate::ledger::{Key, LedgerHandle, LedgerHandleError, Prechecked, Who};
use crate::loader::{Lease, Loader, NotLoaded};
use crate::money::Tariff;
use crate::prompt::{ServedAdapter, ServedModel};
use crate::wire::ApiError;
use crate::worker::Snapshot;

/// What may be set about the server.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The key, by its name, as which requests are served that show none that is known. Only for servers that nothing
    /// but their own machine reaches.
    pub without_key: Option<String>,
    /// Which web pages may call.
    pub cors: Cors,
    /// Hosts that pictures of requests are fetched from.
    pub image_hosts: Arc<ImageHosts>,
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
            image_hosts: Arc::default(),
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

/// A model that clients may ask for.
pub struct Model {
    pub served: ServedModel,
    pub tariff: Tariff,
    pub(super) metrics: Metrics,
    /// Its number, also in the loader; of an adapter, its base's.
    pub(super) number: usize,
    /// How accounts, logs and metrics call it.
    account: String,
}

impl Model {
    fn new(served: ServedModel, tariff: Tariff, number: usize) -> Arc<Model> {
        let account = match &served.adapter {
            None => served.names[0].clone(),
            Some(adapter) => format!("{}@{}", served.names[0], adapter.sha256),
        };
        Arc::new(Model { served, tariff, metrics: Metrics::default(), number, account })
    }

    /// The name by which it stands in accounts, logs and metrics; of an adapter with the hash of its weights, since
    /// another may have its name later.
    pub(super) fn name(&self) -> &str {
        &self.account
    }
}

/// What every handler sees.
pub struct App {
    /// At least one; no two have a name in common. Adapters come and go.
    models: RwLock<Vec<Arc<Model>>>,
    currency: String,
    adapters: OnceLock<Arc<dyn AdapterSource>>,
    loader: Loader,
    /// The ledger's thread.
    pub ledger: LedgerHandle,
    /// Limits.
    pub settings: Settings,
    pub(super) connections: Connections,
    pub(super) draining: AtomicBool,
    /// Whose bodies are read and planned: bodies are large, and templates are work.
    pub(super) queue: FairQueue,
}

impl App {
    /// Puts the parts together. The models have prices in one currency, and are the loader's, in the same order.
    pub fn new(
        models: Vec<(ServedModel, Tariff)>,
        loader: Loader,
        ledger: LedgerHandle,
        settings: Settings,
    ) -> Arc<App> {
        let numbered = models.into_iter().enumerate();
        let models: Vec<_> = numbered.map(|(number, (served, tariff))| Model::new(served, tariff, number)).collect();
        let currency = models.first().expect("a server has a model").tariff.currency.clone();
        let (models, adapters) = (RwLock::new(models), OnceLock::new());
        let (connections, draining) = (Connections::default(), AtomicBool::new(false));
        let queue = FairQueue::new(settings.body_bytes_max);
        Arc::new(App { models, currency, adapters, loader, ledger, settings, connections, draining, queue })
    }

    /// All models as they are now, the first one first.
    pub(super) fn models(&self) -> Vec<Arc<Model>> {
        self.models.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on adapters are loaded from there.
    pub fn load_adapters_from(&self, source: Arc<dyn AdapterSource>) {
        // Whoever starts a server says so once.
        let _ = self.adapters.set(source);
    }

    pub(super) fn adapter_source(&self) -> Option<Arc<dyn AdapterSource>> {
        self.adapters.get().cloned()
    }

    /// The model that is no adapter, if there is one of these.
    pub(super) fn only_base(&self) -> Option<Arc<Model>> {
        let mut bases = self.models().into_iter().filter(|model| model.served.adapter.is_none());
        let only = bases.next();
        only.filter(|_| bases.next().is_none())
    }

    /// An adapter of the model with this number, with prices of its own, from the start of the server.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn serve_adapter(
        &self,
        number: usize,
        name: &str,
        loaded: LoadedAdapter,
        tariff: Tariff,
    ) -> Result<(), String> {
        let base = self.models().into_iter().find(|model| model.number == number).ok_or("no such model")?;
        self.add(&base, name, loaded, tariff).map(drop).map_err(|error| error.message)
    }

    /// Serves the adapter of a model from now on, by this name.
    pub(super) fn add_adapter(&self, base: &Model, name: &str, loaded: LoadedAdapter) -> Result<Arc<Model>, ApiError> {
        self.add(base, name, loaded, base.tariff.clone())
    }

    fn add(&self, base: &Model, name: &str, loaded: LoadedAdapter, tariff: Tariff) -> Result<Arc<Model>, ApiError> {
        let LoadedAdapter { adapter, sha256 } = loaded;
        let adapter = ServedAdapter { adapter, sha256, base: base.served.names[0].clone() };
        let served = base.served.with_adapter(name, adapter).map_err(ApiError::invalid)?;
        let model = Model::new(served, tariff, base.number);
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        if models.iter().any(|model| model.served.is_named(name)) {
            let message = format!("There is a model `{name}` already: unload it first, or choose another name.");
            return Err(ApiError::param("name", message));
        }
        models.push(Arc::clone(&model));
        Ok(model)
    }

    /// Serves an adapter no more.
    pub(super) fn remove_adapter(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        let found = models.iter().position(|model| model.served.adapter.is_some() && model.served.is_named(name));
        found.map(|at| models.remove(at)).ok_or_else(|| ApiError::no_model(name))
    }

    /// The model that clients call so.
    pub(super) fn model(&self, name: &str) -> Result<Arc<Model>, ApiError> {
        let models = self.models.read().unwrap_or_else(PoisonError::into_inner);
        let model = models.iter().find(|model| model.served.is_named(name));
        model.cloned().ok_or_else(|| ApiError::no_model(name))
    }

    /// What is said of a model of text that was asked for pictures, with those that can.
    pub(super) fn no_pictures(&self, name: &str, does: &str) -> String {
        let models = self.models();
        let can = models.iter().filter(|model| model.served.pictures.is_some());
        let can: Vec<String> = can.map(|model| format!("`{}`", model.name())).collect();
        match can.is_empty() {
            true => format!("`{name}` is a model of text and {does} no pictures, and no model here does."),
            false => format!("`{name}` is a model of text and {does} no pictures: ask {}.", can.join(" or ")),
        }
    }

    /// The currency of all prices and balances.
    pub(super) fn currency(&self) -> &str {
        &self.currency
    }

    /// The model in memory, for as long as the lease lasts.
    pub(super) async fn load(&self, model: &Model) -> Result<Lease, ApiError> {
        self.loader.lease(model.number).await.map_err(|error| match error {
            NotLoaded::Full { waiting } => {
                let message = format!("{waiting} requests wait for `{}` to be loaded.", model.name());
                ApiError::overloaded(message, 10)
            }
            NotLoaded::Failed => {
                let message = format!("`{}` cannot be loaded; the server's log says why.", model.name());
                ApiError::overloaded(message, 60)
            }
        })
    }

    /// What a model's engine is at; `None` while the model is not loaded.
    pub(super) fn engine(&self, model: &Model) -> Option<Snapshot> {
        self.loader.status(model.number).0
    }

    /// When an answer that is under way may have ended, in seconds.
    pub(super) fn retry_after_s(&self) -> u64 {
        let models = self.models();
        let engines = models.iter().filter_map(|model| self.engine(model));
        engines.map(|engine| engine.retry_after_s(0)).min().unwrap_or(1)
    }

    /// Requests that wait for a model to be loaded.
    pub(super) fn waiting_for(&self, model: &Model) -> usize {
        self.loader.status(model.number).1
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

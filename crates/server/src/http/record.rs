//! What is noted of a request while it is done: its names, times and tokens, for the metrics and for the one line that
//! the log has of it. The line is written when the last part of the server that has to do with the request lets go of
//! it, so also when its client has left.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::Request;
use wels_engine::{Event, FinishReason};

use super::metrics::{Metrics, Times};
use crate::keys::random_hex;
use crate::ledger::{Key, Room};
use crate::money::Tokens;
use crate::worker::ChoiceEvent;

/// The header with a request's name.
pub(super) const REQUEST_ID: &str = "x-request-id";
/// Bytes of a client's name for its request.
const ID_BYTES_MAX: usize = 128;

/// The notes of one request, which several parts of the server write to.
#[derive(Clone)]
pub(super) struct Record(Arc<Mutex<Notes>>);

struct Notes {
    arrived: Instant,
    /// What the client calls it.
    client_id: Option<String>,
    /// What it is called where neither the client nor the ledger has a name for it.
    made_id: String,
    /// Nobody wants to read of a look at a list or a page that succeeded.
    quiet: bool,
    /// The route, not the address that the client has sent.
    endpoint: String,
    key: Option<String>,
    /// The request's name in the ledger.
    account: Option<String>,
    model: Option<String>,
    prompt_tokens: u64,
    tokens: Tokens,
    /// When the engine was given it.
    submitted: Option<Instant>,
    /// When the engine began with it.
    started: Option<Instant>,
    first_token: Option<Instant>,
    /// Of each answer.
    last_token: Vec<Option<Instant>>,
    /// One of its answers has all the tokens that it may have.
    length: bool,
    /// What its key may still use.
    room: Room,
    outcome: Option<&'static str>,
    reason: Option<&'static str>,
    status: Option<u16>,
}

impl Record {
    /// Of a request that has just arrived at a route.
    pub fn new(request: &Request, route: Option<&str>) -> Record {
        Record(Arc::new(Mutex::new(Notes {
            arrived: Instant::now(),
            client_id: client_id(request),
            made_id: format!("req-{}", random_hex::<16>().unwrap_or_default()),
            quiet: request.method() == axum::http::Method::GET,
            endpoint: route.unwrap_or("none").to_owned(),
            key: None,
            account: None,
            model: None,
            prompt_tokens: 0,
            tokens: Tokens::default(),
            submitted: None,
            started: None,
            first_token: None,
            last_token: Vec::new(),
            length: false,
            room: Room::default(),
            outcome: None,
            reason: None,
            status: None,
        })))
    }

    /// The one that the router has given a request.
    pub fn of(request: &Request) -> Record {
        request.extensions().get::<Record>().cloned().unwrap_or_else(|| Record::new(request, None))
    }

    /// What the request is called: by its client, else in the ledger, else by what was made up.
    pub fn id(&self) -> String {
        self.notes().id().to_owned()
    }

    /// What the request's key may still use.
    pub fn room(&self) -> Room {
        self.notes().room
    }

    /// Notes what the request's key may still use.
    pub fn set_room(&self, room: Room) {
        self.notes().room = room;
    }

    /// The route.
    pub fn endpoint(&self) -> String {
        self.notes().endpoint.clone()
    }

    /// Whose request it is.
    pub fn set_key(&self, key: &Key) {
        self.notes().key = Some(key.name.clone());
    }

    /// It has a row in the ledger.
    pub fn set_account(&self, name: &str, model: &str, prompt_tokens: u64) {
        let mut notes = self.notes();
        notes.account = Some(name.to_owned());
        notes.model = Some(model.to_owned());
        notes.prompt_tokens = prompt_tokens;
    }

    /// The engine is about to be given it, or a part of it.
    pub fn submitted(&self) {
        self.notes().submitted.get_or_insert_with(Instant::now);
    }

    /// The engine has done something for it.
    pub fn event(&self, event: &ChoiceEvent, times: &Times) {
        let mut notes = self.notes();
        notes.started.get_or_insert(event.begun);
        match &event.event {
            Event::Token(_) => notes.token(event.choice, event.at, times),
            Event::Finished(finished) => notes.length |= finished.reason == FinishReason::Length,
            Event::Embedding { .. } => {}
        }
    }

    /// What it has been sent so far.
    pub fn sent(&self, tokens: Tokens) {
        self.notes().tokens = tokens;
    }

    /// Its account is closed.
    pub fn settled(&self, outcome: &'static str, metrics: &Metrics) {
        let mut notes = self.notes();
        metrics.ended(outcome);
        notes.outcome = Some(outcome);
        if notes.submitted.is_some() && outcome != "refused" {
            notes.finished(outcome, metrics);
        }
    }

    /// Its response has begun. `code`: of the error, if it is one.
    pub fn answered(&self, status: u16, code: Option<&'static str>) {
        let mut notes = self.notes();
        notes.status = Some(status);
        notes.reason = notes.reason.or(code);
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The client's name for its request, where that is a plain token: it goes into headers and the log.
fn client_id(request: &Request) -> Option<String> {
    let id = request.headers().get(REQUEST_ID)?.to_str().ok()?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    ((1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(plain)).then(|| id.to_owned())
}

/// The log's line.
impl Drop for Notes {
    fn drop(&mut self) {
        if self.quiet && self.status.is_some_and(|status| status < 400) {
            return;
        }
        let outcome = self.outcome.unwrap_or(match self.status {
            None => "cancelled",
            Some(..400) => "done",
            Some(..500) => "refused",
            Some(_) => "error",
        });
        let ms = |time: Duration| time.as_millis() as u64;
        tracing::info!(
            request = self.id(),
            account = self.account,
            key = self.key,
            endpoint = self.endpoint,
            model = self.model,
            prompt_tokens = self.prompt_tokens,
            cached_tokens = self.tokens.hit,
            output_tokens = self.tokens.output,
            queue_ms = self.queue().map(ms),
            first_token_ms = self.first_token.map(|at| ms(at - self.arrived)),
            total_ms = ms(self.arrived.elapsed()),
            outcome,
            reason = self.reason,
            status = self.status,
            "a request has ended"
        );
    }
}

impl Notes {
    fn id(&self) -> &str {
        self.client_id.as_deref().or(self.account.as_deref()).unwrap_or(&self.made_id)
    }

    fn token(&mut self, choice: usize, at: Instant, times: &Times) {
        if self.first_token.is_none() {
            times.first_token.add(at.duration_since(self.arrived).as_secs_f64());
            self.first_token = Some(at);
        }
        if self.last_token.len() <= choice {
            self.last_token.resize(choice + 1, None);
        }
        // Tokens of one step come at one moment.
        if let Some(last) = self.last_token[choice].replace(at).filter(|last| *last < at) {
            times.inter_token.add((at - last).as_secs_f64());
        }
    }

    fn finished(&mut self, outcome: &'static str, metrics: &Metrics) {
        let reason = match outcome {
            "done" if self.length => "length",
            "done" => "stop",
            "cancelled" | "slow_reader" => "abort",
            _ => "error",
        };
        self.reason = Some(reason);
        metrics.finished(reason);
        metrics.sent(self.tokens);
        let times = &metrics.times;
        times.whole.add(self.arrived.elapsed().as_secs_f64());
        if let Some(queue) = self.queue() {
            times.queue.add(queue.as_secs_f64());
        }
        if let Some((started, first)) = self.started.zip(self.first_token) {
            times.prefill.add(first.duration_since(started).as_secs_f64());
            times.decode.add(first.elapsed().as_secs_f64());
        }
    }

    /// How long it has waited in the engine's queue, once that is over.
    fn queue(&self) -> Option<Duration> {
        self.submitted.zip(self.started).map(|(submitted, started)| started.duration_since(submitted))
    }
}

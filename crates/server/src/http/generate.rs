//! The addresses that answer: from a request to its reply, whole or as a stream, and its account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;
use tokio::sync::mpsc;
use wels_engine::{Event, Request as EngineRequest, RequestError};

use super::app::{App, Model, Settings, json_response, ledger_failed};
use super::body::{self, BufferedBody};
use super::fair_queue::Buffered;
use super::fetch;
use super::hangup::Hangup;
use super::record::Record;
use super::sse::Events;
use crate::keys::random_hex;
use crate::ledger::{Admission, Key, LedgerHandle, LedgerHandleError, Prechecked, Refusal, now_unix_ms};
use crate::loader::Lease;
use crate::money::{Prices, Tokens};
use crate::progress::{Progress, Update};
use crate::prompt::{Plan, PromptLimit};
use crate::wire::messages::{self, MessagesReply};
use crate::wire::{
    ApiError, ChatReply, ChatRequest, Choice, CompletionReply, CompletionRequest, Format, Head, Reply, StreamMode,
    responses,
};
use crate::worker::{ChoiceEvent, Denied, QueueFull, Ticket};

/// Tokens that one piece of a stream may carry. More than one comes together when the client or the ledger is slower
/// than the engine. A kill costs at most one piece.
const PIECE_TOKENS: usize = 16;
/// Between attempts to write to a ledger that is down.
const LEDGER_PAUSE: Duration = Duration::from_millis(250);
/// For the engine to say what answers took whose client has left: it does so with its next step.
const COUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// The addresses that answer, by their API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// `beta`: the prefix of an answer may be given.
    Chat {
        beta: bool,
    },
    Completions,
    Responses,
    Messages,
}

/// What a request's body has become.
enum Read {
    Planned(ParsedRequest),
    /// Some of its pictures are still at their addresses.
    Unplanned(Box<Unplanned>),
}

/// A conversation that was read, and is not a prompt yet.
struct Unplanned {
    request: ChatRequest,
    model: Arc<Model>,
    reply: Box<dyn Reply>,
    constraint_param: &'static str,
}

/// What is known of a request once it is planned.
struct ParsedRequest {
    /// As the request calls it.
    name: String,
    model: Arc<Model>,
    streams: bool,
    plan: Plan,
    reply: Box<dyn Reply>,
    /// The parameter to blame if its constraint cannot be used.
    constraint_param: &'static str,
}

/// A request's response; its errors are in the API's own shape.
pub(super) async fn answer(State(app): State<Arc<App>>, request: Request, endpoint: Endpoint) -> Response {
    let response = async {
        let hangup = request.extensions().get::<Hangup>().cloned().unwrap_or_default();
        let record = Record::of(&request);
        let (key, parsed) = receive_chat(&app, request, endpoint).await?;
        let streams = parsed.streams;
        let job = Job::begin(app, &key, record, parsed).await?;
        if streams { Ok(job.stream(hangup)) } else { job.whole().await }
    };
    response.await.unwrap_or_else(|error| refused(error, endpoint))
}

/// `messages/count_tokens`: how many tokens a prompt has. It costs nothing.
pub(super) async fn count_tokens(State(app): State<Arc<App>>, request: Request) -> Response {
    match receive_chat(&app, request, Endpoint::Messages).await {
        Ok((_, parsed)) => json_response(200, &json!({"input_tokens": parsed.plan.prompt_tokens()})),
        Err(error) => refused(error, Endpoint::Messages),
    }
}

fn refused(error: ApiError, endpoint: Endpoint) -> Response {
    let mut response = error.clone().into_response();
    if endpoint == Endpoint::Messages {
        *response.body_mut() = messages::error_json(&error).to_string().into();
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    response
}

/// Takes a request's body, if its key may ask for anything, and has it read on a thread where work may take its time.
/// The body's bytes count as buffered until the last part of what comes back is dropped.
pub(super) async fn receive<T: Send + 'static>(
    app: &Arc<App>,
    request: Request,
    read: impl FnOnce(&App, &Key, &[u8]) -> Result<T, ApiError> + Send + 'static,
) -> Result<(Key, T, Buffered), ApiError> {
    let Prechecked { key, refusal, room } = app.precheck(request.headers()).await?;
    let record = Record::of(&request);
    record.set_key(&key);
    record.set_room(room);
    if let Some(refusal) = refusal {
        return Err(not_admitted(refusal, app));
    }
    if app.is_draining() {
        return Err(ApiError::overloaded("The server is being stopped.", 10));
    }
    let key_queue = app.queue.of(key.id);
    let body = {
        let _permit = key_queue.read(app.settings.body_timeout).await?;
        let Settings { body_bytes_max, body_timeout, .. } = app.settings;
        body::read(request, body_bytes_max, body_timeout, app.queue.buffered()).await?
    };
    let permit = app.queue.plan(&key_queue, body.bytes.len()).await?;
    let app = Arc::clone(app);
    // The permit is held as long as the work lasts, which a client that leaves does not end.
    let task = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let BufferedBody { bytes, buffered } = body;
        let read = read(&app, &key, &bytes)?;
        Ok((key, read, buffered))
    });
    task.await.map_err(|_| ApiError::internal("The request could not be read."))?
}

/// The most tokens that a prompt of this key's may have, by the model and by what the key may still use: a text is
/// encoded no further than that.
pub(super) fn prompt_limit(model: &Model, key: &Key) -> PromptLimit {
    let mut prompt_limit = model.served.prompt_limit();
    if let Some(limit) = key.limits.tokens_per_minute {
        let beyond = format!("This key may use {limit} tokens a minute, and the prompt alone takes more.");
        prompt_limit.lower(limit as usize, ApiError::rate_limit(beyond, None));
    }
    let prices = model.tariff.at(now_unix_ms());
    if let Some((left, tokens)) = key.balance().and_then(|left| Some((left, prices.prompt_tokens_for(left)?))) {
        let beyond = ApiError::insufficient_balance(format!(
            "{left} {} are left, and the prompt alone may cost more.",
            model.tariff.currency
        ));
        prompt_limit.lower(usize::try_from(tokens).unwrap_or(usize::MAX), beyond);
    }
    prompt_limit
}

/// Takes a request for an answer, with its pictures.
async fn receive_chat(app: &Arc<App>, request: Request, endpoint: Endpoint) -> Result<(Key, ParsedRequest), ApiError> {
    let read_request = move |app: &App, key: &Key, bytes: &[u8]| read(app, key, bytes, endpoint);
    let (key, mut unplanned, body) = match receive(app, request, read_request).await? {
        (key, Read::Planned(parsed), _) => return Ok((key, parsed)),
        (key, Read::Unplanned(unplanned), body) => (key, unplanned, body),
    };
    let key_queue = app.queue.of(key.id);
    let permit = key_queue.read(app.settings.body_timeout).await?;
    let fetched = fetch::all(app, &mut unplanned.request.pictures, permit).await?;
    let permit = app.queue.plan(&key_queue, body.bytes() + fetched.bytes()).await?;
    let task = tokio::task::spawn_blocking(move || {
        let _held = (permit, body, fetched);
        let parsed = unplanned.plan(&key)?;
        Ok((key, parsed))
    });
    task.await.map_err(|_| ApiError::internal("The request could not be read."))?
}

impl Unplanned {
    fn plan(self, key: &Key) -> Result<ParsedRequest, ApiError> {
        let Unplanned { request, model, reply, constraint_param } = self;
        let plan = model.served.plan_chat(&request, now_unix_ms() / 1000, &prompt_limit(&model, key))?;
        Ok(ParsedRequest { name: request.model, model, streams: request.streams, plan, reply, constraint_param })
    }
}

fn read(app: &App, key: &Key, bytes: &[u8], endpoint: Endpoint) -> Result<Read, ApiError> {
    let (request, reply): (ChatRequest, Box<dyn Reply>) = match endpoint {
        Endpoint::Completions => return read_completion(app, key, bytes).map(Read::Planned),
        Endpoint::Chat { beta } => {
            let (request, form) = ChatRequest::parse(bytes, beta)?;
            (request, Box::new(ChatReply(form)))
        }
        Endpoint::Responses => {
            let (request, reply) = responses::parse(bytes)?;
            (request, Box::new(reply))
        }
        Endpoint::Messages => (messages::parse(bytes)?, Box::new(MessagesReply::default())),
    };
    let model = app.model(&request.model)?;
    let constraint_param = match (&request.format, endpoint) {
        (Format::Text, _) => "tools",
        (_, Endpoint::Responses) => "text.format",
        (_, Endpoint::Messages) => "output_config.format",
        _ => "response_format",
    };
    if !request.pictures.is_empty() && model.served.pictures.is_none() {
        return Err(ApiError::param(request.pictures[0].param.clone(), app.no_pictures(&request.model, "sees")));
    }
    let remote = app.settings.image_hosts.check(&request.pictures)?;
    let unplanned = Unplanned { request, model, reply, constraint_param };
    if remote { Ok(Read::Unplanned(Box::new(unplanned))) } else { unplanned.plan(key).map(Read::Planned) }
}

fn read_completion(app: &App, key: &Key, bytes: &[u8]) -> Result<ParsedRequest, ApiError> {
    let request = CompletionRequest::parse(bytes)?;
    let model = app.model(&request.model)?;
    let plan = model.served.plan_completion(&request, &prompt_limit(&model, key))?;
    let include_usage = request.stream == StreamMode::Events { include_usage: true };
    let streams = request.stream != StreamMode::Whole;
    let reply = Box::new(CompletionReply { include_usage });
    Ok(ParsedRequest { name: request.model, model, streams, plan, reply, constraint_param: "prompt" })
}

/// A request's row in the ledger. It is settled exactly once: when it is told to, or else when it is dropped.
pub(super) struct Account {
    app: Arc<App>,
    pub model: Arc<Model>,
    pub request: String,
    pub record: Record,
    settled: bool,
}

impl Account {
    fn ledger(&self) -> &LedgerHandle {
        &self.app.ledger
    }

    pub fn settings(&self) -> &Settings {
        &self.app.settings
    }

    /// The model's engine, once it is loaded.
    pub async fn load(&mut self) -> Result<Lease, ApiError> {
        self.record.submitted();
        let app = Arc::clone(&self.app);
        app.load(&self.model).await.inspect_err(|_| self.settle("refused"))
    }

    /// Takes places in the engine.
    pub async fn submit(
        &mut self,
        engine: &Lease,
        key: &Key,
        requests: Vec<EngineRequest>,
        param: &str,
    ) -> Result<Ticket, ApiError> {
        match engine.submit(key.id, requests).await {
            Ok(ticket) => Ok(ticket),
            Err(denied) => {
                self.settle("refused");
                Err(denied_by_engine(denied, engine, param))
            }
        }
    }

    /// Writes to the ledger what the client will have been sent. While the ledger is down that waits: what was computed
    /// is not thrown away for a connection that is back in a moment.
    pub async fn write(&self, tokens: Tokens) -> Result<(), ApiError> {
        let begun = Instant::now();
        loop {
            match self.ledger().progress(&self.request, tokens).await {
                Ok(()) => {
                    self.record.sent(tokens);
                    return Ok(());
                }
                Err(LedgerHandleError::Down) if begun.elapsed() < self.app.settings.ledger_timeout => {
                    tokio::time::sleep(LEDGER_PAUSE).await;
                }
                Err(error) => return Err(ledger_failed(error)),
            }
        }
    }

    pub fn settle(&mut self, outcome: &'static str) {
        if !std::mem::replace(&mut self.settled, true) {
            self.ledger().settle(self.request.clone(), outcome);
            self.record.settled(outcome, &self.model.metrics);
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle("cancelled");
    }
}

/// A request that the ledger has admitted.
pub(super) struct Admitted {
    pub account: Account,
    /// Of the moment.
    pub prices: Prices,
    pub now_unix_ms: i64,
}

impl Admitted {
    /// Opens the account of `requests`, of which so many are done at once, and whose prompts have so many tokens
    /// together.
    pub async fn begin(
        app: &Arc<App>,
        key: &Key,
        record: Record,
        model: Arc<Model>,
        id_prefix: &str,
        requests: &[EngineRequest],
        at_once: usize,
        prompt_tokens: usize,
    ) -> Result<Admitted, ApiError> {
        let now = now_unix_ms();
        let random = random_hex::<16>().map_err(|_| ApiError::internal("The system has no random numbers."))?;
        let id = format!("{id_prefix}{random}");
        let draws = requests.iter().any(|request| request.draw.is_some());
        let prices = model.tariff.at(now);
        let prices = if draws { prices.of_drawing() } else { prices };
        let output: usize =
            requests.iter().filter(|request| request.embedding.is_none()).map(|request| request.max_tokens).sum();
        let admission = Admission {
            request: id.clone(),
            key_id: key.id,
            endpoint: record.endpoint(),
            model: model.name().to_owned(),
            prompt_tokens: prompt_tokens as u64,
            output_tokens_max: output as u64,
            sequences: at_once as u64,
            prices,
            currency: model.tariff.currency.clone(),
        };
        record.set_account(&id, model.name(), prompt_tokens as u64);
        // Made before the row is, so that a client that leaves meanwhile leaves no open row.
        let mut account = Account { app: Arc::clone(app), model, request: id, record, settled: false };
        match app.ledger.admit(admission).await {
            Ok(Ok(room)) => {
                account.record.set_room(room);
                Ok(Admitted { account, prices, now_unix_ms: now })
            }
            Ok(Err(refusal)) => {
                account.settle("refused");
                Err(not_admitted(refusal, app))
            }
            Err(error) => {
                account.settle("error");
                Err(ledger_failed(error))
            }
        }
    }
}

/// A request under way.
struct Job {
    account: Account,
    ticket: Ticket,
    engine: Lease,
    progress: Progress,
    reply: Box<dyn Reply>,
    head: Head,
    prices: Prices,
    headers: HeaderMap,
    /// As the ledger has it.
    written: Tokens,
}

/// Why a stream ends before its end.
pub(super) enum StreamError {
    /// The client has closed the connection.
    Away,
    /// The client has not read for too long.
    Slow,
    /// Something here failed.
    Failed(ApiError),
}

impl From<ApiError> for StreamError {
    fn from(error: ApiError) -> StreamError {
        StreamError::Failed(error)
    }
}

impl Job {
    /// Admits the request to the ledger, then to the engine.
    async fn begin(app: Arc<App>, key: &Key, record: Record, parsed: ParsedRequest) -> Result<Job, ApiError> {
        let ParsedRequest { name, model, plan, reply, constraint_param, .. } = parsed;
        let (id_prefix, tokens) = (reply.id_prefix(), plan.prompt_tokens());
        let (requests, at_once) = (&plan.requests, plan.requests.len());
        let begun = Admitted::begin(&app, key, record, Arc::clone(&model), id_prefix, requests, at_once, tokens);
        let Admitted { mut account, prices, now_unix_ms } = begun.await?;
        let engine = account.load().await?;
        let ticket = account.submit(&engine, key, plan.requests.clone(), constraint_param).await?;
        let id = account.request.clone();
        let headers = queue_headers(&engine, &ticket);
        let served = &model.served;
        let head = Head { id, created: now_unix_ms / 1000, model: name, fingerprint: served.fingerprint.clone() };
        let progress = Progress::new(plan, Arc::clone(&served.tokenizer));
        let written = Tokens::default();
        Ok(Job { account, ticket, engine, progress, reply, head, prices, headers, written })
    }

    fn app(&self) -> &App {
        &self.account.app
    }

    /// What an event adds, with what follows from it done: times noted, answers ended that need no more.
    fn take(&mut self, event: Option<ChoiceEvent>) -> Result<(usize, Vec<Update>), ApiError> {
        let lost =
            || ApiError::overloaded("The engine has dropped the request.", self.engine.snapshot().retry_after_s(0));
        let event = event.ok_or_else(lost)?;
        let choice = event.choice;
        self.account.record.event(&event, &self.account.model.metrics.times);
        let updates = self.progress.take(event)?;
        if self.progress.wants_no_more(choice) {
            self.ticket.cancel(choice);
        }
        Ok((choice, updates))
    }

    /// Writes to the ledger what the client will have been sent with the next piece.
    async fn record(&mut self) -> Result<(), ApiError> {
        let tokens = self.progress.tokens();
        self.account.write(tokens).await?;
        self.written = tokens;
        Ok(())
    }

    /// Ends what is under way for a client that has left, and writes to the ledger how much was cached of the prompts
    /// that it pays for: who leaves before the end pays for them what others pay.
    async fn give_up(&mut self) {
        let Tokens { hit, miss, output } = self.written;
        if hit == 0 {
            return; // nothing is paid for, or all of it in full
        }
        (0..self.ticket.ids.len()).for_each(|choice| self.ticket.cancel(choice));
        let count = async {
            while let Some(event) = self.ticket.events.recv().await {
                if let Event::Finished(finished) = event.event {
                    self.progress.count(event.choice, finished.usage);
                }
            }
        };
        // Without an answer in time all of a prompt stays cached. The events end with the last request's.
        let _ = tokio::time::timeout(COUNT_TIMEOUT, count).await;
        let counted = self.progress.tokens();
        if counted.hit < hit && counted.hit + counted.miss == hit + miss {
            // A ledger that cannot be written has what was written before.
            let _ = self.account.write(Tokens { output, ..counted }).await;
        }
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let choices = self.all().await.inspect_err(|_| self.account.settle("error"))?;
        self.account.settle("done");
        let usage = self.progress.usage(&self.prices);
        let mut response = json_response(200, &self.reply.whole(&self.head, &choices, &usage));
        response.headers_mut().extend(self.headers.clone());
        Ok(response)
    }

    /// All answers, once they have ended and stand in the ledger.
    async fn all(&mut self) -> Result<Vec<Choice>, ApiError> {
        let mut choices = vec![Choice::default(); self.ticket.ids.len()];
        while !self.progress.is_finished() {
            let event = self.ticket.events.recv().await;
            let (at, updates) = self.take(event)?;
            for update in updates {
                update.add_to(&mut choices[at]);
            }
        }
        self.record().await?;
        Ok(choices)
    }

    fn stream(self, hangup: Hangup) -> Response {
        let (pieces, body) = body::stream();
        let headers = self.headers.clone();
        tokio::spawn(self.feed(pieces, hangup));
        event_stream(headers, body)
    }

    async fn feed(mut self, pieces: mpsc::Sender<Bytes>, hangup: Hangup) {
        match self.pump(&pieces).await {
            Ok(()) => {}
            Err(StreamError::Away) => {
                self.give_up().await;
                self.account.settle("cancelled");
            }
            Err(StreamError::Slow) => {
                hangup.hang_up();
                self.give_up().await;
                self.account.settle("slow_reader");
            }
            Err(StreamError::Failed(error)) => {
                self.account.settle("error");
                let mut events = Events::default();
                if !self.progress.has_begun() {
                    self.begin_reply(&mut events);
                }
                events.all(self.reply.error(&self.head, &error));
                if let Ok(room) = self.room(&pieces).await {
                    room.send(events.take());
                }
            }
        }
    }

    async fn pump(&mut self, pieces: &mpsc::Sender<Bytes>) -> Result<(), StreamError> {
        let mut events = Events::default();
        let keep_alive = self.app().settings.keep_alive;
        loop {
            let event = tokio::select! {
                biased;
                () = pieces.closed() => return Err(StreamError::Away),
                event = self.ticket.events.recv() => event,
                () = tokio::time::sleep(keep_alive) => {
                    events.comment(&waiting_text(&self.engine, &self.ticket));
                    self.room(pieces).await?.send(events.take());
                    continue;
                }
            };
            self.write(event, &mut events)?;
            for _ in 1..PIECE_TOKENS {
                let Some(event) = self.ticket.events.try_recv().ok().filter(|_| !self.progress.is_finished()) else {
                    break;
                };
                self.write(Some(event), &mut events)?;
            }
            let finished = self.progress.is_finished();
            if !events.is_empty() {
                // Room first: then the piece before this one has been taken to be written, and only this one is lost
                // if the process ends between its record and its way out.
                let room = self.room(pieces).await?;
                self.record().await?;
                if finished {
                    self.account.settle("done");
                }
                room.send(events.take());
            }
            if finished {
                return Ok(());
            }
        }
    }

    fn begin_reply(&mut self, events: &mut Events) {
        events.all(self.reply.begin(&self.head, self.ticket.ids.len(), self.progress.prompt_tokens()));
    }

    fn write(&mut self, event: Option<ChoiceEvent>, events: &mut Events) -> Result<(), ApiError> {
        let first = !self.progress.has_begun();
        let (at, updates) = self.take(event)?;
        if first {
            self.begin_reply(events);
        }
        for update in updates {
            events.all(match update {
                Update::Delta { delta, logprobs } => self.reply.delta(&self.head, at, &delta, logprobs.as_ref()),
                Update::Finish(end) => {
                    let usage = self.progress.is_finished().then(|| self.progress.usage(&self.prices));
                    self.reply.finish(&self.head, at, &end, usage.as_ref())
                }
            });
        }
        Ok(())
    }

    async fn room<'a>(&self, pieces: &'a mpsc::Sender<Bytes>) -> Result<mpsc::Permit<'a, Bytes>, StreamError> {
        room(pieces, self.app().settings.write_timeout).await
    }
}

/// Waits until the client has taken what was sent before.
pub(super) async fn room(
    pieces: &mpsc::Sender<Bytes>,
    timeout: Duration,
) -> Result<mpsc::Permit<'_, Bytes>, StreamError> {
    match tokio::time::timeout(timeout, pieces.reserve()).await {
        Err(_) => Err(StreamError::Slow),
        Ok(Err(_)) => Err(StreamError::Away),
        Ok(Ok(room)) => Ok(room),
    }
}

/// What a client whose stream has nothing to say is told.
pub(super) fn waiting_text(engine: &Lease, ticket: &Ticket) -> String {
    let snapshot = engine.snapshot();
    match snapshot.queue_position(ticket.ids[0]) {
        Some(position) => {
            format!("waiting: {position} requests before this one, about {} s", snapshot.retry_after_s(position))
        }
        None => "working".to_owned(),
    }
}

/// A response whose body is server-sent events, which no proxy holds back.
pub(super) fn event_stream(mut headers: HeaderMap, body: Body) -> Response {
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    (headers, body).into_response()
}

/// If the request waits, how many wait before it and for how long.
pub(super) fn queue_headers(engine: &Lease, ticket: &Ticket) -> HeaderMap {
    let mut headers = HeaderMap::new();
    let snapshot = engine.snapshot();
    if let Some(position) = snapshot.queue_position(ticket.ids[0]) {
        headers.insert("x-queue-position", HeaderValue::from(position as u64));
        headers.insert("x-expected-wait-seconds", HeaderValue::from(snapshot.retry_after_s(position)));
    }
    headers
}

fn not_admitted(refusal: Refusal, app: &App) -> ApiError {
    let seconds = |ms: i64| ms.max(0).unsigned_abs().div_ceil(1000).max(1);
    match refusal {
        Refusal::Revoked => ApiError::unauthorized(),
        Refusal::Requests { limit, retry_after_ms } => {
            ApiError::rate_limit(format!("This key may make {limit} requests a minute."), Some(seconds(retry_after_ms)))
        }
        Refusal::Tokens { limit, needed, retry_after_ms } => ApiError::rate_limit(
            format!("This key may use {limit} tokens a minute, and the request may take {needed}."),
            retry_after_ms.map(seconds),
        ),
        Refusal::Concurrent { limit, needed } => ApiError::rate_limit(
            format!("This key may have {limit} answers under way at once, and the request asks for {needed}."),
            (needed <= u64::from(limit)).then(|| app.retry_after_s()),
        ),
        Refusal::Budget { needed, left } => ApiError::insufficient_balance(format!(
            "The request may cost {needed} {currency}, and {left} {currency} are left: ask for fewer tokens, or have the \
             budget raised.",
            currency = app.currency()
        )),
    }
}

/// What is said of a request that the engine has not taken.
pub(super) fn denied_by_engine(denied: Denied, engine: &Lease, constraint_param: &str) -> ApiError {
    let refusal = match denied {
        Denied::Gone => return ApiError::overloaded("The engine has stopped.", 30),
        Denied::Compiling(QueueFull { by_key: true, waiting, retry_after_s }) => {
            let message = format!("{waiting} schemas or grammars of this key wait to be compiled.");
            return ApiError::rate_limit(message, Some(retry_after_s));
        }
        Denied::Compiling(QueueFull { by_key: false, waiting, retry_after_s }) => {
            let message = format!("{waiting} schemas or grammars wait to be compiled.");
            return ApiError::overloaded(message, retry_after_s);
        }
        Denied::Refused(refusal) => refusal,
    };
    let message = refusal.to_string();
    match refusal {
        RequestError::QueueFull { waiting } => ApiError::overloaded(message, engine.snapshot().retry_after_s(waiting)),
        RequestError::PromptTooLong { .. } => ApiError::context_length(message),
        RequestError::Parameter { name, .. } => ApiError::param(name, message),
        RequestError::Constraint { .. } => ApiError::param(constraint_param, message),
        RequestError::EmptyPrompt | RequestError::UnknownToken { .. } => ApiError::param("prompt", message),
    }
}

//! `chat/completions` and `completions`: from a request to its reply, whole or as a stream, and its account.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use tokio::sync::mpsc;
use wels_engine::RequestError;

use super::app::{App, json_response, ledger_failed};
use super::body;
use super::hangup::Hangup;
use super::sse::Events;
use crate::keys::random_hex;
use crate::ledger::{Admission, Key, LedgerHandle, LedgerHandleError, Refusal, now_unix_ms};
use crate::money::Prices;
use crate::progress::{Progress, Update};
use crate::prompt::{Plan, PromptLimit};
use crate::wire::{ApiError, ChatRequest, Choice, CompletionRequest, Format, Head, Reply, StreamMode};
use crate::worker::{ChoiceEvent, Denied, QueueFull, Ticket};

/// Tokens that one piece of a stream may carry. More than one comes together when the client or the ledger is slower
/// than the engine. A kill costs at most one piece.
const PIECE_TOKENS: usize = 16;
/// Between attempts to write to a ledger that is down.
const LEDGER_PAUSE: Duration = Duration::from_millis(250);

pub(super) async fn chat(state: State<Arc<App>>, request: Request, beta: bool) -> Result<Response, ApiError> {
    answer(state.0, request, Reply::Chat, beta).await
}

pub(super) async fn completions(state: State<Arc<App>>, request: Request) -> Result<Response, ApiError> {
    answer(state.0, request, Reply::Completion, false).await
}

/// What is known of a request once it is read.
struct ParsedRequest {
    model: String,
    stream: StreamMode,
    plan: Plan,
    /// The parameter to blame if its constraint cannot be used.
    constraint_param: &'static str,
}

async fn answer(app: Arc<App>, request: Request, kind: Reply, beta: bool) -> Result<Response, ApiError> {
    let (key, refusal) = app.precheck(request.headers()).await?;
    if let Some(refusal) = refusal {
        return Err(not_admitted(refusal, &app));
    }
    if app.is_draining() {
        return Err(ApiError::overloaded("The server is being stopped.", 10));
    }
    let endpoint = request.uri().path().to_owned();
    let hangup = request.extensions().get::<Hangup>().cloned().unwrap_or_default();
    let key_queue = app.queue.of(key.id);
    let body = {
        let _permit = key_queue.read(app.settings.body_timeout).await?;
        body::read(request, &app.settings, app.queue.buffered()).await?
    };
    let permit = app.queue.plan(&key_queue, body.bytes.len()).await?;
    let parsed = {
        let (app, prompt_limit) = (Arc::clone(&app), prompt_limit(&app, &key));
        // The permit is held as long as the work lasts, which a client that leaves does not end.
        let read = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            read(&app, &body.bytes, kind, beta, &prompt_limit)
        });
        read.await.map_err(|_| ApiError::internal("The request could not be read."))??
    };
    let stream = parsed.stream;
    let job = Job::begin(app, &key, endpoint, kind, parsed).await?;
    match stream {
        StreamMode::Whole => job.whole().await,
        StreamMode::Events { include_usage } => Ok(job.stream(include_usage, hangup)),
    }
}

/// The most tokens that a prompt of this key's may have, by the model and by what the key may still use: a text is
/// encoded no further than that.
fn prompt_limit(app: &App, key: &Key) -> PromptLimit {
    let mut prompt_limit = app.served.prompt_limit();
    if let Some(limit) = key.limits.tokens_per_minute {
        let beyond = format!("This key may use {limit} tokens a minute, and the prompt alone takes more.");
        prompt_limit.lower(limit as usize, ApiError::rate_limit(beyond, None));
    }
    let prices = app.tariff.at(now_unix_ms());
    if let Some((left, tokens)) = key.balance().and_then(|left| Some((left, prices.prompt_tokens_for(left)?))) {
        let beyond = ApiError::insufficient_balance(format!(
            "{left} {} are left, and the prompt alone may cost more.",
            app.tariff.currency
        ));
        prompt_limit.lower(usize::try_from(tokens).unwrap_or(usize::MAX), beyond);
    }
    prompt_limit
}

fn read(
    app: &App,
    bytes: &[u8],
    kind: Reply,
    beta: bool,
    prompt_limit: &PromptLimit,
) -> Result<ParsedRequest, ApiError> {
    let known = |model: String| match app.served.is_named(&model) {
        true => Ok(model),
        false => Err(ApiError::no_model(&model)),
    };
    match kind {
        Reply::Chat => {
            let request = ChatRequest::parse(bytes, beta)?;
            let model = known(request.model.clone())?;
            let constraint_param = if request.format == Format::Text { "tools" } else { "response_format" };
            let plan = app.served.plan_chat(&request, now_unix_ms() / 1000, prompt_limit)?;
            Ok(ParsedRequest { model, stream: request.stream, plan, constraint_param })
        }
        Reply::Completion => {
            let request = CompletionRequest::parse(bytes)?;
            let model = known(request.model.clone())?;
            let plan = app.served.plan_completion(&request, prompt_limit)?;
            Ok(ParsedRequest { model, stream: request.stream, plan, constraint_param: "prompt" })
        }
    }
}

/// A request's row in the ledger. It is settled exactly once: when it is told to, or else when it is dropped.
struct Account {
    app: Arc<App>,
    request: String,
    settled: bool,
}

impl Account {
    fn ledger(&self) -> &LedgerHandle {
        &self.app.ledger
    }

    fn settle(&mut self, outcome: &'static str) {
        if !std::mem::replace(&mut self.settled, true) {
            self.ledger().settle(self.request.clone(), outcome);
            self.app.metrics.ended(outcome);
            tracing::info!(request = self.request, outcome, "a request has ended");
        }
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.settle("cancelled");
    }
}

/// A request under way.
struct Job {
    account: Account,
    ticket: Ticket,
    progress: Progress,
    kind: Reply,
    head: Head,
    prices: Prices,
    begun: Instant,
    headers: HeaderMap,
}

/// Why a stream ends before its end.
enum StreamError {
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
    async fn begin(
        app: Arc<App>,
        key: &Key,
        endpoint: String,
        kind: Reply,
        parsed: ParsedRequest,
    ) -> Result<Job, ApiError> {
        let now = now_unix_ms();
        let random = random_hex::<16>().map_err(|_| ApiError::internal("The system has no random numbers."))?;
        let id = format!("{}{random}", kind.id_prefix());
        let prices = app.tariff.at(now);
        let admission = Admission {
            request: id.clone(),
            key_id: key.id,
            endpoint,
            model: app.served.names[0].clone(),
            prompt_tokens: parsed.plan.prompt_tokens() as u64,
            output_tokens_max: parsed.plan.output_tokens_max() as u64,
            sequences: parsed.plan.requests.len() as u64,
            prices,
            currency: app.tariff.currency.clone(),
        };
        // Made before the row is, so that a client that leaves meanwhile leaves no open row.
        let mut account = Account { app: Arc::clone(&app), request: id.clone(), settled: false };
        let admitted = app.ledger.admit(admission).await.map_err(ledger_failed)?;
        if let Err(refusal) = admitted {
            account.settle("refused");
            return Err(not_admitted(refusal, &app));
        }
        let ticket = match app.worker.submit(key.id, parsed.plan.requests.clone()).await {
            Ok(ticket) => ticket,
            Err(denied) => {
                account.settle("refused");
                return Err(denied_by_engine(denied, &app, parsed.constraint_param));
            }
        };
        let headers = queue_headers(&app, &ticket, &id);
        let head = Head { id, created: now / 1000, model: parsed.model, fingerprint: app.served.fingerprint.clone() };
        let progress = Progress::new(parsed.plan, Arc::clone(&app.served.tokenizer));
        Ok(Job { account, ticket, progress, kind, head, prices, begun: Instant::now(), headers })
    }

    fn app(&self) -> &App {
        &self.account.app
    }

    /// What an event adds, with what follows from it done: times noted, answers ended that need no more.
    fn take(&mut self, event: Option<ChoiceEvent>) -> Result<(usize, Vec<Update>), ApiError> {
        let lost = || {
            ApiError::overloaded("The engine has dropped the request.", self.app().worker.snapshot().retry_after_s(0))
        };
        let event = event.ok_or_else(lost)?;
        let choice = event.choice;
        if !self.progress.has_begun() {
            self.app().metrics.first_token.add(self.begun.elapsed());
        }
        let updates = self.progress.take(event)?;
        if self.progress.wants_no_more(choice) {
            self.ticket.cancel(choice);
        }
        Ok((choice, updates))
    }

    /// Writes to the ledger what the client will have been sent with the next piece. While the ledger is down the piece
    /// waits: what was computed is not thrown away for a connection that is back in a moment.
    async fn record(&mut self) -> Result<(), ApiError> {
        let tokens = self.progress.tokens();
        let begun = Instant::now();
        loop {
            match self.account.ledger().progress(&self.account.request, tokens).await {
                Ok(()) => return Ok(()),
                Err(LedgerHandleError::Down) if begun.elapsed() < self.app().settings.ledger_timeout => {
                    tokio::time::sleep(LEDGER_PAUSE).await;
                }
                Err(error) => return Err(ledger_failed(error)),
            }
        }
    }

    /// Everything was sent, or is about to be.
    fn close(&mut self, outcome: &'static str) {
        let app = Arc::clone(&self.account.app);
        app.metrics.whole.add(self.begun.elapsed());
        app.metrics.sent(self.progress.tokens());
        self.account.settle(outcome);
    }

    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut choices = vec![Choice::default(); self.ticket.ids.len()];
        while !self.progress.is_finished() {
            let event = self.ticket.events.recv().await;
            let (at, updates) = match self.take(event) {
                Ok(taken) => taken,
                Err(error) => {
                    self.account.settle("error");
                    return Err(error);
                }
            };
            for update in updates {
                update.add_to(&mut choices[at]);
            }
        }
        self.record().await?;
        self.close("done");
        let usage = self.progress.usage(&self.prices);
        let mut response = json_response(200, &self.kind.whole(&self.head, &choices, &usage));
        response.headers_mut().extend(self.headers.clone());
        Ok(response)
    }

    fn stream(self, include_usage: bool, hangup: Hangup) -> Response {
        let (pieces, body) = body::stream();
        let mut headers = self.headers.clone();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
        // For proxies that would collect the stream before they pass it on.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        tokio::spawn(self.feed(pieces, include_usage, hangup));
        (headers, body).into_response()
    }

    async fn feed(mut self, pieces: mpsc::Sender<Bytes>, include_usage: bool, hangup: Hangup) {
        match self.pump(&pieces, include_usage).await {
            Ok(()) => {}
            Err(StreamError::Away) => self.close("cancelled"),
            Err(StreamError::Slow) => {
                self.close("slow_reader");
                hangup.hang_up();
            }
            Err(StreamError::Failed(error)) => {
                self.close("error");
                let mut events = Events::default();
                events.data(&error.to_json());
                events.done();
                if let Ok(room) = self.room(&pieces).await {
                    room.send(events.take());
                }
            }
        }
    }

    async fn pump(&mut self, pieces: &mpsc::Sender<Bytes>, include_usage: bool) -> Result<(), StreamError> {
        let mut events = Events::default();
        let keep_alive = self.app().settings.keep_alive;
        loop {
            let event = tokio::select! {
                biased;
                () = pieces.closed() => return Err(StreamError::Away),
                event = self.ticket.events.recv() => event,
                () = tokio::time::sleep(keep_alive) => {
                    events.comment(&self.waiting_text());
                    self.room(pieces).await?.send(events.take());
                    continue;
                }
            };
            self.write(event, include_usage, &mut events)?;
            for _ in 1..PIECE_TOKENS {
                let Some(event) = self.ticket.events.try_recv().ok().filter(|_| !self.progress.is_finished()) else {
                    break;
                };
                self.write(Some(event), include_usage, &mut events)?;
            }
            let finished = self.progress.is_finished();
            if !events.is_empty() {
                // Room first: then the piece before this one has been taken to be written, and only this one is lost
                // if the process ends between its record and its way out.
                let room = self.room(pieces).await?;
                self.record().await?;
                if finished {
                    self.close("done");
                }
                room.send(events.take());
            }
            if finished {
                return Ok(());
            }
        }
    }

    fn write(&mut self, event: Option<ChoiceEvent>, include_usage: bool, events: &mut Events) -> Result<(), ApiError> {
        let first = !self.progress.has_begun();
        let (at, updates) = self.take(event)?;
        let (kind, head) = (self.kind, &self.head);
        if first {
            (0..self.ticket.ids.len()).filter_map(|at| kind.begin(head, at)).for_each(|event| events.data(&event));
        }
        for update in updates {
            match update {
                Update::Delta { delta, logprobs } => events.data(&kind.delta(head, at, &delta, logprobs.as_ref())),
                Update::Finish(finish) => {
                    let last = self.progress.is_finished();
                    let usage = last.then(|| self.progress.usage(&self.prices));
                    let here = usage.as_ref().filter(|_| !include_usage);
                    events.data(&kind.finish(head, at, finish, here));
                    if let Some(usage) = &usage {
                        if include_usage {
                            events.data(&kind.usage(head, usage));
                        }
                        events.done();
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until the client has taken what was sent before.
    async fn room<'a>(&self, pieces: &'a mpsc::Sender<Bytes>) -> Result<mpsc::Permit<'a, Bytes>, StreamError> {
        match tokio::time::timeout(self.app().settings.write_timeout, pieces.reserve()).await {
            Err(_) => Err(StreamError::Slow),
            Ok(Err(_)) => Err(StreamError::Away),
            Ok(Ok(room)) => Ok(room),
        }
    }

    fn waiting_text(&self) -> String {
        let snapshot = self.app().worker.snapshot();
        match snapshot.queue_position(self.ticket.ids[0]) {
            Some(position) => {
                format!("waiting: {position} requests before this one, about {} s", snapshot.retry_after_s(position))
            }
            None => "working".to_owned(),
        }
    }
}

/// The request's name; and, if it waits, how many wait before it and for how long.
fn queue_headers(app: &App, ticket: &Ticket, id: &str) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("x-request-id", HeaderValue::from_str(id).expect("names of requests are plain"));
    let snapshot = app.worker.snapshot();
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
            (needed <= u64::from(limit)).then(|| app.worker.snapshot().retry_after_s(0)),
        ),
        Refusal::Budget { needed, left } => ApiError::insufficient_balance(format!(
            "The request may cost {needed} {currency}, and {left} {currency} are left: ask for fewer tokens, or have the \
             budget raised.",
            currency = app.tariff.currency
        )),
    }
}

fn denied_by_engine(denied: Denied, app: &App, constraint_param: &str) -> ApiError {
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
        RequestError::QueueFull { waiting } => {
            ApiError::overloaded(message, app.worker.snapshot().retry_after_s(waiting))
        }
        RequestError::PromptTooLong { .. } => ApiError::context_length(message),
        RequestError::Parameter { name, .. } => ApiError::param(name, message),
        RequestError::Constraint { .. } => ApiError::param(constraint_param, message),
        RequestError::EmptyPrompt | RequestError::UnknownToken { .. } => ApiError::param("prompt", message),
    }
}

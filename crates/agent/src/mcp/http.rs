//! Servers at a URL: the streamable HTTP transport of MCP (revision 2025-06-18, "Transports"), over `ureq`, which also
//! fetches models. `ureq` blocks, so each exchange has a thread of its own, which ends with it. Nothing is listened for
//! between calls: what a server says then is about tools that have been listed already.

use std::borrow::Cow;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{self, BoxStream, StreamExt};
use rmcp::model::{ClientJsonRpcMessage, ServerJsonRpcMessage};
use rmcp::transport::streamable_http_client::{
    HttpStatusError, StreamableHttpClient, StreamableHttpClientTransportConfig, StreamableHttpError,
    StreamableHttpPostResponse, StreamableHttpResponseLimits,
};
use sse_stream::{Error as SseError, Sse};
use tokio::sync::{mpsc, oneshot};
use ureq::http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use ureq::http::request::Builder;
use ureq::http::{Request, Response, StatusCode};
use ureq::{Agent, Body};

const SESSION: &str = "mcp-session-id";
const EVENTS: &str = "text/event-stream";
const JSON: &str = "application/json";
/// Until a server has taken the connection.
const CONNECT: Duration = Duration::from_secs(20);
/// Bytes of a result, or of one event.
const RESULT_BYTES_MAX: usize = 16 << 20;
/// Events that may wait to be read.
const EVENTS_MAX: usize = 16;

type Failure = StreamableHttpError<ureq::Error>;

/// What speaks to servers.
#[derive(Clone)]
pub struct Http {
    agent: Agent,
}

/// What a server's address and its headers are to the transport.
pub fn config(url: &str, headers: HashMap<HeaderName, HeaderValue>) -> StreamableHttpClientTransportConfig {
    let mut config = StreamableHttpClientTransportConfig::with_uri(url).custom_headers(headers);
    config.max_sse_event_size = RESULT_BYTES_MAX;
    config.max_json_response_size = RESULT_BYTES_MAX;
    config
}

impl Http {
    /// Redirects are not followed: what is sent may hold a key.
    pub fn new() -> Http {
        let config = Agent::config_builder().http_status_as_error(false).max_redirects(0);
        let config = config.max_redirects_will_error(false).timeout_connect(Some(CONNECT));
        Http { agent: config.build().new_agent() }
    }
}

/// Does what blocks on a thread that nobody waits for at the end of the program.
async fn off_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    let (sender, answer) = oneshot::channel();
    std::thread::Builder::new().name("mcp".to_owned()).spawn(move || {
        let _ = sender.send(work());
    })?;
    answer.await.map_err(|_| StreamableHttpError::TransportChannelClosed)
}

fn with_headers(
    request: Builder,
    session: Option<&str>,
    auth: Option<&str>,
    headers: HashMap<HeaderName, HeaderValue>,
) -> Builder {
    let mut request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    if let Some(token) = auth {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if let Some(session) = session {
        request = request.header(SESSION, session);
    }
    request
}

impl StreamableHttpClient for Http {
    type Error = ureq::Error;

    async fn post_message(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let limits = StreamableHttpResponseLimits::default();
        self.post_message_with_response_limits(uri, message, session, auth, headers, limits).await
    }

    async fn post_message_with_response_limits(
        &self,
        uri: Arc<str>,
        message: ClientJsonRpcMessage,
        session: Option<Arc<str>>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
        limits: StreamableHttpResponseLimits,
    ) -> Result<StreamableHttpPostResponse, Failure> {
        let request = Request::post(&*uri).header(ACCEPT, format!("{JSON}, {EVENTS}")).header(CONTENT_TYPE, JSON);
        let request = with_headers(request, session.as_deref(), auth.as_deref(), headers);
        let request = request.body(serde_json::to_vec(&message)?).map_err(|error| Failure::Client(error.into()))?;
        let awaits = matches!(message, ClientJsonRpcMessage::Request(_));
        let (agent, in_session) = (self.agent.clone(), session.is_some());
        off_thread(move || answer(agent.run(request).map_err(Failure::Client)?, awaits, in_session, limits)).await?
    }

    async fn delete_session(
        &self,
        uri: Arc<str>,
        session: Arc<str>,
        auth: Option<String>,
        headers: HashMap<HeaderName, HeaderValue>,
    ) -> Result<(), Failure> {
        let request = with_headers(Request::delete(&*uri), Some(&session), auth.as_deref(), headers);
        let request = request.body(()).map_err(|error| Failure::Client(error.into()))?;
        let agent = self.agent.clone();
        // Servers may refuse it, which changes nothing.
        off_thread(move || agent.run(request).map(drop).map_err(Failure::Client)).await?
    }

    async fn get_stream(
        &self,
        _: Arc<str>,
        _: Option<Arc<str>>,
        _: Option<String>,
        _: Option<String>,
        _: HashMap<HeaderName, HeaderValue>,
    ) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
        Err(StreamableHttpError::ServerDoesNotSupportSse)
    }
}

/// Reads a response, or begins to read its events. `awaits`: whether a result is wanted.
fn answer(
    response: Response<Body>,
    awaits: bool,
    in_session: bool,
    limits: StreamableHttpResponseLimits,
) -> Result<StreamableHttpPostResponse, Failure> {
    let status = response.status();
    if status == StatusCode::NOT_FOUND && in_session {
        return Err(StreamableHttpError::SessionExpired);
    }
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let (session, kind) = (header(SESSION), header(CONTENT_TYPE.as_str()).unwrap_or_default());
    let retry_after = header(RETRY_AFTER.as_str());
    let is = |wanted: &str| kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case(wanted));
    let (json, events) = (is(JSON), is(EVENTS));
    if !status.is_success() {
        return failure(response, json, retry_after, limits);
    }
    match () {
        () if !awaits => Ok(StreamableHttpPostResponse::Accepted),
        () if events => Ok(StreamableHttpPostResponse::Sse(read_events(response, limits.max_sse_event_size)?, session)),
        () if json => {
            let body = bounded(response, limits.max_json_response_size)?;
            Ok(StreamableHttpPostResponse::Json(serde_json::from_slice(&body)?, session))
        }
        () => Err(StreamableHttpError::UnexpectedContentType((!kind.is_empty()).then_some(kind))),
    }
}

/// A refusal in MCP's own form is the answer; any other is an error.
fn failure(
    response: Response<Body>,
    json: bool,
    retry_after: Option<String>,
    limits: StreamableHttpResponseLimits,
) -> Result<StreamableHttpPostResponse, Failure> {
    let status = response.status();
    if let StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN = status {
        let hint = format!("HTTP {status}: it wants a key, which `headers` in --mcp-config may hold");
        return Err(StreamableHttpError::UnexpectedServerResponse(Cow::Owned(hint)));
    }
    if let Some(place) = response.headers().get("location").filter(|_| status.is_redirection()) {
        let text =
            format!("HTTP {status} to {}; redirects are not followed", String::from_utf8_lossy(place.as_bytes()));
        return Err(StreamableHttpError::UnexpectedServerResponse(Cow::Owned(text)));
    }
    if json {
        let body = bounded(response, limits.max_json_response_size)?;
        if let Ok(error @ ServerJsonRpcMessage::Error(_)) = serde_json::from_slice(&body) {
            return Ok(StreamableHttpPostResponse::Json(error, None));
        }
    }
    Err(StreamableHttpError::HttpStatus(HttpStatusError::new(status.as_u16(), retry_after)))
}

fn bounded(response: Response<Body>, max_size: usize) -> Result<Vec<u8>, Failure> {
    let mut body = Vec::new();
    response.into_body().into_reader().take(max_size as u64 + 1).read_to_end(&mut body)?;
    if body.len() > max_size { Err(StreamableHttpError::ResponseBodyTooLarge { max_size }) } else { Ok(body) }
}

/// The events of a response, as they come.
fn read_events(
    response: Response<Body>,
    max_size: usize,
) -> Result<BoxStream<'static, Result<Sse, SseError>>, Failure> {
    let (sender, receiver) = mpsc::channel(EVENTS_MAX);
    std::thread::Builder::new().name("mcp events".to_owned()).spawn(move || {
        let mut lines = BufReader::new(response.into_body().into_reader());
        while let Some(event) = next_event(&mut lines, max_size).transpose() {
            let last = event.is_err();
            if sender.blocking_send(event.map_err(|error| SseError::Body(error.into()))).is_err() || last {
                return;
            }
        }
    })?;
    Ok(stream::unfold(receiver, |mut receiver| async { receiver.recv().await.map(|event| (event, receiver)) }).boxed())
}

/// The next event that has data (WHATWG HTML, "Server-sent events"), of at most so many bytes.
fn next_event(lines: &mut impl BufRead, max_size: usize) -> std::io::Result<Option<Sse>> {
    let (mut event, mut left) = (Sse::default(), max_size as u64);
    loop {
        let mut line = Vec::new();
        let read = lines.by_ref().take(left).read_until(b'\n', &mut line)? as u64;
        left -= read;
        if read == 0 {
            return if left == 0 { Err(std::io::Error::other("an event is too large")) } else { Ok(None) };
        }
        let line = String::from_utf8_lossy(&line);
        let line = line.trim_end_matches(['\n', '\r']);
        if line.is_empty() && event.data.is_some() {
            return Ok(Some(event));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "data" => match &mut event.data {
                Some(data) => data.extend(["\n", value]),
                None => event.data = Some(value.to_owned()),
            },
            "event" => event.event = Some(value.to_owned()),
            "id" => event.id = Some(value.to_owned()),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(text: &str, max_size: usize) -> std::io::Result<Vec<(Option<String>, String)>> {
        let mut lines = text.as_bytes();
        let next = || next_event(&mut lines, max_size).transpose();
        std::iter::from_fn(next).map(|event| event.map(|event| (event.event, event.data.unwrap()))).collect()
    }

    #[test]
    fn events_are_read_as_the_standard_says() {
        let text = ": a comment\n\nevent: message\ndata: {\"a\":\ndata:1}\n\nid: 5\r\ndata: x\r\n\r\nretry: 5\n\ndata: cut off";
        let expected = [(Some("message".to_owned()), "{\"a\":\n1}".to_owned()), (None, "x".to_owned())];
        assert_eq!(events(text, 1000).unwrap(), expected);
        assert!(events("data: 0123456789\n\n", 10).unwrap_err().to_string().contains("too large"));
        assert_eq!(events("", 10).unwrap(), []);
    }
}

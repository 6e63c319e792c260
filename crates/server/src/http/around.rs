//! What every request and every response goes through, whatever its route.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::app::{App, ErrorCode};
use super::local;
use super::record::{REQUEST_ID, Record};
use crate::ledger::{Rate, Room};

/// Begins the request's record, and gives its response what every response has.
pub(super) async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().cloned();
    let record = Record::new(&request, route.as_ref().map(MatchedPath::as_str));
    request.extensions_mut().insert(record.clone());
    let cors = &app.settings.cors;
    let origin = cors.allowed(request.headers());
    let mut response = match admit(&app, &request) {
        None => next.run(request).await,
        Some(response) => response,
    };
    record.answered(response.status().as_u16(), response.extensions().get::<ErrorCode>().map(|code| code.0));
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
    headers.insert(REQUEST_ID, HeaderValue::from_str(&record.id()).expect("names of requests are plain"));
    rate_headers(&record.room(), headers);
    cors.mark(origin, headers);
    response
}

/// The response to a request that gets none from a route.
fn admit(app: &App, request: &Request) -> Option<Response> {
    let (method, headers) = (request.method(), request.headers());
    if app.settings.without_key.is_some()
        && let Err(error) = local::check(headers)
    {
        return Some(error.into_response());
    }
    app.settings.cors.preflight(method, headers)
}

/// What the key may still use, in OpenAI's form.
fn rate_headers(room: &Room, headers: &mut HeaderMap) {
    for (unit, rate) in [("requests", room.requests), ("tokens", room.tokens)] {
        let Some(Rate { limit, remaining, reset_ms }) = rate else { continue };
        let mut insert = |what: &str, value: HeaderValue| {
            let name = HeaderName::try_from(format!("x-ratelimit-{what}-{unit}")).expect("a plain name");
            headers.insert(name, value);
        };
        insert("limit", HeaderValue::from(limit));
        insert("remaining", HeaderValue::from(remaining));
        insert("reset", HeaderValue::try_from(duration(reset_ms)).expect("digits and letters"));
    }
}

/// Whole seconds, rounded up, as OpenAI writes them: `1s`, `6m0s`.
fn duration(ms: i64) -> String {
    let seconds = ms.max(0).unsigned_abs().div_ceil(1000);
    match seconds {
        ..60 => format!("{seconds}s"),
        _ => format!("{}m{}s", seconds / 60, seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_written_as_openai_writes_them() {
        let written = [(0, "0s"), (1, "1s"), (1000, "1s"), (59_001, "1m0s"), (360_000, "6m0s"), (3_601_000, "60m1s")];
        for (ms, text) in written {
            assert_eq!(duration(ms), text);
        }
    }
}

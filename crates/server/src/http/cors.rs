//! Web pages of other origins: which may call, and what browsers are told of it. Keys come in headers that a page sets
//! itself, never from cookies, so no answer allows credentials.

use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};

/// For browsers to remember what they were allowed, in seconds. Chrome takes no more.
const MAX_AGE_S: u64 = 7200;
/// Headers of responses that a page may read.
const EXPOSED: &str = "x-request-id, retry-after, x-queue-position, x-expected-wait-seconds, \
    x-ratelimit-limit-requests, x-ratelimit-remaining-requests, x-ratelimit-reset-requests, \
    x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens";

/// Origins of web pages that may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cors {
    /// The server's own.
    #[default]
    Own,
    /// These, too.
    Origins(Vec<String>),
    /// Whatever they are.
    Any,
}

impl Cors {
    /// From origins as they are typed, or `*`.
    ///
    /// # Errors
    /// The origin that is none.
    pub fn new(origins: &[String]) -> Result<Cors, String> {
        if origins.iter().any(|origin| origin == "*") {
            return Ok(Cors::Any);
        }
        match origins.iter().find(|origin| !is_origin(origin)) {
            Some(wrong) => Err(wrong.clone()),
            None if origins.is_empty() => Ok(Cors::Own),
            None => Ok(Cors::Origins(origins.to_vec())),
        }
    }

    /// The response to a browser that asks whether a page may call, if the request is such a question.
    pub(super) fn preflight(&self, method: &Method, headers: &HeaderMap) -> Option<Response> {
        let asks = *method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        if !asks || self.allowed(headers).is_none() {
            return None;
        }
        let mut response = StatusCode::NO_CONTENT.into_response();
        let answer = response.headers_mut();
        answer.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST, DELETE"));
        answer.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from(MAX_AGE_S));
        // Libraries send many of their own (`x-stainless-…`), and none does harm.
        if let Some(asked) = headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
            answer.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
        }
        Some(response)
    }

    /// The origin to name in the response to a request with these headers.
    pub(super) fn allowed(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let origin = headers.get(header::ORIGIN)?;
        match self {
            Cors::Own => None,
            Cors::Any => Some(HeaderValue::from_static("*")),
            Cors::Origins(origins) => {
                origins.iter().any(|known| known.as_bytes() == origin.as_bytes()).then(|| origin.clone())
            }
        }
    }

    /// Adds to a response what lets the page read it.
    pub(super) fn mark(&self, allowed: Option<HeaderValue>, response: &mut HeaderMap) {
        if matches!(self, Cors::Origins(_)) {
            response.append(header::VARY, HeaderValue::from_static("origin"));
        }
        if let Some(allowed) = allowed {
            response.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
            response.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
        }
    }
}

/// `SCHEME://HOST` or `SCHEME://HOST:PORT`, as browsers send it.
fn is_origin(text: &str) -> bool {
    let Some((scheme, host)) = text.split_once("://") else { return false };
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]_+".contains(&byte);
    [scheme, host].iter().all(|part| !part.is_empty() && part.bytes().all(plain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_what_browsers_send() {
        for good in ["https://a.example", "http://localhost:3000", "http://[::1]:80", "app://obsidian.md"] {
            assert_eq!(Cors::new(&[good.to_owned()]), Ok(Cors::Origins(vec![good.to_owned()])));
        }
        for bad in ["a.example", "https://a.example/", "https://A.example", "", "https://", "https://a b"] {
            assert_eq!(Cors::new(&[bad.to_owned()]), Err(bad.to_owned()));
        }
        assert_eq!(Cors::new(&["https://a.example".to_owned(), "*".to_owned()]), Ok(Cors::Any));
        assert_eq!(Cors::new(&[]), Ok(Cors::Own));
    }
}

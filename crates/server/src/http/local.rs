//! A server without keys is for programs on its own machine. A web page of elsewhere that runs in a browser on that
//! machine is not among them: neither by asking this address from its own origin, nor by a name of its own that it has
//! made to mean this address (DNS rebinding).

use std::net::IpAddr;

use axum::http::{HeaderMap, header};

use crate::wire::ApiError;

/// Refuses what does not come from a program of this machine, or from the server's own pages.
pub(super) fn check(headers: &HeaderMap) -> Result<(), ApiError> {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
    let host = text(header::HOST).unwrap_or_default();
    if !is_loopback(host) {
        let message =
            "This server takes requests without a key, so its address must be `localhost`, 127.0.0.1 or [::1].";
        return Err(ApiError::forbidden(message));
    }
    match text(header::ORIGIN).map(|origin| origin.split_once("://").map_or("", |(_, host)| host)) {
        Some(origin) if origin != host => {
            let message = "This server takes requests without a key, so pages of other origins may not call it.";
            Err(ApiError::forbidden(message))
        }
        _ => Ok(()),
    }
}

/// Whether a host, with or without a port, is this machine's by whatever name server is asked.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']')).unwrap_or(name);
    name.eq_ignore_ascii_case("localhost") || address.parse().is_ok_and(|address: IpAddr| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_others_can_give_are_not_loopback() {
        for local in ["localhost", "LOCALHOST:80", "127.0.0.1", "127.1.2.3:8080", "[::1]", "[::1]:8080"] {
            assert!(is_loopback(local), "{local}");
        }
        for other in ["", "localhost.evil.example", "127.0.0.1.evil.example", "10.0.0.1", "[::2]:80", "evil:localhost"]
        {
            assert!(!is_loopback(other), "{other}");
        }
    }
}

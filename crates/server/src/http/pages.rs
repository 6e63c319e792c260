//! The web chat: files of the binary, with headers that let the page talk to this server and to nothing else.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::app::App;

/// The page sets styles from script, through properties, which no policy forbids; it has no inline script or style.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Path, type and content of each file.
const FILES: [(&str, &str, &str); 7] = [
    ("/", "text/html; charset=utf-8", include_str!("../web/index.html")),
    ("/chat.css", "text/css; charset=utf-8", include_str!("../web/chat.css")),
    ("/chat.js", "text/javascript; charset=utf-8", include_str!("../web/chat.js")),
    ("/markdown.js", "text/javascript; charset=utf-8", include_str!("../web/markdown.js")),
    ("/highlight.js", "text/javascript; charset=utf-8", include_str!("../web/highlight.js")),
    ("/math.js", "text/javascript; charset=utf-8", include_str!("../web/math.js")),
    ("/icon.svg", "image/svg+xml", include_str!("../web/icon.svg")),
];

/// Adds the files' routes.
pub(super) fn routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    FILES.iter().fold(router, |router, &(path, kind, content)| {
        let headers = [
            (header::CONTENT_TYPE, kind),
            (header::CONTENT_SECURITY_POLICY, POLICY),
            (header::REFERRER_POLICY, "no-referrer"),
            (header::CACHE_CONTROL, "no-cache"),
        ];
        router.route(path, get(move || async move { (headers, content).into_response() }))
    })
}

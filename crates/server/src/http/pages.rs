//! The web chat: files of the binary, with headers that let the page talk to this server and to nothing else.

use std::sync::Arc;

use axum::Router;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;

use super::app::App;

/// The page sets styles from script, through properties, which no policy forbids; it has no inline script or style, and
/// no text that script makes is read as HTML or as the address of a script but that of the service worker.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      connect-src 'self'; manifest-src 'self'; worker-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; \
                      trusted-types wels";

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";
const SVG: &str = "image/svg+xml";
const PNG: &str = "image/png";
const MANIFEST: &str = "application/manifest+json";

/// A file by its path below the page's, with its type.
macro_rules! files {
    ($($kind:ident $path:literal,)*) => {
        [$(($path, $kind, include_bytes!(concat!("../web/", $path)) as &[u8]),)*]
    };
}

/// What the page is made of, beside itself and its service worker.
const FILES: [(&str, &str, &[u8]); 30] = files! {
    CSS "base.css",
    CSS "chat.css",
    CSS "text.css",
    CSS "vendor/math.css",
    SCRIPT "answers.js",
    SCRIPT "api.js",
    SCRIPT "app.js",
    SCRIPT "composer.js",
    SCRIPT "dialogs.js",
    SCRIPT "dom.js",
    SCRIPT "drawing.js",
    SCRIPT "files.js",
    SCRIPT "log.js",
    SCRIPT "markdown.js",
    SCRIPT "math.js",
    SCRIPT "menu.js",
    SCRIPT "render.js",
    SCRIPT "settings.js",
    SCRIPT "sidebar.js",
    SCRIPT "state.js",
    SCRIPT "store.js",
    SCRIPT "transfer.js",
    SCRIPT "tree.js",
    SCRIPT "view.js",
    SCRIPT "vendor/renderers.js",
    SVG "icon.svg",
    PNG "icon-192.png",
    PNG "icon-512.png",
    PNG "icon-maskable-512.png",
    MANIFEST "manifest.webmanifest",
};
const PAGE: &[u8] = include_bytes!("../web/index.html");
const LICENCES: &[u8] = include_bytes!("../web/vendor/LICENCES.txt");

/// Adds the files' routes.
pub(super) fn routes(router: Router<Arc<App>>) -> Router<Arc<App>> {
    let others = [("", HTML, PAGE), ("vendor/LICENCES.txt", TEXT, LICENCES)];
    let router = FILES.into_iter().chain(others).fold(router, |router, (path, kind, content)| {
        router.route(&format!("/{path}"), get(move || async move { (headers(kind), content).into_response() }))
    });
    router.route("/sw.js", get(|| async { (headers(SCRIPT), worker()).into_response() }))
}

fn headers(kind: &'static str) -> [(header::HeaderName, &'static str); 4] {
    [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-cache"),
    ]
}

/// The service worker, told which files there are.
fn worker() -> String {
    let paths: Vec<&str> = std::iter::once("./").chain(FILES.iter().map(|(path, ..)| *path)).collect();
    format!("const FILES = {};\n{}", serde_json::json!(paths), include_str!("../web/sw.js"))
}

//! `wels run --watch`: the run's report as a page that follows the run, served to this machine while the run goes on.
//!
//! The page is made from the run's files when somebody asks for it, so the training does nothing for it. `/` is
//! `report.html` as it would be written now; `/watch.js` has a browser ask for it again.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Router, middleware};
use wels_pipeline::refusal::refuse;
use wels_runs::plan::prices::Prices;
use wels_runs::report;

/// Where the page is if the command line does not say.
pub const ADDRESS: &str = "127.0.0.1:8090";

/// A page is not made again sooner.
const AS_OLD_AS: Duration = Duration::from_secs(2);

const SCRIPT: &str = include_str!("watch/watch.js");

/// Nothing from elsewhere, no other script, in nobody's frame.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'self'; \
                      connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

struct Watched {
    run: PathBuf,
    address: SocketAddr,
    /// The last one, and when it was made.
    page: Mutex<Option<(Instant, String)>>,
}

/// Takes the address before the run begins.
///
/// # Errors
/// If it is taken or is none.
pub fn listen(address: &str) -> Result<TcpListener> {
    let hint = "--watch=127.0.0.1:0 takes any free port";
    TcpListener::bind(address).map_err(|error| refuse(format!("--watch={address}: {error}"), hint))
}

/// Serves the page of the run at `path` until the process ends, and says where.
pub fn watch(path: &Path, listener: TcpListener) -> Result<()> {
    listener.set_nonblocking(true).context("cannot serve the page of the run")?;
    let address = listener.local_addr().context("cannot serve the page of the run")?;
    let watched = Arc::new(Watched { run: path.into(), address, page: Mutex::new(None) });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot serve the page of the run")?;
    let serve = async move {
        match tokio::net::TcpListener::from_std(listener) {
            Ok(listener) => drop(axum::serve(listener, router(watched)).await),
            Err(error) => eprintln!("note: the page of the run cannot be served: {error}"),
        }
    };
    let thread = thread::Builder::new().name("watch".into());
    thread.spawn(move || runtime.block_on(serve)).context("cannot serve the page of the run")?;
    eprintln!("{:>9} http://{address}", "watch");
    if !address.ip().is_loopback() {
        eprintln!("note: whoever reaches {address} can read this run's figures and texts");
    }
    Ok(())
}

fn router(watched: Arc<Watched>) -> Router {
    let own = middleware::from_fn_with_state(watched.clone(), |State(watched): State<Arc<Watched>>, request, next| {
        guarded(watched, request, next)
    });
    let script = || async { ([(header::CONTENT_TYPE, "text/javascript")], SCRIPT) };
    Router::new().route("/", get(page)).route("/watch.js", get(script)).layer(own).with_state(watched)
}

/// Answers only to the names of this machine, where no other can ask: a page from elsewhere may have a name that
/// resolves to it.
async fn guarded(watched: Arc<Watched>, request: axum::extract::Request, next: middleware::Next) -> Response {
    if watched.address.ip().is_loopback() && !names_this_machine(request.headers()) {
        return (StatusCode::FORBIDDEN, "The page of a run is for this machine: ask for localhost.\n").into_response();
    }
    let mut answer = next.run(request).await;
    let headers = [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CACHE_CONTROL, "no-store"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    answer.headers_mut().extend(headers.map(|(name, value)| (name, header::HeaderValue::from_static(value))));
    answer
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let Some(host) = headers.get(header::HOST).and_then(|host| host.to_str().ok()) else { return false };
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

async fn page(State(watched): State<Arc<Watched>>) -> Response {
    let made = tokio::task::spawn_blocking(move || watched.page()).await;
    let page = made.unwrap_or_else(|_| nothing_yet("The page could not be made."));
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page).into_response()
}

impl Watched {
    fn page(&self) -> String {
        let mut last = self.page.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, page)) = last.as_ref().filter(|(made, _)| made.elapsed() < AS_OLD_AS) {
            return page.clone();
        }
        // Files may be half there while the run begins.
        let page = report::text(&self.run, &Prices::built_in());
        let page = page.unwrap_or_else(|why| nothing_yet(&format!("There is nothing to be seen yet: {why}.")));
        let page = page.replacen("</body>", "<script src=\"/watch.js\" defer></script></body>", 1);
        *last = Some((Instant::now(), page.clone()));
        page
    }
}

fn nothing_yet(why: &str) -> String {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>wels</title>");
    let why = report::chart::escape(why);
    let _ = write!(page, "</head>\n<body><main><p>{why}</p></main></body></html>\n");
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_are_answered() {
        let asked = |host: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            names_this_machine(&headers)
        };
        for host in ["localhost", "localhost:8090", "LOCALHOST:1", "127.0.0.1:8090", "127.0.0.1", "[::1]:80", "[::1]"] {
            assert!(asked(host), "{host}");
        }
        for host in
            ["example.org", "example.org:8090", "localhost.example.org", "10.0.0.1:8090", "127.0.0.1.nip.io", ""]
        {
            assert!(!asked(host), "{host}");
        }
        assert!(!names_this_machine(&HeaderMap::new()));
    }
}

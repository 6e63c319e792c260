//! Connections, and the end of the server.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use super::app::App;
use super::hangup::Hangup;
use super::write_timeout::WriteTimeout;

/// Bytes of a request's line and headers.
const HEAD_BYTES_MAX: usize = 64 << 10;
/// After the system has refused to give another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// What a connection above the limit gets.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
    Content-Type: application/json\r\nContent-Length: 100\r\n\r\n\
    {\"error\":{\"message\":\"Too many connections.\",\"type\":\"server_error\",\"param\":null,\"code\":\"overloaded\"}}";

/// How far the end of the server has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Running,
    Draining,
    Stopped,
}

/// Asks the server to end: once to finish what is under way, twice to leave at once.
#[derive(Clone)]
pub struct Shutdown(watch::Sender<Stage>);

impl Default for Shutdown {
    fn default() -> Shutdown {
        Shutdown(watch::Sender::new(Stage::Running))
    }
}

impl Shutdown {
    /// Asks once more.
    pub fn ask(&self) {
        self.0.send_modify(|stage| {
            *stage = if *stage == Stage::Running { Stage::Draining } else { Stage::Stopped };
        });
    }

    /// Asks with every SIGTERM and SIGINT from now on; with every Ctrl-C where there are no signals.
    pub fn on_signals(&self) -> std::io::Result<()> {
        #[cfg(unix)]
        self.on_unix_signals()?;
        #[cfg(not(unix))]
        {
            let shutdown = self.clone();
            tokio::spawn(async move {
                while tokio::signal::ctrl_c().await.is_ok() {
                    shutdown.ask();
                }
            });
        }
        Ok(())
    }

    #[cfg(unix)]
    fn on_unix_signals(&self) -> std::io::Result<()> {
        use tokio::signal::unix::{SignalKind, signal};

        for kind in [SignalKind::terminate(), SignalKind::interrupt()] {
            let (mut signals, shutdown) = (signal(kind)?, self.clone());
            tokio::spawn(async move {
                while signals.recv().await.is_some() {
                    shutdown.ask();
                }
            });
        }
        Ok(())
    }

    async fn reached(&self, stage: Stage) {
        // The sender is part of `self`, so it is not gone.
        let _ = self.0.subscribe().wait_for(|now| *now >= stage).await;
    }
}

/// Serves until it is asked to end, and then until requests under way have ended, the time for that is over, or it is
/// asked again. Everything that was sent is in the ledger when it returns.
pub async fn serve(listener: TcpListener, app: Arc<App>, shutdown: Shutdown) {
    let router = app.router();
    let graceful = GracefulShutdown::new();
    let slots = Arc::new(Semaphore::new(app.settings.connections_max));
    let watching = app.settings.tls.clone().map(|tls| tokio::spawn(tls.watch()));
    loop {
        let accepted = tokio::select! {
            biased;
            () = shutdown.reached(Stage::Draining) => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        match Arc::clone(&slots).try_acquire_owned() {
            Err(_) => {
                app.connections.refused.fetch_add(1, Relaxed);
                // Over TLS there is no time for a handshake with those that are too many.
                if app.settings.tls.is_none() {
                    tokio::spawn(refuse(stream));
                }
            }
            Ok(slot) => {
                let connection = connect(stream, router.clone(), Arc::clone(&app), graceful.watcher());
                let app = Arc::clone(&app);
                tokio::spawn(async move {
                    app.connections.open.fetch_add(1, Relaxed);
                    connection.await;
                    app.connections.open.fetch_sub(1, Relaxed);
                    drop(slot);
                });
            }
        }
    }
    drop(listener);
    app.draining.store(true, Relaxed);
    tracing::info!("no new requests; those under way are finished");
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(app.settings.drain) => tracing::warn!("requests under way are cut off"),
        () = shutdown.reached(Stage::Stopped) => tracing::warn!("requests under way are cut off"),
    }
    if let Some(watching) = watching {
        watching.abort();
    }
    app.ledger.flush().await;
}

/// The life of a connection.
async fn connect(stream: TcpStream, router: Router, app: Arc<App>, watcher: Watcher) {
    let _ = stream.set_nodelay(true); // a socket that cannot do it works all the same
    let stream = WriteTimeout::new(stream, app.settings.write_timeout);
    let Some(tls) = &app.settings.tls else { return converse(stream, router, &app, watcher).await };
    match tokio::time::timeout(app.settings.header_timeout, tls.acceptor().accept(stream)).await {
        Ok(Ok(stream)) => converse(stream, router, &app, watcher).await,
        Ok(Err(error)) => tracing::debug!(%error, "a handshake failed"),
        Err(_) => tracing::debug!("a handshake took too long"),
    }
}

/// Requests and responses of a connection.
async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    router: Router,
    app: &App,
    watcher: Watcher,
) {
    let hangup = Hangup::default();
    let service = TowerToHyperService::new(router.layer(Extension(hangup.clone())));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.settings.header_timeout)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        ended = watcher.watch(connection) => {
            if let Err(error) = ended {
                tracing::debug!(%error, "a connection broke");
            }
        }
        () = hangup.hung_up() => {}
    }
}

async fn refuse(mut stream: TcpStream) {
    let _ = tokio::time::timeout(Duration::from_secs(1), async {
        stream.write_all(FULL).await?;
        stream.shutdown().await
    })
    .await;
}

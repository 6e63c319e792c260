//! HTTP: routes, keys, limits on what a connection may do, the life of the process.

mod adapters;

mod app;

mod around;

mod body;

mod cors;

mod embeddings;

mod fetch;

mod images;

mod generate;

mod hangup;

mod local;

mod metrics;

mod openapi;

mod pages;

mod record;

mod write_timeout;

mod routes;

mod serve;

mod sse;

mod tls;

mod fair_queue;

pub use adapters::{AdapterSource, LoadedAdapter};
pub use app::{App, Settings};
pub use cors::Cors;
pub use fetch::ImageHosts;
pub use hangup::Hangup;
pub use serve::{Shutdown, serve};
pub use tls::{Tls, TlsError};

//! HTTP: routes, keys, limits on what a connection may do, the life of the process.

mod app;

mod body;

mod embeddings;

mod generate;

mod hangup;

mod metrics;

mod pages;

mod write_timeout;

mod routes;

mod serve;

mod sse;

mod fair_queue;

pub use app::{App, Settings};
pub use hangup::Hangup;
pub use serve::{Shutdown, serve};

//! Servers of the Model Context Protocol as tools: child processes that are spoken to over their standard streams, and
//! servers at a URL.
//!
//! A server is foreign: that it does not start, says nothing, ends, prints what is no message or lists hundreds of
//! tools is an error that names it, or the outcome of a call, and never more. Its calls are always asked for: what it
//! says of its tools' harmlessness does not count.

mod config;

mod http;

mod server;

mod text;

use std::time::Duration;

pub use config::{ConfigError, Place, Program, ServerSpec};
pub use server::{Started, start};

/// How long a server is waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// From its start until it has said which tools it has.
    pub start: Duration,
    /// From a call's arguments to its result.
    pub call: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Timeouts { start: Duration::from_secs(60), call: Duration::from_secs(120) }
    }
}

/// Why a server's tools are not there.
#[derive(Debug, thiserror::Error)]
pub enum McpError {
    #[error("the MCP server {server} cannot be started: {command}: {source}")]
    Spawn { server: String, command: String, source: std::io::Error },
    #[error("the MCP server {server} {reason}{}", said(.stderr))]
    Failed {
        server: String,
        reason: String,
        /// The end of what it wrote there.
        stderr: String,
    },
}

/// What a server wrote before it failed.
fn said(stderr: &str) -> String {
    match stderr.trim() {
        "" => String::new(),
        text => format!("; it wrote: {text}"),
    }
}

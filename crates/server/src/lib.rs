//! The HTTP server: OpenAI's and DeepSeek's API over engines, with keys, quotas and a bill.
//!
//! ```text
//! http      connections, routes, keys; a request's way from body to stream
//! wire      the API's JSON, the only place that knows a field's name
//! prompt    a request of the API     → requests of the engine
//! loader    which models' engines are in memory
//! worker    the thread of an engine  → each request's events
//! progress  events                   → what a reply grows by
//! answer    text                     → thinking, answer, calls of tools
//! ledger    keys, quotas, the account of every request
//! ```
//!
//! **Invariants.** One thread owns each engine and one the ledger; handlers speak to them through channels and never
//! block. What a client is sent is in the ledger before it is sent. Nothing that a client sends is logged
//! but what it calls its request, where that is a plain token.

#![forbid(unsafe_code)]

pub mod http;

pub mod wire;

pub mod prompt;

pub mod loader;

pub mod worker;

pub mod progress;

pub mod answer;

pub mod money;

pub mod keys;

pub mod ledger;

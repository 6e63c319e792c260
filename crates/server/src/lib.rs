//! The HTTP server: OpenAI's and DeepSeek's API over an engine, with keys, quotas and a bill.

pub mod wire;

pub mod answer;

pub mod money;

pub mod keys;

pub mod ledger;

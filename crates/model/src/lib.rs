//! Models: configurations and exact counts, weights in and out, the tape, layers.
//!
//! What computes is a [`wels_device::Device`]: nothing here looks into a tensor.
//!
//! **Invariants.** No training loop, no tokenizer, no terminal, no scheduling of requests. Whatever is read from a file
//! is checked before memory is taken for it, and every failure is an error value; panics mean bugs in the caller.

#![deny(unsafe_code)]

pub mod config;

mod family;

mod config_json;

pub mod presets;

pub mod schedule;

pub mod names;

pub mod count;

pub mod weights;

pub mod gguf;

pub mod params;

pub mod adapter;

pub mod placement;

pub mod expert_parallel;

pub mod traffic;

pub mod eplb;

pub mod frozen;

pub mod inference;

pub mod sizes;

mod entry_pages;

mod kv_cache;

mod execution;

pub mod tape;

pub mod ops;

mod layers;

pub mod model;

pub mod paged;

pub mod generate;

pub mod janus;

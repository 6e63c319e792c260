//! From raw text to the token batches that a model is trained on, and the text formats around a model.
//!
//! ```text
//! corpus   folders, JSONL, Parquet           → documents
//! shards   documents × tokenizer             → memory-mapped token shards, split and hashed
//! loader   shards × (seed, sequence number)  → batches; a pure function, so resuming needs one number
//! ```
//! The same corpus, tokenizer and options give the same shard files, and the same shards and seed the same batches, on
//! any machine and any number of threads. This crate knows no model and no recipe.

#![deny(unsafe_code)]

pub mod tokenizer;

pub mod columns;

pub mod corpus;

pub mod shards;

pub mod loader;

pub mod chat;

pub mod random;

mod atomic;
mod guard;
#[allow(unsafe_code)]
mod mapped;

pub use chat::{ChatTemplate, Message};
pub use corpus::Corpus;
pub use loader::{Batch, Loader};
pub use shards::{Dataset, Manifest};
pub use tokenizer::Tokenizer;

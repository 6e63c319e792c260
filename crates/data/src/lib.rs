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

/// Chooses how many threads read texts and turn them into tokens; to be called before the first do. If it is not, as
/// many as cores, or as the process's group may use.
///
/// # Errors
/// If the threads are there already.
pub fn set_threads(threads: usize) -> Result<(), String> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    pool.build_global().map_err(|error| format!("the threads for texts have started already: {error}"))
}

/// How many these are.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

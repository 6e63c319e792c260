//! Models: configurations and exact counts, weights in and out, tensors, the tape, layers.
//!
//! **Invariants.** No sampling, no training loop, no tokenizer, no terminal. Whatever is read from a file is checked before
//! memory is taken for it, and every failure is an error value; panics mean bugs in the caller.

pub mod config;
pub mod names;

//! The layers: each says which operations make it up, once, for training and inference.
//!
//! Names follow the formulas of the papers, handles the names of Hugging Face. h `[T, D]` is the input of a layer.

mod block;
mod compressed;
mod gqa;
mod indexer;
mod mla;
mod mlp;
mod moe;
mod mtp;
mod streams;

pub(crate) use block::Block;
pub(crate) use mtp::Mtp;
pub(crate) use streams::Connection;

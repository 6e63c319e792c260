//! Training of Janus models: text, pictures that are drawn after text, and text about pictures that are seen, in one
//! batch. The VQ tokenizer stays as it is; the tower that sees learns where the network has it.
//!
//! ```text
//! examples → batch (examples) → gradients → AdamW or Muon (trainer)
//! captions → pictures → rewards → advantages → gradients → AdamW or Muon (policy)
//! ```
//! Source: Janus-Pro, arXiv 2501.17811, §2 and §3.1.

pub mod examples;

pub mod policy;

pub mod trainer;

pub use examples::{JanusExample, pack, without_captions};
pub use trainer::{JanusPass, JanusReport, JanusTrainer, Weights};

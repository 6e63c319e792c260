//! Janus-Pro (arXiv 2501.17811): one transformer that sees pictures through a SigLIP tower and draws them as the codes
//! of a VQ tokenizer. The `janus` directory form of `transformers`. All of it learns: the tokenizer by itself
//! ([`VqNetwork`]), the rest together ([`network`]).

pub mod config;

pub mod names;

pub mod count;

mod read;

mod write;

pub mod presets;

mod error;

pub mod picture;

pub mod preprocess;

mod layers;

mod vision;

mod vq_layers;

mod vq;

mod vq_learn;

mod model;

mod draw;

pub mod batch;

mod tower;

pub mod network;

mod files;

pub use draw::{DrawBatch, DrawPrompt, Drawn, Painter, PictureId, draw_all, without_words};
pub use error::JanusError;
pub use files::{read_network, read_vq, save_dir, save_vq};
pub use model::{Janus, read_config};
pub use read::is_janus;
pub use vision::patches;
pub use vq::{Vq, VqNetwork};
pub use vq_learn::{VqObjective, VqSeen};

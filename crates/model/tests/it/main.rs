//! Tests of the crate from outside, in one binary.

mod adapter;
mod bits;
mod config;
mod count;
mod fp8;
mod gguf;
mod golden;
mod gradients;
mod janus;
mod janus_files;
mod janus_gradients;
mod naive;
mod oracle;
mod packed;
mod paged;
mod pictures;
mod placed;
mod published;
mod shapes;
mod vq;
mod weights;

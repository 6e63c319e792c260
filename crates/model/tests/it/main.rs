//! Tests of the crate from outside, in one binary.

mod bits;
mod cached;
mod config;
mod count;
mod golden;
mod gradients;
mod oracle;
mod shapes;
mod weights;

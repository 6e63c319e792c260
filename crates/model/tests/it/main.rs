//! Tests of the crate from outside, in one binary.

mod bits;
mod cached;
mod gradients;
mod oracle;
mod shapes;
mod config;
mod count;
mod weights;

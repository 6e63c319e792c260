//! The crate from outside.

mod cluster;
mod plan;

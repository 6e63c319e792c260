//! The crate from outside.

mod plan;

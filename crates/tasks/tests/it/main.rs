//! Tests of the crate's public interface, in one binary.

mod maths;

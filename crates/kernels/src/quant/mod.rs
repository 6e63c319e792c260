//! Quantised weights: the formats of files, and products with them.

pub mod blocks;

//! Tests of the crate from outside, in one binary.

mod models;

mod answers;
mod constraints;
mod graphs;
mod naive;
mod pictures;
mod placed;
mod ranks;
mod same;
mod schedule;
mod text;
mod thinking;

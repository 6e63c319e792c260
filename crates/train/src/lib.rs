//! Training over `wels-model`: one step function, whatever the stage; rollouts through `wels-engine`.
//!
//! **Invariants.** Decides nothing about files, prints nothing, knows no clock. A knob for memory or speed
//! (micro-batches, recomputation, threads) changes no bit of an update.

#![forbid(unsafe_code)]

pub use wels_model::schedule;

pub mod trainer;

pub mod muon;

pub mod experts;

mod partials;
mod reduction;
mod sharded;
mod shards;

pub mod example;

pub mod sft;

pub mod grpo;

pub mod rollout;

pub mod prompter;

pub mod episode;

pub mod rl;

pub mod distil;

pub mod vq;

pub mod doctor;

pub mod janus;

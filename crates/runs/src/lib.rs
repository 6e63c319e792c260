//! Runs on disk: the recipe, the run's directory with its lock, checkpoints, metrics, the plan and the ledger.
//!
//! **Contract.** A kill or a power cut at any moment leaves a directory from which the run goes on: files are replaced
//! whole ([`files`]), a checkpoint exists only with its `DONE` ([`checkpoint`]), append-only files lose at most a torn
//! last line ([`ledger`], [`metrics`]). Nothing here computes, and nothing here prints.

#![forbid(unsafe_code)]

pub mod recipe;

pub mod plan;

mod error;

pub mod rundir;

pub mod checkpoint;

pub mod tensors;

pub mod ledger;

pub mod metrics;

pub mod receipt;

pub mod verify;

pub mod account;

pub mod report;

pub mod machine;

pub mod files;

pub mod hash;

//! A whole run: its stages in order, checkpoints, ledger and budget, and doing a stretch of it again to verify it.
//!
//! **Invariants.** Prints nothing, reads no command line and never ends the process: what happens is told to the
//! caller's [`Host`](host::Host), which also says when to stop and what time it is; a run that stops early ends with
//! [`Stopped`](session::Stopped).

#![forbid(unsafe_code)]

mod run;

pub mod ranks;

mod rank;

mod experts;

pub mod meeting;

pub mod verify;

mod replay;

pub mod host;

pub mod session;

pub mod refusal;

mod documents;

mod corpus;

mod training;

mod pictures;
mod pretrain;

mod learn;

mod reinforce;

mod distil;
mod doctor;

mod environments;

mod remote;

mod teacher;

mod samples;

mod blanks;

mod questions;

mod sample;

pub mod task;

mod start;

pub mod named;

mod state;

pub mod hyper;

mod location;

pub mod model;

pub mod adapters;

pub mod identity;

pub mod attention;

mod learner;

pub mod forecast;

mod room;

pub mod measure;

pub mod words;

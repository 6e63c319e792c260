//! The program from outside: what it writes, where, and with which exit code; what a kill at any moment leaves behind.

mod lab;

mod stages;

#[cfg(feature = "mpi")]
mod mpi;

mod bits;

mod agent;

#[cfg(unix)]
mod terminal;

mod chat;

mod draw;

mod commands;

mod interruptions;

mod kills;

mod watch;

mod sparse;

mod trouble;

mod serve;

mod serve_ranks;

mod served_adapters;

mod eval;

/// The hub that the tests of `wels-hub` have.
#[allow(dead_code, reason = "its ways to fail are for those tests")]
#[path = "../../../hub/tests/it/server.rs"]
mod hub;
mod named;
mod names;

mod pictures;

mod verify;

mod account;

mod adapters;

mod vertical;

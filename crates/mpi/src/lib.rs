//! Ranks as processes, on one machine or many, joined by MPI. Empty without the feature `mpi`: libmpi is linked.
//!
//! **One thread calls MPI**, the progress thread of `progress.rs`; `Mpi` hands it operations and waits for it.
//! It does not wait inside MPI: it asks whether messages have come and sleeps in between. So a rank that waits leaves
//! its core to others, and signs of life are exchanged whatever the rank is doing. The one exception is a rank that has
//! given up and throws messages away, one between two signs of life (`Watch::drain`).
//!
//! **Messages.** Operations are messages from rank to rank (`exchange.rs`), not MPI's collectives: those cannot be
//! cancelled and do not say who is late.
//!
//! **Who is gone.** Ranks send each other a sign of life every second. One that is silent for `SILENCE` ends the
//! world with one message, whether its process or the network to it is gone; a failed rank ends it by `Mpi::abort`. A
//! rank that has done its part leaves (`watch.rs`): others' operations that need more of it fail with
//! `Lost`, and MPI is finalized when all have left.

#![forbid(unsafe_code)]
#![cfg(feature = "mpi")]

mod mpi;

mod job;

mod progress;

mod exchange;

mod watch;

pub use mpi::{JoinError, Mpi, join};
pub use watch::SILENCE;

//! Several ranks that compute one result: what they tell each other, and the order of sums over them.
//!
//! A [`Comm`] joins the ranks of a world. All of them call the same operations in the same order, with the same
//! arguments where these are not a rank's own; an operation returns when its result is there, or is
//! [begun](Comm::begin) and waited for later, while the rank computes. [`Single`] is a world of one. [`threads`] makes
//! a world of threads of this process, for tests and for machines whose memory has several nodes. Processes, on as many
//! machines, are joined by MPI: the crate `wels-mpi`. [`launcher`] says whether this process is one of several.
//!
//! **The order of sums.** Over the shards of a batch (and so over ranks, of which each has neighbouring shards) sums go
//! by one fixed binary tree: see [`tree`]. So results do not depend on how many ranks there are.
//!
//! **A rank that is lost.** When a rank panics or leaves, every operation of the others fails with [`Lost`], at once
//! and from then on. Whoever gets it ends; what is to be reported is the first rank's failure.

#![forbid(unsafe_code)]

pub mod launcher;
mod pending;
mod threads;
pub mod tree;

use std::fmt;

pub use pending::{Arrival, Pending};
pub use threads::{Threads, threads};

/// A rank of the world is gone, so that no result over all of them can come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} of {world} has ended before the others")]
pub struct Lost {
    /// Which.
    pub rank: usize,
    /// How many ranks there were.
    pub world: usize,
}

/// A rank of a world, to talk to the others.
pub trait Comm: Send + Sync {
    /// Which rank this is, from 0.
    fn rank(&self) -> usize;

    /// How many ranks there are.
    fn world(&self) -> usize;

    /// Begins to send `send[r]` to rank r; what they send to this one, by rank, is to be waited for. Operations that
    /// were begun are still operations in one order: each begins in its turn, and may be waited for in any.
    ///
    /// # Panics
    /// If there is not one message for each rank.
    fn begin(&self, send: Vec<Vec<u8>>) -> Pending;

    /// Begins to tell all ranks what this one gives; what each gives, by rank, is to be waited for.
    fn begin_all_gather(&self, mine: Vec<u8>) -> Pending {
        self.begin(vec![mine; self.world()])
    }

    /// Sends `send[r]` to rank r; what they sent to this one, by rank.
    ///
    /// # Errors
    /// [`Lost`].
    ///
    /// # Panics
    /// If there is not one message for each rank.
    fn all_to_all(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Lost> {
        self.begin(send).wait()
    }

    /// What each rank gives, by rank.
    ///
    /// # Errors
    /// [`Lost`].
    fn all_gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, Lost> {
        self.begin_all_gather(mine).wait()
    }

    /// What each rank gives, by rank, on rank 0; on the others nothing.
    ///
    /// # Errors
    /// [`Lost`].
    fn gather(&self, mine: Vec<u8>) -> Result<Vec<Vec<u8>>, Lost> {
        let mut send = vec![Vec::new(); self.world()];
        send[0] = mine;
        self.all_to_all(send)
    }

    /// What rank 0 gives; what the others give goes nowhere.
    ///
    /// # Errors
    /// [`Lost`].
    fn broadcast(&self, mine: Vec<u8>) -> Result<Vec<u8>, Lost> {
        let send = if self.rank() == 0 { vec![mine; self.world()] } else { vec![Vec::new(); self.world()] };
        Ok(self.all_to_all(send)?.swap_remove(0))
    }

    /// What rank 0 has for this rank: its `send[r]` is rank r's; what the others give goes nowhere.
    ///
    /// # Errors
    /// [`Lost`].
    ///
    /// # Panics
    /// On rank 0, if there is not one message for each rank.
    fn scatter(&self, send: Vec<Vec<u8>>) -> Result<Vec<u8>, Lost> {
        let send = if self.rank() == 0 { send } else { vec![Vec::new(); self.world()] };
        Ok(self.all_to_all(send)?.swap_remove(0))
    }

    /// A rank that is known to be gone, whether or not an operation has needed it.
    fn lost(&self) -> Option<Lost> {
        None
    }

    /// Takes part in no further operation, as when it is dropped.
    fn give_up(&self) {}

    /// Returns when all ranks have called it.
    ///
    /// # Errors
    /// [`Lost`].
    fn barrier(&self) -> Result<(), Lost> {
        self.all_gather(Vec::new()).map(drop)
    }
}

impl fmt::Debug for dyn Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.world())
    }
}

/// A world of one rank.
#[derive(Clone, Copy, Debug, Default)]
pub struct Single;

impl Comm for Single {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        1
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        assert_eq!(send.len(), 1, "a message for each rank");
        Pending::done(Ok(send))
    }
}

/// Numbers as bytes, bit for bit.
pub fn to_bytes(values: &[f32]) -> Vec<u8> {
    let mut bytes = vec![0; 4 * values.len()];
    bytes.chunks_exact_mut(4).zip(values).for_each(|(bytes, value)| bytes.copy_from_slice(&value.to_le_bytes()));
    bytes
}

/// The inverse of [`to_bytes`].
///
/// # Panics
/// If the bytes are not whole numbers of 4.
pub fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    assert!(bytes.len().is_multiple_of(4), "{} bytes of f32", bytes.len());
    bytes.chunks_exact(4).map(|bytes| f32::from_le_bytes(bytes.try_into().expect("four bytes"))).collect()
}

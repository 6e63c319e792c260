//! Memory that goes from the driver of one rank to that of another: what has to be moved, and who moves it. Between
//! cards that is [NCCL](super::nccl); [`Copies`] goes through the host and takes any drivers, for tests.

use std::marker::PhantomData;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};

use super::{Address, Buffer, Driver, Fault};

/// A piece of memory that goes to a rank, or comes from it.
#[derive(Clone, Copy, Debug)]
pub struct Piece {
    pub(super) rank: usize,
    pub(super) at: Address,
    pub(super) bytes: usize,
}

/// Pieces that are moved at once. Between two ranks they arrive in the order in which they were named.
#[derive(Default)]
pub struct Pieces<'a> {
    pub(super) sent: Vec<Piece>,
    pub(super) received: Vec<Piece>,
    buffers: PhantomData<&'a mut Buffer>,
}

impl<'a> Pieces<'a> {
    /// Sends `bytes` from `offset` on to a rank.
    pub fn send(&mut self, from: &'a Buffer, offset: usize, bytes: usize, to: usize) {
        self.sent.push(Piece { rank: to, at: from.at(offset, bytes), bytes });
    }

    /// Receives `bytes` of a rank, from `offset` on.
    pub fn receive(&mut self, into: &'a mut Buffer, offset: usize, bytes: usize, from: usize) {
        self.received.push(Piece { rank: from, at: into.at(offset, bytes), bytes });
    }

    /// Sends the part of a buffer that belongs to `rank` to all others, and receives theirs; `parts` are first byte and
    /// bytes of each rank's.
    ///
    /// # Panics
    /// If two parts overlap.
    pub fn share(&mut self, buffer: &'a mut Buffer, parts: &[(usize, usize)], rank: usize) {
        let apart = parts.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(apart, "parts of a buffer that overlap: {parts:?}");
        let piece =
            |of: usize, with: usize| Piece { rank: with, at: buffer.at(parts[of].0, parts[of].1), bytes: parts[of].1 };
        for other in (0..parts.len()).filter(|other| *other != rank) {
            self.sent.push(piece(rank, other));
            self.received.push(piece(other, other));
        }
    }
}

/// A rank's way to the others.
pub trait Transport: Send + Sync {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Moves pieces behind all that the rank's driver was asked for before, and before what comes next. All ranks call
    /// it, with pieces that fit each other's.
    fn exchange(&self, pieces: Pieces) -> Result<(), Fault>;
}

/// Pieces copied to the host, handed to the other rank's thread and copied from there.
pub struct Copies {
    rank: usize,
    driver: Arc<dyn Driver>,
    to: Vec<Sender<Vec<u8>>>,
    from: Vec<Mutex<Receiver<Vec<u8>>>>,
}

impl Copies {
    /// A world with a rank for each of the drivers.
    pub fn between(drivers: &[Arc<dyn Driver>]) -> Vec<Copies> {
        let world = drivers.len();
        let mut ranks: Vec<Copies> = Vec::with_capacity(world);
        for (rank, driver) in drivers.iter().enumerate() {
            ranks.push(Copies { rank, driver: driver.clone(), to: Vec::new(), from: Vec::new() });
        }
        for from in 0..world {
            for to in 0..world {
                let (sender, receiver) = channel();
                ranks[from].to.push(sender);
                ranks[to].from.push(Mutex::new(receiver));
            }
        }
        ranks
    }
}

impl Transport for Copies {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.to.len()
    }

    fn exchange(&self, pieces: Pieces) -> Result<(), Fault> {
        let gone = |rank: usize| Fault::Call { call: "exchange", reason: format!("rank {rank} is gone") };
        for Piece { rank, at, bytes } in pieces.sent {
            let mut message = vec![0; bytes];
            if bytes > 0 {
                self.driver.copy_out(at, &mut message)?;
            }
            self.to[rank].send(message).map_err(|_| gone(rank))?;
        }
        for Piece { rank, at, bytes } in pieces.received {
            let message = self.from[rank].lock().unwrap_or_else(PoisonError::into_inner).recv();
            let message = message.map_err(|_| gone(rank))?;
            assert_eq!(message.len(), bytes, "bytes that rank {rank} sends to rank {}", self.rank);
            if bytes > 0 {
                self.driver.copy_in(at, &message)?;
            }
        }
        Ok(())
    }
}

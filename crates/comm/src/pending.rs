//! Operations that were begun, while the rank does something else.

use crate::Lost;

/// What the ranks have sent to this one, by rank, or a loss.
type Received = Result<Vec<Vec<u8>>, Lost>;

/// An operation of a [`Comm`](crate::Comm) that was begun.
#[must_use = "what comes is to be waited for"]
pub struct Pending(State);

enum State {
    Done(Received),
    UnderWay(Box<dyn Arrival>),
}

/// What a [`Pending`] of some kind of world waits for.
pub trait Arrival: Send {
    /// Whether [`Arrival::wait`] returns at once.
    fn has_come(&mut self) -> bool;

    /// What has come.
    ///
    /// # Errors
    /// [`Lost`].
    fn wait(self: Box<Self>) -> Result<Vec<Vec<u8>>, Lost>;
}

impl Pending {
    /// Of an operation that is done.
    pub fn done(received: Result<Vec<Vec<u8>>, Lost>) -> Pending {
        Pending(State::Done(received))
    }

    /// Of one that is under way.
    pub fn under_way(arrival: impl Arrival + 'static) -> Pending {
        Pending(State::UnderWay(Box::new(arrival)))
    }

    /// Whether [`Pending::wait`] returns at once.
    pub fn has_come(&mut self) -> bool {
        match &mut self.0 {
            State::Done(_) => true,
            State::UnderWay(arrival) => arrival.has_come(),
        }
    }

    /// What the ranks have sent to this one, by rank.
    ///
    /// # Errors
    /// [`Lost`].
    pub fn wait(self) -> Result<Vec<Vec<u8>>, Lost> {
        match self.0 {
            State::Done(received) => received,
            State::UnderWay(arrival) => arrival.wait(),
        }
    }
}

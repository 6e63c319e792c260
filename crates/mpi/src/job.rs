//! What the thread that calls MPI is asked for.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::time::Duration;

use wels_comm::Lost;

/// A wish, and where its result goes.
pub(crate) enum Job {
    Exchange { route: Route, send: Outgoing, done: Sender<Result<Vec<Vec<u8>>, Lost>> },
    Leave { patience: Option<Duration>, done: Sender<bool> },
    Abort { code: i32 },
}

/// What is known once MPI has started.
pub(crate) struct Started {
    pub rank: usize,
    /// By rank.
    pub hosts: Vec<String>,
}

/// What becomes of a rank that is silent.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    /// Milliseconds after which its loss is told; 0 where it ends the world.
    told_after_ms: AtomicU64,
    /// The first one that was told of.
    told: OnceLock<usize>,
}

impl Losses {
    /// From now on losses are told after so much silence.
    pub fn tell_after(&self, silence: Duration) {
        self.told_after_ms.store(silence.as_millis() as u64, Ordering::Relaxed);
    }

    pub fn told_after(&self) -> Option<Duration> {
        Some(self.told_after_ms.load(Ordering::Relaxed)).filter(|ms| *ms > 0).map(Duration::from_millis)
    }

    pub fn tell(&self, rank: usize) {
        self.told.get_or_init(|| rank);
    }

    pub fn lost(&self) -> Option<usize> {
        self.told.get().copied()
    }
}

/// Who sends to whom. Each rank has a message for itself too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    All,
    ToFirst,
    FromFirst,
}

impl Route {
    /// Whether a rank sends to another.
    pub fn sends(self, from: usize, to: usize) -> bool {
        match self {
            Route::All => true,
            Route::ToFirst => to == 0,
            Route::FromFirst => from == 0,
        }
    }
}

/// What a rank sends.
pub(crate) enum Outgoing {
    /// To each rank its own.
    Each(Vec<Vec<u8>>),
    /// To all the same.
    Same(Vec<u8>),
}

impl Outgoing {
    /// The message for a rank.
    pub fn to(&self, rank: usize) -> &[u8] {
        match self {
            Outgoing::Each(messages) => &messages[rank],
            Outgoing::Same(message) => message,
        }
    }

    /// The message of a rank for itself.
    pub fn into_own(self, rank: usize) -> Vec<u8> {
        match self {
            Outgoing::Each(mut messages) => messages.swap_remove(rank),
            Outgoing::Same(message) => message,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_those_of_the_operations() {
        let pairs = |route: Route| (0..9).filter(|pair| route.sends(pair / 3, pair % 3)).collect::<Vec<_>>();
        assert_eq!(pairs(Route::All), (0..9).collect::<Vec<_>>());
        assert_eq!(pairs(Route::ToFirst), [0, 3, 6]);
        assert_eq!(pairs(Route::FromFirst), [0, 1, 2]);
    }
}

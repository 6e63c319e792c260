//! A world of threads of one process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::{Comm, Lost};

/// A rank among threads. When it is dropped before all ranks have come to the end of their work, the others' operations
/// fail; so each thread owns its rank.
pub struct Threads {
    rank: usize,
    rendezvous: Arc<Rendezvous>,
}

struct Rendezvous {
    world: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// What each rank has brought to this rendezvous.
    brought: Vec<Option<Vec<Vec<u8>>>>,
    /// What each rank has not fetched yet.
    waiting: Vec<Option<Vec<Vec<u8>>>>,
    lost: Option<usize>,
}

/// A world of `count` ranks, one for each thread that is to have one.
pub fn threads(count: usize) -> Vec<Threads> {
    let state = State { brought: vec![None; count], waiting: vec![None; count], lost: None };
    let rendezvous = Arc::new(Rendezvous { world: count, state: Mutex::new(state), changed: Condvar::new() });
    (0..count).map(|rank| Threads { rank, rendezvous: rendezvous.clone() }).collect()
}

impl Rendezvous {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Waits until `ready` finds what it waits for.
    fn wait<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> Result<T, Lost> {
        let mut state = self.lock();
        loop {
            if let Some(found) = ready(&mut state) {
                return Ok(found);
            }
            if let Some(rank) = state.lost {
                return Err(Lost { rank, world: self.world });
            }
            state = self.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Comm for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.rendezvous.world
    }

    fn lost(&self) -> Option<Lost> {
        self.rendezvous.lock().lost.map(|rank| Lost { rank, world: self.world() })
    }

    fn give_up(&self) {
        self.rendezvous.lock().lost.get_or_insert(self.rank);
        self.rendezvous.changed.notify_all();
    }

    fn all_to_all(&self, send: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, Lost> {
        assert_eq!(send.len(), self.world(), "a message for each rank");
        let mut send = Some(send);
        // The place is free when everybody has come to the rendezvous before.
        self.rendezvous.wait(|state| {
            if state.brought[self.rank].is_some() {
                return None;
            }
            state.brought[self.rank] = send.take();
            if state.brought.iter().all(Option::is_some) {
                hand_out(state);
            }
            Some(())
        })?;
        self.rendezvous.changed.notify_all();
        let received = self.rendezvous.wait(|state| state.waiting[self.rank].take())?;
        self.rendezvous.changed.notify_all();
        Ok(received)
    }
}

/// Turns what the ranks brought into what they fetch.
fn hand_out(state: &mut State) {
    let mut brought: Vec<_> =
        state.brought.iter_mut().map(|of| of.take().expect("all have come").into_iter()).collect();
    for waiting in &mut state.waiting {
        *waiting = Some(brought.iter_mut().map(|of| of.next().expect("a message for each rank")).collect());
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_in_order_of_the_ranks() {
        std::thread::scope(|scope| {
            for comm in threads(4) {
                scope.spawn(move || {
                    for round in 0..200u8 {
                        let send = (0..4).map(|to| vec![round, comm.rank() as u8, to]).collect();
                        let received = comm.all_to_all(send).unwrap();
                        let expected: Vec<Vec<u8>> = (0..4).map(|from| vec![round, from, comm.rank() as u8]).collect();
                        assert_eq!(received, expected);
                    }
                    let mine = vec![comm.rank() as u8];
                    let gathered =
                        if comm.rank() == 0 { vec![vec![0], vec![1], vec![2], vec![3]] } else { vec![vec![]; 4] };
                    assert_eq!(comm.gather(mine.clone()).unwrap(), gathered);
                    assert_eq!(comm.broadcast(mine).unwrap(), [0]);
                    let each = if comm.rank() == 0 { vec![vec![4], vec![5], vec![6], vec![7]] } else { vec![] };
                    assert_eq!(comm.scatter(each).unwrap(), [4 + comm.rank() as u8]);
                    comm.barrier().unwrap();
                });
            }
        });
    }

    #[test]
    fn a_rank_that_panics_ends_the_others() {
        let mut ranks = threads(3);
        let (third, second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap(), ranks.pop().unwrap());
        std::thread::scope(|scope| {
            let waiting = [first, second].map(|comm| {
                scope.spawn(move || {
                    comm.barrier().unwrap();
                    (comm.barrier(), comm.barrier())
                })
            });
            let panics = scope.spawn(move || {
                third.barrier().unwrap();
                panic!("as planned");
            });
            assert!(panics.join().is_err());
            for thread in waiting {
                let (then, later) = thread.join().unwrap();
                assert!(matches!(then, Err(Lost { world: 3, .. })), "{then:?}");
                assert!(later.is_err());
            }
        });
        assert_eq!(Lost { rank: 2, world: 3 }.to_string(), "rank 2 of 3 has ended before the others");
    }

    #[test]
    fn what_was_sent_before_a_rank_left_still_arrives() {
        let mut ranks = threads(2);
        let (second, first) = (ranks.pop().unwrap(), ranks.pop().unwrap());
        std::thread::scope(|scope| {
            let other = scope.spawn(move || second.all_gather(vec![2]).unwrap());
            assert_eq!(first.all_gather(vec![1]).unwrap(), [[1], [2]]);
            assert_eq!(other.join().unwrap(), [[1], [2]]);
        });
    }
}

//! A world of threads of one process.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::{Arrival, Comm, Lost, Pending};

/// A rank among threads. When it is dropped before all ranks have come to the end of their work, the others' operations
/// fail; so each thread owns its rank.
pub struct Threads {
    rank: usize,
    /// Operations that this rank has begun.
    begun: AtomicU64,
    rendezvous: Arc<Rendezvous>,
}

struct Rendezvous {
    world: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Operations whose results some rank may still want, in order.
    rounds: VecDeque<Round>,
    /// The number of the first of them.
    first: u64,
    lost: Option<usize>,
}

/// What the ranks bring to one operation.
struct Round {
    /// Of each rank that has begun it, its messages.
    brought: Vec<Option<Vec<Vec<u8>>>>,
    /// How many ranks still may want theirs.
    waiting: usize,
}

/// A world of `count` ranks, one for each thread that is to have one.
pub fn threads(count: usize) -> Vec<Threads> {
    let rendezvous = Rendezvous { world: count, state: Mutex::default(), changed: Condvar::new() };
    let rendezvous = Arc::new(rendezvous);
    (0..count).map(|rank| Threads { rank, begun: AtomicU64::new(0), rendezvous: rendezvous.clone() }).collect()
}

impl Rendezvous {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn lost(&self, rank: usize) -> Lost {
        Lost { rank, world: self.world }
    }
}

impl State {
    fn round(&mut self, number: u64, world: usize) -> &mut Round {
        let place = (number - self.first) as usize;
        while self.rounds.len() <= place {
            self.rounds.push_back(Round { brought: vec![None; world], waiting: world });
        }
        &mut self.rounds[place]
    }

    /// What all ranks have brought for one, if they have.
    fn fetch(&mut self, number: u64, rank: usize) -> Option<Vec<Vec<u8>>> {
        let round = self.rounds.get_mut((number - self.first) as usize)?;
        if !round.is_complete() {
            return None;
        }
        let of_rank =
            |brought: &mut Option<Vec<Vec<u8>>>| std::mem::take(&mut brought.as_mut().expect("a complete round")[rank]);
        Some(round.brought.iter_mut().map(of_rank).collect())
    }

    /// A rank that wants no more of one.
    fn leave(&mut self, number: u64) {
        self.rounds[(number - self.first) as usize].waiting -= 1;
        while self.rounds.front().is_some_and(|round| round.waiting == 0) {
            self.rounds.pop_front();
            self.first += 1;
        }
    }
}

impl Round {
    fn is_complete(&self) -> bool {
        self.brought.iter().all(Option::is_some)
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
        self.rendezvous.lock().lost.map(|rank| self.rendezvous.lost(rank))
    }

    fn give_up(&self) {
        self.rendezvous.lock().lost.get_or_insert(self.rank);
        self.rendezvous.changed.notify_all();
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        assert_eq!(send.len(), self.world(), "a message for each rank");
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        self.rendezvous.lock().round(number, self.world()).brought[self.rank] = Some(send);
        self.rendezvous.changed.notify_all();
        Pending::under_way(Fetch { rank: self.rank, number, rendezvous: self.rendezvous.clone() })
    }
}

/// What a rank waits for.
struct Fetch {
    rank: usize,
    number: u64,
    rendezvous: Arc<Rendezvous>,
}

impl Arrival for Fetch {
    fn has_come(&mut self) -> bool {
        let mut state = self.rendezvous.lock();
        state.lost.is_some() || state.round(self.number, self.rendezvous.world).is_complete()
    }

    fn wait(self: Box<Self>) -> Result<Vec<Vec<u8>>, Lost> {
        let rendezvous = &*self.rendezvous;
        let mut state = rendezvous.lock();
        loop {
            if let Some(received) = state.fetch(self.number, self.rank) {
                return Ok(received);
            }
            if let Some(rank) = state.lost {
                return Err(rendezvous.lost(rank));
            }
            state = rendezvous.changed.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        self.rendezvous.lock().leave(self.number);
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
    fn operations_that_were_begun_are_waited_for_in_any_order() {
        std::thread::scope(|scope| {
            for comm in threads(3) {
                scope.spawn(move || {
                    for round in 0..100u8 {
                        let mut begun: Vec<(u8, Pending)> =
                            (0..4).map(|i| (i, comm.begin_all_gather(vec![round, i, comm.rank() as u8]))).collect();
                        // Each rank in an order of its own.
                        begun.rotate_left(comm.rank());
                        for (i, mut pending) in begun.into_iter().rev() {
                            while !pending.has_come() {
                                std::thread::yield_now();
                            }
                            let expected: Vec<Vec<u8>> = (0..3).map(|from| vec![round, i, from]).collect();
                            assert_eq!(pending.wait().unwrap(), expected);
                        }
                        assert!(comm.rendezvous.lock().rounds.len() <= 8, "rounds are forgotten");
                    }
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

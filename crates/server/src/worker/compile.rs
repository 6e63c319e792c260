//! Constraints are compiled beside the engine, by few threads: of each key one at a time, and keys take turns. So the
//! schemas of one key hold up no other key's.
//!
//! A compilation under way cannot be interrupted; the engine bounds its size. One whose client has left is not begun.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::mpsc as commands;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use wels_engine::{Prepared, Request, RequestError};

use super::{Command, Prepare, Reply};

/// Threads: with two, a key whose schema takes long leaves the other one to the rest.
const THREADS: usize = 2;
/// Requests of one key that may wait.
const OF_KEY_MAX: usize = 8;
/// Requests that may wait in all.
const WAITING_MAX: usize = 64;
/// Weight of the newest compilation in the mean of how long they take.
const NEWEST: f64 = 0.2;

/// Requests of which some have a constraint.
pub(super) struct Constrained {
    pub requests: Vec<Request>,
    pub reply: Reply,
}

/// Why a request may not wait for its constraint to be compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull {
    /// Its own key has too many waiting; else all keys together.
    pub by_key: bool,
    pub waiting: usize,
    /// When it makes sense to try again.
    pub retry_after_s: u64,
}

/// What waits, shared with the threads, which end with it.
pub(super) struct Compiler(Arc<Shared>);

struct Shared {
    queues: Mutex<Queues>,
    changed: Condvar,
}

#[derive(Default)]
struct Queues {
    /// By key; a key without waiting requests has none.
    waiting: HashMap<i64, VecDeque<Constrained>>,
    /// Keys that wait and of which none is being compiled, the next one first.
    turns: VecDeque<i64>,
    compiling: HashSet<i64>,
    mean_s: f64,
    ended: bool,
}

impl Queues {
    /// Why requests of a key find no room, if they find none.
    fn full(&mut self, key: i64) -> Option<QueueFull> {
        // Those whose clients have left wait for nothing.
        self.waiting.values_mut().for_each(|queue| queue.retain(|waiting| !waiting.reply.is_closed()));
        let all: usize = self.waiting.values().map(VecDeque::len).sum();
        let of_key = self.waiting.get(&key).map_or(0, VecDeque::len);
        let by_key = of_key >= OF_KEY_MAX;
        if !by_key && all < WAITING_MAX {
            return None;
        }
        let (waiting, threads) = if by_key { (of_key, 1) } else { (all, THREADS) };
        let wait_s = self.mean_s * (waiting + 1) as f64 / threads as f64;
        Some(QueueFull { by_key, waiting, retry_after_s: (wait_s.ceil() as u64).max(1) })
    }
}

impl Compiler {
    /// Starts the threads. What is ready goes to the engine through `sender`.
    pub fn start(prepare: &Prepare, sender: &commands::Sender<Command>) -> std::io::Result<Compiler> {
        let shared = Arc::new(Shared { queues: Mutex::default(), changed: Condvar::new() });
        for _ in 0..THREADS {
            let (shared, prepare, sender) = (Arc::clone(&shared), Arc::clone(prepare), sender.clone());
            let thread = std::thread::Builder::new().name("constraints".to_owned());
            thread.spawn(move || work(&shared, &prepare, &sender))?;
        }
        Ok(Compiler(shared))
    }

    /// Whether requests of a key would find no room.
    pub fn is_full(&self, key: i64) -> bool {
        self.0.lock().full(key).is_some()
    }

    /// Lets requests of a key wait for their turn, if there is room.
    pub fn push(&self, key: i64, constrained: Constrained) -> Result<(), QueueFull> {
        let mut queues = self.0.lock();
        if let Some(full) = queues.full(key) {
            return Err(full);
        }
        queues.waiting.entry(key).or_default().push_back(constrained);
        if !queues.compiling.contains(&key) && !queues.turns.contains(&key) {
            queues.turns.push_back(key);
        }
        self.0.changed.notify_one();
        Ok(())
    }
}

impl Drop for Compiler {
    fn drop(&mut self) {
        self.0.lock().ended = true;
        self.0.changed.notify_all();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next request, and its key's turn, which lasts until it is dropped; `None` at the end.
    fn next(&self) -> Option<(Turn<'_>, Constrained)> {
        let mut queues = self.lock();
        loop {
            if queues.ended {
                return None;
            }
            let Some(key) = queues.turns.pop_front() else {
                queues = self.changed.wait(queues).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            match queues.waiting.get_mut(&key).and_then(VecDeque::pop_front) {
                Some(constrained) => {
                    queues.compiling.insert(key);
                    return Some((Turn { shared: self, key, begun: Instant::now() }, constrained));
                }
                None => drop(queues.waiting.remove(&key)),
            }
        }
    }
}

/// A key's turn. It ends when this is dropped, also by a panic.
struct Turn<'s> {
    shared: &'s Shared,
    key: i64,
    begun: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let mut queues = self.shared.lock();
        queues.mean_s += NEWEST * (self.begun.elapsed().as_secs_f64() - queues.mean_s);
        queues.compiling.remove(&self.key);
        match queues.waiting.get(&self.key).is_some_and(|queue| !queue.is_empty()) {
            true => queues.turns.push_back(self.key),
            false => drop(queues.waiting.remove(&self.key)),
        }
        self.shared.changed.notify_one();
    }
}

fn work(shared: &Shared, prepare: &Prepare, sender: &commands::Sender<Command>) {
    while let Some((turn, Constrained { requests, reply })) = shared.next() {
        if reply.is_closed() {
            continue; // whoever asked is gone
        }
        let prepared = prepare_all(requests, prepare);
        drop(turn);
        // Whoever asked may be gone by now; the engine's thread notices.
        let _ = match prepared {
            Ok(requests) => sender.send(Command::Enqueue { requests, reply }).is_ok(),
            Err(refusal) => reply.send(Err(refusal)).is_ok(),
        };
    }
}

/// A constraint that several requests share is compiled once.
fn prepare_all(requests: Vec<Request>, prepare: &Prepare) -> Result<Vec<Prepared>, RequestError> {
    let mut prepared: Vec<Prepared> = Vec::with_capacity(requests.len());
    for request in requests {
        let twin = prepared.last().and_then(|last| last.twin(&request));
        prepared.push(match twin {
            Some(twin) => twin,
            None => prepare(request)?,
        });
    }
    Ok(prepared)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;
    use wels_engine::Constraint;

    type Answer = oneshot::Receiver<Result<super::super::Ticket, RequestError>>;

    fn constrained(name: u64) -> (Constrained, Answer) {
        let (reply, answer) = oneshot::channel();
        let mut request = Request::new(vec![1], 1);
        request.constraint = Some(Constraint::JsonObject);
        request.sampling.seed = name;
        (Constrained { requests: vec![request], reply }, answer)
    }

    /// A compiler that says what it begins, and goes on when it is told to.
    fn gated() -> (Compiler, commands::Receiver<u64>, commands::Sender<()>) {
        let (begun, begins) = commands::channel();
        let (go, gate) = commands::channel::<()>();
        let gate = Mutex::new(gate);
        let prepare: Prepare = Arc::new(move |request: Request| {
            // The test may have ended, and with it the other ends.
            let _ = begun.send(request.sampling.seed);
            let _ = gate.lock().unwrap().recv();
            Err(RequestError::EmptyPrompt)
        });
        let (sender, _) = commands::channel();
        (Compiler::start(&prepare, &sender).unwrap(), begins, go)
    }

    #[test]
    fn keys_take_turns_and_one_alone_cannot_fill_the_queue() {
        let (compiler, begins, go) = gated();
        let mut answers = Vec::new();
        let mut push = |key: i64, name: u64| {
            let (constrained, answer) = constrained(name);
            answers.push(answer);
            compiler.push(key, constrained)
        };
        push(1, 10).unwrap();
        assert_eq!(begins.recv().unwrap(), 10);
        for name in 11..11 + OF_KEY_MAX as u64 {
            push(1, name).unwrap();
        }
        let full = push(1, 99).unwrap_err();
        assert!(full.by_key && full.waiting == OF_KEY_MAX && full.retry_after_s >= 1, "{full:?}");
        // The other thread is another key's, although nine of the first key's were there before.
        push(2, 20).unwrap();
        assert_eq!(begins.recv().unwrap(), 20);
        push(2, 21).unwrap();
        push(3, 30).unwrap();
        // Both threads end what they do; then it is the third key's turn, and one of the others'.
        go.send(()).unwrap();
        go.send(()).unwrap();
        let mut next = [begins.recv().unwrap(), begins.recv().unwrap()];
        next.sort();
        assert_eq!(next[1], 30, "the third key does not wait for all of the first key's: {next:?}");
    }

    #[test]
    fn requests_whose_clients_left_are_not_begun_and_take_no_room() {
        let (compiler, begins, go) = gated();
        let (first, _kept) = constrained(1);
        compiler.push(1, first).unwrap();
        assert_eq!(begins.recv().unwrap(), 1);
        for name in 2..2 + 3 * OF_KEY_MAX as u64 {
            let (gone, answer) = constrained(name);
            drop(answer);
            compiler.push(1, gone).unwrap();
        }
        let (last, answer) = constrained(1000);
        compiler.push(1, last).unwrap();
        go.send(()).unwrap();
        assert_eq!(begins.recv().unwrap(), 1000);
        go.send(()).unwrap();
        assert!(matches!(answer.blocking_recv(), Ok(Err(RequestError::EmptyPrompt))));
    }
}

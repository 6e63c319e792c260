//! Which models' weights are in memory. A model is loaded when it is first asked for; where there is no room for it,
//! the models that have been unused the longest are unloaded first, each once its requests have ended.
//!
//! Models that are waited for take turns in the order in which they were first asked for. From the moment at which a
//! model is chosen to make room, new requests for it wait for its own next turn. So every turn serves all that wait for
//! its model, and none waits longer than the turns before its own.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::worker::{Snapshot, Worker};

/// How a model is loaded; why it cannot be is for the log.
pub type Load = Box<dyn Fn() -> Result<Worker, String> + Send>;

/// A model that can be loaded.
pub struct Loadable {
    /// For the log.
    pub name: String,
    /// Bytes of memory that it takes: weights, KV cache, results of operations.
    pub bytes: u64,
    /// If it is loaded already.
    pub loaded: Option<Worker>,
    pub load: Load,
}

/// What may be set about the loading.
#[derive(Clone, Copy, Debug)]
pub struct LoaderSettings {
    /// Bytes that all loaded models may take together. A model that takes more alone is loaded once no other is.
    pub memory_bytes: u64,
    /// A model that has been unused for so long is unloaded.
    pub unload_after: Option<Duration>,
    /// Requests that may wait for one model to be loaded.
    pub waiting_max: usize,
}

/// Why there is no lease.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotLoaded {
    /// So many requests wait for the model already.
    Full { waiting: usize },
    /// The log says why.
    Failed,
}

/// A handle to the loader's thread, which ends with it, and with the thread all engines.
pub struct Loader {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    settings: LoaderSettings,
}

struct State {
    slots: Vec<Slot>,
    /// Models that somebody waits for.
    turns: VecDeque<usize>,
    ended: bool,
}

struct Slot {
    bytes: u64,
    /// While it is loaded.
    worker: Option<Arc<Worker>>,
    leases: usize,
    /// It gives no new leases, and is unloaded when it has none.
    leaving: bool,
    last_used: Instant,
    waiting: Vec<oneshot::Sender<Result<Lease, NotLoaded>>>,
}

/// A loaded model, which stays loaded until this is dropped.
pub struct Lease {
    worker: Arc<Worker>,
    model: usize,
    shared: Arc<Shared>,
}

impl std::ops::Deref for Lease {
    type Target = Worker;

    fn deref(&self) -> &Worker {
        &self.worker
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        let slot = &mut state.slots[self.model];
        slot.leases -= 1;
        slot.last_used = Instant::now();
        if slot.leases == 0 {
            self.shared.changed.notify_one();
        }
    }
}

impl Loader {
    /// Starts the thread.
    pub fn start(mut models: Vec<Loadable>, settings: LoaderSettings) -> std::io::Result<Loader> {
        let slot = |model: &mut Loadable| Slot {
            bytes: model.bytes,
            worker: model.loaded.take().map(Arc::new),
            leases: 0,
            leaving: false,
            last_used: Instant::now(),
            waiting: Vec::new(),
        };
        let state = State { slots: models.iter_mut().map(slot).collect(), turns: VecDeque::new(), ended: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new(), settings });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new().name("loader".to_owned()).spawn(move || while turn(&theirs, &models) {})?;
        Ok(Loader { shared })
    }

    /// The model with this number, once it is loaded.
    pub async fn lease(&self, model: usize) -> Result<Lease, NotLoaded> {
        let answer = {
            let mut state = self.shared.lock();
            let state = &mut *state;
            let slot = &mut state.slots[model];
            if let Some(worker) = slot.worker.as_ref().filter(|_| !slot.leaving) {
                slot.leases += 1;
                return Ok(Lease { worker: Arc::clone(worker), model, shared: Arc::clone(&self.shared) });
            }
            slot.waiting.retain(|waiting| !waiting.is_closed());
            if slot.waiting.len() >= self.shared.settings.waiting_max {
                return Err(NotLoaded::Full { waiting: slot.waiting.len() });
            }
            let (sender, answer) = oneshot::channel();
            slot.waiting.push(sender);
            if !state.turns.contains(&model) {
                state.turns.push_back(model);
            }
            self.shared.changed.notify_one();
            answer
        };
        // A thread that ends lets go of those who wait.
        answer.await.unwrap_or(Err(NotLoaded::Failed))
    }

    /// What the model's engine is at, if it is loaded, and how many wait for that.
    pub fn status(&self, model: usize) -> (Option<Snapshot>, usize) {
        let state = self.shared.lock();
        let slot = &state.slots[model];
        let waiting = slot.waiting.iter().filter(|waiting| !waiting.is_closed()).count();
        (slot.worker.as_ref().map(|worker| worker.snapshot()), waiting)
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>, at_most: Option<Duration>) -> MutexGuard<'a, State> {
        match at_most {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(time) => self.changed.wait_timeout(state, time).unwrap_or_else(PoisonError::into_inner).0,
        }
    }

    /// Ends a model's turn: with a loaded model for all who wait, or without.
    fn answer(self: &Arc<Shared>, model: usize, loaded: Result<Arc<Worker>, NotLoaded>) {
        let mut state = self.lock();
        state.turns.retain(|waiting| *waiting != model);
        let slot = &mut state.slots[model];
        let waiting = std::mem::take(&mut slot.waiting);
        if let Ok(worker) = &loaded {
            slot.leases += waiting.len();
            slot.leaving = false;
            slot.last_used = Instant::now();
            slot.worker = Some(Arc::clone(worker));
        }
        drop(state);
        for sender in waiting {
            let lease = |worker: &Arc<Worker>| Lease { worker: Arc::clone(worker), model, shared: Arc::clone(self) };
            // A lease that nobody takes any more is dropped here, which gives it back.
            let _ = sender.send(loaded.as_ref().map(lease).map_err(NotLoaded::clone));
        }
    }
}

/// What the thread does next.
enum Step {
    /// Nothing, until something changes or so much time has passed.
    Wait(Option<Duration>),
    Load(usize),
    Unload(usize, Arc<Worker>),
    /// Whom a model that is loaded serves.
    Grant(usize, Arc<Worker>),
    End,
}

/// Does one thing; whether there may be more.
fn turn(shared: &Arc<Shared>, models: &[Loadable]) -> bool {
    let mut state = shared.lock();
    match state.next(&shared.settings) {
        Step::End => {
            let slots = state.slots.iter_mut();
            let (workers, waiting): (Vec<_>, Vec<_>) =
                slots.map(|slot| (slot.worker.take(), std::mem::take(&mut slot.waiting))).unzip();
            drop((state, waiting));
            workers.iter().flatten().for_each(|worker| worker.end());
            return false;
        }
        Step::Wait(at_most) => drop(shared.wait(state, at_most)),
        Step::Grant(model, worker) => {
            drop(state);
            shared.answer(model, Ok(worker));
        }
        Step::Unload(model, worker) => {
            drop(state);
            tracing::info!(model = models[model].name, "a model is unloaded");
            worker.end();
            drop(worker);
            wels_engine::give_free_back();
        }
        Step::Load(model) => {
            drop(state);
            shared.answer(model, load(&models[model]).map(Arc::new));
        }
    }
    true
}

/// Loads a model; what goes wrong is logged.
fn load(model: &Loadable) -> Result<Worker, NotLoaded> {
    let begin = Instant::now();
    let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(&model.load));
    match loaded.unwrap_or_else(|_| Err("the program failed".to_owned())) {
        Ok(worker) => {
            let seconds = begin.elapsed().as_secs_f64();
            tracing::info!(model = model.name, seconds, mib = model.bytes >> 20, "a model is loaded");
            Ok(worker)
        }
        Err(error) => {
            tracing::error!(model = model.name, error, "a model cannot be loaded");
            Err(NotLoaded::Failed)
        }
    }
}

impl State {
    fn next(&mut self, settings: &LoaderSettings) -> Step {
        if self.ended {
            return Step::End;
        }
        let Some(&model) = self.turns.front() else { return self.idle(settings.unload_after) };
        let slot = &mut self.slots[model];
        slot.waiting.retain(|waiting| !waiting.is_closed());
        if slot.waiting.is_empty() {
            self.turns.pop_front();
            self.stay();
            return self.next(settings);
        }
        match &slot.worker {
            Some(worker) => Step::Grant(model, Arc::clone(worker)),
            None => self.make_room(model, settings.memory_bytes),
        }
    }

    /// Nobody waits: unloads what has been unused for too long.
    fn idle(&mut self, unload_after: Option<Duration>) -> Step {
        let Some(after) = unload_after else { return Step::Wait(None) };
        let unused = self.slots.iter().enumerate().filter(|(_, slot)| slot.worker.is_some() && slot.leases == 0);
        let Some((model, slot)) = unused.min_by_key(|(_, slot)| slot.last_used) else { return Step::Wait(None) };
        match after.checked_sub(slot.last_used.elapsed()).filter(|left| !left.is_zero()) {
            Some(left) => Step::Wait(Some(left)),
            None => self.unload(model),
        }
    }

    /// Nobody waits any more for the room that these would make.
    fn stay(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.leaving = false);
    }

    fn make_room(&mut self, model: usize, memory_bytes: u64) -> Step {
        let loaded = |slot: &&Slot| slot.worker.is_some();
        let kept: u64 = self.slots.iter().filter(loaded).filter(|slot| !slot.leaving).map(|slot| slot.bytes).sum();
        let mut too_many = (kept + self.slots[model].bytes).saturating_sub(memory_bytes);
        let mut by_use: Vec<usize> = (0..self.slots.len()).collect();
        by_use.sort_by_key(|at| (self.slots[*at].leases > 0, self.slots[*at].last_used));
        for at in by_use {
            let slot = &mut self.slots[at];
            if too_many > 0 && slot.worker.is_some() && !slot.leaving {
                slot.leaving = true;
                too_many = too_many.saturating_sub(slot.bytes);
            }
        }
        match self.slots.iter().position(|slot| slot.leaving && slot.worker.is_some() && slot.leases == 0) {
            Some(at) => self.unload(at),
            None if self.slots.iter().any(|slot| slot.leaving) => Step::Wait(None),
            None => Step::Load(model),
        }
    }

    fn unload(&mut self, model: usize) -> Step {
        let slot = &mut self.slots[model];
        slot.leaving = false;
        let worker = slot.worker.take().expect("only loaded models are unloaded");
        Step::Unload(model, worker)
    }
}

#[cfg(test)]
mod tests;

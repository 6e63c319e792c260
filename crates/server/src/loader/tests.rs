//! With engines that do nothing but take memory.

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use proptest::prelude::*;
use wels_engine::{Event, Prepared, RequestError, RequestId, Status};

use super::*;
use crate::worker::{Backend, Prepare};

/// What all models of a test have loaded.
#[derive(Default)]
struct Memory {
    /// Bytes of the models that are loaded.
    used: AtomicUsize,
    /// The most that there were.
    most: AtomicUsize,
    /// Names, as they are loaded and unloaded.
    log: Mutex<Vec<String>>,
}

impl Memory {
    fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }
}

/// An engine that does nothing but take memory.
struct Idle {
    name: String,
    bytes: usize,
    memory: Arc<Memory>,
}

impl Idle {
    fn new(name: &str, bytes: usize, memory: &Arc<Memory>) -> Idle {
        let used = memory.used.fetch_add(bytes, SeqCst) + bytes;
        memory.most.fetch_max(used, SeqCst);
        memory.log.lock().unwrap().push(format!("+{name}"));
        Idle { name: name.to_owned(), bytes, memory: Arc::clone(memory) }
    }
}

impl Drop for Idle {
    fn drop(&mut self) {
        self.memory.used.fetch_sub(self.bytes, SeqCst);
        self.memory.log.lock().unwrap().push(format!("-{}", self.name));
    }
}

impl Backend for Idle {
    fn preparer(&self) -> Prepare {
        Arc::new(|_| Err(RequestError::EmptyPrompt))
    }

    fn enqueue(&mut self, _: Prepared) -> Result<RequestId, RequestError> {
        Err(RequestError::EmptyPrompt)
    }

    fn cancel(&mut self, _: RequestId) -> bool {
        false
    }

    fn step(&mut self) -> Vec<Event> {
        Vec::new()
    }

    fn is_idle(&self) -> bool {
        true
    }

    fn status(&self) -> Status {
        Status::default()
    }
}

fn settings(memory_bytes: u64) -> LoaderSettings {
    LoaderSettings { memory_bytes, unload_after: None, waiting_max: 64 }
}

/// Models of so many bytes each, called `a`, `b`, ….
fn loader(bytes: &[usize], settings: LoaderSettings) -> (Loader, Arc<Memory>) {
    let memory = Arc::new(Memory::default());
    let model = |(at, bytes): (usize, &usize)| {
        let (name, bytes, theirs) = (char::from(b'a' + at as u8).to_string(), *bytes, Arc::clone(&memory));
        let called = name.clone();
        let load = move || Worker::start(Idle::new(&called, bytes, &theirs)).map_err(|error| error.to_string());
        Loadable { name, bytes: bytes as u64, loaded: None, load: Box::new(load) }
    };
    let models = bytes.iter().enumerate().map(model).collect();
    (Loader::start(models, settings).unwrap(), memory)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// Waits until so many wait for a model.
fn until_waiting(loader: &Loader, model: usize, count: usize) {
    until(|| loader.status(model).1 == count);
}

/// Waits until a model makes room: the loader's thread has seen that another one is waited for.
fn until_leaving(loader: &Loader, model: usize) {
    until(|| loader.shared.lock().slots[model].leaving);
}

fn until(holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < Duration::from_secs(60), "what is waited for does not come");
        std::thread::yield_now();
    }
}

#[test]
fn what_was_unused_the_longest_makes_room() {
    let (runtime, (loader, memory)) = (runtime(), loader(&[4, 4, 4], settings(8)));
    let lease = |model: usize| runtime.block_on(loader.lease(model)).ok().unwrap();
    drop(lease(0));
    drop(lease(1));
    drop(lease(0));
    drop(lease(2));
    assert_eq!(memory.log(), ["+a", "+b", "-b", "+c"]);
    // A model that is in use stays, however long ago that began.
    let held = lease(0);
    drop(lease(2));
    drop(lease(1));
    assert_eq!(memory.log()[4..], ["-c", "+b"]);
    drop(held);
    assert_eq!(memory.most.load(SeqCst), 8);
    assert!(loader.status(0).0.is_some() && loader.status(2).0.is_none());
}

#[test]
fn models_take_turns_and_each_turn_serves_all_that_wait_for_its_model() {
    let (runtime, (loader, memory)) = (runtime(), loader(&[4, 4], settings(4)));
    let loader = Arc::new(loader);
    let ask = |model: usize| {
        let loader = Arc::clone(&loader);
        runtime.spawn(async move { loader.lease(model).await.ok().unwrap() })
    };
    let first = runtime.block_on(loader.lease(0)).ok().unwrap();
    let others = [ask(1), ask(1)];
    until_waiting(&loader, 1, 2);
    until_leaving(&loader, 0);
    // Whoever asks for the first model now waits, so that the second one's turn comes.
    let again = [ask(0), ask(0)];
    until_waiting(&loader, 0, 2);
    assert_eq!(memory.log(), ["+a"]);
    drop(first);
    for other in others {
        drop(runtime.block_on(other).unwrap());
    }
    for lease in again {
        drop(runtime.block_on(lease).unwrap());
    }
    assert_eq!(memory.log(), ["+a", "-a", "+b", "-b", "+a"]);
}

#[test]
fn a_model_whose_room_nobody_wants_any_more_stays() {
    let (runtime, (loader, memory)) = (runtime(), loader(&[4, 4], settings(4)));
    let loader = Arc::new(loader);
    let first = runtime.block_on(loader.lease(0)).ok().unwrap();
    let theirs = Arc::clone(&loader);
    let gone = runtime.spawn(async move { drop(theirs.lease(1).await) });
    until_leaving(&loader, 0);
    gone.abort();
    until_waiting(&loader, 1, 0);
    // It is asked for while it is leaving, and stays instead.
    let theirs = Arc::clone(&loader);
    let second = runtime.spawn(async move { theirs.lease(0).await.ok().unwrap() });
    drop(first);
    drop(runtime.block_on(second).unwrap());
    assert_eq!(memory.log(), ["+a"]);
}

#[test]
fn a_model_larger_than_all_memory_is_loaded_alone() {
    let (runtime, (loader, memory)) = (runtime(), loader(&[3, 9, 3], settings(8)));
    for model in [0, 2, 1, 0] {
        drop(runtime.block_on(loader.lease(model)).ok().unwrap());
    }
    assert_eq!(memory.log(), ["+a", "+c", "-a", "-c", "+b", "-b", "+a"]);
}

#[test]
fn a_failure_is_told_to_all_who_wait_and_the_next_one_tries_again() {
    let runtime = runtime();
    let (tries, memory) = (Arc::new(AtomicUsize::new(0)), Arc::new(Memory::default()));
    let load = move || match tries.fetch_add(1, SeqCst) {
        0 => Err("no file".to_owned()),
        1 => panic!("a broken file"),
        _ => Worker::start(Idle::new("a", 1, &memory)).map_err(|error| error.to_string()),
    };
    let model = Loadable { name: "a".to_owned(), bytes: 1, loaded: None, load: Box::new(load) };
    let loader = Loader::start(vec![model], settings(1)).unwrap();
    for _ in 0..2 {
        assert_eq!(runtime.block_on(loader.lease(0)).err(), Some(NotLoaded::Failed));
    }
    assert!(runtime.block_on(loader.lease(0)).is_ok());
}

#[test]
fn no_more_wait_than_may() {
    let (runtime, (loader, _)) = (runtime(), loader(&[4, 4], LoaderSettings { waiting_max: 2, ..settings(4) }));
    let loader = Arc::new(loader);
    let held = runtime.block_on(loader.lease(0)).ok().unwrap();
    let waiting: Vec<_> = (0..2)
        .map(|_| {
            let loader = Arc::clone(&loader);
            runtime.spawn(async move { loader.lease(1).await.is_ok() })
        })
        .collect();
    until_waiting(&loader, 1, 2);
    assert_eq!(runtime.block_on(loader.lease(1)).err(), Some(NotLoaded::Full { waiting: 2 }));
    drop(held);
    for waiting in waiting {
        assert!(runtime.block_on(waiting).unwrap());
    }
}

#[test]
fn what_nobody_has_used_for_long_enough_is_unloaded() {
    let unload_after = Some(Duration::from_millis(30));
    let (runtime, (loader, memory)) = (runtime(), loader(&[4], LoaderSettings { unload_after, ..settings(4) }));
    let held = runtime.block_on(loader.lease(0)).ok().unwrap();
    std::thread::sleep(Duration::from_millis(90));
    assert_eq!(memory.log(), ["+a"], "it is in use");
    drop(held);
    until(|| memory.log().len() == 2);
    assert!(loader.status(0).0.is_none());
    assert!(runtime.block_on(loader.lease(0)).is_ok());
    assert_eq!(memory.log(), ["+a", "-a", "+a"]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Clients that ask at random for models of random sizes: each gets the one it asked for, and memory holds.
    #[test]
    fn everybody_is_served_within_the_memory(
        bytes in prop::collection::vec(1usize..6, 1..5),
        clients in prop::collection::vec(prop::collection::vec(0usize..5, 1..12), 1..6),
    ) {
        let (runtime, (loader, memory)) = (runtime(), loader(&bytes, settings(7)));
        let (loader, count) = (Arc::new(loader), bytes.len());
        let client = |asks: Vec<usize>| {
            let loader = Arc::clone(&loader);
            runtime.spawn(async move {
                for ask in asks {
                    let lease = loader.lease(ask % count).await.ok().unwrap();
                    assert_eq!(lease.model, ask % count);
                    assert!(loader.status(ask % count).0.is_some(), "a model in use is loaded");
                    tokio::task::yield_now().await;
                }
            })
        };
        let clients: Vec<_> = clients.into_iter().map(client).collect();
        for client in clients {
            runtime.block_on(client).unwrap();
        }
        prop_assert!(memory.most.load(SeqCst) <= 7);
    }
}

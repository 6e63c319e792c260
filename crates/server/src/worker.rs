//! The thread that owns the engine: requests go in through a channel, each request's events come out through one of its
//! own. Requests with a constraint go first to other threads, which compile it: what that takes is waited for by those
//! who asked for it, and by nobody's stream.

mod compile;

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::mpsc as commands;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use wels_engine::{Engine, Event, Prepared, Renderer, Request, RequestError, RequestId, Status};

pub use compile::QueueFull;
use compile::{Compiler, Constrained};

/// Events of one request that may wait for it; a request that lets more wait is cancelled.
const EVENTS_MAX: usize = 4096;
/// Weight of the newest request in the mean of how long requests run.
const NEWEST: f64 = 0.1;
/// How long a request runs, as long as none has ended. A guess.
const RUN_GUESS_S: f64 = 5.0;

/// Makes a request ready for the engine.
pub type Prepare = Arc<dyn Fn(Request) -> Result<Prepared, RequestError> + Send + Sync>;

/// What the worker needs of an engine. Tests put another one in its place.
pub trait Backend: Send + 'static {
    /// What makes requests ready, on threads of its own.
    fn preparer(&self) -> Prepare;
    /// Takes a request.
    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError>;
    /// Ends a request with the next step.
    fn cancel(&mut self, id: RequestId) -> bool;
    /// Does some work.
    fn step(&mut self) -> Vec<Event>;
    /// Whether there is nothing to do and nothing to report.
    fn is_idle(&self) -> bool;
    /// Does a little, when idle, of what will save time later; whether there is more of it.
    fn prepare(&mut self) -> bool {
        false
    }
    /// What makes pictures of codes, if the model draws.
    fn renderer(&self) -> Option<Renderer> {
        None
    }
    /// What it is at.
    fn status(&self) -> Status;
}

impl Backend for Engine {
    fn preparer(&self) -> Prepare {
        let preparer = Engine::preparer(self);
        Arc::new(move |request| preparer.prepare(request))
    }

    fn enqueue(&mut self, prepared: Prepared) -> Result<RequestId, RequestError> {
        Engine::enqueue_prepared(self, prepared)
    }

    fn cancel(&mut self, id: RequestId) -> bool {
        Engine::cancel(self, id)
    }

    fn step(&mut self) -> Vec<Event> {
        Engine::step(self)
    }

    fn is_idle(&self) -> bool {
        Engine::is_idle(self)
    }

    fn prepare(&mut self) -> bool {
        Engine::populate(self)
    }

    fn renderer(&self) -> Option<Renderer> {
        Engine::renderer(self)
    }

    fn status(&self) -> Status {
        Engine::status(self)
    }
}

/// Something that happened to one of a ticket's requests.
pub struct ChoiceEvent {
    /// Which one, from 0.
    pub choice: usize,
    pub event: Event,
    /// When the engine began with the request.
    pub begun: Instant,
    /// When the step ended that brought the event.
    pub at: Instant,
}

/// Why a ticket was not given.
pub enum Denied {
    /// By the engine.
    Refused(RequestError),
    /// Too many constraints wait to be compiled.
    Compiling(QueueFull),
    /// The engine's thread has ended.
    Gone,
}

type Reply = oneshot::Sender<Result<Ticket, RequestError>>;

enum Command {
    Enqueue { requests: Vec<Prepared>, reply: Reply },
    Cancel(Vec<RequestId>),
    End,
}

/// A place in the engine for some requests that belong together. Dropping it cancels them.
pub struct Ticket {
    /// In the order of the requests.
    pub ids: Vec<RequestId>,
    /// Ends early if the requests were cancelled for not being read, or if the engine's thread ended.
    pub events: mpsc::Receiver<ChoiceEvent>,
    commands: commands::Sender<Command>,
}

impl Ticket {
    /// Ends one of the requests with the next step.
    pub fn cancel(&self, choice: usize) {
        let _ = self.commands.send(Command::Cancel(vec![self.ids[choice]]));
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        // Requests that have ended are unknown to the engine; cancelling them does nothing.
        let _ = self.commands.send(Command::Cancel(std::mem::take(&mut self.ids)));
    }
}

/// What the engine was at after its last step.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub status: Status,
    /// Since when the step under way has been running.
    pub stepping_since: Option<Instant>,
    /// The time that all steps took.
    pub step_time: Duration,
    /// Whether its thread has ended.
    pub gone: bool,
    /// Mean over the last requests, in seconds from their first token to their last one.
    run_s: Option<f64>,
}

impl Snapshot {
    /// How many requests begin before this one; `None` if it has begun, or has ended.
    pub fn queue_position(&self, id: RequestId) -> Option<usize> {
        self.status.waiting.iter().position(|waiting| *waiting == id)
    }

    /// How long it will be until the request at a position of the queue begins, from how long requests ran lately and
    /// how many run at once.
    pub fn wait_s(&self, position: usize) -> f64 {
        let at_once = self.status.running.max(1) as f64;
        self.run_s.unwrap_or(RUN_GUESS_S) * (position + 1) as f64 / at_once
    }

    /// [`Self::wait_s`] in whole seconds, at least one.
    pub fn retry_after_s(&self, position: usize) -> u64 {
        (self.wait_s(position).ceil() as u64).max(1)
    }

    /// Whether the engine works, or has nothing to do; `stuck_after`: a step does not take longer.
    pub fn is_healthy(&self, stuck_after: Duration) -> bool {
        !self.gone && self.stepping_since.is_none_or(|since| since.elapsed() < stuck_after)
    }
}

/// A handle to the thread, which lives until it is told to end, or as long as the program.
pub struct Worker {
    commands: commands::Sender<Command>,
    compiler: Compiler,
    renderer: Option<Renderer>,
    snapshot: Arc<Mutex<Snapshot>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    /// Starts the threads.
    pub fn start(backend: impl Backend) -> std::io::Result<Worker> {
        let (sender, receiver) = commands::channel();
        let compiler = Compiler::start(&backend.preparer(), &sender)?;
        let snapshot = Arc::new(Mutex::new(Snapshot { status: backend.status(), ..Snapshot::default() }));
        let renderer = backend.renderer();
        let (published, commands) = (Arc::clone(&snapshot), sender.clone());
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            let _guard = EndGuard(Arc::clone(&published));
            EngineLoop { backend, routes: HashMap::new(), snapshot: published, run_s: None }.run(&receiver, &sender);
        })?;
        Ok(Worker { commands, compiler, renderer, snapshot, thread: Mutex::new(Some(thread)) })
    }

    /// Ends the engine's thread after the step under way, and waits until all that the engine had is given back.
    /// Requests that it still has lose their tickets' events.
    pub fn end(&self) {
        let _ = self.commands.send(Command::End);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            // It gave its memory back also if it has panicked.
            let _ = thread.join();
        }
    }

    /// Hands in requests, all or none. `key`: whose they are; keys share the engine's places, and their constraints
    /// take turns. Where too many wait, requests whose constraints may fail go without them.
    pub async fn submit(&self, key: i64, requests: Vec<Request>) -> Result<Ticket, Denied> {
        let (reply, answer) = oneshot::channel();
        let owned = |request| Request { owner: key as u64, ..request };
        let requests: Vec<Request> = requests.into_iter().map(owned).collect();
        let takes_work = |request: &Request| request.constraint.is_some() || !request.pictures.is_empty();
        let constrained = requests.iter().any(takes_work);
        let may_fail = requests.iter().all(|request| request.constraint_may_fail && request.pictures.is_empty());
        match constrained && !(may_fail && self.compiler.is_full(key)) {
            true => self.compiler.push(key, Constrained { requests, reply }).map_err(Denied::Compiling)?,
            false => {
                let plain =
                    |request| Prepared::plain(Request { constraint: None, ..request }).expect("it has no constraint");
                let requests = requests.into_iter().map(plain).collect();
                self.commands.send(Command::Enqueue { requests, reply }).map_err(|_| Denied::Gone)?;
            }
        }
        answer.await.map_err(|_| Denied::Gone)?.map_err(Denied::Refused)
    }

    /// What makes pictures of codes, on any thread; `None` if the model draws none.
    pub fn renderer(&self) -> Option<&Renderer> {
        self.renderer.as_ref()
    }

    /// What the engine was at after its last step.
    pub fn snapshot(&self) -> Snapshot {
        lock(&self.snapshot).clone()
    }
}

/// Says that the thread has ended, however it did.
struct EndGuard(Arc<Mutex<Snapshot>>);

impl Drop for EndGuard {
    fn drop(&mut self) {
        lock(&self.0).gone = true;
    }
}

/// What a thread that panicked left is still a snapshot.
fn lock(snapshot: &Mutex<Snapshot>) -> MutexGuard<'_, Snapshot> {
    snapshot.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Where a request's events go.
struct Route {
    events: mpsc::Sender<ChoiceEvent>,
    choice: usize,
    /// Since when it does not wait.
    begun: Option<Instant>,
    first_event: Option<Instant>,
}

struct EngineLoop<B> {
    backend: B,
    routes: HashMap<RequestId, Route>,
    snapshot: Arc<Mutex<Snapshot>>,
    run_s: Option<f64>,
}

impl<B: Backend> EngineLoop<B> {
    fn run(&mut self, receiver: &commands::Receiver<Command>, sender: &commands::Sender<Command>) {
        loop {
            if self.backend.is_idle() {
                let command = match receiver.try_recv() {
                    Err(commands::TryRecvError::Empty) if self.backend.prepare() => continue,
                    Err(commands::TryRecvError::Empty) => receiver.recv().ok(),
                    command => command.ok(),
                };
                if command.is_none_or(|command| self.perform(command, sender).is_break()) {
                    return;
                }
            }
            for command in receiver.try_iter() {
                if self.perform(command, sender).is_break() {
                    return;
                }
            }
            if !self.backend.is_idle() {
                self.step();
            }
        }
    }

    fn perform(&mut self, command: Command, sender: &commands::Sender<Command>) -> ControlFlow<()> {
        match command {
            Command::End => return ControlFlow::Break(()),
            Command::Enqueue { requests, reply } => {
                let ticket = self.enqueue(requests, sender);
                self.publish(Duration::ZERO);
                // Whoever asked may be gone; then the ticket is dropped here, which cancels.
                let _ = reply.send(ticket);
            }
            Command::Cancel(ids) => {
                for id in ids {
                    self.backend.cancel(id);
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn enqueue(&mut self, requests: Vec<Prepared>, sender: &commands::Sender<Command>) -> Result<Ticket, RequestError> {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let mut ticket = Ticket { ids: Vec::new(), events: receiver, commands: sender.clone() };
        for (choice, prepared) in requests.into_iter().enumerate() {
            let id = self.backend.enqueue(prepared)?;
            ticket.ids.push(id);
            self.routes.insert(id, Route { events: events.clone(), choice, begun: None, first_event: None });
        }
        Ok(ticket)
    }

    fn step(&mut self) {
        let begin = Instant::now();
        lock(&self.snapshot).stepping_since = Some(begin);
        let events = self.backend.step();
        let end = Instant::now();
        self.note_begun(begin);
        for event in events {
            self.deliver(event, begin, end);
        }
        self.publish(begin.elapsed());
    }

    /// Requests that no longer wait began with the step that began at `begin`.
    fn note_begun(&mut self, begin: Instant) {
        if self.routes.values().all(|route| route.begun.is_some()) {
            return;
        }
        let waiting: HashSet<RequestId> = self.backend.status().waiting.into_iter().collect();
        for (id, route) in &mut self.routes {
            if route.begun.is_none() && !waiting.contains(id) {
                route.begun = Some(begin);
            }
        }
    }

    /// Passes on an event of the step from `begin` to `end`.
    fn deliver(&mut self, event: Event, begin: Instant, end: Instant) {
        let (id, ended) = match &event {
            Event::Token(token) => (token.id, false),
            Event::Embedding { id, .. } => (*id, false),
            Event::Finished(finished) => (finished.id, true),
        };
        let Some(route) = self.routes.get_mut(&id) else { return };
        let begun = *route.begun.get_or_insert(begin);
        let first_event = *route.first_event.get_or_insert(end);
        let event = ChoiceEvent { choice: route.choice, event, begun, at: end };
        let unread = route.events.try_send(event).is_err();
        if ended {
            let run_s = first_event.elapsed().as_secs_f64();
            self.run_s = Some(self.run_s.map_or(run_s, |mean| mean + NEWEST * (run_s - mean)));
        } else if unread {
            self.backend.cancel(id);
        }
        if ended || unread {
            self.routes.remove(&id);
        }
    }

    fn publish(&mut self, step: Duration) {
        let status = self.backend.status();
        let mut snapshot = lock(&self.snapshot);
        snapshot.status = status;
        snapshot.stepping_since = None;
        snapshot.step_time += step;
        snapshot.run_s = self.run_s;
    }
}

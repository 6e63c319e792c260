//! The thread that owns the ledger. What has been waiting while a transaction was written goes into the next one
//! together, so that many requests share a commit.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::sync::oneshot;

use super::{Admission, Durability, Key, Ledger, LedgerError, Prechecked, Refusal, Room, Who};
use crate::money::Tokens;

/// Commands that may wait for the thread; more are refused.
const WAITING_MAX: usize = 4096;
/// Commands of one transaction.
const BATCH_MAX: usize = 256;
/// Without commands, the database is asked for a sign of life this often.
const PING_PERIOD: Duration = Duration::from_secs(2);
/// After a connection could not be made, commands fail at once for so long.
const CONNECT_PAUSE: Duration = Duration::from_secs(1);
/// Times that a batch is done again because another server's stood in its way. PostgreSQL notices a deadlock after 1 s.
const CONFLICTS_MAX: usize = 3;
/// A step that takes longer makes the ledger count as down. SQLite waits up to 10 s for another program's lock.
const STEP_TIMEOUT: Duration = Duration::from_secs(4);
/// Whoever asks is told that the ledger cannot be written after this; the command itself may still be done.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// The ledger did not do what it was asked.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum LedgerHandleError {
    /// It cannot be written now; why is in the log.
    #[error("the ledger cannot be written")]
    Down,
    /// The request's row was closed by another server, which took this one for dead.
    #[error("the request's account is closed")]
    Closed,
}

type Reply<T> = oneshot::Sender<Result<T, LedgerHandleError>>;

enum Command {
    Find { who: Who, reply: Reply<Option<Key>> },
    Precheck { who: Who, reply: Reply<Option<Prechecked>> },
    Admit { admission: Box<Admission>, reply: Reply<Result<Room, Refusal>> },
    Progress { request: String, tokens: Tokens, reply: Reply<()> },
    Settle { request: String, outcome: &'static str },
    Flush { reply: Reply<()> },
}

/// A handle to the thread. It ends when all handles are gone and everything is written.
#[derive(Clone)]
pub struct LedgerHandle {
    commands: mpsc::SyncSender<Command>,
    health: Arc<Health>,
}

/// Whether the ledger works, as its thread sees it.
#[derive(Default)]
struct Health {
    /// The last step failed.
    down: AtomicBool,
    /// Since when a step has been under way.
    busy_since: Mutex<Option<Instant>>,
}

impl Health {
    fn set_busy(&self, since: Option<Instant>) {
        *self.busy_since.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }
}

impl LedgerHandle {
    /// Starts the thread.
    pub fn start(ledger: Ledger) -> std::io::Result<(LedgerHandle, std::thread::JoinHandle<()>)> {
        let (commands, waiting) = mpsc::sync_channel(WAITING_MAX);
        let health = Arc::new(Health::default());
        let worker =
            LedgerThread { ledger, health: Arc::clone(&health), unsettled: Vec::new(), failed_to_connect: None };
        let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || worker.work(&waiting))?;
        Ok((LedgerHandle { commands, health }, thread))
    }

    /// Whether the ledger can be written, as far as the last seconds show.
    pub fn is_healthy(&self) -> bool {
        let busy = *self.health.busy_since.lock().unwrap_or_else(PoisonError::into_inner);
        !self.health.down.load(Relaxed) && busy.is_none_or(|since| since.elapsed() < STEP_TIMEOUT)
    }

    /// The key of whoever asks.
    pub async fn find_key(&self, who: Who) -> Result<Option<Key>, LedgerHandleError> {
        self.ask(|reply| Command::Find { who, reply }).await
    }

    /// The key of whoever asks, and why its next request would be refused whatever it asks for.
    pub async fn precheck(&self, who: Who) -> Result<Option<Prechecked>, LedgerHandleError> {
        self.ask(|reply| Command::Precheck { who, reply }).await
    }

    /// Admits a request, or says why not.
    pub async fn admit(&self, admission: Admission) -> Result<Result<Room, Refusal>, LedgerHandleError> {
        self.ask(|reply| Command::Admit { admission: Box::new(admission), reply }).await
    }

    /// Writes what a request will have been sent with its next chunk; send the chunk after this returns.
    pub async fn progress(&self, request: &str, tokens: Tokens) -> Result<(), LedgerHandleError> {
        self.ask(|reply| Command::Progress { request: request.to_owned(), tokens, reply }).await
    }

    /// Closes a request and charges for what it was sent. Needs no waiting: a settlement that is lost is made up when
    /// the next server starts.
    pub fn settle(&self, request: String, outcome: &'static str) {
        let command = Command::Settle { request, outcome };
        if let Err(mpsc::TrySendError::Full(command)) = self.commands.try_send(command) {
            let commands = self.commands.clone();
            std::thread::spawn(move || commands.send(command));
        }
    }

    /// Waits until everything that was asked before is written, or cannot be.
    pub async fn flush(&self) {
        let _ = self.ask(|reply| Command::Flush { reply }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, LedgerHandleError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| LedgerHandleError::Down)?;
        let answer = tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| LedgerHandleError::Down)?;
        answer.map_err(|_| LedgerHandleError::Down)?
    }
}

/// What the thread owns.
struct LedgerThread {
    ledger: Ledger,
    health: Arc<Health>,
    /// Settlements that failed. They are tried again with the next batch; the process's end does not lose them either.
    unsettled: Vec<(String, &'static str)>,
    failed_to_connect: Option<Instant>,
}

impl LedgerThread {
    fn work(mut self, waiting: &mpsc::Receiver<Command>) {
        loop {
            let mut batch = match waiting.recv_timeout(PING_PERIOD) {
                Ok(first) => vec![first],
                Err(mpsc::RecvTimeoutError::Timeout) => Vec::new(),
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            batch.extend(waiting.try_iter().take(BATCH_MAX.saturating_sub(batch.len())));
            self.step(batch);
        }
        if !self.unsettled.is_empty() {
            self.step(Vec::new());
        }
    }

    /// Does commands, or without any looks whether the database is there.
    fn step(&mut self, mut batch: Vec<Command>) {
        let retried = std::mem::take(&mut self.unsettled);
        batch.extend(retried.into_iter().map(|(request, outcome)| Command::Settle { request, outcome }));
        self.health.set_busy(Some(Instant::now()));
        let done = match batch.is_empty() {
            true => self.attempt(&[], Ledger::ping),
            false => self.write(batch),
        };
        self.health.set_busy(None);
        let was_down = self.health.down.swap(done.is_err(), Relaxed);
        match done {
            Err(error) => tracing::error!(%error, "the ledger failed"),
            Ok(()) if was_down => tracing::info!("the ledger works again"),
            Ok(()) => {}
        }
    }

    /// Does `work`. A connection that is lost on the way is made again, and the work done once more: its transaction
    /// was either not written at all, or written whole, which [`perform`] recognises. A transaction that PostgreSQL has
    /// taken back because it met another server's is done again, too; nothing of it was written.
    fn attempt<T>(
        &mut self,
        batch: &[Command],
        mut work: impl FnMut(&mut Ledger) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.connect()?;
        let (mut conflicts, mut was_lost) = (0, false);
        loop {
            let done = work(&mut self.ledger);
            match &done {
                Err(error) if error.is_conflict() && conflicts < CONFLICTS_MAX => {
                    conflicts += 1;
                    tracing::warn!(commands = batch.len(), %error, "another server was in the way; trying again");
                }
                Err(_) if self.ledger.database.is_closed() && !was_lost => {
                    was_lost = true;
                    tracing::warn!(commands = batch.len(), "the connection to the ledger was lost; trying once more");
                    self.connect()?;
                }
                _ => return done,
            }
        }
    }

    fn connect(&mut self) -> Result<(), LedgerError> {
        if self.failed_to_connect.is_some_and(|at| at.elapsed() < CONNECT_PAUSE) {
            return Err(LedgerError::Silent);
        }
        let connected = self.ledger.reconnect();
        self.failed_to_connect = connected.is_err().then(Instant::now);
        connected
    }

    /// Does the commands in one transaction and answers them once it is written.
    fn write(&mut self, batch: Vec<Command>) -> Result<(), LedgerError> {
        let money = batch.iter().any(|command| matches!(command, Command::Admit { .. } | Command::Settle { .. }));
        let durability = if money { Durability::Machine } else { Durability::Process };
        let mut again = false;
        let done = self.attempt(&batch, |ledger| {
            let again = std::mem::replace(&mut again, true);
            ledger.in_transaction(durability, |ledger| {
                batch.iter().map(|command| perform(ledger, command, again)).collect::<Result<Vec<Answer>, _>>()
            })
        });
        match done {
            Ok(answers) => {
                batch.into_iter().zip(answers).for_each(|(command, answer)| give(command, answer));
                Ok(())
            }
            Err(error) => {
                self.unsettled = batch.into_iter().filter_map(fail).collect();
                Err(error)
            }
        }
    }
}

enum Answer {
    Found(Option<Key>),
    Prechecked(Option<Prechecked>),
    Admitted(Result<Room, Refusal>),
    Written,
    Closed,
}

/// Does one command. `again`: the transaction may have been written before, and its answer lost.
fn perform(ledger: &mut Ledger, command: &Command, again: bool) -> Result<Answer, LedgerError> {
    Ok(match command {
        Command::Find { who, .. } => Answer::Found(ledger.find(who)?),
        Command::Precheck { who, .. } => Answer::Prechecked(ledger.precheck(who, now_unix_ms())?),
        Command::Admit { admission, .. } if again && ledger.is_admitted(&admission.request)? => {
            Answer::Admitted(Ok(Room::default()))
        }
        Command::Admit { admission, .. } => Answer::Admitted(ledger.admit(admission, now_unix_ms())?),
        Command::Progress { request, tokens, .. } => match ledger.progress(request, *tokens)? {
            true => Answer::Written,
            false => Answer::Closed,
        },
        Command::Settle { request, outcome } => {
            ledger.settle(request, outcome, now_unix_ms())?;
            Answer::Written
        }
        Command::Flush { .. } => Answer::Written,
    })
}

/// Answers a command that was done. A client that has gone away takes no answer; what was written stays, and its
/// request is settled.
fn give(command: Command, answer: Answer) {
    match (command, answer) {
        (Command::Find { reply, .. }, Answer::Found(key)) => drop(reply.send(Ok(key))),
        (Command::Precheck { reply, .. }, Answer::Prechecked(found)) => drop(reply.send(Ok(found))),
        (Command::Admit { reply, .. }, Answer::Admitted(admitted)) => drop(reply.send(Ok(admitted))),
        (Command::Progress { reply, .. }, Answer::Written) => drop(reply.send(Ok(()))),
        (Command::Progress { reply, .. }, Answer::Closed) => drop(reply.send(Err(LedgerHandleError::Closed))),
        (Command::Flush { reply }, Answer::Written) => drop(reply.send(Ok(()))),
        (Command::Settle { .. }, Answer::Written) => {}
        _ => unreachable!("answers stand in the order of their commands"),
    }
}

/// Answers a command that failed; a settlement is given back.
fn fail(command: Command) -> Option<(String, &'static str)> {
    match command {
        Command::Find { reply, .. } => drop(reply.send(Err(LedgerHandleError::Down))),
        Command::Precheck { reply, .. } => drop(reply.send(Err(LedgerHandleError::Down))),
        Command::Admit { reply, .. } => drop(reply.send(Err(LedgerHandleError::Down))),
        Command::Progress { reply, .. } | Command::Flush { reply } => drop(reply.send(Err(LedgerHandleError::Down))),
        Command::Settle { request, outcome } => return Some((request, outcome)),
    }
    None
}

/// Milliseconds since 1970.
pub(crate) fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

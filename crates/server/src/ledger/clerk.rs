//! The thread that owns the ledger. What has been waiting while a transaction was written goes into the next one
//! together, so that many requests share a commit.

use std::sync::mpsc;
use std::time::{SystemTime, UNIX_EPOCH};

use thiserror::Error;
use tokio::sync::oneshot;

use super::{Admission, Durability, Key, Ledger, LedgerError, Refusal};
use crate::money::Tokens;

/// Commands that may wait for the thread; more make their senders wait.
const WAITING_MAX: usize = 4096;
/// Commands of one transaction.
const BATCH_MAX: usize = 256;

/// The ledger did not do what it was asked; why is in the log.
#[derive(Clone, Copy, Debug, Error)]
#[error("the ledger cannot be written")]
pub struct ClerkError;

type Reply<T> = oneshot::Sender<Result<T, ClerkError>>;

enum Command {
    Find { secret: String, reply: Reply<Option<Key>> },
    Admit { admission: Box<Admission>, reply: Reply<Result<(), Refusal>> },
    Progress { request: String, tokens: Tokens, reply: Reply<()> },
    Settle { request: String, outcome: &'static str },
    Flush { reply: Reply<()> },
}

/// A handle to the thread. It ends when all handles are gone and everything is written.
#[derive(Clone)]
pub struct Clerk {
    commands: mpsc::SyncSender<Command>,
}

impl Clerk {
    /// Starts the thread.
    pub fn start(ledger: Ledger) -> std::io::Result<(Clerk, std::thread::JoinHandle<()>)> {
        let (commands, waiting) = mpsc::sync_channel(WAITING_MAX);
        let thread = std::thread::Builder::new().name("ledger".to_owned()).spawn(move || work(ledger, &waiting))?;
        Ok((Clerk { commands }, thread))
    }

    /// The key with this secret.
    pub async fn find_key(&self, secret: String) -> Result<Option<Key>, ClerkError> {
        self.ask(|reply| Command::Find { secret, reply }).await
    }

    /// Admits a request, or says why not.
    pub async fn admit(&self, admission: Admission) -> Result<Result<(), Refusal>, ClerkError> {
        self.ask(|reply| Command::Admit { admission: Box::new(admission), reply }).await
    }

    /// Writes what a request will have been sent with its next chunk; send the chunk after this returns.
    pub async fn progress(&self, request: &str, tokens: Tokens) -> Result<(), ClerkError> {
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

    /// Waits until everything that was asked before is written.
    pub async fn flush(&self) {
        let _ = self.ask(|reply| Command::Flush { reply }).await;
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, ClerkError> {
        let (reply, answer) = oneshot::channel();
        self.commands.try_send(command(reply)).map_err(|_| ClerkError)?;
        answer.await.map_err(|_| ClerkError)?
    }
}

fn work(mut ledger: Ledger, waiting: &mpsc::Receiver<Command>) {
    let mut unsettled: Vec<(String, &'static str)> = Vec::new();
    while let Ok(first) = waiting.recv() {
        let mut batch = vec![first];
        batch.extend(waiting.try_iter().take(BATCH_MAX - 1));
        if let Err(error) = ledger.reconnect() {
            tracing::error!(%error, "cannot connect to the ledger again");
        }
        // Settlements that failed are tried again with the next batch; the process's end does not lose them either.
        let retried = std::mem::take(&mut unsettled);
        batch.extend(retried.into_iter().map(|(request, outcome)| Command::Settle { request, outcome }));
        unsettled = write(&mut ledger, batch);
    }
}

/// Does the commands in one transaction and answers them once it is written. Gives back the settlements that failed.
fn write(ledger: &mut Ledger, batch: Vec<Command>) -> Vec<(String, &'static str)> {
    let money = batch.iter().any(|command| matches!(command, Command::Admit { .. } | Command::Settle { .. }));
    let durability = if money { Durability::Machine } else { Durability::Process };
    let done =
        ledger.in_transaction(durability, |ledger| batch.iter().map(|command| perform(ledger, command)).collect());
    let answers: Vec<Answer> = match done {
        Ok(answers) => answers,
        Err(error) => {
            tracing::error!(%error, "the ledger failed");
            return batch.into_iter().filter_map(fail).collect();
        }
    };
    for (command, answer) in batch.into_iter().zip(answers) {
        // A client that has gone away takes no answer; what was written stays, and its request is settled.
        match (command, answer) {
            (Command::Find { reply, .. }, Answer::Found(key)) => drop(reply.send(Ok(key))),
            (Command::Admit { reply, .. }, Answer::Admitted(admitted)) => drop(reply.send(Ok(admitted))),
            (Command::Progress { reply, .. }, Answer::Written) => drop(reply.send(Ok(()))),
            (Command::Flush { reply }, Answer::Written) => drop(reply.send(Ok(()))),
            (Command::Settle { .. }, Answer::Written) => {}
            _ => unreachable!("answers stand in the order of their commands"),
        }
    }
    Vec::new()
}

enum Answer {
    Found(Option<Key>),
    Admitted(Result<(), Refusal>),
    Written,
}

fn perform(ledger: &mut Ledger, command: &Command) -> Result<Answer, LedgerError> {
    Ok(match command {
        Command::Find { secret, .. } => Answer::Found(ledger.find_key(secret)?),
        Command::Admit { admission, .. } => Answer::Admitted(ledger.admit(admission, now_unix_ms())?),
        Command::Progress { request, tokens, .. } => {
            ledger.progress(request, *tokens)?;
            Answer::Written
        }
        Command::Settle { request, outcome } => {
            ledger.settle(request, outcome, now_unix_ms())?;
            Answer::Written
        }
        Command::Flush { .. } => Answer::Written,
    })
}

fn fail(command: Command) -> Option<(String, &'static str)> {
    match command {
        Command::Find { reply, .. } => drop(reply.send(Err(ClerkError))),
        Command::Admit { reply, .. } => drop(reply.send(Err(ClerkError))),
        Command::Progress { reply, .. } | Command::Flush { reply } => drop(reply.send(Err(ClerkError))),
        Command::Settle { request, outcome } => return Some((request, outcome)),
    }
    None
}

/// Milliseconds since 1970.
pub(crate) fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

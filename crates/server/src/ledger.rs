//! Keys, quotas and the account of every request, in SQLite or PostgreSQL.
//!
//! A request has one row from the moment it is admitted. Admission checks the key's limits and reserves the most that
//! the request can cost, in one transaction. Before a chunk is sent, the tokens up to and with it are written to the
//! row, so a kill leaves at most the one chunk in flight on the account without its client having it. Settlement closes
//! the row and charges its key; it happens once, since it only touches open rows. Rows that a dead server left open are
//! settled with the tokens they hold when the next one starts.
//!
//! Limits count rows of the last minute, so they hold across restarts, and across servers that share a database.

mod thread;

mod postgres;

mod postgres_tls;

mod rates;

mod report;

mod sql;

use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio_postgres::error::SqlState;

use crate::keys::{self, Secret};
use crate::money::{Nanos, Prices, Tokens};
use rates::Used;
pub use rates::{Rate, Room};
pub use report::{Entry, GroupBy, Usage};
use sql::{Database, Durability, Row, Value};
pub(crate) use thread::now_unix_ms;
pub use thread::{LedgerHandle, LedgerHandleError};

/// The form of the tables.
const SCHEMA: i64 = 3;
/// What makes a form of the tables the next one, from form 1 on.
const MIGRATIONS: [&str; SCHEMA as usize - 1] = [
    "ALTER TABLE requests ADD COLUMN sequences BIGINT NOT NULL DEFAULT 1",
    "ALTER TABLE keys ADD COLUMN admin BIGINT NOT NULL DEFAULT 0",
];
/// The span that requests and tokens a minute are counted over.
const MINUTE_MS: i64 = 60_000;
/// By which the clocks of servers that share a database may differ. A row from further ahead was written before the
/// clock was set back, and says nothing of the last minute.
const CLOCK_SKEW_MS: i64 = 5_000;
/// Characters of a key's name.
const NAME_CHARS_MAX: usize = 100;
/// PostgreSQL's advisory lock for the making of tables. Living servers hold one with their number, which is positive.
const LOCK_TABLES: i64 = -0x5745_4c53;

/// What can go wrong with the database. What a client may not do is a [`Refusal`].
#[derive(Debug, Error)]
pub enum LedgerError {
    #[error("the ledger failed: {0}")]
    Sqlite(#[from] rusqlite::Error),
    /// PostgreSQL's.
    #[error("the ledger failed: {0}")]
    Postgres(#[from] tokio_postgres::Error),
    /// PostgreSQL accepts connections or statements, and says nothing.
    #[error("the ledger failed: PostgreSQL does not answer")]
    Silent,
    /// Nobody to believe a server's certificate by.
    #[error("cannot connect to the ledger over TLS: {message}")]
    Roots {
        /// Which file, and what is wrong with it.
        message: String,
    },
    /// The system has no more descriptors or threads.
    #[error("cannot connect to the ledger: {0}")]
    Runtime(std::io::Error),
    /// A file beside the database.
    #[error("cannot use {path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    /// Another server holds the file.
    #[error("another server uses {path}")]
    InUse {
        /// The database's file.
        path: PathBuf,
    },
    /// Tables of another form.
    #[error("the ledger has tables of form {found}; this program knows form {SCHEMA}")]
    Schema {
        /// As the database says.
        found: String,
    },
    /// A value that no version of this program writes.
    #[error("the ledger is damaged: column {column} of a result has the wrong type")]
    Damaged {
        /// From 0.
        column: usize,
    },
    /// A name that lists and logs could not show.
    #[error(
        "a key cannot be named {name:?}: a name has 1 to {NAME_CHARS_MAX} characters, no control characters, and \
             no space at its ends"
    )]
    KeyName {
        /// As given.
        name: String,
    },
    /// A name that is in use.
    #[error("there is a key named `{name}` already")]
    NameTaken {
        /// As given.
        name: String,
    },
    /// No such key.
    #[error("there is no key named `{name}`")]
    NoKey {
        /// As given.
        name: String,
    },
    /// No random numbers to be had.
    #[error("cannot make a key: {0}")]
    Random(std::io::Error),
}

impl LedgerError {
    /// Whether PostgreSQL has taken the transaction back because another server's stood in its way: both waited for
    /// rows of the other, or could not have been done one after the other.
    fn is_conflict(&self) -> bool {
        let LedgerError::Postgres(error) = self else { return false };
        let conflicts = [SqlState::T_R_DEADLOCK_DETECTED, SqlState::T_R_SERIALIZATION_FAILURE];
        error.code().is_some_and(|code| conflicts.contains(code))
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            LedgerError::InUse { .. } => "stop it, or give another file, or a PostgreSQL URL, with --db",
            LedgerError::Schema { .. } => "use the version of wels that made it, or give another file with --db",
            LedgerError::NameTaken { .. } => "choose another name; a revoked key keeps its name",
            LedgerError::Roots { .. } => {
                "name a file of root certificates with sslrootcert=FILE in the URL or PGSSLROOTCERT in the environment"
            }
            LedgerError::NoKey { .. } => "`wels keys list` shows the names",
            LedgerError::Postgres(_) | LedgerError::Silent => {
                "check that the server runs and that the URL's user may create tables"
            }
            _ => return None,
        })
    }
}

/// What a key may do; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Requests admitted within any minute.
    pub requests_per_minute: Option<u32>,
    /// Tokens within any minute: of requests under way the most they can become, of ended ones what they were.
    pub tokens_per_minute: Option<u32>,
    /// Sequences under way at once: a request has one for each answer to each of its prompts.
    pub concurrent: Option<u32>,
    /// Money in all, since the key was made.
    pub budget: Option<Nanos>,
}

/// A key, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// In the database.
    pub id: i64,
    /// Given by who made it.
    pub name: String,
    /// Its first characters.
    pub shown: String,
    /// When it was made.
    pub created_unix_ms: i64,
    /// When it was revoked, if it was.
    pub revoked_unix_ms: Option<i64>,
    /// What it may do.
    pub limits: Limits,
    /// Whether it may read what concerns the whole server.
    pub admin: bool,
    /// Charged so far.
    pub spent: Nanos,
    /// Held for requests under way.
    pub reserved: Nanos,
}

impl Key {
    /// What is left to spend; `None` without a budget. Negative if the budget was lowered below what is spent.
    pub fn balance(&self) -> Option<Nanos> {
        self.limits.budget.map(|budget| Nanos(budget.0.saturating_sub(self.spent.0).saturating_sub(self.reserved.0)))
    }

    /// How many of `wanted` sequences to do at once, of a request that can do them one after the other: no more than
    /// the key may ever have under way, and at least one.
    pub fn at_once(&self, wanted: usize) -> usize {
        self.limits.concurrent.map_or(wanted, |limit| wanted.min(limit as usize)).max(1)
    }
}

/// A request that asks to be admitted.
#[derive(Clone, Debug)]
pub struct Admission {
    /// Unique over all servers and times.
    pub request: String,
    pub key_id: i64,
    /// The path, such as `/v1/chat/completions`.
    pub endpoint: String,
    /// The model's name.
    pub model: String,
    pub prompt_tokens: u64,
    /// The most tokens that may be put out.
    pub output_tokens_max: u64,
    /// Answers, over all prompts: what the engine runs at once for it.
    pub sequences: u64,
    /// Of the moment.
    pub prices: Prices,
    /// Of the prices.
    pub currency: String,
}

/// Why a key's request is not admitted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Revoked, or gone.
    Revoked,
    /// Too many requests in the last minute.
    Requests {
        /// A minute.
        limit: u32,
        /// Until there is room.
        retry_after_ms: i64,
    },
    /// Too many tokens in the last minute.
    Tokens {
        /// A minute.
        limit: u32,
        /// By this request.
        needed: u64,
        /// Until there is room; `None` if the request alone exceeds the limit.
        retry_after_ms: Option<i64>,
    },
    /// Too many sequences under way.
    Concurrent {
        /// At once.
        limit: u32,
        /// By this request.
        needed: u64,
    },
    /// Not enough money for the worst case.
    Budget {
        /// In the worst case.
        needed: Nanos,
        /// To spend.
        left: Nanos,
    },
}

/// Who asks.
#[derive(Clone)]
pub struct Who {
    /// Of the key that is shown.
    pub secret: Option<String>,
    /// The name of the key that counts where none is shown that is known.
    pub otherwise: Option<String>,
}

/// A key before anything is read of its request.
#[derive(Clone, Debug)]
pub struct Prechecked {
    pub key: Key,
    /// Why the request would be refused whatever it asks for.
    pub refusal: Option<Refusal>,
    /// What the key may use.
    pub room: Room,
}

/// A connection to the database of keys and requests.
pub struct Ledger {
    database: Database,
    url: String,
    /// Tells this server's open rows from others'.
    server: i64,
    /// The server process of PostgreSQL's that holds this server's lock.
    session: i64,
}

impl Ledger {
    /// Opens `postgres://…`, or the SQLite file at a path, to manage keys and to look.
    pub fn open(url: &str) -> Result<Ledger, LedgerError> {
        Ledger::connect(url, false, random_id()?)
    }

    /// Opens it to serve from: an SQLite file takes one server at a time. Settles what dead servers left open, and says
    /// how many requests that were.
    pub fn serve(url: &str, now_unix_ms: i64) -> Result<(Ledger, usize), LedgerError> {
        let mut ledger = Ledger::connect(url, true, random_id()?)?;
        ledger.show_life()?;
        let recovered = ledger.in_transaction(Durability::Machine, |ledger| ledger.recover(now_unix_ms))?;
        Ok((ledger, recovered))
    }

    fn connect(url: &str, alone: bool, server: i64) -> Result<Ledger, LedgerError> {
        let database = match is_postgres(url) {
            true => Database::postgres(url)?,
            false => Database::sqlite(Path::new(url), alone)?,
        };
        let mut ledger = Ledger { database, url: url.to_owned(), server, session: 0 };
        ledger.in_transaction(Durability::Machine, Ledger::make_tables)?;
        if is_postgres(url) {
            ledger.session = ledger.database.query("SELECT CAST(pg_backend_pid() AS BIGINT)", &[])?[0].int(0)?;
        }
        Ok(ledger)
    }

    /// Held as long as the connection lives: other servers see by it that this one is alive.
    fn show_life(&mut self) -> Result<(), LedgerError> {
        if is_postgres(&self.url) {
            self.database.query("SELECT CAST(1 AS BIGINT) FROM pg_advisory_lock($1)", &[self.server.into()])?;
        }
        Ok(())
    }

    fn make_tables(&mut self) -> Result<(), LedgerError> {
        if is_postgres(&self.url) {
            // Two servers that start at once would both make them.
            let sql = "SELECT CAST(1 AS BIGINT) FROM pg_advisory_xact_lock($1)";
            self.database.query(sql, &[LOCK_TABLES.into()])?;
        }
        self.database.script(include_str!("ledger/schema.sql"))?;
        self.database.execute(
            "INSERT INTO meta VALUES ('schema', $1) ON CONFLICT (name) DO NOTHING",
            &[SCHEMA.to_string().as_str().into()],
        )?;
        let rows = self.database.query("SELECT value FROM meta WHERE name = 'schema'", &[])?;
        let found = rows.first().map(|row| row.text(0)).transpose()?.unwrap_or_default();
        let form =
            found.parse().ok().filter(|form| (1..=SCHEMA).contains(form)).ok_or(LedgerError::Schema { found })?;
        for migration in &MIGRATIONS[form as usize - 1..] {
            self.database.script(migration)?;
        }
        if form < SCHEMA {
            self.database.script(&format!("UPDATE meta SET value = '{SCHEMA}' WHERE name = 'schema'"))?;
        }
        Ok(())
    }

    /// Connects again if the connection is gone for good.
    fn reconnect(&mut self) -> Result<(), LedgerError> {
        if !self.database.is_closed() {
            return Ok(());
        }
        let mut ledger = Ledger::connect(&self.url, false, self.server)?;
        // PostgreSQL may not have noticed that the connection before is gone, and keeps its lock.
        let sql = "SELECT CASE WHEN pg_terminate_backend(pid) THEN CAST(1 AS BIGINT) END FROM pg_locks \
                   WHERE locktype = 'advisory' AND CAST(pid AS BIGINT) = $1 \
                   AND ((CAST(classid AS BIGINT) << 32) | CAST(objid AS BIGINT)) = $2";
        ledger.database.query(sql, &[self.session.into(), self.server.into()])?;
        ledger.show_life()?;
        *self = ledger;
        Ok(())
    }

    /// Whether the database can be written.
    fn ping(&mut self) -> Result<(), LedgerError> {
        self.in_transaction(Durability::Process, |ledger| {
            ledger.database.query("SELECT value FROM meta WHERE name = 'schema'", &[]).map(|_| ())
        })
    }

    fn in_transaction<T>(
        &mut self,
        durability: Durability,
        work: impl FnOnce(&mut Ledger) -> Result<T, LedgerError>,
    ) -> Result<T, LedgerError> {
        self.database.begin(durability)?;
        let done = work(self).and_then(|value| self.database.commit().map(|()| value));
        if done.is_err() {
            self.database.rollback();
        }
        done
    }
}

/// Keys.
impl Ledger {
    /// Makes a key. Its secret is not kept and cannot be shown again.
    ///
    /// # Errors
    /// [`LedgerError::KeyName`] and [`LedgerError::NameTaken`], beside those of the database.
    pub fn add_key(&mut self, name: &str, limits: &Limits, now_unix_ms: i64) -> Result<Secret, LedgerError> {
        self.insert_key(name, limits, false, now_unix_ms)
    }

    /// Makes a key that may also read what concerns the whole server: its metrics. Errors as of [`Ledger::add_key`].
    pub fn add_admin_key(&mut self, name: &str, limits: &Limits, now_unix_ms: i64) -> Result<Secret, LedgerError> {
        self.insert_key(name, limits, true, now_unix_ms)
    }

    fn insert_key(
        &mut self,
        name: &str,
        limits: &Limits,
        admin: bool,
        now_unix_ms: i64,
    ) -> Result<Secret, LedgerError> {
        let fits = (1..=NAME_CHARS_MAX).contains(&name.chars().count()) && name.trim() == name;
        if !fits || name.chars().any(char::is_control) {
            return Err(LedgerError::KeyName { name: name.to_owned() });
        }
        let secret = Secret::generate().map_err(LedgerError::Random)?;
        let mut values: Vec<Value> = vec![
            random_id()?.into(),
            name.into(),
            secret.hash().as_str().into(),
            secret.shown().into(),
            now_unix_ms.into(),
        ];
        values.extend(limit_values(limits));
        values.push(i64::from(admin).into());
        let sql = "INSERT INTO keys (id, name, hash, shown, created_unix_ms, requests_per_minute, tokens_per_minute, \
                   concurrent, budget_nano, admin, spent_nano, reserved_nano) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 0, 0) ON CONFLICT (name) DO NOTHING";
        match self.in_transaction(Durability::Machine, |ledger| ledger.database.execute(sql, &values))? {
            0 => Err(LedgerError::NameTaken { name: name.to_owned() }),
            _ => Ok(secret),
        }
    }

    /// All keys, oldest first.
    pub fn keys(&mut self) -> Result<Vec<Key>, LedgerError> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM keys ORDER BY created_unix_ms, name");
        self.database.query(&sql, &[])?.iter().map(Key::from_row).collect()
    }

    /// The key with this secret, revoked or not.
    pub fn find_key(&mut self, secret: &str) -> Result<Option<Key>, LedgerError> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM keys WHERE hash = $1");
        let rows = self.database.query(&sql, &[keys::hash(secret).as_str().into()])?;
        rows.first().map(Key::from_row).transpose()
    }

    /// The key with this name, revoked or not.
    pub fn find_named(&mut self, name: &str) -> Result<Option<Key>, LedgerError> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM keys WHERE name = $1");
        self.database.query(&sql, &[name.into()])?.first().map(Key::from_row).transpose()
    }

    /// The key of whoever asks; a revoked one gives way to the one for those without.
    fn find(&mut self, who: &Who) -> Result<Option<Key>, LedgerError> {
        let shown = who.secret.as_deref().map(|secret| self.find_key(secret)).transpose()?.flatten();
        match &who.otherwise {
            Some(name) if shown.as_ref().is_none_or(|key| key.revoked_unix_ms.is_some()) => self.find_named(name),
            _ => Ok(shown),
        }
    }

    /// Makes a key useless from its next request on.
    pub fn revoke_key(&mut self, name: &str, now_unix_ms: i64) -> Result<(), LedgerError> {
        let sql = "UPDATE keys SET revoked_unix_ms = COALESCE(revoked_unix_ms, $1) WHERE name = $2";
        self.change_key(name, sql, &[now_unix_ms.into(), name.into()])
    }

    /// Replaces a key's limits, all of them.
    pub fn limit_key(&mut self, name: &str, limits: &Limits) -> Result<(), LedgerError> {
        let sql = "UPDATE keys SET requests_per_minute = $1, tokens_per_minute = $2, concurrent = $3, \
                   budget_nano = $4 WHERE name = $5";
        let mut values = limit_values(limits).to_vec();
        values.push(name.into());
        self.change_key(name, sql, &values)
    }

    fn change_key(&mut self, name: &str, sql: &str, values: &[Value]) -> Result<(), LedgerError> {
        match self.in_transaction(Durability::Machine, |ledger| ledger.database.execute(sql, values))? {
            0 => Err(LedgerError::NoKey { name: name.to_owned() }),
            _ => Ok(()),
        }
    }
}

const KEY_COLUMNS: &str = "id, name, shown, created_unix_ms, revoked_unix_ms, requests_per_minute, tokens_per_minute, \
                           concurrent, budget_nano, spent_nano, reserved_nano, admin";

fn limit_values(limits: &Limits) -> [Value; 4] {
    let count = |limit: Option<u32>| Value::from(limit.map(i64::from));
    [
        count(limits.requests_per_minute),
        count(limits.tokens_per_minute),
        count(limits.concurrent),
        limits.budget.map(|budget| budget.0).into(),
    ]
}

impl Key {
    fn from_row(row: &Row) -> Result<Key, LedgerError> {
        let limit = |column: usize| -> Result<Option<u32>, LedgerError> {
            let value = row.maybe_int(column)?;
            value.map(|value| u32::try_from(value).map_err(|_| LedgerError::Damaged { column })).transpose()
        };
        Ok(Key {
            id: row.int(0)?,
            name: row.text(1)?,
            shown: row.text(2)?,
            created_unix_ms: row.int(3)?,
            revoked_unix_ms: row.maybe_int(4)?,
            limits: Limits {
                requests_per_minute: limit(5)?,
                tokens_per_minute: limit(6)?,
                concurrent: limit(7)?,
                budget: row.maybe_int(8)?.map(Nanos),
            },
            spent: Nanos(row.int(9)?),
            reserved: Nanos(row.int(10)?),
            admin: row.int(11)? != 0,
        })
    }
}

/// Requests. These run within a transaction of their caller's, so that several share one.
impl Ledger {
    /// The key that a client shows, and why its next request would be refused whatever it asks for.
    fn precheck(&mut self, who: &Who, now_unix_ms: i64) -> Result<Option<Prechecked>, LedgerError> {
        let Some(key) = self.find(who)? else { return Ok(None) };
        let minute = self.last_minute(&key, now_unix_ms)?;
        // A prompt and an answer of one token each.
        let mut refusal = self.beyond_rates(&key, &minute, 2, 1, now_unix_ms)?;
        if refusal.is_none() {
            let broke = key.balance().filter(|left| left.0 <= 0);
            refusal = broke.map(|left| Refusal::Budget { needed: Nanos(1), left });
        }
        let room = Room::of(&key.limits, &minute, now_unix_ms);
        Ok(Some(Prechecked { key, refusal, room }))
    }

    /// Whether this server has a row of this name.
    fn is_admitted(&mut self, request: &str) -> Result<bool, LedgerError> {
        let sql = "SELECT server FROM requests WHERE id = $1 AND server = $2";
        Ok(!self.database.query(sql, &[request.into(), self.server.into()])?.is_empty())
    }

    /// Checks the key's limits, reserves the worst case, and opens the request's row. Says what the key may still use.
    fn admit(&mut self, admission: &Admission, now_unix_ms: i64) -> Result<Result<Room, Refusal>, LedgerError> {
        let sql = format!("SELECT {KEY_COLUMNS} FROM keys WHERE id = $1{}", self.database.for_update());
        let rows = self.database.query(&sql, &[admission.key_id.into()])?;
        let Some(key) = rows.first().map(Key::from_row).transpose()?.filter(|key| key.revoked_unix_ms.is_none()) else {
            return Ok(Err(Refusal::Revoked));
        };
        let tokens = admission.prompt_tokens.saturating_add(admission.output_tokens_max);
        let mut minute = self.last_minute(&key, now_unix_ms)?;
        if let Some(refusal) = self.beyond_rates(&key, &minute, tokens, admission.sequences, now_unix_ms)? {
            return Ok(Err(refusal));
        }
        let needed = admission.prices.worst_case(admission.prompt_tokens, admission.output_tokens_max);
        if let Some(left) = key.balance().filter(|left| *left < needed || left.0 <= 0) {
            return Ok(Err(Refusal::Budget { needed, left }));
        }
        let Prices { hit, miss, output, .. } = admission.prices;
        self.database.execute(
            "INSERT INTO requests VALUES ($1, $2, $3, $4, $5, $6, NULL, NULL, $7, $8, $9, $10, $11, $12, 0, 0, 0, 0, \
             $13)",
            &[
                admission.request.as_str().into(),
                admission.key_id.into(),
                self.server.into(),
                admission.endpoint.as_str().into(),
                admission.model.as_str().into(),
                now_unix_ms.into(),
                column(tokens),
                needed.0.into(),
                admission.currency.as_str().into(),
                hit.0.into(),
                miss.0.into(),
                output.0.into(),
                column(admission.sequences),
            ],
        )?;
        self.database.execute(
            "UPDATE keys SET reserved_nano = reserved_nano + $1 WHERE id = $2",
            &[needed.0.into(), admission.key_id.into()],
        )?;
        minute.insert(0, Used { started_unix_ms: now_unix_ms, tokens });
        Ok(Ok(Room::of(&key.limits, &minute, now_unix_ms)))
    }

    /// Writes what an open request has been sent, the chunk that is about to be sent among it. `false` if the row is
    /// closed and does not hold these tokens: nobody would pay for the chunk, so it must not be sent.
    fn progress(&mut self, request: &str, tokens: Tokens) -> Result<bool, LedgerError> {
        let values = [column(tokens.hit), column(tokens.miss), column(tokens.output), request.into()];
        let sql = "UPDATE requests SET hit_tokens = $1, miss_tokens = $2, output_tokens = $3 \
                   WHERE id = $4 AND ended_unix_ms IS NULL";
        if self.database.execute(sql, &values)? > 0 {
            return Ok(true);
        }
        // Written and closed by a transaction whose answer was lost with the connection.
        let sql = "SELECT key_id FROM requests WHERE hit_tokens = $1 AND miss_tokens = $2 AND output_tokens = $3 \
                   AND id = $4";
        Ok(!self.database.query(sql, &values)?.is_empty())
    }

    /// Closes a request's row and charges its key for the tokens that the row holds. A closed row stays as it is.
    fn settle(&mut self, request: &str, outcome: &str, now_unix_ms: i64) -> Result<(), LedgerError> {
        let sql = "SELECT hit_tokens, miss_tokens, output_tokens, price_hit_nano, price_miss_nano, price_output_nano, \
                   reserved_nano, key_id FROM requests WHERE id = $1 AND ended_unix_ms IS NULL";
        let rows = self.database.query(&format!("{sql}{}", self.database.for_update()), &[request.into()])?;
        let Some(row) = rows.first() else { return Ok(()) };
        let count = |at: usize| row.int(at).map(i64::unsigned_abs);
        let tokens = Tokens { hit: count(0)?, miss: count(1)?, output: count(2)? };
        let prices =
            Prices { hit: Nanos(row.int(3)?), miss: Nanos(row.int(4)?), output: Nanos(row.int(5)?), drawn: None };
        let cost = prices.cost(tokens).0;
        self.database.execute(
            "UPDATE requests SET ended_unix_ms = $1, outcome = $2, cost_nano = $3 WHERE id = $4",
            &[now_unix_ms.into(), outcome.into(), cost.into(), request.into()],
        )?;
        self.database.execute(
            "UPDATE keys SET spent_nano = spent_nano + $1, reserved_nano = reserved_nano - $2 WHERE id = $3",
            &[cost.into(), row.int(6)?.into(), row.int(7)?.into()],
        )?;
        Ok(())
    }

    /// Settles the open rows of servers that are dead.
    fn recover(&mut self, now_unix_ms: i64) -> Result<usize, LedgerError> {
        let sql = "SELECT id, server FROM requests WHERE ended_unix_ms IS NULL AND server <> $1 ORDER BY id";
        let rows = self.database.query(sql, &[self.server.into()])?;
        let mut recovered = 0;
        for row in &rows {
            if self.is_dead(row.int(1)?)? {
                self.settle(&row.text(0)?, "interrupted", now_unix_ms)?;
                recovered += 1;
            }
        }
        Ok(recovered)
    }

    /// SQLite's file is locked for one server, so every other one is dead. PostgreSQL holds a living server's lock.
    fn is_dead(&mut self, server: i64) -> Result<bool, LedgerError> {
        if matches!(self.database, Database::Sqlite { .. }) {
            return Ok(true);
        }
        let sql = "SELECT CASE WHEN pg_try_advisory_xact_lock($1) THEN CAST(1 AS BIGINT) ELSE CAST(0 AS BIGINT) END";
        Ok(self.database.query(sql, &[server.into()])?[0].int(0)? == 1)
    }
}

fn is_postgres(url: &str) -> bool {
    ["postgres://", "postgresql://"].iter().any(|scheme| url.starts_with(scheme))
}

fn column(count: u64) -> Value {
    Value::Int(i64::try_from(count).unwrap_or(i64::MAX))
}

/// A random number that is not negative.
fn random_id() -> Result<i64, LedgerError> {
    let random = getrandom::u64().map_err(|e| LedgerError::Random(std::io::Error::other(e)))?;
    Ok((random >> 1) as i64)
}

#[cfg(test)]
mod tests;

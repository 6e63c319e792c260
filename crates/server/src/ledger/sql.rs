//! The two databases behind the ledger, as one: statements with `$1`-style parameters, integers and text, transactions.

use std::path::Path;
use std::time::Duration;

use super::LedgerError;
use super::postgres::Postgres;

/// A parameter or a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Int(i64),
    Text(String),
    Null,
}

impl From<i64> for Value {
    fn from(value: i64) -> Value {
        Value::Int(value)
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Text(value.to_owned())
    }
}

impl From<Option<i64>> for Value {
    fn from(value: Option<i64>) -> Value {
        value.map_or(Value::Null, Value::Int)
    }
}

/// What a commit survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Durability {
    /// The end of this process, however it ends.
    Process,
    /// The end of the machine, too.
    Machine,
}

/// A connection to a database.
pub(super) enum Database {
    Sqlite { connection: rusqlite::Connection, _lock: Option<std::fs::File> },
    Postgres(Box<Postgres>),
}

impl Database {
    /// Opens or makes the file. `alone`: no other process may serve from it meanwhile.
    pub fn sqlite(path: &Path, alone: bool) -> Result<Database, LedgerError> {
        let lock = if alone { Some(lock_file(path)?) } else { None };
        // SQLite gives its journals the file's permissions. A file that cannot be made is SQLite's to report.
        let _ = for_owner().open(path);
        let connection = rusqlite::Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(Database::Sqlite { connection, _lock: lock })
    }

    /// Connects to `postgres://…`.
    pub fn postgres(url: &str) -> Result<Database, LedgerError> {
        Ok(Database::Postgres(Box::new(Postgres::connect(url)?)))
    }

    /// What a `SELECT` ends with to keep others from the row until the transaction ends. SQLite's transactions keep
    /// others from everything.
    pub fn for_update(&self) -> &'static str {
        match self {
            Database::Sqlite { .. } => "",
            Database::Postgres(_) => " FOR UPDATE",
        }
    }

    /// Runs a script without parameters.
    pub fn script(&mut self, sql: &str) -> Result<(), LedgerError> {
        match self {
            Database::Sqlite { connection, .. } => Ok(connection.execute_batch(sql)?),
            Database::Postgres(connection) => connection.script(sql),
        }
    }

    /// Runs a statement; the number of rows that it changed.
    pub fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64, LedgerError> {
        match self {
            Database::Sqlite { connection, .. } => {
                let mut statement = connection.prepare(sql)?;
                Ok(statement.execute(rusqlite::params_from_iter(values.iter().map(to_sqlite)))? as u64)
            }
            Database::Postgres(connection) => connection.execute(sql, values),
        }
    }

    /// Runs a query; its rows.
    pub fn query(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, LedgerError> {
        match self {
            Database::Sqlite { connection, .. } => {
                let mut statement = connection.prepare(sql)?;
                let columns = statement.column_count();
                let mut rows = statement.query(rusqlite::params_from_iter(values.iter().map(to_sqlite)))?;
                let mut found = Vec::new();
                while let Some(row) = rows.next()? {
                    let row: Result<_, rusqlite::Error> =
                        (0..columns).map(|at| Ok(from_sqlite(row.get(at)?))).collect();
                    found.push(Row(row?));
                }
                Ok(found)
            }
            Database::Postgres(connection) => connection.query(sql, values),
        }
    }

    /// Begins a transaction that its commit makes this durable.
    pub fn begin(&mut self, durability: Durability) -> Result<(), LedgerError> {
        let sql = match (&self, durability) {
            (Database::Sqlite { .. }, Durability::Process) => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
            (Database::Sqlite { .. }, Durability::Machine) => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
            (Database::Postgres(_), Durability::Process) => "BEGIN; SET LOCAL synchronous_commit = off",
            (Database::Postgres(_), Durability::Machine) => "BEGIN",
        };
        self.script(sql)
    }

    /// Ends a transaction.
    pub fn commit(&mut self) -> Result<(), LedgerError> {
        self.script("COMMIT")
    }

    /// Takes a transaction back. A failure leaves nothing to be done.
    pub fn rollback(&mut self) {
        let _ = self.script("ROLLBACK");
    }

    /// Whether the connection is gone for good.
    pub fn is_closed(&self) -> bool {
        match self {
            Database::Sqlite { .. } => false,
            Database::Postgres(connection) => connection.is_closed(),
        }
    }
}

/// Makes files that only their owner may read, where files have modes: names of keys and what they spend are nobody
/// else's business.
fn for_owner() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Takes `PATH.lock` for this process; the system gives it back when the process ends, however that happens.
fn lock_file(path: &Path) -> Result<std::fs::File, LedgerError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = for_owner()
        .open(Path::new(&name))
        .map_err(|source| LedgerError::Io { path: Path::new(&name).to_path_buf(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LedgerError::InUse { path: path.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(LedgerError::Io { path: path.to_path_buf(), source }),
    }
}

/// A row of a result.
pub(super) struct Row(pub(super) Vec<Value>);

impl Row {
    /// A column that is an integer. The schema is ours, so another type is a damaged database.
    pub fn int(&self, column: usize) -> Result<i64, LedgerError> {
        self.maybe_int(column)?.ok_or(LedgerError::Damaged { column })
    }

    /// A column that is an integer or null.
    pub fn maybe_int(&self, column: usize) -> Result<Option<i64>, LedgerError> {
        match &self.0[column] {
            Value::Int(value) => Ok(Some(*value)),
            Value::Null => Ok(None),
            Value::Text(_) => Err(LedgerError::Damaged { column }),
        }
    }

    pub fn text(&self, column: usize) -> Result<String, LedgerError> {
        match &self.0[column] {
            Value::Text(value) => Ok(value.clone()),
            _ => Err(LedgerError::Damaged { column }),
        }
    }
}

fn to_sqlite(value: &Value) -> rusqlite::types::Value {
    match value {
        Value::Int(value) => rusqlite::types::Value::Integer(*value),
        Value::Text(value) => rusqlite::types::Value::Text(value.clone()),
        Value::Null => rusqlite::types::Value::Null,
    }
}

fn from_sqlite(value: rusqlite::types::Value) -> Value {
    match value {
        rusqlite::types::Value::Integer(value) => Value::Int(value),
        rusqlite::types::Value::Text(value) => Value::Text(value),
        _ => Value::Null,
    }
}

//! The two databases behind the ledger, as one: statements with `$1`-style parameters, integers and text, transactions.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use super::LedgerError;

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
    Postgres { client: Box<postgres::Client>, prepared: HashMap<String, postgres::Statement> },
}

impl Database {
    /// Opens or makes the file. `alone`: no other process may serve from it meanwhile.
    pub fn sqlite(path: &Path, alone: bool) -> Result<Database, LedgerError> {
        let lock = if alone { Some(lock_file(path)?) } else { None };
        let connection = rusqlite::Connection::open(path)?;
        connection.busy_timeout(Duration::from_secs(10))?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        Ok(Database::Sqlite { connection, _lock: lock })
    }

    /// Connects to `postgres://…`. The connection is not encrypted: put the database on the same machine or network, or
    /// behind a tunnel.
    pub fn postgres(url: &str) -> Result<Database, LedgerError> {
        let client = Box::new(postgres::Client::connect(url, postgres::NoTls)?);
        Ok(Database::Postgres { client, prepared: HashMap::new() })
    }

    /// What a `SELECT` ends with to keep others from the row until the transaction ends. SQLite's transactions keep
    /// others from everything.
    pub fn for_update(&self) -> &'static str {
        match self {
            Database::Sqlite { .. } => "",
            Database::Postgres { .. } => " FOR UPDATE",
        }
    }

    /// Runs a script without parameters.
    pub fn script(&mut self, sql: &str) -> Result<(), LedgerError> {
        match self {
            Database::Sqlite { connection, .. } => Ok(connection.execute_batch(sql)?),
            Database::Postgres { client, .. } => Ok(client.batch_execute(sql)?),
        }
    }

    /// Runs a statement; the number of rows that it changed.
    pub fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64, LedgerError> {
        match self {
            Database::Sqlite { connection, .. } => {
                let mut statement = connection.prepare(sql)?;
                Ok(statement.execute(rusqlite::params_from_iter(values.iter().map(to_sqlite)))? as u64)
            }
            Database::Postgres { client, prepared } => {
                let statement = prepare(client, prepared, sql)?;
                Ok(client.execute(&statement, &to_postgres(values))?)
            }
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
            Database::Postgres { client, prepared } => {
                let statement = prepare(client, prepared, sql)?;
                client.query(&statement, &to_postgres(values))?.iter().map(from_postgres).collect()
            }
        }
    }

    /// Begins a transaction that its commit makes this durable.
    pub fn begin(&mut self, durability: Durability) -> Result<(), LedgerError> {
        let sql = match (&self, durability) {
            (Database::Sqlite { .. }, Durability::Process) => "PRAGMA synchronous = NORMAL; BEGIN IMMEDIATE",
            (Database::Sqlite { .. }, Durability::Machine) => "PRAGMA synchronous = FULL; BEGIN IMMEDIATE",
            (Database::Postgres { .. }, Durability::Process) => "BEGIN; SET LOCAL synchronous_commit = off",
            (Database::Postgres { .. }, Durability::Machine) => "BEGIN",
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
            Database::Postgres { client, .. } => client.is_closed(),
        }
    }
}

fn prepare(
    client: &mut postgres::Client,
    prepared: &mut HashMap<String, postgres::Statement>,
    sql: &str,
) -> Result<postgres::Statement, LedgerError> {
    if let Some(statement) = prepared.get(sql) {
        return Ok(statement.clone());
    }
    let statement = client.prepare(sql)?;
    prepared.insert(sql.to_owned(), statement.clone());
    Ok(statement)
}

/// Takes `PATH.lock` for this process; the system gives it back when the process ends, however that happens.
fn lock_file(path: &Path) -> Result<std::fs::File, LedgerError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let file = std::fs::File::create(Path::new(&name))
        .map_err(|source| LedgerError::Io { path: Path::new(&name).to_path_buf(), source })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(LedgerError::InUse { path: path.to_path_buf() }),
        Err(std::fs::TryLockError::Error(source)) => Err(LedgerError::Io { path: path.to_path_buf(), source }),
    }
}

/// A row of a result.
pub(super) struct Row(Vec<Value>);

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

    /// A column that is text.
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

fn to_postgres(values: &[Value]) -> Vec<&(dyn postgres::types::ToSql + Sync)> {
    values
        .iter()
        .map(|value| match value {
            Value::Int(value) => value as &(dyn postgres::types::ToSql + Sync),
            Value::Text(value) => value,
            Value::Null => &None::<i64>,
        })
        .collect()
}

fn from_postgres(row: &postgres::Row) -> Result<Row, LedgerError> {
    let column = |at: usize| -> Result<Value, LedgerError> {
        Ok(match *row.columns()[at].type_() {
            postgres::types::Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map_or(Value::Null, Value::Int),
            _ => row.try_get::<_, Option<String>>(at)?.map_or(Value::Null, Value::Text),
        })
    };
    Ok(Row((0..row.len()).map(column).collect::<Result<_, _>>()?))
}

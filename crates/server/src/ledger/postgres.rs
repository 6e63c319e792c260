//! A connection to PostgreSQL of which every step is bounded in time.
//!
//! The system's own time-outs do not notice a server that is stopped but whose machine still acknowledges what is sent.
//! So each step is waited for here, and a connection whose step took too long is given up: nothing more is asked of it,
//! since its answers could no longer be told apart.

use std::collections::HashMap;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Config, NoTls, Socket, Statement};

use super::LedgerError;
use super::postgres_tls::Address;
use super::sql::{Row, Value};

/// For a connection to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);
/// For the answer to one statement.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(6);
/// What the server is told: to end a statement (it may wait for a lock) before it is given up here, and to end a
/// transaction whose client stands still, so that its locks do not stay.
const SESSION: &str = "SET statement_timeout = '5s'; SET idle_in_transaction_session_timeout = '10s'";

/// A session, with the runtime that drives it while something is asked.
pub(super) struct Postgres {
    runtime: tokio::runtime::Runtime,
    client: Client,
    prepared: HashMap<String, Statement>,
    given_up: bool,
}

impl Postgres {
    /// Connects to `postgres://…`, over TLS if the URL says `sslmode=require` or `verify-full`.
    ///
    /// # Errors
    /// [`LedgerError::Silent`] when nobody answers in time, [`LedgerError::Roots`] without certificates to trust.
    pub fn connect(url: &str) -> Result<Postgres, LedgerError> {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(LedgerError::Runtime)?;
        let address = Address::of(url);
        let mut config = Config::from_str(&address.url)?;
        if config.get_connect_timeout().is_none() {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        config.tcp_user_timeout(STATEMENT_TIMEOUT);
        let client = match address.is_encrypted {
            true => open(&runtime, &config, address.connector()?)?,
            false => open(&runtime, &config, NoTls)?,
        };
        let mut postgres = Postgres { runtime, client, prepared: HashMap::new(), given_up: false };
        postgres.script(SESSION)?;
        Ok(postgres)
    }

    /// Runs a script without parameters.
    pub fn script(&mut self, sql: &str) -> Result<(), LedgerError> {
        let Postgres { runtime, client, given_up, .. } = self;
        wait(runtime, given_up, client.batch_execute(sql))
    }

    /// Runs a statement; the number of rows that it changed.
    pub fn execute(&mut self, sql: &str, values: &[Value]) -> Result<u64, LedgerError> {
        let statement = self.prepare(sql)?;
        let Postgres { runtime, client, given_up, .. } = self;
        wait(runtime, given_up, client.execute(&statement, &parameters(values)))
    }

    /// Runs a query; its rows.
    pub fn query(&mut self, sql: &str, values: &[Value]) -> Result<Vec<Row>, LedgerError> {
        let statement = self.prepare(sql)?;
        let Postgres { runtime, client, given_up, .. } = self;
        wait(runtime, given_up, client.query(&statement, &parameters(values)))?.iter().map(row).collect()
    }

    fn prepare(&mut self, sql: &str) -> Result<Statement, LedgerError> {
        if let Some(statement) = self.prepared.get(sql) {
            return Ok(statement.clone());
        }
        let Postgres { runtime, client, given_up, .. } = self;
        let statement = wait(runtime, given_up, client.prepare(sql))?;
        self.prepared.insert(sql.to_owned(), statement.clone());
        Ok(statement)
    }

    /// Whether the connection is gone for good.
    pub fn is_closed(&self) -> bool {
        self.given_up || self.client.is_closed()
    }
}

/// Connects, and has the runtime drive the connection.
fn open<T>(runtime: &tokio::runtime::Runtime, config: &Config, tls: T) -> Result<Client, LedgerError>
where
    T: MakeTlsConnect<Socket>,
    T::Stream: Send + 'static,
{
    let connecting = async { tokio::time::timeout(CONNECT_TIMEOUT, config.connect(tls)).await };
    let (client, connection) = runtime.block_on(connecting).map_err(|_| LedgerError::Silent)??;
    runtime.spawn(async move {
        if let Err(error) = connection.await {
            tracing::warn!(%error, "the connection to the ledger broke");
        }
    });
    Ok(client)
}

fn wait<T>(
    runtime: &tokio::runtime::Runtime,
    given_up: &mut bool,
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, LedgerError> {
    if *given_up {
        return Err(LedgerError::Silent);
    }
    match runtime.block_on(async { tokio::time::timeout(STATEMENT_TIMEOUT, work).await }) {
        Ok(done) => {
            *given_up = done.as_ref().is_err_and(ends_session);
            Ok(done?)
        }
        Err(_) => {
            *given_up = true;
            Err(LedgerError::Silent)
        }
    }
}

/// Whether the server says that it ends the session: that comes some time before the connection is seen to be closed.
fn ends_session(error: &tokio_postgres::Error) -> bool {
    let ends = [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN, SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT];
    error.code().is_some_and(|code| ends.contains(code))
}

fn parameters(values: &[Value]) -> Vec<&(dyn ToSql + Sync)> {
    values
        .iter()
        .map(|value| match value {
            Value::Int(value) => value as &(dyn ToSql + Sync),
            Value::Text(value) => value,
            Value::Null => &None::<i64>,
        })
        .collect()
}

fn row(row: &tokio_postgres::Row) -> Result<Row, LedgerError> {
    let column = |at: usize| -> Result<Value, LedgerError> {
        Ok(match *row.columns()[at].type_() {
            Type::INT8 => row.try_get::<_, Option<i64>>(at)?.map_or(Value::Null, Value::Int),
            _ => row.try_get::<_, Option<String>>(at)?.map_or(Value::Null, Value::Text),
        })
    };
    Ok(Row((0..row.len()).map(column).collect::<Result<_, _>>()?))
}

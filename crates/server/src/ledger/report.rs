//! What the ledger says to its owner: usage summed up, and the rows themselves.

use super::{Ledger, LedgerError};
use crate::money::{Nanos, Tokens};

/// How usage is summed up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupBy {
    /// One line a key.
    Key,
    /// One line a day, UTC.
    Day,
    /// One line a model.
    Model,
}

/// A line of the usage report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Usage {
    /// The key's name, the day's number since 1970, or the model's name.
    pub group: String,
    /// Of the costs: sums are kept apart by it.
    pub currency: String,
    /// Ended and under way, without those that were refused.
    pub requests: u64,
    /// Refused by the engine: its queue was full, or the request could not be answered.
    pub refused: u64,
    /// Sent so far.
    pub tokens: Tokens,
    /// Of ended requests.
    pub cost: Nanos,
}

/// A request's row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its unique name.
    pub request: String,
    /// The model that was asked.
    pub model: String,
    /// Sent to the client.
    pub tokens: Tokens,
    /// Charged.
    pub cost: Nanos,
    /// How it ended; `None` while it is under way.
    pub outcome: Option<String>,
}

impl Ledger {
    /// What was used from one time up to another, in milliseconds since 1970.
    pub fn usage(&mut self, by: GroupBy, from_unix_ms: i64, to_unix_ms: i64) -> Result<Vec<Usage>, LedgerError> {
        let group = match by {
            GroupBy::Key => "keys.name",
            GroupBy::Day => "CAST(started_unix_ms / 86400000 AS TEXT)",
            GroupBy::Model => "model",
        };
        let sum = |column: &str| format!("CAST(SUM({column}) AS BIGINT)");
        let sql = format!(
            "SELECT {group}, currency, COUNT(*), {}, {}, {}, {}, {} FROM requests JOIN keys ON keys.id = key_id \
             WHERE started_unix_ms >= $1 AND started_unix_ms < $2 GROUP BY {group}, currency ORDER BY {group}, currency",
            sum("hit_tokens"),
            sum("miss_tokens"),
            sum("output_tokens"),
            sum("cost_nano"),
            sum("CASE WHEN outcome = 'refused' THEN 1 ELSE 0 END"),
        );
        let rows = self.database.query(&sql, &[from_unix_ms.into(), to_unix_ms.into()])?;
        rows.iter()
            .map(|row| {
                let count = |at: usize| row.int(at).map(i64::unsigned_abs);
                Ok(Usage {
                    group: row.text(0)?,
                    currency: row.text(1)?,
                    requests: count(2)? - count(7)?,
                    refused: count(7)?,
                    tokens: Tokens { hit: count(3)?, miss: count(4)?, output: count(5)? },
                    cost: Nanos(row.int(6)?),
                })
            })
            .collect()
    }

    /// The rows of all requests, by name.
    pub fn entries(&mut self) -> Result<Vec<Entry>, LedgerError> {
        let sql = "SELECT id, hit_tokens, miss_tokens, output_tokens, cost_nano, COALESCE(outcome, ''), model \
                   FROM requests ORDER BY id";
        let rows = self.database.query(sql, &[])?;
        rows.iter()
            .map(|row| {
                let count = |at: usize| row.int(at).map(i64::unsigned_abs);
                Ok(Entry {
                    request: row.text(0)?,
                    model: row.text(6)?,
                    tokens: Tokens { hit: count(1)?, miss: count(2)?, output: count(3)? },
                    cost: Nanos(row.int(4)?),
                    outcome: Some(row.text(5)?).filter(|outcome| !outcome.is_empty()),
                })
            })
            .collect()
    }
}

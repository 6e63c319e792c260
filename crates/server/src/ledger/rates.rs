//! Limits a minute: what a key has used of them, what is left, and when there is room again.

use super::{CLOCK_SKEW_MS, Key, Ledger, LedgerError, Limits, MINUTE_MS, Refusal};

/// A limit a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// A minute.
    pub limit: u32,
    /// Of it, in this minute.
    pub remaining: u32,
    /// Until all of it is left, if nothing more is used.
    pub reset_ms: i64,
}

/// What a key may still use in this minute; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub requests: Option<Rate>,
    pub tokens: Option<Rate>,
}

/// A request of the last minute.
#[derive(Clone, Copy)]
pub(super) struct Used {
    pub started_unix_ms: i64,
    /// Of a request under way the most they can become, of an ended one what they were.
    pub tokens: u64,
}

impl Room {
    /// What `minute`, whose newest request comes first, leaves of `limits`.
    pub(super) fn of(limits: &Limits, minute: &[Used], now_unix_ms: i64) -> Room {
        let reset_ms = minute.first().map_or(0, |newest| room_at(newest.started_unix_ms, now_unix_ms));
        let rate = |limit: u32, used: u64| {
            let remaining = u64::from(limit).saturating_sub(used) as u32;
            Rate { limit, remaining, reset_ms }
        };
        let tokens = minute.iter().fold(0_u64, |sum, request| sum.saturating_add(request.tokens));
        Room {
            requests: limits.requests_per_minute.map(|limit| rate(limit, minute.len() as u64)),
            tokens: limits.tokens_per_minute.map(|limit| rate(limit, tokens)),
        }
    }
}

impl Ledger {
    /// The key's requests of the last minute, newest first; none are looked up for a key without limits a minute.
    pub(super) fn last_minute(&mut self, key: &Key, now_unix_ms: i64) -> Result<Vec<Used>, LedgerError> {
        if key.limits.requests_per_minute.is_none() && key.limits.tokens_per_minute.is_none() {
            return Ok(Vec::new());
        }
        let sql = "SELECT started_unix_ms, CASE WHEN ended_unix_ms IS NULL THEN reserved_tokens \
                   ELSE hit_tokens + miss_tokens + output_tokens END \
                   FROM requests WHERE key_id = $1 AND started_unix_ms > $2 AND started_unix_ms <= $3 \
                   ORDER BY started_unix_ms DESC";
        let minute = [key.id.into(), (now_unix_ms - MINUTE_MS).into(), (now_unix_ms + CLOCK_SKEW_MS).into()];
        let rows = self.database.query(sql, &minute)?;
        rows.iter().map(|row| Ok(Used { started_unix_ms: row.int(0)?, tokens: row.int(1)?.unsigned_abs() })).collect()
    }

    /// Why a request of so many tokens and sequences is beyond the key's limits, if it is.
    pub(super) fn beyond_rates(
        &mut self,
        key: &Key,
        minute: &[Used],
        tokens: u64,
        sequences: u64,
        now_unix_ms: i64,
    ) -> Result<Option<Refusal>, LedgerError> {
        if let Some(limit) = key.limits.concurrent {
            let sql = "SELECT CAST(COALESCE(SUM(sequences), 0) AS BIGINT) FROM requests \
                       WHERE key_id = $1 AND ended_unix_ms IS NULL";
            let running = self.database.query(sql, &[key.id.into()])?[0].int(0)?.unsigned_abs();
            if running.saturating_add(sequences) > u64::from(limit) {
                return Ok(Some(Refusal::Concurrent { limit, needed: sequences }));
            }
        }
        Ok(beyond_requests(key, minute, now_unix_ms).or_else(|| beyond_tokens(key, minute, tokens, now_unix_ms)))
    }
}

fn beyond_requests(key: &Key, minute: &[Used], now_unix_ms: i64) -> Option<Refusal> {
    let limit = key.limits.requests_per_minute?;
    // With the newest `limit` requests within the minute there is room when the oldest of them leaves it.
    let blocking = match limit {
        0 => now_unix_ms,
        _ => minute.get(limit as usize - 1)?.started_unix_ms,
    };
    Some(Refusal::Requests { limit, retry_after_ms: room_at(blocking, now_unix_ms) })
}

fn beyond_tokens(key: &Key, minute: &[Used], tokens: u64, now_unix_ms: i64) -> Option<Refusal> {
    let limit = key.limits.tokens_per_minute?;
    if tokens > u64::from(limit) {
        return Some(Refusal::Tokens { limit, needed: tokens, retry_after_ms: None });
    }
    let mut used = tokens;
    let blocking = minute.iter().find(|request| {
        used = used.saturating_add(request.tokens);
        used > u64::from(limit)
    })?;
    let retry_after_ms = Some(room_at(blocking.started_unix_ms, now_unix_ms));
    Some(Refusal::Tokens { limit, needed: tokens, retry_after_ms })
}

/// Until a request that began at `started` leaves the minute.
fn room_at(started_unix_ms: i64, now_unix_ms: i64) -> i64 {
    (started_unix_ms + MINUTE_MS - now_unix_ms).clamp(1, MINUTE_MS)
}

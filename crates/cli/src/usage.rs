//! `wels usage [--by key|day|model] [--since DAY] [--until DAY]`: what was used, and what it cost.

use anyhow::Result;
use wels_data::chat::civil;
use wels_server::ledger::{GroupBy, Ledger, Usage};

use crate::{keys, output};

const DAY_MS: i64 = 86_400_000;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// One line for each of these
    #[arg(long, value_enum, default_value = "key")]
    by: Grouping,
    /// The first day, as 2026-11-22, UTC; all if left out
    #[arg(long, value_name = "DAY", value_parser = day)]
    since: Option<i64>,
    /// The last day
    #[arg(long, value_name = "DAY", value_parser = day)]
    until: Option<i64>,
    /// One line of JSON for each
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    db: keys::Db,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Grouping {
    Key,
    Day,
    Model,
}

/// Writes the report.
pub fn usage(args: &Args) -> Result<()> {
    let by = match args.by {
        Grouping::Key => GroupBy::Key,
        Grouping::Day => GroupBy::Day,
        Grouping::Model => GroupBy::Model,
    };
    let from = args.since.unwrap_or(0) * DAY_MS;
    let to = args.until.map_or(i64::MAX, |day| (day + 1) * DAY_MS);
    for line in Ledger::open(&args.db.url()?)?.usage(by, from, to)? {
        let Usage { group, currency, requests, refused, tokens, cost } = line;
        let group = match (by, group.parse::<i64>()) {
            (GroupBy::Day, Ok(day)) => date(day * DAY_MS),
            _ => group,
        };
        if args.json {
            output::json(&serde_json::json!({
                "group": group, "requests": requests, "refused": refused, "hit_tokens": tokens.hit,
                "miss_tokens": tokens.miss, "output_tokens": tokens.output, "cost": cost, "currency": currency,
            }))?;
        } else {
            let (hit, miss, out) = (tokens.hit, tokens.miss, tokens.output);
            output::line(&format!(
                "{group:<20} {requests:>8} requests  {refused:>6} refused  {hit:>10} hit  {miss:>10} miss  {out:>10} out  {cost:>12} {currency}"
            ))?;
        }
    }
    Ok(())
}

/// The day of a time, as `2026-11-22`, UTC.
pub fn date(unix_ms: i64) -> String {
    let (year, month, day) = civil(unix_ms.div_euclid(DAY_MS));
    format!("{year:04}-{month:02}-{day:02}")
}

/// Days since 1970 of `2026-11-22`.
fn day(text: &str) -> Result<i64, String> {
    let wrong = || format!("`{text}` is no day: write it as 2026-11-22");
    let parts: Vec<i64> = text.split('-').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong())?;
    let [year @ 1970..=9999, month @ 1..=12, _] = parts[..] else { return Err(wrong()) };
    // Near enough, and then the one that is written so.
    let guess = (year - 1970) * 365 + (year - 1969) / 4 - 20 + (month - 1) * 30;
    let found = (guess - 80..guess + 60).find(|day| civil(*day) == (parts[0], parts[1], parts[2]));
    found.ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_read_and_written() {
        assert_eq!((date(0), date(1_732_233_600_000)), ("1970-01-01".to_owned(), "2024-11-22".to_owned()));
        for days in (0..40_000).step_by(13) {
            assert_eq!(day(&date(days * DAY_MS)), Ok(days));
        }
        for wrong in ["", "2026", "2026-02-30", "2026-13-01", "x-1-1", "1969-12-31", "2026-1-1-1"] {
            assert!(day(wrong).is_err(), "{wrong}");
        }
    }
}

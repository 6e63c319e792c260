//! `wels keys (add|list|revoke|limit)`: who may use the server, and how much.

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Subcommand;
use wels_server::ledger::{Key, Ledger, Limits};
use wels_server::money::Nanos;

use crate::output;
use crate::usage::date;

/// Where keys and accounts are.
#[derive(clap::Args)]
pub struct Db {
    /// The ledger: an SQLite file, or postgres://USER@HOST/NAME. In the user's data directory if left out
    #[arg(long, value_name = "URL")]
    db: Option<String>,
    /// A file whose first line is the ledger's URL: arguments, and so a password in them, are seen by everybody on the
    /// machine. The environment's WELS_DB does the same
    #[arg(long, value_name = "FILE", conflicts_with = "db")]
    db_file: Option<PathBuf>,
}

/// Names the ledger where no argument does.
const DB_VARIABLE: &str = "WELS_DB";

impl Db {
    /// The ledger's URL or path; makes the default's directory.
    pub fn url(&self) -> Result<String> {
        if let Some(url) = &self.db {
            return Ok(url.clone());
        }
        if let Some(file) = &self.db_file {
            let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
            let url = text.lines().next().map(str::trim).filter(|line| !line.is_empty());
            return url.map(str::to_owned).with_context(|| format!("{} has no URL in its first line", file.display()));
        }
        if let Some(url) = std::env::var_os(DB_VARIABLE).filter(|url| !url.is_empty()) {
            return url.into_string().ok().with_context(|| format!("{DB_VARIABLE} is not UTF-8"));
        }
        let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/share"));
        let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or(home);
        let folder = data.context("there is neither HOME nor XDG_DATA_HOME; give the ledger with --db")?.join("wels");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let file = folder.join("ledger.db");
        file.to_str().map(str::to_owned).with_context(|| format!("{} is not UTF-8", file.display()))
    }
}

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a key. It is shown once and cannot be shown again
    Add {
        /// To tell it from others
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        /// It may also read /metrics, which tells of all keys' requests together
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        db: Db,
    },
    /// List the keys, without their secrets
    List {
        /// One line of JSON a key
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        db: Db,
    },
    /// Make a key useless, from its next request on
    Revoke {
        /// Of the key
        name: String,
        #[command(flatten)]
        db: Db,
    },
    /// Replace the limits of a key, all of them: those left out are lifted
    Limit {
        /// Of the key
        name: String,
        #[command(flatten)]
        limits: LimitArgs,
        #[command(flatten)]
        db: Db,
    },
}

#[derive(clap::Args)]
struct LimitArgs {
    /// Requests within any minute
    #[arg(long, value_name = "N")]
    requests_per_minute: Option<u32>,
    /// Tokens within any minute
    #[arg(long, value_name = "N")]
    tokens_per_minute: Option<u32>,
    /// Answers under way at once: a request has one for each of its prompts and of its `n`
    #[arg(long, value_name = "N")]
    concurrent: Option<u32>,
    /// Money in all, such as 12.50
    #[arg(long, value_name = "AMOUNT")]
    budget: Option<Nanos>,
}

impl LimitArgs {
    fn limits(&self) -> Limits {
        Limits {
            requests_per_minute: self.requests_per_minute,
            tokens_per_minute: self.tokens_per_minute,
            concurrent: self.concurrent,
            budget: self.budget,
        }
    }
}

/// Does what is asked.
pub fn keys(args: &Args) -> Result<()> {
    match &args.verb {
        Verb::Add { name, limits, admin, db } => {
            let mut ledger = Ledger::open(&db.url()?)?;
            let key = match admin {
                true => ledger.add_admin_key(name, &limits.limits(), now_unix_ms())?,
                false => ledger.add_key(name, &limits.limits(), now_unix_ms())?,
            };
            output::line(key.reveal())?;
        }
        Verb::List { json, db } => list(&Ledger::open(&db.url()?)?.keys()?, *json)?,
        Verb::Revoke { name, db } => Ledger::open(&db.url()?)?.revoke_key(name, now_unix_ms())?,
        Verb::Limit { name, limits, db } => Ledger::open(&db.url()?)?.limit_key(name, &limits.limits())?,
    }
    Ok(())
}

fn list(keys: &[Key], json: bool) -> Result<()> {
    for key in keys {
        let Limits { requests_per_minute, tokens_per_minute, concurrent, budget } = key.limits;
        if json {
            output::json(&serde_json::json!({
                "name": key.name, "key": key.shown, "created": date(key.created_unix_ms),
                "revoked": key.revoked_unix_ms.map(date), "requests_per_minute": requests_per_minute,
                "tokens_per_minute": tokens_per_minute, "concurrent": concurrent, "budget": budget,
                "admin": key.admin, "spent": key.spent, "reserved": key.reserved,
            }))?;
            continue;
        }
        let count = |limit: Option<u32>, unit: &str| limit.map(|limit| format!("{limit} {unit}"));
        let limits: Vec<String> = [
            key.admin.then(|| "admin".to_owned()),
            count(requests_per_minute, "requests/min"),
            count(tokens_per_minute, "tokens/min"),
            count(concurrent, "at once"),
            budget.map(|budget| format!("budget {budget}")),
            key.revoked_unix_ms.map(|at| format!("revoked {}", date(at))),
        ]
        .into_iter()
        .flatten()
        .collect();
        let (created, spent, limits) = (date(key.created_unix_ms), key.spent, limits.join(", "));
        let line = format!("{:<20} {}…  {created}  spent {spent}  {limits}", key.name, key.shown);
        output::line(line.trim_end())?;
    }
    Ok(())
}

/// Milliseconds since 1970.
pub fn now_unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

//! `wels report RUN`: the page about a run, written anew. `wels report A B`: runs side by side.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;
use wels_runs::plan::prices::Prices;
use wels_runs::report::{self, REPORT, RunData, Summary};

use crate::output;

/// What the command line says.
#[derive(clap::Args)]
pub struct Args {
    /// Directories of runs
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// Where the page that compares several runs is written
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// API prices of your own (.toml), for the picture of quality against price
    #[arg(long, value_name = "FILE")]
    price_table: Option<PathBuf>,
    /// Write one line of JSON
    #[arg(long)]
    json: bool,
}

/// Reports.
pub fn report(args: &Args) -> Result<()> {
    if let ([run], None, false) = (&args.runs[..], &args.html, args.json) {
        report::write(run, &Prices::with_file(args.price_table.as_deref())?)?;
        return Ok(output::line(&run.join(REPORT).display().to_string())?);
    }
    let runs = args.runs.iter().map(|run| Ok(RunData::read(run)?)).collect::<Result<Vec<_>>>()?;
    if let Some(html) = &args.html {
        std::fs::write(html, report::of_several(&runs)).with_context(|| format!("cannot write {}", html.display()))?;
    }
    let summaries: Vec<Summary> = runs.iter().map(RunData::summary).collect();
    if args.json {
        return Ok(output::json(&json!({ "runs": summaries }))?);
    }
    let line = |what: &str, values: &[String]| {
        let values: String = values.iter().map(|value| format!(" {value:>20}")).collect();
        output::line(&format!("{what:<24}{values}"))
    };
    line("", &summaries.iter().map(|run| run.name.clone()).collect::<Vec<_>>())?;
    report::rows(&summaries).iter().try_for_each(|(what, values)| line(what, values))?;
    Ok(())
}

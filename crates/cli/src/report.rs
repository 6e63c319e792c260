//! `wels report RUN`: the page about a run, written anew. `wels report A B`: runs side by side.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use wels_runs::plan::prices::Prices;
use wels_runs::report::{self, REPORT, RunData};

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
    let names: Vec<String> = runs.iter().map(|run| run.recipe.run.name.clone()).collect();
    let rows = report::rows_of_several(&runs);
    if args.json {
        let row = |(what, values): (&str, Vec<String>)| -> (String, Value) {
            (what.to_string(), values.into_iter().map(Value::from).collect())
        };
        let mut object: Map<String, Value> = rows.into_iter().map(row).collect();
        object.insert("runs".into(), names.into_iter().map(Value::from).collect());
        return Ok(output::json(&object)?);
    }
    let line = |what: &str, values: &[String]| {
        let values: String = values.iter().map(|value| format!(" {value:>20}")).collect();
        output::line(&format!("{what:<24}{values}"))
    };
    line("", &names)?;
    rows.iter().try_for_each(|(what, values)| line(what, values))?;
    Ok(())
}

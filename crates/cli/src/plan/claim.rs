//! `wels plan --claim NAME`: a published claim, figure by figure.

use anyhow::Result;
use wels_model::count;
use wels_runs::plan::claims::{self, Check, Finding, Verdict};
use wels_runs::plan::devices::Devices;

use crate::output;

/// Examines and prints.
pub fn claim(name: &str, devices: &Devices, json: bool) -> Result<()> {
    let finding = claims::examine(name, devices)?;
    if json { Ok(output::json(&finding)?) } else { Ok(print(&finding)?) }
}

fn print(finding: &Finding) -> std::io::Result<()> {
    output::line(&format!("{} ({})", finding.title, finding.date))?;
    output::line(&format!("source: {}", finding.source))?;
    output::line(&format!("{:<52} {:>18} {:>18}  {:<6} from", "", "published", "computed", ""))?;
    for check in &finding.checks {
        let claimed = check.claimed.map_or(String::new(), |claimed| figure(claimed, check));
        let verdict = match check.verdict {
            Verdict::Holds => "holds",
            Verdict::Fails => "FAILS",
            Verdict::Computed => "",
        };
        let computed = figure(check.computed, check);
        output::line(
            format!("{:<52} {claimed:>18} {computed:>18}  {verdict:<6} {}", check.what, check.how).trim_end(),
        )?;
    }
    let failed = finding.checks.iter().filter(|check| check.verdict == Verdict::Fails).count();
    output::line(&match failed {
        0 => "the claim adds up".to_string(),
        1 => "the claim does not add up: one figure fails".to_string(),
        failed => format!("the claim does not add up: {failed} figures fail"),
    })?;
    finding.beside.iter().try_for_each(|beside| {
        output::line("")?;
        print(beside)
    })
}

fn figure(number: f64, check: &Check) -> String {
    let digits = match number.abs() {
        n if n >= 1e16 => return format!("{number:.3e} {}", check.unit).trim_end().to_string(),
        n if n >= 10_000.0 => count::Params(number.round() as u64).to_string(),
        n if n >= 1000.0 => format!("{number:.1}"),
        _ if check.unit == "GFLOP" => format!("{number:.3}"),
        n if n >= 100.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    };
    match check.unit {
        "$" => format!("${digits}"),
        unit => format!("{digits} {unit}").trim_end().to_string(),
    }
}

//! `wels eval --compare A B`: whether two models differ on the items that both were asked.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use wels_pipeline::refusal::refuse;
use wels_tasks::statistics::{Difference, difference};

use super::receipts;
use crate::output;

/// Differences less probable than this by chance are called significant.
const LEVEL: f64 = 0.05;

/// What is written.
#[derive(Serialize)]
struct Comparison {
    first: String,
    second: String,
    benchmarks: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: String,
    first: f64,
    second: f64,
    difference: Difference,
    /// p times the number of benchmarks that are still to be decided (Holm, "A simple sequentially rejective multiple
    /// test procedure", 1979).
    p_holm: f64,
    significant: bool,
    /// Items that only one of the two was asked.
    unpaired: usize,
    /// Items that the two were asked in different words.
    asked_differently: usize,
}

/// Compares the evaluations in two folders.
pub fn compare(first: &Path, second: &Path, json: bool) -> Result<()> {
    let names = names(first)?;
    let others = self::names(second)?;
    let mut rows = Vec::new();
    for name in names.iter().filter(|name| others.contains(name)) {
        rows.extend(row(name, &items(first, name)?, &items(second, name)?));
    }
    if rows.is_empty() {
        let message = format!("{} and {} have no item in common", first.display(), second.display());
        return Err(refuse(message, "evaluate both with the same benchmarks, --items and --seed"));
    }
    holm(&mut rows);
    let comparison =
        Comparison { first: first.display().to_string(), second: second.display().to_string(), benchmarks: rows };
    match json {
        true => output::json(&comparison)?,
        false => comparison.print()?,
    }
    Ok(())
}

/// The benchmarks of an evaluation.
fn names(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join("eval.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let settings: Value = serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))?;
    if settings["format"] != receipts::FORMAT {
        let message = format!("{} has the format {}, not {}", path.display(), settings["format"], receipts::FORMAT);
        return Err(refuse(message, "use the version of wels that wrote it"));
    }
    let benchmarks = settings["benchmarks"].as_array().into_iter().flatten();
    Ok(benchmarks.filter_map(|benchmark| benchmark["name"].as_str().map(str::to_owned)).collect())
}

/// An item's share of right samples, and the hash of its prompt.
type Items = BTreeMap<String, (f64, String)>;

fn items(folder: &Path, name: &str) -> Result<Items> {
    let mut sums: BTreeMap<String, (f64, usize, String)> = BTreeMap::new();
    for receipt in receipts::read(folder, name)? {
        let entry = sums.entry(receipt.item).or_insert((0.0, 0, receipt.prompt_sha256));
        entry.0 += f64::from(receipt.correct);
        entry.1 += 1;
    }
    Ok(sums.into_iter().map(|(item, (right, samples, prompt))| (item, (right / samples as f64, prompt))).collect())
}

fn row(name: &str, first: &Items, second: &Items) -> Option<Row> {
    let pairs: Vec<_> = first.iter().filter_map(|(item, a)| second.get(item).map(|b| (a, b))).collect();
    let (a, b): (Vec<f64>, Vec<f64>) = pairs.iter().map(|(a, b)| (a.0, b.0)).unzip();
    let difference = difference(&a, &b)?;
    let mean = |scores: &[f64]| scores.iter().sum::<f64>() / scores.len() as f64;
    Some(Row {
        name: name.to_owned(),
        first: mean(&a),
        second: mean(&b),
        difference,
        p_holm: difference.p,
        significant: false,
        unpaired: first.len() + second.len() - 2 * pairs.len(),
        asked_differently: pairs.iter().filter(|(a, b)| a.1 != b.1).count(),
    })
}

/// Corrects for the number of tests.
fn holm(rows: &mut [Row]) {
    let mut order: Vec<usize> = (0..rows.len()).collect();
    order.sort_by(|a, b| rows[*a].difference.p.total_cmp(&rows[*b].difference.p));
    let mut least = 0.0f64;
    for (decided, row) in order.into_iter().enumerate() {
        let left = (rows.len() - decided) as f64;
        least = least.max((rows[row].difference.p * left).min(1.0));
        rows[row].p_holm = least;
        rows[row].significant = least < LEVEL;
    }
}

impl Comparison {
    fn print(&self) -> std::io::Result<()> {
        output::line(&format!("A {}\nB {}", self.first, self.second))?;
        for row in &self.benchmarks {
            let Difference { items, value, low, high, first_better, second_better, test, .. } = row.difference;
            let verdict = match (row.significant, value > 0.0) {
                (false, _) => "no significant difference",
                (true, true) => "B is better",
                (true, false) => "A is better",
            };
            output::line(&format!(
                "{:<16} A {:.1}%, B {:.1}%, B − A {:+.1} points ({:+.1} to {:+.1}), p = {:.3}: {verdict}",
                row.name,
                row.first * 100.0,
                row.second * 100.0,
                value * 100.0,
                low * 100.0,
                high * 100.0,
                row.p_holm,
            ))?;
            let mut detail = format!("  {items} items, A better on {first_better}, B on {second_better}; {test}");
            if row.unpaired > 0 {
                detail.push_str(&format!("; {} items of one side alone are left out", row.unpaired));
            }
            if row.asked_differently > 0 {
                detail.push_str(&format!("; {} were asked differently", row.asked_differently));
            }
            output::line(&detail)?;
        }
        if self.benchmarks.len() > 1 {
            output::line("p after Holm's correction for the number of benchmarks")?;
        }
        Ok(())
    }
}

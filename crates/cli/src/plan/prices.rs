//! `wels plan --prices`: quality against price, as a table, in the terminal and as a picture.

use std::path::Path;

use anyhow::{Context, Result};
use wels_runs::plan::prices::{Price, Prices};
use wels_runs::report::chart::{self, Dot};
use wels_runs::report::price_dots;

use crate::output;

/// Prints the table and the chart; writes the picture to `svg`.
pub fn prices(prices: &Prices, svg: Option<&Path>, json: bool) -> Result<()> {
    let dots = price_dots(prices.iter());
    if let Some(svg) = svg {
        let picture = chart::scatter(
            "Quality against price",
            "US$ a million tokens, three read for one written",
            "quality",
            &dots,
        );
        let picture = picture.replacen("<svg ", &format!("<svg xmlns=\"http://www.w3.org/2000/svg\" {SVG_SIZE} "), 1);
        let picture = picture.replacen("\n", &format!("\n<style>{SVG_STYLE}</style>\n"), 1);
        std::fs::write(svg, picture).with_context(|| format!("cannot write {}", svg.display()))?;
    }
    if json {
        return Ok(output::json(prices)?);
    }
    let mut rows: Vec<&Price> = prices.iter().collect();
    rows.sort_by(|a, b| b.quality.unwrap_or(0.0).total_cmp(&a.quality.unwrap_or(0.0)));
    output::line(&format!(
        "{:<24} {:>8} {:>8} {:>8} {:>8}  {}",
        "US$ a million tokens", "in", "out", "blended", "quality", "date"
    ))?;
    for price in rows {
        let usd = |usd: Option<f64>| usd.map_or("n/a".into(), |usd| format!("{usd:.2}"));
        let quality = price.quality.map_or("n/a".into(), |quality| quality.to_string());
        let (usd_in, usd_out, blended) = (usd(price.usd_in), usd(price.usd_out), usd(price.blended()));
        let Price { model, date, .. } = price;
        output::line(&format!("{model:<24} {usd_in:>8} {usd_out:>8} {blended:>8} {quality:>8}  {date}"))?;
    }
    output::line("")?;
    terminal(&dots).iter().try_for_each(|line| output::line(line))?;
    Ok(())
}

const SVG_SIZE: &str = "width=\"720\" height=\"260\"";

const SVG_STYLE: &str = "svg { background: #fdfdfc; font-family: system-ui, sans-serif } .grid { stroke: #e3e6e9 } \
    .tick, .label { fill: #5b6670; font-size: 11px } .name { fill: #1d2329; font-size: 12px } .s0 { fill: #1f6f8b } \
    .own { fill: #c2410c }";

const COLUMNS: usize = 56;
const ROWS: usize = 14;

/// The chart in characters: price to the right on a logarithmic scale, quality upwards; a letter a model.
fn terminal(dots: &[Dot]) -> Vec<String> {
    let mut dots: Vec<&Dot> = dots.iter().filter(|dot| dot.x > 0.0).collect();
    dots.sort_by(|a, b| a.x.total_cmp(&b.x));
    let range = |values: &mut dyn Iterator<Item = f64>| {
        values.fold((f64::MAX, f64::MIN), |(low, high), x| (low.min(x), high.max(x)))
    };
    if dots.is_empty() {
        return vec!["no model has both a price and a quality".into()];
    }
    let (low_x, high_x) = range(&mut dots.iter().map(|dot| dot.x.ln()));
    let (low_y, high_y) = range(&mut dots.iter().map(|dot| dot.y));
    let place = |value: f64, low: f64, high: f64, cells: usize| match high > low {
        true => ((value - low) / (high - low) * (cells - 1) as f64).round() as usize,
        false => cells / 2,
    };
    let mut grid = vec![vec![' '; COLUMNS]; ROWS];
    let mut legend = Vec::new();
    for (letter, dot) in ('A'..='Z').chain('a'..='z').cycle().zip(dots) {
        let (mut column, row) =
            (place(dot.x.ln(), low_x, high_x, COLUMNS), ROWS - 1 - place(dot.y, low_y, high_y, ROWS));
        while grid[row][column] != ' ' && column + 1 < COLUMNS {
            column += 1;
        }
        grid[row][column] = letter;
        let own = if dot.own { ", one's own" } else { "" };
        legend.push(format!("  {letter}  {} (${:.2}, {}{own})", dot.name, dot.x, dot.y));
    }
    let mut lines: Vec<String> = Vec::new();
    for (row, cells) in grid.iter().enumerate() {
        let label = match row {
            0 => format!("{high_y:>5.0}"),
            row if row == ROWS - 1 => format!("{low_y:>5.0}"),
            _ => "     ".into(),
        };
        let cells: String = cells.iter().collect();
        lines.push(format!("{label} │{}", cells.trim_end()));
    }
    lines.push(format!("      └{}", "─".repeat(COLUMNS)));
    let (cheap, dear) = (format!("${:.2}", low_x.exp()), format!("${:.2}", high_x.exp()));
    lines.push(format!("       {cheap}{dear:>width$}", width = COLUMNS - cheap.len()));
    lines.extend(legend);
    lines
}

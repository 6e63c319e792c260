//! The pages.

use std::fmt::Write;

use super::chart::{self, Dot, Series, escape, number};
use super::data::{RunData, Sample, StageData, Summary};
use super::pictures;
use crate::account::Comparison;
use crate::ledger::Totals;
use crate::plan::prices::{Price, Prices};

const STYLE: &str = include_str!("style.css");

/// Title, unit of y, keys with their names.
type Picture = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

/// Curves that belong into one picture. What is in none of them gets a picture of
/// its own, unless it is in [`NOT_SHOWN`].
const PICTURES: [Picture; 5] = [
    (
        "Loss",
        "nats a token",
        &[
            ("loss", "training"),
            ("validation.nll", "held-out text"),
            ("mtp_loss.1", "second next token"),
            ("code_loss", "codes of pictures"),
        ],
    ),
    ("Reward", "", &[("reward", "reward"), ("accuracy", "accuracy"), ("validation.accuracy", "held-out accuracy")]),
    ("Length of answers", "tokens", &[("length", "length"), ("response_length", "length")]),
    ("Norm of the gradient", "", &[("grad_norm", "norm")]),
    ("Learning rate", "", &[("learning_rate", "learning rate")]),
];

const NOT_SHOWN: [&str; 8] =
    ["step", "tokens", "learned_tokens", "updates", "items", "seconds", "mfu", "validation.bits_per_byte"];

/// The page about one run.
pub(super) fn of_run(data: &RunData, prices: &Prices) -> String {
    let mut html = head(&format!("{} – a run of Wels", data.recipe.run.name));
    html += &summary(data);
    for stage in &data.stages {
        html += &curves(stage);
        html += &loads(stage);
    }
    html += &samples(data);
    html += &pictures::of_sheets(&data.sheets);
    html += &pictures::of_grades(&data.drawn);
    html += &questions(data);
    html += &held_out(data);
    html += &scores(data);
    html += &costs(data);
    html += &plan_and_account(&data.comparisons);
    html += &quality_against_price(data, prices);
    html += &reproduce(data);
    html + "</main>\n<footer>Written by wels from the run's own files. Nothing is loaded from elsewhere.</footer>\n</body></html>\n"
}

fn head(title: &str) -> String {
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{}</title>\n<style>\n{STYLE}</style></head>\n<body><main>\n",
        escape(title)
    )
}

fn tile(html: &mut String, name: &str, value: &str) {
    let _ = write!(html, "<div><dt>{}</dt><dd>{}</dd></div>", escape(name), escape(value));
}

fn summary(data: &RunData) -> String {
    let (recipe, totals) = (&data.recipe, data.totals());
    let mut html = format!("<h1>{}</h1>\n<p class=\"lead\">{}</p>\n", escape(&recipe.run.name), lead(data));
    html += "<dl class=\"tiles\">";
    if let Some(plan) = &data.pretraining {
        tile(&mut html, "parameters", &number(plan.parameters as f64));
        tile(&mut html, "active a token", &number(plan.parameters_activated as f64));
    }
    let trained = Totals::of(data.entries.iter().filter(|entry| entry.kind == "train"));
    tile(&mut html, "tokens trained on", &number(trained.tokens as f64));
    if let Some(bits) = data.last("validation.bits_per_byte") {
        tile(&mut html, "bits a byte, held out", &format!("{bits:.3}"));
    } else if let Some(loss) = data.last("loss") {
        tile(&mut html, "loss", &format!("{loss:.3}"));
    }
    match (data.held_out.last(), data.last("accuracy")) {
        (Some(score), _) => tile(&mut html, &format!("right, held out: {}", score.model), &percent(score.accuracy)),
        (None, Some(accuracy)) => tile(&mut html, "right in the last step", &percent(accuracy)),
        (None, None) => {}
    }
    tile(&mut html, "time", &duration(totals.seconds));
    if totals.cost_micro_usd > 0 {
        tile(&mut html, "money", &format!("${:.4}", totals.cost_micro_usd as f64 / 1e6));
    }
    html + "</dl>\n"
}

/// What was trained, on what.
fn lead(data: &RunData) -> String {
    let recipe = &data.recipe;
    if data.pretraining.is_none() {
        let stages: Vec<String> = recipe.stages.iter().map(|stage| escape(&stage.name)).collect();
        return format!("Stages {}; seed {}.", stages.join(", "), recipe.run.seed);
    }
    let config = recipe.model.config();
    let experts = config.moe.as_ref().map_or("dense".to_string(), |moe| {
        format!("{} experts of which {} act, {} shared", moe.experts, moe.top_k, moe.shared_experts)
    });
    format!(
        "A {} model of {} layers, {} wide, {experts}; trained on {} in sequences of {} tokens, seed {}.",
        config.family.model_type(),
        config.layers,
        config.hidden_size,
        escape(&sources(data)),
        recipe.data.sequence_length,
        recipe.run.seed,
    )
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

fn sources(data: &RunData) -> String {
    let names = data.recipe.data.sources.iter().map(|source| source.rsplit('/').next().unwrap_or(source).to_string());
    names.collect::<Vec<_>>().join(", ")
}

fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

fn series(stage: &StageData, key: &str, name: &str) -> Option<Series> {
    let points = stage.curves.get(key)?.clone();
    Some(Series { name: name.to_string(), marked: key.starts_with("validation."), points })
}

fn curves(stage: &StageData) -> String {
    let mut html = format!("<h2>Curves of {}</h2>\n", escape(&stage.name));
    if !stage.warnings.is_empty() {
        html += "<h3>What it suffers from</h3>\n<ul>";
        for (step, words) in &stage.warnings {
            let _ = write!(html, "<li>From step {step} on: {}.</li>", escape(words));
        }
        html += "</ul>\n";
    }
    let mut shown: Vec<&str> = NOT_SHOWN.to_vec();
    for (title, unit, keys) in PICTURES {
        let found: Vec<Series> = keys.iter().filter_map(|(key, name)| series(stage, key, name)).collect();
        shown.extend(keys.iter().map(|(key, _)| *key));
        if !found.is_empty() {
            html += &figure(title, unit, &found);
        }
    }
    for key in stage.curves.keys().filter(|key| !shown.contains(&key.as_str())) {
        let mut title = key.replace(['_', '.'], " ");
        title.get_mut(..1).into_iter().for_each(str::make_ascii_uppercase);
        html += &figure(&title, "", &[series(stage, key, &title).expect("a key of the map")]);
    }
    html
}

/// A picture of curves, and the same as a table of a few points.
fn figure(title: &str, unit: &str, series: &[Series]) -> String {
    let mut html = format!("<figure><h3>{}</h3>\n", escape(title));
    html += &chart::lines(title, "step", unit, series);
    html += "<details><summary>as a table</summary><div class=\"wide\"><table><tr><th>step</th>";
    for series in series {
        let _ = write!(html, "<th class=\"n\">{}</th>", escape(&series.name));
    }
    html += "</tr>\n";
    let first = &series[0].points;
    let stride = first.len().div_ceil(12).max(1);
    let steps = first.iter().enumerate().filter(|(i, _)| i % stride == 0 || i + 1 == first.len());
    for (step, _) in steps.map(|(_, point)| point) {
        let _ = write!(html, "<tr><td>{}</td>", number(*step));
        for series in series {
            let nearest = series.points.iter().min_by(|a, b| (a.0 - step).abs().total_cmp(&(b.0 - step).abs()));
            let _ = write!(html, "<td class=\"n\">{}</td>", nearest.map_or(String::new(), |(_, y)| number(*y)));
        }
        html += "</tr>\n";
    }
    html + "</table></div></details></figure>\n"
}

/// The map of loads, a picture a layer.
fn loads(stage: &StageData) -> String {
    if stage.loads.is_empty() {
        return String::new();
    }
    let mut html = format!(
        "<h2>Load of the experts in {}</h2>\n<p class=\"note\">Tokens that went to each expert, against an even share. Blue: \
         a quarter of it or less; grey: even; orange: four times or more.</p>\n",
        escape(&stage.name)
    );
    let mut table = String::new();
    for (layer, rows) in &stage.loads {
        let last: Vec<f64> = rows.iter().filter_map(|row| row.last().copied()).collect();
        let (low, high) = last.iter().fold((f64::MAX, 0.0f64), |(low, high), x| (low.min(*x), high.max(*x)));
        let description = format!("Layer {layer}: at the end between {low:.2} and {high:.2} times the even share.");
        let _ = writeln!(html, "<figure><h3>Layer {layer}</h3>");
        html += &chart::heat_map(&format!("Load of layer {layer}"), &description, "expert", stage.last_step, rows);
        html += "</figure>\n";
        let first: Vec<f64> = rows.iter().filter_map(|row| row.first().copied()).collect();
        let most = |loads: &[f64]| loads.iter().copied().fold(0.0, f64::max);
        let _ = writeln!(
            table,
            "<tr><td>{layer}</td><td class=\"n\">{:.2}</td><td class=\"n\">{:.2}</td><td class=\"n\">{low:.2}</td></tr>",
            most(&first),
            most(&last)
        );
    }
    html + "<details><summary>as a table</summary><table><tr><th>layer</th><th class=\"n\">greatest at first</th>\
            <th class=\"n\">greatest at last</th><th class=\"n\">least at last</th></tr>\n"
        + &table
        + "</table></details>\n"
}

fn samples(data: &RunData) -> String {
    let Some((_, first)) = data.samples.first() else { return String::new() };
    let mut html = "<h2>Samples</h2>\n".to_string();
    for (index, Sample { prompt, .. }) in first.iter().enumerate() {
        let _ = write!(html, "<h3 class=\"prompt\">{}</h3>\n<div class=\"side\">", escape(prompt));
        for (stage, texts) in &data.samples {
            let same = texts.iter().find(|sample| sample.prompt == *prompt).or(texts.get(index));
            let Some(Sample { text, thinking, .. }) = same else { continue };
            let _ = write!(html, "<div><p class=\"note\">after {}</p>", escape(stage));
            if let Some(thinking) = thinking {
                let _ = write!(html, "<pre class=\"think\">{}</pre>", escape(thinking));
            }
            let _ = write!(html, "<pre>{}</pre></div>", escape(text));
        }
        html += "</div>\n";
    }
    html
}

/// What stages of kind `score` found, with the interval that 1.96 standard errors give.
/// What became of the questions that documents gave, and what was looked for in those to be learnt.
fn questions(data: &RunData) -> String {
    let mut html = String::new();
    for made in &data.questions {
        let _ = write!(
            html,
            "<h2>Questions of {}</h2>\n<table><tr><th>from {} documents</th><th class=\"n\">questions</th></tr>\n",
            escape(&made.stage),
            made.documents
        );
        for (what, count) in [
            ("put to the model", made.asked),
            ("refused: wrong with the passage", made.wrong_with_passage),
            ("refused: right without the passage", made.right_without_passage),
            ("refused: shares words with a held-out one", made.overlapping),
            ("to be learnt", made.train),
            ("held out", made.held_out),
        ] {
            let _ = writeln!(html, "<tr><td>{what}</td><td class=\"n\">{count}</td></tr>");
        }
        let _ = write!(
            html,
            "</table>\n<p class=\"note\">Of {} held-out questions {} share {} words in a row with a question to be \
             learnt; {} are too short to be looked for. The sentences of {} stand in the documents, which is where \
             they are to be known from.</p>\n",
            made.held_out, made.held_out_in_train, made.run_words, made.held_out_too_short, made.held_out_in_documents
        );
    }
    html
}

fn held_out(data: &RunData) -> String {
    if data.held_out.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Held-out items</h2>\n<div class=\"wide\"><table><tr><th>model</th><th>task</th>\
                    <th class=\"n\">right</th><th class=\"n\">95% interval</th><th class=\"n\">answers</th>\
                    <th class=\"n\">p against the first</th></tr>\n"
        .to_string();
    for score in &data.held_out {
        let end = |sign: f64| percent((score.accuracy + sign * 1.96 * score.standard_error).clamp(0.0, 1.0));
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{} to {}</td><td class=\"n\">{}</td>\
             <td class=\"n\">{}</td></tr>",
            escape(&score.model),
            escape(&score.task),
            percent(score.accuracy),
            end(-1.0),
            end(1.0),
            score.answers,
            score.p.map_or("–".into(), |p| if p < 1e-4 { "&lt;0.0001".into() } else { format!("{p:.4}") })
        );
    }
    html + "</table></div>\n"
}

fn scores(data: &RunData) -> String {
    if data.scores.is_empty() {
        return String::new();
    }
    let mut html = "<h2>Scores</h2>\n<div class=\"wide\"><table><tr><th>benchmark</th><th class=\"n\">score</th>\
                    <th class=\"n\">95% interval</th><th class=\"n\">items</th></tr>\n"
        .to_string();
    for score in &data.scores {
        let interval = score.low.zip(score.high).map_or("–".into(), |(low, high)| format!("{low:.1} to {high:.1}"));
        let items = score.items.map_or("–".into(), |items| items.to_string());
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{:.1}</td><td class=\"n\">{interval}</td><td class=\"n\">{items}</td></tr>",
            escape(&score.bench),
            score.score
        );
    }
    html + "</table></div>\n"
}

fn costs(data: &RunData) -> String {
    let stages: Vec<(&str, Totals)> = Totals::by(&data.entries, |entry| &entry.stage);
    let stages: Vec<_> = stages.into_iter().filter(|(stage, _)| !stage.is_empty()).collect();
    let bars: Vec<(String, f64, String)> =
        stages.iter().map(|(stage, totals)| (stage.to_string(), totals.seconds, duration(totals.seconds))).collect();
    let mut html = "<h2>Cost by stage</h2>\n<figure>\n".to_string();
    html += &chart::bars("Seconds by stage", &bars);
    html += "</figure>\n<div class=\"wide\"><table><tr><th>stage</th><th class=\"n\">tokens</th><th class=\"n\">operations</th>\
             <th class=\"n\">time</th><th class=\"n\">device-hours</th><th class=\"n\">processor time</th><th class=\"n\">energy</th>\
             <th class=\"n\">money</th></tr>\n";
    for (stage, totals) in &stages {
        cost_row(&mut html, stage, totals);
    }
    cost_row(&mut html, "all", &data.totals());
    html + "</table></div>\n"
}

fn cost_row(html: &mut String, name: &str, totals: &Totals) {
    let known = |known: bool, words: String| if known { words } else { "–".to_string() };
    let cells = [
        known(totals.tokens > 0, number(totals.tokens as f64)),
        known(totals.flops > 0.0, format!("{}FLOP", number(totals.flops))),
        duration(totals.seconds),
        format!("{:.4}", totals.device_seconds / 3600.0),
        known(totals.cpu_seconds > 0.0, duration(totals.cpu_seconds)),
        totals.energy_joules().map_or("–".into(), |joules| format!("{:.4} kWh", joules / 3.6e6)),
        known(totals.cost_micro_usd > 0, format!("${:.4}", totals.cost_micro_usd as f64 / 1e6)),
    ];
    let _ = write!(html, "<tr><td>{}</td>", escape(name));
    cells.iter().for_each(|cell| {
        let _ = write!(html, "<td class=\"n\">{}</td>", escape(cell));
    });
    *html += "</tr>\n";
}

fn plan_and_account(comparisons: &[Comparison]) -> String {
    let mut html = String::new();
    for comparison in comparisons {
        let _ = write!(
            html,
            "<h2>Plan and account of {}</h2>\n<div class=\"wide\"><table><tr><th></th><th class=\"n\">planned</th>\
             <th class=\"n\">actual</th></tr>\n",
            escape(&comparison.planned.stage)
        );
        for (what, planned, actual) in comparison.rows() {
            let _ =
                writeln!(html, "<tr><td>{what}</td><td class=\"n\">{planned}</td><td class=\"n\">{actual}</td></tr>");
        }
        html += "</table></div>\n";
        comparison.reasons.iter().for_each(|reason| {
            let _ = writeln!(html, "<p class=\"note\">{}.</p>", escape(reason));
        });
    }
    html
}

/// The dots of a picture of quality against price.
pub fn price_dots<'a>(prices: impl Iterator<Item = &'a Price>) -> Vec<Dot> {
    let dot =
        |price: &Price| Some(Dot { name: price.model.clone(), x: price.blended()?, y: price.quality?, own: price.own });
    prices.filter_map(dot).collect()
}

fn quality_against_price(data: &RunData, prices: &Prices) -> String {
    // A page about a model whose quality was never measured has nothing to set beside others.
    if data.scores.is_empty() && !prices.iter().any(|price| price.own) {
        return String::new();
    }
    let dots = price_dots(prices.iter());
    let mut html = "<h2>Quality against price</h2>\n<figure>\n".to_string();
    html +=
        &chart::scatter("Quality against price", "US$ a million tokens, three read for one written", "quality", &dots);
    html += "<details><summary>as a table</summary><table><tr><th>model</th><th class=\"n\">price</th><th class=\"n\">quality</th>\
             <th>date</th></tr>\n";
    for price in prices.iter() {
        let _ = writeln!(
            html,
            "<tr><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td></tr>",
            escape(&price.model),
            price.blended().map_or("–".into(), |usd| format!("${usd:.2}")),
            price.quality.map_or("–".into(), number),
            escape(&price.date)
        );
    }
    html + "</table></details></figure>\n"
}

fn reproduce(data: &RunData) -> String {
    let mut html = "<h2>How to reproduce</h2>\n".to_string();
    let name = escape(&data.recipe.run.name);
    let Some(receipt) = &data.receipt else {
        return html + "<p>The run has no checkpoint yet, and so no receipt.</p>\n";
    };
    let _ = write!(
        html,
        "<p>With wels {} and the same data, this recipe gives the same bits on any machine.</p>\n\
         <pre>wels run recipe.toml\nwels verify runs/{name}                      # this run, from its own directory\n\
         wels verify --receipt receipt.json       # from the receipt and the data alone</pre>\n",
        escape(&receipt.wels_version)
    );
    html += "<div class=\"wide\"><table><tr><th>what</th><th>SHA-256</th></tr>\n";
    for (stage, files) in &receipt.inputs {
        for (file, record) in files {
            let _ = writeln!(
                html,
                "<tr><td>{}/{}</td><td class=\"hash\">{}</td></tr>",
                escape(stage),
                escape(file),
                record.sha256
            );
        }
    }
    let last = receipt.checkpoints.last();
    for (checkpoint, (file, record)) in last.iter().flat_map(|last| last.files.iter().map(move |file| (last, file))) {
        let place = format!("{}/step-{:06}/{file}", checkpoint.stage, checkpoint.step);
        let _ = writeln!(html, "<tr><td>{}</td><td class=\"hash\">{}</td></tr>", escape(&place), record.sha256);
    }
    let _ = write!(
        html,
        "<tr><td>line {} of the ledger</td><td class=\"hash\">{}</td></tr>\n</table></div>\n",
        receipt.ledger_lines, receipt.ledger_head
    );
    let _ = writeln!(
        html,
        "<details><summary>recipe.toml, every default written out</summary><pre>{}</pre></details>",
        escape(&receipt.recipe)
    );
    html
}

/// The page about several runs.
pub(super) fn of_several(runs: &[RunData]) -> String {
    let names: Vec<&str> = runs.iter().map(|run| run.recipe.run.name.as_str()).collect();
    let mut html = head(&format!("{} – runs of Wels", names.join(", ")));
    let _ = write!(html, "<h1>{}</h1>\n<div class=\"wide\"><table><tr><th></th>", escape(&names.join(", ")));
    names.iter().for_each(|name| {
        let _ = write!(html, "<th class=\"n\">{}</th>", escape(name));
    });
    html += "</tr>\n";
    for (what, values) in rows(&runs.iter().map(RunData::summary).collect::<Vec<_>>()) {
        let _ = write!(html, "<tr><td>{what}</td>");
        values.iter().for_each(|value| {
            let _ = write!(html, "<td class=\"n\">{}</td>", escape(value));
        });
        html += "</tr>\n";
    }
    html += "</table></div>\n";
    for (key, title, unit) in [
        ("loss", "Loss", "nats a token"),
        ("validation.nll", "Loss on held-out text", "nats a token"),
        ("reward", "Reward", ""),
        ("accuracy", "Accuracy", ""),
    ] {
        let of = |run: &RunData| run.stages.iter().find_map(|stage| series(stage, key, &run.recipe.run.name));
        let found: Vec<Series> = runs.iter().filter_map(of).collect();
        if !found.is_empty() {
            html += &figure(title, unit, &found);
        }
    }
    html + "</main></body></html>\n"
}

/// Summaries in words: what it is, and a value a run.
pub fn rows(runs: &[Summary]) -> Vec<(&'static str, Vec<String>)> {
    let each = |value: &dyn Fn(&Summary) -> Option<String>| -> Vec<String> {
        runs.iter().map(|run| value(run).unwrap_or_else(|| "–".into())).collect()
    };
    let figure = |value: Option<f64>| value.map(|value| format!("{value:.4}"));
    let count = |value: Option<u64>| value.map(|value| number(value as f64));
    vec![
        ("parameters", each(&|run| count(run.parameters))),
        ("active a token", each(&|run| count(run.parameters_activated))),
        ("tokens", each(&|run| count(Some(run.tokens)))),
        ("operations", each(&|run| Some(format!("{:.3e}", run.flops)))),
        ("loss", each(&|run| figure(run.loss))),
        ("loss, held out", each(&|run| figure(run.validation_nll))),
        ("bits a byte, held out", each(&|run| figure(run.bits_per_byte))),
        ("reward", each(&|run| figure(run.reward))),
        ("right in the last step", each(&|run| figure(run.accuracy))),
        ("right, held out", each(&|run| run.held_out_accuracy.map(percent))),
        ("time", each(&|run| Some(duration(run.seconds)))),
        ("memory", each(&|run| Some(format!("{}B", number(run.peak_rss_bytes as f64))))),
        ("money", each(&|run| Some(format!("${:.4}", run.cost_micro_usd as f64 / 1e6)))),
    ]
}

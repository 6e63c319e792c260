//! The figures of a machine, as JSON and as a page of Markdown.

use std::fmt::Write;

use serde::{Deserialize, Serialize};
use wels_kernels::par::{self, Counts};
use wels_pipeline::words::short;

/// Changes with the meaning of the JSON.
pub const SCHEMA: u32 = 1;

/// All that `--json` writes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Page {
    pub schema: u32,
    pub version: String,
    pub processor: String,
    pub architecture: String,
    pub system: String,
    pub isa: String,
    /// Instructions that kernels are written for and the processor has not.
    pub lacking: Vec<String>,
    pub threads: usize,
    /// Cores that the program may use.
    pub cores: usize,
    /// What the measurements took.
    pub seconds: f64,
    pub fma_flops_per_second: f64,
    pub dot_ops_per_second: f64,
    pub read_bytes_per_second: f64,
    pub figures: Vec<Figure>,
    pub waits: Vec<Waits>,
    pub notes: Vec<String>,
}

/// A figure; greater is better.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: String,
    pub limit: Option<Limit>,
    pub peer: Option<Peer>,
}

/// The most that a figure could be if nothing but one thing took time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Limit {
    pub value: f64,
    /// That thing.
    pub of: String,
    /// The figure's share of it.
    pub share: f64,
}

impl Limit {
    /// Measured in turns with the figure, so that the share is not the quotient of the two.
    pub fn shared(value: f64, of: &str, share: f64) -> Limit {
        Limit { value, of: of.into(), share }
    }

    /// Measured beside a figure.
    pub fn of(value: f64, of: &str, figure: f64) -> Limit {
        Limit::shared(value, of, figure / value)
    }
}

/// The same figure of another program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub name: String,
    pub value: f64,
}

/// How often all threads wait for the last of them, and what they share out in between.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Waits {
    pub what: String,
    pub calls: f64,
    pub tasks: f64,
    pub seconds: f64,
}

impl Waits {
    /// A `times`th of what was divided since `before`, which takes `seconds`.
    pub fn between(before: Counts, what: &str, times: u64, seconds: f64) -> Waits {
        let now = par::counts();
        let part = |now: u64, before: u64| (now - before) as f64 / times as f64;
        let (calls, tasks) = (part(now.calls, before.calls), part(now.tasks, before.tasks));
        Waits { what: what.into(), calls, tasks, seconds }
    }
}

impl Page {
    /// The page, with the figures of another one beside, if given.
    pub fn markdown(&self, other: Option<&Page>) -> String {
        let mut text = String::new();
        self.write(other, &mut text).expect("a string");
        text
    }

    fn write(&self, other: Option<&Page>, text: &mut String) -> std::fmt::Result {
        writeln!(text, "# Wels {} on {}\n", self.version, self.processor)?;
        writeln!(text, "{}.", self.in_words())?;
        if let Some(other) = other {
            writeln!(text, "\nThe other: {}; {}.", other.processor, other.in_words())?;
        }
        let peers = self.figures.iter().any(|figure| figure.peer.is_some());
        let mut heads = vec!["what", "here", "share of the limit", "limit"];
        heads.extend(peers.then_some("another program"));
        heads.extend(other.map(|_| "the other"));
        writeln!(text, "\n| {} |", heads.join(" | "))?;
        writeln!(text, "|{}", "---|".repeat(heads.len()))?;
        for figure in &self.figures {
            let mut cells = figure.cells();
            cells.extend(peers.then(|| figure.of_peer()));
            cells.extend(other.map(|other| figure.beside(other)));
            writeln!(text, "| {} |", cells.join(" | "))?;
        }
        self.write_waits(text)?;
        for note in &self.notes {
            writeln!(text, "\nNote: {note}.")?;
        }
        Ok(())
    }

    fn write_waits(&self, text: &mut String) -> std::fmt::Result {
        let divided: Vec<&Waits> = self.waits.iter().filter(|waits| waits.calls > 0.0).collect();
        if divided.is_empty() {
            return Ok(());
        }
        writeln!(text, "\n| what {} threads share | divided | tasks | time between two waits |", self.threads)?;
        writeln!(text, "|---|---|---|---|")?;
        for Waits { what, calls, tasks, seconds } in divided {
            writeln!(text, "| {what} | {calls:.0} times | {tasks:.0} | {:.0} µs |", 1e6 * seconds / calls)?;
        }
        Ok(())
    }

    /// The machine.
    fn in_words(&self) -> String {
        let lacking = if self.lacking.is_empty() { "nothing".into() } else { self.lacking.join(", ") };
        format!(
            "{} threads on {} cores ({} {}); {} in use, of what kernels are written for it lacks {lacking}. At most \
             {}FLOP/s in f32, {}OP/s on bytes, {}B/s of reading",
            self.threads,
            self.cores,
            self.system,
            self.architecture,
            self.isa,
            short(self.fma_flops_per_second),
            short(self.dot_ops_per_second),
            short(self.read_bytes_per_second),
        )
    }
}

impl Figure {
    fn cells(&self) -> Vec<String> {
        let value = format!("{}{}", short(self.value), self.glued_unit());
        let (share, limit) = match &self.limit {
            Some(Limit { value, of, share }) => {
                (format!("{:.0}%", 100.0 * share), format!("{}{}: {of}", short(*value), self.glued_unit()))
            }
            None => ("–".into(), "–".into()),
        };
        vec![self.name.clone(), value, share, limit]
    }

    /// The unit behind a number with the letter of its magnitude.
    fn glued_unit(&self) -> String {
        if self.unit.starts_with("tok") { format!(" {}", self.unit) } else { self.unit.clone() }
    }

    fn of_peer(&self) -> String {
        let Some(peer) = &self.peer else { return "–".into() };
        format!("{}{} ({}): {:.2}×", short(peer.value), self.glued_unit(), peer.name, self.value / peer.value)
    }

    fn beside(&self, other: &Page) -> String {
        match other.figures.iter().find(|figure| (&figure.name, &figure.unit) == (&self.name, &self.unit)) {
            Some(figure) => {
                let value = format!("{}{}", short(figure.value), self.glued_unit());
                format!("{value}: here {:.2}×", self.value / figure.value)
            }
            None => "–".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(value: f64) -> Page {
        let figure = |name: &str, value, peer| Figure {
            name: name.into(),
            value,
            unit: "tok/s".into(),
            limit: Some(Limit::of(200.0, "reading", value)),
            peer,
        };
        Page {
            schema: SCHEMA,
            version: "1".into(),
            processor: "A processor".into(),
            architecture: "x".into(),
            system: "y".into(),
            isa: "plain".into(),
            lacking: vec!["neon".into()],
            threads: 2,
            cores: 4,
            seconds: 1.0,
            fma_flops_per_second: 1e9,
            dot_ops_per_second: 2e9,
            read_bytes_per_second: 3e9,
            figures: vec![
                figure("answers", value, Some(Peer { name: "it".into(), value: 50.0 })),
                figure("prompts", 20.0, None),
            ],
            waits: vec![Waits { what: "a step".into(), calls: 100.0, tasks: 800.0, seconds: 0.01 }],
            notes: vec!["a thing is left out".into()],
        }
    }

    #[test]
    fn a_page_holds_figures_beside_limits_peers_and_another_machine() {
        let (here, mut other) = (page(100.0), page(80.0));
        other.figures.truncate(1);
        let text = here.markdown(Some(&other));
        for line in [
            "# Wels 1 on A processor",
            "| what | here | share of the limit | limit | another program | the other |",
            "| answers | 100 tok/s | 50% | 200 tok/s: reading | 50 tok/s (it): 2.00× | 80 tok/s: here 1.25× |",
            "| prompts | 20 tok/s | 10% | 200 tok/s: reading | – | – |",
            "| a step | 100 times | 800 | 100 µs |",
            "Note: a thing is left out.",
        ] {
            assert!(text.lines().any(|other| other == line), "{line}\nis not in\n{text}");
        }
        assert!(!here.markdown(None).contains("the other"));
    }

    #[test]
    fn json_comes_back() {
        let page = page(7.0);
        let again: Page = serde_json::from_str(&serde_json::to_string(&page).unwrap()).unwrap();
        assert_eq!(again.markdown(None), page.markdown(None));
    }
}

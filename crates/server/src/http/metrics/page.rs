//! Prometheus' text format, version 0.0.4.

use std::fmt::Write;

use super::histogram::Counts;

/// Types of metrics without parts.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Counter,
    Gauge,
}

/// The page, as far as it is written.
#[derive(Default)]
pub(super) struct Page {
    /// In the order in which they came first.
    families: Vec<Family>,
    /// The label that every sample of a model has.
    model: String,
}

/// One metric, of all models: the format wants its samples together.
struct Family {
    name: String,
    text: String,
}

impl Page {
    /// Samples from now on are this model's.
    pub fn begin_model(&mut self, name: &str) {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        self.model = format!("model_name=\"{name}\"");
    }

    /// One metric of the model: samples with their further labels.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str, samples: &[(&str, f64)]) {
        let model = self.model.clone();
        let text = self.samples(name, kind.name(), help);
        for (labels, value) in samples {
            let labels = [model.as_str(), labels].into_iter().filter(|label| !label.is_empty());
            let labels = labels.collect::<Vec<_>>().join(",");
            line(text, &format!("{name}{{{labels}}} {value}"));
        }
    }

    /// One metric of the server, without labels.
    pub fn plain(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        line(self.samples(name, kind.name(), help), &format!("{name} {value}"));
    }

    /// One metric of the model with buckets.
    pub fn histogram(&mut self, name: &str, help: &str, counts: &Counts) {
        let model = self.model.clone();
        let text = self.samples(name, "histogram", help);
        for (bound, bucket) in counts.bounds.iter().zip(&counts.buckets) {
            line(text, &format!("{name}_bucket{{{model},le=\"{bound:?}\"}} {bucket}"));
        }
        line(text, &format!("{name}_bucket{{{model},le=\"+Inf\"}} {}", counts.count));
        line(text, &format!("{name}_sum{{{model}}} {}", counts.sum));
        line(text, &format!("{name}_count{{{model}}} {}", counts.count));
    }

    /// All that was written.
    pub fn text(self) -> String {
        self.families.into_iter().map(|family| family.text).collect()
    }

    /// Where a metric's samples are written to.
    fn samples(&mut self, name: &str, kind: &str, help: &str) -> &mut String {
        let at = self.families.iter().position(|family| family.name == name).unwrap_or_else(|| {
            let text = format!("# HELP {name} {help}\n# TYPE {name} {kind}\n");
            self.families.push(Family { name: name.to_owned(), text });
            self.families.len() - 1
        });
        &mut self.families[at].text
    }
}

fn line(text: &mut String, line: &str) {
    writeln!(text, "{line}").expect("a string takes what is written");
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

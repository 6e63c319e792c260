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
pub(super) struct Page {
    text: String,
    /// The label that every sample of a model has.
    model: String,
}

impl Page {
    /// An empty one.
    pub fn of_model(name: &str) -> Page {
        let name = name.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        Page { text: String::new(), model: format!("model_name=\"{name}\"") }
    }

    /// One metric of the model's server: samples with their further labels.
    pub fn family(&mut self, name: &str, kind: Kind, help: &str, samples: &[(&str, f64)]) {
        self.head(name, kind.name(), help);
        for (labels, value) in samples {
            let labels = [self.model.as_str(), labels].into_iter().filter(|label| !label.is_empty());
            let labels = labels.collect::<Vec<_>>().join(",");
            self.line(&format!("{name}{{{labels}}} {value}"));
        }
    }

    /// One metric of the process, without labels.
    pub fn plain(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.head(name, kind.name(), help);
        self.line(&format!("{name} {value}"));
    }

    /// One metric with buckets.
    pub fn histogram(&mut self, name: &str, help: &str, counts: &Counts) {
        self.head(name, "histogram", help);
        let model = self.model.clone();
        for (bound, bucket) in counts.bounds.iter().zip(&counts.buckets) {
            self.line(&format!("{name}_bucket{{{model},le=\"{bound:?}\"}} {bucket}"));
        }
        self.line(&format!("{name}_bucket{{{model},le=\"+Inf\"}} {}", counts.count));
        self.line(&format!("{name}_sum{{{model}}} {}", counts.sum));
        self.line(&format!("{name}_count{{{model}}} {}", counts.count));
    }

    /// All that was written.
    pub fn text(self) -> String {
        self.text
    }

    fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.line(&format!("# HELP {name} {help}"));
        self.line(&format!("# TYPE {name} {kind}"));
    }

    fn line(&mut self, line: &str) {
        writeln!(self.text, "{line}").expect("a string takes what is written");
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        }
    }
}

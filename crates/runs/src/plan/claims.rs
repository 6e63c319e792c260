//! Whether a published claim adds up, from first principles: hours and money from their parts, and from tokens,
//! operations and hours the utilisation that the claim implies. A claim is a TOML file; some come with the program.

mod post_training;

mod pretraining;

mod service;

use std::path::Path;

use serde::{Deserialize, Serialize};
use wels_model::config::ModelConfig;
use wels_model::count;
use wels_model::presets;

use super::PlanError;
use super::devices::Devices;

/// Name and text of the claims that come with the program.
const BUILT_IN: [(&str, &str); 5] = [
    ("deepseek-v3", include_str!("../../data/claims/deepseek-v3.toml")),
    ("deepseek-r1", include_str!("../../data/claims/deepseek-r1.toml")),
    ("deepseek-serving", include_str!("../../data/claims/deepseek-serving.toml")),
    ("deepseek-v2", include_str!("../../data/claims/deepseek-v2.toml")),
    ("llama-3.1-405b", include_str!("../../data/claims/llama-3.1-405b.toml")),
];

/// Names of the claims that come with the program.
pub fn names() -> impl Iterator<Item = &'static str> {
    BUILT_IN.iter().map(|(name, _)| *name)
}

/// A published claim, as its file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// The claim in a sentence.
    pub title: String,
    /// Where it was published.
    pub source: String,
    pub date: String,
    /// Claims to set beside it.
    #[serde(default)]
    pub beside: Vec<String>,
    model: Model,
    training: Option<pretraining::Training>,
    post_training: Option<post_training::PostTraining>,
    serving: Option<service::Service>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    preset: Option<String>,
    /// Keys of a `config.json`.
    config: Option<toml::Table>,
    total: Option<f64>,
    activated: Option<f64>,
}

/// How a published figure and the computed one compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The published figure follows from the others.
    Holds,
    Fails,
    /// A figure that is computed here, with nothing to compare.
    Computed,
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Check {
    pub what: String,
    /// As published.
    pub claimed: Option<f64>,
    /// As it follows.
    pub computed: f64,
    /// `$`, `h`, `%`, …
    pub unit: &'static str,
    /// The formula with its numbers.
    pub how: String,
    pub verdict: Verdict,
}

/// What was found about a claim.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Finding {
    pub title: String,
    /// Where it was published.
    pub source: String,
    pub date: String,
    pub checks: Vec<Check>,
    /// Whether none failed.
    pub adds_up: bool,
    /// The same for claims to set beside it.
    pub beside: Vec<Finding>,
}

/// Comparisons as they are collected.
struct Checks(Vec<Check>);

impl Checks {
    /// Compares a published figure with the one that follows; they may differ by the fraction `within`, for what was
    /// rounded in print.
    fn compare(
        &mut self,
        what: impl Into<String>,
        claimed: f64,
        computed: f64,
        within: f64,
        unit: &'static str,
        how: String,
    ) {
        let verdict = match ((computed - claimed) / claimed).abs() <= within {
            true => Verdict::Holds,
            false => Verdict::Fails,
        };
        self.0.push(Check { what: what.into(), claimed: Some(claimed), computed, unit, how, verdict });
    }

    /// As [`compare`](Self::compare) where a figure was published, [`computed`](Self::computed) where none was.
    fn maybe(
        &mut self,
        what: impl Into<String>,
        claimed: Option<f64>,
        computed: f64,
        within: f64,
        unit: &'static str,
        how: String,
    ) {
        match claimed {
            Some(claimed) => self.compare(what, claimed, computed, within, unit, how),
            None => self.computed(what, computed, unit, how),
        }
    }

    /// A figure that is computed here.
    fn computed(&mut self, what: impl Into<String>, computed: f64, unit: &'static str, how: String) {
        self.0.push(Check { what: what.into(), claimed: None, computed, unit, how, verdict: Verdict::Computed });
    }

    /// A figure that is possible between 0 and `limit`, and impossible beyond.
    fn possible(&mut self, what: impl Into<String>, computed: f64, limit: f64, unit: &'static str, how: String) {
        let verdict = if computed > 0.0 && computed <= limit { Verdict::Holds } else { Verdict::Fails };
        self.0.push(Check { what: what.into(), claimed: None, computed, unit, how, verdict });
    }
}

impl Finding {
    /// The comparison of a name, for tests and other programs.
    pub fn check(&self, what: &str) -> Option<&Check> {
        self.checks.iter().find(|check| check.what == what)
    }
}

/// Examines a claim that comes with the program, or the file of one.
///
/// # Errors
/// [`PlanError`] if there is no such claim, or its file is wrong.
pub fn examine(name: &str, devices: &Devices) -> Result<Finding, PlanError> {
    let built_in = BUILT_IN.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
    let text = match built_in {
        Some((_, text)) => text.to_string(),
        None if name.ends_with(".toml") => PlanError::read(Path::new(name))?,
        None => return Err(PlanError::unknown("claim", name, names())),
    };
    let claim: Claim = PlanError::parse(name, &text)?;
    let wrong = |message: String| PlanError::Value { origin: name.to_string(), message };
    let config = claim.model.config().map_err(wrong)?;
    let mut checks = Checks(Vec::new());
    claim.model.check(&config, &mut checks);
    if let Some(training) = &claim.training {
        training.check(&config, devices.get(&training.device)?, &mut checks);
    }
    if let Some(post_training) = &claim.post_training {
        post_training.check(&config, devices.get(&post_training.device)?, &mut checks);
    }
    if let Some(serving) = &claim.serving {
        serving.check(&config, devices.get(&serving.device)?, &mut checks);
    }
    // A file may name only what comes with the program, and that names nothing that names it.
    let beside = claim.beside.iter().filter(|beside| built_in.is_none() || *beside != name);
    let beside = beside.map(|beside| match names().any(|known| known == beside) {
        true => examine(beside, devices),
        false => Err(PlanError::unknown("claim", beside, names())),
    });
    Ok(Finding {
        adds_up: checks.0.iter().all(|check| check.verdict != Verdict::Fails),
        beside: beside.collect::<Result<_, _>>()?,
        title: claim.title,
        source: claim.source,
        date: claim.date,
        checks: checks.0,
    })
}

impl Model {
    fn config(&self) -> Result<ModelConfig, String> {
        match (&self.preset, &self.config) {
            (Some(name), None) => presets::preset(name).map_err(|error| error.to_string()),
            (None, Some(keys)) => {
                let json = serde_json::to_string(keys).expect("TOML without dates is JSON");
                ModelConfig::from_hf_json(&json).map(|(config, _)| config).map_err(|error| error.to_string())
            }
            _ => Err("[model] needs either preset or config".into()),
        }
    }

    fn check(&self, config: &ModelConfig, checks: &mut Checks) {
        let counts = count::params(config);
        let total = counts.total.0 as f64;
        let how = "sum over all tensors of its configuration".to_string();
        checks.maybe("parameters", self.total, total, 0.005, "", how);
        if config.moe.is_some() {
            let activated = counts.activated.0 as f64;
            let how = format!("embedding left out, head counted; {:.2}% of all", 100.0 * activated / total);
            // 36.6, printed as 37.
            checks.maybe("parameters activated by a token", self.activated, activated, 0.015, "", how);
        }
    }
}

/// `12,345`.
fn whole(number: f64) -> String {
    count::Params(number.round() as u64).to_string()
}

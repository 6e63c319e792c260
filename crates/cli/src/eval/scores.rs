//! From receipts to scores.

use std::collections::BTreeMap;

use serde::Serialize;
use wels_tasks::benchmarks::Benchmark;
use wels_tasks::statistics::{Share, majority, pass_at, share};

use super::answer::{Questions, TOO_LONG};
use super::receipt::Receipt;
use super::suite::Suite;
use crate::output;

/// What the quality index is the mean of.
const QUALITY: [Benchmark; 4] = [Benchmark::Mmlu, Benchmark::Gpqa, Benchmark::Math, Benchmark::HumanEval];

/// Of a model.
#[derive(Serialize)]
pub struct Scores {
    model: String,
    benchmarks: Vec<Score>,
    quality_index: QualityIndex,
}

/// Of a benchmark.
#[derive(Serialize)]
struct Score {
    name: String,
    benchmark: &'static str,
    items: usize,
    shots: usize,
    samples: u32,
    /// pass@1: the mean over items of the share of samples that are right, with its 95% interval (Wilson).
    accuracy: Share,
    /// pass@k by k; of several samples only.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pass_at: BTreeMap<u32, f64>,
    /// The share of items whose most frequent answer is right; of several samples only.
    #[serde(skip_serializing_if = "Option::is_none")]
    consensus: Option<f64>,
    /// Answers in which none was found.
    without_answer: usize,
    /// Answers that were cut at the limit of tokens.
    cut: usize,
    /// Questions that did not fit the context.
    too_long: usize,
    /// `None` where some are not known.
    prompt_tokens: Option<u64>,
    generated_tokens: Option<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    subjects: Vec<Subject>,
}

#[derive(Serialize)]
struct Subject {
    subject: String,
    items: usize,
    accuracy: Share,
}

/// The mean of MMLU, GPQA, MATH and HumanEval, each in 0..=1.
#[derive(Default, Serialize)]
struct QualityIndex {
    /// Where all four were measured.
    value: Option<f64>,
    /// Of those that were measured.
    mean_of_measured: Option<f64>,
    missing: Vec<&'static str>,
}

impl Scores {
    /// No scores yet.
    pub fn new(model: String) -> Scores {
        Scores { model, benchmarks: Vec::new(), quality_index: QualityIndex::default() }
    }

    /// Adds those of a suite, from the receipts of all of it.
    pub fn add(&mut self, suite: &Suite, receipts: &[Receipt]) {
        self.benchmarks.push(Score::of(suite, receipts));
        let value = |benchmark: &Benchmark| {
            let of_it = |score: &&Score| score.benchmark == benchmark.name();
            self.benchmarks.iter().find(of_it).map(|score| score.accuracy.value)
        };
        let measured: Vec<f64> = QUALITY.iter().filter_map(value).collect();
        let missing: Vec<&'static str> =
            QUALITY.iter().filter(|benchmark| value(benchmark).is_none()).map(|benchmark| benchmark.name()).collect();
        let mean = measured.iter().sum::<f64>() / measured.len() as f64;
        let mean_of_measured = (!measured.is_empty()).then_some(mean);
        self.quality_index =
            QualityIndex { value: mean_of_measured.filter(|_| missing.is_empty()), mean_of_measured, missing };
    }

    /// As tables for people.
    pub fn print(&self) -> std::io::Result<()> {
        let percent = |value: f64| format!("{:.1}%", value * 100.0);
        let interval = |share: &Share| format!("{} to {}", percent(share.low), percent(share.high));
        output::line(&format!("{:<16} {:>7} {:>6} {:>8}   95% interval", "benchmark", "items", "shots", "right"))?;
        for score in &self.benchmarks {
            let Score { name, items, shots, accuracy, .. } = score;
            let (right, within) = (percent(accuracy.value), interval(accuracy));
            output::line(&format!("{name:<16} {items:>7} {shots:>6} {right:>8}   {within}"))?;
            let mut more: Vec<String> =
                score.pass_at.iter().map(|(k, value)| format!("pass@{k} {}", percent(*value))).collect();
            more.extend(score.consensus.map(|value| format!("cons@{} {}", score.samples, percent(value))));
            let counts =
                [("without an answer", score.without_answer), ("cut", score.cut), ("too long", score.too_long)];
            more.extend(counts.iter().filter(|(_, count)| *count > 0).map(|(what, count)| format!("{count} {what}")));
            if !more.is_empty() {
                output::line(&format!("  {}", more.join(", ")))?;
            }
            for Subject { subject, items, accuracy } in &score.subjects {
                let (right, within) = (percent(accuracy.value), interval(accuracy));
                output::line(&format!("  {subject:<37} {items:>5} {right:>8}   {within}"))?;
            }
        }
        let QualityIndex { value, mean_of_measured, missing } = &self.quality_index;
        match (value, mean_of_measured) {
            (Some(value), _) => output::line(&format!("quality index {:.1}", value * 100.0)),
            (None, Some(mean)) => {
                let names = missing.join(", ");
                output::line(&format!("quality index incomplete: {} without {names}", percent(*mean)))
            }
            (None, None) => Ok(()),
        }
    }
}

impl Score {
    fn of(suite: &Suite, receipts: &[Receipt]) -> Score {
        let samples = suite.samples();
        let items: Vec<&[Receipt]> = receipts.chunks(samples as usize).collect();
        let right = |item: &[Receipt]| item.iter().filter(|receipt| receipt.correct).count();
        let accuracy = |items: &[&[Receipt]]| {
            let sum: f64 = items.iter().map(|item| right(item) as f64 / item.len() as f64).sum();
            share(sum, items.len()).expect("a suite has items")
        };
        let mean = |value: &dyn Fn(usize) -> f64| (0..items.len()).map(value).sum::<f64>() / items.len() as f64;
        let several = samples > 1;
        let ks = std::iter::successors(Some(2u32), |k| k.checked_mul(2)).take_while(|k| *k < samples).chain([samples]);
        let pass = |k: u32| (k, mean(&|item| pass_at(k as usize, right(items[item]), samples as usize)));
        let consensus = |place: usize| {
            let answers: Vec<Option<String>> = items[place].iter().map(|receipt| receipt.answer.clone()).collect();
            let same = |a: usize, b: usize| suite.same(place, &items[place][a], &items[place][b]);
            majority(&answers, same).map_or(0.0, |winner| f64::from(items[place][winner].correct))
        };
        let total = |tokens: fn(&Receipt) -> Option<u64>| receipts.iter().map(tokens).sum();
        let mut subjects: BTreeMap<&str, Vec<&[Receipt]>> = BTreeMap::new();
        for item in &items {
            if let Some(subject) = &item[0].subject {
                subjects.entry(subject).or_default().push(item);
            }
        }
        let subject = |(subject, items): (&str, Vec<&[Receipt]>)| Subject {
            subject: subject.to_owned(),
            items: items.len(),
            accuracy: accuracy(&items),
        };
        Score {
            name: suite.name().to_owned(),
            benchmark: suite.benchmark().name(),
            items: items.len(),
            shots: suite.shots(),
            samples,
            accuracy: accuracy(&items),
            pass_at: if several { ks.map(pass).collect() } else { BTreeMap::new() },
            consensus: (several && !suite.benchmark().is_code()).then(|| mean(&consensus)),
            without_answer: receipts.iter().filter(|r| r.answer.is_none() && r.end != TOO_LONG).count(),
            cut: receipts.iter().filter(|receipt| receipt.end == "length").count(),
            too_long: receipts.iter().filter(|receipt| receipt.end == TOO_LONG).count(),
            prompt_tokens: total(|receipt| receipt.prompt_tokens),
            generated_tokens: total(|receipt| receipt.generated_tokens),
            subjects: subjects.into_iter().map(subject).collect(),
        }
    }
}

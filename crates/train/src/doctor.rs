//! Warnings in words about a training by reinforcement, from its own metrics.
//!
//! Each sign compares the mean of the last steps with that of the first ones, so single steps do not count. The limits
//! are rules of thumb, not results: they say where to look.

use std::collections::VecDeque;

use crate::rl::RlReport;

/// Steps of both windows.
const WINDOW: usize = 10;

/// What the doctor looks at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct WindowMetrics {
    entropy: f64,
    length: f64,
    dead_groups: f64,
    truncated: f64,
    accuracy: f64,
    format: f64,
}

impl WindowMetrics {
    fn of(report: &RlReport) -> WindowMetrics {
        let RlReport { entropy, length, dead_groups, truncated, accuracy, format, .. } = *report;
        WindowMetrics { entropy, length, dead_groups, truncated, accuracy, format }
    }

    fn mean<'a>(window: impl ExactSizeIterator<Item = &'a WindowMetrics>) -> WindowMetrics {
        let n = window.len().max(1) as f64;
        window.fold(WindowMetrics::default(), |sum, it| WindowMetrics {
            entropy: sum.entropy + it.entropy / n,
            length: sum.length + it.length / n,
            dead_groups: sum.dead_groups + it.dead_groups / n,
            truncated: sum.truncated + it.truncated / n,
            accuracy: sum.accuracy + it.accuracy / n,
            format: sum.format + it.format / n,
        })
    }
}

/// Watches a training from its first step.
#[derive(Debug, Default)]
pub struct Doctor {
    first: Vec<WindowMetrics>,
    last: VecDeque<WindowMetrics>,
    said: Vec<&'static str>,
}

impl Doctor {
    /// Looks at a step; warnings that have not been given yet.
    pub fn look(&mut self, report: &RlReport) -> Vec<String> {
        let metrics = WindowMetrics::of(report);
        if self.first.len() < WINDOW {
            self.first.push(metrics);
            return Vec::new();
        }
        self.last.push_back(metrics);
        if self.last.len() < WINDOW {
            return Vec::new();
        }
        let (first, last) = (WindowMetrics::mean(self.first.iter()), WindowMetrics::mean(self.last.iter()));
        self.last.pop_front();
        let signs = signs(&first, &last);
        let new: Vec<_> = signs.into_iter().filter(|(sign, _)| !self.said.contains(sign)).collect();
        self.said.extend(new.iter().map(|(sign, _)| *sign));
        new.into_iter().map(|(_, words)| words).collect()
    }
}

fn signs(first: &WindowMetrics, last: &WindowMetrics) -> Vec<(&'static str, String)> {
    let mut signs = Vec::new();
    if last.entropy < 0.2 * first.entropy {
        signs.push((
            "entropy",
            format!(
                "entropy has collapsed from {:.3} to {:.3} nats a token: the policy explores no more; raise clip_high, \
                 lower the learning rate, or add kl",
                first.entropy, last.entropy
            ),
        ));
    }
    if last.length < 0.5 * first.length {
        signs.push((
            "shorter",
            format!(
                "answers have shrunk from {:.0} to {:.0} tokens: look whether short answers earn too much (a penalty, or \
                 aggregation = \"sequence_mean\")",
                first.length, last.length
            ),
        ));
    }
    if last.truncated > 0.3 && last.truncated > first.truncated + 0.1 {
        signs.push((
            "longer",
            format!(
                "{:.0}% of answers run into the limit of length, {:.0}% did: raise max_tokens, or use overlong = \
                 \"penalty\"",
                100.0 * last.truncated,
                100.0 * first.truncated
            ),
        ));
    }
    if last.dead_groups > 0.7 {
        signs.push((
            "dead",
            format!(
                "{:.0}% of groups have equal rewards and teach nothing: the task is too easy or too hard; try other items, \
                 more samples a prompt, or sampling_rounds",
                100.0 * last.dead_groups
            ),
        ));
    }
    if last.format > first.format + 0.2 && last.accuracy < first.accuracy - 0.05 {
        signs.push((
            "format",
            format!(
                "form is rewarded and learnt ({:.0}% → {:.0}%) while accuracy falls ({:.0}% → {:.0}%): lower \
                 reward_format",
                100.0 * first.format,
                100.0 * last.format,
                100.0 * first.accuracy,
                100.0 * last.accuracy
            ),
        ));
    }
    signs
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(report: impl Fn(usize) -> RlReport) -> Vec<String> {
        let mut doctor = Doctor::default();
        (0..40).flat_map(|step| doctor.look(&report(step))).collect()
    }

    fn healthy() -> RlReport {
        RlReport { entropy: 1.0, length: 50.0, accuracy: 0.5, format: 0.5, dead_groups: 0.3, ..RlReport::default() }
    }

    fn late(step: usize, early: f64, late: f64) -> f64 {
        if step < 15 { early } else { late }
    }

    #[test]
    fn health_is_silent_and_each_sign_is_told_once() {
        assert_eq!(words(|_| healthy()), Vec::<String>::new());
        type Course = fn(usize) -> RlReport;
        let cases: [(&str, Course); 5] = [
            ("entropy has collapsed from 1.000", |s| RlReport { entropy: late(s, 1.0, 0.01), ..healthy() }),
            ("answers have shrunk from 50", |s| RlReport { length: late(s, 50.0, 10.0), ..healthy() }),
            ("run into the limit", |s| RlReport { truncated: late(s, 0.0, 0.6), ..healthy() }),
            ("equal rewards", |s| RlReport { dead_groups: late(s, 0.3, 0.95), ..healthy() }),
            ("while accuracy falls", |s| RlReport {
                format: late(s, 0.5, 1.0),
                accuracy: late(s, 0.5, 0.1),
                ..healthy()
            }),
        ];
        for (expected, report) in cases {
            let said = words(report);
            assert!(said.len() == 1 && said[0].contains(expected), "{expected}: {said:?}");
        }
    }
}

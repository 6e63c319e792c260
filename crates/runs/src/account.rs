//! The plan against what it took, stage by stage, with reasons for the difference that the ledger can tell.

use serde::Serialize;

use crate::ledger::{Entry, RESUME, Totals};
use crate::plan::StagePlan;
use crate::plan::stages::Tokens;

/// One stage, planned and done.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// As it was planned.
    pub planned: StagePlan,
    /// The plan for as many tokens as came, where their number was not known before; else the plan.
    pub expected: StagePlan,
    /// As the ledger has it.
    pub actual: Totals,
    /// Why they differ, in words.
    pub reasons: Vec<String>,
}

/// Differences below this need no reason.
const NOTEWORTHY: f64 = 0.05;

/// How often the run was begun again and went on with the stage.
fn resumptions(stage: &str, entries: &[Entry]) -> usize {
    let (mut begun, mut within) = (0, 0);
    for entry in entries {
        if entry.event == RESUME {
            begun += 1;
        } else if !entry.stage.is_empty() {
            within += if entry.stage == stage { begun } else { 0 };
            begun = 0;
        }
    }
    within
}

/// Compares a stage with its plan.
pub fn compare(planned: &StagePlan, entries: &[Entry]) -> Comparison {
    let of_stage = || entries.iter().filter(|entry| entry.stage == planned.stage);
    let actual = Totals::of(of_stage());
    let threads = of_stage().map(|entry| entry.threads).max().unwrap_or(1) as f64;
    let came = Tokens { counted: actual.tokens, learned: actual.learned_tokens };
    let expected = if planned.estimated { planned.for_tokens(came) } else { planned.clone() };
    let mut reasons = Vec::new();
    let more = expected.seconds.map(|seconds| actual.seconds / seconds - 1.0);
    match more {
        None => reasons.push("no time was planned: this machine had not been measured".to_string()),
        Some(more) if more.abs() > NOTEWORTHY => {
            let cores = actual.cpu_seconds / actual.seconds;
            if actual.cpu_seconds > 0.0 && cores < (1.0 - NOTEWORTHY) * threads {
                reasons.push(format!(
                    "{cores:.1} of {threads} processors' time was ours, other programs or disks had the rest"
                ));
            }
            let rate = |seconds: f64| actual.tokens as f64 / seconds;
            let (now, before) = (rate(actual.seconds), rate(actual.seconds / (1.0 + more)));
            reasons.push(format!("{now:.0} tokens a second in all, {before:.0} when measured before"));
        }
        Some(_) => {}
    }
    let resumed = resumptions(&planned.stage, entries);
    if resumed > 0 {
        reasons.push(format!(
            "begun again {resumed} times: what a kill took after the last checkpoint was done twice, and is not in these \
             figures"
        ));
    }
    match actual.tokens == planned.tokens {
        true => {}
        false if planned.estimated => {
            let assumed = planned.assumptions.join(", ");
            reasons.push(format!(
                "{} tokens were planned, assuming {assumed}; time and operations are compared for the {} that came",
                planned.tokens, actual.tokens
            ));
        }
        false => reasons.push(format!("{} of {} planned tokens so far", actual.tokens, planned.tokens)),
    }
    let clock_back: u64 = of_stage().map(|entry| entry.clock_back).sum();
    if clock_back > 0 {
        reasons.push(format!("the system's clock went back by {clock_back} s; durations are not touched by that"));
    }
    Comparison { planned: planned.clone(), expected, actual, reasons }
}

impl Comparison {
    /// `(what, planned, actual)` in words, for those amounts that both know.
    pub fn rows(&self) -> Vec<(&'static str, String, String)> {
        let (planned, actual) = (&self.expected, &self.actual);
        let seconds = |seconds: f64| format!("{seconds:.1} s");
        let megabytes = |bytes: u64| format!("{:.0} MB", bytes as f64 / 1e6);
        let usd = |usd: f64| format!("${usd:.4}");
        let known = |words: Option<String>| words.unwrap_or_else(|| "–".into());
        let mut rows = vec![
            ("tokens", self.planned.tokens.to_string(), actual.tokens.to_string()),
            ("operations", format!("{:.3e}", planned.flops), format!("{:.3e}", actual.flops)),
            ("time", known(planned.seconds.map(seconds)), seconds(actual.seconds)),
            ("memory", megabytes(planned.memory_bytes), megabytes(actual.peak_rss_bytes)),
        ];
        if let Some(learning) = &self.planned.learning {
            rows.insert(1, ("tokens learnt from", learning.tokens.to_string(), actual.learned_tokens.to_string()));
        }
        if actual.cost_micro_usd > 0 || planned.usd.is_some() {
            rows.push(("money", known(planned.usd.map(usd)), usd(actual.cost_micro_usd as f64 / 1e6)));
        }
        if let Some(joules) = actual.energy_joules() {
            rows.push(("energy", "–".into(), format!("{:.4} kWh", joules / 3.6e6)));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(seconds: Option<f64>) -> StagePlan {
        StagePlan {
            stage: "pretrain".into(),
            tokens: 1000,
            flops: 1e9,
            tokens_per_second: seconds.map(|seconds| 1000.0 / seconds),
            seconds,
            memory_bytes: 1 << 20,
            ..StagePlan::default()
        }
    }

    fn entry(tokens: u64, seconds: f64, cpu_seconds: f64) -> Entry {
        Entry { stage: "pretrain".into(), tokens, seconds, cpu_seconds, threads: 2, ..Entry::default() }
    }

    #[test]
    fn a_shared_machine_and_a_resume_are_reasons() {
        let as_planned = compare(&planned(Some(10.0)), &[entry(500, 5.0, 10.0), entry(500, 5.1, 10.1)]);
        assert_eq!((as_planned.actual.tokens, as_planned.reasons.len()), (1000, 0));
        let resume = Entry { event: "resume".into(), ..Entry::default() };
        let slow = compare(&planned(Some(10.0)), &[entry(500, 10.0, 11.0), resume, entry(500, 10.0, 11.0)]);
        assert_eq!(slow.reasons.len(), 3, "{slow:?}");
        assert!(
            slow.reasons[0].starts_with("1.1 of 2 processors' time") && slow.reasons[2].starts_with("begun again 1")
        );
        let estimated = StagePlan { estimated: true, assumptions: vec!["a guess".into()], ..planned(Some(10.0)) };
        let longer = compare(&estimated, &[entry(2000, 20.0, 40.0)]);
        assert_eq!((longer.expected.seconds, longer.expected.flops, longer.reasons.len()), (Some(20.0), 2e9, 1));
        assert_eq!(longer.rows()[0], ("tokens", "1000".into(), "2000".into()));
        let unknown = compare(&planned(None), &[entry(400, 1.0, 2.0)]);
        assert_eq!(unknown.reasons.len(), 2, "{unknown:?}");
        assert_eq!(unknown.rows()[2], ("time", "–".into(), "1.0 s".into()));
    }
}

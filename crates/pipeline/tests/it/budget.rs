//! A budget of money, hours or tokens stops every kind of stage behind a checkpoint, and spends no further when asked
//! again; raised, the run goes on to the same bits.

use wels_pipeline::session::{StopReason, Stopped};
use wels_runs::ledger::Entry;
use wels_runs::verify::examine;

use crate::lab::Lab;

/// Stages that train, and whether their tokens are sampled.
const TRAINED: [(&str, bool); 6] = [
    ("pretrain", false),
    ("worked", false),
    ("tuned", false),
    ("reinforced", true),
    ("drawn", false),
    ("corrected", true),
];
const SAMPLED: [&str; 2] = ["samples", "scores"];

fn seconds(entries: &[Entry]) -> f64 {
    entries.iter().map(|entry| entry.seconds).sum()
}

/// Tokens learnt from and sampled, by kind of work.
fn tokens(entries: &[Entry]) -> (u64, u64) {
    let samples = |stage: &str| TRAINED.contains(&(stage, true));
    entries.iter().fold((0, 0), |(trained, sampled), entry| match entry.kind.as_str() {
        "train" if samples(&entry.stage) => (trained + entry.learned_tokens, sampled + entry.tokens),
        "train" => (trained + entry.tokens, sampled),
        "generate" => (trained, sampled + entry.tokens),
        _ => (trained, sampled),
    })
}

/// A run that was stopped is an honest one.
fn assert_verified(lab: &Lab) {
    let (found, _) = examine(&lab.at("runs/limited"), &[]).expect("a run");
    assert_eq!(found.problems, []);
}

/// Runs with a budget that does not suffice; how far the stage is.
fn stops(lab: &Lab, budget: &str, stage: &str, limit: &str) -> usize {
    let (done, host) = lab.run("limited", budget);
    let error = done.expect_err(&format!("{stage}: {budget} was no limit"));
    let stopped = error.downcast_ref::<Stopped>().unwrap_or_else(|| panic!("{stage}: {error:#}"));
    assert_eq!(stopped.why, StopReason::OverBudget(limit.to_string()), "{stage}");
    assert!(stopped.hint().starts_with("raise it under [budget] in the run's recipe.toml, and go on with: wels run "));
    assert!(host.ended.last().is_some_and(|words| words.contains("stopped after ")), "{stage}: {:?}", host.ended);
    let progress = lab.progress("limited", stage);
    if progress == 0 {
        return 0;
    }
    // All of it is in the ledger, and on disk.
    let entries = lab.entries("limited");
    assert_verified(lab);
    let last = entries.iter().rfind(|entry| entry.stage == stage);
    match SAMPLED.contains(&stage) {
        true => assert_eq!(last.map(|entry| entry.event.as_str()), Some("stopped"), "{stage}: {last:?}"),
        false => {
            assert_eq!(last.map(|entry| entry.step as usize), Some(progress), "{stage}: {last:?}");
            assert!(lab.at(&format!("runs/limited/{stage}/step-{progress:06}/DONE")).is_file(), "{stage}");
        }
    }
    progress
}

/// A `[budget]` for a few more steps of a stage, its limit in words, and the tokens learnt from so far.
fn a_little(entries: &[Entry], kind: &str, stage: &str, samples: bool) -> (String, String, u64) {
    // A part of sampled answers asks for the time less often than a step does.
    let more = if SAMPLED.contains(&stage) { 14.0 } else { 25.0 };
    let spent = seconds(entries) + if entries.is_empty() { 60.0 } else { more };
    let (trained, sampled) = tokens(entries);
    let (budget, limit) = match (kind, samples) {
        ("hours", _) => (format!("hours = {}", spent / 3600.0), format!("{} hours", spent / 3600.0)),
        ("usd", _) => (format!("usd = {spent:.1}"), format!("${spent}")),
        (_, false) => (format!("train_tokens = {}", trained + 600), format!("{} tokens", trained + 600)),
        (_, true) => {
            let most = sampled + if SAMPLED.contains(&stage) { 1200 } else { 80 };
            (format!("sample_tokens = {most}"), format!("{most} sampled tokens"))
        }
    };
    (budget, limit, trained)
}

#[test]
fn every_budget_stops_every_kind_of_stage() {
    let lab = Lab::new();
    lab.run("whole", "").0.unwrap();
    let stages = TRAINED.into_iter().chain(SAMPLED.map(|stage| (stage, true)));
    for (stage, samples) in stages {
        let mut before = 0;
        for kind in ["hours", "usd", "tokens"] {
            let (budget, limit, trained) = (1..20)
                .find_map(|_| {
                    let (budget, limit, trained) = a_little(&lab.entries("limited"), kind, stage, samples);
                    // What is left of the stage before takes some of it.
                    (stops(&lab, &budget, stage, &limit) > before).then_some((budget, limit, trained))
                })
                .unwrap_or_else(|| panic!("{stage}: {kind} left no step"));
            let progress = lab.progress("limited", stage);
            assert!(lab.progress("whole", stage) > progress, "{stage} was done");
            let now = tokens(&lab.entries("limited")).0;
            assert!(now <= trained + 600 || kind != "tokens" || samples, "{stage}: {budget}");
            assert_eq!(stops(&lab, &budget, stage, &limit), progress, "{stage}: {budget} was spent, and more was done");
            before = progress;
        }
    }
    // With room again it goes on to the same bits.
    lab.run("limited", "").0.unwrap();
    assert_verified(&lab);
    for (stage, _) in TRAINED {
        let last = format!("{stage}/step-{:06}", lab.progress("whole", stage));
        for file in ["model.safetensors", "optimizer.safetensors", "state.json"] {
            let name = format!("{last}/{file}");
            assert_eq!(lab.hash("limited", &name), lab.hash("whole", &name), "{name}");
        }
    }
    for file in ["samples/kept.jsonl", "samples/part-0003.jsonl", "scores/scores.json"] {
        assert_eq!(lab.hash("limited", file), lab.hash("whole", file), "{file}");
    }
    // Nothing that was sampled or learnt is in the ledger twice, or not at all.
    assert_eq!(tokens(&lab.entries("limited")), tokens(&lab.entries("whole")));
}

#[test]
fn text_at_the_end_keeps_to_the_budget() {
    let lab = Lab::new();
    lab.run("whole", "").0.unwrap();
    let of_sample = |entry: &Entry| entry.stage == "sample";
    let (_, sampled) = tokens(&lab.entries("whole"));
    let own = lab.entries("whole").iter().find(|entry| of_sample(entry)).unwrap().tokens;
    let budget = format!("sample_tokens = {}", sampled - own / 2);
    let (done, host) = lab.run("limited", &budget);
    assert!(done.unwrap_err().is::<Stopped>());
    assert!((1..6).contains(&host.samples), "{}", host.samples);
    assert!(!lab.at("runs/limited/sample/samples.json").exists());
    let entries = lab.entries("limited");
    assert!(entries.last().is_some_and(|entry| of_sample(entry) && entry.event == "stopped" && entry.tokens > 0));
    let (done, host) = lab.run("limited", "");
    done.unwrap();
    assert_eq!(host.samples, 6);
    assert_eq!(lab.hash("limited", "sample/samples.json"), lab.hash("whole", "sample/samples.json"));
}

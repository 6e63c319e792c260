//! Plan, ledger, budget and report of a run.

use std::fs;

use wels_runs::ledger::{Ledger, Totals};

use crate::lab::Lab;

fn entries(lab: &Lab, run: &str) -> Vec<wels_runs::ledger::Entry> {
    Ledger::read(&lab.at(&format!("runs/{run}/ledger.jsonl"))).unwrap().0
}

#[test]
fn a_budget_stops_a_run_with_a_checkpoint() {
    let lab = Lab::new();
    let budget = |limit: &str| format!("tokens = 8\n\n[budget]\n{limit}");
    let limited = lab.recipe("tokens", &[("tokens = 8", &budget("train_tokens = 2000"))]);
    let said = lab.wels(&["run", &limited]);
    assert_eq!(said.code, Some(1));
    assert!(
        said.failure()
            .starts_with("error: the budget of 2000 tokens leaves no room for another step; the run is saved\nhint: "),
        "{said:?}"
    );
    let spent = Totals::of(entries(&lab, "tokens").iter().filter(|entry| entry.kind == "train")).tokens;
    let steps = lab.steps_seen("tokens");
    assert!(spent <= 2000 && spent > 2000 - 256, "{spent}");
    assert!(lab.at(&format!("runs/tokens/pretrain/step-{steps:06}/DONE")).is_file());

    // With the budget raised it goes on, to the same bits.
    lab.done(&["run", &lab.recipe("tokens", &[])]);
    lab.done(&["run", &lab.recipe("whole", &[])]);
    assert_eq!(lab.weights("tokens"), lab.weights("whole"));
    assert_eq!(lab.metrics("tokens"), lab.metrics("whole"));

    let price = ("seed = 7", "seed = 7\nusd_per_hour = 3600.0");
    let said = lab.wels(&["run", &lab.recipe("usd", &[price, ("tokens = 8", &budget("usd = 0.001"))])]);
    assert!(said.failure().starts_with("error: the budget of $0.001 leaves no room"), "{said:?}");
    let said = lab.wels(&["run", &lab.recipe("hours", &[("tokens = 8", &budget("hours = 1e-9"))])]);
    assert!(said.failure().starts_with("error: the budget of 0.000000001 hours leaves no room"), "{said:?}");
    assert_eq!(lab.steps_seen("hours"), 0);
}

#[test]
fn the_ledger_says_what_every_stage_took() {
    let lab = Lab::new();
    let said = lab.done(&["run", &lab.recipe("r", &[("seed = 7", "seed = 7\nusd_per_hour = 36.0")])]);
    let entries = entries(&lab, "r");
    let stages: Vec<_> = Totals::by(&entries, |entry| &entry.stage).into_iter().map(|(stage, _)| stage).collect();
    assert_eq!(stages, ["", "tokenizer", "data", "pretrain", "sample"]);
    let kinds: Vec<_> = Totals::by(&entries, |entry| &entry.kind).into_iter().map(|(kind, _)| kind).collect();
    assert_eq!(kinds, ["", "prepare", "train", "generate"]);
    for entry in &entries {
        assert!(
            entry.time > 1_600_000_000 && entry.seconds > 0.0 && entry.device_seconds == entry.seconds,
            "{entry:?}"
        );
        assert!((entry.cost_micro_usd as f64 - entry.seconds * 1e4).abs() <= 0.5, "{entry:?}");
    }
    let plan: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(lab.at("runs/r/plan.json")).unwrap()).unwrap();
    let trained = Totals::of(entries.iter().filter(|entry| entry.stage == "pretrain"));
    assert_eq!(plan["stages"][0]["tokens"], trained.tokens);
    assert_eq!(plan["stages"][0]["flops"].as_f64().unwrap(), trained.flops);
    for line in [
        "account pretrain: tokens 4",
        "account pretrain: time ",
        "account pretrain: money $",
        "report runs/r/report.html",
    ] {
        assert!(said.stderr.contains(line), "{line}: {said:?}");
    }
}

#[test]
fn a_run_that_is_done_stays_as_it_is() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    lab.done(&["run", &recipe]);
    let files = ["ledger.jsonl", "receipt.json", "plan.json", "sample/samples.json", "report.html"];
    let read = || files.map(|file| fs::read(lab.at(&format!("runs/r/{file}"))).unwrap());
    let before = read();
    lab.done(&["run", &recipe]);
    lab.done(&["run", "runs/r"]);
    assert!(read() == before, "a file has changed");
    // Other samples are asked for, and only they are made.
    lab.done(&["run", &lab.recipe("r", &[("tokens = 8", "tokens = 4")])]);
    let events: Vec<String> =
        entries(&lab, "r").iter().map(|entry| format!("{} {}", entry.event, entry.stage)).collect();
    let last: Vec<&str> = events.iter().rev().take(3).map(String::as_str).collect();
    assert_eq!(last, ["stage-done sample", "resume ", "stage-done sample"], "{events:?}");
    lab.done(&["verify", "runs/r", "--segments", "0"]);
}

#[test]
fn the_report_needs_nothing_but_itself() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("a", &[])]);
    lab.done(&["run", &lab.recipe("b", &[("seed = 7", "seed = 8")])]);
    let html = fs::read_to_string(lab.at("runs/a/report.html")).unwrap();
    for outside in ["http://", "https://", "<script", "<link", "@import", "url("] {
        assert!(!html.contains(outside), "{outside}");
    }
    for part in
        ["Loss", "Load of the experts in pretrain", "Samples", "Cost by stage", "Plan and account", "How to reproduce"]
    {
        assert!(html.contains(part), "{part}");
    }
    let count = |what: &str| html.matches(what).count();
    assert_eq!(count("<svg"), count("</svg>"));
    assert!(count("<svg") > 5 && count("<title>") == count("<svg") + 1 && count("<desc>") == count("<svg"));
    assert!(!html.contains("NaN"));
    let hash = lab.weights("a");
    assert!(html.contains(&hash), "the weights' hash");

    let said = lab.done(&["report", "runs/a", "runs/b", "--html", "both.html"]);
    assert!(said.stdout.contains("bits a byte, held out"), "{said:?}");
    assert!(fs::read_to_string(lab.at("both.html")).unwrap().contains("<h1>a, b</h1>"));
    // What the doctor said stands at the head of its stage.
    let metrics = lab.at("runs/a/pretrain/metrics.jsonl");
    let lines = fs::read_to_string(&metrics).unwrap();
    let warned = lines.replacen("\"seconds\":", "\"warnings\":[\"the loss <has> risen\"],\"seconds\":", 1);
    fs::write(&metrics, warned).unwrap();
    let said = lab.done(&["report", "runs/a"]);
    assert_eq!(said.stdout, "runs/a/report.html\n");
    let html = fs::read_to_string(lab.at("runs/a/report.html")).unwrap();
    let warning = html.find("<li>From step 1 on: the loss &lt;has&gt; risen.</li>").expect("the warning");
    assert!(html.find("<h2>Curves of pretrain</h2>").unwrap() < warning && warning < html.find("<svg").unwrap());
}

#[test]
fn bench_tells_the_plan_how_fast_this_machine_is() {
    let lab = Lab::new();
    let recipe = lab.recipe("r", &[]);
    let plan =
        || -> serde_json::Value { serde_json::from_str(&lab.done(&["plan", &recipe, "--json"]).stdout).unwrap() };
    assert!(plan()["stages"][0]["seconds"].is_null());
    lab.done(&["bench", "train", &recipe, "--steps", "2"]);
    let rate = plan()["stages"][0]["tokens_per_second"].as_f64().unwrap();
    lab.done(&["run", &recipe]);
    let saved = fs::read_to_string(lab.at("runs/r/plan.json")).unwrap();
    let saved: serde_json::Value = serde_json::from_str(&saved).unwrap();
    assert_eq!(saved["stages"][0]["tokens_per_second"].as_f64(), Some(rate), "the run plans with what was measured");
}

#[test]
fn figures_of_a_machine_are_written_and_compared() {
    let lab = Lab::new();
    let all = ["--threads", "2", "--nice", "1", "bench", "all", "--only", "train", "--rounds", "1"];
    let page = lab.done(&[&all[..], &["--json", "a.json"]].concat()).stdout;
    let written: serde_json::Value = serde_json::from_str(&fs::read_to_string(lab.at("a.json")).unwrap()).unwrap();
    let figures = written["figures"].as_array().unwrap();
    assert_eq!(figures.len(), 2, "{written}");
    for figure in figures {
        let [value, share] = [&figure["value"], &figure["limit"]["share"]].map(|number| number.as_f64().unwrap());
        assert!(value > 0.0 && share > 0.0, "{figure}");
        assert!(page.contains(figure["name"].as_str().unwrap()), "{figure} is not in {page}");
    }
    for waits in written["waits"].as_array().unwrap() {
        let [calls, tasks] = [&waits["calls"], &waits["tasks"]].map(|number| number.as_f64().unwrap());
        assert!(calls > 10.0 && tasks >= 2.0 * calls, "{waits}");
    }
    let auto = [&["--threads", "auto"], &all[2..], &["--compare", "a.json"]].concat();
    let said = lab.done(&auto);
    assert!(said.stderr.contains("cores are free, and used"), "{said:?}");
    let beside = said.stdout;
    assert!(beside.contains(" | the other |") && beside.contains(": here "), "{beside}");
    fs::write(lab.at("b.json"), "{}").unwrap();
    let refused = lab.wels(&[&all[..], &["--compare", "b.json"]].concat());
    assert_eq!(refused.code, Some(1));
    assert!(refused.stderr.contains("has no figures of a machine"), "{refused:?}");
}

#[test]
fn every_stage_is_planned_with_time() {
    let lab = Lab::new();
    let recipe = crate::stages::recipe(&lab, "r");
    let plan = |more: &[&str]| -> serde_json::Value {
        serde_json::from_str(&lab.done(&[&["plan", &recipe, "--json"], more].concat()).stdout).unwrap()
    };
    let unmeasured = plan(&[]);
    assert!(unmeasured["total"]["seconds"].is_null());
    let names: Vec<&str> =
        unmeasured["stages"].as_array().unwrap().iter().map(|it| it["stage"].as_str().unwrap()).collect();
    let mut expected = crate::stages::TRAINED.to_vec();
    expected.insert(5, "samples");
    expected.push("scores");
    assert_eq!(names, expected);
    let measured = plan(&["--measure"]);
    for stage in measured["stages"].as_array().unwrap() {
        assert!(stage["seconds"].as_f64() > Some(0.0) && stage["unknown"].is_null(), "{stage}");
        assert!(stage["flops"].as_f64() > Some(0.0) && stage["memory_bytes"].as_u64() > Some(0), "{stage}");
    }
    assert_eq!(measured, plan(&[]), "what was measured is known from then on");
    let said = lab.done(&["plan", &recipe]);
    for line in ["reinforced: assumes answers of 12 tokens, where 24 is the most", "\nall "] {
        assert!(said.stdout.contains(line), "{line}: {said:?}");
    }

    // A recipe that does not pretrain is not charged for `[model]`.
    let text = fs::read_to_string(lab.at(&recipe)).unwrap();
    let (head, _) = text.split_once("[[stage]]").unwrap();
    let stage = "[[stage]]\nname = \"only\"\nkind = \"rl\"\nfrom = \"elsewhere\"\n";
    fs::write(lab.at("only.toml"), format!("{head}{stage}")).unwrap();
    let said = lab.done(&["plan", "only.toml"]);
    assert!(!said.stdout.contains("parameters") && said.stdout.contains("only: LAB/elsewhere is no model"), "{said:?}");
}

#[test]
fn prices_are_drawn() {
    let lab = Lab::new();
    fs::write(
        lab.at("mine.toml"),
        "date = \"2026-01-01\"\n[[price]]\nmodel = \"Mine <&>\"\nusd_in = 0.01\nusd_out = 0.05\nquality = 60\nown = true\n",
    )
    .unwrap();
    let said = lab.done(&["plan", "--prices", "--price-table", "mine.toml", "--svg", "p.svg"]);
    for part in ["GPT-o1", "n/a", "Mine <&> ($0.02, 60, one's own)", "$26.25"] {
        assert!(said.stdout.contains(part), "{part}: {said:?}");
    }
    let svg = fs::read_to_string(lab.at("p.svg")).unwrap();
    assert!(
        svg.starts_with("<svg xmlns=") && svg.contains("Mine &lt;&amp;&gt;") && svg.contains("class=\"own\""),
        "{svg}"
    );
}

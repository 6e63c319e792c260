//! Several models in one server: loaded when they are asked for, unloaded for others, each with its prices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use wels_engine::Engine;
use wels_server::loader::{Loadable, LoaderSettings};
use wels_server::money::{Nanos, Prices};
use wels_server::worker::Worker;

use crate::lab::{Lab, Response, Setup, chat_body, tiny_of};

const CLIENTS: usize = 16;
const ROUNDS: usize = 3;
const TARIFF: &str = "peak = { hit = \"1\", miss = \"2\", output = \"3\" }\n\
    [models.b]\npeak = { hit = \"10\", miss = \"20\", output = \"30\" }";

/// A model whose weights are of this seed, of one byte as the loader counts; `loads` counts how often it is loaded.
fn model(name: &str, seed: u64, setup: &Setup, loads: &Arc<AtomicUsize>) -> (Loadable, Arc<wels_data::Tokenizer>) {
    let (tokenizer, options, loads) = (tiny_of(seed).tokenizer.unwrap(), setup.options.clone(), Arc::clone(loads));
    let load = move || {
        loads.fetch_add(1, SeqCst);
        let engine = Engine::new(tiny_of(seed), options.clone()).map_err(|error| error.to_string())?;
        Worker::start(engine).map_err(|error| error.to_string())
    };
    (Loadable { name: name.to_owned(), bytes: 1, loaded: None, load: Box::new(load) }, tokenizer)
}

fn settings(memory_bytes: u64) -> LoaderSettings {
    LoaderSettings { memory_bytes, unload_after: None, waiting_max: 64 }
}

/// Two models, `a` and `b`, and how often each has been loaded.
fn two(memory_bytes: u64) -> (Lab, [Arc<AtomicUsize>; 2]) {
    let loads = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
    let setup = Setup { tariff: TARIFF, ..Setup::default() };
    let models = vec![model("a", 3, &setup, &loads[0]), model("b", 4, &setup, &loads[1])];
    (setup.start_loader(models, settings(memory_bytes)), loads)
}

fn ask(lab: &Lab, name: &str, seed: usize, stream: bool) -> Response {
    let usage = if stream { json!({"include_usage": true}) } else { Value::Null };
    let more = json!({"model": name, "seed": seed, "max_tokens": 12, "stream": stream, "stream_options": usage});
    lab.post("/v1/chat/completions", &chat_body(more))
}

/// What an answer says, and what it costs.
fn text_and_cost(response: &Response, stream: bool) -> (String, String) {
    assert_eq!(response.status, 200, "{}", response.body);
    let (replies, part) = match stream {
        true => (response.events(), "delta"),
        false => (vec![response.json()], "message"),
    };
    let text = |reply: &Value| reply["choices"][0][part]["content"].as_str().unwrap_or_default().to_owned();
    let cost = &replies.last().unwrap()["usage"]["cost_exact"];
    (replies.iter().map(text).collect(), cost.as_str().unwrap().to_owned())
}

#[test]
fn sixteen_clients_of_two_models_where_memory_holds_one() {
    let seeds = [("a", 3), ("b", 4)];
    let alone = seeds.map(|(_, seed)| Setup::default().start_with_weights(seed));
    let expected: Vec<Vec<String>> = alone
        .iter()
        .map(|lab| (0..CLIENTS).map(|seed| text_and_cost(&ask(lab, "tiny", seed, false), false).0).collect())
        .collect();
    assert!((0..CLIENTS).any(|seed| expected[0][seed] != expected[1][seed]), "the models are different");

    let (lab, loads) = two(1);
    thread::scope(|scope| {
        for client in 0..CLIENTS {
            let (lab, expected) = (&lab, &expected);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let (which, stream) = ((client + round) % 2, (client + round) % 3 == 0);
                    let response = ask(lab, seeds[which].0, client, stream);
                    let (text, cost) = text_and_cost(&response, stream);
                    assert_eq!(text, expected[which][client], "client {client}, round {round}");
                    assert_ne!(cost, "0.00");
                }
            });
        }
        // One model at a time is in memory while they ask.
        for _ in 0..20 {
            let metrics = lab.metrics();
            let loaded = metrics.lines().filter(|line| line.starts_with("wels_model_loaded{") && line.ends_with(" 1"));
            assert!(loaded.count() <= 1, "{metrics}");
            thread::sleep(Duration::from_millis(5));
        }
    });
    let swaps: usize = loads.iter().map(|loads| loads.load(SeqCst)).sum();
    assert!(swaps >= 4, "each was unloaded for the other: {swaps} loads");
    let entries = lab.settled();
    assert_eq!(entries.len(), CLIENTS * ROUNDS);
    for entry in &entries {
        let prices = if entry.model == "b" { [10, 20, 30] } else { [1, 2, 3] };
        let [hit, miss, output] = prices.map(|price| Nanos(price * 1_000_000_000));
        let prices = Prices { hit, miss, output, drawn: None };
        assert_eq!((entry.cost, entry.outcome.as_deref()), (prices.cost(entry.tokens), Some("done")), "{entry:?}");
    }
}

#[test]
fn both_are_listed_with_their_prices_and_whether_they_are_loaded() {
    let (lab, _) = two(2);
    let list = || lab.get("/v1/models").json();
    let names = |list: &Value| list["data"].as_array().unwrap().iter().map(|m| m["id"].clone()).collect::<Vec<_>>();
    assert_eq!(names(&list()), ["a", "b"]);
    assert_eq!(list()["data"][1]["pricing"]["per_million_tokens"]["output"], "30.00");
    assert_eq!(lab.get("/v1/models/a").json()["pricing"]["per_million_tokens"]["output"], "3.00");
    assert_eq!([&list()["data"][0]["loaded"], &list()["data"][1]["loaded"]], [false, false]);
    text_and_cost(&ask(&lab, "b", 1, false), false);
    assert_eq!([&list()["data"][0]["loaded"], &list()["data"][1]["loaded"]], [false, true]);
    let unknown = ask(&lab, "c", 1, false);
    assert_eq!((unknown.status, unknown.param().as_str()), (404, "model"));
    let embedding = lab.post("/v1/embeddings", &json!({"model": "a", "input": "a fish"}));
    assert_eq!(embedding.status, 200, "{}", embedding.body);
    let samples = lab.metrics();
    for name in ["a", "b"] {
        assert!(samples.contains(&format!("wels_model_loaded{{model_name=\"{name}\"}} 1")), "{samples}");
        assert!(
            samples
                .contains(&format!("vllm:request_success_total{{model_name=\"{name}\",finished_reason=\"length\"}} "))
        );
    }
    assert_eq!(samples.matches("# TYPE vllm:num_requests_running gauge").count(), 1);
}

#[test]
fn a_model_that_cannot_be_loaded_is_a_503_and_the_others_go_on() {
    let setup = Setup::default();
    let loads = Arc::new(AtomicUsize::new(0));
    let (mut broken, tokenizer) = model("broken", 3, &setup, &loads);
    let tries = AtomicUsize::new(0);
    let load = broken.load;
    broken.load = Box::new(move || match tries.fetch_add(1, SeqCst) {
        0 => Err("/secret/path has no weights".to_owned()),
        _ => load(),
    });
    let models = vec![model("a", 3, &setup, &loads), (broken, tokenizer)];
    let lab = setup.start_loader(models, settings(1));
    text_and_cost(&ask(&lab, "a", 1, false), false);
    let failed = ask(&lab, "broken", 1, true);
    assert_eq!((failed.status, failed.header("retry-after")), (503, Some("60")), "{}", failed.body);
    assert!(failed.body.contains("`broken` cannot be loaded") && !failed.body.contains("secret"), "{}", failed.body);
    let first = text_and_cost(&ask(&lab, "a", 1, false), false).0;
    assert_eq!(text_and_cost(&ask(&lab, "broken", 1, false), false).0, first, "it is tried again");
    let mut outcomes: Vec<String> = lab.settled().into_iter().filter_map(|entry| entry.outcome).collect();
    outcomes.sort();
    assert_eq!(outcomes, ["done", "done", "done", "refused"]);
}

#[test]
fn a_client_that_leaves_while_its_model_is_loaded_pays_nothing() {
    let setup = Setup::default();
    let loads = Arc::new(AtomicUsize::new(0));
    let gate = Arc::new(std::sync::Mutex::new(()));
    let (mut slow, tokenizer) = model("slow", 3, &setup, &loads);
    let (load, theirs) = (slow.load, Arc::clone(&gate));
    slow.load = Box::new(move || {
        drop(theirs.lock());
        load()
    });
    let lab = setup.start_loader(vec![(slow, tokenizer)], settings(1));
    let closed = gate.lock().unwrap();
    let body = chat_body(json!({"model": "slow", "max_tokens": 4})).to_string();
    let left = lab.send("POST", "/v1/chat/completions", &lab.key, body.as_bytes());
    while !lab.ledger().entries().unwrap().iter().any(|entry| entry.model == "slow") {
        thread::sleep(Duration::from_millis(5));
    }
    let health = || lab.get("/health").json();
    while health()["waiting"] != 1 {
        thread::sleep(Duration::from_millis(5)); // the row is written a moment before the request waits
    }
    assert_eq!(health()["status"], "ok");
    drop(left);
    let entries = lab.settled();
    assert_eq!((entries[0].outcome.as_deref(), entries[0].cost), (Some("cancelled"), Nanos::ZERO));
    drop(closed);
    text_and_cost(&ask(&lab, "slow", 1, false), false);
}

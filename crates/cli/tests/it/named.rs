//! Names of a hub in recipes and where files of data stand: the same as the files themselves, and the same for ever.

use std::fs;

use crate::hub::{COMMIT, Server};
use crate::lab::{Lab, Said};

/// Fine-tunes a published model with its own tokenizer on published conversations, then scores it beside the model that
/// it was, on published questions.
const TUNING: &str = r#"
[run]
name = "NAME"
[tokenizer]
path = "MODEL"
[data]
fim_rate = 0.0
sources = ["SOURCES"]
[model]
config = "CONFIG"
[[stage]]
name = "tuned"
kind = "sft"
from = "MODEL"
data = "DATA/talks.jsonl"
batch_tokens = 64
gradient_shards = 1
learning_rate = 1e-3
checkpoint_every = 1
[[stage]]
name = "marks"
kind = "score"
models = ["tuned", "MODEL"]
task = "exact=DATA/questions.jsonl"
items = 2
max_tokens = 2
"#;

/// A lab with `model`, `data/…` and `text`, and a hub with the same as `org/tiny` and `datasets/org/d`.
fn lab() -> (Lab, Server) {
    let (lab, server) = (crate::eval::lab(), Server::start());
    let line = |n: usize| format!("{{\"question\": \"the fish {n}\", \"answer\": \"a fish and {n}\"}}\n");
    for (file, lines) in [("talks", 12), ("questions", 60)] {
        fs::write(lab.at(&format!("data/{file}.jsonl")), (0..lines).map(line).collect::<String>()).unwrap();
    }
    put(&lab, &server, "model", "org/tiny", "");
    put(&lab, &server, "data", "datasets/org/d", "");
    put(&lab, &server, "text", "datasets/org/d", "text/");
    (lab, server)
}

fn put(lab: &Lab, server: &Server, folder: &str, id: &str, prefix: &str) {
    for entry in fs::read_dir(lab.at(folder)).unwrap().flatten() {
        let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
        server.put(id, &name, &fs::read(entry.path()).unwrap());
    }
}

/// Writes the recipe, with names or with paths.
fn recipe(lab: &Lab, name: &str, by_name: bool) -> String {
    let [model, config, data, sources] = match by_name {
        true => ["hf://org/tiny", "hf://org/tiny", "hf://datasets/org/d", "hf://datasets/org/d/text/*.txt"],
        false => ["model", "model/config.json", "data", "text"],
    };
    let text = TUNING.replace("NAME", name).replace("MODEL", model).replace("CONFIG", config);
    let file = format!("{name}.toml");
    fs::write(lab.at(&file), text.replace("DATA", data).replace("SOURCES", sources)).unwrap();
    file
}

fn ended(said: Said) -> Said {
    assert_eq!(said.code, Some(0), "{said:?}");
    said
}

fn read(lab: &Lab, path: &str) -> String {
    fs::read_to_string(lab.at(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn weights(lab: &Lab, run: &str) -> Vec<u8> {
    let stage = lab.at(&format!("runs/{run}/tuned"));
    let mut steps: Vec<_> = fs::read_dir(stage).unwrap().flatten().map(|entry| entry.path()).collect();
    steps.retain(|path| path.join("model.safetensors").is_file());
    fs::read(steps.iter().max().expect("a checkpoint").join("model.safetensors")).unwrap()
}

#[test]
fn a_run_by_names_is_the_run_by_paths_and_stays_it_when_the_hub_moves_on() {
    let (lab, server) = lab();
    let (by_path, by_name) = (recipe(&lab, "paths", false), recipe(&lab, "names", true));
    lab.done(&["run", &by_path]);
    ended(lab.wels_with_hub(&server.endpoint(), &["run", &by_name]));
    assert!(weights(&lab, "paths") == weights(&lab, "names"));
    let (saved, receipt) = (read(&lab, "runs/names/recipe.toml"), read(&lab, "runs/names/receipt.json"));
    for name in [format!("hf://org/tiny@{COMMIT}"), format!("hf://datasets/org/d@{COMMIT}/talks.jsonl")] {
        assert!(saved.contains(&name) && receipt.contains(&name), "{name} in {saved} and {receipt}");
    }
    assert!(saved.contains(&format!("exact=hf://datasets/org/d@{COMMIT}/questions.jsonl")), "{saved}");
    server.move_on();
    server.put("org/tiny", "model.safetensors", b"other weights");
    server.put("datasets/org/d", "talks.jsonl", b"{\"question\": \"other\", \"answer\": \"words\"}\n");
    server.asked();
    // The same command goes on with the same commits; without the hub too.
    ended(lab.wels_with_hub(&server.endpoint(), &["run", &by_name]));
    let weights_asked = server.asked().iter().filter(|it| it.path.contains("safetensors")).count();
    assert_eq!(weights_asked, 0);
    lab.done(&["run", "runs/names"]);
    let verified = lab.done(&["verify", "runs/names", "--segments", "9"]);
    assert!(verified.stdout.contains("tuned: done again from the beginning to step 2"), "{verified:?}");
    lab.done(&["verify", "--receipt", "runs/names/receipt.json", "--whole"]);
    // Elsewhere, what the receipt names is fetched as it was.
    fs::remove_dir_all(lab.at("hf")).unwrap();
    let missing = lab.wels(&["verify", "--receipt", "runs/names/receipt.json", "--whole"]).failure();
    assert!(missing.starts_with(&format!("error: cannot use hf://org/tiny@{COMMIT}: ")), "{missing}");
    let whole = ["verify", "--receipt", "runs/names/receipt.json", "--whole"];
    ended(lab.wels_with_hub(&server.endpoint(), &whole));
    // A new run has what the hub has now: no model.
    let new = lab.wels_with_hub(&server.endpoint(), &["run", &recipe(&lab, "new", true)]);
    assert_ne!(new.code, Some(0), "{new:?}");
}

#[test]
fn a_corpus_by_name_gives_the_tokens_of_its_files() {
    let (lab, server) = lab();
    let corpus = |name: &str, sources: &[String]| {
        let sources = format!("sources = {sources:?}");
        lab.recipe(name, &[("steps = 20", "steps = 2"), ("sources = [\"text\"]", &sources)])
    };
    let paths: Vec<String> = (0..30).map(|n| format!("text/{n:02}.txt")).collect();
    lab.done(&["run", &corpus("paths", &paths)]);
    let names = ["0?", "1*", "2?"].map(|files| format!("hf://datasets/org/d/text/{files}.txt"));
    ended(lab.wels_with_hub(&server.endpoint(), &["run", &corpus("names", &names)]));
    let saved = read(&lab, "runs/names/recipe.toml");
    assert_eq!(saved.matches(&format!("hf://datasets/org/d@{COMMIT}/text/")).count(), 30, "{saved}");
    let manifest = |run: &str| read(&lab, &format!("runs/{run}/data/manifest.json"));
    assert_eq!(manifest("names"), manifest("paths"));
    let none = corpus("none", &["hf://datasets/org/d/text/4?.txt".into()]);
    let none = lab.wels_with_hub(&server.endpoint(), &["run", &none]).failure();
    let expected = "error: cannot use hf://datasets/org/d/text/4?.txt: datasets/org/d has no file text/4?.txt\n";
    assert!(none.starts_with(expected), "{none}");
    assert!(!lab.at("runs/none").exists());
}

#[test]
fn planning_fetches_configurations_alone() {
    let (lab, server) = lab();
    let of_path = lab.done(&["plan", "model", "--json"]).stdout.replace("\"model\":\"model\"", "");
    let of_name = ended(lab.wels_with_hub(&server.endpoint(), &["plan", "org/tiny", "--json"]));
    assert_eq!(of_name.stdout.replace("\"model\":\"org/tiny\"", ""), of_path);
    let fetched = |server: &Server| -> Vec<String> {
        let files = server.asked().into_iter().filter(|it| it.method == "GET" && it.path.contains("/resolve/"));
        files.map(|it| it.path.rsplit('/').next().unwrap().to_owned()).collect()
    };
    assert_eq!(fetched(&server), ["config.json"]);
    let by_name = recipe(&lab, "names", true);
    let planned = ended(lab.wels_with_hub(&server.endpoint(), &["plan", &by_name]));
    assert!(planned.stdout.contains("tuned"), "{planned:?}");
    let fetched = fetched(&server);
    assert!(fetched.contains(&"tokenizer.json".into()), "{fetched:?}");
    assert!(!fetched.iter().any(|name| name.contains("safetensors") || name.ends_with("jsonl")), "{fetched:?}");
    let unknown = lab.wels_with_hub(&server.endpoint(), &["plan", "org/none"]).failure();
    let expected = "error: there is no path or preset org/none, and as a model's name: ";
    assert!(unknown.starts_with(expected) && unknown.contains("has no model org/none"), "{unknown}");
    // One with images, too: the published configuration is the preset.
    let janus = include_bytes!("../../../model/src/janus/presets/janus-pro-1b.json");
    server.put("org/janus", "config.json", janus);
    server.put("org/janus", "model.safetensors", b"none are asked for");
    let of_name = ended(lab.wels_with_hub(&server.endpoint(), &["plan", "org/janus", "--json"])).stdout;
    let of_preset = lab.done(&["plan", "janus-pro-1b", "--json"]).stdout;
    assert_eq!(of_name.replace("\"model\":\"org/janus\"", ""), of_preset.replace("\"model\":\"janus-pro-1b\"", ""));
    let neither = lab.wels(&["plan", "nothing"]).failure();
    assert!(neither.starts_with("error: nothing is neither a file, a preset nor the name of a model"), "{neither}");
}

#[test]
fn benchmarks_are_found_in_a_dataset() {
    let (lab, server) = lab();
    let eval = |data: &[&str], out: &str| {
        let args = ["eval", "model", "--shots", "0", "--items", "2", "--seed", "3", "--out", out];
        ended(lab.wels_with_hub(&server.endpoint(), &[&args[..], data].concat())).stdout
    };
    let of_files = eval(&["--data", "data", "--bench", "gsm8k"], "a");
    assert_eq!(eval(&["--data", "hf://datasets/org/d/*.jsonl", "--bench", "gsm8k"], "b"), of_files);
    assert_eq!(eval(&["--bench", "gsm8k=hf://datasets/org/d/gsm8k_test.jsonl"], "c"), of_files);
    let fail = |bench: &str| lab.wels_with_hub(&server.endpoint(), &["eval", "model", "--bench", bench]).failure();
    let several = fail("gsm8k=hf://datasets/org/d/*.jsonl");
    assert!(
        several.contains("datasets/org/d has several files *.jsonl: gsm8k_test.jsonl, questions.jsonl"),
        "{several}"
    );
    let nothing = fail("gsm8k=hf://org/d");
    assert!(nothing.starts_with("error: hf://org/d names no files of a dataset\nhint: hf://ORG/NAME"), "{nothing}");
}

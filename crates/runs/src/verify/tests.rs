//! A run of all kinds of stages, made here without training anything; and what is found of each change to it.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::checkpoint;
use crate::files::tests::{no_starts, pipe};
use crate::hash::sha256;
use crate::metrics;
use crate::report::REPORT;
use crate::rundir::{RunDir, write_json};

const RECIPE: &str = r#"
[run]
name = "r"

[model]
model_type = "llama"
hidden_size = 16
num_hidden_layers = 2
intermediate_size = 32
num_attention_heads = 2
num_key_value_heads = 2
rms_norm_eps = 1e-5
max_position_embeddings = 256
rope_theta = 10000.0
tie_word_embeddings = false

[pretrain]
steps = 4

[[stage]]
name = "samples"
kind = "sample_and_filter"
from = "pretrain"

[[stage]]
name = "tuned"
kind = "sft"
from = "pretrain"
data = "samples"

[[stage]]
name = "scores"
kind = "score"
models = ["tuned"]
"#;

/// A run's directory; changed by the tests that have one.
struct Lab {
    folder: TempDir,
    recipe: Recipe,
}

impl Lab {
    /// A run whose stages are done up to the first `stages` of `pretrain`, `samples`, `tuned`, `scores`, `sample`.
    fn new(stages: usize) -> Lab {
        let recipe = Recipe::parse("r.toml", RECIPE, Path::new("/data")).unwrap();
        let lab = Lab { folder: tempfile::tempdir().unwrap(), recipe };
        let run = RunDir::open_or_create(lab.folder.path(), &lab.recipe).unwrap();
        run.write_plan(&json!({"stages": []})).unwrap();
        let files = ["recipe.toml", "plan.json"].map(|name| (name.into(), lab.record(name)));
        lab.append(Entry { event: "start".into(), files: files.into(), ..Entry::default() });
        lab.put("tokenizer/tokenizer.json", "{}");
        lab.put("tokenizer/tokenizer_config.json", "{\"add_bos_token\": false}");
        lab.put("tokenizer/chat_template.jinja", "{{ messages }}");
        lab.done("tokenizer", checkpoint::records_within(&lab.at("tokenizer")).unwrap());
        lab.put("data/train-00000.tokens", "12345678");
        lab.put("data/sources.jsonl", "{\"name\":\"a.txt\"}\n");
        let shard = lab.record("data/train-00000.tokens");
        let shards = json!([{"file": "train-00000.tokens", "sha256": shard.sha256, "file_bytes": shard.bytes}]);
        let sources = lab.record("data/sources.jsonl").sha256;
        let manifest = json!({"corpus_sha256": sources, "train": {"shards": shards}, "validation": {"shards": []}});
        lab.put("data/manifest.json", &manifest.to_string());
        lab.done("data", BTreeMap::from([("manifest.json".into(), lab.record("data/manifest.json"))]));
        for stage in ["pretrain", "samples", "tuned", "scores", "sample"].iter().take(stages) {
            lab.stage(stage);
        }
        lab.seal();
        lab.put(REPORT, "<html></html>");
        lab
    }

    /// The same run in another place.
    fn copy(&self) -> Lab {
        let lab = Lab { folder: tempfile::tempdir().unwrap(), recipe: self.recipe.clone() };
        let mut left = vec![PathBuf::new()];
        while let Some(within) = left.pop() {
            fs::create_dir(lab.at("").join(&within)).unwrap();
            for entry in fs::read_dir(self.at("").join(&within)).unwrap().map(Result::unwrap) {
                let name = within.join(entry.file_name());
                match entry.file_type().unwrap().is_dir() {
                    true => left.push(name),
                    false => _ = fs::copy(entry.path(), lab.at("").join(name)).unwrap(),
                }
            }
        }
        lab
    }

    /// Does a stage.
    fn stage(&self, stage: &str) {
        match stage {
            "pretrain" | "tuned" => {
                fs::create_dir_all(self.at(stage)).unwrap();
                for step in [2, 4] {
                    self.steps(stage, step - 2..step);
                    self.checkpoint(stage, step);
                }
                return;
            }
            "samples" => {
                self.put("samples/part-0000.jsonl", "{\"answer\":\"4\"}\n");
                self.put("samples/kept.jsonl", "{\"answer\":\"4\"}\n");
            }
            "scores" => {
                self.put("scores/model-0/part-0000.jsonl", "{\"correct\":true}\n");
                self.put("scores/scores.json", "[]\n");
            }
            _ => self.put("sample/samples.json", "[]\n"),
        }
        self.done(stage, checkpoint::records_within(&self.at(stage)).unwrap());
    }

    fn steps(&self, stage: &str, steps: std::ops::Range<u64>) {
        let path = self.at(&format!("{stage}/metrics.jsonl"));
        let old = fs::read_to_string(&path).unwrap_or_default();
        let line = |step| format!("{}\n", json!({"step": step + 1, "tokens": 10 * (step + 1), "loss": 1.5}));
        fs::write(path, old + &steps.map(line).collect::<String>()).unwrap();
    }

    fn checkpoint(&self, stage: &str, step: u64) {
        let folder = self.at(stage);
        let written = checkpoint::write::<RunError>(&folder, step, |folder| {
            for name in ["model.safetensors", "state.json", "chat_template.jinja"] {
                fs::write(folder.join(name), format!("{name} of step {step}"))
                    .map_err(RunError::io("write", folder))?;
            }
            Ok(())
        });
        let mut files = written.unwrap().files;
        files.insert(METRICS.into(), metrics::beginning(&folder.join("metrics.jsonl"), step).unwrap());
        let (event, stage) = (CHECKPOINT.into(), stage.into());
        self.append(Entry { event, stage, step, tokens: 20, flops: 200.0, files, ..Entry::default() });
    }

    fn done(&self, stage: &str, files: BTreeMap<String, FileRecord>) {
        self.append(Entry { event: STAGE_DONE.into(), stage: stage.into(), files, ..Entry::default() });
    }

    fn append(&self, entry: Entry) {
        let mut ledger = Ledger::open(&self.at("ledger.jsonl")).unwrap();
        let time = 1000 + ledger.entries().len() as u64;
        ledger.append(Entry { time, wels_version: env!("CARGO_PKG_VERSION").into(), ..entry }).unwrap();
    }

    /// Writes the receipt.
    fn seal(&self) {
        let ledger = Ledger::open(&self.at("ledger.jsonl")).unwrap();
        let receipt = Receipt::of(&self.recipe, ledger.entries(), ledger.head());
        write_json(&self.at(RECEIPT), &receipt).unwrap();
    }

    /// Rewrites the ledger with hashes that fit, and the receipt, as somebody would who knows how.
    fn forge(&self, change: impl Fn(usize, &mut Value)) {
        let path = self.at("ledger.jsonl");
        let (mut head, mut forged) = ("0".repeat(64), String::new());
        for (index, line) in fs::read_to_string(&path).unwrap().lines().enumerate() {
            let mut value: Value = serde_json::from_str(line).unwrap();
            change(index, &mut value);
            let object = value.as_object_mut().unwrap();
            object.shift_remove("hash");
            object.insert("prev_hash".into(), head.into());
            head = sha256(serde_json::to_string(&object).unwrap().as_bytes());
            object.insert("hash".into(), head.clone().into());
            forged += &format!("{value}\n");
        }
        fs::write(path, forged).unwrap();
        self.seal();
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join("r").join(name)
    }

    fn put(&self, name: &str, text: &str) {
        fs::create_dir_all(self.at(name).parent().unwrap()).unwrap();
        fs::write(self.at(name), text).unwrap();
    }

    fn add(&self, name: &str, text: &str) {
        let old = fs::read_to_string(self.at(name)).unwrap();
        self.put(name, &(old + text));
    }

    fn replace(&self, name: &str, from: &str, to: &str) {
        let old = fs::read_to_string(self.at(name)).unwrap();
        assert!(old.contains(from), "{name} does not hold {from}");
        self.put(name, &old.replacen(from, to, 1));
    }

    fn link(&self, name: &str, to: &str) {
        let _ = fs::remove_file(self.at(name));
        std::os::unix::fs::symlink(to, self.at(name)).unwrap();
    }

    fn pipe(&self, name: &str) {
        let _ = fs::remove_file(self.at(name));
        pipe(&self.at(name));
    }

    fn record(&self, name: &str) -> FileRecord {
        FileRecord::of(&self.at(name)).unwrap()
    }

    fn examine(&self) -> Findings {
        examine(&self.at(""), &[]).unwrap().0
    }

    /// What is wrong, one to a line.
    fn problems(&self) -> Vec<String> {
        self.examine().problems.into_iter().map(|problem| format!("{}: {}", problem.path, problem.message)).collect()
    }
}

#[test]
fn a_run_is_accepted_at_every_stage() {
    for stages in 0..=5 {
        let found = Lab::new(stages).examine();
        assert_eq!(found.problems, [], "{stages}");
        assert_eq!(found.not_covered, [REPORT], "{stages}");
        assert_eq!(found.checkpoints.len(), [0, 2, 2, 4, 4, 4][stages], "{stages}");
    }
}

/// What is found, and the change to a run that is done.
type Change = (&'static str, fn(&Lab));

/// Every sentence of `docs/runs.md` about what is covered has one here.
const CHANGES: &[Change] = &[
    // Recipe, plan and the format's number.
    ("recipe.toml: has ", |lab| lab.replace("recipe.toml", "name = \"r\"", "name = \"rr\"")),
    ("plan.json: has ", |lab| lab.put("plan.json", "{}")),
    ("plan.json: is missing", |lab| fs::remove_file(lab.at("plan.json")).unwrap()),
    ("run.json: is not what the program of the ledger's first line writes", |lab| {
        lab.replace("run.json", env!("CARGO_PKG_VERSION"), "9.9.9");
    }),
    ("run.json: is not what ", |lab| lab.replace("run.json", "\"format\": 1", "\"format\": 0")),
    // The ledger.
    ("ledger.jsonl: it is missing", |lab| fs::remove_file(lab.at("ledger.jsonl")).unwrap()),
    ("ledger.jsonl: has 0 lines, and the receipt knows of 10", |lab| lab.put("ledger.jsonl", "")),
    ("ledger.jsonl: line 3: is not spelled as a ledger's lines are, or has a key twice", |lab| {
        lab.replace("ledger.jsonl", "\"stage\":\"data\"", "\"stage\":\"other\",\"stage\":\"data\"");
    }),
    ("ledger.jsonl: line 4: does not follow from the line before it", |lab| {
        let text = fs::read_to_string(lab.at("ledger.jsonl")).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        lab.put("ledger.jsonl", &[&lines[..3], &lines[4..]].concat().concat());
    }),
    ("ledger.jsonl: line 4: its hash does not belong to its contents", |lab| {
        lab.replace("ledger.jsonl", "\"time\":1003", "\"time\":1004");
    }),
    ("ledger.jsonl: line 4: its time is 2 seconds before that of the line before it", |lab| {
        lab.forge(|index, line| {
            if index == 3 {
                line["time"] = 1000.into();
            }
        });
    }),
    ("ledger.jsonl: line 2: \"stage_done\" is no event", |lab| {
        lab.forge(|index, line| {
            if index == 1 {
                line["event"] = "stage_done".into();
            }
        });
    }),
    ("ledger.jsonl: line 2: the recipe has no stage \"tokeniser\"", |lab| {
        lab.forge(|index, line| {
            if index == 1 {
                line["stage"] = "tokeniser".into();
            }
        });
    }),
    ("ledger.jsonl: line 2: \"../../secret\" of \"tokenizer\" is no file within the run", |lab| {
        lab.forge(|index, line| {
            if index == 1 {
                line["files"]["../../secret"] = json!({"bytes": 0, "sha256": ""});
            }
        });
    }),
    ("ledger.jsonl: line 2: \"tokenizer.json\" of \"..\" is no file within the run", |lab| {
        lab.forge(|index, line| {
            if index == 1 {
                line["stage"] = "..".into();
            }
        });
    }),
    ("ledger.jsonl: says 25 tokens up to step 2 of tuned; the metrics say 20", |lab| {
        lab.forge(|_, line| {
            if line["stage"] == "tuned" && line["step"] == 2 {
                line["tokens"] = 25.into();
            }
        });
    }),
    ("ledger.jsonl: says 100 operations for step 4 of tuned; its tokens give others", |lab| {
        lab.forge(|_, line| {
            if line["stage"] == "tuned" && line["step"] == 4 {
                line["flops"] = json!(100.0);
            }
        });
    }),
    // The receipt.
    ("receipt.json: is missing", |lab| fs::remove_file(lab.at(RECEIPT)).unwrap()),
    ("receipt.json: its seed does not follow from recipe and ledger", |lab| {
        lab.replace(RECEIPT, "\"seed\": 1", "\"seed\": 2");
    }),
    ("receipt.json: its format does not follow from recipe and ledger", |lab| {
        lab.replace(RECEIPT, "\"format\": 1", "\"format\": 0");
    }),
    ("receipt.json: is not spelled as a receipt is, or has a key twice", |lab| {
        lab.replace(
            RECEIPT,
            "\"tokenizer.json\": {",
            "\"tokenizer.json\": {\"bytes\": 0, \"sha256\": \"\"}, \"tokenizer.json\": {",
        );
    }),
    ("ledger.jsonl: line 10 is not the one that the receipt names", |lab| {
        let receipt = fs::read(lab.at(RECEIPT)).unwrap();
        lab.forge(|_, line| line["seconds"] = json!(0.5));
        fs::write(lab.at(RECEIPT), receipt).unwrap();
    }),
    // Tokenizer and data.
    ("tokenizer/tokenizer.json: has ", |lab| lab.put("tokenizer/tokenizer.json", "[]")),
    ("tokenizer/tokenizer_config.json: has ", |lab| {
        lab.replace("tokenizer/tokenizer_config.json", "false", "true");
    }),
    ("tokenizer/chat_template.jinja: has ", |lab| lab.put("tokenizer/chat_template.jinja", "{{ massages }}")),
    ("tokenizer/chat_template.jinja: is missing", |lab| {
        fs::remove_file(lab.at("tokenizer/chat_template.jinja")).unwrap();
    }),
    ("tokenizer/merges.txt: was not written by the run", |lab| lab.put("tokenizer/merges.txt", "")),
    ("data/train-00000.tokens: has hash ", |lab| lab.put("data/train-00000.tokens", "12345679")),
    ("data/sources.jsonl: is not the list that the manifest names", |lab| lab.put("data/sources.jsonl", "")),
    ("data/manifest.json: has ", |lab| lab.replace("data/manifest.json", "{", "{\"x\": 1,")),
    ("data/train-00001.tokens: was not written by the run", |lab| lab.put("data/train-00001.tokens", "")),
    // Checkpoints.
    ("pretrain/step-000002/model.safetensors: has hash ", |lab| {
        lab.replace("pretrain/step-000002/model.safetensors", "step 2", "step 3");
    }),
    ("tuned/step-000004/chat_template.jinja: is missing", |lab| {
        fs::remove_file(lab.at("tuned/step-000004/chat_template.jinja")).unwrap();
    }),
    ("tuned/step-000004/DONE: lists other hashes than the ledger", |lab| {
        lab.replace("tuned/step-000004/DONE", "\"step\": 4", "\"step\": 4, \"step\": 4");
    }),
    ("tuned/step-000004/notes.txt: was not written by the run", |lab| lab.put("tuned/step-000004/notes.txt", "")),
    ("tuned/step-000004: the newest checkpoint is missing", |lab| {
        fs::remove_dir_all(lab.at("tuned/step-000004")).unwrap();
    }),
    ("tuned/step-000003: no line of the ledger knows this checkpoint", |lab| {
        lab.put("tuned/step-000003/DONE", "{\"step\": 3, \"files\": {}}");
    }),
    ("tuned/step-4: was not written by the run", |lab| lab.put("tuned/step-4/DONE", "{}")),
    // Metrics.
    ("tuned/metrics.jsonl: a line up to step 2 is not the one that was written", |lab| {
        lab.replace("tuned/metrics.jsonl", "1.5", "1.4");
    }),
    ("tuned/metrics.jsonl: a line up to step 4 is not the one that was written", |lab| {
        let text = fs::read_to_string(lab.at("tuned/metrics.jsonl")).unwrap();
        lab.put("tuned/metrics.jsonl", &text.replace("40,\"loss\":1.5", "40,\"loss\":1.4"));
    }),
    ("tuned/metrics.jsonl: ends before step 4", |lab| {
        let text = fs::read_to_string(lab.at("tuned/metrics.jsonl")).unwrap();
        lab.put("tuned/metrics.jsonl", &text[..text.len() - 1]);
    }),
    ("tuned/metrics.jsonl: goes on for 11 bytes behind step 4, the stage's last", |lab| {
        lab.add("tuned/metrics.jsonl", "{\"step\":5}\n");
    }),
    ("pretrain/metrics.jsonl: goes on for 1 bytes behind step 4, the stage's last", |lab| {
        lab.add("pretrain/metrics.jsonl", "\n");
    }),
    // Samples and scores.
    ("samples/part-0000.jsonl: has ", |lab| lab.replace("samples/part-0000.jsonl", "4", "5")),
    ("samples/kept.jsonl: has ", |lab| lab.replace("samples/kept.jsonl", "4", "5")),
    ("samples/part-0001.jsonl: was not written by the run, as the ledger has it", |lab| {
        lab.put("samples/part-0001.jsonl", "{}\n");
    }),
    // A stage without a line, before others that have one.
    ("samples/kept.jsonl: was not written by the run, as the ledger has it", |lab| {
        lab.forge(|_, line| {
            if line["stage"] == "samples" {
                (line["stage"], line["event"], line["files"]) = ("".into(), "plan".into(), json!({}));
            }
        });
    }),
    ("tuned/metrics.jsonl: was not written by the run", |lab| {
        lab.forge(|_, line| {
            if line["stage"] == "tuned" {
                (line["stage"], line["event"], line["files"]) = ("".into(), "plan".into(), json!({}));
            }
        });
    }),
    ("scores/scores.json: has ", |lab| lab.put("scores/scores.json", "[{}]\n")),
    ("scores/model-0/part-0000.jsonl: has ", |lab| lab.replace("scores/model-0/part-0000.jsonl", "true", "false")),
    ("scores/model-0/part-0001.jsonl: was not written by the run", |lab| {
        lab.put("scores/model-0/part-0001.jsonl", "{\"correct\":true}\n");
    }),
    ("scores/model-0/part-0000.jsonl: is missing", |lab| fs::remove_dir_all(lab.at("scores/model-0")).unwrap()),
    ("sample/samples.json: has ", |lab| lab.put("sample/samples.json", "[1]\n")),
    // What does not belong there.
    ("notes.txt: was not written by the run", |lab| lab.put("notes.txt", "hello")),
    ("other: was not written by the run", |lab| lab.put("other/step-000001/DONE", "{}")),
    ("tuned/notes.txt: was not written by the run", |lab| lab.put("tuned/notes.txt", "hello")),
    ("tuned/empty: was not written by the run", |lab| fs::create_dir(lab.at("tuned/empty")).unwrap()),
    ("tuned/step-000002/deep: was not written by the run", |lab| lab.put("tuned/step-000002/deep/er/x", "")),
    ("samples/model-0: was not written by the run", |lab| lab.put("samples/model-0/part-0000.jsonl", "")),
];

#[test]
fn every_change_is_found_and_named() {
    let done = Lab::new(5);
    for (message, change) in CHANGES {
        let lab = done.copy();
        change(&lab);
        let problems = lab.problems();
        assert!(problems.iter().any(|problem| problem.starts_with(message)), "{message:?} is not in {problems:#?}");
    }
}

#[cfg(unix)]
#[test]
fn nothing_but_regular_files_is_opened() {
    let done = Lab::new(5);
    let mut names: Vec<String> =
        Folder::read(&done.at(""), &mut Findings::default()).unwrap().files.into_keys().collect();
    names.extend(["new.txt", "tuned/new.txt", "tuned/step-000002/new.txt"].map(str::to_string));
    for name in names.iter().filter(|name| *name != "run.json") {
        for spoil in [Lab::pipe as fn(&Lab, &str), |lab: &Lab, name: &str| lab.link(name, "/dev/zero")] {
            let lab = done.copy();
            spoil(&lab, name);
            let expected = format!("{name}: is neither a file nor a folder, and is not opened");
            let problems = lab.problems();
            assert!(problems.contains(&expected), "{name}: {problems:#?}");
        }
    }
    // A link is none even to the file itself, and a folder elsewhere is not looked into.
    let lab = done.copy();
    fs::rename(lab.at("tuned"), lab.folder.path().join("elsewhere")).unwrap();
    lab.link("tuned", "../elsewhere");
    let problems = lab.problems();
    assert!(
        problems.contains(&"tuned: is neither a file nor a folder, and is not opened".to_string()),
        "{problems:#?}"
    );
    // Without its format it is not a run.
    let lab = done.copy();
    lab.pipe("run.json");
    assert!(matches!(examine(&lab.at(""), &[]), Err(RunError::NotARun { .. })));
    // More than is read of such a file, and holes for what is hashed: neither takes memory nor time.
    for name in ["ledger.jsonl", RECEIPT, "recipe.toml", "tuned/step-000004/model.safetensors", "data/sources.jsonl"] {
        let lab = done.copy();
        fs::File::options().write(true).open(lab.at(name)).unwrap().set_len(1 << 42).unwrap();
        let problems = lab.problems();
        assert!(problems.iter().any(|problem| problem.starts_with(name)), "{name}: {problems:#?}");
    }
}

#[test]
fn many_strange_names_are_counted() {
    let lab = Lab::new(1);
    (0..200).for_each(|i| lab.put(&format!("strange-{i:03}"), ""));
    let problems = lab.problems();
    assert_eq!((problems.len(), problems[50].as_str()), (51, ".: has 150 more names that the run has not written"));
}

#[test]
fn what_is_not_covered_is_named() {
    let named = |lab: &Lab| {
        let found = lab.examine();
        assert_eq!(found.problems, []);
        let mut names = found.not_covered;
        names.retain(|name| name != REPORT);
        names
    };
    // A stage under way: metrics behind its newest checkpoint, or without one.
    let lab = Lab::new(2);
    fs::create_dir(lab.at("tuned")).unwrap();
    lab.steps("tuned", 0..1);
    assert_eq!(named(&lab), ["tuned/metrics.jsonl"]);
    lab.steps("tuned", 1..2);
    lab.checkpoint("tuned", 2);
    lab.steps("tuned", 2..3);
    assert_eq!(named(&lab), ["tuned/metrics.jsonl, behind step 2"]);
    // Parts of a stage that samples, and what was being written when it was killed.
    let lab = Lab::new(1);
    lab.put("samples/part-0000.jsonl", "{}\n");
    lab.put("samples/part-0001.jsonl.unfinished", "{");
    lab.put("pretrain/step-000006.unfinished/model.safetensors", "half");
    let expected = [
        "pretrain/step-000006.unfinished/model.safetensors",
        "samples/part-0000.jsonl",
        "samples/part-0001.jsonl.unfinished",
    ];
    assert_eq!(named(&lab), expected);
    // A checkpoint that was being removed.
    let lab = Lab::new(3);
    fs::remove_file(lab.at("pretrain/step-000002/DONE")).unwrap();
    assert_eq!(named(&lab).len(), 3);
    // The lock alone says nothing and is not named.
    assert!(lab.at("lock").exists());
}

#[test]
fn nothing_in_the_run_changes() {
    let _locks_are_free = no_starts();
    use std::os::unix::fs::MetadataExt;
    let lab = Lab::new(5);
    let look = || {
        let mut all = Vec::new();
        let mut folders = vec![lab.at("")];
        while let Some(folder) = folders.pop() {
            let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path());
            for path in entries {
                let it = fs::symlink_metadata(&path).unwrap();
                all.push((path.clone(), it.ino(), it.mtime(), it.mtime_nsec(), it.ctime(), it.ctime_nsec(), it.len()));
                if it.is_dir() {
                    folders.push(path);
                }
            }
        }
        all.sort();
        all
    };
    for with_lock in [true, false] {
        lab.put("tuned/step-000006.unfinished/x", "half");
        if !with_lock {
            fs::remove_file(lab.at("lock")).unwrap();
        }
        let before = look();
        let run = RunDir::open_read_only(&lab.at("")).unwrap();
        assert_eq!(lab.examine().problems, []);
        drop(run);
        assert_eq!(look(), before, "lock: {with_lock}");
    }
}

#[test]
fn a_run_that_is_worked_on_is_not_looked_at() {
    let _locks_are_free = no_starts();
    let lab = Lab::new(1);
    let working = RunDir::open(&lab.at("")).unwrap();
    let error = RunDir::open_read_only(&lab.at("")).unwrap_err();
    assert!(matches!(&error, RunError::Locked { pid: Some(pid), .. } if *pid == std::process::id()), "{error}");
    drop(working);
    // Several may look, and nobody works meanwhile.
    let looking = [(); 2].map(|()| RunDir::open_read_only(&lab.at("")).unwrap());
    assert!(matches!(RunDir::open(&lab.at("")), Err(RunError::Locked { .. })));
    drop(looking);
    RunDir::open(&lab.at("")).unwrap();
}

/// Going on with a run whose ledger is not what it was would write a receipt that hides it.
#[test]
fn a_run_without_its_whole_ledger_does_not_go_on() {
    let _locks_are_free = no_starts();
    let refused = |lab: &Lab| {
        let again = [RunDir::open(&lab.at("")), RunDir::open_or_create(lab.folder.path(), &lab.recipe)];
        let errors = again.map(|result| result.map(|_| ()).unwrap_err().to_string());
        let [error, other] = errors.map(|error| error.replace(&lab.at("").display().to_string(), ""));
        assert!(error == other || error == " is not a run" || error.ends_with("is not a run"), "{error}\n{other}");
        other
    };
    let lab = Lab::new(5);
    fs::remove_file(lab.at("ledger.jsonl")).unwrap();
    assert_eq!(refused(&lab), "ledger.jsonl is damaged: it is missing");
    assert!(!lab.at("ledger.jsonl").exists());
    let lab = Lab::new(0);
    lab.put("ledger.jsonl", "");
    assert_eq!(refused(&lab), "ledger.jsonl is damaged: it is empty, and the run has data");
    let lab = Lab::new(5);
    let text = fs::read_to_string(lab.at("ledger.jsonl")).unwrap();
    lab.put("ledger.jsonl", &text.split_inclusive('\n').take(5).collect::<String>());
    assert_eq!(refused(&lab), "ledger.jsonl is damaged: it has 5 lines, and receipt.json knows of 10");
    let lab = Lab::new(5);
    fs::remove_file(lab.at(RECEIPT)).unwrap();
    assert_eq!(refused(&lab), "receipt.json is damaged: it is missing");
    let lab = Lab::new(5);
    ["run.json", "ledger.jsonl", "lock"].iter().for_each(|name| fs::remove_file(lab.at(name)).unwrap());
    assert_eq!(refused(&lab), "run.json is damaged: it is missing, and there is data");
    // A lock that leads elsewhere is not written through.
    let lab = Lab::new(1);
    lab.put("precious", "precious");
    lab.link("lock", "precious");
    assert!(refused(&lab).starts_with("cannot lock lock"));
    assert_eq!(fs::read_to_string(lab.at("precious")).unwrap(), "precious");
}

/// Kills between the files that a run begins with.
#[test]
fn a_run_that_was_hardly_begun_goes_on() {
    let _locks_are_free = no_starts();
    for kept in 0..=4 {
        let recipe = Recipe::parse("r.toml", RECIPE, Path::new("/data")).unwrap();
        let folder = tempfile::tempdir().unwrap();
        RunDir::open_or_create(folder.path(), &recipe).unwrap().write_plan(&json!({})).unwrap();
        let run = folder.path().join("r");
        for name in ["lock", "ledger.jsonl", "run.json", "recipe.toml", "plan.json"].iter().skip(kept + 1) {
            fs::remove_file(run.join(name)).unwrap();
        }
        fs::write(run.join("run.json.unfinished"), "{").unwrap();
        RunDir::open_or_create(folder.path(), &recipe).unwrap();
        assert!(Ledger::open(&run.join("ledger.jsonl")).unwrap().entries().is_empty());
        assert!(run.join("run.json").exists() && !run.join("run.json.unfinished").exists());
    }
}

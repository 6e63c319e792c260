//! `wels verify`: honest runs are accepted; whatever is changed afterwards is found and named.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use wels_runs::hash::{sha256, sha256_file};

use crate::lab::{Lab, Said};

/// A recipe whose checkpoints are all kept.
fn recipe(lab: &Lab, name: &str, more: &[(&str, &str)]) -> String {
    let kept = ("checkpoint_every = 5", "checkpoint_every = 5\nkeep_checkpoints = 9");
    lab.recipe(name, &[&[kept], more].concat())
}

#[test]
fn honest_runs_are_accepted() {
    let lab = Lab::new();
    let more: [&[(&str, &str)]; 10] = [
        &[],
        &[("seed = 7", "seed = 8")],
        &[("micro_batch = 4", "micro_batch = 1")],
        &[("micro_batch = 4", "micro_batch = 4\nrecompute_layers = \"all\"")],
        &[("micro_batch = 4", "micro_batch = 4\nprecision = \"bf16\"")],
        &[("num_nextn_predict_layers = 1", "num_nextn_predict_layers = 0")],
        &[("n_routed_experts = 8", "n_routed_experts = 4")],
        &[("learning_rate = 3e-3", "learning_rate = 1e-3\nclip_norm = 0.1")],
        &[("sequence_length = 32", "sequence_length = 16")],
        &[("vocab_size = 400", "vocab_size = 350")],
    ];
    for (i, more) in more.into_iter().enumerate() {
        let name = format!("honest-{i}");
        lab.done(&["run", &recipe(&lab, &name, more)]);
        let said = lab.done(&["verify", &format!("runs/{name}"), "--segments", "2"]);
        assert!(said.stdout.ends_with("verified\n"), "{said:?}");
        assert_eq!(said.stdout.matches(": done again from ").count(), 2, "{said:?}");
    }
}

#[test]
fn a_killed_and_resumed_run_is_accepted() {
    let lab = Lab::new();
    let recipe = recipe(&lab, "killed", &[("checkpoint_every = 5", "checkpoint_every = 3")]);
    let mut child = lab.start(&["run", &recipe]);
    crate::lab::wait_until(&mut child, || lab.steps_seen("killed") >= 7);
    child.kill().unwrap();
    child.wait().unwrap();
    lab.done(&["run", &recipe]);
    lab.done(&["verify", "runs/killed", "--segments", "3"]);
}

/// Changes one file of a run.
type Change = fn(&Path);

fn flip(path: PathBuf, at: impl Fn(usize) -> usize) {
    let mut bytes = fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let at = at(bytes.len());
    bytes[at] ^= 1;
    fs::write(path, bytes).unwrap();
}

fn replace(path: PathBuf, from: &str, to: &str) {
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.contains(from), "{} does not hold {from}", path.display());
    fs::write(path, text.replacen(from, to, 1)).unwrap();
}

/// A pipe that nobody writes to.
fn pipe(path: PathBuf) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
}

fn lines(path: &Path) -> Vec<String> {
    fs::read_to_string(path).unwrap().lines().map(str::to_string).collect()
}

fn put_lines(path: &Path, lines: &[String]) {
    fs::write(path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
}

/// Rewrites the ledger with hashes that fit again, as somebody would who knows how.
fn forge_ledger(run: &Path, change: impl Fn(&mut Value)) {
    let path = run.join("ledger.jsonl");
    let mut head = "0".repeat(64);
    let mut forged = Vec::new();
    for line in lines(&path) {
        let mut value: Value = serde_json::from_str(&line).unwrap();
        change(&mut value);
        let object = value.as_object_mut().unwrap();
        object.shift_remove("hash");
        object.insert("prev_hash".into(), head.into());
        head = sha256(serde_json::to_string(&object).unwrap().as_bytes());
        object.insert("hash".into(), head.clone().into());
        forged.push(value.to_string());
    }
    put_lines(&path, &forged);
}

/// The receipt that belongs to the ledger as it is.
fn forge_receipt(run: &Path) {
    let ledger = wels_runs::ledger::Ledger::open(&run.join("ledger.jsonl")).unwrap();
    let recipe = wels_runs::recipe::Recipe::load(&run.join("recipe.toml")).unwrap();
    let receipt = wels_runs::receipt::Receipt::of(&recipe, ledger.entries(), ledger.head());
    fs::write(run.join("receipt.json"), serde_json::to_string_pretty(&receipt).unwrap()).unwrap();
}

/// Changes a file of a checkpoint and everything that knows its hash.
fn forge_checkpoint(run: &Path, checkpoint: &str, file: &str, change: impl Fn(&mut Vec<u8>)) {
    let folder = run.join(checkpoint);
    let mut bytes = fs::read(folder.join(file)).unwrap();
    let old = sha256(&bytes);
    change(&mut bytes);
    fs::write(folder.join(file), &bytes).unwrap();
    let new = sha256_file(&folder.join(file)).unwrap().0;
    replace(folder.join("DONE"), &old, &new);
    forge_ledger(run, |line| {
        let text = line.to_string().replace(&old, &new);
        *line = serde_json::from_str(&text).unwrap();
    });
    forge_receipt(run);
}

const CHANGES: &[(&str, &str, Change)] = &[
    ("one bit of one weight", "pretrain/step-000010/model.safetensors: has hash", |run| {
        flip(run.join("pretrain/step-000010/model.safetensors"), |len| len - 100);
    }),
    ("one bit of the optimizer", "pretrain/step-000020/optimizer.safetensors: has hash", |run| {
        flip(run.join("pretrain/step-000020/optimizer.safetensors"), |len| len - 9);
    }),
    ("a weight's file cut short", "pretrain/step-000005/model.safetensors: has", |run| {
        let path = run.join("pretrain/step-000005/model.safetensors");
        let bytes = fs::read(&path).unwrap();
        fs::write(path, &bytes[..bytes.len() - 4]).unwrap();
    }),
    ("a configuration", "pretrain/step-000015/config.json: has hash", |run| {
        flip(run.join("pretrain/step-000015/config.json"), |len| len / 2);
    }),
    ("a file added to a checkpoint", "pretrain/step-000015/notes.txt: was not written by the run", |run| {
        fs::write(run.join("pretrain/step-000015/notes.txt"), "hello").unwrap();
    }),
    ("DONE together with a weight", "pretrain/step-000010/DONE: lists other hashes than the ledger", |run| {
        let folder = run.join("pretrain/step-000010");
        let file = folder.join("model.safetensors");
        let old = sha256_file(&file).unwrap().0;
        flip(file.clone(), |len| len - 100);
        replace(folder.join("DONE"), &old, &sha256_file(&file).unwrap().0);
    }),
    ("the newest checkpoint removed", "pretrain/step-000020: the newest checkpoint is missing", |run| {
        fs::remove_dir_all(run.join("pretrain/step-000020")).unwrap();
    }),
    ("a checkpoint from nowhere", "pretrain/step-000018: no line of the ledger knows this checkpoint", |run| {
        let to = run.join("pretrain/step-000018");
        fs::create_dir(&to).unwrap();
        for file in fs::read_dir(run.join("pretrain/step-000020")).unwrap().flatten() {
            fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }),
    ("a loss in the metrics", "pretrain/metrics.jsonl: a line up to step 5 is not the one that was written", |run| {
        let path = run.join("pretrain/metrics.jsonl");
        let mut all = lines(&path);
        all[2] = all[2].replacen("\"loss\":", "\"loss\":1", 1);
        put_lines(&path, &all);
    }),
    ("the last line of the metrics dropped", "pretrain/metrics.jsonl: ends before step 20", |run| {
        let path = run.join("pretrain/metrics.jsonl");
        let all = lines(&path);
        put_lines(&path, &all[..all.len() - 1]);
    }),
    ("a figure in the ledger", "ledger.jsonl: line 4: its hash does not belong to its contents", |run| {
        let path = run.join("ledger.jsonl");
        let mut all = lines(&path);
        all[3] = all[3].replacen("\"seconds\":", "\"seconds\":1", 1);
        put_lines(&path, &all);
    }),
    ("a line of the ledger dropped", "ledger.jsonl: line 5: does not follow from the line before it", |run| {
        let path = run.join("ledger.jsonl");
        let mut all = lines(&path);
        all.remove(4);
        put_lines(&path, &all);
    }),
    ("two lines of the ledger exchanged", "ledger.jsonl: line 4: does not follow from the line before it", |run| {
        let path = run.join("ledger.jsonl");
        let mut all = lines(&path);
        all.swap(3, 4);
        put_lines(&path, &all);
    }),
    ("the ledger's end cut off", "ledger.jsonl: has 5 lines, and the receipt knows of 8", |run| {
        let path = run.join("ledger.jsonl");
        let all = lines(&path);
        put_lines(&path, &all[..5]);
    }),
    ("the ledger rewritten with other times", "ledger.jsonl: line 8 is not the one that the receipt names", |run| {
        forge_ledger(run, |line| line["seconds"] = 0.001.into());
    }),
    ("ledger and receipt rewritten with fewer tokens", "the recipe gives", |run| {
        forge_ledger(run, |line| {
            if line["step"] == 10 {
                line["tokens"] = 32.into();
            }
        });
        forge_receipt(run);
    }),
    ("ledger and receipt rewritten with fewer operations", "its tokens give", |run| {
        forge_ledger(run, |line| {
            if line["step"] == 10 {
                line["flops"] = 1.0.into();
            }
        });
        forge_receipt(run);
    }),
    ("the receipt's seed", "receipt.json: its seed does not follow from recipe and ledger", |run| {
        replace(run.join("receipt.json"), "\"seed\": 7", "\"seed\": 8");
    }),
    ("the receipt removed", "receipt.json: is missing", |run| fs::remove_file(run.join("receipt.json")).unwrap()),
    ("the recipe", "recipe.toml: has", |run| {
        replace(run.join("recipe.toml"), "learning_rate = 0.003", "learning_rate = 0.0031");
    }),
    ("the recipe's seed", "recipe.toml: has hash", |run| replace(run.join("recipe.toml"), "seed = 7", "seed = 9")),
    ("the plan", "plan.json: has", |run| replace(run.join("plan.json"), "\"steps\": 20", "\"steps\": 19")),
    ("one bit of the training data", "data/train-00000.tokens: has hash", |run| {
        flip(run.join("data/train-00000.tokens"), |len| len / 2);
    }),
    ("one bit of the held-out data", "data/validation-00000.tokens: has hash", |run| {
        flip(run.join("data/validation-00000.tokens"), |len| len / 2);
    }),
    ("the list of sources", "data/sources.jsonl: is not the list that the manifest names", |run| {
        flip(run.join("data/sources.jsonl"), |len| len / 2);
    }),
    ("the data's manifest", "data/manifest.json: has hash", |run| {
        replace(run.join("data/manifest.json"), "\"duplicates\": 0", "\"duplicates\": 1");
    }),
    ("the tokenizer", "tokenizer/tokenizer.json: has hash", |run| {
        flip(run.join("tokenizer/tokenizer.json"), |len| len / 2);
    }),
    ("the tokenizer's configuration", "tokenizer/tokenizer_config.json: has ", |run| {
        flip(run.join("tokenizer/tokenizer_config.json"), |len| len / 2);
    }),
    ("a chat template added", "tokenizer/chat_template.jinja: was not written by the run", |run| {
        fs::write(run.join("tokenizer/chat_template.jinja"), "{{ messages }}").unwrap();
    }),
    ("the format's file", "run.json: is not what the program of the ledger's first line writes", |run| {
        replace(run.join("run.json"), "\n}", ",\n  \"by\": \"me\"\n}");
    }),
    ("a line of metrics behind the last", "pretrain/metrics.jsonl: goes on for ", |run| {
        let path = run.join("pretrain/metrics.jsonl");
        let all = lines(&path);
        put_lines(&path, &[&all[..], &[all[19].replacen("\"step\":20", "\"step\":21", 1)]].concat());
    }),
    ("a file of somebody else's", "\\u{1b}[2J.txt: was not written by the run", |run| {
        fs::write(run.join("\u{1b}[2J.txt"), "hello").unwrap();
    }),
    ("a stage of somebody else's", "student: was not written by the run", |run| {
        fs::create_dir(run.join("student")).unwrap();
    }),
    ("a key twice in the ledger", "ledger.jsonl: line 4: is not spelled as a ledger's lines are", |run| {
        let path = run.join("ledger.jsonl");
        let mut all = lines(&path);
        all[3] = all[3].replacen("\"seconds\":", "\"seconds\":1.5,\"seconds\":", 1);
        put_lines(&path, &all);
    }),
    ("times that go back", "seconds before that of the line before it", |run| {
        forge_ledger(run, |line| {
            if line["event"] == "checkpoint" && line["step"] == 10 {
                line["time"] = 1000.into();
            }
        });
        forge_receipt(run);
    }),
    ("the ledger removed", "ledger.jsonl: it is missing", |run| fs::remove_file(run.join("ledger.jsonl")).unwrap()),
    ("a pipe in place of the metrics", "pretrain/metrics.jsonl: is neither a file nor a folder", |run| {
        fs::remove_file(run.join("pretrain/metrics.jsonl")).unwrap();
        pipe(run.join("pretrain/metrics.jsonl"));
    }),
    ("a link to a device in place of a weight", "model.safetensors: is neither a file nor a folder", |run| {
        let path = run.join("pretrain/step-000010/model.safetensors");
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    }),
    ("a sample", "sample/samples.json: has", |run| {
        replace(run.join("sample/samples.json"), "The river", "The ocean");
    }),
    // Everything that holds a hash is rewritten with it, so only doing the steps again finds these.
    (
        "one bit of one weight, consistently",
        "pretrain/step-000010/model.safetensors: is not what the steps from the checkpoint before it give",
        |run| {
            forge_checkpoint(run, "pretrain/step-000010", "model.safetensors", |bytes| {
                let at = bytes.len() - 100;
                bytes[at] ^= 1;
            });
        },
    ),
    ("a loss, consistently", "pretrain/metrics.jsonl: says loss", |run| {
        let path = run.join("pretrain/metrics.jsonl");
        let mut all = lines(&path);
        let mut line: Value = serde_json::from_str(&all[12]).unwrap();
        line["loss"] = (line["loss"].as_f64().unwrap() - 1e-9).into();
        all[12] = line.to_string();
        put_lines(&path, &all);
        let text = fs::read_to_string(&path).unwrap();
        let end = |step: usize| text.match_indices('\n').nth(step - 1).unwrap().0 + 1;
        forge_ledger(run, |line| {
            let step = line["step"].as_u64().unwrap() as usize;
            if line["event"] == "checkpoint" {
                let beginning = &text[..end(step)];
                line["files"]["../metrics.jsonl"] =
                    serde_json::json!({"bytes": beginning.len(), "sha256": sha256(beginning.as_bytes())});
            }
        });
        forge_receipt(run);
    }),
];

#[test]
fn every_kind_of_tampering_is_found_and_named() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "r", &[])]);
    lab.done(&["verify", "runs/r", "--segments", "9"]);
    for (what, message, change) in CHANGES {
        let copied = lab.shell("rm -rf runs/t && cp -a runs/r runs/t");
        assert_eq!(copied.code, Some(0), "{copied:?}");
        change(&lab.at("runs/t"));
        let said: Said = lab.wels(&["verify", "runs/t", "--segments", "9"]);
        assert_eq!(said.code, Some(1), "{what}: {said:?}");
        assert!(said.stdout.contains(message), "{what}: expected {message:?} in {said:?}");
        assert!(said.stdout.ends_with("NOT verified\n") && said.stderr.contains("hint: "), "{what}: {said:?}");
    }
    assert!(CHANGES.len() >= 15);
}

/// What is found, and what was done to a run of many stages.
const CHANGES_TO_STAGES: [(&str, Change); 8] = [
    ("scores/model-1/part-0000.jsonl: has hash", |run| {
        let path = run.join("scores/model-1/part-0000.jsonl");
        let text = fs::read_to_string(&path).unwrap();
        // As long as before: one digit of an answer.
        let at = text.find("\"tokens\":").unwrap() + 9;
        flip(path, |_| at);
    }),
    ("samples/part-0000.jsonl: has ", |run| fs::write(run.join("samples/part-0000.jsonl"), "{}\n").unwrap()),
    ("tokenizer/chat_template.jinja: has ", |run| {
        let path = run.join("tokenizer/chat_template.jinja");
        fs::write(&path, fs::read_to_string(&path).unwrap() + "{# #}").unwrap();
    }),
    ("samples/kept.jsonl: ", |run| fs::write(run.join("samples/kept.jsonl"), "{}\n").unwrap()),
    ("scores/scores.json: has hash", |run| flip(run.join("scores/scores.json"), |len| len / 2)),
    ("ledger.jsonl: says 7 tokens up to step 3 of reinforced; the metrics say ", |run| {
        forge_ledger(run, |line| {
            if line["stage"] == "reinforced" && line["step"] == 3 {
                line["tokens"] = 7.into();
            }
        });
        forge_receipt(run);
    }),
    ("ledger.jsonl: says 7 tokens learnt from up to step 3 of reinforced; the metrics say ", |run| {
        forge_ledger(run, |line| {
            if line["stage"] == "reinforced" && line["step"] == 3 {
                line["learned_tokens"] = 7.into();
            }
        });
        forge_receipt(run);
    }),
    // Not of the two lines that tell what a token takes.
    ("operations for step 6 of reinforced; its tokens give others", |run| {
        forge_ledger(run, |line| {
            if line["stage"] == "reinforced" && line["step"] == 6 {
                line["flops"] = 1.0.into();
            }
        });
        forge_receipt(run);
    }),
];

#[test]
fn steps_of_every_stage_are_done_again() {
    let lab = Lab::new();
    let file = crate::stages::recipe(&lab, "r");
    let text = fs::read_to_string(lab.at(&file)).unwrap();
    fs::write(lab.at(&file), text.replace("\ncheckpoint_every", "\nkeep_checkpoints = 99\ncheckpoint_every")).unwrap();
    lab.done(&["run", &file]);
    // As often as it takes: a stretch is chosen at most once.
    let said = lab.done(&["verify", "runs/r", "--segments", "999"]);
    for line in [
        "pretrain: done again from step 5 to step 10\n",
        "base: done again from the beginning to step 7\n",
        "reinforced: done again from step 3 to step 6\n",
        "reinforced: done again from step 9 to step 10\n",
        "shown: done again from ",
        "played: done again from ",
        "student: done again from step 2 to step 4\n",
        "drawn: done again from step 2 to step 4\n",
        "corrected: done again from step 4 to step 6\n",
    ] {
        assert!(said.stdout.contains(line), "{line}: {said:?}");
    }
    assert!(said.stdout.ends_with("\nverified\n"), "{said:?}");
    let said = lab.done(&["verify", "runs/r", "--stage", "corrected", "--segments", "2"]);
    assert_eq!(said.stdout.matches("corrected: done again").count(), 2, "{said:?}");
    let said = lab.wels(&["verify", "runs/r", "--stage", "corected"]);
    assert!(
        said.failure().contains("the run has no stage corected\nhint: its stages are pretrain, base, "),
        "{said:?}"
    );

    let one_bit = |bytes: &mut Vec<u8>| {
        let at = bytes.len() - 100;
        bytes[at] ^= 1;
    };
    for (stage, step, file) in [
        ("reinforced", "step-000006", "model.safetensors"),
        ("reinforced", "step-000006", "reference.safetensors"),
        ("student", "step-000004", "optimizer.safetensors"),
        ("drawn", "step-000004", "model.safetensors"),
        ("corrected", "step-000004", "model.safetensors"),
    ] {
        lab.shell("rm -rf runs/t && cp -a runs/r runs/t");
        forge_checkpoint(&lab.at("runs/t"), &format!("{stage}/{step}"), file, one_bit);
        let said = lab.wels(&["verify", "runs/t", "--segments", "99", "--stage", stage]);
        let found = format!("{stage}/{step}/{file}: is not what the steps from the checkpoint before it give");
        assert!(said.code == Some(1) && said.stdout.contains(&found), "{found}: {said:?}");
    }
    for (message, change) in CHANGES_TO_STAGES {
        lab.shell("rm -rf runs/t && cp -a runs/r runs/t");
        change(&lab.at("runs/t"));
        let said = lab.wels(&["verify", "runs/t", "--segments", "0"]);
        assert!(said.code == Some(1) && said.stdout.contains(message), "{message}: {said:?}");
    }
}

#[test]
fn a_run_that_cannot_be_written_is_verified() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "r", &[])]);
    // Permissions stop no superuser, so what counts is that nothing in the tree is another afterwards.
    let look = || lab.shell("rm -f runs/r/lock && find runs/r -printf '%p %i %T@ %C@ %s\\n' | sort").stdout;
    let before = look();
    assert!(before.lines().count() > 20, "{before}");
    lab.shell("chmod -R a-w runs/r");
    let changed = look();
    let said = lab.done(&["verify", "runs/r", "--segments", "9"]);
    assert!(said.stdout.contains("\nnot covered: report.html\n") && said.stdout.ends_with("verified\n"), "{said:?}");
    let after = look();
    lab.shell("chmod -R u+w runs/r");
    assert_eq!(after, changed);
}

/// A kill behind a stage's files and before its line: the line comes when the run goes on.
#[test]
fn a_stage_whose_line_is_not_written_gets_it() {
    let lab = Lab::new();
    lab.done(&["run", &crate::stages::recipe(&lab, "r")]);
    let whole = lines(&lab.at("runs/r/ledger.jsonl"));
    for stage in ["scores", "samples", "data", "tokenizer"] {
        let of_stage = |line: &String| line.contains(&format!("\"stage-done\",\"stage\":\"{stage}\""));
        let at = whole.iter().position(of_stage).unwrap();
        lab.shell("rm -rf runs/t && cp -a runs/r runs/t");
        let run = lab.at("runs/t");
        put_lines(&run.join("ledger.jsonl"), &whole[..at]);
        forge_receipt(&run);
        let later = whole[at + 1..].iter().map(|line| serde_json::from_str::<Value>(line).unwrap());
        for later in later.map(|line| line["stage"].as_str().unwrap().to_string()).filter(|later| !later.is_empty()) {
            let _ = fs::remove_dir_all(run.join(later));
        }
        lab.done(&["run", "runs/t"]);
        let again = lines(&run.join("ledger.jsonl"));
        let files = |line: &String| serde_json::from_str::<Value>(line).unwrap()["files"].clone();
        let found = again.iter().filter(|line| of_stage(line)).map(files).collect::<Vec<_>>();
        assert_eq!(found, [files(&whole[at])], "{stage}");
        lab.done(&["verify", "runs/t", "--segments", "0"]);
    }
}

#[test]
fn a_ledger_that_is_lost_is_not_begun_anew() {
    let lab = Lab::new();
    let recipe = recipe(&lab, "r", &[]);
    lab.done(&["run", &recipe]);
    fs::remove_file(lab.at("runs/r/ledger.jsonl")).unwrap();
    for run in [&*recipe, "runs/r"] {
        let said = lab.wels(&["run", run]);
        let failure = said.failure();
        assert!(
            failure.starts_with("error: runs/r/ledger.jsonl is damaged: it is missing\nhint: restore it"),
            "{said:?}"
        );
        assert!(said.code == Some(1) && !lab.at("runs/r/ledger.jsonl").exists(), "{said:?}");
    }
}

#[test]
fn a_receipt_and_the_data_are_enough() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "r", &[])]);
    // Published: the receipt alone, to somebody who has the text under the same name elsewhere.
    let moved = lab.shell("mkdir other && mv text other/ && cp runs/r/receipt.json . && rm -r runs");
    assert_eq!(moved.code, Some(0), "{moved:?}");
    let verify = |segments: &str| {
        lab.wels(&[
            "verify",
            "--receipt",
            "receipt.json",
            "--data",
            "other/text",
            "--segments",
            segments,
            "--scratch",
            ".",
        ])
    };
    let said = verify("2");
    assert_eq!(said.code, Some(0), "{said:?}");
    assert!(said.stdout.contains("from step 5 to step 10\n") && said.stdout.ends_with("verified\n"), "{said:?}");
    assert!(!lab.shell("ls").stdout.contains("wels-verify"), "the scratch folder is left");
    let original = fs::read_to_string(lab.at("receipt.json")).unwrap();
    let receipt: Value = serde_json::from_str(&original).unwrap();
    let hash = receipt["checkpoints"][1]["files"]["model.safetensors"]["sha256"].as_str().unwrap();
    fs::write(lab.at("receipt.json"), original.replace(hash, &"0".repeat(64))).unwrap();
    let said = verify("2");
    assert!(
        said.code == Some(1) && said.stdout.contains("pretrain/step-000010/model.safetensors: is not what"),
        "{said:?}"
    );
    fs::write(lab.at("receipt.json"), &original).unwrap();
    fs::write(lab.at("other/text/07.txt"), "other words").unwrap();
    let said = verify("1");
    assert!(
        said.code == Some(1) && said.stdout.contains("data/manifest.json: is not what recipe and data give"),
        "{said:?}"
    );

    fs::write(lab.at("receipt.json"), original.replacen("\"format\": 1", "\"format\": 99", 1)).unwrap();
    let failure = verify("1").failure();
    assert_eq!(
        failure,
        "error: receipt.json has run format 99, and this program reads up to 1\nhint: use the newer program that made it\n"
    );
}

#[test]
fn a_whole_recipe_is_repeated_from_its_receipt() {
    let lab = Lab::new();
    lab.done(&["run", &crate::stages::recipe(&lab, "r")]);
    assert_eq!(lab.shell("cp runs/r/receipt.json . && rm -r runs").code, Some(0));
    let verify = || lab.wels(&["verify", "--receipt", "receipt.json", "--whole", "--scratch", "."]);
    let said = verify();
    assert_eq!(said.code, Some(0), "{said:?}");
    // The verdict alone is on stdout, and not what the repeated run found.
    assert!(said.stdout.split_once(' ').unwrap().0.parse::<u64>().is_ok(), "{said:?}");
    for line in ["pretrain", "reinforced", "corrected"].map(|stage| format!("{stage}: done again from the beginning")) {
        assert!(said.stdout.contains(&line), "{line}: {said:?}");
    }
    assert!(!lab.shell("ls").stdout.contains("wels-verify"), "the scratch folder is left");
    let original = fs::read_to_string(lab.at("receipt.json")).unwrap();
    let receipt: Value = serde_json::from_str(&original).unwrap();
    let last = receipt["checkpoints"].as_array().unwrap().last().unwrap();
    let place = format!("{}/step-{:06}", last["stage"].as_str().unwrap(), last["step"].as_u64().unwrap());
    let scores = receipt["inputs"]["scores"].as_object().unwrap().iter().next().unwrap();
    for (hash, message) in [
        (
            &last["files"]["model.safetensors"]["sha256"],
            format!("{place}/model.safetensors: is not what the recipe gives"),
        ),
        (&scores.1["sha256"], format!("scores/{}: is not what the recipe gives", scores.0)),
    ] {
        let changed = original.replace(hash.as_str().unwrap(), &"0".repeat(64));
        fs::write(lab.at("receipt.json"), changed).unwrap();
        let said = verify();
        assert!(said.code == Some(1) && said.stdout.contains(&message), "{message}: {said:?}");
    }
}

#[test]
fn runs_that_cannot_be_read_are_refused() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "r", &[])]);
    fs::write(lab.at("runs/r/run.json"), "{\"format\": 99, \"wels_version\": \"9.0.0\"}").unwrap();
    for verb in ["verify", "report", "run"] {
        let said = lab.wels(&[verb, "runs/r"]);
        assert_eq!(said.code, Some(1));
        assert_eq!(
            said.failure(),
            "error: runs/r has run format 99, and this program reads up to 1\nhint: use the newer program that made it\n",
            "{verb}"
        );
        let said = lab.wels(&[verb, "text"]);
        assert!(said.failure().starts_with("error: text is not a run\n"), "{verb}: {said:?}");
    }
}

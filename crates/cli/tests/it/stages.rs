//! All kinds of stages: pretraining, worked examples, reinforcement, sampling, distillation, scores; and `kill -9` at
//! random moments in all of them, behind which the same command, on another number of ranks, some of which share the
//! experts, ends with the weights and metrics of the uninterrupted run of one rank.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use wels_runs::ledger::Ledger;

use crate::eval::server;
use crate::lab::{Lab, Numbers, wait_until};

const KILLS: usize = 24;

/// Stages whose weights and metrics are compared.
pub const TRAINED: [&str; 8] = ["pretrain", "base", "reinforced", "shown", "played", "student", "drawn", "corrected"];

/// Behind the lab's own recipe.
const STAGES: &str = r#"
[[stage]]
name = "base"
kind = "pretrain"
from = "pretrain"
optimizer = "muon"
data = "traces"
traces = 1200
trace_direct = 1.0
batch_tokens = 512
gradient_shards = 8
learning_rate = 5e-3
checkpoint_every = 7

[[stage]]
name = "reinforced"
kind = "rl"
from = "base"
optimizer = "muon"
steps = 10
prompts = 6
samples = 6
max_tokens = 24
mini_batches = 2
gradient_shards = 8
kl = 0.01
reference_every = 4
reward_format = 1.0
learning_rate = 1e-3
checkpoint_every = 3

[[stage]]
name = "shown"
kind = "sft"
from = "base"
data = "demonstrations"
task = "files"
traces = 1500
trace_direct = 0.6
batch_tokens = 512
gradient_shards = 8
learning_rate = 5e-3
checkpoint_every = 3

[[stage]]
name = "played"
kind = "rl"
from = "shown"
task = "files"
objective = "gspo"
reward_format = 1.0
loss_mean = "sequence"
steps = 6
prompts = 6
samples = 6
max_tokens = 40
max_turns = 3
mini_batches = 2
gradient_shards = 8
learning_rate = 1e-3
checkpoint_every = 2

[[stage]]
name = "samples"
kind = "sample_and_filter"
from = "reinforced"
prompts = 200
samples = 4
max_tokens = 24

[[stage]]
name = "student"
kind = "sft"
data = "traces"
traces = 400
optimizer = "muon"
epochs = 2
batch_tokens = 512
gradient_shards = 8
learning_rate = 3e-3
checkpoint_every = 2

[stage.model]
model_type = "llama"
hidden_size = 32
num_hidden_layers = 1
intermediate_size = 48
num_attention_heads = 2
num_key_value_heads = 2
rms_norm_eps = 1e-6
max_position_embeddings = 64
rope_theta = 10000.0
tie_word_embeddings = true

[[stage]]
name = "drawn"
kind = "distil"
teacher = "reinforced"
from = "student"
data = "traces"
traces = 300
temperature = 2.0
cross_entropy = 0.2
batch_tokens = 512
gradient_shards = 8
micro_rows = 100
learning_rate = 1e-3
checkpoint_every = 2

[[stage]]
name = "corrected"
kind = "distil"
teacher = "reinforced"
from = "drawn"
divergence = "reverse_kl"
optimizer = "muon"
answers = "own"
steps = 6
prompts = 16
mini_batches = 2
gradient_shards = 8
max_tokens = 24
learning_rate = 1e-3
checkpoint_every = 2

[[stage]]
name = "scores"
kind = "score"
models = ["base", "reinforced", "student", "corrected"]
items = 40
max_tokens = 24
"#;

/// The lab's recipe with all kinds of stages.
pub fn recipe(lab: &Lab, name: &str) -> String {
    let changes = [
        ("training_bytes", "chat_template = \"deepseek_v3\"\ntraining_bytes"),
        ("batch_tokens = 256\nbatch_tokens_start = 128", "batch_tokens = 512\nbatch_tokens_start = 256"),
        ("micro_batch = 4", "micro_batch = 4\ngradient_shards = 8"),
    ];
    let file = lab.recipe(name, &changes);
    let path = lab.at(&file);
    fs::write(&path, fs::read_to_string(&path).unwrap() + STAGES).unwrap();
    file
}

pub fn stage(lab: &Lab, run: &str, stage: &str) -> PathBuf {
    lab.at(&format!("runs/{run}/{stage}"))
}

/// Lines of a stage's metrics; 0 before the first.
pub fn lines(lab: &Lab, run: &str, name: &str) -> usize {
    fs::read_to_string(stage(lab, run, name).join("metrics.jsonl")).map_or(0, |text| text.lines().count())
}

/// Files of a sampling stage.
pub fn files(lab: &Lab, run: &str, name: &str) -> usize {
    fs::read_dir(stage(lab, run, name)).map_or(0, |entries| entries.count())
}

/// The metrics of a stage without what depends on the machine.
pub fn metrics(lab: &Lab, run: &str, name: &str) -> Vec<Value> {
    let text = fs::read_to_string(stage(lab, run, name).join("metrics.jsonl")).unwrap();
    let line = |line: &str| {
        let mut value: Value = serde_json::from_str(line).unwrap();
        let object = value.as_object_mut().unwrap();
        for key in ["seconds", "rollout_seconds", "tokens_per_second", "sampled_tokens_per_second", "mfu", "exchange"] {
            object.remove(key);
        }
        value
    };
    text.lines().map(line).collect()
}

/// Hash of the weights and of the optimizer of a stage's last step.
pub fn weights(lab: &Lab, run: &str, name: &str) -> (String, String) {
    let last = metrics(lab, run, name).len();
    let hash = |file: &str| {
        let path = stage(lab, run, name).join(format!("step-{last:06}/{file}"));
        wels_runs::hash::sha256_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).0
    };
    (hash("model.safetensors"), hash("optimizer.safetensors"))
}

pub fn text(lab: &Lab, run: &str, file: &str) -> String {
    fs::read_to_string(lab.at(&format!("runs/{run}/{file}"))).unwrap()
}

/// The run that others are compared with: what its stages must have done for that to mean anything.
fn check_uninterrupted(lab: &Lab) {
    let whole = lab.done(&["run", &recipe(lab, "whole")]);
    assert!(whole.stdout.contains("countdown held out"), "{whole:?}");
    let rl = metrics(lab, "whole", "reinforced");
    assert!(rl.iter().all(|line| line["logprob_difference_max"] == 0.0));
    assert!(rl.iter().any(|line| line["updates"].as_u64() > Some(0)), "no group was live: nothing is tested");
    let played = metrics(lab, "whole", "played");
    assert!(played.iter().all(|line| line["logprob_difference_max"] == 0.0));
    assert!(played.iter().any(|line| line["observed"].as_f64() > Some(0.0) && line["turns"].as_f64() > Some(1.0)));
    assert!(played.iter().any(|line| line["updates"].as_u64() > Some(0)), "no group was live: nothing is tested");
    // So small a model makes no right answer, so what is kept is nothing; the parts hold what was sampled.
    assert_eq!(text(lab, "whole", "samples/part-0001.jsonl").lines().count(), (200 - 128) * 4);
    for name in ["drawn", "corrected"] {
        let lines = metrics(lab, "whole", name);
        assert!(
            lines.len() > 3 && lines.iter().all(|line| line["divergence"].as_f64() > Some(0.0)),
            "{name}: {lines:?}"
        );
    }
    assert!(metrics(lab, "whole", "corrected").iter().all(|line| line["logprob_difference_max"] == 0.0));
    // Answers may be shorter than assumed; a token takes what was planned.
    for stage in ["reinforced", "played", "corrected"] {
        let line = format!("account {stage}: operations ");
        let (_, account) = whole.stderr.split_once(&line).unwrap_or_else(|| panic!("{line}: {whole:?}"));
        let (actual, planned) = account.lines().next().unwrap().split_once(", planned ").unwrap();
        assert_eq!(actual, planned, "{stage}");
    }
    for stage in ["base", "samples", "student", "drawn", "scores"] {
        assert!(whole.stderr.contains(&format!("account {stage}: time ")), "{stage}: {whole:?}");
    }
    let html = fs::read_to_string(lab.at("runs/whole/report.html")).unwrap();
    assert!(html.contains("right, held out: corrected") && html.contains("Held-out items"), "no scores in the report");
}

#[test]
fn killed_stages_end_like_the_uninterrupted_ones() {
    let lab = Lab::new();
    check_uninterrupted(&lab);
    let mut numbers = Numbers(77);
    let (mut kills, mut run) = (0, 0);
    let (mut delays, mut shares) = (Numbers(78), Numbers(79));
    // Ranks, and how many of them share the experts of those stages whose model has some.
    let mut layout = || {
        let ranks: usize = [1, 2, 4, 8][numbers.below(4) as usize];
        let sharing = [1, 2, 4, 8][shares.below(u64::from(ranks.ilog2()) + 1) as usize];
        [ranks, sharing].map(|number: usize| number.to_string())
    };
    let mut worked = BTreeSet::new();
    while kills < KILLS {
        let name = format!("killed-{run}");
        let file = recipe(&lab, &name);
        for at in ["pretrain", "base", "reinforced", "played", "samples", "student", "drawn", "corrected", "scores"] {
            let [ranks, sharing] = layout();
            let mut child = lab.start(&["run", &file, "--ranks", &ranks, "--expert-parallel", &sharing]);
            let seen = |lab: &Lab| lines(lab, &name, at) + files(lab, &name, at);
            let before = seen(&lab);
            let came = wait_until(&mut child, || seen(&lab) != before);
            std::thread::sleep(Duration::from_micros(delays.below(30_000)));
            let over = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += usize::from(came && !over);
        }
        let [ranks, sharing] = layout();
        lab.done(&["run", &format!("runs/{name}"), "--ranks", &ranks, "--expert-parallel", &sharing]);
        for stage in TRAINED {
            assert_eq!(weights(&lab, &name, stage), weights(&lab, "whole", stage), "{stage} of {name}");
            assert_eq!(metrics(&lab, &name, stage), metrics(&lab, "whole", stage), "{stage} of {name}");
        }
        for file in ["samples/part-0000.jsonl", "samples/part-0001.jsonl", "scores/scores.json"] {
            assert_eq!(text(&lab, &name, file), text(&lab, "whole", file), "{file} of {name}");
        }
        let ledger = Ledger::read(&lab.at(&format!("runs/{name}/ledger.jsonl"))).unwrap().0;
        worked.extend(ledger.iter().map(|entry| (entry.ranks, entry.expert_parallel.is_some())));
        run += 1;
    }
    let ranks: BTreeSet<usize> = worked.iter().map(|(ranks, _)| *ranks).collect();
    assert_eq!(ranks, BTreeSet::from([1, 2, 4, 8]), "numbers of ranks that the ledgers name");
    let both = |ranks| [true, false].iter().all(|shared| worked.contains(&(ranks, *shared)));
    assert!(both(2) && both(4) && both(8) && !worked.contains(&(1, true)), "{worked:?}");
}

#[test]
fn a_stage_without_its_model_or_task_is_refused_in_words() {
    let lab = Lab::new();
    let file = lab.recipe("wrong", &[("steps = 20", "steps = 1")]);
    let path = lab.at(&file);
    let plain = fs::read_to_string(&path).unwrap();
    let student = STAGES[STAGES.find("[stage.model]").unwrap()..].split("\n\n").next().unwrap();
    let stranger = format!("[[stage]]\nname = \"a\"\nkind = \"distil\"\n{student}\nvocab_size = 500\n");
    let cases = [
        (&stranger[..], "the teacher pretrain has a vocabulary of 400 tokens, and the student of 500"),
        ("[[stage]]\nname = \"a\"\nkind = \"rl\"\ntask = \"chess\"\n", "there is no task 'chess'"),
        ("[[stage]]\nname = \"a\"\nkind = \"rl\"\ntask = \"sums+abacus\"\n", "there is no tool 'abacus'"),
        ("[[stage]]\nname = \"a\"\nkind = \"rl\"\ntask = \"countdown+search\"\n", "bring nothing for the tool search"),
        ("[[stage]]\nname = \"a\"\nkind = \"rl\"\ntask = \"env:guess\"\n", "guess is no program that plays episodes"),
        ("[[stage]]\nname = \"a\"\nkind = \"rl\"\nmax_turns = 0\n", "max_turns must be 1 or more"),
        (
            "[[stage]]\nname = \"a\"\nkind = \"rl\"\nobjective = \"ppo\"\n",
            "must be one of \"grpo\", \"gspo\", \"cispo\"",
        ),
        ("[[stage]]\nname = \"a\"\nkind = \"sft\"\ndata = \"demonstrations\"\n", "task names the environment of"),
        (
            "[[stage]]\nname = \"a\"\nkind = \"sft\"\ntask = \"files\"\n",
            "is the environment of data = \"demonstrations\"",
        ),
        ("[[stage]]\nname = \"a\"\nkind = \"sft\"\n", "the tokenizer has no chat template"),
        ("[[stage]]\nname = \"a\"\nkind = \"distil\"\nteacher = \"nowhere\"\n", "nowhere is no model"),
        ("[[stage]]\nname = \"a\"\nkind = \"distil\"\nanswers = \"own\"\nepochs = 2\n", "unknown key 'epochs'"),
        ("[[stage]]\nname = \"a\"\nkind = \"distil\"\ntemperature = 0.0\n", "between 0.01 and 100"),
        ("[[stage]]\nname = \"a\"\nkind = \"score\"\nmodels = [\"nowhere\"]\n", "nowhere is no model"),
        ("[[stage]]\nname = \"pretrain\"\n", "'pretrain' is the name of an earlier stage"),
        ("[[stage]]\nname = \"a\"\nkind = \"rll\"\n", "must be one of \"pretrain\", \"sft\", \"rl\""),
    ];
    for (n, (stages, expected)) in cases.into_iter().enumerate() {
        fs::write(&path, format!("{}{stages}", plain.replace("\"wrong\"", &format!("\"w{n}\"")))).unwrap();
        let said = lab.wels(&["run", &file]);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert!(said.failure().contains(expected), "{expected}: {said:?}");
    }
}

/// A program that calls long answers right, and so teaches to answer at length.
const JUDGE: &str = r#"#!/bin/sh
while read -r line; do
    id=$(printf %s "$line" | sed 's/.*"id":"\([^"]*\)".*/\1/')
    BODY
    if [ ${#line} -gt 130 ]; then right=true; else right=false; fi
    printf '{"id":"%s","correct":%s}\n' "$id" "$right"
done
"#;

/// Writes the program that judges, and questions for it.
fn write_judge(lab: &Lab, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    let question = |n: u32| format!("{{\"question\": \"{n}\", \"words\": [\"catfish\", {n}]}}\n");
    fs::write(lab.at("questions.jsonl"), (0..100).map(question).collect::<String>()).unwrap();
    fs::write(lab.at("judge"), JUDGE.replace("BODY", body)).unwrap();
    fs::set_permissions(lab.at("judge"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// The lab's recipe with stages that the program judges.
fn judged_recipe(lab: &Lab, name: &str) -> String {
    let asked = "task = \"terse:./judge=questions.jsonl\"\nmax_tokens = 24\n";
    let stages = format!(
        "[[stage]]\nname = \"reinforced\"\nkind = \"rl\"\nsteps = 3\nprompts = 4\nsamples = 4\nchecker_seconds = 2\n\
         learning_rate = 1e-3\n{asked}\n[[stage]]\nname = \"samples\"\nkind = \"sample_and_filter\"\n\
         from = \"reinforced\"\nprompts = 8\n{asked}\n[[stage]]\nname = \"scores\"\nkind = \"score\"\n{asked}"
    );
    let file = recipe(lab, name);
    let text = fs::read_to_string(lab.at(&file)).unwrap().replace(STAGES, &stages);
    fs::write(lab.at(&file), text).unwrap();
    file
}

#[test]
fn answers_are_judged_by_a_program_of_ones_own() {
    let lab = Lab::new();
    let recipe = |name: &str| judged_recipe(&lab, name);
    let judge = |body: &str| write_judge(&lab, body);
    judge("");
    lab.done(&["run", &recipe("honest")]);
    let accuracy: Vec<f64> =
        metrics(&lab, "honest", "reinforced").iter().map(|line| line["accuracy"].as_f64().unwrap()).collect();
    assert!(accuracy.iter().any(|share| *share > 0.0) && accuracy.iter().any(|share| *share < 1.0), "{accuracy:?}");
    let lines = text(&lab, "honest", "samples/part-0000.jsonl");
    assert!(lines.contains("\"correct\":true"), "{lines}");
    assert!(text(&lab, "honest", "scores/scores.json").contains("accuracy"));

    // What fails in the middle is named, and mended the same command goes on to the same weights.
    let file = recipe("mended");
    for (body, expected) in [
        ("[ $id -lt 20 ] || exec sleep 1000", "judge gave no answer within 2 s to "),
        ("[ $id -lt 20 ] || id=7", "and answered \"7\""),
        ("[ $id -lt 20 ] || exit 1", "judge ended before it answered "),
        ("[ $id -lt 20 ] || echo rubbish", "with `rubbish`"),
    ] {
        judge(body);
        let said = lab.wels(&["run", &file]);
        assert_eq!(said.code, Some(1), "{said:?}");
        let failure = said.failure();
        assert!(failure.contains(expected) && failure.contains("\nhint: docs/tasks.md says"), "{failure}");
    }
    judge("");
    lab.done(&["run", "runs/mended"]);
    assert_eq!(weights(&lab, "mended", "reinforced"), weights(&lab, "honest", "reinforced"));
    assert_eq!(text(&lab, "mended", "samples/part-0000.jsonl"), lines);
    fs::remove_file(lab.at("judge")).unwrap();
    let said = lab.wels(&["run", &recipe("gone")]);
    assert!(said.failure().contains("judge cannot be started: No such file"), "{said:?}");
}

/// Writes the program of docs/environments.md, which plays episodes, with a line more before it answers.
fn write_player(lab: &Lab, body: &str) {
    use std::os::unix::fs::PermissionsExt;
    const PAGE: &str = include_str!("../../../../docs/environments.md");
    let program = PAGE.split("```python\n").nth(1).unwrap().split("```").next().unwrap();
    let answers = "    print(json.dumps(said), flush=True)";
    assert!(program.contains(answers), "{program}");
    fs::write(lab.at("player"), program.replace(answers, &format!("    {body}\n{answers}"))).unwrap();
    fs::set_permissions(lab.at("player"), fs::Permissions::from_mode(0o755)).unwrap();
}

/// A run that learns from episodes of `task` and is scored by them.
fn played_recipe(lab: &Lab, name: &str, task: &str) -> String {
    let asked = format!("task = \"{task}\"\nmax_tokens = 40\nmax_turns = 3\n");
    let base = &STAGES[..STAGES.find("[[stage]]\nname = \"reinforced\"").unwrap()];
    let stages = format!(
        "{base}[[stage]]\nname = \"played\"\nkind = \"rl\"\nfrom = \"base\"\nsteps = 2\nprompts = 3\nsamples = 4\n\
         checker_seconds = 3\nlearning_rate = 1e-3\ncheckpoint_every = 1\n{asked}\n[[stage]]\nname = \"scores\"\n\
         kind = \"score\"\nmodels = [\"played\"]\nitems = 6\n{asked}"
    );
    let file = recipe(lab, name);
    fs::write(lab.at(&file), fs::read_to_string(lab.at(&file)).unwrap().replace(STAGES, &stages)).unwrap();
    file
}

#[test]
fn episodes_are_played_by_a_program_of_ones_own() {
    let lab = Lab::new();
    let recipe = |name: &str| played_recipe(&lab, name, "env:./player");
    write_player(&lab, "pass");
    lab.done(&["run", &recipe("honest")]);
    let lines = metrics(&lab, "honest", "played");
    assert!(lines.iter().all(|line| line["logprob_difference_max"] == 0.0), "{lines:?}");
    assert!(lines.iter().any(|line| line["turns"].as_f64() > Some(1.0)), "{lines:?}");
    let shown = lines.iter().flat_map(|line| line["samples"].as_array().unwrap()).map(Value::to_string);
    assert!(shown.collect::<String>().contains("<｜User｜>"), "what is said between the turns is shown");
    assert!(text(&lab, "honest", "scores/scores.json").contains("accuracy"));

    let file = recipe("mended");
    write_player(&lab, "if int(asked['id']) > 40: import time; time.sleep(1000)");
    let said = lab.wels(&["run", &file]);
    let failure = said.failure();
    assert!(
        failure.contains("player gave no answer within 3 s to ") && failure.contains("\nhint: docs/environments.md")
    );
    write_player(&lab, "pass");
    lab.done(&["run", "runs/mended"]);
    assert_eq!(weights(&lab, "mended", "played"), weights(&lab, "honest", "played"));

    let eval = |model: &str, more: &[&str]| {
        let asked = ["eval", model, "--task", "env:./player", "--items", "5", "--max-tokens", "40", "--max-turns", "2"];
        lab.done(&[&asked[..], more].concat())
    };
    let said = eval("runs/honest/played", &["--out", "a", "--json"]);
    let scores: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
    assert!(scores["items"] == 5 && scores["turns"].as_f64() >= Some(1.0), "{scores}");
    assert!(
        eval("runs/mended/played", &["--out", "b", "--parallel", "2"])
            .stdout
            .contains("of 5 items right, 95% interval")
    );
    assert_eq!(fs::read(lab.at("a/env___player.jsonl")).unwrap(), fs::read(lab.at("b/env___player.jsonl")).unwrap());
    assert!(lab.done(&["eval", "--compare", "a", "b"]).stdout.contains("no significant difference"));
    let endless = lab.wels(&["eval", "runs/honest/played", "--task", "calculator", "--out", "c"]);
    assert!(endless.failure().contains("the task has items without end"), "{endless:?}");
}

/// A server that hands questions to the program of docs/environments.md, and is broken once it was asked `most` of
/// them; what it knew of open episodes is lost when `most` changes. The task.
fn player_at_an_address(lab: &Lab, most: &Arc<AtomicUsize>) -> String {
    let (program, most) = (lab.at("player"), Arc::clone(most));
    let playing: Mutex<Option<(usize, Child)>> = Mutex::new(None);
    let address = server(move |number, _, question| {
        let most = most.load(Ordering::SeqCst);
        if number >= most {
            return Some((500, "", "broken".into()));
        }
        let mut playing = playing.lock().unwrap();
        if playing.as_ref().is_none_or(|(of, _)| *of != most) {
            let mut command = Command::new(&program);
            *playing = Some((most, command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()));
        }
        let (_, player) = playing.as_mut().unwrap();
        writeln!(player.stdin.as_mut().unwrap(), "{question}").unwrap();
        let mut said = String::new();
        BufReader::new(player.stdout.as_mut().unwrap()).read_line(&mut said).unwrap();
        Some((200, "", said))
    });
    format!("env:{address}")
}

#[test]
fn an_environment_at_an_address_is_that_of_a_program_and_is_not_needed_to_verify() {
    let lab = Lab::new();
    write_player(&lab, "pass");
    lab.done(&["run", &played_recipe(&lab, "program", "env:./player")]);

    // Broken amid the stage, mended without any memory, and gone.
    let most = Arc::new(AtomicUsize::new(40));
    let task = player_at_an_address(&lab, &most);
    let failure = lab.wels(&["run", &played_recipe(&lab, "address", &task)]).failure();
    assert!(failure.contains("answered with status 500: broken"), "{failure}");
    let record = || text(&lab, "address", "played/environment.jsonl");
    let before = record();
    most.store(usize::MAX, Ordering::SeqCst);
    lab.done(&["run", "runs/address"]);
    assert!(!before.is_empty() && record().starts_with(&before), "what was said is not asked again");
    for stage in ["base", "played"] {
        assert_eq!(weights(&lab, "address", stage), weights(&lab, "program", stage));
        assert_eq!(metrics(&lab, "address", stage), metrics(&lab, "program", stage));
    }
    let scores = |run| text(&lab, run, "scores/scores.json");
    assert_eq!(scores("address"), scores("program"));

    most.store(0, Ordering::SeqCst);
    let verified = lab.done(&["verify", "runs/address", "--stage", "played"]);
    // Either of its two stretches.
    assert!(verified.stdout.contains("played: done again from "), "{verified:?}");
    fs::remove_file(lab.at("runs/address/played/environment.jsonl")).unwrap();
    let said = lab.wels(&["verify", "runs/address", "--stage", "played"]);
    assert!(said.failure().contains("environment.jsonl"), "{said:?}");
}

#[test]
fn a_strangers_program_is_not_started_unasked() {
    let lab = Lab::new();
    write_judge(&lab, "");
    lab.done(&["run", &judged_recipe(&lab, "honest")]);

    // Whoever verifies the run may be another than who wrote the recipe: the program is not started unasked.
    write_judge(&lab, "touch started");
    for verify in [&["verify", "runs/honest"][..], &["verify", "--receipt", "runs/honest/receipt.json", "--whole"]] {
        let said = lab.wels(verify);
        assert_eq!(said.code, Some(1), "{said:?}");
        assert_eq!(
            said.failure(),
            "error: the recipe names a program that judges answers, LAB/./judge, and it is not started\n\
             hint: it would run as you do, outside any jail: read it, and if you trust it give --run-programs\n"
        );
    }
    for other in [
        &["verify", "runs/honest", "--segments", "0"][..],
        &["verify", "runs/honest", "--stage", "pretrain"],
        &["report", "runs/honest"],
        &["plan", "honest.toml"],
        &["score", "runs/honest", "--ids", "1,2,3"],
    ] {
        lab.done(other);
    }
    assert!(!lab.at("started").exists(), "a stranger's program was started");
    let verify = ["verify", "runs/honest", "--stage", "reinforced", "--run-programs"];
    assert!(lab.done(&verify).stdout.contains("reinforced: done again from the beginning to step 3"));
    assert!(lab.at("started").exists());
}

#[test]
fn what_begins_with_a_gguf_file_is_saved_as_a_directory_has_it() {
    let lab = Lab::new();
    let begin = STAGES.find("[[stage]]\nname = \"student\"").unwrap();
    let student = &STAGES[begin..STAGES.find("[[stage]]\nname = \"drawn\"").unwrap()];
    let file = recipe(&lab, "made");
    let text = fs::read_to_string(lab.at(&file)).unwrap();
    fs::write(lab.at(&file), text.replace(STAGES, student)).unwrap();
    lab.done(&["run", &file]);
    lab.done(&["convert", "runs/made/student", "student.gguf", "--dtype", "f32"]);

    // Learning so little that no weight changes.
    let again = "[[stage]]\nname = \"again\"\nkind = \"sft\"\nfrom = \"student.gguf\"\ndata = \"traces\"\ntraces = 20\n\
                 batch_tokens = 256\nlearning_rate = 1e-12\n";
    let own = "vocab_size = 400\nchat_template = \"deepseek_v3\"\ntraining_bytes = 100_000";
    let file = recipe(&lab, "again");
    let text = fs::read_to_string(lab.at(&file)).unwrap();
    assert!(text.contains(own), "{text}");
    let text = text.replace(STAGES, again).replace(own, "path = \"student.gguf\"");
    fs::write(lab.at(&file), text).unwrap();
    lab.done(&["run", &file]);
    let logprobs = |model: &str| -> Vec<f64> {
        let said = lab.wels(&["score", model, "--ids", "40,41,60,42,50,61,44", "--json"]);
        let scores: Value = serde_json::from_str(&said.stdout).unwrap_or_else(|_| panic!("{said:?}"));
        scores["logprobs"].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
    };
    let (made, again) = (logprobs("runs/made/student"), logprobs("runs/again/again"));
    assert_eq!(made.len(), 6);
    assert!(made.iter().zip(&again).all(|(a, b)| (a - b).abs() < 1e-4), "{made:?} and {again:?}");
    let gguf = logprobs("student.gguf");
    assert!(made.iter().zip(&gguf).all(|(a, b)| (a - b).abs() < 1e-4), "{made:?} and {gguf:?}");
}

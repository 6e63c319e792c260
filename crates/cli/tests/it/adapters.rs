//! Adapters: stages that learn one, in every kind and behind kills; what is made of them; what is refused.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use crate::lab::{Lab, Numbers, wait_until};
use crate::stages::{lines, metrics, stage};

const KILLS: usize = 8;

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
gradient_shards = 4
learning_rate = 5e-3

[[stage]]
name = "tuned"
kind = "sft"
from = "base"
data = "traces"
traces = 300
trace_direct = 1.0
batch_tokens = 512
gradient_shards = 4
learning_rate = 3e-3
checkpoint_every = 3
lora = { rank = 4, alpha = 8, target_modules = ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"] }

[[stage]]
name = "read"
kind = "pretrain"
from = "base"
data = "traces"
traces = 200
trace_direct = 1.0
batch_tokens = 512
gradient_shards = 4
learning_rate = 3e-3
checkpoint_every = 2
lora = { rank = 2, base = "bf16" }

[[stage]]
name = "reinforced"
kind = "rl"
from = "tuned"
steps = 6
prompts = 6
samples = 6
max_tokens = 24
mini_batches = 2
gradient_shards = 4
kl = 0.01
reference_every = 2
reward_format = 1.0
learning_rate = 1e-3
checkpoint_every = 2

[stage.lora]
rank = 4
alpha = 8
target_modules = ["q_a_proj", "q_b_proj", "kv_b_proj", "o_proj"]
base = "q8_0"

[[stage]]
name = "drawn"
kind = "distil"
teacher = "tuned"
data = "traces"
traces = 200
batch_tokens = 512
gradient_shards = 4
learning_rate = 3e-3
checkpoint_every = 2
lora = { rank = 2, use_rslora = true, base = "q4_1" }

[[stage]]
name = "corrected"
kind = "distil"
teacher = "reinforced"
answers = "own"
steps = 3
prompts = 8
gradient_shards = 4
max_tokens = 16
learning_rate = 1e-3
checkpoint_every = 2
lora = { base = "q4_0" }

[[stage]]
name = "whole"
kind = "sft"
from = "tuned"
data = "traces"
traces = 60
batch_tokens = 512
gradient_shards = 4
learning_rate = 1e-3

[[stage]]
name = "scores"
kind = "score"
models = ["tuned", "corrected"]
items = 10
max_tokens = 8
"#;

/// Stages that learn adapters.
const ADAPTED: [&str; 5] = ["tuned", "read", "reinforced", "drawn", "corrected"];

fn recipe(lab: &Lab, name: &str, micro_rows: usize) -> String {
    let changes = [
        ("training_bytes", "chat_template = \"deepseek_v3\"\ntraining_bytes"),
        ("micro_batch = 4", "micro_batch = 4\ngradient_shards = 4"),
    ];
    let file = lab.recipe(name, &changes);
    let path = lab.at(&file);
    let stages = STAGES.replace("gradient_shards", &format!("micro_rows = {micro_rows}\ngradient_shards"));
    fs::write(&path, fs::read_to_string(&path).unwrap() + &stages).unwrap();
    file
}

/// The folder of a stage's last step.
fn last(lab: &Lab, run: &str, name: &str) -> PathBuf {
    let steps = metrics(lab, run, name).len();
    stage(lab, run, name).join(format!("step-{steps:06}"))
}

/// Hashes of the adapter, its configuration and the optimizer.
fn files(lab: &Lab, run: &str, name: &str) -> [String; 3] {
    ["adapter_model.safetensors", "adapter_config.json", "optimizer.safetensors"].map(|file| {
        let path = last(lab, run, name).join(file);
        wels_runs::hash::sha256_file(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).0
    })
}

fn logprobs(lab: &Lab, args: &[&str]) -> Vec<f64> {
    let said = lab.done(&[&["score"], args, &["--text", "the river waits under the old bridge", "--json"]].concat());
    let json: Value = serde_json::from_str(&said.stdout).unwrap();
    json["logprobs"].as_array().unwrap().iter().filter_map(Value::as_f64).collect()
}

#[test]
fn stages_that_learn_adapters_end_the_same_behind_kills_and_on_any_number_of_ranks() {
    let lab = Lab::new();
    lab.done(&["run", &recipe(&lab, "whole", 4096), "--threads", "1"]);
    for name in ["reinforced", "corrected"] {
        let lines = metrics(&lab, "whole", name);
        assert!(lines.iter().all(|line| line["logprob_difference_max"] == 0.0), "{name}: {lines:?}");
    }
    let rl = metrics(&lab, "whole", "reinforced");
    assert!(rl.iter().any(|line| line["updates"].as_u64() > Some(0)), "no group was live: nothing is tested");
    let tuned = metrics(&lab, "whole", "tuned");
    assert!(tuned.last().unwrap()["loss"].as_f64() < tuned[0]["loss"].as_f64(), "nothing was learnt: {tuned:?}");
    for name in ADAPTED {
        let folder = last(&lab, "whole", name);
        assert!(!folder.join("model.safetensors").exists(), "{name}: weights in an adapter's checkpoint");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(last(&lab, "whole", "reinforced").join("adapter_config.json")).unwrap())
            .unwrap();
    assert_eq!(
        config["base_model_name_or_path"],
        format!("../../base/step-{:06}", metrics(&lab, "whole", "base").len())
    );

    let base = logprobs(&lab, &["runs/whole/base"]);
    let adapted = logprobs(&lab, &["runs/whole/tuned"]);
    assert_ne!(base, adapted);
    assert_eq!(logprobs(&lab, &["runs/whole/base", "--adapter", "runs/whole/tuned"]), adapted);
    lab.done(&["convert", "runs/whole/base", "merged", "--merge", "runs/whole/tuned", "--dtype", "f32"]);
    let merged = logprobs(&lab, &["merged"]);
    let far = |other: &[f64]| adapted.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
    assert!(far(&merged) < 1e-4, "merged weights say {merged:?}, the adapter {adapted:?}");

    let (mut moments, mut kills, mut run) = (Numbers(5), 0, 0);
    while kills < KILLS {
        let name = format!("killed-{run}");
        let file = recipe(&lab, &name, [100, 300][run % 2]);
        for at in ADAPTED {
            // The base has experts, which ranks share until an adapter is learnt.
            let [ranks, sharing] = [["1", "1"], ["2", "1"], ["4", "1"], ["4", "2"]][moments.below(4) as usize];
            let mut child = lab.start(&["run", &file, "--ranks", ranks, "--expert-parallel", sharing]);
            let before = lines(&lab, &name, at);
            let came = wait_until(&mut child, || lines(&lab, &name, at) != before);
            std::thread::sleep(Duration::from_micros(moments.below(30_000)));
            let over = child.try_wait().unwrap().is_some();
            child.kill().unwrap();
            child.wait().unwrap();
            kills += usize::from(came && !over);
        }
        lab.done(&["run", &file, "--ranks", "2", "--expert-parallel", ["2", "1"][run % 2]]);
        for stage in ADAPTED {
            assert_eq!(files(&lab, &name, stage), files(&lab, "whole", stage), "{stage} of {name}");
            assert_eq!(metrics(&lab, &name, stage), metrics(&lab, "whole", stage), "{stage} of {name}");
        }
        run += 1;
    }
}

#[test]
fn adapters_that_cannot_be_are_refused_in_words() {
    let lab = Lab::new();
    let file = lab.recipe("wrong", &[("training_bytes", "chat_template = \"deepseek_v3\"\ntraining_bytes")]);
    let path = lab.at(&file);
    let plain = fs::read_to_string(&path).unwrap();
    let of = |keys: &str| format!("[[stage]]\nname = \"a\"\nkind = \"sft\"\ntraces = 20\n{keys}\n");
    let cases = [
        (of("lora = { rank = 0 }"), "lora.rank must be 1 to 4096, but is 0"),
        (of("lora = { rnk = 4 }"), "unknown key 'rnk' in [lora]"),
        (of("lora = { target_modules = \"all\" }"), "must be \"all-linear\" or a list of names in quotes"),
        (of("lora = { base = \"q5\" }"), "lora.base must be one of \"stored\", \"f32\", \"bf16\", \"q8_0\", \"q4_0\""),
        (
            of("precision = \"bf16\"\nlora = { base = \"q8_0\" }"),
            "lora.base is \"q8_0\", which products in 16 bits do not take",
        ),
        (of("lora = { target_modules = [] }"), "lora.target_modules names no module"),
        (of("optimizer = \"muon\"\nlora = {}"), "an adapter takes \"adamw\""),
        (of("mtp_lambda = 0.1\nlora = {}"), "layers of multi-token prediction have no adapter"),
        (of("lora = {}\n[stage.model]\nmodel_type = \"llama\""), "needs weights that are trained"),
        (
            of("lora = { target_modules = [\"w\"] }"),
            "the model has no module \"w\" to adapt; it has kv_a_proj_with_mqa",
        ),
        (of("lora = { target_modules = [\"up_proj\"] }"), "mixture of experts have no adapters yet"),
        (
            of("lora = {}")
                + "[[stage]]\nname = \"b\"\nkind = \"sft\"\nfrom = \"a\"\ntraces = 20\nlora = { rank = 3 }\n",
            "the stage begins with an adapter of rank 16, alpha 32",
        ),
    ];
    for (stages, expected) in cases {
        fs::write(&path, plain.clone() + &stages).unwrap();
        let said = lab.wels(&["run", &file]);
        assert_eq!(said.code, Some(1), "{stages}: {said:?}");
        assert!(said.stderr.contains(expected), "{stages}: {said:?}");
        let _ = fs::remove_dir_all(lab.at("runs/wrong"));
    }
    fs::write(&path, plain.clone() + &of("lora = {}")).unwrap();
    lab.done(&["run", &file]);
    // Another model of the same shape.
    fs::write(lab.at("other.toml"), plain.replace("\"wrong\"", "\"other\"").replace("seed = 7", "seed = 8")).unwrap();
    lab.done(&["run", "other.toml"]);
    let score = |args: &[&str]| lab.wels(&[&["score"], args, &["--ids", "1,2"]].concat());
    let said = score(&["runs/other", "--adapter", "runs/wrong/a"]);
    assert!(said.stderr.contains("was trained on weights of hash") && said.code == Some(1), "{said:?}");
    let said = score(&["runs/wrong/pretrain", "--adapter", "text"]);
    assert!(said.stderr.contains("holds no adapter: there is no adapter_config.json"), "{said:?}");
    let said = score(&["runs/wrong/a", "--adapter", "runs/wrong/a"]);
    assert!(said.stderr.contains("has an adapter already"), "{said:?}");
}

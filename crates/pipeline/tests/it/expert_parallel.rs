//! Runs whose ranks share the routed experts: the files of one rank, in all kinds of stages that train, also when a run
//! goes on with another layout; what the ledger and the metrics say of it; what is refused.

use std::fs;

use serde_json::Value;
use wels_pipeline::refusal::Refusal;
use wels_pipeline::session::Stopped;

use crate::lab::Lab;

const RECIPE: &str = r#"
[run]
name = "NAME"
seed = 7

[tokenizer]
vocab_size = 400
training_bytes = 100_000
chat_template = "deepseek_v3"

[data]
sources = ["text"]
validation_fraction = 0.1
sequence_length = 32

[model]
model_type = "deepseek_v3"
hidden_size = 32
num_hidden_layers = 2
first_k_dense_replace = 1
intermediate_size = 48
n_routed_experts = 8
num_experts_per_tok = 2
n_shared_experts = 1
moe_intermediate_size = 24
n_group = 4
topk_group = 2
num_attention_heads = 2
num_key_value_heads = 2
kv_lora_rank = 16
qk_nope_head_dim = 16
qk_rope_head_dim = 8
v_head_dim = 16
max_position_embeddings = 128
num_nextn_predict_layers = 1

[pretrain]
steps = STEPS
batch_tokens = 512
micro_batch = 1
gradient_shards = 8
recompute_layers = [1]
validate_every = 4
validate_sequences = 5
checkpoint_every = 3

[sample]
prompts = ["river"]
tokens = 8

[[stage]]
name = "tuned"
kind = "sft"
from = "pretrain"
optimizer = "muon"
data = "traces"
traces = 120
trace_direct = 1.0
batch_tokens = 512
micro_rows = 60
gradient_shards = 8
checkpoint_every = 2

[[stage]]
name = "reinforced"
kind = "rl"
from = "tuned"
steps = 4
prompts = 4
samples = 4
max_tokens = 8
mini_batches = 2
gradient_shards = 4
kl = 0.01
reference_every = 2
reward_format = 1.0
checkpoint_every = 3

[[stage]]
name = "drawn"
kind = "distil"
teacher = "reinforced"
from = "tuned"
data = "traces"
traces = 100
trace_direct = 1.0
batch_tokens = 512
gradient_shards = 8
checkpoint_every = 2

[[stage]]
name = "corrected"
kind = "distil"
teacher = "reinforced"
from = "drawn"
answers = "own"
steps = 3
prompts = 8
max_tokens = 8
gradient_shards = 4
checkpoint_every = 2
"#;

const DENSE: &str = r#"
[model]
model_type = "llama"
hidden_size = 16
num_hidden_layers = 2
intermediate_size = 32
num_attention_heads = 2
num_key_value_heads = 2
max_position_embeddings = 128
"#;

const STAGES: [&str; 5] = ["pretrain", "tuned", "reinforced", "drawn", "corrected"];

fn recipe(name: &str, steps: u64) -> String {
    RECIPE.replace("NAME", name).replace("STEPS", &steps.to_string())
}

fn lines(lab: &Lab, run: &str, stage: &str) -> Vec<Value> {
    let text = fs::read_to_string(lab.at(&format!("runs/{run}/{stage}/metrics.jsonl"))).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// What does not depend on machine and layout.
fn results(lab: &Lab, run: &str, stage: &str) -> Vec<Value> {
    let mut lines = lines(lab, run, stage);
    for line in &mut lines {
        for key in ["seconds", "rollout_seconds", "tokens_per_second", "sampled_tokens_per_second", "mfu", "exchange"] {
            line.as_object_mut().unwrap().remove(key);
        }
    }
    lines
}

/// Hashes of all files of a stage's last checkpoint.
fn checkpoint(lab: &Lab, run: &str, stage: &str) -> Vec<(String, String)> {
    let folder = lab.at(&format!("runs/{run}/{stage}"));
    let names = |folder: &std::path::Path| -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().flatten();
        entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let step = names(&folder).into_iter().filter(|name| name.starts_with("step-")).max().expect("a checkpoint");
    let mut files = names(&folder.join(&step));
    files.sort_unstable();
    assert!(files.iter().any(|file| file == "optimizer.safetensors"), "{files:?}");
    let hash = |file: String| (format!("{step}/{file}"), lab.hash(run, &format!("{stage}/{step}/{file}")));
    // The lines in it have the times of the machine.
    files.into_iter().filter(|file| !["metrics.jsonl", "DONE"].contains(&file.as_str())).map(hash).collect()
}

#[test]
fn runs_have_the_files_of_one_rank() {
    let lab = Lab::new();
    let done = |layout, name: &str| lab.run_recipe(layout, name, &recipe(name, 8)).0.expect("a run without failures");
    done((1, 1), "alone");
    for (ranks, sharing) in [(2, 2), (4, 2), (4, 4)] {
        let name = format!("over-{ranks}-{sharing}");
        done((ranks, sharing), &name);
        for stage in STAGES {
            assert_eq!(results(&lab, &name, stage), results(&lab, "alone", stage), "{stage} of {name}");
            assert_eq!(checkpoint(&lab, &name, stage), checkpoint(&lab, "alone", stage), "{stage} of {name}");
        }
        // Rows of 32 numbers, of which as many come back as went; the layout is in the ledger.
        let first = &lines(&lab, &name, "pretrain")[0]["exchange"];
        let [there, back] = ["dispatched_bytes", "combined_bytes"].map(|key| first[key].as_u64().unwrap());
        assert!(there > 0 && there.is_multiple_of(32 * 4), "{first}");
        // Validations send forward alone, as much each way.
        assert_eq!(there, back, "{first}");
        let entries = lab.entries(&name);
        assert!(entries.iter().all(|entry| entry.ranks == ranks && entry.expert_parallel == Some(sharing)));
    }
    assert!(lab.entries("alone").iter().all(|entry| entry.expert_parallel.is_none()));
    assert!(lines(&lab, "alone", "pretrain")[0].get("exchange").is_none());
}

#[test]
fn a_run_goes_on_with_another_layout() {
    let lab = Lab::new();
    let run = |layout, name: &str, steps| lab.run_recipe(layout, name, &recipe(name, steps)).0;
    run((1, 1), "alone", 12).unwrap();
    // The stages of reinforcement have four shards.
    let limits = [((4, 4), 1100), ((1, 1), 2700), ((4, 2), 5200), ((2, 1), 7400), ((4, 4), 9000), ((2, 2), 12_000)];
    let mut stopped = 0;
    for (layout, tokens) in limits {
        let text =
            recipe("changed", 12).replace("[tokenizer]", &format!("[budget]\ntrain_tokens = {tokens}\n\n[tokenizer]"));
        let done = lab.run_recipe(layout, "changed", &text).0;
        stopped += usize::from(done.is_err_and(|error| error.is::<Stopped>()));
    }
    assert!(stopped >= 4, "{stopped} stops");
    run((4, 4), "changed", 12).unwrap();
    for stage in STAGES {
        assert_eq!(results(&lab, "changed", stage), results(&lab, "alone", stage), "{stage}");
        assert_eq!(checkpoint(&lab, "changed", stage), checkpoint(&lab, "alone", stage), "{stage}");
    }
}

#[test]
fn layouts_that_cannot_be_are_refused_with_those_that_can() {
    let lab = Lab::new();
    let mut runs = 0;
    let mut refused = |ranks, sharing, text: &str| {
        runs += 1;
        let (name, text) = (format!("r{runs}"), text.replace("name = \"r\"", &format!("name = \"r{runs}\"")));
        let error = lab.run_recipe((ranks, sharing), &name, &text).0.unwrap_err();
        let refusal = error.downcast_ref::<Refusal>().unwrap_or_else(|| panic!("{error:?}"));
        format!("{error}: {}", refusal.hint())
    };
    let text = recipe("r", 8);
    assert_eq!(refused(4, 3, &text), "--expert-parallel 3 does not divide the 4 ranks: 2 and 4 do");
    let alone = "--expert-parallel 2 does not divide the 1 rank: give --ranks 2 too, or start as many processes with \
                 mpirun";
    assert_eq!(refused(1, 2, &text), alone);
    let six = text.replace("n_routed_experts = 8", "n_routed_experts = 6").replace("n_group = 4", "n_group = 2");
    let expected = "--expert-parallel 4 does not divide the 6 experts of the stage pretrain: 2 does";
    assert_eq!(refused(4, 4, &six), expected);
    let (before, behind) = (text.split("[model]").next().unwrap(), text.split("[pretrain]").nth(1).unwrap());
    let dense = format!("{before}{DENSE}\n[pretrain]{behind}");
    let expected = "--expert-parallel 2: no model that this recipe trains has experts: leave it out: ranks share the \
                    sequences of a batch without it";
    assert_eq!(refused(2, 2, &dense), expected);
}

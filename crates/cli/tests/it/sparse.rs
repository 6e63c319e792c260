//! Attention to chosen keys (`deepseek_v32`) and to compressed ones (`deepseek_v4`) through the program: trained,
//! killed, answered with, converted.

use std::fs;

use crate::lab::{Lab, wait_until};

const SPARSE: (&str, &str) = (
    "model_type = \"deepseek_v3\"",
    "model_type = \"deepseek_v32\"\nindex_n_heads = 2\nindex_head_dim = 16\nindex_topk = 8",
);

#[test]
fn a_killed_run_ends_like_the_uninterrupted_one_and_is_converted() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("whole", &[SPARSE])]);
    let losses: Vec<f64> = lab
        .metrics("whole")
        .iter()
        .map(|line| line["indexer_loss"].as_f64().expect("a loss of the indexers"))
        .collect();
    // At first attention is nearly even, and indexers are near it; what they follow gets sharper.
    assert!(losses.iter().all(|loss| *loss > 0.0), "{losses:?}");

    let often = ("checkpoint_every = 5", "checkpoint_every = 2");
    let mut child = lab.start(&["run", &lab.recipe("killed", &[SPARSE, often])]);
    assert!(wait_until(&mut child, || lab.steps_seen("killed") > 6), "the run was over before it was killed");
    child.kill().expect("a child");
    child.wait().expect("a child");
    lab.done(&["run", "runs/killed", "--ranks", "1"]);
    assert_eq!(lab.weights("killed"), lab.weights("whole"));
    assert_eq!(lab.metrics("killed"), lab.metrics("whole"));

    lab.done(&["convert", "runs/whole", "once", "--dtype", "f32"]);
    lab.done(&["convert", "once", "twice", "--dtype", "f32"]);
    for file in ["model.safetensors", "config.json", "tokenizer.json"] {
        let [once, twice] = ["once", "twice"].map(|folder| fs::read(lab.at(folder).join(file)).expect(file));
        assert!(once == twice, "{file} of a directory that was converted again");
    }
    let said = lab.wels(&["convert", "once", "once.gguf", "--dtype", "f32"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("no GGUF files here yet"), "{said:?}");

    let ids: Vec<String> = (0..40).map(|i| (60 + 7 * i % 300).to_string()).collect();
    let score = |model: &str| lab.done(&["score", model, "--ids", &ids.join(","), "--json"]).stdout;
    assert_eq!(score("runs/whole"), score("twice"));
}

/// All keys chosen, a model with indexers is the one without, bit for bit.
#[test]
fn a_model_of_deepseek_v3_is_given_indexers() {
    let lab = Lab::new();
    lab.done(&["run", &lab.recipe("made", &[])]);
    lab.done(&["convert", "runs/made", "all", "--dtype", "f32", "--indexer", "64"]);
    lab.done(&["convert", "runs/made", "some", "--dtype", "f32", "--indexer", "4"]);
    let ids: Vec<String> = (0..40).map(|i| (60 + 7 * i % 300).to_string()).collect();
    let score = |model: &str| lab.done(&["score", model, "--ids", &ids.join(","), "--json"]).stdout;
    let logprobs = |model: &str| -> serde_json::Value {
        let said: serde_json::Value = serde_json::from_str(&score(model)).expect("JSON");
        said["logprobs"].clone()
    };
    assert_eq!(logprobs("runs/made"), logprobs("all"));
    assert_ne!(logprobs("runs/made"), logprobs("some"));
    let said = lab.wels(&["convert", "all", "again", "--indexer", "4"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.stderr.contains("--indexer makes deepseek_v32 of deepseek_v3, not of deepseek_v32"), "{said:?}");
}

/// A model of DeepSeek-V4's kind in place of the lab's.
const COMPRESSED: [(&str, &str); 6] = [
    (
        "model_type = \"deepseek_v3\"",
        "model_type = \"deepseek_v4\"\nhead_dim = 20\nhc_mult = 2\nhc_sinkhorn_iters = 5\nsliding_window = 9\n\
         compress_rates = { compressed_sparse_attention = 2, heavily_compressed_attention = 16 }\n\
         num_hash_layers = 1\no_groups = 3\no_lora_rank = 8\n\
         layer_types = [\"compressed_sparse_attention\", \"heavily_compressed_attention\", \"sliding_attention\"]\n\
         index_n_heads = 2\nindex_head_dim = 16\nindex_topk = 3",
    ),
    ("first_k_dense_replace = 1\nintermediate_size = 96\n", ""),
    ("n_group = 1\ntopk_group = 1\n", ""),
    ("kv_lora_rank = 16\nq_lora_rank = 24\nqk_nope_head_dim = 16\n", "q_lora_rank = 24\n"),
    ("v_head_dim = 16\n", ""),
    ("micro_batch = 4\n", "micro_batch = 4\ngradient_shards = 2\n"),
];

#[test]
fn a_model_with_compressed_keys_is_trained_killed_and_answered_with() {
    let lab = Lab::new();
    let said = lab.done(&["run", &lab.recipe("whole", &COMPRESSED)]);
    assert!(!said.stderr.contains("unknown key"), "{said:?}");
    let losses = lab.metrics("whole");
    assert!(losses.iter().all(|line| line["indexer_loss"].as_f64().is_some_and(|loss| loss > 0.0)), "{losses:?}");
    let often = [&COMPRESSED[..], &[("checkpoint_every = 5", "checkpoint_every = 2")]].concat();
    let mut child = lab.start(&["run", &lab.recipe("killed", &often), "--ranks", "2", "--expert-parallel", "2"]);
    assert!(wait_until(&mut child, || lab.steps_seen("killed") > 6), "the run was over before it was killed");
    child.kill().expect("a child");
    child.wait().expect("a child");
    lab.done(&["run", "runs/killed", "--ranks", "1"]);
    assert_eq!(lab.weights("killed"), lab.weights("whole"));

    lab.done(&["convert", "runs/whole", "once", "--dtype", "f32"]);
    lab.done(&["convert", "once", "twice", "--dtype", "f32"]);
    for file in ["model.safetensors", "config.json"] {
        let [once, twice] = ["once", "twice"].map(|folder| fs::read(lab.at(folder).join(file)).expect(file));
        assert!(once == twice, "{file} of a directory that was converted again");
    }
    let ids: Vec<String> = (0..40).map(|i| (60 + 7 * i % 300).to_string()).collect();
    let score = |model: &str| lab.done(&["score", model, "--ids", &ids.join(","), "--json"]).stdout;
    assert_eq!(score("runs/whole"), score("twice"));
    let said = lab.wels(&["convert", "once", "once.gguf", "--dtype", "f32"]);
    assert!(said.stderr.contains("no GGUF files here yet"), "{said:?}");
}

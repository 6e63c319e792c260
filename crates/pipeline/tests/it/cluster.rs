//! The bytes that a step over several ranks sends, beside those that the plan of a cluster counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use wels_comm::{Comm, Pending, Threads, threads};
use wels_device::Device;
use wels_model::config::ModelConfig;
use wels_model::model::Batch;
use wels_model::params::Params;
use wels_model::schedule::{Decay, LearningRate, Switch};
use wels_model::tape::Execution;
use wels_runs::plan::cluster::{self, Cluster, Parallel, Training};
use wels_runs::plan::devices::{Devices, ProductFormat};
use wels_train::muon::Rule;
use wels_train::trainer::{Hyperparameters, State, Trainer};

/// Counts what goes to other ranks.
struct Counting<'a> {
    comm: Threads,
    sent: &'a AtomicU64,
}

impl Comm for Counting<'_> {
    fn rank(&self) -> usize {
        self.comm.rank()
    }

    fn world(&self) -> usize {
        self.comm.world()
    }

    fn begin(&self, send: Vec<Vec<u8>>) -> Pending {
        let others = send.iter().enumerate().filter(|(rank, _)| *rank != self.rank());
        self.sent.fetch_add(others.map(|(_, bytes)| bytes.len() as u64).sum(), Ordering::Relaxed);
        self.comm.begin(send)
    }
}

const T: usize = 32;

const SEQUENCES: usize = 8;

fn config() -> ModelConfig {
    let json = r#"{"model_type": "deepseek_v3", "hidden_size": 64, "num_hidden_layers": 3, "first_k_dense_replace": 1,
        "intermediate_size": 128, "n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1,
        "moe_intermediate_size": 64, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 1.0,
        "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": null, "kv_lora_rank": 16,
        "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "vocab_size": 256,
        "max_position_embeddings": 32, "rope_theta": 10000.0, "initializer_range": 0.1,
        "num_nextn_predict_layers": 1}"#;
    ModelConfig::from_hf_json(json).unwrap().0
}

fn hyper() -> Hyperparameters {
    Hyperparameters {
        gradient_shards: SEQUENCES,
        rule: Rule::AdamW,
        learning_rate: LearningRate {
            peak: 1e-2,
            min: 1e-3,
            steps: 20,
            warmup_steps: 2,
            decay_steps: 5,
            decay: Decay::Cosine,
        },
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        clip_norm: 1.0,
        bias_update_speed: 0.01,
        bias_update_steps: 3,
        balance_alpha: 1e-4,
        indexer_weight: 0.0,
        mtp_lambda: Switch { early: 0.3, late: 0.1, late_step: 3 },
    }
}

/// A step of ranks of which `sharing` share the experts: bytes of rows that went between them.
fn step(comm: Arc<dyn Comm>, sharing: usize) -> u64 {
    let device: Arc<dyn Device> = wels_cpu::device();
    let config = config();
    let state = State::new(Params::init(&device, &config, 5), Rule::AdamW);
    let trainer = Trainer::new(config, T, state, hyper(), Execution::new(device));
    let mut trainer = trainer.with_experts_over(comm, sharing);
    let tokens: Vec<u32> = (0..(SEQUENCES * T) as u32).map(|i| 7 * i % 256).collect();
    let batch = Batch {
        targets: tokens.iter().map(|token| (token + 7) % 256).collect(),
        tokens,
        starts: (0..=SEQUENCES).map(|s| (s * T) as u32).collect(),
    };
    trainer.step(&batch, T).unwrap();
    trainer.take_sent().map_or(0, |sent| sent.dispatched + sent.combined)
}

/// All bytes that a world sends in a step, and those of rows for experts among them.
fn counted(world: usize, sharing: usize) -> (f64, f64) {
    // Ranks end with the scope, and the trainer wants to share what it talks through.
    let sent: &'static AtomicU64 = Box::leak(Box::default());
    let rows = std::thread::scope(|scope| {
        let rank = |comm| scope.spawn(move || step(Arc::new(Counting { comm, sent }), sharing));
        let ranks: Vec<_> = threads(world).into_iter().map(rank).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).max().unwrap()
    });
    (sent.load(Ordering::Relaxed) as f64, rows as f64)
}

/// Bytes of a rank that the plan counts, each on a node of its own: for sums and weights, and for experts.
fn planned(world: usize, layout: &str) -> (f64, f64) {
    let cluster = format!("nodes={world},device=cpu,flops=100,ib=0.1");
    let cluster = Cluster::parse(&cluster, &Devices::built_in()).unwrap();
    let Parallel::Given(layout) = Parallel::parse(layout, &cluster, SEQUENCES).unwrap() else { panic!() };
    let training =
        Training { tokens: 1e6, sequence_length: T, precision: ProductFormat::F32, usd_per_device_hour: 0.0 };
    let sent = cluster::plan(&config(), &cluster, &layout, &training).unwrap().sent;
    (sent.optimizer, sent.experts_between_nodes)
}

#[test]
fn a_step_sends_what_its_plan_says() {
    for world in [2, 4] {
        let (counted, rows) = counted(world, 1);
        let planned = planned(world, "ep=1").0 * world as f64;
        // Losses, counts of experts and parts of the norm come on top.
        let more = counted / planned - 1.0;
        assert!(
            (0.0..0.002).contains(&more) && rows == 0.0,
            "{world} ranks: {counted} B sent, {planned} planned: {more}"
        );
    }
}

#[test]
fn experts_over_ranks_send_what_the_plan_says() {
    // An expert a rank, so that a token goes to no rank twice: the plan counts it once.
    let (counted, rows) = counted(8, 8);
    let (sums, experts) = planned(8, "ep=8");
    let (sums, experts) = (8.0 * sums, 8.0 * experts);
    // The plan takes choices to be even, which those of a new model nearly are.
    let more = rows / experts - 1.0;
    assert!(more.abs() < 0.1, "{rows} B of rows, {experts} planned: {more}");
    let more = (counted - rows) / sums - 1.0;
    assert!((0.0..0.02).contains(&more), "{counted} B sent, {rows} of rows, {sums} planned: {more}");
}

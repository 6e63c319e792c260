//! Tiny models with random weights.

use std::sync::Arc;

use wels_cpu::testing::device;
use wels_data::tokenizer::{BpeTrainer, SpecialTokens, Tokenizer};
use wels_device::Device;
use wels_engine::{LoadedModel, Options};
use wels_model::config::{
    Attention, Entries, Family, Gating, Indexer, LocalRope, ModelConfig, MoeConfig, RopeConfig, RopeLayout,
    RopeScaling, Router, Streams,
};
use wels_model::model::Model;
use wels_model::params::Params;

pub const VOCABULARY: usize = 61;
pub const CONTEXT: usize = 96;

/// The usual ones, with a small cache: devices other than the processor take all of it at once.
pub fn options() -> Options {
    Options { cache_bytes: 32 << 20, ..Options::default() }
}

fn config(family: Family, layout: RopeLayout, attention: Attention) -> ModelConfig {
    ModelConfig {
        family,
        hidden_size: 24,
        layers: 2,
        vocab_size: VOCABULARY,
        norm_eps: 1e-6,
        rope: RopeConfig { base: 10000.0, scaling: RopeScaling::None, layout, max_positions: CONTEXT, local: None },
        indexer: None,
        streams: None,
        window: None,
        softmax_scale: 1.0 / (attention.qk_dim() as f32).sqrt(),
        attention_cap: None,
        logit_cap: None,
        attention,
        dense_intermediate: 40,
        gating: Gating::Silu,
        moe: None,
        mtp_depth: 0,
        tied_head: false,
        bos_id: None,
        eos_ids: vec![],
        pad_id: None,
        init_std: 0.2,
    }
}

/// Grouped queries, dense.
pub fn gqa() -> ModelConfig {
    let attention = Attention::gqa(4, 2, 6);
    config(Family::Llama, RopeLayout::HalfSplit, attention)
}

/// Latent attention, experts, one MTP layer.
pub fn deepseek() -> ModelConfig {
    let attention =
        Attention::Mla { heads: 3, q_lora_rank: Some(12), kv_lora_rank: 10, nope_dim: 6, rope_dim: 4, v_dim: 8 };
    let router = Router::Sigmoid { groups: 2, top_groups: 1, normalize: true, scale: 2.5 };
    let moe = MoeConfig {
        experts: 8,
        shared_experts: 1,
        top_k: 2,
        expert_intermediate: 10,
        first_dense_layers: 1,
        biases: false,
        router,
    };
    let base = config(Family::DeepseekV3, RopeLayout::Interleaved, attention);
    ModelConfig { layers: 3, moe: Some(moe), mtp_depth: 1, ..base }
}

/// The same, with seven keys for each query.
pub fn sparse() -> ModelConfig {
    let indexer = Some(Indexer { heads: 3, dim: 6, top_k: 7 });
    ModelConfig { family: Family::DeepseekV32, indexer, layers: 2, ..deepseek() }
}

/// DeepSeek-V4: a window, entries that are chosen and all entries, two streams, a table of experts in the first layer.
pub fn compressed() -> ModelConfig {
    let entries = vec![Entries::Chosen { rate: 2 }, Entries::All { rate: 32 }, Entries::None];
    let layers = entries.iter().map(|entries| *entries == Entries::None).collect();
    let (heads, q_lora_rank, head_dim, rope_dim, groups, o_lora_rank, window) = (4, 12, 10, 4, 2, 6, 9);
    let attention =
        Attention::Compressed { heads, q_lora_rank, head_dim, rope_dim, groups, o_lora_rank, window, entries };
    let router = Router::SqrtSoftplus { scale: 1.5, table_layers: 1 };
    let base = config(Family::DeepseekV4, RopeLayout::Interleaved, attention);
    ModelConfig {
        layers: 3,
        indexer: Some(Indexer { heads: 3, dim: 6, top_k: 4 }),
        streams: Some(Streams { count: 2, iterations: 4, eps: 1e-6 }),
        rope: RopeConfig { local: Some(LocalRope { base: 1000.0, layers }), ..base.rope },
        gating: Gating::Limited { limit: 1.5 },
        moe: deepseek().moe.map(|moe| MoeConfig { first_dense_layers: 0, router, ..moe }),
        ..base
    }
}

/// Those that the device can run.
pub fn all() -> Vec<(&'static str, ModelConfig)> {
    let mut all = vec![("gqa", gqa()), ("deepseek", deepseek())];
    match device().sparse_attention() {
        Some(_) => all.push(("sparse", sparse())),
        None => eprintln!("SKIPPED on {}: attention to chosen keys", device().name()),
    }
    match device().compressed() {
        Some(_) => all.push(("compressed", compressed())),
        None => eprintln!("SKIPPED on {}: attention to compressed keys", device().name()),
    }
    all
}

/// With random weights and without a tokenizer.
pub fn loaded(config: &ModelConfig, seed: u64) -> LoadedModel {
    loaded_on(&device(), config, seed)
}

/// The same on a device of one's own.
pub fn loaded_on(device: &Arc<dyn Device>, config: &ModelConfig, seed: u64) -> LoadedModel {
    LoadedModel {
        model: Arc::new(Model::new(config.clone(), CONTEXT)),
        params: Arc::new(Params::init(device, config, seed)),
        tokenizer: None,
        janus: None,
    }
}

/// Bytes, a few merges and special tokens: 300 tokens, for a model of 310.
pub fn tokenizer() -> Arc<Tokenizer> {
    let mut trainer = BpeTrainer::new(300, SpecialTokens::default()).expect("room for the bytes");
    trainer.feed(
        &["{\"name\": \"a fish\", \"age\": 12, \"and\": [true, false, null]} the name of the fish: \u{e9}t\u{e9}"; 8],
    );
    Arc::new(trainer.train().expect("a vocabulary"))
}

/// A model that speaks the tokenizer's language, if at random.
pub fn with_text(seed: u64) -> LoadedModel {
    let config = ModelConfig { vocab_size: 310, ..gqa() };
    LoadedModel { tokenizer: Some(tokenizer()), ..loaded(&config, seed) }
}

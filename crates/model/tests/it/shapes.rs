//! Tiny models of every kind, and batches for them.

use wels_cpu::testing::device;
use wels_device::Tensor;
use wels_device::host::random::Key;
use wels_model::config::{
    Attention, Entries, Family, Gating, Indexer, LocalRope, ModelConfig, MoeConfig, RopeConfig, RopeLayout,
    RopeScaling, Router, SoftmaxMethod, Streams, Window,
};
use wels_model::model::Batch;

pub const VOCABULARY: usize = 61;

fn dense(family: Family, layout: RopeLayout, attention: Attention) -> ModelConfig {
    ModelConfig {
        family,
        hidden_size: 24,
        layers: 2,
        vocab_size: VOCABULARY,
        norm_eps: 1e-6,
        rope: RopeConfig { base: 10000.0, scaling: RopeScaling::None, layout, max_positions: 64, local: None },
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

/// Llama: no biases, untied.
pub fn llama() -> ModelConfig {
    let attention = Attention::gqa(4, 2, 6);
    dense(Family::Llama, RopeLayout::HalfSplit, attention)
}

/// Mistral: a window of seven keys.
pub fn mistral() -> ModelConfig {
    let base = dense(Family::Mistral, RopeLayout::HalfSplit, Attention::gqa(4, 2, 6));
    ModelConfig { window: Some(Window { width: 7, layers: vec![true, true] }), ..base }
}

/// Qwen3 with a window in its second layer, which holds more than a page.
pub fn qwen3() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 1,
        head_dim: 8,
        rope_dim: 8,
        qkv_bias: false,
        o_bias: false,
        qk_norm: true,
        sinks: false,
    };
    let base = dense(Family::Qwen3, RopeLayout::HalfSplit, attention);
    ModelConfig { window: Some(Window { width: 19, layers: vec![false, true] }), ..base }
}

/// Qwen2: biases, tied.
pub fn qwen2() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 4,
        head_dim: 6,
        rope_dim: 6,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        sinks: false,
    };
    ModelConfig { tied_head: true, ..dense(Family::Qwen2, RopeLayout::HalfSplit, attention) }
}

/// DeepSeek-V3: query latents, groups, shared expert, MTP of depth 2, one dense layer of three.
pub fn deepseek_v3() -> ModelConfig {
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
    let base = dense(Family::DeepseekV3, RopeLayout::Interleaved, attention);
    ModelConfig { layers: 3, moe: Some(moe), mtp_depth: 2, ..base }
}

/// DeepSeek-V3.2: as V3, with five keys for each query.
pub fn deepseek_v32() -> ModelConfig {
    let indexer = Some(Indexer { heads: 9, dim: 6, top_k: 5 });
    ModelConfig { family: Family::DeepseekV32, indexer, mtp_depth: 1, ..deepseek_v3() }
}

/// DeepSeek-V4: a window, entries that are chosen and all entries, three streams, a table of experts in the first
/// layer.
pub fn deepseek_v4() -> ModelConfig {
    let entries = vec![Entries::None, Entries::Chosen { rate: 2 }, Entries::All { rate: 4 }];
    let layers = entries.iter().map(|entries| *entries == Entries::None).collect();
    let attention = Attention::Compressed {
        heads: 4,
        q_lora_rank: 12,
        head_dim: 10,
        rope_dim: 4,
        groups: 2,
        o_lora_rank: 6,
        window: 5,
        entries,
    };
    let moe = MoeConfig {
        experts: 8,
        shared_experts: 1,
        top_k: 2,
        expert_intermediate: 10,
        first_dense_layers: 0,
        biases: false,
        router: Router::SqrtSoftplus { scale: 1.5, table_layers: 1 },
    };
    let base = dense(Family::DeepseekV4, RopeLayout::Interleaved, attention);
    ModelConfig {
        layers: 3,
        indexer: Some(Indexer { heads: 9, dim: 6, top_k: 3 }),
        streams: Some(Streams { count: 3, iterations: 4, eps: 1e-6 }),
        rope: RopeConfig { base: 1000.0, local: Some(LocalRope { base: 10000.0, layers }), ..base.rope },
        dense_intermediate: 10,
        gating: Gating::Limited { limit: 1.5 },
        moe: Some(moe),
        ..base
    }
}

/// Whether the device has all operations of the model; says so where it has not.
pub fn runs_here(name: &str, config: &ModelConfig) -> bool {
    let runs = match &config.attention {
        Attention::Compressed { .. } => device().compressed().is_some(),
        _ => config.indexer.is_none() || device().sparse_attention().is_some(),
    };
    if !runs {
        eprintln!("SKIPPED on {}: {name}, which attends to chosen or compressed keys", device().name());
    }
    runs
}

/// DeepSeek-V2: direct queries, softmax router, two shared experts, no MTP, tied.
pub fn deepseek_v2() -> ModelConfig {
    let attention =
        Attention::Mla { heads: 2, q_lora_rank: None, kv_lora_rank: 10, nope_dim: 6, rope_dim: 4, v_dim: 8 };
    let router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: false, scale: 1.5 };
    let moe = MoeConfig {
        experts: 6,
        shared_experts: 2,
        top_k: 3,
        expert_intermediate: 10,
        first_dense_layers: 1,
        biases: false,
        router,
    };
    let base = dense(Family::DeepseekV2, RopeLayout::Interleaved, attention);
    ModelConfig { moe: Some(moe), tied_head: true, ..base }
}

/// Qwen3 with experts: norms of queries and keys, heads wider than D/H, weights that add up to one.
pub fn qwen3_moe() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 2,
        head_dim: 10,
        rope_dim: 10,
        qkv_bias: false,
        o_bias: false,
        qk_norm: true,
        sinks: false,
    };
    let router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: true, scale: 1.0 };
    let moe = MoeConfig {
        experts: 5,
        shared_experts: 0,
        top_k: 2,
        expert_intermediate: 10,
        first_dense_layers: 0,
        biases: false,
        router,
    };
    let base = dense(Family::Qwen3Moe, RopeLayout::HalfSplit, attention);
    ModelConfig { moe: Some(moe), ..base }
}

/// GLM-4.5: biases and norms, a half of each head rotates, experts as DeepSeek-V3's, MTP.
pub fn glm4_moe() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 1,
        head_dim: 8,
        rope_dim: 4,
        qkv_bias: true,
        o_bias: false,
        qk_norm: true,
        sinks: false,
    };
    let router = Router::Sigmoid { groups: 1, top_groups: 1, normalize: true, scale: 1.5 };
    let moe = MoeConfig {
        experts: 6,
        shared_experts: 1,
        top_k: 2,
        expert_intermediate: 10,
        first_dense_layers: 1,
        biases: false,
        router,
    };
    let base = dense(Family::Glm4Moe, RopeLayout::HalfSplit, attention);
    ModelConfig { moe: Some(moe), mtp_depth: 1, ..base }
}

/// gpt-oss: sinks, biases everywhere, limits that some numbers exceed, a window in its first layer.
pub fn gpt_oss() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 6,
        kv_heads: 2,
        head_dim: 6,
        rope_dim: 6,
        qkv_bias: true,
        o_bias: true,
        qk_norm: false,
        sinks: true,
    };
    let router = Router::Softmax { method: SoftmaxMethod::Greedy, normalize: true, scale: 1.0 };
    let moe = MoeConfig {
        experts: 5,
        shared_experts: 0,
        top_k: 4,
        expert_intermediate: 10,
        first_dense_layers: 0,
        biases: true,
        router,
    };
    let base = dense(Family::GptOss, RopeLayout::HalfSplit, attention);
    let window = Window { width: 5, layers: vec![true, false] };
    let gating = Gating::Clamped { alpha: 1.702, limit: 1.5 };
    ModelConfig { window: Some(window), moe: Some(moe), dense_intermediate: 10, gating, ..base }
}

/// GLM-4: norms behind attention and feed-forward layers, neighbours of a part of each head rotate.
pub fn glm4() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 2,
        head_dim: 8,
        rope_dim: 4,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        sinks: false,
    };
    dense(Family::Glm4, RopeLayout::Interleaved, attention)
}

/// Phi-3, tied.
pub fn phi3() -> ModelConfig {
    let base = dense(Family::Phi3, RopeLayout::HalfSplit, Attention::gqa(4, 2, 6));
    ModelConfig { tied_head: true, ..base }
}

/// Gemma 2: caps that bite, a window in its first layer, tied.
pub fn gemma2() -> ModelConfig {
    let base = dense(Family::Gemma2, RopeLayout::HalfSplit, Attention::gqa(4, 2, 8));
    let window = Window { width: 5, layers: vec![true, false] };
    let (attention_cap, logit_cap, gating) = (Some(0.5), Some(1.5), Gating::GeluTanh);
    ModelConfig { window: Some(window), attention_cap, logit_cap, gating, tied_head: true, ..base }
}

/// Gemma 3: norms of queries and keys, two bases, scaled where there is no window.
pub fn gemma3() -> ModelConfig {
    let attention = Attention::Gqa {
        heads: 4,
        kv_heads: 1,
        head_dim: 8,
        rope_dim: 8,
        qkv_bias: false,
        o_bias: false,
        qk_norm: true,
        sinks: false,
    };
    let base = dense(Family::Gemma3, RopeLayout::HalfSplit, attention);
    let layers = vec![true, false];
    let local = Some(LocalRope { base: 100.0, layers: layers.clone() });
    let rope = RopeConfig { scaling: RopeScaling::Linear { factor: 8.0 }, local, ..base.rope };
    let (window, softmax_scale) = (Some(Window { width: 5, layers }), 0.25);
    ModelConfig { window, rope, softmax_scale, gating: Gating::GeluTanh, ..base }
}

/// Those that the device can run.
pub fn all() -> Vec<(&'static str, ModelConfig)> {
    let all = [
        ("llama", llama()),
        ("qwen2", qwen2()),
        ("deepseek_v3", deepseek_v3()),
        ("deepseek_v2", deepseek_v2()),
        ("mistral", mistral()),
        ("qwen3", qwen3()),
        ("qwen3_moe", qwen3_moe()),
        ("glm4_moe", glm4_moe()),
        ("gpt_oss", gpt_oss()),
        ("glm4", glm4()),
        ("phi3", phi3()),
        ("gemma2", gemma2()),
        ("gemma3", gemma3()),
        ("deepseek_v32", deepseek_v32()),
        ("deepseek_v4", deepseek_v4()),
    ];
    all.into_iter().filter(|(name, config)| runs_here(name, config)).collect()
}

/// Random tokens in sequences of these lengths; each sequence's targets are its own next tokens and one more.
pub fn batch(seed: u64, lens: &[usize]) -> Batch {
    let (mut tokens, mut targets, mut starts) = (vec![], vec![], vec![0]);
    for (s, &len) in lens.iter().enumerate() {
        let key = Key { seed, stream: s as u64 };
        let text: Vec<u32> = (0..=len as u64).map(|i| key.below_at(i, VOCABULARY as u64) as u32).collect();
        tokens.extend_from_slice(&text[..len]);
        targets.extend_from_slice(&text[1..]);
        starts.push(tokens.len() as u32);
    }
    Batch { tokens, targets, starts }
}

/// The sequences `first..last` of a batch.
pub fn part(batch: &Batch, first: usize, last: usize) -> Batch {
    let (begin, end) = (batch.starts[first] as usize, batch.starts[last] as usize);
    Batch {
        tokens: batch.tokens[begin..end].to_vec(),
        targets: batch.targets[begin..end].to_vec(),
        starts: batch.starts[first..=last].iter().map(|start| start - begin as u32).collect(),
    }
}

/// What some tensors hold.
pub fn values(tensors: &[Tensor]) -> Vec<Vec<f32>> {
    tensors.iter().map(|tensor| tensor.to_host().into_owned()).collect()
}

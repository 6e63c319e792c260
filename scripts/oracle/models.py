"""The tiny models of the oracle: one for each way in which a family computes.

Widths are small, unequal and not multiples of a vector, so that a transposed or padded product cannot pass unseen.
Contexts exceed `original_max_position_embeddings`, so that every branch of the rotary scalings counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SEQUENCES = 2
LENGTH = 40
VOCAB = 80


@dataclass(frozen=True)
class OracleModel:
    """One model, and what besides the mean cross-entropy is minimised."""

    name: str
    family: str
    config: dict[str, Any]
    mtp_lambda: float = 0.0
    balance_alpha: float = 0.0
    indexer_weight: float = 0.0
    seed: int = 0
    """Of the tokens; chosen so that no choice of experts hangs on rounding."""
    hub_config: dict[str, Any] = field(default_factory=dict)
    """Keys as in published `config.json` files, where these differ from what `transformers` 5 writes."""


COMMON: dict[str, Any] = {"vocab_size": VOCAB, "hidden_size": 32, "max_position_embeddings": 128, "use_cache": False}
PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}


def yarn(mscale: float) -> dict[str, Any]:
    """YaRN from 32 to 128 positions; the ramp has inner points at a rotary width of 16 and base 1000."""
    return {
        "rope_type": "yarn",
        "rope_theta": 1000.0,
        "factor": 4.0,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
        "mscale": mscale,
        "mscale_all_dim": mscale,
        "original_max_position_embeddings": 32,
    }


def hub_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` in place of `rope_parameters`."""
    scaling = {("type" if key == "rope_type" else key): value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": None if scaling == {"type": "default"} else scaling}


MLA = COMMON | {
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 20,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 16,
    "v_head_dim": 12,
    "intermediate_size": 44,
    "moe_intermediate_size": 6,
    "first_k_dense_replace": 1,
    "num_hidden_layers": 2,
}
V3 = MLA | {
    "n_routed_experts": 12,
    "n_shared_experts": 1,
    "num_experts_per_tok": 4,
    "routed_scaling_factor": 2.5,
    "norm_topk_prob": True,
    "num_nextn_predict_layers": 0,
}
V3_GROUPS = V3 | {"n_group": 4, "topk_group": 2, "q_lora_rank": 24, "num_hidden_layers": 3}
V3_ONE_GROUP = V3 | {"n_group": 1, "topk_group": 1, "q_lora_rank": None, "rope_parameters": PLAIN_ROPE}
# Index heads are wider than their part that turns; so many that none of the sums of ReLUs is 0 by chance.
V32 = V3_GROUPS | {
    "index_n_heads": 12, "index_head_dim": 20, "index_topk": 6, "num_hidden_layers": 2, "rope_parameters": PLAIN_ROPE,
}
SLIDING, CHOSEN, ALL = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"
V4 = COMMON | {
    "moe_intermediate_size": 6, "num_attention_heads": 4, "num_key_value_heads": 1, "q_lora_rank": 24,
    "n_routed_experts": 12, "num_experts_per_tok": 4, "index_n_heads": 12, "num_nextn_predict_layers": 0,
    "pad_token_id": None,
}
V4_ROPE = {k: v for k, v in yarn(1.0).items() if not k.startswith("mscale") and k != "rope_theta"}
V2 = MLA | {"n_shared_experts": 2, "norm_topk_prob": False}
GQA = COMMON | {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 44, "num_hidden_layers": 2}
QWEN3 = GQA | {"head_dim": 12, "rope_parameters": PLAIN_ROPE | {"rope_theta": 1e6}, "tie_word_embeddings": False}
PHI3 = (
    GQA
    | {"head_dim": 16, "num_attention_heads": 2, "sliding_window": None, "tie_word_embeddings": True}
    | {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None}
)
LONG_ROPE = PLAIN_ROPE | {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.1, 1.25, 1.0, 1.5, 1.75],
    "long_factor": [1.0, 1.5, 3.0, 6.5, 12.0, 20.5],
}
GEMMA = (
    GQA
    | {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24, "tie_word_embeddings": True}
    # Of padding, PyTorch's embedding has no gradient.
    | {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": None, "rms_norm_eps": 1e-6}
)
GEMMA3_ROPE = {"rope_type": "linear", "rope_theta": 1000.0, "factor": 8.0}
GLM = (
    GQA
    | {"head_dim": 12, "tie_word_embeddings": False, "moe_intermediate_size": 6, "first_k_dense_replace": 1}
    | {"n_routed_experts": 12, "n_shared_experts": 1, "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1}
    | {"routed_scaling_factor": 1.5, "norm_topk_prob": True, "num_nextn_predict_layers": 0}
)
GPT_OSS = (
    GQA
    | {"head_dim": 16, "tie_word_embeddings": False, "intermediate_size": 6, "num_local_experts": 10}
    | {"num_experts_per_tok": 3, "sliding_window": 9, "num_hidden_layers": 3, "swiglu_limit": 0.9}
)
GPT_OSS_ROPE = {k: v for k, v in yarn(1.0).items() if not k.startswith("mscale")} | {"truncate": False}
HALF_ROPE = PLAIN_ROPE | {"partial_rotary_factor": 0.5}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}

MODELS = [
    OracleModel("deepseek_v32_sparse", "deepseek_v32", V32),
    OracleModel(
        "deepseek_v32_learning",
        "deepseek_v32",
        V32 | {"index_topk": 9, "num_nextn_predict_layers": 1, "rope_parameters": yarn(1.0)},
        indexer_weight=0.7,
        mtp_lambda=0.3,
        seed=1,
        hub_config=hub_rope(yarn(1.0)) | {"layer_types": None, "mlp_layer_types": None},
    ),
    OracleModel("deepseek_v32_all_keys", "deepseek_v32", V32 | {"index_topk": 64}, indexer_weight=1.0),
    OracleModel(
        "deepseek_v4_chosen",
        "deepseek_v4",
        V4
        | {"num_hidden_layers": 4, "layer_types": [SLIDING, CHOSEN, ALL, CHOSEN], "head_dim": 20, "qk_rope_head_dim": 8}
        | {"compress_rates": {CHOSEN: 4, ALL: 8}, "num_hash_layers": 1, "sliding_window": 7, "o_groups": 2}
        | {"o_lora_rank": 10, "index_head_dim": 18, "index_topk": 3, "swiglu_limit": 0.9}
        | {"compress_rope_theta": 1000.0, "rope_parameters": V4_ROPE},
        hub_config={
            "rope_theta": 10000.0, "compress_rope_theta": 1000.0, "rope_scaling": V4_ROPE, "compress_rates": None,
            "compress_rate_csa": 4, "compress_rate_hca": 8, "mlp_layer_types": None, "num_hash_layers": 1,
        },
    ),
    OracleModel(
        "deepseek_v4_streams",
        "deepseek_v4",
        V4
        | {"num_hidden_layers": 2, "layer_types": [ALL, CHOSEN], "head_dim": 12, "qk_rope_head_dim": 12, "hc_mult": 3}
        | {"compress_rates": {CHOSEN: 2, ALL: 16}, "num_hash_layers": 0, "sliding_window": 11, "o_groups": 4}
        | {"o_lora_rank": 6, "index_head_dim": 12, "index_topk": 5, "hc_sinkhorn_iters": 3, "hc_eps": 1e-3},
        indexer_weight=0.7,
        seed=2,
    ),
    OracleModel(
        "deepseek_v3_groups_yarn",
        "deepseek_v3",
        V3_GROUPS | {"rope_parameters": yarn(1.0)},
        hub_config=hub_rope(yarn(1.0)) | {"topk_method": "noaux_tc", "scoring_func": "sigmoid", "moe_layer_freq": 1},
    ),
    OracleModel("deepseek_v3_no_q_lora", "deepseek_v3", V3_ONE_GROUP),
    OracleModel("deepseek_v3_balance", "deepseek_v3", V3_ONE_GROUP, balance_alpha=0.01),
    OracleModel("deepseek_v3_mtp", "deepseek_v3", V3_ONE_GROUP | {"num_nextn_predict_layers": 1}, mtp_lambda=0.3, seed=2),
    OracleModel(
        "deepseek_v2_greedy",
        "deepseek_v2",
        V2
        | {"q_lora_rank": None, "n_routed_experts": 8, "num_experts_per_tok": 3, "routed_scaling_factor": 1.0}
        | {"topk_method": "greedy", "n_group": 1, "topk_group": 1, "rope_parameters": PLAIN_ROPE, "rms_norm_eps": 1e-3},
    ),
    OracleModel(
        "deepseek_v2_groups_yarn",
        "deepseek_v2",
        V2
        | {"q_lora_rank": 24, "n_routed_experts": 12, "num_experts_per_tok": 3, "routed_scaling_factor": 4.0}
        | {"topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "rope_parameters": yarn(0.707)},
        seed=1,
        hub_config=hub_rope(yarn(0.707)) | {"scoring_func": "softmax", "moe_layer_freq": 1},
    ),
    OracleModel(
        "qwen2_untied", "qwen2", GQA | {"rope_parameters": PLAIN_ROPE | {"rope_theta": 1e6}, "tie_word_embeddings": False}
    ),
    OracleModel(
        "qwen2_tied", "qwen2", GQA | {"rope_parameters": PLAIN_ROPE | {"rope_theta": 1e6}, "tie_word_embeddings": True}
    ),
    OracleModel(
        "llama3_rope",
        "llama",
        GQA | {"head_dim": 16, "rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": False, "rms_norm_eps": 1e-5},
        hub_config={"rope_theta": 100.0, "rope_scaling": {k: v for k, v in LLAMA3_ROPE.items() if k != "rope_theta"}},
    ),
    OracleModel(
        "llama_tied_smollm2",
        "llama",
        GQA
        | {"hidden_size": 54, "num_attention_heads": 9, "num_key_value_heads": 3, "intermediate_size": 36}
        | {"rope_parameters": PLAIN_ROPE | {"rope_theta": 1e5}, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    OracleModel(
        "qwen3_untied",
        "qwen3",
        QWEN3,
        hub_config={"rope_theta": 1000000, "rope_scaling": None, "sliding_window": None, "max_window_layers": 2},
    ),
    OracleModel(
        "qwen3_tied_yarn",
        "qwen3",
        QWEN3
        | {"head_dim": 16, "attention_bias": True, "tie_word_embeddings": True}
        | {"rope_parameters": {k: v for k, v in yarn(1.0).items() if not k.startswith("mscale")}},
    ),
    OracleModel(
        "qwen3_moe",
        "qwen3_moe",
        QWEN3 | {"num_experts": 10, "num_experts_per_tok": 3, "moe_intermediate_size": 6, "norm_topk_prob": True},
        hub_config={"rope_theta": 1000000, "rope_scaling": None, "num_experts": 10, "mlp_only_layers": []},
    ),
    OracleModel(
        "qwen3_moe_plain_weights",
        "qwen3_moe",
        QWEN3 | {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 10, "norm_topk_prob": False},
    ),
    OracleModel(
        "mistral_window",
        "mistral",
        GQA | {"head_dim": 12, "rope_parameters": PLAIN_ROPE, "tie_word_embeddings": False, "sliding_window": 9},
        hub_config={"rope_theta": 10000.0},
    ),
    OracleModel(
        "qwen3_window",
        "qwen3",
        QWEN3 | {"use_sliding_window": True, "sliding_window": 17, "max_window_layers": 1},
    ),
    OracleModel(
        "glm4_moe_norms_mtp",
        "glm4_moe",
        GLM | {"use_qk_norm": True, "rope_parameters": HALF_ROPE, "num_nextn_predict_layers": 1},
        mtp_lambda=0.3,
        hub_config={"rope_theta": 10000, "rope_scaling": None, "partial_rotary_factor": 0.5},
    ),
    OracleModel(
        "gpt_oss",
        "gpt_oss",
        GPT_OSS | {"rope_parameters": GPT_OSS_ROPE},
        seed=4,
        hub_config=hub_rope(GPT_OSS_ROPE) | {"initial_context_length": 32, "experts_per_token": 3},
    ),
    OracleModel(
        "phi3_window",
        "phi3",
        GQA
        | {"rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.75}, "sliding_window": 11}
        | {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": None, "tie_word_embeddings": True},
    ),
    OracleModel(
        "phi3_long",
        "phi3",
        PHI3 | {"rope_parameters": LONG_ROPE | {"partial_rotary_factor": 0.75}, "original_max_position_embeddings": 32},
        hub_config={
            "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
            "rope_scaling": {key: value for key, value in LONG_ROPE.items() if key not in ("rope_type", "rope_theta")}
            | {"type": "longrope"},
        },
    ),
    OracleModel(
        "phi3_short",
        "phi3",
        PHI3 | {"rope_parameters": LONG_ROPE | {"partial_rotary_factor": 0.75}, "original_max_position_embeddings": 64},
    ),
    OracleModel(
        "gemma2",
        "gemma2",
        GEMMA | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5, "num_hidden_layers": 3}
        | {"rope_parameters": PLAIN_ROPE},
        hub_config={"rope_theta": 10000.0, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"},
    ),
    OracleModel(
        "gemma3",
        "gemma3_text",
        GEMMA
        | {"num_hidden_layers": 7, "head_dim": 12, "query_pre_attn_scalar": 20}
        | {"rope_parameters": {"full_attention": GEMMA3_ROPE, "sliding_attention": PLAIN_ROPE | {"rope_theta": 100.0}}},
        hub_config={
            "rope_theta": 1000.0, "rope_local_base_freq": 100.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            "sliding_window_pattern": 6, "layer_types": None,
        },
    ),
    OracleModel(
        "glm4",
        "glm4",
        GQA
        | {"head_dim": 12, "rope_parameters": PLAIN_ROPE | {"partial_rotary_factor": 0.5}, "eos_token_id": 0}
        | {"attention_bias": True, "tie_word_embeddings": False, "pad_token_id": None, "rms_norm_eps": 1e-5},
        hub_config={"rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    ),
    OracleModel(
        "glm4_moe_biases",
        "glm4_moe",
        GLM
        | {"head_dim": 16, "attention_bias": True, "use_qk_norm": False}
        | {"rope_parameters": HALF_ROPE | {"partial_rotary_factor": 0.75}},
    ),
]

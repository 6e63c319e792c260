"""Time one training step (forward, backward, AdamW) of a peer on this machine's CPU, or with `--device cuda` its GPU.

    python peer_step.py dense --precision f32 --steps 7
    python peer_step.py moe --precision f32 --experts grouped_mm --steps 7

Prints one JSON object: the configuration, the parameters, the loss of every step and its seconds. `compare.py`
runs it beside `wels bench train` and makes the table.

`dense` is a Llama-shaped transformer in plain PyTorch, written to be fast in eager mode (fused attention, fused
RMSNorm, fused AdamW). `moe` is `transformers`' own DeepseekV3ForCausalLM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCAB = 4096
WIDTH = 256
LAYERS = 6
HEADS = 8
DENSE_FFN = 768
SEQUENCES = 8
TOKENS = 256


class Block(nn.Module):
    """Pre-norm attention with rotary positions (half-split), then SwiGLU."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH, bias=False)
        self.output = nn.Linear(WIDTH, WIDTH, bias=False)
        self.ffn_norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.gate_up = nn.Linear(WIDTH, 2 * DENSE_FFN, bias=False)
        self.down = nn.Linear(DENSE_FFN, WIDTH, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(self.attention_norm(x)).view(batch, length, 3, HEADS, WIDTH // HEADS).unbind(2)
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, WIDTH))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, H, T, HD] with tables [T, HD / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Dense(nn.Module):
    """7.2M parameters: embedding and head of 1.05M each, six blocks of 0.85M."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(LAYERS))
        self.norm = nn.RMSNorm(WIDTH, eps=1e-6)
        self.head = nn.Linear(WIDTH, VOCAB, bias=False)
        half = WIDTH // HEADS // 2
        angles = torch.outer(torch.arange(TOKENS).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of ids [B, T]."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def dense() -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """The dense model and its forward to logits."""
    model = Dense()
    return model, model


def moe(experts: str, attention: str) -> tuple[nn.Module, Callable[[Tensor], Tensor]]:
    """transformers' DeepseekV3 with 28M parameters, and its forward to logits."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=VOCAB,
        hidden_size=WIDTH,
        intermediate_size=DENSE_FFN,
        moe_intermediate_size=192,
        num_hidden_layers=LAYERS,
        first_k_dense_replace=1,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        n_routed_experts=32,
        n_shared_experts=1,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        q_lora_rank=None,
        kv_lora_rank=64,
        qk_nope_head_dim=32,
        qk_rope_head_dim=16,
        v_head_dim=32,
        max_position_embeddings=TOKENS,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_cache=False,
        pad_token_id=None,
    )
    config._attn_implementation = attention
    config._experts_implementation = experts
    model = DeepseekV3ForCausalLM(config)
    return model, lambda ids: model(input_ids=ids, use_cache=False).logits


def optimizer(model: nn.Module, kind: str) -> torch.optim.Optimizer:
    """AdamW as DeepSeek-V3 uses it, in one of PyTorch's three implementations."""
    flags = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[kind]
    return torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **flags)


def time_steps(arguments: argparse.Namespace) -> dict[str, object]:
    """Runs warm-up and measured steps on random tokens; every step has the same batch."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    if arguments.model == "dense":
        model, logits_of = dense()
    else:
        model, logits_of = moe(arguments.experts, arguments.attention)
    model.to(arguments.device).train()
    adamw = optimizer(model, arguments.optimizer)
    tokens = torch.randint(0, VOCAB, (SEQUENCES, TOKENS + 1))
    tokens = tokens.to(arguments.device)
    ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].reshape(-1)
    forward = torch.compile(logits_of) if arguments.compile else logits_of

    def precision() -> AbstractContextManager[object]:
        return torch.autocast(arguments.device, dtype=torch.bfloat16) if arguments.precision == "bf16" else nullcontext()

    seconds: list[float] = []
    losses: list[float] = []
    for _ in range(arguments.warmup + arguments.steps):
        began = time.perf_counter()
        with precision():
            logits = forward(ids)
            loss = F.cross_entropy(logits.view(-1, VOCAB).float(), targets)
        loss.backward()
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        losses.append(loss.item())
        seconds.append(time.perf_counter() - began)
    return {
        **vars(arguments),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": SEQUENCES * TOKENS,
        "losses": losses,
        "seconds": seconds[arguments.warmup :],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=["dense", "moe"])
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--experts", default="grouped_mm", help="transformers' experts_implementation")
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation")
    parser.add_argument("--optimizer", choices=["fused", "foreach", "loop"], default="fused")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    print(json.dumps(time_steps(parser.parse_args())))


if __name__ == "__main__":
    main()

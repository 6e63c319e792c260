"""Time one training step (forward, backward, AdamW) of a peer on this machine's CPU, or with `--device cuda` its GPU.

    python peer_step.py dense --precision f32 --steps 7
    python peer_step.py moe --precision f32 --experts grouped_mm --steps 7
    python peer_step.py dense-500m --device cuda --precision bf16 --weights bf16 --compile
    python peer_step.py moe-2b --device cuda --precision bf16 --weights bf16
    python peer_step.py moe --ranks 2 --threads 1

Prints one JSON object: the configuration, the parameters, the loss of every step and its seconds, the median and tokens
a second, and on a GPU the greatest memory. `compare.py` runs it beside `wels bench train` and makes the table, on a GPU
`scripts/gpu/check.sh`.

The dense models are Llama-shaped transformers in plain PyTorch, written to be fast in eager mode (fused attention,
fused RMSNorm, fused AdamW), or with `--implementation transformers` that library's Llama; the mixtures of experts are
its DeepseekV3ForCausalLM. The shapes are those of `recipes/` and `bench/gpu/`.

`--weights f32` multiplies under autocast, with weights and gradients in f32. `--weights bf16` holds weights and
gradients in bf16 and steps on copies in f32, which is faster, and what transformers' grouped products need.

`--ranks` divides the batch among so many processes on this machine: DistributedDataParallel over gloo, whose reductions
overlap with the backward pass. `ranks.py` puts it beside Wels.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A model and its batch."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    ffn: int
    sequences: int
    tokens: int
    micro_sequences: int
    # Of mixtures of experts.
    experts: int = 0
    top_k: int = 0
    shared: int = 0
    expert_ffn: int = 0
    latent: int = 0
    nope: int = 0
    rope: int = 0
    value: int = 0

    @property
    def head(self) -> int:
        return self.width // self.heads


SMALL_MOE = {"experts": 32, "top_k": 4, "shared": 1, "expert_ffn": 192, "latent": 64, "nope": 32, "rope": 16}
LARGE_MOE = {"experts": 64, "top_k": 6, "shared": 2, "expert_ffn": 512, "latent": 512, "nope": 128, "rope": 64}
SHAPES = {
    "dense": Shape(4096, 256, 6, 8, 8, 768, 8, 256, 8),
    "moe": Shape(4096, 256, 6, 8, 8, 768, 8, 256, 8, **SMALL_MOE, value=32),
    "dense-500m": Shape(32768, 1536, 16, 12, 4, 4096, 16, 4096, 4),
    "moe-2b": Shape(32768, 1024, 19, 8, 8, 4096, 16, 4096, 4, **LARGE_MOE, value=128),
    # For trying the above where there is no GPU.
    "dense-tiny": Shape(512, 256, 2, 4, 2, 256, 4, 32, 2),
    "moe-tiny": Shape(512, 64, 2, 4, 4, 128, 4, 32, 2, 8, 2, 2, 32, 32, 16, 8, 16),
}


class Block(nn.Module):
    """Pre-norm attention with rotary positions (half-split), then SwiGLU."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        kv = shape.kv_heads * shape.head
        self.attention_norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.qkv = nn.Linear(shape.width, shape.width + 2 * kv, bias=False)
        self.output = nn.Linear(shape.width, shape.width, bias=False)
        self.ffn_norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.gate_up = nn.Linear(shape.width, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        heads, kv_heads = self.shape.heads, self.shape.kv_heads
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, heads + 2 * kv_heads, self.shape.head)
        q, k, v = (part.transpose(1, 2) for part in qkv.split([heads, kv_heads, kv_heads], dim=2))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
        x = x + self.output(attended.transpose(1, 2).reshape(batch, length, width))
        gate, up = self.gate_up(self.ffn_norm(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x [B, H, T, HD] with tables [T, HD / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)


class Dense(nn.Module):
    """Embedding, blocks, norm, head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocab, shape.width)
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = nn.RMSNorm(shape.width, eps=1e-6)
        self.head = nn.Linear(shape.width, shape.vocab, bias=False)
        half = shape.head // 2
        angles = torch.outer(torch.arange(shape.tokens).float(), 10000.0 ** (-torch.arange(half).float() / half))
        self.register_buffer("cos", angles.cos())
        self.register_buffer("sin", angles.sin())

    def forward(self, ids: Tensor) -> Tensor:
        """Logits [B, T, V] of ids [B, T]."""
        x = self.embedding(ids)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


Forward = Callable[[Tensor], Tensor]


def dense(shape: Shape) -> tuple[nn.Module, Forward]:
    """The dense model and its forward to logits."""
    model = Dense(shape)
    return model, model


def llama(shape: Shape, attention: str) -> tuple[nn.Module, Forward]:
    """transformers' Llama of the same shape, and its forward to logits."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.tokens,
        tie_word_embeddings=False,
        use_cache=False,
        pad_token_id=None,
    )
    config._attn_implementation = attention
    model = LlamaForCausalLM(config)
    return model, lambda ids: model(input_ids=ids, use_cache=False).logits


def moe(shape: Shape, experts: str, attention: str) -> tuple[nn.Module, Forward]:
    """transformers' DeepseekV3, and its forward to logits."""
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    config = DeepseekV3Config(
        vocab_size=shape.vocab,
        hidden_size=shape.width,
        intermediate_size=shape.ffn,
        moe_intermediate_size=shape.expert_ffn,
        num_hidden_layers=shape.layers,
        first_k_dense_replace=1,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        n_routed_experts=shape.experts,
        n_shared_experts=shape.shared,
        num_experts_per_tok=shape.top_k,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        q_lora_rank=None,
        kv_lora_rank=shape.latent,
        qk_nope_head_dim=shape.nope,
        qk_rope_head_dim=shape.rope,
        v_head_dim=shape.value,
        max_position_embeddings=shape.tokens,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        use_cache=False,
        pad_token_id=None,
    )
    config._attn_implementation = attention
    config._experts_implementation = experts
    model = DeepseekV3ForCausalLM(config)
    return model, lambda ids: model(input_ids=ids, use_cache=False).logits


class Step:
    """AdamW as DeepSeek-V3 uses it, in one of PyTorch's three implementations; of weights in bf16 on copies in f32."""

    def __init__(self, model: nn.Module, kind: str) -> None:
        flags = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False}}[kind]
        self.weights = list(model.parameters())
        self.copied = any(weight.dtype != torch.float32 for weight in self.weights)
        own = [weight.detach().float().clone() for weight in self.weights] if self.copied else self.weights
        self.own = own
        self.adamw = torch.optim.AdamW(own, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, **flags)
        if self.copied:
            for weight in own:
                weight.grad = torch.zeros_like(weight)

    @torch.no_grad()
    def __call__(self) -> None:
        if not self.copied:
            self.adamw.step()
            self.adamw.zero_grad(set_to_none=True)
            return
        pairs = [(own, weight) for own, weight in zip(self.own, self.weights) if weight.grad is not None]
        torch._foreach_copy_([own.grad for own, _ in pairs], [weight.grad for _, weight in pairs])
        self.adamw.step()
        torch._foreach_copy_([weight for _, weight in pairs], [own for own, _ in pairs])
        for weight in self.weights:
            weight.grad = None


def build(arguments: argparse.Namespace, shape: Shape) -> tuple[nn.Module, Forward]:
    """The model on its device, with weights in their number format."""
    with torch.device(arguments.device):
        if shape.experts:
            model, forward = moe(shape, arguments.experts, arguments.attention)
        elif arguments.implementation == "transformers":
            model, forward = llama(shape, arguments.attention)
        else:
            model, forward = dense(shape)
    model.to(arguments.device).train()
    if arguments.weights == "bf16":
        model.to(torch.bfloat16)
    return model, torch.compile(forward) if arguments.compile else forward


def time_steps(arguments: argparse.Namespace) -> dict[str, object]:
    """Runs warm-up and measured steps on random tokens; every step has the same batch."""
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    shape = SHAPES[arguments.model]
    model, forward = build(arguments, shape)
    step = Step(model, arguments.optimizer)
    tokens = torch.randint(0, shape.vocab, (shape.sequences, shape.tokens + 1)).to(arguments.device)
    micro = arguments.micro_sequences or shape.micro_sequences
    if arguments.ranks > 1:
        # Each rank begins with the same weights and tokens.
        parallel = nn.parallel.DistributedDataParallel(model)
        is_dense = isinstance(model, Dense)
        forward = parallel if is_dense else lambda ids: parallel(input_ids=ids, use_cache=False).logits
        tokens = tokens.chunk(arguments.ranks)[torch.distributed.get_rank()]
    autocast = arguments.precision == "bf16" and arguments.weights == "f32"

    def precision() -> AbstractContextManager[object]:
        return torch.autocast(arguments.device, dtype=torch.bfloat16) if autocast else nullcontext()

    def one_step() -> float:
        parts = tokens.split(micro)
        loss = torch.zeros((), device=arguments.device)
        for part in parts:
            with precision():
                logits = forward(part[:, :-1].contiguous())
                of_part = F.cross_entropy(logits.view(-1, shape.vocab).float(), part[:, 1:].reshape(-1)) / len(parts)
            del logits
            of_part.backward()
            loss += of_part.detach()
        step()
        return loss.item()

    seconds: list[float] = []
    losses: list[float] = []
    for _ in range(arguments.warmup + arguments.steps):
        began = time.perf_counter()
        losses.append(one_step())
        seconds.append(time.perf_counter() - began)
    seconds = seconds[arguments.warmup :]
    return {
        **vars(arguments),
        "torch": torch.__version__,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "tokens": shape.sequences * shape.tokens,
        "losses": losses,
        "seconds": seconds,
        "seconds_per_step": statistics.median(seconds),
        "tokens_per_second": shape.sequences * shape.tokens / statistics.median(seconds),
        "peak_device_bytes": torch.cuda.max_memory_allocated() if arguments.device == "cuda" else None,
    }


def rank_steps(rank: int, arguments: argparse.Namespace) -> None:
    """A rank's steps; the first one prints its report."""
    torch.distributed.init_process_group("gloo", rank=rank, world_size=arguments.ranks)
    report = time_steps(arguments)
    if rank == 0:
        print(json.dumps(report), flush=True)
    torch.distributed.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=list(SHAPES))
    parser.add_argument("--precision", choices=["f32", "bf16"], default="f32")
    parser.add_argument("--weights", choices=["f32", "bf16"], default="f32", help="number format of the weights")
    parser.add_argument("--implementation", choices=["torch", "transformers"], default="torch", help="of dense models")
    parser.add_argument("--experts", default="grouped_mm", help="transformers' experts_implementation")
    parser.add_argument("--attention", default="sdpa", help="transformers' attn_implementation")
    parser.add_argument("--optimizer", choices=["fused", "foreach", "loop"], default="fused")
    parser.add_argument("--micro-sequences", type=int, help="sequences at a time; if left out, the shape's")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of each rank")
    parser.add_argument("--ranks", type=int, default=1, help="processes that divide the batch")
    arguments = parser.parse_args()
    if arguments.ranks == 1:
        print(json.dumps(time_steps(arguments)))
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    torch.multiprocessing.spawn(rank_steps, (arguments,), nprocs=arguments.ranks)


if __name__ == "__main__":
    main()

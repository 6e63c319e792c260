"""Write the oracle files of crates/model/tests/oracle: logits, losses, gradients and ten AdamW steps by `transformers`.

    python -m venv .venv && .venv/bin/pip install -r requirements.txt
    .venv/bin/python make_models.py [NAME ...]

For each model of models.py a folder with

* config.json — as `transformers` writes it, and config-hub.json in the style of published checkpoints where they
  differ;
* oracle.json — tokens and targets, losses, and how far float32 PyTorch is from the values here;
* oracle.safetensors — `logits` [B, T, V] and `gradients.NAME` for each Hugging Face tensor NAME.

Weights come from weights.py. Everything is computed in float64, the casts to float32 inside `transformers` included,
and rounded once; the same is computed in float32 to say what may be asked of a float32 program. The loss is the mean
cross-entropy over all B·T targets, plus λ/(B·T) times the sum of the MTP layer's, plus α times the sum over layers and
the mean over sequences of the sequence-wise balance loss, plus a weight times the sum over layers and the mean over
tokens of what indexers learn by (DeepSeek-V3.2 report, arXiv 2512.02556, eq. 4), for which `transformers` has nothing.
AdamW: learning rate 1e-3, β 0.9 and 0.95, ε 1e-8, decoupled decay 0.1 of every parameter, no clipping; selection biases
stay as they are.

Where transformers 5.23 departs from the papers or from older code: it takes no account of V2's `norm_topk_prob` and of
`scoring_func`; latent norms have ε 1e-6 whatever `rms_norm_eps` says. The script refuses models in which a choice of
experts hangs on rounding, or in which an expert is never chosen.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import transformers
from models import LENGTH, MODELS, SEQUENCES, OracleModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.cache_utils import MtpCache
from transformers.modeling_layers import MtpModel
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel
from weights import tokens, weight

STEPS = 10
ADAMW = {"lr": 1e-3, "betas": (0.9, 0.95), "eps": 1e-8, "weight_decay": 0.1}
MARGIN = 2e-5
"""Least difference between the scores of a chosen and a rejected expert or group, in each step."""
OUTPUT = Path(__file__).resolve().parents[2] / "crates" / "model" / "tests" / "oracle"


class DoubleTorch:
    """The torch module with float64 under the names of float32."""

    float32 = torch.float64
    float = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@contextlib.contextmanager
def precision(dtype: torch.dtype, family: str) -> Iterator[None]:
    """Within it, models of the family compute in `dtype` even where the code of `transformers` says float32."""
    if dtype == torch.float32:
        yield
        return
    family = family.removesuffix("_text")
    modules = [f"transformers.models.{family}.modeling_{family}", "transformers.modeling_rope_utils"]
    with contextlib.ExitStack() as stack:
        for module in modules:
            stack.enter_context(mock.patch.object(importlib.import_module(module), "torch", DoubleTorch()))
        stack.enter_context(mock.patch.object(torch.Tensor, "float", torch.Tensor.double))
        yield


class Mtp(nn.Module):
    """One layer of multi-token prediction, from the parts of `transformers`' decoder.

    It agrees with `MtpModel`, with which `transformers` drafts: see `check_mtp`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        config = model.config
        layer = model.model.layers[-1]
        if getattr(config, "mlp_layer_types", None):
            config = copy.deepcopy(config)
            config.mlp_layer_types = [*config.mlp_layer_types, "sparse"]
        norm = type(layer.input_layernorm)
        self.enorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.hnorm = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.eh_proj = nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.block = type(layer)(config, config.num_hidden_layers)
        self.norm = norm(config.hidden_size, eps=config.rms_norm_eps)

    def forward(self, model: PreTrainedModel, hidden: Tensor, ids: Tensor) -> Tensor:
        """Logits [B, T - 1, V] for the token after next, from final normed states [B, T, D] and tokens [B, T]."""
        ahead = ids[:, 1:]
        if hasattr(self.block.self_attn, "indexer"):
            # Its indexer learns at the last place too, where a token 0 stands in for the next one.
            ahead = F.pad(ahead, (0, 1))
        length = ahead.shape[1]
        embedding = self.enorm(model.model.embed_tokens(ahead))
        x = self.eh_proj(torch.cat((embedding, self.hnorm(hidden[:, :length])), dim=-1))
        positions = torch.arange(length)[None]
        mask = torch.full((length, length), float("-inf"), dtype=x.dtype).triu(1)[None, None]
        rotary = model.model.rotary_emb(x, positions)
        x = self.block(x, attention_mask=mask, position_ids=positions, position_embeddings=rotary)
        return model.lm_head(self.norm(x))[:, : ids.shape[1] - 1]


def draw(spec: OracleModel) -> np.ndarray:
    """Tokens [B, T + 1]: inputs and, one place on, targets."""
    return tokens(f"{spec.name} {spec.seed}", SEQUENCES, LENGTH + 1, spec.config["vocab_size"])


@dataclass
class Choices:
    """What the routers saw in one forward pass."""

    scores: list[Tensor]
    margins: list[float]
    used: list[int]
    index_scores: list[Tensor] = field(default_factory=list)
    index_losses: list[Tensor] = field(default_factory=list)


class Learner:
    """A model with the oracle's weights, and its loss."""

    def __init__(self, spec: OracleModel, dtype: torch.dtype) -> None:
        self.spec = spec
        config = AutoConfig.for_model(spec.family, **spec.config)
        config._attn_implementation = "eager"
        config._experts_implementation = "eager"
        self.model = AutoModelForCausalLM.from_config(config).to(dtype)
        self.mtp = Mtp(self.model).to(dtype) if spec.mtp_lambda else None
        self.choices = Choices([], [], [])
        self.slots = dict(self._slots())
        for name, slot in self.slots.items():
            if name.endswith(".tid2eid"):
                slot.copy_(torch.arange(slot.numel()).view(slot.shape) % self.model.config.n_routed_experts)
            else:
                slot.data.copy_(torch.from_numpy(weight(name, tuple(slot.shape))))
        for module in [*self.model.modules(), *(self.mtp.modules() if self.mtp else [])]:
            if type(module).__name__.lower().endswith("topkrouter"):
                module.register_forward_hook(self._watch)
            if type(module).__name__ == "DeepseekV4IndexerScorer":
                module.register_forward_hook(self._watch_entries)
            if type(module).__name__ == "DeepseekV4Indexer":
                # Nothing that an indexer reads learns by it.
                module.register_forward_pre_hook(lambda _, args: (args[0].detach(), args[1].detach(), *args[2:]))
                module.register_forward_hook(self._watch_chosen_entries)
            if type(module).__name__ == "DeepseekV4Attention" and hasattr(module.compressor, "indexer"):
                module.register_forward_hook(self._watch_entry_attention)
            elif type(module).__name__.endswith("Indexer") and spec.family != "deepseek_v4":
                module.register_forward_hook(self._watch_indexer)
            if isinstance(getattr(module, "indexer", None), nn.Module) and spec.family != "deepseek_v4":
                module.register_forward_hook(self._watch_attention)

    def _slots(self) -> Iterator[tuple[str, Tensor]]:
        """Hugging Face names, and where each tensor is in memory (experts are fused there)."""
        state = dict(self.model.state_dict(keep_vars=True))
        if self.model.config.tie_word_embeddings:
            del state["lm_head.weight"]
        if self.mtp is not None:
            prefix = f"model.layers.{self.model.config.num_hidden_layers}."
            renamed = {"norm.weight": "shared_head.norm.weight"}
            for name, value in self.mtp.state_dict(keep_vars=True).items():
                state[prefix + renamed.get(name, name.removeprefix("block."))] = value
        if self.spec.family == "deepseek_v4":
            yield from published(state)
            return
        for name, value in state.items():
            fused = self.spec.family == "gpt_oss"
            if fused or ".experts." not in name or ".shared_experts." in name:
                yield name, value
                continue
            base, fused = name.rsplit(".", 1)
            for expert in range(value.shape[0]):
                if fused == "gate_up_proj":
                    half = value.shape[1] // 2
                    yield f"{base}.{expert}.gate_proj.weight", value[expert, :half]
                    yield f"{base}.{expert}.up_proj.weight", value[expert, half:]
                else:
                    yield f"{base}.{expert}.{fused}.weight", value[expert]

    def parameters(self) -> list[Tensor]:
        """What AdamW changes."""
        return [*self.model.parameters(), *(self.mtp.parameters() if self.mtp else [])]

    def gradients(self) -> dict[str, Tensor]:
        """The gradient of each Hugging Face tensor that has one."""
        for parameter in self.parameters():
            parameter.data, parameter.grad.data = parameter.grad.data, parameter.data
        gradients = {
            name: slot.detach().clone()
            for name, slot in self._slots()
            if not name.endswith(("e_score_correction_bias", "ffn.gate.bias", "tid2eid"))
        }
        for parameter in self.parameters():
            parameter.data, parameter.grad.data = parameter.grad.data, parameter.data
        return gradients

    def _watch(self, router: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        logits, _, chosen = outputs
        sigmoid = hasattr(router, "e_score_correction_bias")
        scores = logits.sigmoid() if sigmoid else logits.softmax(-1)
        if self.spec.family == "deepseek_v4":
            scores = F.softplus(logits).sqrt()
        self.choices.scores.append(scores)
        self.choices.used.append(int(chosen.unique().numel()))
        biased = (scores + router.e_score_correction_bias if sigmoid else scores).detach()
        assert bool((biased > 0).all()), "a biased score is not positive"
        if getattr(router, "num_group", None) not in (None, 1):
            grouped = biased.view(len(biased), router.num_group, -1)
            group_scores = grouped.topk(2).values.sum(-1) if sigmoid else grouped.max(-1).values
            best = group_scores.sort(descending=True)
            self.choices.margins.append(gap(best.values, router.topk_group))
            kept = torch.zeros_like(group_scores).scatter(1, best.indices[:, : router.topk_group], 1.0)
            biased = (grouped * kept[..., None]).flatten(1)
        self.choices.margins.append(gap(biased.sort(descending=True).values, router.top_k))
        if self.spec.balance_alpha:
            self.choices.margins.append(gap(scores.detach().sort(descending=True).values, router.top_k))

    def _watch_indexer(self, indexer: nn.Module, inputs: tuple[Tensor, ...], chosen: Tensor) -> None:
        hidden, latent, rotary, mask = inputs[:4]
        scores = index_scores(indexer, hidden.detach(), latent.detach(), rotary).masked_fill(mask < 0, float("-inf"))
        best = scores.detach().sort(descending=True).values
        if chosen.shape[-1] < scores.shape[-1]:
            rejected = best[..., chosen.shape[-1]]
            gaps = (best[..., chosen.shape[-1] - 1] - rejected)[rejected.isfinite()]
            self.choices.margins.append(float(gaps.min()))
        kept = torch.full_like(scores, float("-inf")).scatter(-1, chosen.long(), 0.0)
        self.choices.index_scores.append(scores + kept)

    def _watch_entries(self, scorer: nn.Module, inputs: tuple[Tensor, ...], scores: Tensor) -> None:
        config = self.model.config
        rate, top_k = config.compress_rates["compressed_sparse_attention"], config.index_topk
        for place in range(scores.shape[1]):
            complete = scores.detach()[:, place, : (place + 1) // rate]
            if complete.shape[-1] > top_k:
                self.choices.margins.append(gap(complete.sort(descending=True).values, top_k))
        self.choices.index_scores.append(scores)

    def _watch_chosen_entries(self, indexer: nn.Module, inputs: tuple[Tensor, ...], chosen: Tensor) -> None:
        scores = self.choices.index_scores[-1]
        entries = scores.shape[-1]
        seen = torch.zeros(*scores.shape[:-1], entries + 1, dtype=torch.bool)
        seen = seen.scatter(-1, torch.where(chosen < 0, entries, chosen), True)[..., :entries]
        self.choices.index_scores[-1] = scores.masked_fill(~seen, float("-inf"))

    def _watch_entry_attention(
        self, attention: nn.Module, inputs: tuple[Tensor, ...], outputs: tuple[Tensor, Tensor]
    ) -> None:
        scores = self.choices.index_scores[-1]
        some = scores.isfinite().any(-1)
        scores, weights = scores[some], outputs[1].detach().mean(1)[..., -scores.shape[-1] :][some]
        seen = scores.isfinite()
        weights = weights.masked_fill(~seen, 0.0)
        weights = weights / weights.sum(-1, keepdim=True)
        divergence = torch.xlogy(weights, weights) - weights * scores.log_softmax(-1).masked_fill(~seen, 0.0)
        self.choices.index_losses.append(divergence.masked_fill(~seen, 0.0).sum())

    def _watch_attention(self, attention: nn.Module, inputs: tuple[Tensor], outputs: tuple[Tensor, Tensor]) -> None:
        weights = outputs[1].detach().mean(1)
        scores = self.choices.index_scores[-1]
        seen = scores.isfinite()
        divergence = torch.xlogy(weights, weights) - weights * scores.log_softmax(-1).masked_fill(~seen, 0.0)
        self.choices.index_losses.append(divergence.masked_fill(~seen, 0.0).sum())

    def loss(self, ids: Tensor, targets: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """The loss, its parts, and the logits [B, T, V]."""
        self.choices = Choices([], [], [])
        output = self.model(input_ids=ids, output_hidden_states=True)
        logits, hidden = output.logits, output.hidden_states[-1]
        main = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        total, parts = main, {"main": main}
        if self.mtp is not None:
            ahead = self.mtp(self.model, hidden, ids)
            parts["mtp_sum"] = F.cross_entropy(ahead.flatten(0, 1), targets[:, 1:].flatten(), reduction="sum")
            total = total + self.spec.mtp_lambda / targets.numel() * parts["mtp_sum"]
        if self.spec.balance_alpha:
            top_k = self.model.config.num_experts_per_tok
            parts["balance"] = sum(balance(scores, top_k) for scores in self.choices.scores)
            total = total + self.spec.balance_alpha * parts["balance"]
        if self.spec.indexer_weight:
            parts["indexer"] = sum(self.choices.index_losses) / targets.numel()
            total = total + self.spec.indexer_weight * parts["indexer"]
        return total, parts, logits


PUBLISHED = [
    (".input_layernorm.", ".attn_norm."),
    (".post_attention_layernorm.", ".ffn_norm."),
    (".attn_hc.", ".hc_attn_"),
    (".ffn_hc.", ".hc_ffn_"),
    (".compressor.indexer.q_b_proj.", ".indexer.wq_b."),
    (".compressor.indexer.scorer.weights_proj.", ".indexer.weights_proj."),
    (".compressor.indexer.", ".indexer.compressor."),
    (".compressor.kv_norm.", ".compressor.norm."),
    (".compressor.gate_proj.", ".compressor.wgate."),
    (".self_attn.", ".attn."),
    (".mlp.", ".ffn."),
    (".sinks", ".attn_sink"),
    (".position_bias", ".ape"),
    (".q_a_proj.", ".wq_a."),
    (".q_a_norm.", ".q_norm."),
    (".q_b_proj.", ".wq_b."),
    (".kv_proj.", ".wkv."),
    (".o_a_proj.", ".wo_a."),
    (".o_b_proj.", ".wo_b."),
    (".gate.e_score_correction_bias", ".gate.bias"),
    (".gate_proj.weight", ".w1.weight"),
    (".down_proj.weight", ".w2.weight"),
    (".up_proj.weight", ".w3.weight"),
    ("model.hc_head.hc_", "hc_head_"),
    ("model.embed_tokens.", "embed."),
    ("lm_head.", "head."),
]


def published(state: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Names as in DeepSeek-V4's files, each expert by itself; `transformers` reads them, and writes a mixture."""
    for name, value in state.items():
        for own, other in PUBLISHED:
            name = name.replace(own, other)
        name = name.removeprefix("model.")
        base, _, last = name.rpartition(".")
        if last == "gate_up_proj":
            half = value.shape[1] // 2
            for expert in range(value.shape[0]):
                yield f"{base}.{expert}.w1.weight", value[expert, :half]
                yield f"{base}.{expert}.w3.weight", value[expert, half:]
        elif last == "down_proj":
            for expert in range(value.shape[0]):
                yield f"{base}.{expert}.w2.weight", value[expert]
        else:
            yield name, value


def index_scores(indexer: nn.Module, hidden: Tensor, latent: Tensor, rotary: tuple[Tensor, Tensor]) -> Tensor:
    """What an indexer chooses by, [B, T, T], with gradients, of all keys."""

    def turned(x: Tensor) -> Tensor:
        width = indexer.qk_rope_head_dim
        cos, sin = (part.unsqueeze(2) for part in rotary)
        first, second = x[..., : width // 2], x[..., width // 2 : width]
        rotated = x[..., :width] * cos + torch.cat((-second, first), dim=-1) * sin
        return torch.cat((rotated, x[..., width:]), dim=-1)

    q = turned(indexer.wq_b(latent).unflatten(-1, (indexer.n_heads, indexer.head_dim)))
    k = turned(indexer.k_norm(indexer.wk(hidden)).unsqueeze(2)).squeeze(2)
    products = torch.einsum("bthd,bsd->bths", q, k) * indexer.head_dim**-0.5
    return torch.einsum("bth,bths->bts", indexer.weights_proj(hidden) * indexer.n_heads**-0.5, products.relu())


def gap(sorted_scores: Tensor, chosen: int) -> float:
    """Least difference over all tokens between the last chosen and the first rejected."""
    return float((sorted_scores[:, chosen - 1] - sorted_scores[:, chosen]).min())


def balance(scores: Tensor, top_k: int) -> Tensor:
    """Mean over sequences of the balance loss (DeepSeek-V3 report, eq. 17 to 20) of sigmoid scores [B·T, E]."""
    experts = scores.shape[-1]
    chosen = torch.zeros_like(scores).scatter(1, scores.topk(top_k).indices, 1.0).detach()
    normalised = scores / scores.sum(-1, keepdim=True)
    share = chosen.view(SEQUENCES, LENGTH, experts).mean(1) * (experts / top_k)
    return (share * normalised.view(SEQUENCES, LENGTH, experts).mean(1)).sum(-1).mean()


@dataclass
class Result:
    """What a program should reproduce."""

    logits: Tensor
    parts: dict[str, float]
    losses: list[float]
    gradients: dict[str, Tensor]
    margin: float


def compute(spec: OracleModel, dtype: torch.dtype) -> Result:
    """Loss and gradients of the first step, and the losses before each of ten steps and after the last."""
    drawn = torch.from_numpy(draw(spec))
    ids, targets = drawn[:, :-1], drawn[:, 1:]
    with precision(dtype, spec.family):
        learner = Learner(spec, dtype)
        adamw = torch.optim.AdamW(learner.parameters(), **ADAMW, foreach=False, fused=False)
        losses: list[float] = []
        margins: list[float] = []
        for step in range(STEPS):
            adamw.zero_grad()
            total, parts, logits = learner.loss(ids, targets)
            assert logits.dtype == dtype and total.dtype == dtype
            total.backward()
            for parameter in learner.parameters():
                # Without a loss of their own indexers have no gradients: choosing has none.
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            if step == 0:
                first = logits.detach(), {name: part.item() for name, part in parts.items()}, learner.gradients()
                config = learner.model.config
                experts = getattr(config, "n_routed_experts", None) or getattr(config, "num_experts", None)
                assert all(used == experts for used in learner.choices.used), f"{learner.choices.used} of {experts} used"
            losses.append(total.item())
            margins.append(min(learner.choices.margins, default=1.0))
            adamw.step()
        with torch.no_grad():
            losses.append(learner.loss(ids, targets)[0].item())
    return Result(first[0], first[1], losses, first[2], min(margins))


def check_names(spec: OracleModel, folder: Path) -> None:
    """The weights, under the names used here, load in `transformers` with none missing or left over, and logits agree."""
    learner = Learner(spec, torch.float32)
    with tempfile.TemporaryDirectory() as directory:
        learner.model.config.architectures = [type(learner.model).__name__]
        learner.model.config.save_pretrained(directory)
        own = {name: slot.detach().clone() for name, slot in learner.slots.items()}
        save_file(own, Path(directory) / "model.safetensors", metadata={"format": "pt"})
        # `transformers` knows the MTP layers of the published checkpoints by number (61) alone.
        mtp_layer = rf"model\.layers\.{learner.model.config.num_hidden_layers}\..*"
        type(learner.model)._keys_to_ignore_on_load_unexpected = [mtp_layer] if learner.mtp else []
        loaded, info = AutoModelForCausalLM.from_pretrained(
            directory, output_loading_info=True, attn_implementation="eager", experts_implementation="eager"
        )
        problems = {kind: names for kind, names in info.items() if names}
        assert not problems, f"{spec.name}: {problems}"
        ids = torch.from_numpy(draw(spec)[:, :-1].copy())
        with torch.no_grad():
            assert torch.equal(loaded(input_ids=ids).logits, learner.model(input_ids=ids).logits)
            # It drafts with no layer of deepseek_v32.
            if learner.mtp is not None and spec.family != "deepseek_v32":
                check_mtp(learner, loaded, ids)
        saved = json.loads((Path(directory) / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(saved, indent=2) + "\n")
        if spec.hub_config:
            hub = {key: value for key, value in saved.items() if key != "rope_parameters"} | spec.hub_config
            (Path(directory) / "config.json").write_text(json.dumps(hub))
            read = AutoConfig.from_pretrained(directory)
            expected = learner.model.config.rope_parameters
            same = all(holds(read.rope_parameters.get(key), value) for key, value in expected.items())
            assert same, f"{read.rope_parameters} is not {expected}"
            (folder / "config-hub.json").write_text(json.dumps(hub, indent=2) + "\n")


def holds(read: Any, expected: Any) -> bool:
    """Equal, or an object with at least the keys of the other."""
    if isinstance(expected, dict):
        return all(holds(read.get(key), value) for key, value in expected.items())
    return read == expected


def check_mtp(learner: Learner, loaded: PreTrainedModel, ids: Tensor) -> None:
    """The MTP layer agrees with the one that `transformers` drafts with."""
    theirs = MtpModel.from_pretrained(loaded)
    hidden = learner.model.model(input_ids=ids).last_hidden_state
    length = ids.shape[1] - 1
    cache = MtpCache(config=loaded.config.get_mtp_config())
    positions = torch.arange(length)[None]
    state = theirs.forward_layer(0, hidden[:, :-1], positions, cache, input_ids=ids[:, 1:])
    torch.testing.assert_close(loaded.lm_head(state), learner.mtp(learner.model, hidden, ids), rtol=1e-4, atol=1e-5)


def relative(value: Tensor, reference: Tensor) -> float:
    """‖value − reference‖ / ‖reference‖."""
    return float((value.double() - reference).norm() / reference.norm())


def make(spec: OracleModel) -> None:
    """Writes one model's folder."""
    folder = OUTPUT / spec.name
    folder.mkdir(parents=True, exist_ok=True)
    check_names(spec, folder)
    exact, single = compute(spec, torch.float64), compute(spec, torch.float32)
    assert exact.margin > MARGIN, f"{spec.name}: experts chosen by a margin of {exact.margin:.1e}; try another seed"
    float32_errors = {
        "logits": float((single.logits.double() - exact.logits).abs().max() / exact.logits.abs().max()),
        "gradients_max": max(
            relative(single.gradients[name], exact.gradients[name])
            for name in exact.gradients
            if exact.gradients[name].any()
        ),
        "losses_max": max(abs(a - b) for a, b in zip(single.losses, exact.losses, strict=True)),
    }
    drawn = draw(spec)
    oracle = {
        "made_by": f"scripts/oracle/make_models.py, torch {torch.__version__}, transformers {transformers.__version__}",
        "sequences": SEQUENCES,
        "length": LENGTH,
        "tokens": drawn[:, :-1].flatten().tolist(),
        "targets": drawn[:, 1:].flatten().tolist(),
        "mtp_lambda": spec.mtp_lambda,
        "balance_alpha": spec.balance_alpha,
        **({"indexer_weight": spec.indexer_weight} if spec.indexer_weight else {}),
        "first_losses": exact.parts,
        "adamw_losses": exact.losses,
        "adamw": ADAMW,
        "routing_margin": exact.margin,
        "float32_errors": float32_errors,
    }
    (folder / "oracle.json").write_text(json.dumps(oracle) + "\n")
    tensors = {f"gradients.{name}": gradient for name, gradient in exact.gradients.items()} | {"logits": exact.logits}
    path = folder / "oracle.safetensors"
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path)
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(path).values())
    parameters = sum(gradient.numel() for gradient in exact.gradients.values())
    errors = ", ".join(f"{name} {error:.1e}" for name, error in float32_errors.items())
    print(f"{spec.name}: {parameters} parameters, losses {exact.losses[0]:.4f} → {exact.losses[-1]:.4f}; ", end="")
    print(f"margin {exact.margin:.1e}; float32 is off by: {errors}")


def main() -> None:
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    wanted = sys.argv[1:]
    unknown = set(wanted) - {spec.name for spec in MODELS}
    if unknown:
        sys.exit(f"no such model: {', '.join(sorted(unknown))}")
    for spec in MODELS:
        if not wanted or spec.name in wanted:
            make(spec)


if __name__ == "__main__":
    main()

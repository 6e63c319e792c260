"""Write crates/train/tests/oracle/grpo.json: GRPO's advantages, KL, loss and gradients by PyTorch on recorded rollouts.

    .venv/bin/python make_grpo.py

The policy is the oracle model `deepseek_v3_no_q_lora` of models.py, in float64. Rollouts are random tokens behind
random prompts; the log-probabilities that the sampler and the reference gave are the policy's plus noise, so that
ratios are clipped on both sides. One group's rewards are all equal: it is left out, as the header of
crates/train/src/grpo.rs says. Every objective is written down here as in the papers and differentiated by autograd, to
the log-probabilities and to the weights.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from make_models import Learner, precision
from models import MODELS, VOCAB
from torch import Tensor
from weights import tokens, uniform

MODEL = "deepseek_v3_no_q_lora"
OUTPUT = Path(__file__).resolve().parents[2] / "crates" / "train" / "tests" / "oracle"
REWARDS = [[1.0, 0.0, 0.25, 1.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.1, 0.0]]
PROMPTS = [5, 3, 7]
LENGTHS = [[9, 1, 14, 6], [4, 8, 2, 5], [11, 3, 7, 12]]
WHOLE = ["model.norm.weight", "model.layers.1.mlp.gate.weight", "model.layers.0.self_attn.kv_a_proj_with_mqa.weight"]
"""Gradients that are stored as they are; of the others, the norm and the product with `uniform(NAME)`."""


@dataclass
class Variant:
    """An objective."""

    name: str
    scale: str  # deviation, sample_deviation, none
    aggregation: str  # sequence_mean, token_mean, constant
    length: float
    clip_low: float
    clip_high: float
    kl: float
    surrogate: str = "token"  # token: GRPO, sequence: GSPO, weight: CISPO


VARIANTS = [
    Variant("deepseekmath", "deviation", "sequence_mean", 0.0, 0.2, 0.2, 0.04),
    Variant("trl", "sample_deviation", "sequence_mean", 0.0, 0.2, 0.2, 0.0),
    Variant("r1", "deviation", "sequence_mean", 0.0, 10.0, 10.0, 0.001),
    Variant("dapo", "deviation", "token_mean", 0.0, 0.2, 0.28, 0.0),
    Variant("dr_grpo", "none", "constant", 64.0, 0.2, 0.2, 0.04),
    Variant("gspo", "deviation", "sequence_mean", 0.0, 0.05, 0.07, 0.0, "sequence"),
    Variant("gspo_kl", "sample_deviation", "sequence_mean", 0.0, 0.05, 0.05, 0.04, "sequence"),
    Variant("gspo_token", "deviation", "token_mean", 0.0, 0.06, 0.04, 0.04, "sequence"),
    Variant("cispo", "deviation", "token_mean", 0.0, 0.1, 0.15, 0.0, "weight"),
    Variant("cispo_kl", "deviation", "sequence_mean", 0.0, 0.2, 0.1, 0.04, "weight"),
]


def advantages(rewards: list[float], scale: str) -> list[float] | None:
    """Equation 1 of GRPO; none for a group without deviation."""
    r = torch.tensor(rewards, dtype=torch.float64)
    if bool((r == r[0]).all()):
        return None
    centred = r - r.mean()
    divisor = {"deviation": r.std(correction=0), "sample_deviation": r.std(correction=1), "none": torch.tensor(1.0)}
    return (centred / divisor[scale]).tolist()


def ratios_of(variant: Variant, logp: Tensor, old: Tensor) -> Tensor:
    """The importance ratios of a sample's tokens: GSPO's equation 7 is one for all, its GSPO-token the same in value
    with a gradient for each token."""
    if variant.surrogate != "sequence":
        return (logp - old).exp()
    whole = (logp - old).mean().exp()
    if variant.aggregation == "sequence_mean":
        return whole.expand(len(logp))
    return whole.detach() * (logp - logp.detach()).exp()


def objective(variant: Variant, logps: list[Tensor], olds: list[Tensor], refs: list[Tensor], a: list[float]) -> Tensor:
    """The loss over the samples of live groups."""
    terms = []
    for logp, old, ref, advantage in zip(logps, olds, refs, a, strict=True):
        ratio = ratios_of(variant, logp, old)
        clipped = ratio.clamp(1 - variant.clip_low, 1 + variant.clip_high)
        k3 = (ref - logp).exp() - (ref - logp) - 1
        if variant.surrogate == "weight":
            term = clipped.detach() * advantage * logp
        else:
            term = torch.minimum(ratio * advantage, clipped * advantage)
        terms.append(term - variant.kl * k3)
    if variant.aggregation == "sequence_mean":
        return -torch.stack([term.mean() for term in terms]).mean()
    if variant.aggregation == "token_mean":
        return -torch.cat(terms).mean()
    return -torch.cat(terms).sum() / (len(terms) * variant.length)


def main() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spec = next(spec for spec in MODELS if spec.name == MODEL)
    with precision(torch.float64, spec.family):
        learner = Learner(spec, torch.float64)
        samples = []
        for g, (prompt_length, lengths) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
            prompt = tokens(f"prompt {g}", 1, prompt_length, VOCAB)[0].tolist()
            for i, length in enumerate(lengths):
                answer = tokens(f"answer {g} {i}", 1, length, VOCAB)[0].tolist()
                noise = [0.3 * uniform(f"{kind} {g} {i}", length) for kind in ("old", "reference")]
                samples.append((g, i, prompt, answer, noise))

        def logprobs(prompt: list[int], answer: list[int]) -> Tensor:
            logits = learner.model(input_ids=torch.tensor([prompt + answer])).logits[0]
            chosen = logits.log_softmax(-1)[len(prompt) - 1 : -1]
            return chosen.gather(1, torch.tensor(answer)[:, None])[:, 0]

        recorded = []
        with torch.no_grad():
            for g, i, prompt, answer, noise in samples:
                exact = logprobs(prompt, answer)
                old, ref = ((exact + torch.from_numpy(n)).float().double() for n in noise)
                sample = {"group": g, "reward": REWARDS[g][i], "prompt": prompt, "answer": answer}
                recorded.append(sample | {"logprobs": old.tolist(), "reference": ref.tolist()})

        variants = []
        for variant in VARIANTS:
            a = [advantages(rewards, variant.scale) for rewards in REWARDS]
            live = [(s, r) for s, r in zip(samples, recorded, strict=True) if a[s[0]] is not None]
            for parameter in learner.parameters():
                parameter.grad = torch.zeros_like(parameter)
            logps = [logprobs(s[2], s[3]) for s, _ in live]
            for logp in logps:
                logp.retain_grad()
            olds, refs = ([torch.tensor(r[key], dtype=torch.float64) for _, r in live] for key in ("logprobs", "reference"))
            loss = objective(variant, logps, olds, refs, [a[s[0]][s[1]] for s, _ in live])
            loss.backward()
            k3 = torch.cat([(r - l).exp() - (r - l) - 1 for r, l in zip(refs, logps, strict=True)]).mean()
            ratios = torch.cat([ratios_of(variant, l, o) for l, o in zip(logps, olds, strict=True)])
            outside = ((ratios < 1 - variant.clip_low) | (ratios > 1 + variant.clip_high)).double().mean()
            gradients = learner.gradients()
            hashed = {
                name: [float(grad.norm()), float(grad.flatten() @ torch.from_numpy(uniform(name, grad.numel())))]
                for name, grad in gradients.items()
            }
            variants.append(
                asdict(variant)
                | {"advantages": a, "loss": loss.item(), "k3": k3.item(), "outside": outside.item()}
                | {"token_gradients": [logp.grad.tolist() for logp in logps]}
                | {"gradients": hashed, "whole": {name: gradients[name].flatten().tolist() for name in WHOLE}}
            )
            print(f"{variant.name}: loss {loss.item():.6f}, k3 {k3.item():.5f}, {outside.item():.0%} outside the clip range")
    OUTPUT.mkdir(parents=True, exist_ok=True)
    made_by = f"scripts/oracle/make_grpo.py, torch {torch.__version__}, transformers {transformers.__version__}"
    result = {"made_by": made_by, "model": MODEL, "samples": recorded, "variants": variants}
    text = json.dumps(rounded(result))
    (OUTPUT / "grpo.json").write_text(text + "\n")
    print(f"{len(text)} bytes")


def rounded(value: object) -> object:
    """Numbers with nine digits: a hundred times finer than what is asked of float32."""
    if isinstance(value, float):
        return float(np.format_float_positional(value, precision=9, fractional=False)) if value else 0.0
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()

"""Write crates/train/tests/oracle/distil.json: distillation's divergence, loss and gradients by PyTorch.

    .venv/bin/python make_distil.py

The teacher is the oracle model `deepseek_v3_no_q_lora` of models.py, the student `llama_tied_smollm2`, of another width
and with the same vocabulary, both in float64. Examples are random answers behind random prompts; only the answers
count. The losses are those of torch's `kl_div`, differentiated by autograd to the student's weights:

    mean over answers' tokens of (1 - a) T² KL + a cross-entropy, KL of softmax(logits / T)
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
import transformers
from make_grpo import OUTPUT, rounded
from make_models import Learner, precision
from models import MODELS, VOCAB
from torch import Tensor
from weights import tokens, uniform

TEACHER = "deepseek_v3_no_q_lora"
STUDENT = "llama_tied_smollm2"
PROMPTS = [5, 1, 7]
ANSWERS = [9, 14, 2]
WHOLE = ["model.norm.weight", "model.layers.1.self_attn.k_proj.weight"]
"""Gradients that are stored as they are; of the others, the norm and the product with `uniform(NAME)`."""


@dataclass
class Variant:
    """An objective."""

    divergence: str  # forward_kl, reverse_kl
    temperature: float
    cross_entropy: float


VARIANTS = [
    Variant("forward_kl", 1.0, 0.0),
    Variant("reverse_kl", 1.0, 0.0),
    Variant("forward_kl", 2.0, 0.25),
    Variant("reverse_kl", 0.5, 0.5),
    Variant("forward_kl", 1.0, 1.0),
]


def divergence(variant: Variant, student: Tensor, teacher: Tensor) -> Tensor:
    """KL of each token, from logits [T, V]."""
    s, t = ((logits / variant.temperature).log_softmax(-1) for logits in (student, teacher))
    first, second = (t, s) if variant.divergence == "forward_kl" else (s, t)
    return F.kl_div(second, first, reduction="none", log_target=True).sum(-1)


def main() -> None:
    """Writes the file."""
    torch.set_num_threads(1)
    specs = {spec.name: spec for spec in MODELS}
    examples = []
    for i, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        drawn = tokens(f"distil {i}", 1, prompt + answer, VOCAB)[0].tolist()
        examples.append({"prompt": drawn[:prompt], "answer": drawn[prompt:]})

    def logits(learner: Learner, example: dict[str, list[int]]) -> Tensor:
        """What the model expects in each place of the answer, [T, V]."""
        ids = example["prompt"] + example["answer"]
        return learner.model(input_ids=torch.tensor([ids])).logits[0, len(example["prompt"]) - 1 : -1]

    with precision(torch.float64, specs[TEACHER].family), torch.no_grad():
        teacher = Learner(specs[TEACHER], torch.float64)
        taught = torch.cat([logits(teacher, example) for example in examples])
    with precision(torch.float64, specs[STUDENT].family):
        student = Learner(specs[STUDENT], torch.float64)
        targets = torch.tensor([token for example in examples for token in example["answer"]])
        variants = []
        for variant in VARIANTS:
            for parameter in student.parameters():
                parameter.grad = torch.zeros_like(parameter)
            own = torch.cat([logits(student, example) for example in examples])
            kl = divergence(variant, own, taught).mean()
            nll = F.cross_entropy(own, targets)
            share, temperature = variant.cross_entropy, variant.temperature
            loss = (1 - share) * temperature**2 * kl + share * nll
            loss.backward()
            gradients = student.gradients()
            hashed = {
                name: [float(grad.norm()), float(grad.flatten() @ torch.from_numpy(uniform(name, grad.numel())))]
                for name, grad in gradients.items()
            }
            variants.append(
                asdict(variant)
                | {"kl": kl.item(), "nll": nll.item(), "gradients": hashed}
                | {"whole": {name: gradients[name].flatten().tolist() for name in WHOLE}}
            )
            print(f"{variant}: KL {kl.item():.6f}, cross-entropy {nll.item():.6f}")
    made_by = f"scripts/oracle/make_distil.py, torch {torch.__version__}, transformers {transformers.__version__}"
    result = {"made_by": made_by, "teacher": TEACHER, "student": STUDENT, "examples": examples, "variants": variants}
    text = json.dumps(rounded(result))
    (OUTPUT / "distil.json").write_text(text + "\n")
    print(f"{len(text)} bytes")


if __name__ == "__main__":
    main()

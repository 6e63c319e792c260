"""Write crates/model/tests/adapters: PEFT's LoRA adapters of oracle models, and what PyTorch computes with them.

    .venv/bin/python make_adapters.py

For each of some models of models.py, with its weights, tokens and targets, a folder with

* adapter_config.json, adapter_model.safetensors: as PEFT's `save_pretrained` writes them;
* oracle.safetensors: `logits` [B, T, V], `gradients.NAME` of each tensor NAME of the adapter for the mean
  cross-entropy over all targets, and `merged.NAME`, the matrices that `merge_and_unload` gives.

Computed in float64, and rounded once. A is weights.py's matrix of its name, B a tenth of it. The adapter is loaded
again by `PeftModel.from_pretrained` before it is believed.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from make_models import Learner, draw, precision
from models import MODELS
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from weights import weight

OUTPUT = Path(__file__).resolve().parents[2] / "crates" / "model" / "tests" / "adapters"


@dataclass
class Case:
    """An adapter of an oracle model."""

    model: str
    rank: int
    alpha: float
    targets: str | list[str]
    """Of a mixture of experts attention alone: by names of feed-forward layers PEFT 0.21 means its routed experts."""
    rslora: bool = False


CASES = [
    Case("llama_tied_smollm2", 4, 8, "all-linear"),
    Case("qwen2_untied", 3, 5, ["q_proj", "v_proj", "down_proj"], rslora=True),
    Case("qwen3_untied", 5, 16, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
    Case("deepseek_v3_groups_yarn", 4, 6, ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]),
    Case("deepseek_v3_no_q_lora", 2, 4, ["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]),
]


def make(case: Case) -> None:
    """Writes one folder."""
    spec = next(spec for spec in MODELS if spec.name == case.model)
    folder = OUTPUT / case.model
    folder.mkdir(parents=True, exist_ok=True)
    drawn = torch.from_numpy(draw(spec))
    ids, targets = drawn[:, :-1], drawn[:, 1:]
    with precision(torch.float64, spec.family):
        base = Learner(spec, torch.float64).model
        config = LoraConfig(
            r=case.rank,
            lora_alpha=case.alpha,
            target_modules=case.targets,
            use_rslora=case.rslora,
            task_type="CAUSAL_LM",
            base_model_name_or_path=case.model,
        )
        model = get_peft_model(base, config)
        model.peft_config["default"].base_model_name_or_path = case.model
        adapter = {name: value for name, value in model.named_parameters() if "lora_" in name}
        for name, value in adapter.items():
            drawn_values = torch.from_numpy(weight(name.replace(".default", ""), tuple(value.shape)))
            value.data.copy_(drawn_values * (0.1 if "lora_B" in name else 1.0))
        assert all(value.dtype == torch.float64 for value in adapter.values())
        logits = model(input_ids=ids).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        out = {"logits": logits.detach()}
        out |= {f"gradients.{name.replace('.default', '')}": value.grad.clone() for name, value in adapter.items()}
        model.to(torch.float32).save_pretrained(folder)
        model.to(torch.float64)
        names = {name.split(".lora_")[0].removeprefix("base_model.model.") for name in adapter}
        merged = model.merge_and_unload()
        out |= {f"merged.{name}.weight": merged.get_submodule(name).weight.detach().clone() for name in names}
    (folder / "README.md").unlink(missing_ok=True)
    with precision(torch.float32, spec.family), tempfile.TemporaryDirectory():
        again = PeftModel.from_pretrained(Learner(spec, torch.float32).model, folder)
        difference = (again(input_ids=ids).logits.double() - out["logits"]).abs().max() / out["logits"].abs().max()
    held = load_file(folder / "adapter_model.safetensors")
    print(f"{case.model}: {len(held)} tensors, float32 logits are {difference:.1e} of the largest from these")
    assert difference < 1e-5
    save_file({name: value.float().contiguous() for name, value in sorted(out.items())}, folder / "oracle.safetensors")


def main() -> None:
    """Writes all."""
    torch.set_num_threads(1)
    for case in CASES:
        make(case)


if __name__ == "__main__":
    main()

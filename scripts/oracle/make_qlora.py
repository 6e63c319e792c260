"""Write crates/model/tests/adapters/MODEL/FORMAT.safetensors: LoRA beside quantised weights, as PyTorch computes it.

    .venv/bin/python make_qlora.py

The adapters are those of make_adapters.py. Every linear map of a layer, but for routers, is replaced by what gguf-py's
`quantize` and `dequantize` make of its float32 values, each row filled up with zeros to whole blocks. The file has
`logits` [B, T, V] and `gradients.NAME` of each tensor NAME of the adapter for the mean cross-entropy over all targets,
computed in float64 and rounded once.
"""

from __future__ import annotations

import gguf
import numpy as np
import torch
import torch.nn.functional as F
from make_adapters import OUTPUT
from make_models import Learner, draw, precision
from models import MODELS
from peft import PeftModel
from safetensors.torch import save_file

CASES = [
    ("llama_tied_smollm2", gguf.GGMLQuantizationType.Q4_0),
    ("qwen3_untied", gguf.GGMLQuantizationType.Q8_0),
    ("qwen3_untied", gguf.GGMLQuantizationType.Q4_1),
    ("deepseek_v3_no_q_lora", gguf.GGMLQuantizationType.Q4_0),
]
BLOCK = 32


def rounded(values: torch.Tensor, kind: gguf.GGMLQuantizationType) -> torch.Tensor:
    """The numbers that the blocks of these stand for."""
    cols = values.shape[-1]
    flat = np.zeros((values.numel() // cols, -(-cols // BLOCK) * BLOCK), dtype=np.float32)
    flat[:, :cols] = values.detach().float().reshape(-1, cols).numpy()
    back = gguf.quants.dequantize(gguf.quants.quantize(flat, kind), kind)[:, :cols]
    return torch.from_numpy(np.ascontiguousarray(back)).reshape(values.shape).to(values.dtype)


def is_map(name: str, value: torch.Tensor) -> bool:
    """Whether a parameter is a linear map of a layer that is quantised."""
    return ".layers." in name and value.ndim >= 2 and "lora_" not in name and not name.endswith("mlp.gate.weight")


def make(name: str, kind: gguf.GGMLQuantizationType) -> None:
    """Writes one file."""
    spec = next(spec for spec in MODELS if spec.name == name)
    drawn = torch.from_numpy(draw(spec))
    ids, targets = drawn[:, :-1], drawn[:, 1:]
    with precision(torch.float64, spec.family):
        base = Learner(spec, torch.float64).model
        changed = [(key, value) for key, value in base.named_parameters() if is_map(key, value)]
        for _, value in changed:
            value.data.copy_(rounded(value.data, kind))
        model = PeftModel.from_pretrained(base, OUTPUT / name, is_trainable=True)
        adapter = {key: value for key, value in model.named_parameters() if "lora_" in key}
        for value in adapter.values():
            value.data = value.data.double()
        logits = model(input_ids=ids).logits
        F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    out = {"logits": logits.detach()}
    out |= {f"gradients.{key.replace('.default', '')}": value.grad.clone() for key, value in adapter.items()}
    file = OUTPUT / name / f"{kind.name.lower()}.safetensors"
    save_file({key: value.float().contiguous() for key, value in sorted(out.items())}, file)
    print(f"{name} {kind.name}: {len(changed)} matrices, {file.stat().st_size} bytes")
    print("  " + ", ".join(sorted({key.split(".", 3)[-1] for key, _ in changed})))


def main() -> None:
    """Writes all."""
    torch.set_num_threads(1)
    for name, kind in CASES:
        make(name, kind)


if __name__ == "__main__":
    main()

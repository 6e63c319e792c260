"""Writes crates/model/tests/mxfp4/experts.safetensors: experts in MXFP4 and what `transformers` makes of them.

    python scripts/oracle/make_mxfp4.py

`gate_up_proj_blocks`, `gate_up_proj_scales` and so on as gpt-oss has them, of hashed bytes with scales of ordinary
size; `gate_up_proj` and `down_proj`, bfloat16, are transposed to rows of inputs, as its modelling code has them.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from weights import uniform

OUT = Path(__file__).resolve().parents[2] / "crates/model/tests/mxfp4"
EXPERTS, HIDDEN, WIDTH = 2, 64, 32


def hashed(name: str, shape: tuple[int, ...], low: int, high: int) -> torch.Tensor:
    """Whole numbers from `low` to below `high`, uint8."""
    u = (uniform(name, math.prod(shape)) + 1.0) / 2.0
    return torch.from_numpy(np.floor(low + u * (high - low)).astype(np.uint8).reshape(shape))


def main() -> None:
    """Writes the file."""
    OUT.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, rows, cols in [("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, WIDTH)]:
        blocks = hashed(f"{name} blocks", (EXPERTS, rows, cols // 32, 16), 0, 256)
        scales = hashed(f"{name} scales", (EXPERTS, rows, cols // 32), 118, 128)
        values = convert_moe_packed_tensors(blocks, scales).contiguous()
        assert values.shape == (EXPERTS, cols, rows), values.shape
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales, name: values}
    save_file(tensors, OUT / "experts.safetensors")


if __name__ == "__main__":
    main()

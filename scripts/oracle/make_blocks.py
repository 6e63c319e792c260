"""Writes crates/kernels/tests/oracle/blocks/: quantised blocks and what the `gguf` package makes of them.

    python scripts/oracle/make_blocks.py

TYPE.blocks holds blocks of hashed bytes with scales of ordinary size, TYPE.values their values (f32). For the types
that Wels writes, source.values is encoded into TYPE.encoded. All numbers are little-endian.
"""

from __future__ import annotations

import pathlib

import numpy as np
from gguf import GGMLQuantizationType as Type
from gguf.constants import GGML_QUANT_SIZES
from gguf.quants import dequantize, quantize
from weights import uniform

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/kernels/tests/oracle/blocks"
VALUES = 512

# Where the f16 scales of a block begin.
SCALES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0],
    "Q2_K": [80, 82], "Q3_K": [108], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208],
    "IQ4_NL": [0], "IQ4_XS": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0],
    "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
}  # fmt: skip
ENCODED = ["Q4_0", "Q4_1", "Q8_0"]


def blocks(name: str) -> np.ndarray:
    """Rows of one block each, uint8."""
    length, size = GGML_QUANT_SIZES[Type[name]]
    count = VALUES // length
    data = np.floor((uniform(name, count * size) + 1.0) * 128.0).astype(np.uint8).reshape(count, size)
    for at in SCALES.get(name, []):
        scales = (0.02 * uniform(f"{name} {at}", count)).astype("<f2")
        data[:, at : at + 2] = scales.view(np.uint8).reshape(count, 2)
    if name == "IQ1_M":
        # The f16 lies in the upper nibbles of four words, the lowest first: this keeps its exponent below 16.
        data[:, 55] = data[:, 55] & 0x0F | 0x20 | data[:, 55] & 0x80
    if name in ("F16", "BF16"):
        data[:, 1] &= 0xBF  # nothing infinite
    return data


def main() -> None:
    """Writes all files."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name in [*SCALES, "F16", "BF16", "IQ1_M", "MXFP4"]:
        data = blocks(name)
        (OUT / f"{name}.blocks").write_bytes(data.tobytes())
        (OUT / f"{name}.values").write_bytes(dequantize(data, Type[name]).astype("<f4").tobytes())
    source = (uniform("source", VALUES) * np.repeat(2.0 ** np.arange(VALUES // 32), 32)).astype("<f4")
    source[32:64] = 0.0
    source[64:96] = source[64]
    source[96:128] = np.abs(source[96:128])
    (OUT / "source.values").write_bytes(source.tobytes())
    for name in ENCODED:
        (OUT / f"{name}.encoded").write_bytes(quantize(source, Type[name]).tobytes())


if __name__ == "__main__":
    main()

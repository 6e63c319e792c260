"""Writes crates/kernels/src/quant/codebooks/: the tables of GGUF's IQ types, as the `gguf` package packs them.

    python scripts/oracle/make_codebooks.py

Two bits a number, the lowest first; in IQ3 types four bits, of which three are used.
"""

from __future__ import annotations

import pathlib

from gguf import quants

OUT = pathlib.Path(__file__).resolve().parents[2] / "crates/kernels/src/quant/codebooks"


def main() -> None:
    """Writes all files."""
    OUT.mkdir(parents=True, exist_ok=True)
    for name in ["IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ1_S"]:
        table = bytes.fromhex(getattr(quants, name).grid_hex.decode())
        (OUT / f"{name.lower()}.bin").write_bytes(table)


if __name__ == "__main__":
    main()

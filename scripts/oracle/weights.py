"""Weights of the tiny oracle models: a hash of each tensor's name and index, so that none need be stored.

`crates/model/tests` has the same formula in Rust.
"""

from __future__ import annotations

import math

import numpy as np

FNV_OFFSET = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MASK = (1 << 64) - 1


def fnv1a64(name: str) -> int:
    """The 64-bit FNV-1a hash of a name."""
    value = FNV_OFFSET
    for byte in name.encode():
        value = ((value ^ byte) * FNV_PRIME) & MASK
    return value


def splitmix64(z: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 on an array of uint64."""
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniform(name: str, count: int) -> np.ndarray:
    """`count` numbers in [-1, 1), float64."""
    with np.errstate(over="ignore"):
        bits = splitmix64(np.uint64(fnv1a64(name)) + np.arange(count, dtype=np.uint64))
    return 2.0 * ((bits >> np.uint64(40)).astype(np.float64) / 2.0**24) - 1.0


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The tensor with a Hugging Face name and shape, float32.

    Matrices are uniform with variance 1 / in_features, embeddings uniform in [-1, 1), norm weights 1 ± 0.1, biases
    ± 0.1, selection biases of routers ± 0.02.
    """
    u = uniform(name, math.prod(shape))
    if name.endswith("e_score_correction_bias"):
        values = 0.02 * u
    elif name.endswith("bias"):
        values = 0.1 * u
    elif name.endswith("embed_tokens.weight"):
        values = u
    elif len(shape) == 1:
        values = 1.0 + 0.1 * u
    else:
        values = math.sqrt(3.0 / shape[-1]) * u
    return values.astype(np.float32).reshape(shape)


def tokens(name: str, sequences: int, length: int, vocab_size: int) -> np.ndarray:
    """Token ids [sequences, length], int64."""
    u = uniform(name, sequences * length)
    return np.floor((u + 1.0) / 2.0 * vocab_size).astype(np.int64).reshape(sequences, length)

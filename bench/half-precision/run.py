"""What half precision costs in validation loss: the same recipe in f32 and in bf16 or f16, several seeds.

    python bench/half-precision/run.py [--recipe recipes/dense-7m.toml] [--precision bf16] [--steps 1000]
                                       [--seeds 1 2 3]

Equal steps, equal data in equal order, equal initial weights. Prints a table of final validation losses with the
relative gap, beside the spread between seeds in f32, below which a gap means nothing, and exits with 1 if the mean gap
is above 0.5%. Killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

GAP_MAX = 0.005


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=wels.ROOT / "recipes" / "dense-7m.toml")
    parser.add_argument("--precision", choices=["bf16", "f16"], default="bf16")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=wels.ROOT / "runs" / "half-precision")
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    changes = {
        "pretrain.steps": arguments.steps,
        "pretrain.validate_every": max(1, arguments.steps // 10),
        "pretrain.validate_sequences": 256,
        "pretrain.keep_checkpoints": 1,
    }
    last: dict[str, list[float]] = {"f32": [], arguments.precision: []}
    print(wels.machine())
    print(f"\n| seed | f32 | {arguments.precision} | gap | s a step, f32 | {arguments.precision} |\n|---|---|---|---|---|---|")
    for seed in arguments.seeds:
        curves = [
            wels.train(
                binary,
                arguments.recipe,
                changes | {"pretrain.precision": precision},
                arguments.runs,
                f"{arguments.recipe.stem}-{precision}",
                seed,
            )
            for precision in last
        ]
        for precision, curve in zip(last, curves, strict=True):
            last[precision].append(curve.last)
        gap = curves[1].last / curves[0].last - 1.0
        pace = [curve.seconds[-1] / curve.steps[-1] for curve in curves]
        print(f"| {seed} | {curves[0].last:.4f} | {curves[1].last:.4f} | {gap:+.3%} | {pace[0]:.3f} | {pace[1]:.3f} |")
    full, half = last.values()
    gap = statistics.mean(half) / statistics.mean(full) - 1.0
    spread = (max(full) - min(full)) / statistics.mean(full)
    print(f"\nmean gap {gap:+.3%}; f32 seeds are {spread:.3%} apart")
    sys.exit(0 if gap <= GAP_MAX else f"the gap is above {GAP_MAX:.1%}")


if __name__ == "__main__":
    main()

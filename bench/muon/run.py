"""Muon against AdamW on recipes/moe-28m.toml: seconds of a step, and validation losses on the way.

    python bench/muon/run.py [--steps 250] [--seeds 1] [--rates 2e-3 4e-3] [--recipe FILE] [--runs DIR] [--wels BINARY]

The steps are measured with the machine to itself; losses are the same bits beside other work. Killed, the same command
goes on. Python's standard library alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 4e-3])
    parser.add_argument("--recipe", type=Path, default=wels.ROOT / "recipes" / "moe-28m.toml")
    parser.add_argument("--runs", type=Path, default=wels.ROOT / "runs" / "muon")
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    print(wels.machine())
    for optimizer in ("adamw", "muon"):
        rule = {"pretrain.optimizer": optimizer}
        pace = wels.bench_train(binary, arguments.recipe, rule, 5)["seconds_per_step"]
        for rate in arguments.rates:
            for seed in arguments.seeds:
                changes = rule | {
                    "pretrain.steps": arguments.steps,
                    "pretrain.learning_rate": rate,
                    "pretrain.validate_every": max(1, arguments.steps // 10),
                    "pretrain.validate_sequences": 256,
                    "pretrain.keep_checkpoints": 1,
                }
                label = f"{arguments.recipe.stem}-{optimizer}-{rate:g}-{arguments.steps}"
                curve = wels.train(binary, arguments.recipe, changes, arguments.runs, label, seed)
                losses = " ".join(f"{loss:.4f}" for loss in curve.losses)
                print(f"{optimizer} {rate:g}, seed {seed}, {pace:.3f} s a step: {losses}", flush=True)


if __name__ == "__main__":
    main()

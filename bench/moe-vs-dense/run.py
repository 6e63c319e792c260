"""A mixture of experts against a dense model of equal active parameters: equal wall-clock, same data, three seeds.

    python bench/moe-vs-dense/run.py [--pair small] [--minutes 8] [--seeds 1 2 3] [--runs DIR]

Measures the step of both (recipes/moe-28m.toml and dense.toml beside this, or of the pair `small` small-moe.toml and
small-dense.toml) with the machine to itself, gives each as many steps as fit into the time, and trains them in turns,
each with its own complete schedule of learning rates (of the pair `small` one that falls from the beginning, as a
cosine). A step's place on the axis of time is that of the measured steps, so that the machine may have other work while
they train; the sum of the seconds as they were is printed beside it. Both see the same documents, tokenizer and
validation text (Rust sources; seeds change weights and order). Killed, the same command goes on. Writes
docs/moe-vs-dense.csv and docs/moe-vs-dense.svg, or those of the pair, and prints a table.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

HERE = Path(__file__).resolve().parent
PAIRS = {
    "moe-28m": {"MoE": wels.ROOT / "recipes" / "moe-28m.toml", "dense": HERE / "dense.toml"},
    "small": {"MoE": HERE / "small-moe.toml", "dense": HERE / "small-dense.toml"},
}
COLOURS = {"MoE": "#c2410c", "dense": "#1d4ed8"}
VALIDATIONS = 20


def plan(
    binary: Path,
    recipes: dict[str, Path],
    runs: Path,
    seconds: float,
    rates: dict[str, float | None],
    precision: str,
    decays_throughout: bool,
) -> dict[str, dict[str, Any]]:
    """The seconds of a step of each model and what its recipe is changed to. Kept in a file: a continued comparison must
    not measure anew."""
    kept = runs / "plan.json"
    if kept.exists():
        return json.loads(kept.read_text())
    plans: dict[str, dict[str, Any]] = {}
    for label, recipe in recipes.items():
        report = wels.bench_train(binary, recipe, {"pretrain.precision": precision}, 20)
        steps = int(seconds / report["seconds_per_step"])
        print(f"{label}: {report['parameters']:,} parameters, {report['seconds_per_step']:.3f} s a step, {steps} steps")
        changes = {
            "pretrain.steps": steps,
            "pretrain.precision": precision,
            "pretrain.validate_every": max(1, steps // VALIDATIONS),
            "pretrain.validate_sequences": 256,
            "pretrain.keep_checkpoints": 1,
        }
        if decays_throughout:
            changes["pretrain.decay_steps"] = steps
        if rates[label]:
            changes["pretrain.learning_rate"] = rates[label]
        plans[label] = {"seconds_per_step": report["seconds_per_step"], "changes": changes}
    runs.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(plans, indent=2))
    return plans


def report(curves: list[wels.Curve], pace: dict[str, float], minutes: float, name: str) -> bool:
    """Writes the files and the table; whether every seed's MoE has the lower loss. `pace`: seconds a step, measured."""
    docs = wels.ROOT / "docs"
    with (docs / f"{name}.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["model", "seed", "step", "train_seconds", "validation_nll"])
        for curve in curves:
            for step, loss in zip(curve.steps, curve.losses, strict=True):
                rows.writerow([curve.label, curve.seed, step, f"{step * pace[curve.label]:.2f}", f"{loss:.5f}"])
    title = f"MoE and dense at equal active parameters, {minutes:g} minutes each"
    plot = wels.Plot(title, "seconds of training")
    plot.curves = [
        (curve.label, COLOURS[curve.label], [step * pace[curve.label] for step in curve.steps], curve.losses)
        for curve in curves
    ]
    (docs / f"{name}.svg").write_text(plot.svg())
    print("\n| seed | MoE | steps | seconds as they were | dense | steps | seconds | difference |")
    print("|---|---|---|---|---|---|---|---|")
    wins = []
    for seed in sorted({curve.seed for curve in curves}):
        pair = {curve.label: curve for curve in curves if curve.seed == seed}
        cells = [
            f"{pair[label].last:.4f} | {pair[label].steps[-1]} | {pair[label].seconds[-1]:.0f}" for label in ("MoE", "dense")
        ]
        difference = pair["MoE"].last - pair["dense"].last
        wins.append(difference < 0)
        print(f"| {seed} | {cells[0]} | {cells[1]} | {difference:+.4f} |")
    return all(wins)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pair", choices=list(PAIRS), default="moe-28m")
    parser.add_argument("--minutes", type=float, default=8.0, help="of training, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--learning-rate-moe", type=float, help="instead of its recipe's")
    parser.add_argument("--learning-rate-dense", type=float, help="instead of its recipe's")
    parser.add_argument("--precision", choices=["f32", "bf16", "f16"], default="f32", help="of both")
    parser.add_argument("--runs", type=Path, help="instead of runs/moe-vs-dense, or that of the pair")
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    print(wels.machine())
    rates = {"MoE": arguments.learning_rate_moe, "dense": arguments.learning_rate_dense}
    name = "moe-vs-dense" if arguments.pair == "moe-28m" else f"moe-vs-dense-{arguments.pair}"
    runs, recipes = arguments.runs or wels.ROOT / "runs" / name, PAIRS[arguments.pair]
    decays_throughout = arguments.pair == "small"
    plans = plan(binary, recipes, runs, arguments.minutes * 60, rates, arguments.precision, decays_throughout)
    curves = [
        wels.train(binary, recipe, plans[label]["changes"], runs, label, seed)
        for seed in arguments.seeds
        for label, recipe in recipes.items()
    ]
    pace = {label: plan["seconds_per_step"] for label, plan in plans.items()}
    sys.exit(0 if report(curves, pace, arguments.minutes, name) else "the dense model won at least once")


if __name__ == "__main__":
    main()

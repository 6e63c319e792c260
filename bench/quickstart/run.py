"""The quickstart with several seeds: what reinforcement adds, and what the distilled model keeps of it.

    python bench/quickstart/run.py [--seeds 1 2 3] [--runs DIR]

Runs recipes/quickstart.toml, prints the accuracy of its models on held-out puzzles with their means, and writes the
course of reinforcement to docs/quickstart.csv and docs/quickstart-{accuracy,length}.svg. Killed, the same command goes
on.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import wels  # noqa: E402

RECIPE = wels.ROOT / "recipes" / "quickstart.toml"
COLOURS = ["#1d4ed8", "#c2410c", "#15803d", "#7e22ce", "#b91c1c"]
SMOOTHED_STEPS = 5
MODELS = ["base", "r1-zero", "distilled"]


def run(binary: Path, runs: Path, seed: int) -> Path:
    """The folder of the finished run."""
    name = f"quickstart-seed{seed}"
    recipe = runs / f"{name}.toml"
    runs.mkdir(parents=True, exist_ok=True)
    recipe.write_text(wels.recipe_variant(RECIPE, {"run.name": name, "run.seed": seed}))
    subprocess.run([binary, "run", recipe, "--runs", runs], check=True, stdout=subprocess.DEVNULL)
    return runs / name


def smoothed(values: list[float]) -> list[float]:
    """Means over the last few steps."""
    windows = (values[max(0, end - SMOOTHED_STEPS) : end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def write_curves(steps: dict[int, list[dict[str, Any]]]) -> None:
    docs = wels.ROOT / "docs"
    with (docs / "quickstart.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["seed", "step", "accuracy", "length", "truncated", "entropy", "dead_groups"])
        for seed, lines in steps.items():
            for line in lines:
                row = [line["accuracy"], line["length"], line["truncated"], line["entropy"], line["dead_groups"]]
                rows.writerow([seed, line["step"], *(f"{value:.4f}" for value in row)])
    for key, y_label, y_max in [("accuracy", "share of right answers", 1.0), ("length", "tokens of an answer", 160.0)]:
        title = f"Reinforcement in the quickstart, mean of {SMOOTHED_STEPS} steps"
        plot = wels.Plot(title, "step", y_label, (0.0, y_max))
        plot.curves = [
            (f"seed {seed}", colour, [line["step"] for line in lines], smoothed([line[key] for line in lines]))
            for (seed, lines), colour in zip(steps.items(), COLOURS)
        ]
        (docs / f"quickstart-{key}.svg").write_text(plot.svg())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--runs", type=Path, default=wels.ROOT / "runs" / "quickstart-seeds")
    parser.add_argument("--wels", type=Path, help="a built binary, instead of building one")
    arguments = parser.parse_args()
    binary = arguments.wels or wels.build()
    print(wels.machine())
    steps: dict[int, list[dict[str, Any]]] = {}
    accuracies: list[list[float]] = []
    print("| seed | " + " | ".join(MODELS) + " |\n|" + "---|" * (len(MODELS) + 1))
    for seed in arguments.seeds:
        folder = run(binary, arguments.runs, seed)
        lines = (folder / "r1-zero" / "metrics.jsonl").read_text().splitlines()
        steps[seed] = [json.loads(line) for line in lines]
        scores = json.loads((folder / "scores" / "scores.json").read_text())
        accuracies.append([next(s["accuracy"] for s in scores if s["model"] == model) for model in MODELS])
        print(f"| {seed} | " + " | ".join(f"{100 * accuracy:.1f}%" for accuracy in accuracies[-1]) + " |", flush=True)
    means = [sum(column) / len(column) for column in zip(*accuracies, strict=True)]
    print("| mean | " + " | ".join(f"{100 * mean:.1f}%" for mean in means) + " |")
    write_curves(steps)


if __name__ == "__main__":
    main()
